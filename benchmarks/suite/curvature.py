"""B13 to B15: products with the functional metric, damped solves and spectra, against curvlinops and torch.func.

curvlinops 3 is a peer where it can be imported (`pip install curvlinops-for-pytorch`); its generalised Gauss-Newton
matrix of the summed squared error is 2 N times our metric. What two ways return is compared in every run: products and
eigenvalues to 1e-5, and of a solve the residual under the other's product.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from suite.harness import Row, interleave, peak_mib, row
from suite.networks import Case, images, lenet, vit
from torch import Tensor, nn

from planaria.core.autodiff import jvp, plain_kernels, vjp
from planaria.core.motion import settle, steps
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights
from planaria.geometry.gram import gram
from planaria.geometry.metric import Metric
from planaria.measure.data import Data
from planaria.measure.task import Task
from planaria.repair.retrain import Adam, Retrain

AGREE = 1e-5
"""Relative difference that two ways may have."""

DAMPING = 1e-3
"""Of solves, in largest eigenvalues."""

WARM = 14
"""Products by each way before those that are timed: after a dozen, ours keeps factors of the Jacobian."""

PEER = "curvlinops"
Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """A network with the inputs of its metric.

    Attributes:
        name: For the table.
        model: The module, in eval mode.
        net: The same as a Network.
        inputs: [N, ...].
        targets: [N].
        fused: Whether it computes attention by torch's fused function, which has no forward derivatives.
    """

    name: str
    model: nn.Module
    net: Network
    inputs: Tensor
    targets: Tensor
    fused: bool = False

    @property
    def words(self) -> str:
        """Name, weights and inputs."""
        return f"{self.name}, {self.net.parameters:,} weights, {len(self.inputs)} inputs"

    def direction(self) -> Tensor:
        """A random direction [weights]."""
        return torch.randn(self.net.parameters, generator=stream(0, "direction", self.name))

    def named(self, flat: Tensor) -> Weights:
        """A flat vector as a direction of the weights."""
        weights = self.net.weights
        parts = flat.split([weight.numel() for weight in weights.values()])
        return {n: part.view(w.shape) for (n, w), part in zip(weights.items(), parts, strict=True)}


def _flat(direction: Weights) -> Tensor:
    return torch.cat([part.reshape(-1) for part in direction.values()])


def _of(case: Case, count: int, fused: bool = False) -> Problem:
    few = case.few(count)
    return Problem(case.name, case.model, case.net, few.inputs, few.targets, fused)


@cache
def perceptron(quick: bool, *sizes: int) -> Problem:
    """Trained a little: 784, hidden layers, 10."""
    train, test = (Data(data.inputs.flatten(1), data.targets) for data in images(28, 1, quick))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(0, "benchmark network", *sizes).initial_seed())
        layers: list[nn.Module] = []
        for n, m in pairwise((784, *sizes, 10)):
            layers += [nn.Linear(n, m), nn.ReLU()]
    net = Network.of(nn.Sequential(*layers[:-1]), test.inputs)
    flow = Retrain(Task.of("images", train, test, validation=test), Adam(1e-3), batch=128)
    net = settle(flow, steps(10 if quick else 150))(net, stream(0, "benchmark training"))
    few = test.take(60 if quick else 200)
    name = "mlp " + "-".join(map(str, (784, *sizes, 10)))
    return Problem(name, net.to_module(), net, few.inputs, few.targets)


@cache
def stock(quick: bool) -> Problem:
    """torch's own encoder: width 64, 2 layers, 4 heads; rows of an image are its tokens."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
            self.embed, self.head = nn.Linear(28, 64), nn.Linear(64, 10)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.encoder(self.embed(x[:, 0])).mean(1))
            return logits

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(0, "benchmark network", "stock").initial_seed())
        model = Reader().eval()
    few = images(28, 1, quick)[1].take(16 if quick else 64)
    return Problem("nn.TransformerEncoder", model, Network.of(model, few.inputs), few.inputs, few.targets, fused=True)


# ------------------------------------------------------------------------------------------------------ peers


