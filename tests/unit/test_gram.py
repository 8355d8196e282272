"""The Gram matrix of gradients equals J P J^T by an explicit Jacobian, for every architecture, and stays small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase
from foreign import AWAY, Foreign
from planaria.core.autodiff import plain_kernels
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.geometry.gram import ROWS, fits, gram, gram_cost
from planaria.geometry.passes import Pass
from purity import untouched


def doubled(case: NetworkCase, count: int = 4) -> tuple[Network, Tensor]:
    """The network and inputs in double precision, in which nothing hides behind rounding."""
    net, inputs = case.network(), case.inputs(count)

    def precise(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}

    net = replace(net, weights=precise(net.weights), buffers=precise(net.buffers), plasticity=precise(net.plasticity))
    return net, inputs.double() if inputs.is_floating_point() else inputs


def jacobian(net: Network, inputs: Tensor) -> Tensor:
    """J by one backward pass for every output, [N * m, weights]."""
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in net.weights.items()}
    with plain_kernels(attention=True), torch.enable_grad():
        outputs = net.evaluate(inputs, leaves, {name: buffer.clone() for name, buffer in net.buffers.items()})
    rows = []
    for output in outputs.reshape(-1):
        found = torch.autograd.grad(output, list(leaves.values()), retain_graph=True, allow_unused=True)
        pairs = zip(found, leaves.values(), strict=True)
        rows.append(torch.cat([(torch.zeros_like(leaf) if g is None else g).reshape(-1) for g, leaf in pairs]))
    return torch.stack(rows)


def twin(net: Network, inputs: Tensor, root: Tensor | None = None) -> Tensor:
    """R J P J^T R^T by definition."""
    j = jacobian(net, inputs)
    plastic = torch.cat([net.plasticity[name].reshape(-1) for name in net.weights])
    if root is not None:
        j = torch.block_diag(*root) @ j
    return (j * plastic) @ j.T


def half_pinned(net: Network, seed: int = 0) -> Network:
    """Half of the entries pinned, the others of unequal plasticity."""
    rng = stream(seed, "half pinned")
    draws = {name: torch.rand(w.shape, generator=rng, dtype=torch.float64) for name, w in net.weights.items()}
    return net.with_plasticity({n: torch.where(d > 0.5, d, 0.0).to(net.weights[n]) for n, d in draws.items()})


def apart(one: Tensor, other: Tensor) -> float:
    """Relative difference."""
    return float((one - other).norm() / other.norm().clamp_min(1e-300))


@pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
def test_the_gram_matrix_is_the_jacobian_times_its_transpose(case: NetworkCase) -> None:
    net, inputs = doubled(case)
    with untouched(net, inputs):
        found = gram(net, inputs)
    assert apart(found, twin(net, inputs)) < 1e-10
    assert torch.equal(found, found.T)
    assert float(torch.linalg.eigvalsh(found)[0]) > -1e-10 * float(found.diagonal().max())


@pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
def test_plasticity_weights_entries_and_a_root_weights_outputs(case: NetworkCase) -> None:
    net, inputs = doubled(case, 3)
    net = half_pinned(net)
    classes = net(inputs).numel() // 3
    root = torch.randn(3, classes, classes, generator=stream(0, "root"), dtype=torch.float64)
    assert apart(gram(net, inputs, root), twin(net, inputs, root)) < 1e-10


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm", "transformer-post-norm", "lstm", "tokens-tied"])
def test_single_precision_stays_close_and_products_can_be_double(name: str) -> None:
    net, inputs = NETWORKS[name].network(), NETWORKS[name].inputs(8)  # so many that a few show how they lie
    precise, their = doubled(NETWORKS[name], 8)
    exact = twin(precise, their)
    assert apart(gram(net, inputs).double(), exact) < 1e-4
    double = gram(net, inputs, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert apart(double, exact) < 1e-4


def pin_units(net: Network) -> Network:
    """A hidden unit pinned with all its entries, as damage leaves it."""
    weights = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in net.weights.items()}
    weights["0.weight"][2], weights["0.bias"][2], weights["2.weight"][:, 2] = True, True, True
    return net.pin(weights)


PINS: dict[str, Callable[[Network], Network]] = {
    "whole units": pin_units,
    "one layer": lambda net: net.pin({"2.weight": torch.ones(5, 7, dtype=torch.bool)}),
    "all but shifts": lambda net: net.pin({n: torch.full(w.shape, w.ndim > 1) for n, w in net.weights.items()}),
    "everything": lambda net: net.pin({n: torch.ones(w.shape, dtype=torch.bool) for n, w in net.weights.items()}),
    "one shift slower": lambda net: net.with_plasticity({"0.bias": torch.full((7,), 0.25, dtype=torch.float64)}),
}


@pytest.mark.parametrize("pins", PINS.values(), ids=PINS)
def test_patterns_of_pins_are_exact(pins: Callable[[Network], Network]) -> None:
    net, inputs = doubled(NETWORKS["mlp-tanh"], 9)
    net = pins(net)
    found = gram(net, inputs)
    expected = twin(net, inputs)
    assert float((found - expected).norm()) <= 1e-10 * float(expected.norm())


def net_of(module: nn.Module, inputs: Tensor) -> Network:
    with torch.no_grad():
        for at, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=stream(0, "net", at)))
    return Network.of(module.double().eval(), inputs)


class Rows(nn.Module):
    """Tokens first, examples second, and outputs at every token."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x.transpose(0, 1)))).transpose(0, 1)


