"""Curves along nested orders against brute force: the network with those units silenced by their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NETWORKS, randomise
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.scores import ACCURACY, Score
from planaria.sweep import curve
from planaria.sweep.chain import Chain, Step
from planaria.sweep.curve import curvable, curves
from planaria.sweep.tally import Judge, Tally

TIE = 1e-4
"""Predictions count where brute force's two largest outputs differ by more than this times the largest |output|."""


def _weighed(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.flatten(1) @ torch.arange(1.0, 1.0 + outputs[0].numel(), dtype=outputs.dtype) + 0 * targets


WEIGHED = Score("weighed outputs", lambda y, t: float(_weighed(y, t).mean()), per_example=_weighed)
"""Sees every change of any output."""


def chained(net: Network) -> Chain:
    chain = Chain.of(net)
    assert isinstance(chain, Chain), chain
    return chain


def brute(net: Network, order: Sequence[Unit], count: int, inputs: Tensor) -> Tensor:
    """Outputs with the first units of an order silenced by their weights."""
    outputs: Tensor = (silence(net, Anatomy.of(net).entries(order[:count]).all) if count else net)(inputs)
    return outputs


def orders_of(
    net: Network, seed: int, number: int = 2, keep: float = 1.0, layers: Sequence[str] = ()
) -> list[list[Unit]]:
    """Random orders over units of the network, as many of each as `keep` says."""
    units = [unit for unit in Anatomy.of(net).units() if not layers or unit.layer in layers]
    length = max(1, round(keep * len(units)))
    found = []
    for at in range(number):
        places = torch.randperm(len(units), generator=stream(seed, "order", at)).tolist()
        found.append([units[place] for place in places[:length]])
    return found


def check(
    net: Network,
    orders: Sequence[Sequence[Unit]],
    counts: Sequence[int],
    inputs: Tensor,
    targets: Tensor,
    rows: Sequence[Tensor] | None = None,
) -> None:
    """Both a score that sees every output and the accuracy agree with brute force."""
    chain = chained(net)
    before = net.sha256
    smooth = curves(chain, orders, counts, inputs, targets, Judge(WEIGHED), rows=rows)
    counted = curves(chain, orders, counts, inputs, targets, Judge(ACCURACY, 3), rows=rows)
    assert net.sha256 == before
    assert smooth.total.shape == counted.fell.shape == (len(orders), len(counts))
    precision = 1e-9 if inputs.dtype == torch.float64 else 2e-4
    for o, order in enumerate(orders):
        x, y = (inputs, targets) if rows is None else (inputs[rows[o]], targets[rows[o]])
        intact = net(x)
        for c, count in enumerate(counts):
            outputs = brute(net, order, count, x)
            size = float(intact.abs().max() + outputs.abs().max()) * len(x) * 10 + 1e-30
            change = (_weighed(outputs, y) - _weighed(intact, y)).double()
            assert abs(float(smooth.total[o, c]) - float(change.sum())) <= precision * size
            top = outputs.topk(min(2, outputs.shape[1]), 1).values
            ties = int(((top[:, 0] - top[:, -1]) <= TIE * float(outputs.abs().max())).sum()) if top.shape[1] > 1 else 0
            was, now = ((out.argmax(1) == y) & out.isfinite().all(1) for out in (intact, outputs))
            assert abs(int(counted.rose[o, c]) - int((now & ~was).sum())) <= ties
            assert abs(int(counted.fell[o, c]) - int((was & ~now).sum())) <= ties
            assert abs(float(counted.total[o, c]) - (int(now.sum()) - int(was.sum()))) <= ties
            assert counted.by_class is not None
            assert float(counted.by_class[o, c].sum()) == float(counted.total[o, c])
            assert float(counted.squares[o, c]) == int(counted.rose[o, c]) + int(counted.fell[o, c])


def made(model: nn.Module, shape: Sequence[int], seed: int = 0, double: bool = True) -> Network:
    randomise(model, seed)
    model = model.double() if double else model
    example = torch.randn(2, *shape, generator=stream(seed, "example"), dtype=torch.float64 if double else None)
    return Network.of(model, example)


def data(net: Network, count: int, seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor]:
    assert net.inputs is not None
    rng = stream(seed, "data")
    x = torch.randn(count, *net.inputs.shape[1:], generator=rng, dtype=net.inputs.dtype)
    return x, torch.randint(classes, (count,), generator=rng)


ACTIVATIONS: list[Callable[[], nn.Module]] = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.Softplus]


