"""Sites: kinds, layers, rankings; the counting of doses is a law."""

from __future__ import annotations

import pytest
import torch

from cases import NETWORKS
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import AnatomyError, InputError
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import Dose, RandomEntries, RandomUnits, RankedUnits, rank


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
