"""Maps of single weights against brute force: every weight edited, the whole network run."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.scores import ACCURACY, Score
from planaria.sweep import intervals
from planaria.sweep.chain import Chain
from planaria.sweep.edges import Becomes, Flipped, NewValue, mappable, weight_cost, weight_map
from planaria.sweep.tally import Judge, Tally

JUDGE = Judge(ACCURACY)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "hardtanh": nn.Hardtanh,
    "softplus": nn.Softplus,  # of unknown slope
}
VALUES: tuple[NewValue, ...] = (
    Becomes(0.0),
    Becomes(-3.0),
    Becomes(1e30),
    Becomes(math.inf),
    Becomes(math.nan),
    *(Flipped(bit) for bit in (0, 22, 23, 25, 27, 30, 31)),
)


class Problem(NamedTuple):
    net: Network
    inputs: Tensor
    targets: Tensor

    @property
    def chain(self) -> Chain:
        chain = Chain.of(self.net)
        assert isinstance(chain, Chain)
        return chain


def problem(
    sizes: list[int],
    activation: str = "relu",
    *,
    seed: int = 0,
    examples: int = 20,
    bias: bool = True,
    size: float = 1.0,
) -> Problem:
    """A random perceptron that is right on most of its examples."""
    rng = stream(seed, "problem")
    layers: list[nn.Module] = []
    for read, made in pairwise(sizes):
        layers += [nn.Linear(read, made, bias=bias), ACTIVATIONS[activation]()]
    model = nn.Sequential(*layers[:-1])
    for parameter in model.parameters():
        parameter.data = size * torch.randn(parameter.shape, generator=rng)
    inputs = torch.randn(examples, sizes[0], generator=rng)
    return labelled(Network.of(model, inputs), inputs, seed)


def labelled(net: Network, inputs: Tensor, seed: int = 0) -> Problem:
    rng = stream(seed, "labels")
    outputs = net(inputs)
    guesses = torch.randint(outputs.shape[1], (len(inputs),), generator=rng)
    return Problem(net, inputs, torch.where(torch.rand(len(inputs), generator=rng) < 0.7, outputs.argmax(1), guesses))


def brute(given: Problem, name: str, new: NewValue) -> tuple[Tensor, Tensor, Tensor]:
    """Examples that rose and fell by each weight's new value, and how many of them are ties."""
    weight = given.net.weights[name]
    values = new.of(weight)
    before = ACCURACY.per_example(given.net(given.inputs), given.targets)
    counts = []
    for at in range(weight.numel()):
        edited = weight.clone()
        edited.view(-1)[at] = values.reshape(-1)[at]
        outputs = given.net.with_weights({name: edited})(given.inputs)
        after = ACCURACY.per_example(outputs, given.targets)
        finite = outputs.isfinite().all(1)
        scale = outputs[finite].abs().max() if bool(finite.any()) else torch.tensor(0.0)
        top = outputs.topk(min(2, outputs.shape[1]), 1).values
        ties = finite & (top[:, 0] - top[:, -1] <= 1e-4 * scale) & (outputs.shape[1] > 1)
        counts.append(torch.stack([(after > before).sum(), (after < before).sum(), ties.sum()]))
    rose, fell, tied = torch.stack(counts).T.reshape(3, *weight.shape)
    return rose, fell, tied


def assert_as_brute_force(given: Problem, new: NewValue, *names: str) -> None:
    found = weight_map(given.chain, names or given.net.weights, new, given.inputs, given.targets, JUDGE)
    for name, tally in found.items():
        rose, fell, ties = brute(given, name, new)
        apart = (tally.rose - rose).abs() + (tally.fell - fell).abs()
        assert bool((apart <= ties).all()), f"{name} {new}: {int((apart > ties).sum())} weights differ"
        assert torch.equal(tally.total, (tally.rose - tally.fell).double())
        assert torch.equal(tally.squares, (tally.rose + tally.fell).double())


# ------------------------------------------------------------------------------------------------- new values


def test_a_flipped_bit_is_that_of_the_stored_number() -> None:
    numbers = [1.5, -0.1, 0.0, 3e-39]
    for bit in range(32):
        flipped = Flipped(bit).of(torch.tensor(numbers))
        for number, got in zip(numbers, flipped, strict=True):
            (stored,) = struct.unpack("<I", struct.pack("<f", number))
            expected = struct.pack("<I", stored ^ (1 << bit))
            assert struct.pack("<I", int(got.view(torch.int32)) & 0xFFFFFFFF) == expected


