"""Symmetries of networks and alignment: what is found, what is refused, and what the match is worth."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cases import NETWORKS
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.geometry import align as module
from planaria.geometry.align import Aligned, ByActivations, ByWeights, align
from planaria.geometry.symmetry import permute, symmetries


def made(seed: int, *parts: nn.Module, shape: tuple[int, ...] = (4,)) -> Network:
    """A network with random weights, the same for a seed."""
    return Network.of(drawn(nn.Sequential(*parts), seed), torch.randn(2, *shape, generator=stream(seed, "examples")))


def drawn(model: nn.Module, seed: int) -> nn.Module:
    rng = stream(seed, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return model


def mlp(seed: int, wide: int = 6) -> Network:
    return made(seed, nn.Linear(4, wide), nn.ReLU(), nn.Linear(wide, 5), nn.Tanh(), nn.Linear(5, 3))


def shuffled(net: Network, seed: int) -> Network:
    rng = stream(seed, "shuffle")
    return permute(net, {s.name: torch.randperm(s.size, generator=rng) for s in symmetries(net)})


# ------------------------------------------------------------------------------------------------- symmetries

EXPECTED = {
    "mlp-relu": [("0", "neuron", 7), ("2", "neuron", 5)],
    "cnn-batchnorm": [("0", "channel", 4), ("4", "channel", 5), ("8", "neuron", 6)],
    "cnn-depthwise": [("0", "block", 2)],
    "residual": [("stem", "stream", 4), ("conv1", "channel", 4), ("conv3", "stream", 6)],
    "transformer-pre-norm": [
        ("embed", "stream", 8),
        ("encoder.layers.0.self_attn", "head", 2),
        ("encoder.layers.0.linear1", "neuron", 6),
        ("encoder.layers.1.self_attn", "head", 2),
        ("encoder.layers.1.linear1", "neuron", 6),
    ],
    "lstm": [("rnn", "recurrent", 5), ("fc1", "neuron", 4)],
    "gated": [("gated", "neuron", 5)],
    "concatenating": [("a", "channel", 3), ("b", "channel", 2), ("mix", "channel", 4)],
    "attention-grouped": [("q", "block", 2)],
    "tokens-tied": [("embed", "embedding", 6), ("fc1", "neuron", 5)],
    "deconv-groupnorm": [],
    "one-unit-per-layer": [],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_symmetries_of_an_architecture_are_these(name: str) -> None:
    known = symmetries(NETWORKS[name].network())
    assert [(s.name, s.kind, s.size) for s in known] == EXPECTED[name]


def places(net: Network, name: str) -> list[tuple[str, int | None]]:
    return sorted((place.name, -1 if place.axis is None else place.axis) for place in symmetries(net)[name].places)


def test_feature_maps_take_the_statistics_of_their_normalisation_along() -> None:
    found = dict(places(NETWORKS["cnn-batchnorm"].network(), "0"))
    assert found.keys() >= {"1.weight", "1.bias", "1.running_mean", "1.running_var", "0.weight", "0.bias", "4.weight"}
    assert found["0.weight"] == 0 and found["4.weight"] == 1


def test_a_recurrent_matrix_is_permuted_along_both_axes() -> None:
    found = places(NETWORKS["lstm"].network(), "rnn")
    assert ("rnn.weight_hh_l0", 0) in found and ("rnn.weight_hh_l0", 1) in found
    assert ("fc1.weight", 1) in found
    hidden = next(p for p in symmetries(NETWORKS["lstm"].network())["rnn"].places if p.name == "rnn.bias_ih_l0")
    assert hidden.positions.tolist() == [[unit + 5 * gate for gate in range(4)] for unit in range(5)]


def test_a_residual_stream_is_one_symmetry_of_all_its_producers_and_readers() -> None:
    found = {name for name, _ in places(NETWORKS["transformer-pre-norm"].network(), "embed")}
    for layer in (0, 1):
        prefix = f"encoder.layers.{layer}"
        for part in ("self_attn.in_proj_weight", "self_attn.out_proj.bias", "linear1.weight", "linear2.bias"):
            assert f"{prefix}.{part}" in found
        assert {f"{prefix}.norm1.weight", f"{prefix}.norm2.bias"} <= found
    assert "head.weight" in found


def test_channels_of_a_group_norm_move_with_their_group() -> None:
    net = made(0, nn.Conv1d(1, 6, 1), nn.GroupNorm(3, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2), shape=(1, 4))
    known = symmetries(net)
    assert [(s.name, s.kind, s.size) for s in known] == [("0", "block", 3)]
    bias = next(place for place in known["0"].places if place.name == "0.bias")
    assert bias.positions.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_normalisation_over_all_channels_leaves_them_free() -> None:
    net = made(0, nn.Conv1d(1, 6, 1), nn.GroupNorm(1, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2), shape=(1, 4))
    assert [(s.kind, s.size) for s in symmetries(net)] == [("channel", 6)]


class Sorting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).sort(-1).values)


class Fixed(Sorting):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * torch.arange(1.0, 6.0))


class Ranked(Sorting):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x if float(x[0, 0]) > 1e9 else x + 1)


class Overwritten(Sorting):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x[:, :2].relu_()
        return self.b(x)


class Cumulated(Sorting):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).cumsum(-1))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Sorting, "sort"),
        (Fixed, "a constant tells its units apart"),
        (Ranked, "decides what is computed"),
        (Overwritten, "overwritten in place"),
        (Cumulated, "cumsum"),
    ],
)
def test_units_that_are_not_alike_are_left_out_with_the_reason(model: type[nn.Module], reason: str) -> None:
    net = Network.of(drawn(model(), 0), torch.randn(2, 4, generator=stream(0, "x")))
    known = symmetries(net)
    assert len(known) == 0 and reason in known.left_out["a"]
    with pytest.raises(InputError, match="none, because"):
        permute(net, {"a": torch.arange(5)})


class Told(nn.Module):
    """Two weights computed into one: a product with a weight that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.direction = nn.Parameter(torch.ones(5, 1)), nn.Parameter(torch.ones(5, 4))
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scale * self.direction / self.direction.norm(dim=1, keepdim=True)
        return self.out(F.relu(x @ weight.T))


