"""Delta rules give what brute force gives: the network with one unit's weights zeroed, run as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NETWORKS, randomise
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.scores import ACCURACY, Score
from planaria.sweep import delta
from planaria.sweep.chain import Chain, Step
from planaria.sweep.delta import delta_cost, delta_units, deltable, silenced
from planaria.sweep.tally import Judge, Tally

LOSS = Score(
    "loss",
    lambda outputs, targets: -float(nn.functional.cross_entropy(outputs, targets)),
    per_example=lambda outputs, targets: -nn.functional.cross_entropy(outputs, targets, reduction="none"),
)


def made(*layers: nn.Module, shape: Sequence[int], seed: int = 0) -> Network:
    """Network of these layers with random weights."""
    module = nn.Sequential(*layers)
    randomise(module, seed)
    return Network.of(module, drawn(3, *shape))


def drawn(count: int, *shape: int, name: str = "inputs") -> Tensor:
    return torch.randn(count, *shape, generator=stream(3, name))


def chain_of(net: Network) -> Chain:
    chain = Chain.of(net)
    assert isinstance(chain, Chain), chain
    return chain


def brute(net: Network, layer: str, inputs: Tensor) -> Tensor:
    """Outputs [units, examples, ...] of the network with each unit's weights zeroed."""
    anatomy = Anatomy.of(net)
    (group,) = anatomy.select(layers=[layer])
    outputs = []
    for index in range(group.count):
        slices = anatomy.entries([Unit(layer, index)])
        incoming = {**slices.incoming, **slices.scale, **slices.shift}
        outputs.append(silence(net, slices.outgoing if group.exact_by == "outgoing" else incoming)(inputs))
    return torch.stack(outputs).detach()


def ours(chain: Chain, layer: str, inputs: Tensor) -> Tensor:
    """The same by the delta rule, put together from the blocks; each pair must be in exactly one."""
    made = next(stage.made for stage in chain.stages if stage.layer == layer)
    outputs = chain(inputs)
    found = torch.full((made, *outputs.shape), math.pi, dtype=outputs.dtype)
    times = torch.zeros(made, len(inputs), dtype=torch.int64)
    for block in silenced(chain, [layer], inputs):
        assert block.layer == layer and block.outputs.shape == (len(block.units), *block.intact.shape)
        found[block.units, block.examples] = block.outputs
        times[block.units, block.examples] += 1
    assert bool((times == 1).all())
    return found


def same(theirs: Tensor, found: Tensor, tolerance: float = 2e-5) -> None:
    """Equal up to rounding, numbers that are not finite at the same places."""
    assert theirs.shape == found.shape
    finite = theirs.isfinite()
    assert torch.equal(finite, found.isfinite())
    scale = float(theirs[finite].abs().max()) if bool(finite.any()) else 1.0
    assert float((theirs - found)[finite].abs().max() if bool(finite.any()) else 0.0) <= tolerance * scale


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for read, width in pairwise(widths):
        layers += [nn.Linear(read, width, bias=bias), act()]
    return layers[:-1]


CHAINS = {name: case for name, case in NETWORKS.items() if isinstance(Chain.of(case.network()), Chain)}


@pytest.mark.parametrize("name", CHAINS)
def test_every_chain_among_the_cases_is_as_by_brute_force(name: str) -> None:
    case = CHAINS[name]
    net, inputs = case.network(), case.inputs(9, "delta")
    chain = chain_of(net)
    layers = [stage.layer for stage in chain.stages[:-1] if stage.layer]
    for layer in layers:
        assert deltable(chain, layer) == ""
        same(brute(net, layer, inputs), ours(chain, layer, inputs), 1e-12 if case.double else 2e-5)


ACTS = st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.SiLU, nn.Hardtanh])