@pytest.mark.parametrize(("dtype", "sign"), [(torch.float16, 15), (torch.bfloat16, 15), (torch.float64, 63)])
def test_the_highest_bit_is_the_sign_and_two_flips_are_none(dtype: torch.dtype, sign: int) -> None:
    weight = torch.tensor([1.5, -2.25, 0.5], dtype=dtype)
    assert torch.equal(Flipped(sign).of(weight), -weight)
    for bit in range(sign + 1):
        once = Flipped(bit).of(weight)
        assert not torch.equal(once, weight)
        assert torch.equal(Flipped(bit).of(once), weight)


def test_new_values_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="bit from 0 to 31"):
        Flipped(32).of(torch.ones(1))
    with pytest.raises(InputError, match="bit from 0 to 15"):
        Flipped(16).of(torch.ones(1, dtype=torch.bfloat16))
    with pytest.raises(InputError, match="16, 32 or 64 bits"):
        Flipped(0).of(torch.ones(1, dtype=torch.int64))
    with pytest.raises(InputError, match="all that"):
        Becomes(1e300).of(torch.ones(1))
    for wrong in (-1, 1.0, True):
        with pytest.raises(InputError, match=r"Flipped\.bit"):
            Flipped(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Becomes\.value"):
        Becomes("0")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- exactness


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    new=st.sampled_from(VALUES),
    bias=st.booleans(),
    double=st.booleans(),
    positive=st.booleans(),
    size=st.sampled_from([0.5, 2.0]),
    seed=st.integers(0, 2**20),
)
def test_maps_of_random_chains_are_those_of_brute_force(
    sizes: list[int], activation: str, new: NewValue, bias: bool, double: bool, positive: bool, size: float, seed: int
) -> None:
    given = problem(sizes, activation, seed=seed, bias=bias, size=size, examples=12)
    inputs = given.inputs.relu() if positive else given.inputs
    model = given.net.to_module()
    inputs, model = (inputs.double(), model.double()) if double else (inputs, model)
    assert_as_brute_force(labelled(Network.of(model, inputs), inputs, seed), new)


@pytest.mark.parametrize("bit", range(32))
def test_every_bit_of_every_layer_is_as_by_brute_force(bit: int) -> None:
    assert_as_brute_force(problem([3, 5, 4, 3], seed=bit), Flipped(bit))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("value", [1e30, 4.0, math.inf])
def test_changes_that_are_proven_by_others_are_counted_right(activation: str, value: float) -> None:
    # So many changes leave their interval that most are not computed one by one.
    given = problem([40, 3, 6, 3], activation, examples=250, size=0.7)
    assert given.inputs.numel() > 2 * intervals.HEAP
    assert_as_brute_force(given, Becomes(value), "0.weight")


def test_proofs_spare_nearly_all_computations(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem([60, 3, 6, 3], examples=1500, size=0.7)
    computed = 0
    after, around = intervals.Certified.after, intervals.Certified.around

    def counting_after(self: intervals.Certified, rows: Tensor, units: Tensor, change: Tensor) -> Tensor:
        nonlocal computed
        computed += len(rows)
        return after(self, rows, units, change)

    def counting_around(
        self: intervals.Certified, j: int, rows: Tensor, change: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal computed
        computed += len(rows)
        return around(self, j, rows, change)

    monkeypatch.setattr(intervals.Certified, "after", counting_after)
    monkeypatch.setattr(intervals.Certified, "around", counting_around)
    weight_map(given.chain, ["0.weight"], Becomes(1e30), given.inputs, given.targets, JUDGE)
    assert 0 < computed < 0.06 * 3 * given.inputs.numel()


def test_a_softmax_at_the_end_and_convolutions_in_front_change_nothing() -> None:
    rng = stream(0, "conv")
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 4),
        nn.ReLU(),
        nn.Linear(4, 3),
        nn.Softmax(1),
    )
    inputs = torch.randn(20, 1, 6, 6, generator=rng)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    given = labelled(Network.of(model, inputs), inputs)
    for new in (Becomes(0.0), Becomes(-2.0)):
        assert_as_brute_force(given, new, "5.weight", "5.bias", "7.weight", "7.bias")


def test_more_classes_than_are_bounded_in_pairs_are_right_too() -> None:
    given = problem([3, 4, 4, intervals.PAIRWISE + 2], examples=15)
    assert_as_brute_force(given, Becomes(0.0), "0.weight", "2.weight")
    assert_as_brute_force(given, Flipped(30), "0.weight")


# --------------------------------------------------------------------------------------------- hostile inputs