class Forked(Sorting):
    """Reads its units through one of two layers, as the data decide."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        way = self.b if bool(x.mean() > 0) else self.c
        return way(F.relu(self.a(x)))


def test_units_that_other_inputs_may_send_another_way_are_left_out() -> None:
    net = Network.of(drawn(Forked(), 0), torch.ones(2, 4))
    known = symmetries(net)
    assert len(known) == 0 and "c.weight" in known.left_out["a"] and "data decide" in known.left_out["a"]


class Spared(Sorting):
    """Has a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


def test_weights_that_no_input_reaches_stand_in_no_ones_way() -> None:
    net = Network.of(drawn(Spared(), 0), torch.randn(2, 4, generator=stream(0, "x")))
    assert [s.size for s in symmetries(net)] == [5]


def test_weights_that_are_computed_from_others_are_followed_to_them() -> None:
    net = Network.of(drawn(Told(), 0), torch.randn(2, 4, generator=stream(0, "x")))
    (found,) = symmetries(net)
    assert {(p.name, p.axis) for p in found.places} == {("scale", 0), ("direction", 0), ("out.weight", 1)}


class Tokens(nn.Module):
    """Mixes positions by a layer of its own, as a mixer does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.back, self.head = nn.Linear(3, 4), nn.Linear(5, 6), nn.Linear(6, 5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.back(F.gelu(self.mix(x.transpose(1, 2)))).transpose(1, 2)
        return self.head(x.mean(1))


def test_layers_that_mix_positions_have_units_beside_the_channels() -> None:
    net = Network.of(drawn(Tokens(), 0), torch.randn(2, 5, 3, generator=stream(0, "x")))
    assert [(s.name, s.kind, s.size) for s in symmetries(net)] == [("embed", "stream", 4), ("mix", "neuron", 6)]


def test_symmetries_of_a_network_without_examples_cannot_be_traced() -> None:
    with pytest.raises(AnatomyError, match="example inputs"):
        symmetries(Network.of(nn.Linear(2, 2)))


@pytest.mark.parametrize("order", [[0, 1], [0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 6], [[0, 1, 2, 3, 4, 5]]])
def test_an_order_that_is_none_is_refused(order: list[int]) -> None:
    with pytest.raises(InputError, match="a permutation of 0 to 5"):
        permute(mlp(0), {"0": torch.tensor(order)})


def test_an_unknown_symmetry_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="Known: 0, 2"):
        permute(mlp(0), {"1": torch.arange(6)})


def test_unit_u_becomes_what_unit_order_u_was() -> None:
    net = mlp(0)
    order = torch.tensor([3, 1, 2, 5, 4, 0])
    other = permute(net, {"0": order})
    assert torch.equal(other.weights["0.weight"], net.weights["0.weight"][order])
    assert torch.equal(other.weights["2.weight"], net.weights["2.weight"][:, order])
    assert torch.equal(other.weights["4.weight"], net.weights["4.weight"])


def test_half_precision_networks_have_the_same_symmetries() -> None:
    model = drawn(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), 0).bfloat16()
    net = Network.of(model, torch.randn(2, 4, generator=stream(0, "x")).bfloat16())
    assert [s.size for s in symmetries(net)] == [6]
    assert align(net, shuffled(net, 1)).distance_after == 0.0


# -------------------------------------------------------------------------------------------------- alignment


@given(st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=12, deadline=None)
def test_any_permuted_perceptron_is_found_back(seed: int, widths: list[int]) -> None:
    sizes = [4, *widths, 3]
    parts: list[nn.Module] = []
    for read, wide in pairwise(sizes):
        parts += [nn.Linear(read, wide), nn.GELU()]
    net = made(seed, *parts[:-1])
    other = shuffled(net, seed)
    found = align(net, other)
    assert found.distance_after == 0.0
    assert found.network.sha256 == net.sha256


def test_alignment_never_moves_the_networks_further_apart_and_keeps_the_function() -> None:
    a, b = mlp(0), mlp(1)
    found = align(a, b)
    inputs = torch.randn(50, 4, generator=stream(0, "fresh"))
    assert found.distance_after < found.distance_before
    assert torch.allclose(found.network(inputs), b(inputs), rtol=1e-5, atol=1e-5)
    again = permute(b, found.permutations)
    assert again.sha256 == found.network.sha256


def test_one_layer_is_matched_as_well_as_all_orders_tried_out() -> None:
    a, b = (made(seed, nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)) for seed in (0, 1))
    orders = torch.cartesian_prod(*[torch.arange(5)] * 5)
    orders = orders[(orders.sort(1).values == torch.arange(5)).all(1)]
    assert len(orders) == 120
    wa, wb = ({n: w.double() for n, w in net.weights.items()} for net in (a, b))
    best = min(
        (wa["0.weight"] - wb["0.weight"][o]).square().sum()
        + (wa["0.bias"] - wb["0.bias"][o]).square().sum()
        + (wa["2.weight"] - wb["2.weight"][:, o]).square().sum()
        + (wa["2.bias"] - wb["2.bias"]).square().sum()
        for o in orders
    )
    assert align(a, b).distance_after == pytest.approx(float(best) ** 0.5, rel=1e-6)


def test_more_starts_never_end_further_away() -> None:
    a, b = mlp(0, wide=9), mlp(1, wide=9)
    distances = [align(a, b, ByWeights(starts=starts)).distance_after for starts in (1, 4, 8)]
    assert distances == sorted(distances, reverse=True)


def test_the_seed_decides() -> None:
    a, b = mlp(0), mlp(1)
    one, other = (align(a, b, ByWeights(starts=3), seed=5) for _ in range(2))
    assert one.network.sha256 == other.network.sha256 and one.rounds == other.rounds


def test_activations_tell_units_apart_that_are_scaled_differently() -> None:
    net = mlp(0)
    other = shuffled(net, 2)
    scale = torch.rand(6, generator=stream(0, "scale")) + 0.1
    weights = {
        "0.weight": other.weights["0.weight"] * scale[:, None],
        "0.bias": other.weights["0.bias"] * scale,
        "2.weight": other.weights["2.weight"] / scale,
    }
    found = align(net, other.with_weights(weights), ByActivations(torch.randn(80, 4, generator=stream(0, "in"))))
    assert min(found.correlation.values()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(found.network.weights["4.weight"], net.weights["4.weight"])
    assert found.cost.examples == 160 and found.cost.multiply_adds > 0


def test_more_examples_than_one_pass_takes_give_the_same_match(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, inputs = mlp(0), mlp(1), torch.randn(70, 4, generator=stream(0, "in"))
    whole = align(a, b, ByActivations(inputs))
    monkeypatch.setattr(module, "_AT_ONCE", 16)
    parts = align(a, b, ByActivations(inputs))
    assert whole.network.sha256 == parts.network.sha256
    assert parts.correlation == pytest.approx(whole.correlation, rel=1e-9)


def test_two_networks_of_one_architecture_need_not_share_the_module_nor_the_examples() -> None:
    a = mlp(0)
    b = Network.of(drawn(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), 1))
    found = align(a, b)
    assert found.network.inputs is not None and found.distance_after < found.distance_before


def test_a_network_without_symmetries_stays_and_the_verdict_says_so() -> None:
    a, b = made(0, nn.Linear(4, 3)), made(1, nn.Linear(4, 3))
    for by in (ByWeights(), ByActivations(torch.ones(3, 4))):
        found = align(a, b, by)
        assert found.network is b and not found.permutations
        assert found.distance_before == found.distance_after > 0
        assert "stays as it was" in found.verdict and "outputs" in found.verdict


def test_networks_of_different_shape_are_refused_by_the_weights_name() -> None:
    with pytest.raises(InputError, match=r"weight '0.weight'.*\[6, 4\] in a, \[7, 4\] in b"):
        align(mlp(0), mlp(0, wide=7))
    with pytest.raises(InputError, match=r"weight '4.weight'.*none of that name in b"):
        align(mlp(0), made(0, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)))
    with pytest.raises(InputError, match=r"weight '4.weight'.*none of that name in a"):
        align(made(0, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)), mlp(0))


def test_nan_is_refused_by_the_weights_name() -> None:
    broken = mlp(0).with_weights({"2.bias": torch.full((5,), float("nan"))})
    with pytest.raises(InputError, match=r"'2.bias' of b.*NaN"):
        align(mlp(0), broken)


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(AnatomyError, match="example inputs"):
        align(Network.of(nn.Linear(4, 3)), Network.of(nn.Linear(4, 3)))


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"starts": 0}, {"rounds": 1.5}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"ByWeights.{next(iter(settings))}"):
        ByWeights(**settings)


def test_one_example_says_nothing_about_correlations() -> None:
    with pytest.raises(InputError, match="at least 2"):
        align(mlp(0), mlp(1), ByActivations(torch.ones(1, 4)))


def test_units_that_never_change_are_matched_without_nan() -> None:
    a, b = mlp(0), mlp(1)
    found = align(a, b, ByActivations(torch.ones(8, 4)))
    assert all(value == 0.0 for value in found.correlation.values())
    assert torch.isfinite(found.network.weights["0.weight"]).all()


def test_the_result_says_what_came_of_it() -> None:
    found: Aligned = align(mlp(0), shuffled(mlp(0), 1))
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["distance_after"] == 0.0 and plain["moved"] == found.moved > 0
    assert sorted(plain["permutations"]["0"]) == list(range(6))
    assert [entry["name"] for entry in plain["symmetries"]["found"]] == ["0", "2"]
    assert "2 symmetries" in found.verdict and found.cost.seconds > 0 and found.cost.multiply_adds > 0
