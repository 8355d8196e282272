"""Law: a unit silenced by its weights is a unit whose activation is gated, in every network of the table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase
from planaria.core.anatomy import Anatomy, Group, Unit, silence
from planaria.core.errors import AnatomyError, InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Entries, either

ALL = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
LAYERS = [(name, layer) for name, case in NETWORKS.items() for layer in case.units]
EVERY_LAYER = pytest.mark.parametrize(("name", "layer"), LAYERS, ids=lambda word: word)
TOLERANCE = 1e-5


def group_of(case: NetworkCase, layer: str) -> Group:
    found = {group.layer: group for group in Anatomy.of(case.network()).groups}
    assert layer in found, f"{layer} has no units; found {sorted(found)}"
    return found[layer]


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def shaken(net: Network, entries: Entries, seed: int) -> Network:
    """Large random numbers in the selected entries, pins or no pins."""
    rng = stream(seed, "shake")
    return net.with_weights(
        {
            name: torch.where(hit, 3 * torch.randn(hit.shape, generator=rng).to(net.weights[name]), net.weights[name])
            for name, hit in entries.items()
        }
    )


@ALL
def test_every_layer_has_the_units_it_should_have(case: NetworkCase) -> None:
    found = {group.layer: (group.count, group.kind, group.exact_by) for group in Anatomy.of(case.network()).groups}
    assert found == case.units


@ALL
def test_what_is_not_reached_is_named_with_a_reason(case: NetworkCase) -> None:
    unreached = Anatomy.of(case.network()).unreached
    assert {layer: bool(unreached.get(layer)) for layer in case.unreached} == dict.fromkeys(case.unreached, True)
    assert not set(unreached) & set(case.units), "a layer has units and a reason why it has none"


@ALL
def test_every_weight_is_owned_or_its_layer_is_named(case: NetworkCase) -> None:
    net = case.network()
    anatomy = Anatomy.of(net)
    owned = set(anatomy.entries(anatomy.units()).all)
    normalising = {
        f"{name}.{parameter}"
        for name, module in net.module.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm))
        for parameter, _ in module.named_parameters(recurse=False)
    }
    for name in set(net.weights) - owned - normalising:
        layers = {name, name.rpartition(".")[0], *(name.removesuffix(end) for end in (".weight", ".bias"))}
        assert layers & (set(anatomy.unreached) | set(case.units) | set(case.taps)), f"{name} is passed over"


@ALL
def test_silencing_by_weights_equals_gating_the_activation(case: NetworkCase) -> None:
    net = case.network()
    checks = Anatomy.of(net).verify(net)
    assert {check.layer: check.units for check in checks} == {
        layer: count for layer, (count, _, _) in case.units.items()
    }


@ALL
def test_it_holds_for_other_inputs_and_other_weights_too(case: NetworkCase) -> None:
    net = case.network()
    rng = stream(case.seed, "other weights")
    other = net.with_weights(
        {
            name: w + 0.3 * torch.randn(w.shape, generator=rng).to(w)
            for name, w in net.weights.items()
            if "tap_" not in name
        }
    )
    Anatomy.of(net).verify(other, case.inputs(5, "other inputs"))


@EVERY_LAYER
def test_silencing_a_unit_changes_the_output_at_all(name: str, layer: str) -> None:
    case = NETWORKS[name]
    net, inputs = case.network(), case.inputs(8, "many")
    anatomy, group = Anatomy.of(net), group_of(case, layer)
    changes = [
        apart(net(inputs), silence(net, anatomy.entries([Unit(layer, index)]).all)(inputs))
        for index in range(group.count)
    ]
    assert max(changes) > 1e-3


@EVERY_LAYER
def test_each_side_that_is_called_exact_silences_alone(name: str, layer: str) -> None:
    case = NETWORKS[name]
    net, inputs = case.network(), case.inputs(5, "many")
    anatomy, group = Anatomy.of(net), group_of(case, layer)
    scale = float(net(inputs).abs().max())
    for index in range(group.count):
        slices = anatomy.entries([Unit(layer, index)])
        wholly = silence(net, slices.all)(inputs)
        inside = either(either(slices.incoming, slices.scale), slices.shift)
        sides = {"outgoing": slices.outgoing, "incoming": inside}
        for side in sides if group.exact_by == "both" else [group.exact_by]:
            assert apart(silence(net, sides[side])(inputs), wholly) <= TOLERANCE * scale


@EVERY_LAYER
def test_nothing_done_to_a_silenced_unit_changes_any_output(name: str, layer: str) -> None:
    case = NETWORKS[name]
    net, inputs = case.network(), case.inputs(5, "many")
    anatomy, group = Anatomy.of(net), group_of(case, layer)
    scale = float(net(inputs).abs().max())
    units = [Unit(layer, index) for index in range(0, group.count, 2)]
    slices = anatomy.entries(units)
    dead = silence(net, slices.all)
    outputs = dead(inputs)
    if group.exact_by in {"outgoing", "both"}:
        inside = either(either(slices.incoming, slices.scale), slices.shift)
        assert apart(shaken(dead, inside, 1)(inputs), outputs) <= TOLERANCE * scale
    if group.exact_by in {"incoming", "both"}:
        own_side = shaken(dead, slices.outgoing, 2)
        # An edge between two units of one layer lies on both sides; inside it must stay silent.
        inside = either(either(slices.incoming, slices.scale), slices.shift)
        assert apart(silence(own_side, inside)(inputs), outputs) <= TOLERANCE * scale


@EVERY_LAYER
def test_units_do_not_share_entries_of_one_role(name: str, layer: str) -> None:
    case = NETWORKS[name]
    anatomy, group = Anatomy.of(case.network()), group_of(case, layer)
    for role in ("incoming", "scale", "shift", "outgoing"):
        counted: dict[str, Tensor] = {}
        for index in range(group.count):
            for weight, hit in getattr(anatomy.entries([Unit(layer, index)]), role).items():
                counted[weight] = counted.get(weight, torch.zeros_like(hit, dtype=torch.long)) + hit
        assert all(int(count.max()) == 1 for count in counted.values())


# The truth by another road: PyTorch's own hooks on the module whose output is the activation.
ACTIVATIONS = [
    ("mlp-relu", "0", "1"),
    ("mlp-sigmoid", "2", "3"),
    ("mlp-gelu-no-bias", "0", "1"),
    ("mlp-norms", "0", "2"),
    ("mlp-norms", "3", "5"),
    ("mlp-norms", "6", "8"),
    ("cnn-batchnorm", "0", "2"),
    ("cnn-batchnorm", "4", "6"),
    ("cnn-depthwise", "0", "1"),
    ("cnn-depthwise", "2", "3"),
    ("cnn-depthwise", "4", "5"),
    ("conv1d", "3", "4"),
    ("deconv-groupnorm", "0", "2"),
    ("deconv-groupnorm", "3", "5"),
    ("transformer-post-norm", "encoder.layers.0.linear1", "encoder.layers.0.dropout"),
    ("transformer-pre-norm", "encoder.layers.1.linear1", "encoder.layers.1.dropout"),
    ("residual", "conv2", "bn2"),
    ("residual", "down", "bn3"),
    ("dropout", "0", "2"),
    ("lstm-tapped", "rnn", "rnn"),
    ("gru-tapped", "rnn", "rnn"),
    ("tokens-wise", "0", "1"),
]


@pytest.mark.parametrize(("name", "layer", "activation"), ACTIVATIONS, ids=lambda word: word)
def test_silencing_equals_a_forward_hook_that_zeroes_the_activation(name: str, layer: str, activation: str) -> None:
    case = NETWORKS[name]
    net, inputs = case.network(), case.inputs(5, "many")
    anatomy, group = Anatomy.of(net), group_of(case, layer)
    for index in range(group.count):
        model = net.to_module()

        def gate(module: nn.Module, args: object, output: object, index: int = index) -> object:
            del module, args
            first = output[0] if isinstance(output, tuple) else output
            assert isinstance(first, Tensor)
            gated = first.clone()
            (gated.movedim(1, 0) if first.ndim >= 3 and group.kind in {"channel", "branch"} else gated.movedim(-1, 0))[
                index
            ] = 0
            return (gated, *output[1:]) if isinstance(output, tuple) else gated

        model.get_submodule(activation).register_forward_hook(gate)
        with torch.no_grad():
            wanted = model(inputs)
        silenced = silence(net, anatomy.entries([Unit(layer, index)]).all)(inputs)
        assert apart(silenced, wanted) <= TOLERANCE * float(wanted.abs().max())


@pytest.mark.parametrize(
    ("name", "layer", "reader"),
    [
        ("attention-separate", "attention", "o.weight"),
        ("transformer-post-norm", "encoder.layers.0.self_attn", "encoder.layers.0.self_attn.out_proj.weight"),
    ],
)
def test_a_head_is_a_slice_of_the_output_projections_input(name: str, layer: str, reader: str) -> None:
    case = NETWORKS[name]
    net, inputs = case.network(), case.inputs(5, "many")
    anatomy, group = Anatomy.of(net), group_of(case, layer)
    width = net.weights[reader].shape[1] // group.count
    for index in range(group.count):
        columns = torch.zeros_like(net.weights[reader], dtype=torch.bool)
        columns[:, index * width : (index + 1) * width] = True
        slices = anatomy.entries([Unit(layer, index)])
        assert list(slices.outgoing) == [reader]
        assert torch.equal(slices.outgoing[reader], columns)
        wanted = silence(net, {reader: columns})(inputs)
        assert apart(silence(net, slices.all)(inputs), wanted) <= TOLERANCE * float(wanted.abs().max())


def test_heads_own_their_rows_of_queries_keys_and_values() -> None:
    for name, layer in (
        ("transformer-pre-norm", "encoder.layers.1.self_attn"),
        ("attention-separate", "attention"),
        ("attention-stacked", "attention"),
    ):
        anatomy = Anatomy.of(NETWORKS[name].network())
        whole = anatomy.entries([Unit(layer, index) for index in range(group_of(NETWORKS[name], layer).count)])
        one = anatomy.entries([Unit(layer, 0)])
        assert whole.incoming, f"{name}: no rows of queries, keys and values"
        owned, mine = either(whole.incoming, whole.shift), either(one.incoming, one.shift)
        for weight, hit in owned.items():
            assert bool(hit.all()), f"{name}: {weight} is owned in part"
            count = group_of(NETWORKS[name], layer).count
            assert int(mine[weight].sum()) * count == hit.numel()


@ALL
def test_any_set_of_units_is_silenced_together_as_one_after_another(case: NetworkCase) -> None:
    net, inputs = case.network(), case.inputs(4, "many")
    anatomy = Anatomy.of(net)
    scale = float(net(inputs).abs().max())

    @settings(max_examples=5, deadline=None)
    @given(st.sets(st.sampled_from(anatomy.units()), min_size=1))
    def check(units: set[Unit]) -> None:
        together = silence(net, anatomy.entries(units).all)
        one_by_one = net
        for unit in sorted(units):
            one_by_one = silence(one_by_one, anatomy.entries([unit]).all)
        assert apart(together(inputs), one_by_one(inputs)) <= TOLERANCE * scale
        states = anatomy.dead(together)
        assert {Unit(layer, int(i)) for layer, dead in states.items() for i in dead.nonzero().flatten()} >= units

    check()


@ALL
def test_nothing_is_dead_in_an_intact_network_and_everything_is_when_all_is_silenced(
    case: NetworkCase,
) -> None:
    net = case.network()
    anatomy = Anatomy.of(net)
    assert set(anatomy.living(net)) == set(anatomy.units())
    assert anatomy.living(silence(net, anatomy.entries(anatomy.units()).all)) == ()


@pytest.mark.parametrize("role", ["incoming", "outgoing"])
def test_verify_fails_when_the_anatomy_is_wrong(role: str) -> None:
    net = NETWORKS["mlp-sigmoid" if role == "outgoing" else "residual"].network()
    anatomy = Anatomy.of(net)
    at = next(i for i, group in enumerate(anatomy.groups) if group.exact_by == role)
    group = anatomy.groups[at]
    tampered = {
        kind: {
            name: owner.roll(1, 1 if kind == "outgoing" else 0) if kind == role else owner
            for name, owner in owners.items()
        }
        for kind, owners in group.owners.items()
    }
    groups = (*anatomy.groups[:at], replace(group, owners=tampered), *anatomy.groups[at + 1 :])
    with pytest.raises(AnatomyError, match=f"layer '{group.layer}'.*unit 0.*apart"):
        replace(anatomy, groups=groups).verify(net)


def test_verify_fails_for_inputs_that_take_another_way_through_the_network() -> None:
    case = NETWORKS["choosing"]
    net = case.network()
    other_way = case.inputs(5, "many") - 9.0
    with pytest.raises(AnatomyError, match=r"layer '(positive|negative)'"):
        Anatomy.of(net).verify(net, other_way)


def test_a_layer_without_units_is_refused_with_its_reason_and_a_remedy() -> None:
    anatomy = Anatomy.of(NETWORKS["mlp-relu"].network())
    with pytest.raises(AnatomyError, match=r"layer '4'.*outputs are the network's outputs.*tap"):
        anatomy.entries([Unit("4", 0)])
    with pytest.raises(AnatomyError, match=r"layer 'O'.*none of that name.*0, 2"):
        anatomy.entries([Unit("O", 0)])
    with pytest.raises(AnatomyError, match=r"Unit\('2', 5\).*an index below 5"):
        anatomy.entries([Unit("2", 5)])
    with pytest.raises(InputError, match=r"Unit\.index"):
        anatomy.entries([Unit("2", -1)])