def with_weights(given: Problem, **weights: Tensor) -> Problem:
    net = given.net.with_weights({name.replace("_", "."): weight for name, weight in weights.items()})
    return given._replace(net=net)


@pytest.mark.parametrize("new", [Becomes(0.0), Becomes(1e30), Becomes(math.inf), Flipped(30)])
def test_dead_units_and_units_that_nobody_reads_are_right(new: NewValue) -> None:
    given = problem([4, 5, 5, 3])
    first, second = given.net.weights["0.weight"].clone(), given.net.weights["2.weight"].clone()
    first[1] = 0
    second[:, 2] = 0
    shift = given.net.weights["0.bias"].clone()
    shift[3] = -100.0
    assert_as_brute_force(with_weights(given, **{"0_weight": first, "2_weight": second, "0_bias": shift}), new)


def test_a_network_of_zeros_keeps_its_ties_under_deletion() -> None:
    given = problem([3, 4, 4, 3])
    zero = given.net.with_weights({name: torch.zeros_like(w) for name, w in given.net.weights.items()})
    found = weight_map(
        Problem(zero, given.inputs, given.targets).chain,
        list(zero.weights),
        Becomes(0.0),
        given.inputs,
        given.targets,
        JUDGE,
    )
    assert all(not bool(tally.squares.any()) for tally in found.values())


def test_two_equal_classes_stay_tied_where_nothing_tells_them_apart() -> None:
    given = problem([3, 4, 3])
    last, shift = given.net.weights["2.weight"].clone(), given.net.weights["2.bias"].clone()
    last[1], shift[1] = last[0], shift[0]
    twins = with_weights(given, **{"2_weight": last, "2_bias": shift})
    twins = twins._replace(targets=torch.zeros_like(given.targets))
    right = twins.net(twins.inputs).argmax(1) == 0
    assert bool(right.any())
    tally = weight_map(twins.chain, ["0.weight"], Becomes(0.0), twins.inputs, twins.targets, JUDGE)["0.weight"]
    rose, fell, _ = brute(twins, "0.weight", Becomes(0.0))
    assert torch.equal(tally.rose, rose) and torch.equal(tally.fell, fell)


@pytest.mark.parametrize("sizes", [[2, 3, 1], [1, 1, 1, 2], [1, 2], [3, 1]])
def test_one_class_one_unit_and_one_input_are_right(sizes: list[int]) -> None:
    for new in (Becomes(0.0), Becomes(math.nan), Flipped(30)):
        assert_as_brute_force(problem(sizes), new)


def test_one_example_and_none_are_right() -> None:
    given = problem([3, 4, 4, 2], examples=1)
    assert_as_brute_force(given, Becomes(0.0))
    found = weight_map(given.chain, ["0.weight"], Becomes(0.0), given.inputs[:0], given.targets[:0], JUDGE)
    assert not bool(found["0.weight"].squares.any())


@pytest.mark.parametrize("sizes", [[3, 2], [3, 4, 2], [3, 4, 4, 2]])
def test_inputs_that_are_not_finite_or_overflow_are_judged_by_brute_force(sizes: list[int]) -> None:
    given = problem(sizes, examples=10, size=2.0)
    inputs = given.inputs.clone()
    inputs[0, 0], inputs[1, 1], inputs[2, 2], inputs[3] = math.nan, math.inf, -math.inf, 3e38
    for new in (Becomes(0.0), Becomes(-3.0), Flipped(30)):
        assert_as_brute_force(given._replace(inputs=inputs), new)


def test_a_weight_that_becomes_nan_or_infinite_turns_every_example_that_depends_on_it() -> None:
    given = problem([3, 4, 2], examples=30)
    right = int((given.net(given.inputs).argmax(1) == given.targets).sum())
    lost = weight_map(given.chain, ["0.weight"], Becomes(math.nan), given.inputs, given.targets, JUDGE)["0.weight"]
    assert bool((lost.fell == right).all()) and not bool(lost.rose.any())
    silent = given.inputs.clone()
    silent[:, 0] = 0.0  # infinity times zero is NaN
    right = int((given.net(silent).argmax(1) == given.targets).sum())
    lost = weight_map(given.chain, ["0.weight"], Becomes(math.inf), silent, given.targets, JUDGE)["0.weight"]
    assert bool((lost.fell[:, 0] == right).all())


def test_labels_that_no_output_has_are_never_right() -> None:
    given = problem([3, 4, 4, 2])
    targets = torch.where(torch.arange(20) % 2 == 0, 7, -1)
    found = weight_map(given.chain, list(given.net.weights), Becomes(-3.0), given.inputs, targets, JUDGE)
    assert all(not bool(tally.squares.any()) for tally in found.values())


