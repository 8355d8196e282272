"""Work: how a sweep does its lesions on one block of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.gemm import DEFAULT
from planaria.core.network import Network
from planaria.measure.task import FORWARD_BATCH
from planaria.sweep.certify import Certifier
from planaria.sweep.chain import Chain
from planaria.sweep.curve import curves
from planaria.sweep.delta import delta_units
from planaria.sweep.edges import weight_map
from planaria.sweep.fuse import fuse
from planaria.sweep.lesions import Job
from planaria.sweep.plan import (
    BRUTE,
    CERTIFY,
    DELTA,
    EDGES,
    EDIT_NEXT,
    IN_CHAIN,
    NESTED,
    REPLAY,
    Plan,
    unreplayable,
    ways_of,
)
from planaria.sweep.program import Program, near
from planaria.sweep.record import examples_of, other_than
from planaria.sweep.replay import (
    base_of,
    chunk_size,
    chunks,
    edited,
    edited_lesions,
    replayed_lesions,
    replayed_units,
    resumed,
)
from planaria.sweep.tally import Judge, Tally

REPLAYED = frozenset([REPLAY, EDIT_NEXT])


@dataclass(frozen=True, eq=False)
class Work:
    """A job with everything that doing it needs; works on one block of inputs at a time.

    Attributes:
        net: The intact network.
        job: Lesions.
        program: Its recorded pass, or why there is none.
        chain: It as a chain, or why it is none.
        judge: How outputs are scored.
        plan: Which way for which key.
    """

    net: Network
    job: Job
    program: Program | str
    chain: Chain | str
    judge: Judge
    plan: Plan
    _certifiers: dict[tuple[str, ...], Certifier] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        net: Network, job: Job, judge: Judge, *, bitwise: bool = False, known: tuple[Tensor, Tensor] | None = None
    ) -> Work:
        """Work with the cheapest way for each key.

        Args:
            net: The network, with example inputs.
            job: Its lesions.
            judge: How outputs are scored.
            bitwise: Whether only bit-identical ways may be taken.
            known: Inputs and the network's outputs for them, which what is planned must give too.

        Raises:
            InputError: A network that answers the same inputs differently each time.
        """
        program, chain = _recorded(net)
        alike = "bit-identical ways only" if bitwise else ""
        if isinstance(program, Program) and program.coarse:
            alike = alike or "its numbers are so coarse that only the same operations give the same predictions"
        while True:
            ways = ways_of(job, net, program, chain, judge, alike)
            size = FORWARD_BATCH if isinstance(program, str) else chunk_size(program, net.device)
            work = Work(net, job, program, chain, judge, Plan(ways, DEFAULT, size))
            if not alike and isinstance(program, Program) and work.takes(REPLAYED):
                work = replace(work, program=_fused(program))
            wrong = "" if known is None else work._wrong(*known)
            if wrong == "chain":
                chain = "on other inputs its outputs are not those of the chain of its products"
            elif wrong and not alike:
                alike = "joined operations give other outputs"
            elif wrong:
                program = "on other inputs its outputs are not those of its recorded pass"
            else:
                return work

    def takes(self, ways: Iterable[str]) -> bool:
        """Whether any key goes one of these ways."""
        ways = set(ways)
        return any(way.way in ways for way in self.plan.ways)

    def _wrong(self, inputs: Tensor, outputs: Tensor) -> str:
        """Which of what is used, "chain" or "program", gives other outputs than these; "" if neither."""
        chain, program, size = self.chain, self.program, self.plan.chunk
        if self.takes(IN_CHAIN) and isinstance(chain, Chain) and not _gives(chain, inputs, outputs, size):
            return "chain"
        if self.takes(REPLAYED) and isinstance(program, Program):
            at = program.output
            return "" if _gives(lambda x: program.run(x)[at], inputs, outputs, size) else "program"
        return ""

    @property
    def bytes(self) -> int:
        """Bytes of activations per example that a block holds at once."""
        held = self.takes(IN_CHAIN) and isinstance(self.program, Program)
        return sum(self.program.bytes.values()) if held and isinstance(self.program, Program) else 0

    def only(self, keys: Iterable[str]) -> Work:
        """The same work on some keys."""
        keys = set(keys)
        ways = tuple(way for way in self.plan.ways if way.key in keys)
        return replace(self, job=self.job.only(keys), plan=replace(self.plan, ways=ways))

    def some(self, places: Mapping[str, Sequence[int]]) -> Work:
        """The same work on only some of the lesions of some keys, see `Job.some`."""
        return replace(self, job=self.job.some(places))

    def safely(self, keys: Iterable[str]) -> Work:
        """The same work with some keys replayed by the network's own operations or, if they were, by brute force."""
        keys, ways, single = set(keys), [], self.program
        if isinstance(single, Program) and single.fused:
            single = _recorded(self.net)[0]
        for way in self.plan.ways:
            if way.key in keys:
                tried = way.way == REPLAY and single is self.program
                can = isinstance(single, Program) and not unreplayable(self.job, way.key, self.net, single)
                way = replace(
                    way, way=REPLAY if can and not tried else BRUTE, because=f"{way.way} disagreed with brute force"
                )
            ways.append(way)
        return replace(self, program=single, plan=replace(self.plan, ways=tuple(ways)))

    def tally(self, inputs: Tensor, targets: Tensor) -> tuple[dict[str, Tally], Tensor]:
        """Changes by every lesion of the job on a block, and the intact scores [examples].

        Args:
            inputs: [examples, ...].
            targets: [examples, ...].
        """
        by_way: dict[str, list[str]] = {}
        for way in self.plan.ways:
            by_way.setdefault(way.way, []).append(way.key)
        if by_way.keys() == {CERTIFY}:
            return self._certifier(by_way[CERTIFY])(inputs, targets, self.judge)
        parts, holds = [], True
        for x, t in chunks(inputs, targets, FORWARD_BATCH):
            outputs = self.net(x)
            parts.append(self.judge.values(outputs, t))
            holds = holds and self._holds(x, outputs)
        intact = torch.cat(parts)
        if not holds:  # these inputs take another way than the recorded pass
            replayed = [key for way in REPLAYED for key in by_way.pop(way, ())]
            by_way[BRUTE] = [*by_way.get(BRUTE, ()), *replayed]
        found: dict[str, Tally] = {}
        for one, keys in by_way.items():
            found |= self._by(one, keys, inputs, targets, intact)
        return {key: found[key] for key in self.job.shapes}, intact

    def _holds(self, inputs: Tensor, outputs: Tensor) -> bool:
        """Whether the recorded pass, if it is used, is that of these inputs."""
        program = self.program
        if not isinstance(program, Program) or not program.decided or not self.takes(REPLAYED):
            return True
        pairs = chunks(inputs, outputs, self.plan.chunk)
        return all(program.holds(x, y) for x, y in pairs)

    def _certifier(self, keys: Iterable[str]) -> Certifier:
        """Certificates of some layers, made once."""
        assert isinstance(self.chain, Chain)
        layers = tuple(keys)
        if layers not in self._certifiers:
            self._certifiers[layers] = Certifier.of(self.chain, layers)
        return self._certifiers[layers]

    def _by(self, way: str, keys: list[str], inputs: Tensor, targets: Tensor, intact: Tensor) -> dict[str, Tally]:
        """Tallies of some keys, all by one way."""
        job, judge = self.job, self.judge
        if way in IN_CHAIN:
            assert isinstance(self.chain, Chain)
            if way == CERTIFY:
                return self._certifier(keys)(inputs, targets, judge)[0]
            if way == DELTA:
                return delta_units(self.chain, keys, inputs, targets, judge)
            if way == EDGES:
                assert job.new is not None
                return weight_map(self.chain, keys, job.new, inputs, targets, judge)
            assert way == NESTED and job.nested is not None
            return {keys[0]: curves(self.chain, job.nested.orders, job.nested.counts, inputs, targets, judge)}
        found: dict[str, Tally] = {}
        if way in REPLAYED:
            assert isinstance(self.program, Program)
            units = [job.units[key] for key in keys if key in job.units]
            if units:
                edit_next = way == EDIT_NEXT
                found = replayed_units(self.program, units, inputs, targets, judge, edit_next=edit_next)
            for key in keys:
                if key not in job.units:
                    lesions, various = job.of_key(key, self.net), job.various(key, self.net)
                    found[key] = replayed_lesions(self.program, lesions, various, inputs, targets, judge)
        else:
            for key in keys:
                found[key] = edited_lesions(self.net, job.of_key(key, self.net), inputs, targets, judge, intact)
        return {key: tally.shaped(job.shapes[key]) for key, tally in found.items()}

    def outputs(self, inputs: Tensor) -> tuple[Tensor, Iterator[tuple[str, int, Tensor]]]:
        """Outputs without a lesion, and with every one as (key, place, [examples, ...]), replayed or by brute force."""
        program, base = self.program, {}
        replayed = [way.key for way in self.plan.ways if way.way == REPLAY]
        if isinstance(program, Program) and replayed:
            keep = {at for key in replayed for at in base_of(program, self.job.various(key, self.net))}
            base = program.run(inputs, keep=keep)
            if not self._holds(inputs, self.net(inputs)):
                base, replayed = {}, []

        def damaged() -> Iterator[tuple[str, int, Tensor]]:
            for way in self.plan.ways:
                lesions = self.job.of_key(way.key, self.net)
                for place in range(len(lesions)):
                    if isinstance(program, Program) and way.key in replayed:
                        yield way.key, place, resumed(program, base, lesions[place])
                    else:
                        yield way.key, place, edited(self.net, lesions[place])(inputs)

        return base[program.output] if isinstance(program, Program) and base else self.net(inputs), damaged()


