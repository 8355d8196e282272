"""Sequential refit: layer by layer, inputs from the network that is being repaired, targets from the intact one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError
from planaria.core.graph import Watch, forward_multiply_adds, run, strays
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.port import Inputs
from planaria.repair.fits import LayerFit, Sums, heard_by
from planaria.repair.reader import Reader, read_by
from planaria.repair.readers import readers, rows_of, spread
from planaria.repair.relevance import needed, program_for, relevance
from planaria.repair.sidecar import checked_importance, product_of, wide

FOLD = 8
"""One in so many inputs is held out for the report."""
ROUNDS = 3
"""Times that a reader with several calls is fitted anew, while that brings it closer."""


@dataclass(frozen=True, eq=False, repr=False)
class Teacher:
    """The intact network with unlabelled inputs: the source of a sequential refit.

    Args:
        net: The intact network.
        inputs: Unlabelled inputs [examples, ...], or as the network takes them; `dream` makes some where there are
            none. All are run at once: memory holds every product's outputs.
        importance: Weight of each input [examples], at least 0; by default all the same.
    """

    net: Network
    inputs: Inputs
    importance: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The inputs as one tensor [examples, ...]."""
        return self.net.port.rows(self.inputs)

    def __repr__(self) -> str:
        return f"<Teacher: {len(self.rows)} unlabelled inputs>"


def from_teacher(
    net: Network, teacher: Teacher, ridge: float | None, *, report: bool = False
) -> tuple[Network, tuple[LayerFit, ...], Cost]:
    """The repaired network, what was made good where (only for a report), and the cost.

    Raises:
        InputError: If the teacher is of another form than the network, or a number is not finite.
    """
    intact, inputs = teacher.net.to(net.device), teacher.rows.to(net.device)
    _check(net, intact, inputs)
    importance = checked_importance("Teacher.importance", teacher.importance, inputs)
    net = net if net.inputs is not None else net.with_inputs(inputs)
    found, _ = readers(net, len(inputs))
    if astray(net, teacher):
        found = {}
    several = needed(found)
    order, looked = rows_of(intact, found, inputs) if several or importance is not None else ({}, Cost())
    program = program_for(intact, found, inputs)
    weights, spent = relevance(program, readers(net)[0], inputs, order)
    lesson = _Lesson(intact, inputs, importance, order, weights, Anatomy.of(net), ridge, report)
    repair = _Repair(lesson, net, found)
    waiting = list(found.values())
    while waiting:
        # Readers with several calls are refitted one by one, between passes for those with one.
        once = next((at for at, reader in enumerate(waiting) if len(reader.tags) > 1), len(waiting))
        if once:
            repair.once(waiting[:once])
        else:
            repair.rounds(waiting[0])
        waiting = waiting[max(1, once) :]
    forward = forward_multiply_adds(net, inputs)
    work = repair.passes * len(inputs) * forward + repair.work
    cost = Cost(examples=len(inputs), forward_passes=repair.passes, multiply_adds=work)
    return repair.net, tuple(repair.fits), cost + looked + spent


def astray(net: Network, teacher: Teacher) -> bool:
    """Whether the teacher's inputs take another way through it, or through the network, than the example inputs."""
    inputs = teacher.rows.to(net.device)
    return any(strays(each.with_inputs(inputs), inputs) for each in (teacher.net.to(net.device), net))


def _check(net: Network, intact: Network, inputs: Tensor) -> None:
    if len(inputs) == 0 or (inputs.is_floating_point() and not bool(inputs.isfinite().all())):
        raise InputError("Teacher.inputs", "at least one input, all finite", f"{len(inputs)} inputs")
    if {n: w.shape for n, w in intact.weights.items()} != {n: w.shape for n, w in net.weights.items()}:
        raise InputError("Teacher.net", "the intact form of the same network", "weights of other names or shapes")
    if net.inputs is not None and inputs.shape[1:] != net.inputs.shape[1:]:
        raise InputError(
            "Teacher.inputs",
            f"inputs of the network's shape {list(net.inputs.shape[1:])}",
            f"{list(inputs.shape[1:])}",
            "Bring them into the form that the network was traced with.",
        )