class Middle(nn.Module):
    """Examples lie between two other axes of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x.permute(1, 0, 2, 3)))).sum((0, 2))


class Sorted(nn.Module):
    """Examples change places, as experts sort them: each result goes back to its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        made = self.two(torch.tanh(self.one(x[order])))
        return made[order.argsort()]


class Experts(nn.Module):
    """Which layer an example meets depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 2)
        for layer, chosen in ((self.one, x[:, 0] > 0), (self.two, x[:, 0] <= 0)):
            at = chosen.nonzero()[:, 0]
            out = out.index_add(0, at, layer(x[at]))
        return torch.tanh(out)


class Written(nn.Module):
    """What a layer returns is written over, by functions and by additions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 2, bias=False)
        self.shift = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(torch.tanh_(self.one(x)))
        y += self.shift
        return torch.sigmoid_(y)


class Odd(nn.Module):
    """Weights used in ways that have no form of their own: powers, quotients, both factors of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4, 4))
        self.scale, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ (self.one @ self.two)) / (1 + self.scale**2))


ODD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tokens first": (Rows, (5, 3)),
    "examples between": (Middle, (2, 4, 3)),
    "sorted": (Sorted, (3,)),
    "experts": (Experts, (3,)),
    "written over": (Written, (3,)),
    "odd": (Odd, (3,)),
    "conv3d": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 2, groups=2, padding=1, stride=2), nn.Tanh(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
        ),
        (2, 3, 4, 3),
    ),
    "transposed 1d": (
        lambda: nn.Sequential(
            nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), nn.Tanh(), nn.AdaptiveAvgPool1d(2), nn.Flatten()
        ),
        (4, 3),
    ),
    "instances": (lambda: nn.Sequential(nn.Linear(3, 5), nn.InstanceNorm1d(5, affine=True)), (5, 3)),
    "prelu": (lambda: nn.Sequential(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 1)), (3,)),
    "outputs at every place": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)), nn.Linear(2, 2)), (3,)),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Tanh()), (3,)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("count", [1, 9])
def test_networks_that_lay_examples_out_otherwise_are_exact(name: str, count: int) -> None:
    make, shape = ODD[name]
    inputs = torch.randn(count, *shape, generator=stream(0, "odd", name), dtype=torch.float64)
    net = net_of(make(), inputs)
    assert apart(gram(net, inputs), twin(net, inputs)) < 1e-10


def test_padding_of_a_table_does_not_move() -> None:
    tokens = torch.tensor([[1, 0, 2], [0, 0, 3], [3, 1, 1]])
    model = nn.Sequential(nn.Embedding(4, 5, padding_idx=0), nn.Flatten(), nn.Linear(15, 2))
    net = net_of(model, tokens)
    assert apart(gram(net, tokens), twin(net, tokens)) < 1e-10


def test_common_layers_need_no_general_way() -> None:
    for name in ("mlp-norms", "cnn-depthwise", "deconv-groupnorm", "transformer-post-norm", "decoder", "lstm", "llama"):
        net, inputs = doubled(NETWORKS[name], 3)
        assert Pass.of(net, inputs, "test").place(3) == [], name


def test_examples_that_depend_on_each_other_are_not_mistaken_for_separate_ones() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            return self.two(torch.tanh(y - y.mean(0)))

    inputs = torch.randn(9, 3, generator=stream(0, "mixed"), dtype=torch.float64)
    net = net_of(Mixed(), inputs)
    assert apart(gram(net, inputs), twin(net, inputs)) < 1e-10


class Norm(nn.Module):
    """Normalises in single precision, whatever the network is in."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).float()
        y = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return self.two(torch.tanh(y))


