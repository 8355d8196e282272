"""Certified screening: the same counts as brute force, on anything that a chain may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NETWORKS, trained
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.scores import ACCURACY, Score
from planaria.sweep import certify
from planaria.sweep.certify import Certifier, certifiable
from planaria.sweep.chain import Chain, Stage, Step
from planaria.sweep.rounding import spectral_bound
from planaria.sweep.tally import Judge, Tally

F = nn.functional
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardtanh": F.hardtanh,
    "none": lambda x: x,
}


def certified_units(chain: Chain, layers: list[str], inputs: Tensor, targets: Tensor, judge: Judge) -> dict[str, Tally]:
    """The counts alone."""
    return Certifier.of(chain, layers)(inputs, targets, judge)[0]


def chain_of(widths: list[int], names: list[str], weights: list[Tensor], shifts: list[Tensor | None]) -> Chain:
    stages = []
    for at, (weight, shift) in enumerate(zip(weights, shifts, strict=True)):
        hidden = at < len(weights) - 1
        steps = (Step(names[at], ACTIVATIONS[names[at]], True),) if hidden and names[at] != "none" else ()
        stages.append(Stage(f"{at}.weight", None, weight, shift, None, steps=steps, layer=str(at) if hidden else ""))
    assert [len(stage.weight) for stage in stages] == widths[1:]
    return Chain((), tuple(stages))


def silenced(chain: Chain, at: int, unit: int, inputs: Tensor) -> Tensor:
    """Outputs by brute force: the unit's activation is exchanged, everything behind it computed again."""
    x = chain.run(inputs)[at + 1].clone()
    x[:, unit] = chain.stages[at].silent
    for stage in chain.stages[at + 1 :]:
        x = stage.post(stage.pre(x))
    return x


def precise(chain: Chain) -> Chain:
    stages = [
        Stage(
            **{
                **stage.__dict__,
                "weight": stage.weight.double(),
                "shift": None if stage.shift is None else stage.shift.double(),
            }
        )
        for stage in chain.stages
    ]
    return Chain(chain.entry, tuple(stages))


def unsure(outputs: Tensor, reference: Tensor) -> Tensor:
    """Examples whose prediction is within the rounding of brute force itself, or a tie."""
    if outputs.shape[1] == 1:
        return torch.zeros(len(outputs), dtype=torch.bool)
    top = reference.topk(2, 1).values
    error = (outputs.double() - reference).abs().amax(1)
    bar = torch.maximum(1e-4 * reference.abs().amax(1), 100 * error)
    finite = outputs.isfinite().all(1)
    return finite & ~(top[:, 0] - top[:, 1] > bar)


def assert_as_brute_force(chain: Chain, inputs: Tensor, targets: Tensor, classes: int | None = None) -> int:
    """Every count equal but for ties; the number of examples that were none."""
    judge = Judge(ACCURACY, classes)
    layers = [stage.layer for stage in chain.stages if stage.layer]
    assert [certifiable(chain, layer, judge) for layer in layers] == [""] * len(layers)
    found, intact = Certifier.of(chain, layers)(inputs, targets, judge)
    exact = precise(chain)
    outputs = chain(inputs)
    assert torch.equal(intact, judge.values(outputs, targets))
    loose = unsure(outputs, exact(inputs.double()))
    clear = 0
    for at, stage in enumerate(chain.stages[:-1]):
        tally = found[stage.layer]
        assert tally.total.shape == (stage.made,)
        assert torch.equal(tally.squares, (tally.rose + tally.fell).double())
        for unit in range(stage.made):
            damaged = silenced(chain, at, unit, inputs)
            change = judge.values(damaged, targets) - intact
            tied = loose | unsure(damaged, silenced(exact, at, unit, inputs.double()))
            clear += int((~tied).sum())
            ties = int(tied.sum())
            assert abs(float(tally.total[unit] - change.sum())) <= ties, (stage.layer, unit)
            assert abs(int(tally.rose[unit]) - int((change > 0).sum())) <= ties
            assert abs(int(tally.fell[unit]) - int((change < 0).sum())) <= ties
            if classes is not None:
                assert tally.by_class is not None
                for c in range(classes):
                    wanted = float(change[targets == c].sum())
                    assert abs(float(tally.by_class[unit, c]) - wanted) <= int(tied[targets == c].sum())
    return clear