def dead_features(anatomy: Anatomy, dead: Mapping[str, Tensor], reader: Reader) -> Tensor:
    """Which features of a reader come from dead units: boolean [groups, features]."""
    lost = torch.zeros(reader.columns.shape[:2], dtype=torch.bool, device=reader.columns.device)
    for group in anatomy.groups:
        owner = group.owners["outgoing"].get(reader.weight)
        if owner is None:
            continue
        unit = owner.to(lost.device).flatten()[reader.columns[..., 0]]
        state = torch.cat([dead[group.layer], torch.zeros(1, dtype=torch.bool)]).to(lost.device)
        lost |= state[unit]
    return lost


def units_read(anatomy: Anatomy, dead: Mapping[str, Tensor], reader: Reader) -> tuple[int, int]:
    """Dead and living units that a reader reads."""
    gone = living = 0
    for group in anatomy.groups:
        owner = group.owners["outgoing"].get(reader.weight)
        if owner is not None:
            read = owner.flatten()[reader.columns[..., 0].to(owner.device)].unique()
            state = dead[group.layer].to(read.device)[read[read >= 0]]
            gone, living = gone + int(state.sum()), living + int((~state).sum())
    return gone, living


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What stays the same throughout a sequential refit."""

    intact: Network
    inputs: Tensor
    importance: Tensor | None
    order: Mapping[str, str]
    weights: Mapping[tuple[str, int], Tensor]
    anatomy: Anatomy
    ridge: float | None
    report: bool

    def intact_pass(self, found: Mapping[str, Reader]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What operations make in the intact network, wherever readers are compared; what they read, if again."""
        tags = {tag for reader in found.values() for tag in _compared(reader)}
        again = {tag for reader in found.values() if len(reader.tags) > 1 for tag in reader.tags}
        wanted: dict[str, Tensor] = {}
        read: dict[str, Tensor] = {}

        def record(tag: str, args: tuple[Any, ...], output: Any) -> None:
            if tag in again:
                read[tag] = read_by(tag, args).clone()
            if tag in tags:
                wanted[tag] = output.clone()

        run(self.intact, self.inputs, Watch(record))
        return wanted, read

    def shares(self, reader: Reader, call: int, rows: int) -> Tensor | None:
        """Weight of each row in a call."""
        known = spread(self.importance, rows, self.order.get(reader.weight))
        return product_of(known, self.weights.get((reader.weight, call)))

    def held_out(self, reader: Reader, rows: int) -> Tensor | None:
        """Which rows are held out for the report."""
        count = len(self.inputs)
        if count < 2 * FOLD:
            return None
        order = self.order.get(reader.weight, "together" if rows == count else "")
        if not order:
            return torch.arange(rows, device=self.inputs.device) % FOLD == FOLD - 1
        chosen = torch.arange(count, device=self.inputs.device) % FOLD == FOLD - 1
        held = spread(chosen.double(), rows, order)
        return None if held is None else held > 0


def _compared(reader: Reader) -> tuple[str, ...]:
    """Operations at which a reader's outputs are compared."""
    return reader.outs if reader.junction is None else (reader.junction.tag,)


