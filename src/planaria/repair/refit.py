"""Refit: instant rescue in closed form, without labels or gradients.

Where units have died, whatever read them is refitted so that it gives, from the units that are left, the best linear
prediction of what it gave before. For a reader z = W h + b with dead inputs D and living inputs S (S contains the
constant 1 if the reader has a bias), and second moments G = E[h h^T]:

    W_S <- W_S + W_D G[D,S] (G[S,S] + lambda I)^-1,    lambda = ridge * mean diagonal of G[S,S]

The moments come from a sidecar that was stored while the network was intact, or from unlabelled inputs, layer by
layer, with the intact network as the teacher.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from planaria.core.anatomy import Anatomy
from planaria.core.errors import InputError
from planaria.core.graph import Graph, Product, Watch, forward_multiply_adds, run, trace
from planaria.core.motion import Cost, Moment
from planaria.core.network import Network

WIDEST = 8192
"""Largest number of inputs of a reader whose moments are kept (512 MiB in double precision)."""
RIDGE = 1e-4
"""Usual ridge, where there are rows enough."""
FEW_ROWS = 20
"""Rows per feature below which the ridge is cross-validated."""
GRID = tuple(10.0 ** (power / 4) for power in range(-20, 9))
"""Ridges that cross-validation chooses from."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A product that can be refitted: output rows = features @ matrix (+ bias), in each of `groups` groups.

    Attributes:
        weight: Name of its weight.
        bias: Name of its bias, None if it has none that belongs to it alone.
        columns: Positions in the flattened weight [groups, features, outputs].
        tag: Which operation of the forward pass it is.
        convolution: (kernel, stride, padding, dilation), None for matrix products.
    """

    weight: str
    bias: str | None
    columns: Tensor
    tag: str
    convolution: tuple[Any, ...] | None

    def features(self, x: Tensor) -> Tensor:
        """Its inputs as rows [groups, rows, features]; for convolutions, one row per example and position."""
        groups, width = self.columns.shape[:2]
        if self.convolution is None:
            return x.reshape(1, -1, width)
        kernel, stride, padding, dilation = self.convolution
        if x.ndim == 3:
            x = x.unsqueeze(2)
        patches = torch.nn.functional.unfold(x, kernel, dilation, padding, stride)
        return patches.view(len(x), groups, width, -1).permute(1, 0, 3, 2).reshape(groups, -1, width)

    def outputs(self, z: Tensor) -> Tensor:
        """Its outputs as rows [groups, rows, outputs]."""
        groups, _, made = self.columns.shape
        if self.convolution is None:
            return z.reshape(1, -1, made)
        return z.flatten(2).view(len(z), groups, made, -1).permute(1, 0, 3, 2).reshape(groups, -1, made)

    def matrix(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Weights as [groups, features, outputs] in double precision."""
        return weights[self.weight].flatten()[self.columns].double()

    def targets(self, weights: Mapping[str, Tensor], matrix: Tensor, shift: Tensor | None) -> dict[str, Tensor]:
        """Weights by name, for new matrix [groups, features, outputs] and an added bias [groups, outputs]."""
        flat = weights[self.weight].flatten().clone()
        flat[self.columns] = matrix.to(flat.dtype)
        changed = {self.weight: flat.view_as(weights[self.weight])}
        if self.bias is not None and shift is not None:
            bias = weights[self.bias]
            changed[self.bias] = bias + shift.reshape(bias.shape).to(bias.dtype)
        return changed


def readers(graph: Graph) -> tuple[dict[str, Reader], dict[str, str]]:
    """Products of a network that can be refitted.

    Returns:
        Weight name -> reader, in the order of execution; and weight name -> reason for those that cannot.
    """
    found: dict[str, Reader] = {}
    refused: dict[str, str] = {}
    for at, call in enumerate(graph.calls):
        product = call.product
        if product is None or product.w.weight is None or at not in graph.reads[product.w.weight]:
            continue
        name = product.w.weight
        reader = _reader(graph, product)
        if isinstance(reader, str):
            refused[name] = reader
        elif graph.reads[name] != {at}:
            refused[name] = "its weight is used several times"
        else:
            found[name] = reader
    return found, refused