def _gives(function: Callable[[Tensor], Tensor], inputs: Tensor, truth: Tensor, size: int) -> bool:
    """Whether a function gives these outputs, up to rounding."""
    try:
        with torch.no_grad():
            found = torch.cat([function(x) for x in inputs.split(size)])
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        if "memory" in str(error):
            raise
        return False  # a number that was taken for fixed depends on the inputs
    return near(found, truth)


def _alone(net: Network) -> bool:
    """Whether an example gets the same outputs whatever the others are."""
    assert net.inputs is not None
    first = examples_of(net.inputs, 2)
    try:
        alone, together = net(first[:1]), net(first)
        try:
            other = net(torch.cat([first[:1], other_than(first, net.port.layout)[1:]]))
        except (RuntimeError, IndexError, ValueError):
            other = together  # inputs that the network does not take
    except (RuntimeError, ValueError):  # batch normalisation without statistics refuses single examples
        return False
    return near(together[:1], alone) and near(other[:1], alone)


_RECORDED: WeakKeyDictionary[Network, tuple[Program | str, Chain | str]] = WeakKeyDictionary()
_FUSED: WeakKeyDictionary[Program, Program] = WeakKeyDictionary()


def _fused(program: Program) -> Program:
    """The program with joined operations; kept for as long as the program is."""
    known = _FUSED.get(program)
    if known is None:
        known = _FUSED[program] = fuse(program)
    return known


def _recorded(net: Network) -> tuple[Program | str, Chain | str]:
    """The network's program and chain, or why there are none; kept for as long as the network is."""
    assert net.inputs is not None
    if net in _RECORDED:
        return _RECORDED[net]
    rows = examples_of(net.inputs, 32)  # several, because chance may do the same to two
    one, other = net(rows), net(rows)
    if not isinstance(one, Tensor):
        raise InputError(
            "network", "one tensor of outputs", type(one).__name__, "Wrap it so that it returns only that."
        )
    if not near(one, other):
        raise InputError(
            "network",
            "the same outputs for the same inputs",
            "others the second time",
            "Turn off what draws random numbers in eval mode (a functional dropout with training=True, noise).",
        )
    program, chain = Program.of(net), Chain.of(net)
    if not _alone(net):
        chain = "an example's outputs depend on the others of its batch"
        program = program if isinstance(program, str) else chain
    _RECORDED[net] = program, chain
    return program, chain