@st.composite
def problems(draw: st.DrawFn, *, broken: bool = False) -> tuple[Chain, Tensor, Tensor, int]:
    """A small chain with inputs and labels, hostile in some way."""
    widths = draw(st.lists(st.integers(1, 8), min_size=3, max_size=6))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    rng = stream(draw(st.integers(0, 2**32)), "chain")
    names = [draw(st.sampled_from(sorted(ACTIVATIONS))) for _ in widths[1:]]
    scales = [draw(st.sampled_from([1.0, 1.0, 1.0, 1e-3, 30.0, 1e-12, 1e7])) for _ in widths[1:]]
    biased = draw(st.booleans())
    weights, shifts = [], list[Tensor | None]()
    for read, made, scale in zip(widths, widths[1:], scales, strict=False):
        w = scale * torch.randn(made, read, generator=rng, dtype=dtype) / read**0.5
        b = scale * torch.randn(made, generator=rng, dtype=dtype) * 0.3
        dead = torch.rand(made, generator=rng) < draw(st.sampled_from([0.0, 0.4]))
        w[dead], b[dead] = 0.0, -1.0
        weights.append(w)
        shifts.append(b if biased else None)
    if draw(st.booleans()):  # two logits that are always the same
        weights[-1][-1] = weights[-1][0]
        if shifts[-1] is not None:
            shifts[-1][-1] = shifts[-1][0]
    if draw(st.booleans()):  # one entry that outweighs all others
        weights[draw(st.integers(0, len(weights) - 1))].view(-1)[0] *= 1e4
    inputs = torch.randn(draw(st.integers(1, 12)), widths[0], generator=rng, dtype=dtype)
    if broken:
        bad = draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 1e300]))
        place = draw(st.integers(-1, len(weights) - 1))
        (inputs if place < 0 else weights[place]).view(-1)[0] = bad if bad != 1e300 else torch.finfo(dtype).max
    targets = torch.randint(widths[-1], (len(inputs),), generator=rng)
    return chain_of(widths, names, weights, shifts), inputs, targets, widths[-1]


@given(problems())
@settings(deadline=None, max_examples=80)
def test_counts_are_those_of_brute_force(problem: tuple[Chain, Tensor, Tensor, int]) -> None:
    assert_as_brute_force(*problem)


@given(problems(broken=True))
@settings(deadline=None, max_examples=40)
def test_counts_are_those_of_brute_force_with_broken_weights_or_inputs(
    problem: tuple[Chain, Tensor, Tensor, int],
) -> None:
    assert_as_brute_force(*problem)