def _reader(graph: Graph, product: Product) -> Reader | str:
    assert product.w.weight is not None
    columns, convolution = product.columns.flatten(1, 2), None
    if product.convolution:
        _, _, _, stride, padding, dilation, transposed, _, _ = product.call.args
        kernel = list(product.w.tensor.shape[2:])
        if transposed or len(kernel) > 2:
            return "it is a transposed or three-dimensional convolution"
        if len(kernel) == 1:
            kernel, stride, padding, dilation = [1, *kernel], [1, *stride], [0, *padding], [1, *dilation]
        convolution = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    elif len(columns) > 1:
        if not bool((columns == columns[:1]).all()):
            return "its weights are stacked matrices"
        columns = columns[:1]
    if columns.shape[1] > WIDEST:
        return f"it reads {columns.shape[1]} numbers, more than {WIDEST}"
    bias = getattr(product.b, "weight", None)
    if bias is None and product.b is None:
        bias = _added(graph, product)
    if bias is not None and len(graph.reads[bias]) > 1:
        bias = None
    return Reader(product.w.weight, bias, columns, product.call.tag, convolution)


def _added(graph: Graph, product: Product) -> str | None:
    """Bias that is added to the product's output by an operation of its own."""
    value = product.call.outputs[0]
    while value is not None and len(value.uses) == 1:
        call = graph.calls[value.uses[0]]
        if call.name == "add":
            names = [other.weight for other in call.inputs if other is not value and other.weight is not None]
            return names[0] if len(names) == 1 and len(call.inputs) == 2 else None
        if not call.rearranges:
            return None
        value = call.outputs[0]
    return None


def _watch(found: Mapping[str, Reader], seen: Callable[[Reader, Tensor, Tensor], Tensor | None]) -> Watch:
    """Calls `seen(reader, x, z)` at every reader; what it returns, if anything, replaces the output z in place."""
    by_tag = {reader.tag: reader for reader in found.values()}

    def at_reader(tag: str, args: tuple[Any, ...], output: Any) -> None:
        reader = by_tag.get(tag)
        if reader is None:
            return
        x = args[1] if tag.startswith(("aten::addmm ", "aten::baddbmm ")) else args[0]
        replaced = seen(reader, x, output)
        if replaced is not None:
            output.copy_(replaced)

    return Watch(at_reader)


@dataclass(frozen=True, eq=False, repr=False)
class Sidecar:
    """Second moments of an intact network's activations, from which it can be repaired later without data.

    Attributes:
        moments: Reader's weight name -> E[h h^T] [groups, features + 1, features + 1] with h = (features, 1).
        weights: The readers' intact weights, for what has been lost in the damaged network.
        examples: Inputs that the moments were taken over.
        refused: Reader's weight name -> why it has no moments.
        cost: What making it has cost.
    """

    moments: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    examples: int
    refused: Mapping[str, str]
    cost: Cost = field(default=Cost())

    @staticmethod
    def of(net: Network, inputs: Tensor, *, batch: int = 256) -> Sidecar:
        """Take the moments of an intact network.

        Args:
            net: The intact network.
            inputs: Unlabelled inputs [examples, ...]; a thousand are usually enough.
            batch: Inputs per forward pass.

        Raises:
            InputError: If there are no inputs, or an activation is not finite.

        Example:
            >>> from torch import nn
            >>> net = Network.of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(1, 2))
            >>> Sidecar.of(net, torch.ones(8, 2)).moments["2.weight"].shape
            torch.Size([1, 4, 4])
        """
        if len(inputs) == 0:
            raise InputError("Sidecar.of(inputs)", "at least one input", "none")
        start = time.process_time()
        inputs = inputs.to(net.device)
        found, refused = readers(trace(net, inputs[:2]))
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = {}

        def add(reader: Reader, x: Tensor, z: Tensor) -> None:
            del z
            moment = _moment(reader.features(x))
            sums[reader.weight] = sums[reader.weight] + moment if reader.weight in sums else moment
            rows[reader.weight] = rows.get(reader.weight, 0) + round(float(moment[0, -1, -1]))

        for part in inputs.split(batch):
            run(net, part, _watch(found, add))
        for name, total in sums.items():
            if not bool(total.isfinite().all()):
                raise InputError(f"Sidecar.of: activations read by {name!r}", "finite numbers", "NaN or infinity")
        moments = {name: total / rows[name] for name, total in sums.items()}
        work = sum(rows[name] * m.shape[0] * m.shape[1] ** 2 for name, m in moments.items())
        cost = Cost(
            examples=len(inputs),
            forward_passes=-(-len(inputs) // batch),
            multiply_adds=len(inputs) * forward_multiply_adds(net, inputs) + work,
            seconds=time.process_time() - start,
        )
        return Sidecar(moments, {name: net.weights[name] for name in moments}, len(inputs), refused, cost)

    @property
    def bytes(self) -> int:
        """Size of the moments in single precision, upper triangles only."""
        return sum(m.shape[0] * m.shape[1] * (m.shape[1] + 1) // 2 * 4 for m in self.moments.values())

    def __repr__(self) -> str:
        return f"<Sidecar: moments of {len(self.moments)} readers over {self.examples} inputs>"


@dataclass(frozen=True, eq=False, repr=False)
class Teacher:
    """The intact network with unlabelled inputs: the source of a sequential refit.

    Args:
        net: The intact network.
        inputs: Unlabelled inputs [examples, ...]. All are run at once: memory holds every product's outputs.
    """

    net: Network
    inputs: Tensor

    def __repr__(self) -> str:
        return f"<Teacher: {len(self.inputs)} unlabelled inputs>"


@dataclass(frozen=True)
class Refit:
    """Closed-form refit of everything that reads from dead units; see the module's text for the formula.

    Args:
        source: A Sidecar (no data at repair time; only readers of dead units change), or a Teacher (sequential: every
            product behind the damage, input from the repaired network, target from the intact one).
        ridge: lambda relative to the mean diagonal of the moments, above 0. By default 1e-4, and where there are fewer
            than 20 rows per feature, the value of least generalised cross-validation error.

    Returns (when called with a network and a stream):
        Iterator of one moment.

    Raises:
        InputError: If the ridge is not positive, or the source belongs to another network.

    Source: our own; its form is that of least-squares channel pruning (He et al., 2017) and GPTQ (Frantar et al.,
        2023). See docs/equations.md.

    Not guaranteed: an improvement when hardly any units are left, since then the linear span is gone.
    """

    source: Sidecar | Teacher
    ridge: float | None = None

    def __post_init__(self) -> None:
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise InputError("Refit.ridge", "a finite number above 0", self.ridge)

    def __call__(self, net: Network, rng: Generator, /) -> Iterator[Moment]:
        """One moment: the refitted network."""
        del rng
        start = time.process_time()
        solve = _from_sidecar if isinstance(self.source, Sidecar) else _from_teacher
        moved, cost = solve(net, self.source, self.ridge)  # type: ignore[arg-type]
        yield Moment(moved, cost + Cost(seconds=time.process_time() - start))


def _from_sidecar(net: Network, sidecar: Sidecar, ridge: float | None) -> tuple[Network, Cost]:
    anatomy = Anatomy.of(net)
    dead = anatomy.dead(net)
    if not any(bool(d.any()) for d in dead.values()):
        return net, Cost()
    assert net.inputs is not None
    found, _ = readers(trace(net, net.inputs))
    targets: dict[str, Tensor] = {}
    work = 0
    for name, moments in sidecar.moments.items():
        reader = found.get(name)
        if reader is None or moments.shape[1] != reader.columns.shape[1] + 1:
            raise InputError(
                f"Sidecar.moments[{name!r}]",
                "moments of this network's readers",
                "another network's",
                "Make the sidecar from the intact form of the same network.",
            )
        lost = _dead_features(anatomy, dead, reader)
        if not bool(lost.any()):
            continue
        intact = reader.matrix({name: sidecar.weights[name].to(net.device)})
        matrix, shift = reader.matrix(net.weights), torch.zeros(intact.shape[0], intact.shape[2]).to(intact)
        for g in range(len(moments)):
            gone = lost[g]
            moment = moments[g].to(net.device)
            kept = _kept(~gone, reader.bias is not None)
            across = intact[g][gone].T @ moment[:-1][gone][:, kept]
            energy = float((intact[g][gone] * (moment[:-1, :-1][gone][:, gone] @ intact[g][gone])).sum())
            change = _solve(moment[kept][:, kept], across, energy, sidecar.examples, ridge)
            matrix[g][~gone] += change[: int((~gone).sum())]
            matrix[g][gone] = 0  # nothing to change where they are silent; units that are stuck must not be heard
            if reader.bias is not None:
                shift[g] = change[-1]
            size, outs = int(kept.sum()), intact.shape[2]
            work += size**3 // 3 + size * outs * (size + int(gone.sum()))
        targets.update(reader.targets(net.weights, matrix, shift))
    return net.move(targets), Cost(multiply_adds=work)


def _from_teacher(net: Network, teacher: Teacher, ridge: float | None) -> tuple[Network, Cost]:
    intact, inputs = teacher.net.to(net.device), teacher.inputs.to(net.device)
    if len(inputs) == 0 or (inputs.is_floating_point() and not bool(inputs.isfinite().all())):
        raise InputError("Teacher.inputs", "at least one input, all finite", f"{len(inputs)} inputs")
    if {n: w.shape for n, w in intact.weights.items()} != {n: w.shape for n, w in net.weights.items()}:
        raise InputError("Teacher.net", "the intact form of the same network", "weights of other names or shapes")
    anatomy = Anatomy.of(net)
    dead = anatomy.dead(net)
    found, _ = readers(trace(net, inputs[:2]))
    wanted: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    work = [0]

    def record(reader: Reader, x: Tensor, z: Tensor) -> None:
        del x
        wanted[reader.weight] = z.clone()

    def refit(reader: Reader, x: Tensor, z: Tensor) -> Tensor | None:
        lost = _dead_features(anatomy, dead, reader)
        target = wanted.pop(reader.weight)
        # What this product gives now, its own repaired bias not included when that is added elsewhere: same for both.
        if not bool(lost.any()) and torch.equal(z, target):
            return None
        features = reader.features(x)
        error = reader.outputs(target - z)
        # Units that are stuck rather than silent are heard: take what they say away, and stop listening.
        old = reader.matrix(net.weights)
        error = error + torch.bmm(features, (old * lost[:, :, None]).to(features.dtype))
        if not bool(features.isfinite().all()) or not bool(error.isfinite().all()):
            raise InputError(f"Refit: what {reader.weight!r} reads or makes", "finite numbers", "NaN or infinity")
        matrix, shift = old.clone(), old.new_zeros(features.shape[0], error.shape[2])
        for g in range(len(features)):
            kept = _kept(~lost[g], reader.bias is not None)
            rows = torch.cat([features[g], torch.ones_like(features[g][:, :1])], 1)[:, kept]
            moment, across = rows.T @ rows / len(rows), error[g].T @ rows / len(rows)
            energy = float(error[g].double().square().sum()) / len(rows)
            change = _solve(moment.double(), across.double(), energy, len(rows), ridge)
            living = int((~lost[g]).sum())
            matrix[g][~lost[g]] += change[:living]
            matrix[g][lost[g]] = 0
            if reader.bias is not None:
                shift[g] = change[-1]
            size = rows.shape[1]
            work[0] += len(rows) * size * (size + error.shape[2]) + size**3 // 3 + size**2 * error.shape[2]
        proposal = reader.targets(net.weights, matrix, shift)
        lawful = net.move(proposal).weights
        targets.update(proposal)
        # Go on with what the law lets through, so that later readers are fitted to the real thing.
        step = reader.matrix(lawful) - old
        out = reader.outputs(z) + torch.bmm(features, step.to(features.dtype))
        if reader.bias is not None:
            moved = lawful[reader.bias] - net.weights[reader.bias]
            out = out + moved.view(out.shape[0], 1, -1)
        return _as_output(reader, out, z)

    run(intact, inputs, _watch(found, record))
    run(net, inputs, _watch(found, refit))
    forward = forward_multiply_adds(net, inputs)
    cost = Cost(examples=len(inputs), forward_passes=2, multiply_adds=2 * len(inputs) * forward + work[0])
    return net.move(targets), cost


def _as_output(reader: Reader, rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of `Reader.outputs`."""
    if reader.convolution is None:
        return rows.reshape(like.shape)
    groups, _, made = rows.shape
    positions = like.flatten(2).shape[2]
    return rows.view(groups, len(like), positions, made).permute(1, 0, 3, 2).reshape(like.shape)


def _dead_features(anatomy: Anatomy, dead: Mapping[str, Tensor], reader: Reader) -> Tensor:
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


def _kept(living: Tensor, bias: bool) -> Tensor:
    """Living features and, for readers with a bias, the constant."""
    return torch.cat([living, torch.full((1,), bias, device=living.device)])


def _moment(features: Tensor) -> Tensor:
    """Sum over rows of h h^T with h = (features, 1), double precision [groups, features + 1, features + 1]."""
    rows = torch.cat([features, torch.ones_like(features[..., :1])], -1)
    return torch.bmm(rows.transpose(1, 2), rows).double()


def _solve(moment: Tensor, across: Tensor, energy: float, rows: int, ridge: float | None) -> Tensor:
    """Coefficients c of the ridge regression: least |error - features c|^2 + lambda |c|^2, per row.

    Args:
        moment: Mean of features^T features [features, features].
        across: Mean of error^T features [outputs, features].
        energy: Mean of |error|^2 over rows, summed over outputs.
        rows: Rows that the means were taken over.
        ridge: lambda over the mean diagonal of `moment`; None: RIDGE, or cross-validated where rows are few.

    Returns:
        [features, outputs].
    """
    # A moment of nothing but zeros (all units dead) must still be solvable.
    scale = float(moment.diagonal().mean()) or 1.0
    if ridge is None and rows < FEW_ROWS * len(moment):
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp_min(0.0)
        rotated = across @ vectors
        shrunk = 1.0 / (values + _cross_validated(values, rotated.square().sum(0), energy, rows) * scale)
        solution: Tensor = vectors @ (rotated * shrunk).T
        return solution
    damped = moment.clone()
    damped.diagonal().add_((RIDGE if ridge is None else ridge) * scale)
    factor, info = torch.linalg.cholesky_ex(damped)
    return torch.linalg.lstsq(damped, across.T).solution if int(info) else torch.cholesky_solve(across.T, factor)


def _cross_validated(values: Tensor, squares: Tensor, energy: float, rows: int) -> float:
    """Ridge with the least generalised cross-validation error: residual / (1 - degrees of freedom / rows)^2.

    Args:
        values: Eigenvalues of the moment.
        squares: Squared norm of the cross-moment along each eigenvector.
        energy: Mean square of what is to be explained.
        rows: Number of rows.

    Source: Golub, Heath and Wahba, 1979.
    """
    scale = float(values.mean()) or 1.0
    best, least = GRID[-1], math.inf
    for ridge in GRID:
        shrunk = 1.0 / (values + ridge * scale)
        residual = energy - float((squares * shrunk * (2 - values * shrunk)).sum())
        freedom = 1.0 - float((values * shrunk).sum()) / rows
        if freedom > 0.01 and residual / freedom**2 < least:
            best, least = ridge, residual / freedom**2
    return best