@st.composite
def perceptrons(draw: st.DrawFn) -> Network:
    widths = draw(st.lists(st.integers(1, 7), min_size=2, max_size=5))
    bias, act = draw(st.booleans()), draw(st.sampled_from(ACTIVATIONS))
    layers: list[nn.Module] = []
    for read, wide in zip(widths, [*widths[1:], 3], strict=True):
        layers += [nn.Linear(read, wide, bias=bias), act()]
    return made(nn.Sequential(*layers[:-1]), [widths[0]], draw(st.integers(0, 99)), draw(st.booleans()))


@st.composite
def convolutional(draw: st.DrawFn) -> Network:
    act = draw(st.sampled_from(ACTIVATIONS[:5]))
    layers: list[nn.Module] = []
    channels, side = 2, 8
    for _ in range(draw(st.integers(1, 2))):
        wide, kernel, padding = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(0, 1))
        stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        if side + 2 * padding - dilation * (kernel - 1) < 2:
            continue
        layers.append(nn.Conv2d(channels, wide, kernel, stride, padding, dilation, bias=draw(st.booleans())))
        layers += [nn.BatchNorm2d(wide)] if draw(st.booleans()) else []
        layers.append(act())
        channels, side = wide, (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        pool = draw(st.sampled_from([None, nn.MaxPool2d, nn.AvgPool2d]))
        if pool is not None and side > 1:
            layers.append(pool(2))
            side //= 2
    if draw(st.booleans()):
        layers.append(nn.AdaptiveAvgPool2d(1))
        side = 1
    layers += [nn.Flatten(), nn.Linear(channels * side**2, 4), act(), nn.Linear(4, 3)]
    return made(nn.Sequential(*layers), [2, 8, 8], draw(st.integers(0, 99)), draw(st.booleans()))


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(net=st.one_of(perceptrons(), convolutional()), draw=st.data())
def test_any_order_in_any_chain_gives_what_brute_force_gives(
    net: Network, draw: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve, "WORK", draw.draw(st.sampled_from([1, 2**20])))  # 16 examples at a time, or many
    monkeypatch.setattr(curve, "SHARED", draw.draw(st.sampled_from([1, 2**28])))
    seed, keep = draw.draw(st.integers(0, 99)), draw.draw(st.sampled_from([0.5, 1.0]))
    names = [group.layer for group in Anatomy.of(net).groups]
    layers = draw.draw(st.lists(st.sampled_from(names), unique=True)) if draw.draw(st.booleans()) else []
    orders = orders_of(net, seed, keep=keep, layers=layers)
    counts = sorted(draw.draw(st.lists(st.integers(0, len(orders[0])), min_size=1, max_size=8)))
    x, y = data(net, draw.draw(st.sampled_from([1, 5, 40])), seed)
    rows = None
    if draw.draw(st.booleans()):
        rows = [torch.randperm(len(x), generator=stream(seed, "rows", o))[: max(1, len(x) // 2)] for o in range(2)]
    check(net, orders, counts, x, y, rows)


@pytest.mark.parametrize(
    "name", ["mlp-relu", "mlp-sigmoid", "mlp-gelu-no-bias", "cnn-batchnorm", "called-twice", "dropout", "double",
             "one-unit-per-layer", "log-softmax"]
)  # fmt: skip
def test_chains_of_the_table_are_followed_unit_by_unit(name: str) -> None:
    case = NETWORKS[name]
    net = case.network()
    layers = [stage.layer for stage in chained(net).stages if stage.layer]
    orders = orders_of(net, 1, layers=layers)
    x = case.inputs(30, "curve")
    check(net, orders, range(len(orders[0]) + 1), x, torch.arange(30) % 3)


def wide() -> Network:
    layers = [nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3)]
    return made(nn.Sequential(*layers), [20], 5, double=False)


def test_a_long_order_keeps_single_precision_to_its_last_points() -> None:
    net = wide()
    orders = orders_of(net, 3, number=3)
    x, y = data(net, 300)
    check(net, orders, [*range(0, 112, 3), 110, 111, 112], x, y)


def test_rounding_left_behind_by_a_loud_unit_dies_with_it() -> None:
    net = wide()
    weight = net.weights["2.weight"].clone()
    weight[:, 7] *= 1e6
    net = net.with_weights({"2.weight": weight})
    order = [Unit("0", 3), Unit("0", 7), *(Unit("0", index) for index in range(10, 40)), Unit("2", 1)]
    x, y = data(net, 100)
    counts = [2, 12, 33]
    # Intact outputs are a million times as large as damaged ones, so these are compared by what they predict.
    changes = curves(chained(net), [order], counts, x, y, Judge(ACCURACY)).total[0]
    was, *now = (int((brute(net, order, count, x).argmax(1) == y).sum()) for count in (0, *counts))
    assert changes.tolist() == [right - was for right in now]


def test_layers_may_die_one_after_the_other_from_either_end() -> None:
    net = wide()
    first, second = ([Unit(layer, index) for index in range(count)] for layer, count in (("0", 64), ("2", 48)))
    x, y = data(net, 50)
    check(net, [first + second, second + first], range(0, 113, 7), x, y)


def test_repeated_counts_repeat_and_zero_changes_nothing() -> None:
    net = wide()
    orders = orders_of(net, 3)
    x, y = data(net, 20)
    tally = curves(chained(net), orders, [0, 0, 5, 5, 112], x, y, Judge(ACCURACY))
    assert torch.equal(tally.total[:, 2], tally.total[:, 3])
    assert not tally.total[:, :2].any() and not tally.fell[:, :2].any() and not tally.squares[:, :2].any()


def test_units_already_dead_stay_dead() -> None:
    net = wide()
    dead = [Unit("0", index) for index in range(0, 64, 2)]
    net = silence(net, Anatomy.of(net).entries(dead).all)
    living = [unit for unit in orders_of(net, 4)[0] if unit not in dead]
    x, y = data(net, 30)
    check(net, [living], [1, 20, len(living)], x, y)


def test_a_silent_value_that_is_not_zero_is_what_the_readers_hear() -> None:
    net = made(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), [5])
    chain = chained(net)
    shifted = Step("add", lambda x: x + 0.5, True)
    first = replace(chain.stages[0], steps=(*chain.stages[0].steps, shifted), silent=0.5)
    chain = Chain(chain.entry, (first, *chain.stages[1:]))
    x, y = data(net, 20)
    order = orders_of(net, 0)[0]
    changes = curves(chain, [order], [4, 10], x, y, Judge(WEIGHED)).total[0]
    weights = net.weights
    for at, count in enumerate([4, 10]):
        silent = {layer: [unit.index for unit in order[:count] if unit.layer == layer] for layer in ("0", "2")}
        h = torch.relu(x @ weights["0.weight"].T + weights["0.bias"])
        h[:, silent["0"]] = 0
        k = torch.relu((h + 0.5) @ weights["2.weight"].T + weights["2.bias"])
        k[:, silent["2"]] = 0
        outputs = k @ weights["4.weight"].T + weights["4.bias"]
        assert float(changes[at]) == pytest.approx(float((_weighed(outputs, y) - _weighed(chain(x), y)).sum()))


def test_ties_fall_to_the_first_class_as_in_brute_force() -> None:
    net = made(nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False)), [4])
    order = orders_of(net, 0)[0]
    x, y = data(net, 60)
    tally = curves(chained(net), [order], [3], x, y, Judge(ACCURACY, 3))
    was = net(x).argmax(1) == y
    assert float(tally.total[0, 0]) == int((y == 0).sum()) - int(was.sum())
    assert tally.by_class is not None
    expected = [int((y == 0).sum()) * (c == 0) - int((was & (y == c)).sum()) for c in range(3)]
    assert tally.by_class[0, 0].tolist() == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_count_as_wrong_until_their_unit_dies(value: float) -> None:
    net = wide()
    bias = net.weights["2.bias"].clone()
    bias[5] = value
    net = replace(net, weights={**net.weights, "2.bias": bias})
    x, y = data(net, 40)
    order = [Unit("0", 1), Unit("2", 5), Unit("2", 6), Unit("0", 9)]
    chain = chained(wide())
    second = replace(chain.stages[1], shift=bias)
    chain = Chain(chain.entry, (chain.stages[0], second, chain.stages[2]))
    tally = curves(chain, [order], [1, 2, 4], x, y, Judge(ACCURACY))
    now = [int((brute(wide(), order, count, x).argmax(1) == y).sum()) for count in (2, 4)]
    assert tally.total[0].tolist() == [0, *now]