@pytest.mark.parametrize("count", [3, 9])
def test_single_precision_inside_needs_no_general_way(count: int) -> None:
    inputs = torch.randn(count, 3, generator=stream(0, "inside"), dtype=torch.float64)
    net = net_of(Norm(), inputs)
    assert Pass.of(net, inputs, "test").place(count) == []
    assert apart(gram(net, inputs), twin(net, inputs)) < 1e-6


def test_double_precision_throughout_is_held_to_its_own_rounding() -> None:
    class Leaky(nn.Module):
        """Examples see a little of each other."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            return self.two(torch.tanh(y + 1e-5 * y.flip(0)))

    inputs = torch.randn(5, 3, generator=stream(0, "leaky"), dtype=torch.float64)
    net = net_of(Leaky(), inputs)
    assert "one.weight" in Pass.of(net, inputs, "test").place(5)


def test_wide_weights_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs = doubled(NETWORKS["transformer-pre-norm"], 7)
    whole = gram(net, inputs)
    monkeypatch.setattr("planaria.geometry.gram.BYTES", 1 << 9)
    assert apart(gram(net, inputs), whole) < 1e-12
    assert apart(gram(half_pinned(net), inputs), twin(half_pinned(net), inputs)) < 1e-10


def test_what_it_costs_grows_with_examples_and_outputs() -> None:
    net, inputs = NETWORKS["mlp-relu"].network(), NETWORKS["mlp-relu"].inputs(10)
    cost = gram_cost(net, inputs)
    assert (cost.examples, cost.labels, cost.forward_passes) == (10, 0, 1)
    assert cost.backward_passes >= 3
    assert cost.multiply_adds > gram_cost(net, inputs[:5]).multiply_adds > 0


def test_only_small_gram_matrices_fit() -> None:
    net = NETWORKS["mlp-relu"].network()
    assert fits(net, torch.zeros(ROWS // 3, 6))
    assert not fits(net, torch.zeros(ROWS // 3 + 1, 6))


@pytest.mark.parametrize("name", ["mlp-norms", "cnn-batchnorm", "tokens-tied", "lstm-written-out"])
def test_everything_stays_on_the_networks_device(name: str) -> None:
    case = NETWORKS[name]
    inputs, classes = case.inputs(8), case.classes
    root = torch.randn(8, classes, classes, generator=stream(0, "root"))
    expected = gram(half_pinned(case.network()), inputs, root)
    with Foreign():
        found = gram(half_pinned(case.network()).to(AWAY), inputs.to(AWAY), root.to(AWAY))
        assert found.device == AWAY
        home = found.cpu()
    assert apart(home, expected) < 1e-4


class Overwritten(nn.Module):
    """Writes over what torch needs to differentiate."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).exp()
        float(y.detach().sum())
        return y.mul_(2.0)


def test_a_network_that_torch_cannot_differentiate_is_refused() -> None:
    inputs = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="that torch can differentiate"):
        gram(net_of(Overwritten(), inputs), inputs)


def test_hostile_inputs_are_refused_with_what_was_expected() -> None:
    net, inputs = NETWORKS["mlp-relu"].network(), NETWORKS["mlp-relu"].inputs(4)
    with pytest.raises(InputError, match=r"gram\(root\).*\[4, 3, 3\]"):
        gram(net, inputs, torch.eye(3))
    with pytest.raises(InputError, match="finite outputs"):
        gram(net, inputs * torch.nan)
    flat = Network.of(nn.Sequential(nn.Linear(6, 3), nn.Flatten(0)), inputs)
    with pytest.raises(InputError, match="rows of outputs"):
        gram(flat, inputs)
