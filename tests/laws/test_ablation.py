"""Laws of ablation: on every network, every lesion's effect is that of the damaged network itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cases import NETWORKS, NetworkCase
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.scores import ACCURACY, Score
from planaria.measure.task import Data
from planaria.sweep.ablate import Effects, ablate
from planaria.sweep.edges import Becomes, Flipped
from planaria.sweep.lesions import EachUnit, EachWeight, Lesion, Nested
from planaria.sweep.replay import edited
from planaria.sweep.tally import Judge, Tally

cases = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)


def _data(case: NetworkCase, count: int = 48) -> Data:
    """Inputs with labels that the network mostly predicts, so that lesions can make it worse and better."""
    inputs = case.inputs(count, "ablation")
    targets = case.network()(inputs).argmax(1)
    rng = stream(case.seed, "labels", "ablation")
    wrong = torch.rand(targets.shape, generator=rng) < 0.3
    return Data(inputs, torch.where(wrong, torch.randint(case.classes, targets.shape, generator=rng), targets))


def _brute(net: Network, lesions: list[Lesion], data: Data, judge: Judge) -> tuple[Tally, list[int]]:
    """Tally and number of ties of lesions, each network run whole."""
    tally, ties = Tally.zeros((len(lesions),)), []
    intact = judge.values(net(data.inputs), data.targets)
    for place, lesion in enumerate(lesions):
        outputs = edited(net, lesion)(data.inputs)
        tally.note(place, judge.values(outputs, data.targets), intact, data.targets)
        ties.append(_ties(outputs))
    return tally, ties


def _ties(outputs: Tensor) -> int:
    outputs = outputs.movedim(1, -1).flatten(0, -2)
    first, second = outputs.topk(min(2, outputs.shape[1]), 1).values.unbind(1)
    return int((~(first - second > 1e-4 * outputs.abs().max())).sum())


def _agree(found: Tally, truth: Tally, ties: list[int]) -> None:
    apart = (found.rose.flatten() - truth.rose).abs() + (found.fell.flatten() - truth.fell).abs()
    assert bool((apart <= torch.tensor(ties)).all()), apart


@cases
@pytest.mark.parametrize("bitwise", [False, True])
def test_every_unit_has_the_effect_of_the_network_without_it(case: NetworkCase, bitwise: bool) -> None:
    net, data = case.network(), _data(case)
    effects = ablate(net, EachUnit(), case.task(), data=data, bitwise=bitwise)
    assert effects.audit.mismatches == 0
    for layer, tally in effects.tallies.items():
        lesions = [Lesion.of(Unit(layer, unit), net) for unit in range(len(tally.total))]
        truth, ties = _brute(net, lesions, data, Judge(ACCURACY))
        _agree(tally, truth, [0] * len(lesions) if bitwise else ties)
        assert torch.equal(tally.by_class.sum(-1), tally.total)
        assert torch.equal(tally.squares, (tally.rose + tally.fell).double())
        assert torch.allclose(effects.scores[layer], effects.intact + tally.total / len(data))


@cases
@pytest.mark.parametrize("new", [Becomes(0.0), Becomes(-2.0), Flipped(31)], ids=repr)
def test_single_weights_have_the_effect_of_the_network_with_that_weight(case: NetworkCase, new: object) -> None:
    net, data = case.network(), _data(case, 24)
    matrices = [name for name in Anatomy.of(net).matrices if net.weights[name].numel() <= 60][-2:]
    if not matrices:
        matrices = [min(Anatomy.of(net).matrices, key=lambda name: net.weights[name].numel())]
    effects = ablate(net, EachWeight(new, tuple(matrices)), case.task(), data=data, audited=4)
    assert effects.audit.mismatches == 0
    for name, tally in effects.tallies.items():
        weight, changed = net.weights[name], new.of(net.weights[name])
        lesions = []
        for place in range(weight.numel()):
            hurt = weight.clone()
            hurt.view(-1)[place] = changed.view(-1)[place]
            lesions.append(Lesion({}, {name: hurt}))
        truth, ties = _brute(net, lesions, data, Judge(ACCURACY))
        assert tally.total.shape == weight.shape
        _agree(tally, truth, ties)


@cases
def test_nested_orders_have_the_effect_of_the_networks_without_those_units(case: NetworkCase) -> None:
    net, data = case.network(), _data(case)
    units = Anatomy.of(net).units()
    rng = stream(case.seed, "orders")
    orders = tuple(tuple(units[at] for at in torch.randperm(len(units), generator=rng).tolist()) for _ in range(2))
    counts = tuple(sorted({0, 1, len(units) // 3, len(units) // 2, len(units)}))
    effects = ablate(net, Nested(orders, counts), case.task(), data=data)
    assert effects.audit.mismatches == 0
    lesions = [Lesion.of(order[:count], net) for order in orders for count in counts]
    truth, ties = _brute(net, lesions, data, Judge(ACCURACY))
    _agree(effects.tallies["orders"], truth, ties)
    assert effects.tallies["orders"].fell[:, 0].tolist() == [0, 0]


@cases
def test_given_lesions_are_bit_identical_and_leave_the_network_alone(case: NetworkCase) -> None:
    net, data = case.network(), _data(case)
    before = net.sha256
    units = Anatomy.of(net).units()
    name = next(iter(net.weights))
    noisy = net.with_weights({name: net.weights[name] * 1.25})
    lesions = [units[0], [units[0], units[-1]], [], noisy]
    effects = ablate(net, lesions, case.task(), data=data, bitwise=True, outputs=True)
    hurt = [edited(net, Lesion.of(lesion, net)) for lesion in lesions]
    for outputs, network in zip(effects.outputs["lesions"], hurt, strict=True):
        scale = float(network(data.inputs).abs().max())
        assert torch.allclose(outputs, network(data.inputs), rtol=0, atol=1e-6 * scale)
    plain = ablate(net, lesions, case.task(), data=data)
    assert torch.equal(plain.tallies["lesions"].total, effects.tallies["lesions"].total)
    assert net.sha256 == before


@cases
def test_a_score_with_numbers_of_its_own_agrees_with_brute_force(case: NetworkCase) -> None:
    net, data = case.network(), _data(case)
    largest = Score("largest", lambda y, t: float(y.amax(1).mean()), per_example=lambda y, t: y.amax(1))
    effects = ablate(net, EachUnit(), case.task(), data=data, score=largest)
    assert effects.audit.mismatches == 0
    for layer, tally in effects.tallies.items():
        lesions = [Lesion.of(Unit(layer, unit), net) for unit in range(len(tally.total))]
        truth, _ = _brute(net, lesions, data, Judge(largest))
        assert torch.allclose(tally.total, truth.total, rtol=1e-4, atol=1e-3 * len(data) * float(truth.squares.max()))


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm", "residual", "transformer-pre-norm", "choosing"])
def test_the_result_does_not_depend_on_how_inputs_are_shared(name: str) -> None:
    case = NETWORKS[name]
    net, data = case.network(), _data(case, 50)
    whole = ablate(net, EachUnit(), case.task(), data=data)
    halves = ablate(net, EachUnit(), case.task(), data=data, workers=2)

    def stream_of() -> list[tuple[Tensor, Tensor]]:
        return list(zip(data.inputs.split(7), data.targets.split(7), strict=True))

    streamed = ablate(net, EachUnit(), case.task(), data=stream_of)
    for other in (halves, streamed):
        _same(whole, other)


def _same(one: Effects, other: Effects) -> None:
    assert one.examples == other.examples
    assert one.intact == pytest.approx(other.intact, abs=1e-12)
    for key, tally in one.tallies.items():
        assert torch.equal(tally.total, other.tallies[key].total)
        assert torch.equal(tally.fell, other.tallies[key].fell)
        assert torch.equal(tally.by_class, other.tallies[key].by_class)