# ------------------------------------------------------------------------------------------------------ doors


def test_maps_of_parts_add_up_to_the_map_of_all() -> None:
    given = problem([4, 6, 5, 3], examples=40)
    whole = weight_map(given.chain, given.net.weights, Flipped(30), given.inputs, given.targets, JUDGE)
    parts: list[dict[str, Tally]] = [
        weight_map(given.chain, given.net.weights, Flipped(30), given.inputs[at::3], given.targets[at::3], JUDGE)
        for at in range(3)
    ]
    for name, tally in whole.items():
        added = parts[0][name] + parts[1][name] + parts[2][name]
        assert torch.equal(tally.rose, added.rose) and torch.equal(tally.fell, added.fell)


def test_the_network_and_the_inputs_stay_as_they_were() -> None:
    given = problem([4, 6, 5, 3])
    digest, inputs = given.net.sha256, given.inputs.clone()
    weight_map(given.chain, given.net.weights, Becomes(1e30), given.inputs, given.targets, JUDGE)
    assert given.net.sha256 == digest and torch.equal(given.inputs, inputs)


class TwiceRead(nn.Module):
    """One layer used twice, a shared bias, and another layer."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.b.bias = self.c.weight = None  # type: ignore[assignment]
        self.c = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(torch.relu(self.a(x))))
        return self.c(torch.relu(nn.functional.linear(x, self.b.weight, self.a.bias)))


def chain_of(model: nn.Module, inputs: Tensor) -> Chain:
    chain = Chain.of(Network.of(model, inputs))
    assert isinstance(chain, Chain)
    return chain


def test_weights_without_a_map_say_why() -> None:
    chain = chain_of(TwiceRead(), torch.randn(2, 3))
    assert "several products" in mappable(chain, "a.weight")
    assert "several products" in mappable(chain, "a.bias")
    assert mappable(chain, "b.weight") == ""
    assert "no product" in mappable(chain, "b.bias") and "no product" in mappable(chain, "")
    convolutional = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    chain = chain_of(convolutional, torch.randn(2, 1, 3))
    assert "convolution" in mappable(chain, "0.weight") and mappable(chain, "3.weight") == ""
    folded = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    chain = chain_of(folded, torch.randn(2, 3))
    assert "normalisation" in mappable(chain, "0.weight") and mappable(chain, "3.weight") == ""
    chain = chain_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Tanh()), torch.randn(2, 3))
    assert "outputs" in mappable(chain, "0.weight")
    chain = chain_of(nn.Sequential(nn.Linear(3, 2), nn.Softmax(0)), torch.randn(2, 3))
    assert "depend on the others" in mappable(chain, "0.weight")
    chain = chain_of(nn.Linear(3, 2).bfloat16(), torch.randn(2, 3).bfloat16())
    assert "rounds" in mappable(chain, "weight")


def test_what_cannot_be_mapped_is_refused() -> None:
    given = problem([3, 4, 2])
    arguments = (Becomes(0.0), given.inputs, given.targets)
    with pytest.raises(InputError, match="no product"):
        weight_map(given.chain, ["4.weight"], *arguments, JUDGE)
    mean = Score("close", lambda y, t: 0.0, per_example=lambda y, t: y[:, 0])
    with pytest.raises(InputError, match="accuracy"):
        weight_map(given.chain, ["0.weight"], *arguments, Judge(mean))
    with pytest.raises(InputError, match="accuracy"):
        weight_cost(given.chain, ["0.weight"], *arguments, Judge(mean))
    with pytest.raises(InputError, match="one row of class scores"):
        weight_map(given.chain, ["0.weight"], Becomes(0.0), given.inputs, given.targets.unsqueeze(1), JUDGE)


def test_far_values_far_from_the_outputs_are_estimated_to_cost_most() -> None:
    given = problem([30, 20, 20, 4], examples=200, size=0.3)

    def cost(name: str, new: NewValue) -> float:
        return weight_cost(given.chain, [name], new, given.inputs, given.targets, JUDGE)[name]

    near, far = Flipped(3), Becomes(1e30)
    assert 2 <= cost("0.weight", near) < cost("0.weight", far)
    assert cost("2.weight", far) < cost("0.weight", far)
    assert cost("4.bias", near) < 3
    none = weight_cost(given.chain, ["0.weight"], far, given.inputs[:0], given.targets[:0], JUDGE)
    assert none["0.weight"] == 2.0