def peer(problem: Problem) -> tuple[Any, str]:
    """The curvlinops operator of a problem, 2 N g; None and why there is none."""
    if find_spec("curvlinops") is None:
        return None, f"{PEER} not installed"
    from curvlinops import GGNLinearOperator

    parameters = [parameter.requires_grad_() for parameter in problem.model.parameters()]
    data = [(problem.inputs, torch.zeros(len(problem.inputs), 10))]
    loss = nn.MSELoss(reduction="sum")
    operator = GGNLinearOperator(problem.model, loss, parameters, data, check_deterministic=False)
    return operator, PEER


def product_of(operator: Any, problem: Problem, fused: bool = False) -> Apply:
    """v -> g v by the peer; with attention written out unless `fused`, without which it cannot differentiate it."""
    scale = 1 / (2 * len(problem.inputs))

    def apply(v: Tensor) -> Tensor:
        with nullcontext() if fused else plain_kernels(attention=True):
            product: Tensor = operator @ v
        return product.detach() * scale

    return apply


def func_product(problem: Problem) -> Apply:
    """v -> g v by torch.func, forward and back again for every product."""
    net, count = problem.net, len(problem.inputs)

    def outputs(weights: Weights) -> Tensor:
        value: Tensor = net.evaluate(problem.inputs, weights, net.buffers)
        return value

    def apply(v: Tensor) -> Tensor:
        _, along = jvp(outputs, net.weights, problem.named(v))
        return _flat(vjp(outputs, net.weights, along / count)[1])

    return apply


def solved(apply: Apply, b: Tensor, mu: float, tolerance: float) -> Tensor:
    """Conjugate gradients for (g + mu) x = b until the residual is below the tolerance, at most 1,000 steps."""
    x, left = torch.zeros_like(b), b
    along, size = left, float(left @ left)
    enough = tolerance**2 * size
    for _ in range(1000):
        if size <= enough:
            break
        curved = apply(along) + mu * along
        step = size / float(along @ curved)
        x = x + step * along
        left = left - step * curved
        before, size = size, float(left @ left)
        along = left + (size / before) * along
    return x


def apart(one: Tensor, other: Tensor, what: str, allowed: float = AGREE) -> float:
    """Relative difference, asserted to be small."""
    difference = float((one.double() - other.double()).norm() / other.double().norm())
    assert difference <= allowed, f"{what}: relative difference {difference:.2g}"
    return difference


# ----------------------------------------------------------------------------------------------------- benchmarks


def products(quick: bool, count: int) -> list[Row]:
    """B13: g v in the steady state, every way warmed up by as many products; what ours took to get there is said."""
    problems = [
        perceptron(quick, 300, 100),
        _of(lenet(quick), 16 if quick else 64),
        _of(vit(quick), 4 if quick else 64, fused=True),
        stock(quick),
    ]
    return [_products(problem, count) for problem in problems]


def _products(problem: Problem, count: int) -> Row:
    metric, v = Metric(problem.net, problem.inputs), problem.direction()
    named = problem.named(v)
    operator, said = peer(problem)
    naive = func_product(problem)
    times = 5 if problem.name.startswith("mlp") else 1

    def repeated(apply: Callable[[], object], times: int = times) -> Callable[[], None]:
        def work() -> None:
            for _ in range(times):
                apply()

        return work

    applied: dict[str, Callable[[], Any]] = {"naive": lambda: naive(v), "ours": lambda: metric @ named}
    mine = _flat(metric @ named)
    difference = apart(mine, naive(v), problem.name)
    if operator is not None:
        theirs = product_of(operator, problem)
        difference = max(difference, apart(mine, theirs(v), f"{problem.name} {PEER}"))
        applied["peer"] = lambda: theirs(v)
        if problem.fused:
            said += f" with attention written out; {_stock(product_of(operator, problem, fused=True), v)}"
    begun = interleave({k: repeated(apply, WARM) for k, apply in applied.items()}, 1, warm=False)
    ways = {k: repeated(apply) for k, apply in applied.items()}
    measured = {k: [t / times for t in s] for k, s in interleave(ways, count, warm=False).items()}
    difference = max(difference, apart(_flat(metric @ named), mine, f"{problem.name} in the steady state"))
    goals = {} if operator is None else {"ratio_peer": 2.0}
    setup = max(0.0, begun["ours"][0] - WARM * median(measured["ours"]))
    words = f"product g v in the steady state (set-up {setup:.2g} s), {problem.words}"
    return row("B13", words, measured, peer=said, difference=difference, peak=peak_mib(ways["ours"]), at_least=goals)