@given(st.integers(0, 2**32), st.sampled_from(sorted(ACTIVATIONS)), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_no_change_is_larger_than_its_bound(seed: int, name: str, depth: int) -> None:
    rng = stream(seed, "bounds")
    widths = [5, *[7] * (depth + 1), 4]
    weights = [torch.randn(m, n, generator=rng, dtype=torch.float64) for n, m in pairwise(widths)]
    chain = chain_of(widths, [name] * len(weights), weights, [None] * len(weights))
    inputs = torch.randn(20, 5, generator=rng, dtype=torch.float64)
    bounds = Certifier.of(chain, ["0"]).bounds
    held, outputs = chain.run(inputs)[1], chain(inputs)
    chosen = outputs.argmax(1)
    for unit in range(7):
        change = silenced(chain, 0, unit, inputs) - outputs
        rise = change - change.gather(1, chosen[:, None])  # of each class over the chosen one
        found = bounds[0]
        assert found is not None
        falls, rises = (x.view(4, 4, 7)[chosen, :, unit] for x in (found.fall, found.rise))
        h = held[:, unit, None]
        allowed = torch.where(h > 0, h * falls, -h * rises)
        assert bool((rise <= allowed + 1e-9 * (1 + allowed.abs())).all())
        e = torch.zeros_like(held)
        e[:, unit] = -held[:, unit]
        vector = (found.direct[chosen] * e[:, None]).sum(2) + found.rest[chosen] * e.norm(dim=1, keepdim=True)
        assert bool((rise <= vector + 1e-9 * (1 + vector.abs())).all())


@pytest.mark.parametrize("name", ["mlp-relu", "mlp-tanh", "mlp-sigmoid", "mlp-gelu-no-bias", "double", "dropout"])
def test_networks_of_the_table_count_like_edited_weights(name: str) -> None:
    case = NETWORKS[name]
    net, chain = case.network(), Chain.of(case.network())
    assert isinstance(chain, Chain)
    inputs = case.inputs(200, "certify")
    targets = torch.randint(case.classes, (200,), generator=stream(0, "labels", name))
    judge = Judge(ACCURACY, case.classes)
    layers = [stage.layer for stage in chain.stages if stage.layer]
    before = net.sha256
    found = certified_units(chain, layers, inputs, targets, judge)
    intact = judge.values(net(inputs), targets)
    for at, layer in enumerate(layers):
        reader = chain.stages[at + 1].name
        for unit in range(chain.stages[at].made):
            weight = net.weights[reader].clone()
            weight[:, unit] = 0.0
            change = judge.values(net.with_weights({reader: weight})(inputs), targets) - intact
            assert float(found[layer].total[unit]) == float(change.sum()), (layer, unit)
    assert net.sha256 == before


def test_a_layer_behind_convolutions_counts_like_brute_force() -> None:
    case = NETWORKS["cnn-batchnorm"]
    chain = Chain.of(case.network())
    assert isinstance(chain, Chain)
    inputs, judge = case.inputs(300, "certify"), Judge(ACCURACY)
    targets = torch.randint(3, (300,), generator=stream(0, "labels"))
    found = certified_units(chain, ["8"], inputs, targets, judge)["8"]
    intact = judge.values(chain(inputs), targets)
    for unit in range(6):
        change = judge.values(silenced(chain, 2, unit, inputs), targets) - intact
        assert float(found.total[unit]) == float(change.sum())


def test_a_trained_network_is_counted_exactly_and_mostly_without_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    net, task = trained("digits")
    chain = Chain.of(net)
    assert isinstance(chain, Chain)
    evaluated = 0
    real = certify._Block._path

    def counted(block: certify._Block, at: int, to: int, pairs: certify._Pairs) -> Tensor:
        nonlocal evaluated
        evaluated += len(pairs.example)
        return real(block, at, to, pairs)

    monkeypatch.setattr(certify._Block, "_path", counted)
    data = task.test
    clear = assert_as_brute_force(chain, data.inputs, data.targets, 10)
    pairs = len(data) * sum(stage.made for stage in chain.stages[:-1])
    assert clear > 0.99 * pairs
    assert 0 < evaluated < 0.4 * pairs  # each of 16 and 12 units counts for much


def test_deep_networks_are_bounded_again_behind_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = stream(3, "deep")
    widths = [20, 30, 30, 30, 5]
    weights = [torch.randn(m, n, generator=rng) * 1.4 / n**0.5 for n, m in pairwise(widths)]
    chain = chain_of(widths, ["relu"] * 4, weights, [None] * 4)
    reached = []
    real = certify._Block._narrowed

    def narrowed(block: certify._Block, at: int, deeper: int, pairs: certify._Pairs) -> certify._Pairs:
        left = real(block, at, deeper, pairs)
        reached.append((at, deeper, len(pairs.example), len(left.example)))
        return left

    monkeypatch.setattr(certify._Block, "_narrowed", narrowed)
    inputs = torch.randn(150, 20, generator=rng)
    assert_as_brute_force(chain, inputs, torch.randint(5, (150,), generator=rng))
    assert [(at, deeper) for at, deeper, _, _ in reached] == [(0, 1)]
    assert all(0 < left < given for _, _, given, left in reached)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_many_classes_share_one_bound(depth: int) -> None:
    rng = stream(depth, "classes")
    widths = [6, *[9] * depth, certify.RIVALS + 7]
    weights = [torch.randn(m, n, generator=rng) for n, m in pairwise(widths)]
    chain = chain_of(widths, ["relu", "tanh", "gelu", "relu"][: len(weights)], weights, [None] * len(weights))
    inputs = torch.randn(40, 6, generator=rng)
    bounds = Certifier.of(chain, ["0"]).bounds[0]
    assert bounds is not None and bounds.rise.shape == (certify.RIVALS + 7, 9)
    targets = chain(inputs).argmax(1)
    targets[::3] = torch.randint(widths[-1], (14,), generator=rng)
    assert assert_as_brute_force(chain, inputs, targets) > 0


def test_a_silenced_unit_may_have_a_value() -> None:
    rng = stream(0, "silent")
    widths = [4, 6, 3]
    weights = [torch.randn(m, n, generator=rng) for n, m in pairwise(widths)]
    plain = chain_of(widths, ["sigmoid", "relu"], weights, [None, None])
    first = Stage(**{**plain.stages[0].__dict__, "silent": 0.5})
    chain = Chain((), (first, plain.stages[1]))
    inputs = torch.randn(100, 4, generator=rng)
    targets = chain(inputs).argmax(1)
    assert_as_brute_force(chain, inputs, targets)
    other = certified_units(plain, ["0"], inputs, targets, Judge(ACCURACY))["0"]
    assert not torch.equal(other.total, certified_units(chain, ["0"], inputs, targets, Judge(ACCURACY))["0"].total)


def test_a_softmax_at_the_end_changes_nothing() -> None:
    case = NETWORKS["log-softmax"]
    chain = Chain.of(case.network())
    assert isinstance(chain, Chain)
    inputs = case.inputs(100, "certify")
    assert_as_brute_force(chain, inputs, chain(inputs).argmax(1))


def test_outputs_that_are_always_equal_stay_ties() -> None:
    # All logits are 0 whatever is silenced, so that class 0 is chosen and nothing ever changes.
    chain = chain_of([2, 3, 4], ["relu", "relu"], [torch.ones(3, 2), torch.zeros(4, 3)], [None, None])
    found = certified_units(chain, ["0"], torch.ones(5, 2), torch.tensor([0, 0, 1, 2, 3]), Judge(ACCURACY))["0"]
    assert not found.total.any() and not found.rose.any() and not found.fell.any()


def test_logits_that_deletion_makes_equal_are_judged_like_brute_force() -> None:
    # The first unit lifts class 1 over class 0; without it both are 1 and the first is chosen.
    weights = [torch.ones(2, 1), torch.tensor([[0.0, 1.0], [1.0, 1.0]])]
    chain = chain_of([1, 2, 2], ["relu", "relu"], weights, [None, None])
    found = certified_units(chain, ["0"], torch.ones(3, 1), torch.tensor([0, 1, 1]), Judge(ACCURACY))["0"]
    assert (found.total.tolist(), found.rose.tolist(), found.fell.tolist()) == ([-1.0, 0.0], [1, 0], [2, 0])


def test_a_unit_that_outweighs_all_others_does_not_drown_them() -> None:
    # Both logits are 1e9 with the first unit, where single precision knows steps of 64; 0 and 1 without it.
    weights = [torch.ones(3, 1), torch.tensor([[1e9, 0.0, 0.0], [1e9, 0.5, 0.5]])]
    chain = chain_of([1, 3, 2], ["relu", "relu"], weights, [None, None])
    found = certified_units(chain, ["0"], torch.ones(2, 1), torch.tensor([0, 1]), Judge(ACCURACY))["0"]
    assert found.rose.tolist() == [1, 0, 0] and found.fell.tolist() == [1, 0, 0]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_bounds_are_reached_by_a_chain_of_single_units(depth: int) -> None:
    # 1 -> 1 -> ... -> 2 logits: deleting the first unit takes its whole lead from class 1.
    weights = [torch.ones(1, 1)] * depth + [torch.tensor([[0.0], [1.0]])]
    chain = chain_of([1] * (depth + 1) + [2], ["relu"] * len(weights), weights, [None] * len(weights))
    bounds = Certifier.of(chain, ["0"]).bounds[0]
    assert bounds is not None
    assert float(bounds.fall.view(2, 2, 1)[1, 0, 0]) == pytest.approx(1.0, abs=0.02)
    assert float(bounds.fall.view(2, 2, 1)[1, 0, 0]) >= 1.0
    total = -bounds.direct[1, 0, 0] + bounds.rest[1, 0]
    assert 1.0 <= float(total) == pytest.approx(1.0, abs=0.02 * depth)


def test_counts_of_parts_add_to_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    net, task = trained("digits")
    chain = Chain.of(net)
    assert isinstance(chain, Chain)
    count = Certifier.of(chain, ["0", "2"])
    data, judge = task.test, Judge(ACCURACY, 10)
    whole, intact = count(data.inputs, data.targets, judge)
    left, right = (count(data.inputs[part], data.targets[part], judge)[0] for part in (slice(0, 77), slice(77, None)))
    monkeypatch.setattr(certify, "ROWS", 50)
    monkeypatch.setattr(certify, "ENTRIES", 64)
    small, again = count(data.inputs, data.targets, judge)
    assert torch.equal(intact, again)
    for layer, tally in whole.items():
        for other in (left[layer] + right[layer], small[layer]):
            assert torch.equal(tally.total, other.total) and torch.equal(tally.rose, other.rose)
            assert tally.by_class is not None and other.by_class is not None
            assert torch.equal(tally.by_class, other.by_class)
            assert torch.equal(tally.by_class.sum(1), tally.total)


def test_no_inputs_are_no_changes() -> None:
    net, _ = trained("digits")
    chain = Chain.of(net)
    assert isinstance(chain, Chain)
    found, intact = Certifier.of(chain, ["2"])(torch.zeros(0, 64), torch.zeros(0, dtype=torch.long), Judge(ACCURACY))
    assert isinstance(found["2"], Tally) and not found["2"].total.any() and intact.shape == (0,)


def test_rounding_is_smaller_than_the_slack() -> None:
    rng = stream(1, "rounding")
    widths = [300, 200, 100, 10]
    weights = [torch.randn(m, n, generator=rng) / n**0.5 for n, m in pairwise(widths)]
    chain = chain_of(widths, ["relu"] * 3, weights, [torch.randn(m, generator=rng) for m in widths[1:]])
    inputs = torch.randn(400, 300, generator=rng) * torch.logspace(-3, 3, 400)[:, None]
    held = chain.run(inputs)
    norms = [x.norm(dim=1) for x in held[:-1]]
    slack = Certifier.of(chain, ["0"]).rounding.slack(norms, [1] * 3)
    error = (held[-1].double() - precise(chain)(inputs.double())).abs().amax(1)
    assert bool((2 * error < slack).all())
    assert float((slack / held[-1].abs().amax(1)).median()) < 0.05  # else nothing would be certified


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_what_cannot_be_trusted_has_no_slack_that_is_enough(bad: float) -> None:
    chain = chain_of([2, 3, 2], ["relu", "relu"], [torch.ones(3, 2), torch.ones(2, 3)], [None, None])
    rounding = Certifier.of(chain, ["0"]).rounding
    norms = [torch.tensor([bad, 1.0]), torch.tensor([1.0, 1.0])]
    assert rounding.slack(norms, [1, 1]).isfinite().tolist() == [False, True]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([1e-30, 1.0, 1e15]))