@settings(deadline=None, max_examples=30)
@given(
    widths=st.lists(st.integers(1, 9), min_size=3, max_size=5),
    act=ACTS,
    bias=st.booleans(),
    count=st.sampled_from([1, 2, 13]),
    normed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_perceptrons_are_as_by_brute_force(
    widths: list[int], act: Callable[[], nn.Module], bias: bool, count: int, normed: bool, seed: int
) -> None:
    layers = mlp(*widths, act=act, bias=bias)
    if normed:
        layers.insert(1, nn.BatchNorm1d(widths[1]))
    net = made(*layers, shape=[widths[0]], seed=seed)
    chain = chain_of(net)
    inputs = drawn(count, widths[0], name=str(seed))
    for stage in chain.stages[:-1]:
        same(brute(net, stage.layer, inputs), ours(chain, stage.layer, inputs), 1e-4)


POOLS = st.sampled_from(
    [
        lambda: nn.MaxPool2d(2),
        lambda: nn.AvgPool2d(2, padding=1),
        lambda: nn.MaxPool2d(3, stride=1, padding=1),
        lambda: nn.AdaptiveAvgPool2d(2),
        lambda: nn.AdaptiveMaxPool2d(2),
        nn.Identity,
    ]
)


@settings(deadline=None, max_examples=30)
@given(
    maps=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    act=ACTS,
    pool=POOLS,
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.sampled_from([1, 2]),
    bias=st.booleans(),
    normed=st.booleans(),
    hidden=st.sampled_from([0, 1, 5]),
    count=st.sampled_from([1, 6]),
    seed=st.integers(0, 99),
)
def test_random_convolutional_networks_are_as_by_brute_force(
    maps: list[int],
    act: Callable[[], nn.Module],
    pool: Callable[[], nn.Module],
    kernel: int,
    stride: int,
    bias: bool,
    normed: bool,
    hidden: int,
    count: int,
    seed: int,
) -> None:
    layers: list[nn.Module] = []
    for at, (read, width) in enumerate(pairwise(maps)):
        layers.append(nn.Conv2d(read, width, kernel, stride=stride if at else 1, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(width)] if normed else []
        layers += [act(), pool()] if not at else [act()]
    layers += [nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten()]
    layers += [nn.Linear(2 * maps[-1], hidden, bias=bias), act()] if hidden else []
    layers.append(nn.Linear(hidden or 2 * maps[-1], 3))
    net = made(*layers, shape=[maps[0], 6, 5], seed=seed)
    chain = chain_of(net)
    inputs = drawn(count, maps[0], 6, 5, name=str(seed))
    for stage in chain.stages[:-1]:
        same(brute(net, stage.layer, inputs), ours(chain, stage.layer, inputs), 1e-4)


def test_one_dimensional_and_outputs_with_places_are_as_by_brute_force() -> None:
    line = made(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 3), nn.Tanh(), nn.Conv1d(3, 2, 1), shape=[2, 9])
    solid = made(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Conv3d(3, 2, 2), nn.ReLU(), nn.Conv3d(2, 2, 1), shape=[1, 4, 4, 4])
    image = made(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), shape=[1, 8, 8])
    for net, shape in ((line, (2, 9)), (solid, (1, 4, 4, 4)), (image, (1, 8, 8))):
        chain, inputs = chain_of(net), drawn(5, *shape)
        for stage in chain.stages[:-1]:
            same(brute(net, stage.layer, inputs), ours(chain, stage.layer, inputs))


NETS: dict[str, Callable[[], tuple[Network, Tensor]]] = {
    "perceptron": lambda: (made(*mlp(6, 9, 8, 4), shape=[6]), drawn(40, 6)),
    "convolutional": lambda: (
        made(
            *[nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Flatten(), *mlp(24, 7, 4)],
            shape=[1, 8, 8],
        ),
        drawn(40, 1, 8, 8),
    ),
}


@pytest.fixture(params=NETS)
def named(request: pytest.FixtureRequest) -> tuple[Network, Tensor]:
    return NETS[request.param]()


def layers_of(chain: Chain) -> list[str]:
    return [stage.layer for stage in chain.stages[:-1]]


