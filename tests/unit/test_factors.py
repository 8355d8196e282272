"""Factors: what is kept of the Jacobian gives the same products as passes through the network, and knows when to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase
from planaria.core import gemm
from planaria.core.gemm import DEFAULT, ONEDNN, Route
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights
from planaria.geometry import factors, jacobian
from planaria.geometry.factors import Factors
from planaria.geometry.gram import gram
from planaria.geometry.jacobian import WARM, Jacobian
from planaria.geometry.metric import Fisher, Metric
from purity import untouched

ROOM = 1 << 28


def doubled(case: NetworkCase, count: int = 3) -> tuple[Network, Tensor]:
    inputs = case.inputs(count)
    inputs = inputs if case.tokens else inputs.double()
    return Network.of(case.build().double(), inputs), inputs


def direction(net: Network, name: str = "v") -> Weights:
    rng = stream(0, name)
    return {n: torch.randn(w.shape, generator=rng, dtype=torch.float64).to(w) for n, w in net.weights.items()}


def same(one: Tensor, other: Tensor, allowed: float = 1e-11) -> bool:
    return float((one - other).abs().max()) <= allowed * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("rate", [0.0, 1e9], ids=["columns", "factors"])
@pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
def test_products_with_factors_are_those_of_passes(
    case: NetworkCase, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "RATE", rate or 1e-9)  # which of the two is taken
    monkeypatch.setattr(factors, "ALONE", 1e15)
    monkeypatch.setattr(factors, "PLACES", 1e15)
    net, inputs = doubled(case)
    passes, v = Jacobian(net, inputs), direction(net)
    with untouched(net, inputs, *v.values()):
        kept = Factors.of(net, inputs, ROOM)
        assert kept is not None
        slope = kept.push(v)
    assert same(slope, passes.push(v))
    found, wanted = kept.pull(slope, list(net.weights), net.weights), passes.pull(slope)
    assert found.keys() == wanted.keys()
    assert all(same(found[name], wanted[name]) for name in wanted)
    first = next(iter(net.weights))
    assert same(kept.push({first: v[first]}), passes.push({first: v[first]}))
    assert kept.pull(slope, [first], net.weights).keys() == {first}


def wide() -> tuple[Network, Tensor]:
    """Many places, so that factors pay."""
    rng = stream(0, "wide")
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten())
    model.append(nn.Linear(16 * 36, 4))
    inputs = torch.randn(12, 3, 8, 8, generator=rng)
    return Network.of(model, inputs), inputs


def test_after_a_dozen_products_factors_are_kept_and_the_graph_let_go() -> None:
    net, inputs = wide()
    passes, v = Jacobian(net, inputs), direction(net)
    first = passes.push(v)
    for _ in range(WARM - 1):
        assert torch.equal(passes.push(v), first)
    assert passes._factors is None and passes._graphs
    assert same(passes.push(v), first, 1e-5)
    assert passes._factors is not None and not passes._graphs
    slope, bend = passes.bend(v, torch.ones_like(first), ["0.weight"])  # still possible, by a graph made again
    assert same(slope, first, 1e-5) and bend.keys() == {"0.weight"}


def test_factors_that_are_wrong_are_noticed_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs = wide()
    passes, v = Jacobian(net, inputs), direction(net)
    right = passes.push(v)
    monkeypatch.setattr(Factors, "push", lambda self, v: 1.01 * right)
    again = [passes.push(v) for _ in range(WARM + 3)]
    assert passes._factors is None and passes._graphs
    assert all(same(one, right, 1e-5) for one in again)


def test_pinned_weights_and_other_geometries_go_the_same_way() -> None:
    net, inputs = wide()
    rng = stream(0, "pinned")
    net = net.pin({n: torch.rand(w.shape, generator=rng) < 0.5 for n, w in net.weights.items()})
    metric, v = Metric(net, inputs, Fisher(2.0)), direction(net)
    first, length = metric @ v, metric.norm(v)
    for _ in range(WARM):
        metric @ v
    assert metric._jacobian._factors is not None
    assert all(same(one, first[name], 1e-5) for name, one in (metric @ v).items())
    assert metric.norm(v) == pytest.approx(length, rel=1e-5)  # pinned entries count


def test_too_little_memory_or_too_little_to_gain_leaves_passes() -> None:
    net, inputs = wide()
    assert Factors.of(net, inputs, ROOM) is not None
    assert Factors.of(net, inputs, 1 << 10) is None
    small = NETWORKS["mlp-relu"]
    assert Factors.of(small.network(), small.inputs(50), ROOM) is None


def test_where_memory_is_short_what_takes_less_is_kept() -> None:
    net, inputs = wide()
    free = Factors.of(net, inputs, ROOM)
    assert free is not None
    held = [free.kept.numel() + sum(outer.known.numel() + outer.made.numel() for outer in free.outer)]
    tight = Factors.of(net, inputs, 4 * held[0] - 4)
    if tight is not None:
        assert tight.kept.numel() + sum(o.known.numel() + o.made.numel() for o in tight.outer) < held[0]


def test_networks_that_look_at_the_whole_batch_are_left_to_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jacobian, "WARM", 0)

    class Odd(nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.a = nn.Parameter(torch.tensor([0.5, 2.0]))

        def forward(self, x: Tensor) -> Tensor:
            order = x[:, 0].argsort()
            return (torch.tanh(x[order] * self.a.sin()))[order.argsort()]

    inputs = torch.randn(5, 2, generator=stream(0, "odd"), dtype=torch.float64)
    net = Network.of(Odd().double(), inputs)
    passes, v = Jacobian(net, inputs), direction(net)
    wanted = passes._pushed_back(v)
    assert all(same(passes.push(v), wanted) for _ in range(4))


def test_both_routes_of_matrix_products_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    rng = stream(0, "routes")
    net = Network.of(nn.Sequential(nn.Linear(64, 200), nn.Tanh(), nn.Linear(200, 10)), torch.zeros(1, 64))
    inputs, v = torch.randn(100, 64, generator=rng), direction(net)
    found = {}
    for name in (DEFAULT, ONEDNN):
        seen: list[str] = []
        route = Route(name, {DEFAULT: 1.0, ONEDNN: 2.0}, {DEFAULT: 1e-7, ONEDNN: 1e-7})
        monkeypatch.setattr(gemm, "fastest_route", lambda route=route, seen=seen: seen.append(route.name) or route)
        metric = Metric(net, inputs)
        product = metric @ v
        solved = metric.solve(product, damping=1e-2)
        assert seen and set(seen) == {name} and solved.converged
        kernel = gram(net, inputs)
        found[name] = (*product.values(), *solved.direction.values(), kernel, metric.eigh().values)
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    for one, other in zip(found[DEFAULT], found[ONEDNN], strict=True):
        assert float((one[: len(other)] - other[: len(one)]).norm()) <= 2e-5 * float(other.norm())
