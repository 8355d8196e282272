"""Sites: kinds, layers, rankings; the counting of doses is a law."""

from __future__ import annotations

import pytest
import torch

from cases import NETWORKS, NetworkCase
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import AnatomyError, InputError
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import Dose, RandomEntries, RandomUnits, RankedUnits, rank, sizes


def layers_of(units: tuple[Unit, ...]) -> set[str]:
    return {unit.layer for unit in units}


def test_kinds_and_layers_narrow_a_site_down() -> None:
    net = NETWORKS["transformer-pre-norm"].network()
    rng = lambda: stream(0, "x")  # noqa: E731 - a fresh stream each time
    assert layers_of(RandomUnits(kinds=("head",)).units(net, 1.0, rng())) == {
        "encoder.layers.0.self_attn",
        "encoder.layers.1.self_attn",
    }
    one = ("encoder.layers.1.linear1",)
    assert layers_of(RandomUnits(layers=one).units(net, 1.0, rng())) == set(one)
    with pytest.raises(AnatomyError, match="units of kind channel"):
        RandomUnits(kinds=("channel",)).units(net, 1.0, rng())


def test_entries_are_narrowed_down_by_layer_or_weight_name() -> None:
    net = NETWORKS["mlp-relu"].network()
    for layers in (("2",), ("2.weight",)):
        assert set(RandomEntries(layers=layers).select(net, 1.0, stream(0, "x")).all) == {"2.weight"}
    with pytest.raises(InputError, match=r"RandomEntries\.layers"):
        RandomEntries(layers=("nowhere",)).select(net, 1.0, stream(0, "x"))
    with pytest.raises(InputError, match=r"RandomEntries\.layers.*nowhere"):
        RandomEntries(layers=("2", "nowhere")).select(net, 1.0, stream(0, "x"))


def test_a_ranking_is_followed_from_its_front() -> None:
    net = NETWORKS["mlp-relu"].network()
    order = (Unit("2", 4), Unit("0", 1), Unit("0", 6), Unit("2", 0))
    assert RankedUnits(order).units(net, 0.5, stream(0, "x")) == order[:2]
    assert RankedUnits(order, Dose("units")).units(net, 3, stream(0, "x")) == order[:3]
    assert set(RankedUnits(order, per_layer=True).units(net, 0.5, stream(0, "x"))) == {Unit("2", 4), Unit("0", 1)}


def test_a_given_lesion_is_a_ranking_at_dose_one() -> None:
    net = NETWORKS["mlp-relu"].network()
    anatomy = Anatomy.of(net)
    lesion = (Unit("0", 3), Unit("2", 2))
    hurt = Damage(Silence(), RankedUnits(lesion)).at(1.0)(net, stream(0, "x"))
    assert set(anatomy.units()) - set(anatomy.living(hurt)) == set(lesion)


def test_an_empty_ranking_hits_nothing() -> None:
    net = NETWORKS["mlp-relu"].network()
    assert Damage(Silence(), RankedUnits(())).at(1.0)(net, stream(0, "x")) is net


def test_ranks_go_by_relative_size_of_what_is_read() -> None:
    net = NETWORKS["mlp-relu"].network()
    weights = net.weights["2.weight"].clone()
    weights[:, 3] *= 50
    weights[:, 5] *= 0
    order = rank(net.with_weights({"2.weight": weights}))
    assert order[0] == Unit("0", 3)
    assert order[-1] == Unit("0", 5)
    assert layers_of(rank(net, layers=["2"])) == {"2"}


def test_ranks_compare_within_a_layer_so_that_scaling_a_layer_changes_nothing() -> None:
    net = NETWORKS["mlp-relu"].network()
    assert rank(net.with_weights({"2.weight": net.weights["2.weight"] * 100})) == rank(net)


def test_a_layer_of_zeros_can_be_ranked() -> None:
    net = NETWORKS["mlp-relu"].network()
    order = rank(net.with_weights({"2.weight": torch.zeros_like(net.weights["2.weight"])}))
    assert sorted(order) == sorted(rank(net))


def test_a_site_drawn_twice_under_one_stream_name_is_the_same() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    site = RandomUnits()
    assert site.units(net, 0.5, stream(3, "a")) == site.units(net, 0.5, stream(3, "a"))
    assert site.units(net, 0.5, stream(3, "a")) != site.units(net, 0.5, stream(4, "a"))


# ------------------------------------------------------------------------------------- sizes by activation


def test_sizes_with_inputs_are_mean_activation_times_outgoing_norm() -> None:
    case = NETWORKS["mlp-relu"]
    net, x = case.network(), case.inputs(70)
    hidden = torch.relu(x @ net.weights["0.weight"].T + net.weights["0.bias"])
    wanted = hidden.abs().mean(0) * net.weights["2.weight"].norm(dim=0)
    assert torch.allclose(sizes(net, inputs=x)["0"], wanted.double(), rtol=1e-5)
    assert rank(net, layers=["0"], inputs=x)[0] == Unit("0", int(wanted.argmax()))
    assert rank(net, layers=["0"], inputs=x) != rank(net, layers=["0"])


def test_sizes_of_feature_maps_are_means_over_positions_behind_their_normalisation() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net, x = case.network(), case.inputs(40)
    maps = net.to_module()[:3](x).detach()  # type: ignore[index]
    wanted = maps.abs().mean((0, 2, 3)) * net.weights["4.weight"].transpose(0, 1).flatten(1).norm(dim=1)
    assert torch.allclose(sizes(net, inputs=x)["0"], wanted.double(), rtol=1e-5)


@pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
def test_every_kind_of_unit_has_a_size_on_inputs_and_a_silent_one_none(case: NetworkCase) -> None:
    net = case.network()
    anatomy = Anatomy.of(net)
    found = sizes(net, anatomy.kinds, inputs=case.inputs(35))
    assert {layer: len(size) for layer, size in found.items()} == {g.layer: g.count for g in anatomy.groups}
    assert all(bool((size.isfinite() & (size >= 0)).all()) for size in found.values())
    first = anatomy.groups[0].layer
    silent = Damage(Silence(), RankedUnits((Unit(first, 0),))).at(1.0)(net, stream(0, "x"))
    assert float(sizes(silent, layers=[first], inputs=case.inputs(35))[first][0]) == 0
    assert sorted(rank(net, anatomy.kinds, inputs=case.inputs(3))) == sorted(anatomy.units())


def test_a_last_part_of_another_length_counts_as_much() -> None:
    case = NETWORKS["transformer-pre-norm"]
    net, x = case.network(), case.inputs(33)
    whole, first, last = (sizes(net, inputs=part) for part in (x, x[:32], x[32:]))
    for layer, size in whole.items():
        assert torch.allclose(size, (32 * first[layer] + last[layer]) / 33, rtol=1e-5)


def test_inputs_of_another_shape_are_refused_in_words() -> None:
    with pytest.raises(AnatomyError, match="runs on inputs of shape"):
        rank(NETWORKS["mlp-relu"].network(), inputs=torch.zeros(4, 5))