def test_labels_that_no_output_stands_for_are_wrong() -> None:
    net = wide()
    x, _ = data(net, 30)
    y = torch.arange(30) % 5 - 1
    order = orders_of(net, 2)[0]
    tally = curves(chained(net), [order], [60], x, y, Judge(ACCURACY))
    was, now = ((out.argmax(1) == y).sum() for out in (net(x), brute(net, order, 60, x)))
    assert float(tally.total[0, 0]) == int(now) - int(was)


def test_a_network_with_one_class_is_always_right() -> None:
    net = made(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), [4])
    x, _ = data(net, 10)
    tally = curves(chained(net), [orders_of(net, 0)[0]], [1, 3], x, torch.zeros(10, dtype=torch.long), Judge(ACCURACY))
    assert not tally.total.any() and not tally.rose.any()


def test_each_order_sees_its_own_rows_also_when_they_overlap() -> None:
    net = wide()
    orders = orders_of(net, 6, number=4)
    x, y = data(net, 50)
    rows = [torch.randperm(50, generator=stream(1, "rows", o))[:40] for o in range(3)] + [torch.tensor([49, 3])]
    check(net, orders, [0, 30, 80], x, y, rows)


def test_tallies_of_parts_add_up_to_the_tally_of_all() -> None:
    net = wide()
    orders = orders_of(net, 7)
    x, y = data(net, 41)
    judge, chain = Judge(ACCURACY, 3), chained(net)
    whole = curves(chain, orders, [10, 60], x, y, judge)
    parts = [curves(chain, orders, [10, 60], x[part], y[part], judge) for part in (slice(0, 7), slice(7, 41))]
    both: Tally = parts[0] + parts[1]
    assert torch.equal(both.total, whole.total) and torch.equal(both.fell, whole.fell)
    assert both.by_class is not None and whole.by_class is not None and torch.equal(both.by_class, whole.by_class)


