"""Direct effects against operations frozen by hand, and against finite differences on every network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, NetworkCase
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.tap import tap
from planaria.measure.scores import ACCURACY, Score
from planaria.measure.task import Data, Task
from planaria.sweep.ablate import ablate
from planaria.sweep.direct import direct_effects, margins
from planaria.sweep.gates import Gate
from planaria.sweep.lesions import EachUnit
from planaria.sweep.program import Program
from planaria.sweep.tally import Judge


def drawn(*shape: int, name: str = "x", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=stream(0, name), dtype=dtype)


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU, dtype: torch.dtype = torch.float64) -> Network:
    layers: list[nn.Module] = []
    for at in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[at], sizes[at + 1]), act()]
    net = Network.of(nn.Sequential(*layers[:-1]).to(dtype), torch.zeros(1, sizes[0], dtype=dtype))
    weights = {
        name: drawn(*tensor.shape, name=name, dtype=dtype) * tensor.shape[-1] ** -0.5
        for name, tensor in net.weights.items()
    }
    return net.with_weights(weights)


def labelled(net: Network, count: int, classes: int, width: int) -> tuple[Task, Data]:
    dtype = next(iter(net.weights.values())).dtype
    data = Data(drawn(count, width, dtype=dtype), torch.randint(classes, (count,), generator=stream(0, "labels")))
    task = Task.of("drawn", data, data, classes=classes)
    return task, data


def direct_of(net: Network, task: Task, data: Data, layers: list[str]) -> dict[str, Tensor]:
    program = Program.of(net)
    assert isinstance(program, Program)
    score, held = margins(net, task, data)
    return direct_effects(program, layers, held.inputs, held.targets, Judge(score))


def total_of(net: Network, task: Task, data: Data) -> dict[str, Tensor]:
    score, held = margins(net, task, data)
    plain = Task(task.name, held, held, held, task.loss, score, None)
    return {layer: -lost for layer, lost in ablate(net, EachUnit(), plain).lost.items()}


def test_on_an_mlp_it_is_the_effect_with_all_later_gates_frozen() -> None:
    net = mlp(6, 9, 7, 4)
    task, data = labelled(net, 300, 4, 6)
    found = direct_of(net, task, data, ["0", "2"])
    w = net.weights
    first = data.inputs @ w["0.weight"].T + w["0.bias"]
    hidden = first.relu()
    gates = (hidden @ w["2.weight"].T + w["2.bias"] > 0).double()

    def outputs(h: Tensor) -> Tensor:
        return ((h @ w["2.weight"].T + w["2.bias"]) * gates) @ w["4.weight"].T + w["4.bias"]

    intact = outputs(hidden)
    rival = intact.scatter(1, data.targets[:, None], -torch.inf).argmax(1)

    def margin(y: Tensor) -> float:
        rows = torch.arange(len(y))
        return float((y[rows, data.targets] - y[rows, rival]).mean())

    for unit in range(9):
        silent = hidden.clone()
        silent[:, unit] = 0
        assert float(found["0"][unit]) == pytest.approx(margin(outputs(silent)) - margin(intact), abs=1e-12)


def test_where_everything_behind_is_linear_nothing_compensates() -> None:
    net = mlp(6, 9, 7, 4)
    task, data = labelled(net, 300, 4, 6)
    direct, total = direct_of(net, task, data, ["0", "2"]), total_of(net, task, data)
    assert torch.allclose(direct["2"], total["2"], atol=1e-12)
    assert float((direct["0"] - total["0"]).abs().max()) > 1e-3


def test_what_saturates_behind_compensates() -> None:
    # The second layer's unit is far in the flat part of tanh for any input: its reader cannot be silenced by one unit.
    net = mlp(2, 2, 1, 2, act=nn.Tanh)
    w = {
        "0.weight": torch.eye(2),
        "0.bias": torch.full((2,), 3.0),
        "2.weight": torch.full((1, 2), 5.0),
        "2.bias": torch.zeros(1),
        "4.weight": torch.tensor([[1.0], [0.0]]),
        "4.bias": torch.zeros(2),
    }
    net = net.with_weights({name: tensor.double() for name, tensor in w.items()})
    data = Data(torch.zeros(5, 2).double(), torch.tensor([0, 0, 0, 0, 1]))
    task = Task.of("flat", data, data, validation=data, classes=2)
    direct, total = direct_of(net, task, data, ["0", "2"]), total_of(net, task, data)
    assert float(direct["0"].abs().max()) < 1e-6 and float(total["0"].abs().max()) < 1e-3
    assert float(total["2"][0]) == pytest.approx(-0.6, abs=1e-6)  # 4 of 5 lose the output 1, one gains it


@pytest.mark.parametrize("case", NETWORKS.values(), ids=str)
def test_on_every_network_it_is_the_slope_of_the_units_gain(case: NetworkCase) -> None:
    double = replace(case, double=not case.tokens)  # single precision has no room for differences
    net = Network.of(double.build(), double.inputs(3))
    net = tap(net, case.taps) if case.taps else net
    program = Program.of(net)
    if isinstance(program, str) or not program.gates:
        pytest.skip("it cannot be replayed")
    inputs = double.inputs(6, "direct")
    values = Judge(Score("smooth", lambda y, t: 0.0, per_example=lambda y, t: y.flatten(1).tanh().sum(1)))
    targets, layers = torch.zeros(6), list(program.gates)
    try:
        found = direct_effects(program, layers, inputs, targets, values)
    except InputError as problem:
        assert "differentiated" in str(problem)
        pytest.skip(str(problem))
    step = 1e-4 if inputs.is_floating_point() else 1e-2

    def score(layer: str, unit: int, gain: float) -> float:
        gates = program.gates[layer]
        edits = {gate.at: _scaling(gate, unit, gain) for gate in gates}
        first = program.first([layer])
        base = program.run(inputs, keep=program.needs(first) | first)
        outputs = program.resume(base, {at: edits[at](base[at]) for at in first}, edits)
        return float(values.values(outputs, targets).mean())

    for layer in layers:
        units = len(found[layer])
        for unit in {0, units - 1}:
            slope = (score(layer, unit, 1 + step) - score(layer, unit, 1 - step)) / (2 * step)
            tight = 1e-5 if inputs.is_floating_point() else 2e-2
            assert float(found[layer][unit]) == pytest.approx(-slope, abs=tight, rel=20 * tight), (layer, unit)


def _scaling(gate: Gate, unit: int, gain: float) -> Callable[[Tensor], Tensor]:
    def edit(value: Tensor) -> Tensor:
        return value + (gain - 1) * (value - gate.silenced(value, [unit]))

    return edit


def test_chunks_add_up_and_nothing_is_touched() -> None:
    net = mlp(6, 9, 4, dtype=torch.float32)
    task, data = labelled(net, 2500, 4, 6)
    before = {name: tensor.clone() for name, tensor in net.weights.items()}
    whole = direct_of(net, task, data, ["0"])["0"]
    halves = [Data(data.inputs[rows], data.targets[rows]) for rows in (slice(0, 1500), slice(1500, 2500))]
    parts = [direct_of(net, task, half, ["0"])["0"] for half in halves]
    assert torch.allclose(whole, (1500 * parts[0] + 1000 * parts[1]) / 2500, atol=1e-6)
    assert all(torch.equal(tensor, net.weights[name]) and not tensor.requires_grad for name, tensor in before.items())
    assert all(not tensor.requires_grad for tensor in net.weights.values())


def test_the_margin_is_that_of_the_label_over_the_best_other() -> None:
    net = mlp(3, 4, 3)
    task, data = labelled(net, 50, 3, 3)
    score, held = margins(net, task, data)
    outputs = net(data.inputs)
    found = score.per_example(outputs, held.targets)  # type: ignore[misc]
    best = outputs.scatter(1, data.targets[:, None], -torch.inf).amax(1)
    assert torch.equal(found, outputs[torch.arange(50), data.targets] - best)
    right = ACCURACY.per_example(outputs, data.targets)  # type: ignore[misc]
    assert torch.equal(found > 0, right > 0)
    assert score.function(outputs, held.targets) == pytest.approx(float(found.mean()))


def test_labels_at_several_places_have_a_mean_margin() -> None:
    outputs = drawn(5, 3, 4)
    labels = torch.randint(3, (5, 4), generator=stream(0, "places"))
    data = Data(outputs.flatten(1), labels)
    task = Task.of("places", data, data, validation=data, classes=3)
    module = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Unflatten(1, (3, 4)))
    net = Network.of(module, data.inputs).with_weights({"0.weight": torch.eye(12)})
    score, held = margins(net, task, data)
    mine = [
        float(outputs[n, labels[n, p], p] - max(float(outputs[n, c, p]) for c in range(3) if c != labels[n, p]))
        for n in range(5)
        for p in range(4)
    ]
    found = score.per_example(outputs, held.targets)  # type: ignore[misc]
    assert torch.allclose(found.float(), torch.tensor(mine).view(5, 4).mean(1), atol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "looking"])
def test_without_classes_it_is_minus_the_loss_of_each_example(loss: str) -> None:
    def looking(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean() if bool((outputs > 0).any()) else outputs.square().mean()

    data = Data(drawn(20, 3), drawn(20, 2, name="t"))
    task = Task.of("line", data, data, loss="mse" if loss == "mse" else looking, score="r2")
    net = mlp(3, 4, 2, dtype=torch.float32)
    score, held = margins(net, task, data)
    assert score.name == "minus loss" and torch.equal(held.targets, data.targets)
    outputs = net(data.inputs)
    each = score.per_example(outputs, data.targets)  # type: ignore[misc]
    wanted = [-float(task.loss(outputs[n : n + 1], data.targets[n : n + 1])) for n in range(20)]
    assert torch.allclose(each, torch.tensor(wanted))
    direct = direct_of(net, task, data, ["0"])["0"]
    assert direct.shape == (4,) and bool((direct != 0).any())


def test_one_output_has_no_rival() -> None:
    data = Data(drawn(6, 3), torch.zeros(6).long())
    task = Task.of("alone", data, data, validation=data, classes=1)
    net = mlp(3, 2, 1, dtype=torch.float32)
    score, _ = margins(net, task, data)
    assert score.name == "minus loss"
    assert bool((direct_of(net, task, data, ["0"])["0"] == 0).all())  # cross-entropy of one class is 0


def test_a_dead_unit_has_no_effect() -> None:
    net = mlp(3, 4, 2, dtype=torch.float32)
    bias = net.weights["0.bias"].clone()
    bias[1] = -100.0
    net = net.with_weights({"0.bias": bias})
    task, data = labelled(net, 40, 2, 3)
    assert float(direct_of(net, task, data, ["0"])["0"][1]) == 0.0


def test_a_layer_without_gates_is_refused() -> None:
    net = mlp(3, 4, 2, dtype=torch.float32)
    task, data = labelled(net, 5, 2, 3)
    with pytest.raises(InputError, match="along one axis"):
        direct_of(net, task, data, ["2"])