@pytest.mark.parametrize("size", [1, 7, 60, 1000])
def test_the_size_of_blocks_changes_nothing(
    named: tuple[Network, Tensor], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, inputs = named
    chain = chain_of(net)
    monkeypatch.setattr(delta, "_EXAMPLES", max(1, size // 8))
    monkeypatch.setattr(delta, "_READ", size)
    monkeypatch.setattr(delta, "_MADE", size)
    monkeypatch.setattr(delta, "_HELD", 8 * size)
    for layer in layers_of(chain):
        same(brute(net, layer, inputs), ours(chain, layer, inputs))


@pytest.mark.parametrize("score", [ACCURACY, LOSS], ids=str)
@pytest.mark.parametrize("classes", [None, 4])
def test_tallies_are_those_of_brute_force(named: tuple[Network, Tensor], score: Score, classes: int | None) -> None:
    net, inputs = named
    chain, judge = chain_of(net), Judge(score, classes)
    targets = torch.arange(len(inputs)) % 4
    found = delta_units(chain, layers_of(chain), inputs, targets, judge)
    intact = judge.values(net(inputs), targets)
    assert list(found) == layers_of(chain)
    for layer, tally in found.items():
        outputs = brute(net, layer, inputs)
        wanted = Tally.zeros((len(outputs),), classes)
        for unit, values in enumerate(outputs):
            wanted.note(unit, judge.values(values, targets), intact, targets)
        assert torch.allclose(tally.total, wanted.total, atol=1e-4)
        assert torch.allclose(tally.squares, wanted.squares, atol=1e-4)
        if score is ACCURACY:
            assert torch.equal(tally.rose, wanted.rose) and torch.equal(tally.fell, wanted.fell)
        assert (tally.by_class is None) == (classes is None)
        if tally.by_class is not None and wanted.by_class is not None:
            assert torch.allclose(tally.by_class, wanted.by_class, atol=1e-4)
            assert torch.allclose(tally.by_class.sum(1), tally.total)


def test_tallies_of_parts_add_up_to_those_of_the_whole(named: tuple[Network, Tensor]) -> None:
    net, inputs = named
    chain, judge, targets = chain_of(net), Judge(ACCURACY, 4), torch.arange(len(inputs)) % 4
    layers = layers_of(chain)
    whole = delta_units(chain, layers, inputs, targets, judge)
    parts = [delta_units(chain, layers, inputs[part], targets[part], judge) for part in (slice(13), slice(13, None))]
    for layer in layers:
        both = parts[0][layer] + parts[1][layer]
        assert torch.equal(both.total, whole[layer].total) and torch.equal(both.fell, whole[layer].fell)


def test_nothing_that_is_given_is_changed(named: tuple[Network, Tensor]) -> None:
    net, inputs = named
    weights, before = {name: tensor.clone() for name, tensor in net.weights.items()}, inputs.clone()
    intact = net(inputs)
    chain = chain_of(net)
    for block in silenced(chain, layers_of(chain), inputs):
        assert torch.allclose(block.intact, intact[block.examples], atol=1e-4)
        assert not block.outputs.requires_grad
    assert torch.equal(inputs, before) and all(torch.equal(net.weights[name], weights[name]) for name in weights)


def test_a_unit_that_is_zero_on_an_input_is_left_out_there() -> None:
    net = made(*mlp(6, 5, 4, 3), shape=[6])
    dead = torch.zeros(5)
    dead[1] = -100.0
    net = net.with_weights({"0.bias": net.weights["0.bias"] + dead})
    chain, inputs = chain_of(net), drawn(30, 6)
    silent = (chain.run(inputs)[1] == 0).T
    left_out = torch.ones(5, 30, dtype=torch.bool)
    for block in silenced(chain, ["0"], inputs):
        assert block.pairs is not None
        left_out.view(-1)[block.pairs] = False
    assert torch.equal(left_out, silent) and bool(silent[1].all())
    judge, targets = Judge(ACCURACY), torch.zeros(30).long()
    tally = delta_units(chain, ["0"], inputs, targets, judge)["0"]
    assert tally.total[1] == tally.rose[1] == tally.fell[1] == 0


def test_all_units_may_be_dead() -> None:
    for net, inputs in (make() for make in NETS.values()):
        net = net.with_weights({"0.bias": net.weights["0.bias"] - 1000})
        chain = chain_of(net)
        same(brute(net, "0", inputs), ours(chain, "0", inputs))
        tally = delta_units(chain, ["0"], inputs, torch.zeros(len(inputs)).long(), Judge(LOSS))["0"]
        assert not bool(tally.total.any())


@pytest.mark.parametrize("size", [1e6, 1e20])
def test_a_unit_that_outweighs_all_others_leaves_their_digits(
    named: tuple[Network, Tensor], size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, inputs = named
    factor = torch.ones(net.weights["0.weight"].shape[0], *[1] * (net.weights["0.weight"].ndim - 1))
    factor[2] = size
    net = net.with_weights({"0.weight": net.weights["0.weight"] * factor})
    chain = chain_of(net)
    theirs, found = brute(net, "0", inputs), ours(chain, "0", inputs)
    same(theirs[2], found[2])  # without it, outputs are small again
    same(theirs, found)
    monkeypatch.setattr(delta, "_HELD", 1)
    monkeypatch.setattr(delta, "_MADE", 1)
    same(theirs[2], ours(chain, "0", inputs)[2])


def test_a_single_unit_without_bias_leaves_exact_zeros() -> None:
    net = made(*mlp(4, 1, 1, 3, bias=False, act=nn.Tanh), shape=[4])
    chain = chain_of(net)
    assert not bool(ours(chain, "0", drawn(5, 4)).any()) and not bool(ours(chain, "2", drawn(5, 4)).any())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_inputs_that_are_not_finite_are_as_by_brute_force(named: tuple[Network, Tensor], bad: float) -> None:
    net, inputs = named
    inputs = inputs.clone()
    inputs[3].view(-1)[2] = bad
    chain, targets = chain_of(net), torch.arange(len(inputs)) % 4
    for layer in layers_of(chain):
        theirs, found = brute(net, layer, inputs), ours(chain, layer, inputs)
        others = torch.arange(len(inputs)) != 3
        same(theirs[:, others], found[:, others])
        assert torch.equal(theirs[:, 3].isfinite().all(-1), found[:, 3].isfinite().all(-1))
    judge = Judge(ACCURACY)
    tally = delta_units(chain, layers_of(chain), inputs, targets, judge)
    intact = judge.values(net(inputs), targets)
    for layer, found_there in tally.items():
        wanted = [judge.values(outputs, targets) - intact for outputs in brute(net, layer, inputs)]
        assert torch.equal(found_there.total, torch.stack(wanted).sum(1))


def with_infinite_unit(net: Network) -> Chain:
    """The network's chain with an infinite bias for unit 1 of its first layer."""
    first, *others = chain_of(net).stages
    assert first.shift is not None
    shift = first.shift.clone()
    shift[1] = math.inf
    return Chain((), (replace(first, shift=shift), *others))


def test_a_unit_that_is_infinite_can_be_deleted() -> None:
    net = made(*mlp(4, 3, 3, 2), shape=[4])
    chain, inputs = with_infinite_unit(net), drawn(6, 4)
    found = ours(chain, "0", inputs)
    same(brute(net, "0", inputs)[1], found[1])
    assert not bool(chain(inputs).isfinite().any())
    targets = brute(net, "0", inputs)[1].argmax(1)  # all right without the unit, all wrong with it
    tally = delta_units(chain, ["0"], inputs, targets, Judge(ACCURACY))["0"]
    assert int(tally.rose[1]) == 6 and not bool(tally.fell.any())


def test_an_infinite_loss_is_as_undefined_as_by_brute_force() -> None:
    net, inputs = NETS["perceptron"]()
    inputs = inputs.clone()
    inputs[0, 0] = math.nan
    tally = delta_units(chain_of(net), ["0"], inputs, torch.zeros(len(inputs)).long(), Judge(LOSS))["0"]
    assert bool(tally.total.isnan().all())


def test_an_infinite_loss_is_undefined_for_dead_units_too() -> None:
    net = made(*mlp(4, 3, 3, 2), shape=[4])
    net = net.with_weights({"0.bias": torch.tensor([-100.0, 0.0, 100.0])})
    *others, last = chain_of(net).stages
    assert last.shift is not None
    chain = Chain((), (*others, replace(last, shift=torch.tensor([math.inf, 0.0]))))
    tally = delta_units(chain, ["0"], drawn(6, 4), torch.ones(6).long(), Judge(LOSS))["0"]
    assert bool(tally.total.isnan().all())


def test_one_class_and_one_example_are_enough() -> None:
    net = made(*mlp(3, 4, 1), shape=[3])
    tally = delta_units(chain_of(net), ["0"], drawn(1, 3), torch.zeros(1).long(), Judge(ACCURACY, 1))["0"]
    assert tally.total.tolist() == [0.0] * 4 and tally.by_class is not None and tally.by_class.shape == (4, 1)


def test_no_inputs_and_no_layers_make_no_blocks() -> None:
    net, inputs = NETS["perceptron"]()
    chain = chain_of(net)
    assert not list(silenced(chain, [], inputs)) and not list(silenced(chain, ["0"], inputs[:0]))
    tally = delta_units(chain, ["0"], inputs[:0], torch.zeros(0).long(), Judge(ACCURACY))["0"]
    assert tally.total.tolist() == [0.0] * 9


def test_a_layer_that_is_named_twice_counts_once() -> None:
    net, inputs = NETS["perceptron"]()
    chain, targets = chain_of(net), torch.arange(len(inputs)) % 4
    once, twice = (delta_units(chain, ["0"] * times, inputs, targets, Judge(LOSS))["0"] for times in (1, 2))
    assert torch.equal(once.total, twice.total)


def test_it_says_why_there_is_no_rule() -> None:
    chain = chain_of(NETS["perceptron"]()[0])
    assert "no product" in deltable(chain, "nowhere") and "no product" in deltable(chain, "")
    stages = list(chain.stages)
    for value in (0.5, math.nan):
        stages[0] = replace(stages[0], silent=value)
        assert "not 0" in deltable(Chain(chain.entry, tuple(stages)), "0")
    stages[0] = replace(stages[0], layer="2")
    assert "several" in deltable(Chain(chain.entry, tuple(stages)), "2")
    with pytest.raises(InputError, match="nowhere"):
        next(silenced(chain, ["nowhere"], drawn(2, 6)))
    with pytest.raises(InputError, match="nowhere"):
        delta_units(chain, ["nowhere"], drawn(2, 6), torch.zeros(2).long(), Judge(ACCURACY))


def test_a_softmax_between_a_unit_and_its_reader_has_no_rule() -> None:
    net = made(nn.Linear(4, 3), nn.Softmax(-1), nn.Linear(3, 2), shape=[4])
    chain = Chain.of(net)
    if isinstance(chain, Chain):
        assert all(deltable(chain, stage.layer) for stage in chain.stages)


def test_the_cost_counts_the_contributions_and_what_lies_behind() -> None:
    net, inputs = NETS["perceptron"]()
    assert delta_cost(chain_of(net), "0", inputs) == 9 * 8 + 9 * 8 * 4
    assert delta_cost(chain_of(net), "2", inputs) == 8 * 4
    net, inputs = NETS["convolutional"]()
    behind = 24 * 7 + 7 * 4
    assert delta_cost(chain_of(net), "0", inputs) == 4 * 4 * 6 * 5 * 9 + 5 * behind
    assert delta_cost(chain_of(net), "3", inputs) == 24 * 7 + 6 * 7 * 4


@pytest.mark.parametrize(
    ("pool", "windows"),
    [
        (nn.MaxPool2d(2), (2, 2)),
        (nn.MaxPool2d((3, 2)), (3, 2)),
        (nn.AdaptiveMaxPool2d(2), None),
        (nn.MaxPool2d(2, stride=1), None),
        (nn.MaxPool2d(2, stride=2, padding=1), None),
        (nn.MaxPool2d(2, dilation=2, stride=2), None),
        (nn.MaxPool2d(4), None),
        (nn.AvgPool2d(2), None),
    ],
    ids=str,
)
def test_only_windows_side_by_side_are_pooled_the_short_way(pool: nn.Module, windows: tuple[int, int] | None) -> None:
    x = drawn(3, 5, 6, 6)
    x[0, 0, 0, 0], x[1, 1, 5, 5] = math.nan, -math.inf
    step = Step("max_pool2d_with_indices" if isinstance(pool, nn.MaxPool2d) else "pool", pool, False)
    assert delta._windows(step, 6, 6) == windows
    if windows is not None:
        assert torch.equal(delta._largest(x, windows).nan_to_num(7.0), pool(x).nan_to_num(7.0))