def test_nothing_asked_is_nothing_counted() -> None:
    net = wide()
    x, y = data(net, 4)
    assert curves(chained(net), [], [0, 0], x, y, Judge(ACCURACY)).total.shape == (0, 2)
    assert curves(chained(net), [[]], [0], x, y, Judge(ACCURACY)).total.tolist() == [[0.0]]
    assert curves(chained(net), orders_of(net, 0), [3], x[:0], y[:0], Judge(ACCURACY)).total.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("order", "counts", "words"),
    [
        ([Unit("0", 0), Unit("0", 0)], [1], "twice"),
        ([Unit("0", 64)], [1], "below 64"),
        ([Unit("0", 1)], [2], "from 0 to 1"),
        ([Unit("0", 1)], [-1], "from 0 to 1"),
        ([Unit("4", 1)], [1], "makes no units"),
    ],
)
def test_orders_that_cannot_be_are_refused(order: list[Unit], counts: list[int], words: str) -> None:
    x, y = data(wide(), 4)
    with pytest.raises(InputError, match=words):
        curves(chained(wide()), [order], counts, x, y, Judge(ACCURACY))


def test_rows_must_be_one_set_for_each_order() -> None:
    x, y = data(wide(), 4)
    with pytest.raises(InputError, match="rows"):
        curves(chained(wide()), [[Unit("0", 1)]], [1], x, y, Judge(ACCURACY), rows=[])


def test_a_softmax_between_products_is_said_not_to_be_followed() -> None:
    chain = chained(made(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), [3]))
    mixing = replace(chain.stages[1], steps=(Step("_softmax", lambda x: x.softmax(1), False),))
    mixed = Chain(chain.entry, (chain.stages[0], mixing, chain.stages[2]))
    assert "depends on the others" in curvable(mixed, ["0"])
    assert curvable(chain, ["0", "2"]) == "" == curvable(chain, [])


def test_a_silent_value_before_a_convolution_is_said_not_to_be_followed() -> None:
    net = NETWORKS["cnn-batchnorm"].network()
    chain = chained(net)
    loud = Chain(chain.entry, (replace(chain.stages[0], silent=0.5), *chain.stages[1:]))
    assert "not the same" in curvable(loud, ["0"]) and curvable(loud, ["8"]) == ""