class _Repair:
    """A network on its way: what has been fitted so far, and what it has cost."""

    def __init__(self, lesson: _Lesson, net: Network, found: Mapping[str, Reader]) -> None:
        self.net, self.lesson = net, lesson
        self.fits: list[LayerFit] = []
        self.passes, self.work = 1, 0
        self._wanted, self._read = lesson.intact_pass(found)
        self._dead = lesson.anatomy.dead(net)

    def once(self, batch: Sequence[Reader]) -> None:
        """Refit readers that are called once, all in one pass: what each makes is corrected as it is made."""
        before = self.net
        reading = {reader.tags[0]: reader for reader in batch}
        making = {reader.outs[0]: reader for reader in batch}
        joining: dict[str, list[Reader]] = {}
        for reader in batch:
            joining.setdefault(_compared(reader)[0], []).append(reader)
        moving = {tag for reader in batch if reader.junction is not None for tag, _ in reader.junction.moves}
        read: dict[str, Tensor] = {}
        made: dict[str, Tensor] = {}
        arguments: dict[str, tuple[Any, ...]] = {}
        targets: dict[str, Tensor] = {}

        def seen(tag: str, args: tuple[Any, ...], output: Any) -> None:
            if tag in reading:
                x = read_by(tag, args)
                # Until outputs are compared, what was read may have been overwritten.
                read[reading[tag].weight] = x if tag in joining else x.clone()
            if tag in making:
                made[making[tag].weight] = output
            if tag in moving:
                arguments[tag] = args[1:]
            for reader in joining.get(tag, ()):
                x, like = read.pop(reader.weight), made.pop(reader.weight)
                added = self._fitted(before, reader, x, like, output, arguments, targets)
                if added is not None:
                    output.add_(added)
            if tag in joining:
                del self._wanted[tag]

        run(before, self.lesson.inputs, Watch(seen))
        self.net = before.move(targets)
        self.passes += 1

    def _fitted(
        self,
        net: Network,
        reader: Reader,
        x: Tensor,
        like: Tensor,
        output: Tensor,
        arguments: Mapping[str, tuple[Any, ...]],
        targets: dict[str, Tensor],
    ) -> Tensor | None:
        """Refit a reader where its outputs are compared; what is to be added there, None if nothing is wrong."""
        lost = dead_features(self.lesson.anatomy, self._dead, reader).to(net.device)
        target = self._wanted[_compared(reader)[0]]
        if not bool(lost.any()) and torch.equal(output, target):
            return None
        junction = reader.junction
        places = None if junction is None else junction.places(like, arguments)
        factor = None
        if junction is not None and junction.norm is not None:
            factor = junction.norm.factor(net).view(len(reader.columns), 1, -1)

        def rows(there: Tensor) -> Tensor:
            """What is compared, as rows of the reader's outputs."""
            there = wide(there).reshape(-1)
            here = there if places is None else torch.empty_like(there).index_copy_(0, places, there)
            found = reader.outputs(here.view(like.shape))
            if factor is None:
                return found
            return torch.where(factor == 0, 0.0, found / factor.to(found.dtype))

        wanted = rows(target)
        error = wanted - rows(output)
        if not (reader.inside or (junction is not None and reader.joined)):
            missed = reader.shift(net, self.lesson.intact.weights) - reader.shift(net, net.weights)
            error = error + missed[:, None].to(error.dtype)
        features = wide(reader.features(x))
        # Units that are stuck rather than silent are heard: take what they say away, and stop listening.
        old = reader.matrix(net.weights)
        error = error + torch.bmm(features, (old * lost[:, :, None]).to(features.dtype))
        heard = heard_by(reader, net, reader.free(net) & ~lost[:, :, None])
        if not bool(lost.any()) and not bool(error.transpose(1, 2)[heard.any(1)].any()):
            return None  # only what dead units would make is missing
        whole = self._problem(reader, features, error, wanted, 0)
        change, ridge = self._solved(whole, heard)
        if self.lesson.report:
            some = self.lesson.held_out(reader, features.shape[1])
            held = None if some is None else self._problem(reader, features, error, wanted, 0, some)
            self._note(reader, whole, held, heard, features.shape[1], ridge, change)
        proposal = reader.targets(net, old * ~lost[:, :, None] + change[:, :-1], change[:, -1])
        moved = net.move(proposal)
        targets.update(proposal)
        # Go on with what the law lets through, so that later readers are fitted to the real thing.
        step = reader.matrix(moved.weights) - old
        added = torch.bmm(features, step.to(features.dtype))
        added = added + (reader.shift(net, moved.weights) - reader.shift(net, net.weights))[:, None].to(added.dtype)
        if factor is not None:
            added = added * factor.to(added.dtype)
        flat = reader.back(added, like).reshape(-1)
        return (flat if places is None else flat[places]).view(output.shape).to(output.dtype)

    def rounds(self, reader: Reader) -> None:
        """Refit a reader that is called several times: what it makes may come back to it, so every fit is tried out.

        At first it is fitted to what the intact network reads, since that is where it should lead; then to what is
        really read.
        """
        lost = dead_features(self.lesson.anatomy, self._dead, reader).to(self.net.device)
        heard = heard_by(reader, self.net, reader.free(self.net) & ~lost[:, :, None])
        movable = heard.any(1)

        def size(sums: Sums) -> float:
            return float(sums.energy[movable].sum())

        before = best = self._watched(reader, self.net, lost)
        ridge = 0.0
        if not size(before):
            return
        # Dead units whose weights in the reader are not known, because it is tied: what they said is lost as well.
        silent = lost | (before.moment.diagonal(dim1=1, dim2=2)[:, :-1] == 0)
        problem, free = self._ideal(reader, silent), heard.clone()
        free[:, :-1] &= ~silent[:, :, None]
        for _ in range(ROUNDS):
            change, used = self._solved(problem, free)
            kept = reader.matrix(self.net.weights) * ~lost[:, :, None]
            tried = self.net.move(reader.targets(self.net, kept + change[:, :-1], change[:, -1]))
            found = self._watched(reader, tried, lost)
            if not size(found) < size(best):
                break
            self.net, ridge = tried, used
            best = problem = found
        gone, living = units_read(self.lesson.anatomy, self._dead, reader)
        errors = (before.error(heard), best.error(heard))
        self.fits.append(LayerFit(reader.weight, gone, living, round(best.weight), ridge, *errors, held_out=False))

    def _ideal(self, reader: Reader, lost: Tensor) -> Sums:
        """The least-squares problem over all calls, if living units did what they do in the intact network."""
        here, intact = self.net.weights, self.lesson.intact.weights
        missed = reader.matrix(intact) - reader.matrix(here) * ~lost[:, :, None]
        shift = (reader.shift(self.net, intact) - reader.shift(self.net, here))[:, None]
        calls = []
        for call, (tag, out) in enumerate(zip(reader.tags, reader.outs, strict=True)):
            features = wide(reader.features(self._read[tag]))
            error = torch.bmm(features, missed.to(features.dtype)) + shift.to(features.dtype)
            wanted = wide(reader.outputs(self._wanted[out]))
            calls.append(self._problem(reader, features, error, wanted, call))
        return _sum(calls)

    def _watched(self, reader: Reader, net: Network, lost: Tensor) -> Sums:
        """The least-squares problem over all calls of a reader, as they go in a network."""
        stuck = reader.matrix(net.weights) * lost[:, :, None]
        missed = torch.zeros_like(stuck[:, 0])
        if not reader.inside:
            missed = reader.shift(net, self.lesson.intact.weights) - reader.shift(net, net.weights)
        calls: list[Sums] = []
        read: list[Tensor] = []

        def seen(tag: str, args: tuple[Any, ...], output: Any) -> None:
            if tag in reader.tags:
                read.append(wide(reader.features(read_by(tag, args))))
            if tag in reader.outs:
                features, wanted = read.pop(), wide(reader.outputs(self._wanted[tag]))
                error = wanted - wide(reader.outputs(output)) + missed[:, None].to(wanted.dtype)
                error = error + torch.bmm(features, stuck.to(features.dtype))
                calls.append(self._problem(reader, features, error, wanted, reader.outs.index(tag)))

        run(net, self.lesson.inputs, Watch(seen))
        self.passes += 1
        return _sum(calls)

    def _problem(
        self, reader: Reader, features: Tensor, error: Tensor, wanted: Tensor, call: int, some: Tensor | None = None
    ) -> Sums:
        """Sums over the rows of a call, or over some of them."""
        if not bool(features.isfinite().all()) or not bool(error.isfinite().all()):
            raise InputError(f"Refit: what {reader.weight!r} reads or makes", "finite numbers", "NaN or infinity")
        each = self.lesson.shares(reader, call, features.shape[1])
        if some is not None:
            features, error, wanted = features[:, some], error[:, some], wanted[:, some]
            each = None if each is None else each[some]
        count, size = features.shape[1], features.shape[2] + 1
        self.work += len(features) * count * size * (size + 3 * error.shape[2])
        return Sums.of(features, error, wanted, each)

    def _solved(self, sums: Sums, heard: Tensor) -> tuple[Tensor, float]:
        change, spent, ridge = sums.solution(heard, self.lesson.ridge)
        self.work += spent
        return change, ridge

    def _note(
        self,
        reader: Reader,
        whole: Sums,
        held: Sums | None,
        heard: Tensor,
        rows: int,
        ridge: float,
        change: Tensor,
    ) -> None:
        """Note for the report how well a reader was fitted."""
        if held is not None:  # with what is fitted to the other inputs
            change, _ = self._solved(whole - held, heard)
        seen = whole if held is None else held
        gone, living = units_read(self.lesson.anatomy, self._dead, reader)
        errors = (seen.error(heard), seen.error(heard, change))
        self.fits.append(LayerFit(reader.weight, gone, living, rows, ridge, *errors, held is not None))


def _sum(parts: Sequence[Sums]) -> Sums:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole
