"""Metric: the length of a change of the weights is how far it moves the outputs.

g = (1/N) sum over inputs of J^T H J, J = df/dw and H what a change of the outputs counts. The matrix is never formed:
`g @ v` is two products with a cached graph, and small sets of inputs are handled through their Gram matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from planaria.core.devices import clock
from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.port import Inputs
from planaria.core.streams import stream
from planaria.core.trees import Weights, dot
from planaria.geometry.gram import fits, gram, gram_cost
from planaria.geometry.jacobian import Jacobian
from planaria.geometry.outputs import Euclidean as Euclidean
from planaria.geometry.outputs import Fisher as Fisher
from planaria.geometry.outputs import Geometry as Geometry
from planaria.geometry.outputs import LossHessian as LossHessian
from planaria.geometry.passes import differentiable, widened
from planaria.geometry.solve import (
    Apply,
    ConjugateGradients,
    Found,
    Gram,
    Nystrom,
    Solution,
    conjugate_gradients,
    dual_inverse,
    refined,
)
from planaria.geometry.spectrum import Spectrum, eigenvalues, hutchpp, lanczos, rest_of_trace, signs
from planaria.measure.statistics import Estimate

DENSE = 5000
"""Weights up to which the matrix may be written out."""

PROBES = 12
"""Random probes for what a few eigenvectors leave of the trace."""


@dataclass(frozen=True, eq=False)
class Metric:
    """Riemannian metric g of a network on some inputs, matrix-free.

    In eval mode and full precision, whatever the layers are (normalisation and attention included); weights of half
    precision are computed with in single, and directions rounded to theirs at the end. Entries of plasticity 0 are
    pinned: for `@`, `solve`, `eigh`, `trace` and `dense` they do not exist. The graph is built on first use and kept
    with the metric, as far as memory allows.

    Args:
        net: At whose weights.
        inputs: [N, ...]; no labels are needed. As the network takes them.
        of: What a change of outputs counts: `Euclidean()`, `Fisher(temperature)` or `LossHessian(targets, loss)`.

    Raises:
        InputError: No inputs, or as many targets as there are not inputs. On first use: a normalisation that looks at
            the whole batch, a network that does not compute the same twice, outputs that are not finite, an operation
            that torch cannot differentiate twice.

    Example:
        >>> net = Network.of(torch.nn.Linear(2, 1, bias=False))
        >>> g = Metric(net, torch.tensor([[1.0, 2.0], [1.0, 0.0]]))
        >>> g @ {"weight": torch.tensor([[1.0, 0.0]])}
        {'weight': tensor([[1., 1.]])}
        >>> g.norm({"weight": torch.tensor([[1.0, 0.0]])})
        1.0

    Source: Raghavan, Li and Thomson, Geometric algorithms for predicting resilience, 2020; the matrix is the
    generalised Gauss-Newton matrix of Schraudolph, 2002.

    Not guaranteed: derivatives at kinks, where torch takes one side.
    """

    net: Network
    inputs: Inputs
    of: Geometry | LossHessian = field(default_factory=Euclidean)

    def __post_init__(self) -> None:
        if not isinstance(self.net, Network):
            raise InputError("Metric(net)", "a Network", type(self.net).__name__, "Take Network.of(model, inputs).")
        rows = self.net.port.rows(self.inputs)
        if rows.ndim == 0 or len(rows) == 0:
            raise InputError("Metric(inputs)", "at least one input", f"shape {list(rows.shape)}")
        if isinstance(self.of, LossHessian):
            if len(self.of.targets) != len(rows):
                got = f"{len(self.of.targets)} targets for {len(rows)} inputs"
                raise InputError("Metric(of=LossHessian(targets))", "one target for each input", got)
        elif isinstance(self.of, type) or not isinstance(self.of, Geometry):
            expected = "Euclidean(), Fisher(temperature) or LossHessian(targets, loss)"
            raise InputError("Metric(of)", expected, repr(self.of))
        object.__setattr__(self, "inputs", rows.detach().to(self.net.device))

    # ------------------------------------------------------------------------------------------------- products

    @property
    def outputs(self) -> Tensor:
        """The network's outputs [N, m...] for the inputs."""
        return self._jacobian.outputs

    @property
    def entries(self) -> int:
        """n, number of plastic entries."""
        return sum(int((p > 0).sum()) for name, p in self.net.plasticity.items() if name in self._names)

    def push(self, v: Mapping[str, Tensor]) -> Tensor:
        """J v: how the outputs move when the weights move along v. Pinned entries count.

        Args:
            v: Change of the weights; names left out do not change.

        Returns:
            Tensor of the outputs' shape.
        """
        return self._sane(self._jacobian.push(self._given(v, "Metric.push")))

    def pull(self, u: Tensor) -> Weights:
        """J^T u: the gradient in all weights, pinned ones too, of the inner product of the outputs with u.

        Args:
            u: Of the outputs' shape.
        """
        if not isinstance(u, Tensor) or u.shape != self.outputs.shape:
            got = f"shape {list(u.shape)}" if isinstance(u, Tensor) else type(u).__name__
            raise InputError("Metric.pull(u)", f"a tensor of shape {list(self.outputs.shape)}", got)
        pulled = self._jacobian.pull(u.to(self.outputs))
        return self._filled({name: self._sane(one) for name, one in pulled.items()})

    def __matmul__(self, v: Mapping[str, Tensor]) -> Weights:
        """G v on the plastic entries.

        Args:
            v: Change of the weights; its pinned entries, and names left out, count as zero.

        Returns:
            Dictionary with all names, zero at pinned entries.

        Raises:
            InputError: Unknown names, other shapes, NaN or infinity in v or in the product.
        """
        given = self._given(v, "Metric @ v")
        inside = {name: self._plastic(name, one) for name, one in given.items() if name in self._movable}
        curved = self._curved(inside, self._movable)
        return self._filled({name: self._sane(self._plastic(name, one)) for name, one in curved.items()})

    def inner(self, u: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> float:
        """u^T g v, all entries counted, also pinned ones: it measures displacements that are given."""
        u, v = self._given(u, "Metric.inner"), self._given(v, "Metric.inner")
        if isinstance(self.of, LossHessian):
            curved = self._curved(v, tuple(u))
            return float(dot(u, curved)) if u else 0.0
        along = [self.of.half(self.outputs, self._sane(self._jacobian.push(one))) for one in (u, v)]
        return float((along[0].double() * along[1].double()).sum()) / len(self.outputs)

    def norm(self, v: Mapping[str, Tensor]) -> float:
        """sqrt(v^T g v), functional length of a displacement per input, to first order; pinned entries count.

        Raises:
            InputError: A direction in which the loss curves downwards (of LossHessian).
        """
        v = self._given(v, "Metric.norm")
        if isinstance(self.of, LossHessian):
            square = self.inner(v, v)
            if square < 0:
                remedy = "Take Euclidean() or Fisher() for lengths."
                raise InputError("Metric.norm(v)", "a direction of positive curvature", f"{square:.3g}", remedy)
            return math.sqrt(square)
        along = self.of.half(self.outputs, self._sane(self._jacobian.push(v)))
        return float(along.double().square().sum().sqrt()) / math.sqrt(len(self.outputs))

    @property
    def cost(self) -> Cost:
        """Of one product g v.

        At most; factors, once kept, take half. J v costs two forward passes, J^T u two more; three to see the graph
        again where it is too large to be kept. Of LossHessian twice as much, for the curvature of the network.
        """
        count = len(self.outputs)
        times = (8 if isinstance(self.of, LossHessian) else 4) + (0 if self._jacobian.keeps else 3)
        return Cost(count, 0, 1, 1, times * count * forward_multiply_adds(self.net, self._rows))

    @property
    def setup(self) -> Cost:
        """Of the graph: one pass forward and one backward."""
        count = len(self.outputs)
        return Cost(count, 0, 1, 1, 3 * count * forward_multiply_adds(self.net, self._rows))

    # ------------------------------------------------------------------------------------- equations and spectrum

    @cached_property
    def largest(self) -> float:
        """lambda_max, the largest eigenvalue on the plastic entries (of LossHessian the largest in size); kept.

        To some 1e-6 of itself; 0 if no plastic entry moves any output.
        """
        if not self._movable:
            return 0.0
        if self._dual:
            kernel = self._kernel(weighed=False)
            apply, like = (lambda s: kernel @ s), kernel.diagonal()
        else:
            like, apply = self._mask, self._times(self._mask)
        if not bool(like.any()):
            return 0.0
        values = lanczos(apply, self._starts(like), 1, int((like != 0).sum()), 1e-3)[0]
        return float(values.abs().max()) if len(values) else 0.0

    def solve(
        self,
        b: Mapping[str, Tensor],
        damping: float = 1e-3,
        tolerance: float = 1e-5,
        by: Gram | ConjugateGradients | None = None,
    ) -> Solution:
        """Solve (g + mu P^-1) x = b on the plastic entries; mu = damping * lambda_max, P = plasticity.

        Plastic entries move more cheaply, pinned ones not at all. Few inputs go through the Gram matrix, whose
        Cholesky factor is kept for the next b, with refinement; many by conjugate gradients. What cannot be solved as
        asked (rounding, negative curvature) is said in the solution.

        Args:
            b: Right-hand side; its pinned entries, and names left out, count as zero.
            damping: Above 0.
            tolerance: Relative residual that is small enough.
            by: Take this way instead; see `planaria.geometry.solve`.

        Raises:
            InputError: No damping, or a metric that is zero.

        Example:
            >>> net = Network.of(torch.nn.Linear(2, 1, bias=False))
            >>> g = Metric(net, torch.eye(2))
            >>> x = g.solve({"weight": torch.tensor([[3.0, 0.0]])}, damping=0.5)
            >>> round(float(x.direction["weight"][0, 0]), 3), x.converged
            (4.0, True)
        """
        begin = clock(self.net.device)
        if not (isinstance(damping, (int, float)) and 0 < damping < math.inf):
            remedy = "The metric is singular: it takes some damping, 1e-3 for example."
            raise InputError("Metric.solve(damping)", "a number above 0", damping, remedy)
        if not (isinstance(tolerance, (int, float)) and 0 < tolerance < math.inf):
            raise InputError("Metric.solve(tolerance)", "a number above 0", tolerance)
        if by is None:
            by = Gram() if self._dual else ConjugateGradients()
        if not isinstance(by, (Gram, ConjugateGradients)):
            raise InputError("Metric.solve(by)", "Gram() or ConjugateGradients()", repr(by))
        if isinstance(by, Gram) and isinstance(self.of, LossHessian):
            raise InputError("Metric.solve(by=Gram())", "a positive metric", "LossHessian", "Leave it out.")
        given = self._given(b, "Metric.solve(b)")
        if self.largest == 0:
            remedy = "Take inputs that the plastic weights act on, or pin fewer."
            raise InputError("Metric.solve", "outputs that some plastic weight moves", "a metric that is zero", remedy)
        mu = damping * self.largest
        right = self._flat(given) * self._root
        if not bool(right.any()):
            zero = self._filled({})
            return Solution(zero, mu, 0.0, 0, "gram" if isinstance(by, Gram) else _CG, True, "", Cost())
        found, how, cost = (
            self._dually(right, mu, tolerance, by)
            if isinstance(by, Gram)
            else (self._iteratively(right, mu, tolerance, by))
        )
        direction = self._filled(self._named(found.vector * self._root))
        spent = replace(cost, seconds=clock(self.net.device) - begin)
        return Solution(direction, mu, found.residual, found.steps, how, not found.reason, found.reason, spent)

    def eigh(self, k: int | None = None, seed: int = 0) -> Spectrum:
        """Eigenvalues on the plastic entries, and the directions of the k largest.

        Where the Gram matrix is small, all eigenvalues that rounding resolves (`Spectrum.resolved`; a network in double
        precision shows more of them); else the k largest (of LossHessian largest in size) by Lanczos, with an estimate
        of the trace.

        Args:
            k: How many directions; None for none, where all eigenvalues are known without.
            seed: Of the vectors that Lanczos begins with.

        Raises:
            InputError: More than the inputs can tell apart (inputs times outputs), or than memory holds.
        """
        rank = self._rank
        if k is not None and not self._movable:
            remedy = "All of them are pinned: give some of them a plasticity above 0, or leave k out."
            raise InputError("Metric.eigh(k)", "a network with plastic weights", "nothing that is plastic", remedy)
        if k is not None and not (isinstance(k, int) and 1 <= k <= rank):
            shape = " x ".join(map(str, self.outputs.shape))
            remedy = (
                f"Take more inputs: {len(self.outputs)} of them give {shape} outputs, and n = {self.entries} entries."
            )
            raise InputError("Metric.eigh(k)", f"a whole number from 1 to {rank}, the rank that g can have", k, remedy)
        if not self._movable:
            return Spectrum(torch.zeros(0, dtype=torch.float64), (), self.entries, True, rank)
        if self._dual:
            return self._gram_spectrum(k or 0)
        if k is None:
            remedy = "Give k, or fewer inputs: below 4,000 outputs in all, every eigenvalue is known."
            raise InputError("Metric.eigh(k)", "how many of the largest", None, remedy)
        apply = self._times(self._mask)
        values, vectors, residuals = lanczos(apply, self._starts(self._mask, seed), k, self.entries)
        complete = len(values) < k or k >= rank
        trace = None
        if not complete:
            rng = stream(seed, "trace beside eigenvectors")
            known, draw = float(values.sum()), partial(signs, self._mask, rng)
            trace = rest_of_trace(apply, draw, vectors.T, known, PROBES, positive=self._positive)
        found = tuple(self._filled(self._named(one)) for one in vectors)
        resolved = 10 * torch.finfo(vectors.dtype).eps * float(values.abs().max()) if complete and len(values) else 0.0
        return Spectrum(values.cpu(), found, self.entries, complete, rank, tuple(residuals.tolist()), trace, resolved)

    def trace(self, queries: int = 60, seed: int = 0) -> Estimate:
        """Sum of all eigenvalues on the plastic entries, mean squared gradient of the outputs.

        Exact from the Gram matrix where that is small, else by Hutch++ with a 95 % interval.

        Args:
            queries: Products to spend.
            seed: Of the probes.

        Source: Meyer, Musco, Musco and Woodruff, 2021.
        """
        if not self._movable:
            return Estimate(0.0, 0.0, 0.0)
        if self._dual:
            exact = float(self._kernel(weighed=False).diagonal().double().sum())
            return Estimate(exact, exact, exact)
        rng = stream(seed, "trace")
        return hutchpp(self._times(self._mask), partial(signs, self._mask, rng), queries, positive=self._positive)

    def dense(self) -> Tensor:
        """The matrix itself [all entries, all entries], written out row by row by torch's own gradients.

        Entries in the order of the weights; rows and columns of pinned ones are zero.

        Raises:
            InputError: More than 5,000 weights.
        """
        size = sum(self.net.weights[name].numel() for name in self._names)
        if size > DENSE:
            raise InputError("Metric.dense", f"at most {DENSE} weights", size, "Use products, eigh or solve.")
        (net, inputs), of = self._wide, self.of
        if isinstance(of, LossHessian):
            self._jacobian.check()
        leaves = {n: w.detach().clone().requires_grad_(n in self._names) for n, w in net.weights.items()}
        wanted = [leaves[name] for name in self._names]
        twice = "a network that torch can differentiate" + (" twice" if isinstance(of, LossHessian) else "")
        with self._jacobian.exact(), torch.enable_grad(), differentiable("Metric(net, inputs)", twice):
            outputs = net(inputs, leaves)
            if isinstance(of, LossHessian):
                loss = of.loss(outputs, of.targets.to(outputs.device))
                slopes = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
                rows = [_joined(one, wanted) for one in torch.cat([s.reshape(-1) for s in slopes])]
                matrix = torch.stack(rows)
            else:
                rows = [_joined(one, wanted) for one in outputs.reshape(-1)]
                jacobian = torch.stack(rows).reshape(len(outputs), -1, size)
                root = of.root(outputs.detach())
                scaled = jacobian if root is None else root @ jacobian
                matrix = (scaled.flatten(0, 1).T @ scaled.flatten(0, 1)) / len(outputs)
        inside = torch.cat([(net.plasticity[name] > 0).reshape(-1) for name in self._names]).to(matrix)
        return matrix * inside[:, None] * inside

    def __repr__(self) -> str:
        return f"Metric({self.net!r}, {len(self._rows)} inputs, {type(self.of).__name__})"

    def __reduce__(self) -> tuple[type[Metric], tuple[Any, ...]]:
        return Metric, (self.net, self.inputs, self.of)  # the graph is built again

    # ------------------------------------------------------------------------------------------------- inside

    @cached_property
    def _rows(self) -> Tensor:
        return self.net.port.rows(self.inputs)

    @cached_property
    def _wide(self) -> tuple[Network, Tensor]:
        """The network and inputs that are computed with."""
        return widened(self.net, self._rows)

    @cached_property
    def _jacobian(self) -> Jacobian:
        jacobian = Jacobian(*self._wide)
        if not isinstance(self.of, LossHessian):
            self.of.check(jacobian.outputs)
        return jacobian

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(name for name, weight in self.net.weights.items() if weight.is_floating_point())

    @cached_property
    def _movable(self) -> tuple[str, ...]:
        return tuple(name for name in self._names if bool((self.net.plasticity[name] > 0).any()))

    @cached_property
    def _loose(self) -> frozenset[str]:
        """Weights without a pinned entry."""
        return frozenset(name for name in self._names if bool((self.net.plasticity[name] > 0).all()))

    @cached_property
    def _rank(self) -> int:
        most = self.entries if isinstance(self.of, LossHessian) else self.of.rank(self.outputs)
        return min(most, self.entries)

    def _plastic(self, name: str, one: Tensor) -> Tensor:
        return one if name in self._loose else one.masked_fill(self.net.plasticity[name] == 0, 0.0)

    def _given(self, v: Mapping[str, Tensor], where: str) -> Weights:
        found = {}
        if not isinstance(v, Mapping):
            expected = "a dictionary of the weights' names and tensors of their shapes"
            raise InputError(where, expected, type(v).__name__)
        for name, one in v.items():
            weight = self._wide[0].weights.get(name)
            real = isinstance(one, Tensor) and not one.is_complex()
            if weight is None or not real or weight.shape != one.shape:
                expected = "the name of a weight" if weight is None else f"real numbers of shape {list(weight.shape)}"
                got = f"{one.dtype} of shape {list(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
                raise InputError(f"{where}[{name!r}]", expected, got)
            if name in self._names:
                found[name] = _sound(one.to(weight), f"{where}[{name!r}]", "Give a finite direction.")
        return found

    def _sane(self, one: Tensor) -> Tensor:
        return _sound(one, "Metric", "A weight is so large, or a function so steep, that its derivative overflows.")

    def _filled(self, some: Weights) -> Weights:
        return {n: some[n].to(w.dtype) if n in some else torch.zeros_like(w) for n, w in self.net.weights.items()}

    def _curved(self, v: Weights, names: tuple[str, ...]) -> Weights:
        """The whole product, on the weights called `names`."""
        if isinstance(self.of, LossHessian):
            slope, hessian = self._loss
            along, bend = self._jacobian.bend(v, slope, names)
            pulled = self._jacobian.pull(hessian(along), names)
            return {name: pulled[name] + bend[name] for name in pulled}
        along = self.of.half(self.outputs, self._jacobian.push(v))
        return self._jacobian.pull(self.of.half_back(self.outputs, along) / len(self.outputs), names)

    @cached_property
    def _loss(self) -> tuple[Tensor, Apply]:
        """Gradient of the mean loss in the outputs, and its Hessian there as a map."""
        assert isinstance(self.of, LossHessian)
        leaf = self.outputs.clone().requires_grad_()
        with torch.enable_grad():
            loss = self.of.loss(leaf, self.of.targets.to(leaf.device))
            if loss.numel() != 1:
                got = f"shape {list(loss.shape)}"
                raise InputError("Metric(of=LossHessian(loss))", "a loss that returns one number, the mean", got)
            slope = torch.autograd.grad(loss.reshape(()), leaf, create_graph=True)[0]
        self._sane(slope.detach())

        def hessian(t: Tensor) -> Tensor:
            if not slope.requires_grad:
                return torch.zeros_like(t)
            return torch.autograd.grad(slope, leaf, t, retain_graph=True, materialize_grads=True)[0]

        return slope.detach(), hessian

    # Plastic entries as one vector y = P^-1/2 x, in which the damping is the same for all.

    def _flat(self, some: Mapping[str, Tensor]) -> Tensor:
        weights = self._wide[0].weights
        parts = [some[n] if n in some else torch.zeros_like(weights[n]) for n in self._movable]
        flat = torch.cat([part.reshape(-1) for part in parts])
        return flat.to(torch.promote_types(flat.dtype, torch.float32))

    def _named(self, flat: Tensor) -> Weights:
        weights = [self._wide[0].weights[name] for name in self._movable]
        parts = flat.split([weight.numel() for weight in weights])
        return {n: part.view(w.shape).to(w) for n, w, part in zip(self._movable, weights, parts, strict=True)}

    @cached_property
    def _root(self) -> Tensor:
        return self._flat(self.net.plasticity).sqrt()

    @cached_property
    def _mask(self) -> Tensor:
        return (self._root > 0).to(self._root)

    def _times(self, scale: Tensor) -> Apply:
        """Y -> S g S y with the diagonal S."""
        return lambda y: self._sane(self._flat(self._curved(self._named(y * scale), self._movable)) * scale)

    def _starts(self, like: Tensor, seed: int = 0) -> Callable[[], Tensor]:
        rng = stream(seed, "Lanczos")

        def start() -> Tensor:
            return torch.randn(like.shape, generator=rng).to(like) * (like != 0)

        return start

    # Through the Gram matrix.

    @cached_property
    def _dual(self) -> bool:
        if not (self._positive and self._movable):
            return False
        _ = self._jacobian  # at first: a network that cannot be handled is then named as what it is
        return fits(*self._wide)

    @property
    def _positive(self) -> bool:
        return not isinstance(self.of, LossHessian)

    def _kernel(self, *, weighed: bool) -> Tensor:
        """R J P J^T R^T / N [N m, N m]; P is plasticity, or 1 for all that is plastic at all."""
        return self._weighed if weighed or self._even else self._unweighed

    @cached_property
    def _even(self) -> bool:
        return bool(torch.equal(self._root, self._mask))

    @cached_property
    def _weighed(self) -> Tensor:
        return self._gram_of(self._wide[0])

    @cached_property
    def _unweighed(self) -> Tensor:
        net = self._wide[0]
        return self._gram_of(net.with_plasticity({n: (p > 0).to(p) for n, p in net.plasticity.items()}))

    def _gram_of(self, net: Network) -> Tensor:
        assert not isinstance(self.of, LossHessian)
        root = self.of.root(self.outputs)
        kernel = self._sane(gram(net, self._wide[1], root)) / len(self.outputs)
        return kernel.to(torch.promote_types(kernel.dtype, torch.float32))

    @cached_property
    def _factors(self) -> dict[float, tuple[Apply, str]]:
        return {}

    def _dual_inverse(self, mu: float) -> tuple[Apply, str]:
        """Nearly b -> (B + mu)^-1 b through the Gram matrix; the last factor is kept."""
        if mu not in self._factors:
            self._factors.clear()
            self._factors[mu] = dual_inverse(self._kernel(weighed=True), mu)
        inner, how = self._factors[mu]
        of, shape, count = self.of, self.outputs.shape, len(self.outputs)
        assert not isinstance(of, LossHessian)

        def inverse(r: Tensor) -> Tensor:
            seen = of.half(self.outputs, self._jacobian.push(self._named(r * self._root))) / count
            kept = of.half_back(self.outputs, inner(seen.reshape(-1)).reshape(shape))
            back = self._flat(self._jacobian.pull(kept, self._movable)) * self._root
            return (r - back) / mu

        return inverse, how

    def _dually(self, right: Tensor, mu: float, tolerance: float, by: Gram) -> tuple[Found, str, Cost]:
        fresh = mu not in self._factors
        inverse, how = self._dual_inverse(mu)
        apply = self._times(self._root)
        found = refined(apply, inverse, right, mu, tolerance, by.passes)
        products = found.products
        if found.reason:
            after = conjugate_gradients(apply, right, mu, tolerance, 50, start=found.vector, inverse=inverse)
            products += 2 * after.products
            if after.residual < found.residual:
                found, how = replace(after, steps=found.steps + after.steps), f"{how}, then {_CG}"
        total = _multiplied(self.cost, products)
        if fresh:
            rows = self.outputs.numel()
            total += gram_cost(*self._wide) + Cost(multiply_adds=rows**3 // 3)
        return found, how, total

    @cached_property
    def _sketches(self) -> dict[int, Nystrom]:
        return {}

    def _iteratively(
        self, right: Tensor, mu: float, tolerance: float, by: ConjugateGradients
    ) -> tuple[Found, str, Cost]:
        apply, spent = self._times(self._root), 0
        inverse = None
        if by.rank and not isinstance(self.of, LossHessian):
            if by.rank not in self._sketches:
                self._sketches[by.rank] = Nystrom.of(apply, right, by.rank)
                spent = len(self._sketches[by.rank].values)
            inverse = self._sketches[by.rank].inverse(mu)
        found = conjugate_gradients(apply, right, mu, tolerance, by.steps, inverse=inverse)
        return found, _CG, _multiplied(self.cost, found.products + spent)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self._kernel(weighed=False))
        return values.flip(0), vectors.flip(1)

    def _gram_spectrum(self, k: int) -> Spectrum:
        kernel = self._kernel(weighed=False)
        vectors: Tensor | None = None
        if k:
            values, vectors = self._eigen
        elif "_eigen" in self.__dict__:
            values = self._eigen[0]
        else:
            values = eigenvalues(kernel)
        resolved = max(0.0, float(values[0])) * len(values) ** 0.5 * torch.finfo(values.dtype).eps
        known = min(int((values > resolved).sum()), self._rank)
        found, residuals = (
            self._lifted(values[:known], vectors[:, : min(k, known)]) if vectors is not None else ((), ())
        )
        trace = self.trace()
        values = values[:known].double().cpu()
        return Spectrum(values, found, self.entries, True, self._rank, residuals, trace, resolved)

    def _lifted(self, values: Tensor, columns: Tensor) -> tuple[tuple[Weights, ...], tuple[float, ...]]:
        """Directions of the weights from those of the outputs: v = J^T R^T u / |...|, orthonormal."""
        of, shape = self.of, self.outputs.shape
        assert not isinstance(of, LossHessian)
        if not columns.shape[1]:
            return (), ()
        pulled = []
        for column in columns.unbind(1):
            back = self._jacobian.pull(of.half_back(self.outputs, column.reshape(shape)), self._movable)
            flat = self._flat(back) * self._mask
            pulled.append(flat / flat.norm())
        basis, upper = torch.linalg.qr(torch.stack(pulled, 1))
        basis = basis * upper.diagonal().sign() * self._mask[:, None]
        apply = self._times(self._mask)
        off = [apply(one) - value * one for one, value in zip(basis.unbind(1), values, strict=False)]
        residuals = tuple(float(one.norm() / values[0]) for one in off)
        return tuple(self._filled(self._named(one)) for one in basis.unbind(1)), residuals


_CG = "conjugate gradients"


def _multiplied(cost: Cost, times: int) -> Cost:
    return Cost(*(times * value for value in vars(cost).values()))


def _sound(one: Tensor, where: str, remedy: str) -> Tensor:
    if not math.isfinite(float(one.sum())) and not bool(torch.isfinite(one).all()):
        count = int((~torch.isfinite(one)).sum())
        raise InputError(where, "finite numbers", f"{count} NaN or infinite of {one.numel()}", remedy)
    return one


def _joined(value: Tensor, wanted: list[Tensor]) -> Tensor:
    """Gradient of a number in all of these, in one row."""
    if not value.requires_grad:
        return torch.cat([torch.zeros_like(one).reshape(-1) for one in wanted]).detach()
    found = torch.autograd.grad(value, wanted, retain_graph=True, materialize_grads=True)
    return torch.cat([one.reshape(-1) for one in found])