@settings(deadline=None, max_examples=30)
def test_the_bound_of_the_spectral_norm_is_one(made: int, read: int, seed: int, scale: float) -> None:
    w = scale * torch.randn(made, read, generator=stream(seed, "w"), dtype=torch.float64)
    norm = float(torch.linalg.matrix_norm(w, 2))
    assert norm <= spectral_bound(w) <= 1.3 * norm * min(made, read) ** (1 / 16)


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"none"}))
def test_slopes_are_within_their_bounds(name: str) -> None:
    stage = chain_of([1, 1, 1], [name, name], [torch.ones(1, 1)] * 2, [None] * 2).stages[0]
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    low, high = certify._slopes(stage)
    for function in (stage.post, *([lambda x: F.gelu(x, approximate="tanh")] if name == "gelu" else [])):
        slope = function(x).diff() / x.diff()
        assert low <= float(slope.min()) + 1e-9 and float(slope.max()) <= high + 1e-9


def test_layers_that_cannot_be_certified_say_why() -> None:
    judge = Judge(ACCURACY)

    def why(layer: str, *parts: nn.Module, judge: Judge = judge, shape: tuple[int, ...] = (4,)) -> str:
        chain = Chain.of(Network.of(nn.Sequential(*parts), torch.randn(2, *shape, generator=stream(0, "x"))))
        assert isinstance(chain, Chain)
        return certifiable(chain, layer, judge)

    plain = (nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert why("0", *plain) == ""
    assert "more than the prediction" in why(
        "0", *plain, judge=Judge(Score("mine", lambda y, t: 0.0, per_example=mean))
    )
    assert "no units" in why("2", *plain) and "no units" in why("", *plain)
    assert "softplus" in why("0", nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 2))
    assert "softplus" in why("2", nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert "tanh" in why("0", *plain, nn.Tanh())
    images = (nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2))
    assert "flattened" in why("0", *images, shape=(1, 4, 4))
    assert why("3", *images, shape=(1, 4, 4)) == ""
    assert why("0", *plain, nn.Softmax(1)) == "" and "mixes" in why("0", *plain, nn.Softmax(0))
    half = Chain((), tuple(Stage("w", None, torch.ones(2, 2).half(), None, None, layer=x) for x in ("a", "")))
    assert "float16" in certifiable(half, "a", judge)
    nowhere = Chain((), (Stage("w", None, torch.ones(2, 2), None, None, layer="a", silent=math.nan), half.stages[1]))
    assert certifiable(nowhere, "a", judge) != ""


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean(1)


def test_an_unknown_layer_is_an_error() -> None:
    net, _ = trained("digits")
    chain = Chain.of(net)
    assert isinstance(chain, Chain)
    with pytest.raises(InputError, match="nosuch"):
        Certifier.of(chain, ["nosuch"])