def _stock(apply: Apply, v: Tensor) -> str:
    """What happens to the peer where the model is left as it is."""
    try:
        apply(v)
    except (RuntimeError, NotImplementedError) as problem:
        return f"as it is: {type(problem).__name__}"
    return "as it is: runs"


def solves(quick: bool, count: int) -> list[Row]:
    """B14: (g + 1e-3 lambda_max) x = b to a residual of 1e-5, from nothing; b is the gradient of cross-entropy."""
    small = _solve(perceptron(quick, 300, 100), count, None if quick else 7.0)
    return [small] if quick else [small, _solve(perceptron(quick, 1024, 1024, 1024), count, 14.0)]


def _solve(problem: Problem, count: int, goal: float | None) -> Row:
    metric = Metric(problem.net, problem.inputs)
    _ = metric @ problem.net.weights  # what torch loads the first time is not ours
    wrong = metric.outputs.softmax(1) - nn.functional.one_hot(problem.targets, 10)
    b = metric.pull(wrong / len(wrong))
    mu, flat = DAMPING * metric.largest, _flat(b)
    operator, said = peer(problem)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        solution = Metric(problem.net, problem.inputs).solve(b, DAMPING, AGREE)
        assert solution.converged, str(solution)
        found["ours"] = _flat(solution.direction)

    def mine() -> None:
        found["own product"] = solved(own, flat, mu, AGREE)

    def own(x: Tensor) -> Tensor:
        return _flat(metric @ problem.named(x))

    ways: dict[str, Callable[[], Any]] = {"ours": ours, **({"our product + CG": mine} if len(flat) < 1e6 else {})}
    judge = func_product(problem)
    if operator is not None:
        judge = product_of(operator, problem)
        ways["peer"] = lambda: found.update(peer=solved(judge, flat, mu, AGREE))
    times = interleave(ways, min(count, 3), warm=False)
    for name, x in found.items():
        left = float((judge(x) + mu * x - flat).norm() / flat.norm())
        assert left <= 2 * AGREE, f"{problem.name} {name}: residual {left:.2g} under the other's product"
    residual = float((judge(found["ours"]) + mu * found["ours"] - flat).norm() / flat.norm())
    return row(
        "B14",
        f"damped solve to {AGREE:g}, damping {DAMPING:g}, {problem.words}",
        times,
        peer=said if operator is None else f"{PEER} product + CG",
        difference=residual,
        peak=peak_mib(ours),
        at_least={} if operator is None or goal is None else {"ratio_peer": goal},
    )


def spectra(quick: bool, count: int) -> list[Row]:
    """B15: every eigenvalue that is not zero, against the 50 largest by curvlinops and scipy's eigsh."""
    problem, largest = perceptron(quick, 300, 100), 10 if quick else 50
    operator, said = peer(problem)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        found["ours"] = Metric(problem.net, problem.inputs).eigh().values

    ways: dict[str, Callable[[], Any]] = {"ours": ours}
    if operator is not None:
        from scipy.sparse.linalg import eigsh

        def theirs() -> None:
            start = problem.direction().numpy()
            values = eigsh(operator.to_scipy(), largest, v0=start, return_eigenvectors=False)
            found["peer"] = torch.tensor(values.copy()).sort(descending=True)[0] / (2 * len(problem.inputs))

        ways["peer"] = theirs
    times = interleave(ways, min(count, 3), warm=False)
    if operator is None:  # the same in double precision
        kernel = gram(problem.net, problem.inputs, dtype=torch.float64) / len(problem.inputs)
        found["peer"] = torch.linalg.eigvalsh(kernel).flip(0)[:largest]
    difference = float((found["ours"][:largest] - found["peer"]).abs().max() / found["ours"][0])
    assert difference <= AGREE, f"spectrum: eigenvalues differ by {difference:.2g} of the largest"
    count = len(found["ours"])
    return [
        row(
            "B15",
            f"spectrum, {count:,} eigenvalues against the {largest} largest, {problem.words}",
            times,
            peer=said if operator is None else f"{PEER} + scipy eigsh",
            difference=difference,
            peak=peak_mib(ours),
            at_least={} if operator is None or quick else {"ratio_peer": 18.0},
        )
    ]


METRIC: dict[str, Callable[[bool, int], list[Row]]] = {"B13": products, "B14": solves, "B15": spectra}
