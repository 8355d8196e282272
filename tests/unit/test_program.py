"""Programs: recorded passes that can be resumed anywhere, for any examples, with anything exchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cases import NETWORKS, NetworkCase
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.graph import trace
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.sweep.fuse import fuse
from planaria.sweep.gates import Gate
from planaria.sweep.lesions import Lesion
from planaria.sweep.program import Edit, Program, near, same
from planaria.sweep.record import Rows
from planaria.sweep.replay import base_of, edited, resumed

RECORDED = [case for case in NETWORKS.values() if case.name != "choosing"]
cases = pytest.mark.parametrize("case", RECORDED, ids=str)


def _program(net: Network) -> Program:
    program = Program.of(net)
    assert isinstance(program, Program), program
    return program


@cases
@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_a_program_gives_the_networks_outputs_for_any_number_of_examples(case: NetworkCase, count: int) -> None:
    net, x = case.network(), case.inputs(count, "program")
    program = _program(net)
    outputs = program.run(x)[program.output]
    # For one example, and in recurrences, torch lays numbers out otherwise and takes other kernels.
    assert same(outputs, net(x)) or (near(outputs, net(x)) and count in {1, 7})
    assert all(program.held[at].data_ptr() == net.weights[name].data_ptr() for name, at in program.weights.items())


@cases
def test_joined_operations_give_the_same_up_to_rounding(case: NetworkCase) -> None:
    net, x = case.network(), case.inputs(9, "program")
    program = fuse(_program(net))
    assert near(program.run(x)[program.output], net(x))
    for group in program.fused:
        assert group.op.writes[0] not in group.inner
        assert sorted(group.members) == list(group.members)


def test_a_normalisation_with_the_statistics_of_the_batch_is_not_joined() -> None:
    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            mean, variance = self.norm.running_mean.clone(), self.norm.running_var.clone()
            return functional.batch_norm(self.a(x), mean, variance, self.norm.weight, self.norm.bias, True).relu()

    x = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    net = Network.of(Training(), x)
    program = fuse(_program(net))
    assert not program.fused and near(program.run(x)[program.output], net(x))


@cases
@pytest.mark.parametrize("joined", [False, True])
def test_units_of_several_layers_are_silenced_at_once(case: NetworkCase, joined: bool) -> None:
    net, x = case.network(), case.inputs(9, "program")
    program = fuse(_program(net)) if joined else _program(net)
    layers = list(program.gates)
    for chosen in (layers, layers[:2], layers[-2:], layers[::2], layers[:1]):
        lesion = Lesion({layer: (0,) if place % 2 else (0, 1) for place, layer in enumerate(chosen)}, {})
        counts = {group.layer: group.count for group in Anatomy.of(net).groups}
        lesion = Lesion({layer: tuple(u for u in us if u < counts[layer]) for layer, us in lesion.units.items()}, {})
        base = program.run(x, keep=base_of(program, [lesion]))
        assert near(resumed(program, base, lesion), edited(net, lesion)(x)), chosen


@cases
@pytest.mark.parametrize("joined", [False, True])
def test_any_weight_can_be_exchanged(case: NetworkCase, joined: bool) -> None:
    net, x = case.network(), case.inputs(5, "program")
    program = fuse(_program(net)) if joined else _program(net)
    assert program.exchanges(net, net.weights)
    rng = stream(case.seed, "exchanged")
    for name, weight in net.weights.items():
        hurt = Lesion({}, {name: weight + torch.randn(weight.shape, generator=rng).to(weight)})
        base = program.run(x, keep=base_of(program, [hurt]))
        assert near(resumed(program, base, hurt), edited(net, hurt)(x)), name
        if not joined:
            assert same(resumed(program, base, hurt), edited(net, hurt)(x)), name


def _closing(gate: Gate, units: Tensor) -> Edit:
    return lambda value: gate.closed(value, units)


@cases
def test_each_of_some_examples_may_lose_a_unit_of_its_own(case: NetworkCase) -> None:
    net, x = case.network(), case.inputs(6, "program")
    program, rng = _program(net), stream(case.seed, "pairs")
    counts = {group.layer: group.count for group in Anatomy.of(net).groups}
    for layer, gates in program.gates.items():
        first = program.first([layer])
        base = program.run(x, keep=program.needs(first) | first)
        rows = torch.randint(6, (11,), generator=rng)
        units = torch.randint(counts[layer], (11,), generator=rng)
        picked = program.pick(base, program.needs(first) | first, rows)
        edits = {gate.at: _closing(gate, units) for gate in gates}
        found = program.resume(picked, {at: edits[at](picked[at]) for at in first}, edits)
        outputs = [
            edited(net, Lesion.of(Unit(layer, unit), net))(x[row : row + 1])
            for row, unit in zip(rows.tolist(), units.tolist(), strict=True)
        ]
        assert near(found, torch.cat(outputs)), layer


@cases
def test_what_lies_in_a_value_is_where_its_rows_say(case: NetworkCase) -> None:
    net, x = case.network(), case.inputs(5, "program")
    program, rows = _program(net), torch.tensor([3, 0, 3])
    few = program.run(x[rows], keep=program.rows)
    picked = program.pick(program.run(x, keep=program.rows), program.rows, rows)
    for at in program.rows:
        assert near(picked[at], few[at]), program.rows[at]
    assert set(program.bytes) <= set(program.rows), "of these networks all values have rows"


@cases
def test_products_without_a_unit_are_those_of_the_network_without_it(case: NetworkCase) -> None:
    net, x = case.network(), case.inputs(7, "program")
    program = _program(net)
    counts = {group.layer: group.count for group in Anatomy.of(net).groups}
    for layer, reads in program.reads.items():
        made = program.products(layer)
        base = program.run(x, keep={*made, *(read.at for read in reads), *program.needs(made)})
        for unit in range(counts[layer]):
            if unit not in program.outweighing(layer, base):
                outputs = program.resume(base, program.without(layer, base, unit))
                assert near(outputs, edited(net, Lesion.of(Unit(layer, unit), net))(x)), (layer, unit)


@cases
def test_what_remains_to_be_done_is_a_part_of_the_whole(case: NetworkCase) -> None:
    program = _program(case.network())
    for layer in program.gates:
        assert 0 <= program.remaining(program.first([layer])) <= program.work
    assert program.remaining([program.input]) == program.work
    assert program.remaining([program.output]) == 0 and program.needs([]) == {program.output}


@pytest.mark.parametrize("rows", [Rows(0), Rows(0, 3), Rows(0, 3, together=False)], ids=repr)
@pytest.mark.parametrize("axis", [0, 1])
def test_gates_close_what_a_loop_closes(rows: Rows, axis: int) -> None:
    if axis == 0 and rows.per == 1:
        return
    value = torch.randn(4 * rows.per, 5, generator=torch.Generator().manual_seed(0))
    owner = torch.tensor([0, 1, 1]) if axis == 0 else torch.tensor([0, -1, 2, 1, 0])
    gate, units = Gate(0, axis, owner, rows), torch.tensor([1, 0, 2, 0])
    closed, silenced = value.clone(), value.clone()
    for line in range(4 * rows.per):
        example = line // rows.per if rows.together else line % 4
        place = line % rows.per if rows.together else line // 4
        for column in range(5):
            unit = int(owner[place if axis == 0 else column])
            if unit == units[example]:
                closed[line, column] = 0
            if unit == 1:
                silenced[line, column] = 0
    assert torch.equal(gate.closed(value, units), closed)
    assert torch.equal(gate.silenced(value, [1]), silenced)
    assert gate.busy(value) == frozenset(owner.tolist())
    assert gate.busy(gate.silenced(value, [1])) == frozenset(owner.tolist()) - {1}


def test_a_value_whose_examples_are_in_another_order_has_no_rows() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.flip(0)).tanh()).flip(0)

    program = _program(Network.of(Backwards(), torch.ones(1, 4)))
    assert program.rows.keys() == {program.input, program.output}
    assert not program.gates and not program.reads


def test_an_activation_of_another_shape_for_one_example_is_no_gate() -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 5, 3), nn.Conv1d(5, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x).squeeze()).reshape(len(x), 5, -1)).flatten(1)

    one, two = (_program(Network.of(Squeezing(), torch.ones(count, 2, 6))) for count in (1, 2))
    assert not one.gates and two.gates.keys() == {"a"}


def test_a_unit_that_outweighs_the_others_for_one_example_is_named() -> None:
    net = Network.of(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(2, 3))
    net = net.with_weights({"0.weight": torch.eye(3), "0.bias": torch.zeros(3), "2.weight": torch.ones(2, 3)})
    program = _program(net)
    (read,) = program.reads["0"]

    def named(*rows: list[float]) -> set[int]:
        keep = {read.at, *program.products("0")}
        return set(program.outweighing("0", program.run(torch.tensor(rows), keep=keep)))

    assert named([1.0, 2.0, 3.0], [3.0, 1.0, 1.0]) == set()
    assert named([1.0, 2.0, 3.0], [1.0, 1e6, 1.0]) == {1}
    assert named([0.0, 0.0, 1.0], [-1.0, -1.0, -1.0]) == {2}
    assert named([1.0, float("inf"), 1.0]) >= {1}


def test_recordings_keep_what_an_operation_in_place_overwrites() -> None:
    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            constant = torch.ones(2)
            x = self.a(x) + constant
            constant.mul_(5.0)
            return x * constant

    net = Network.of(Filled(), torch.ones(1, 2))
    graph = trace(net, torch.ones(2, 2))
    added = next(call for call in graph.calls if call.name == "add").args[1]
    assert added.tensor.tolist() == [1.0, 1.0]
    x = torch.randn(3, 2)
    program = _program(net)
    assert same(program.run(x)[program.output], net(x))
