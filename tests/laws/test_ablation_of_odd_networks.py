"""Laws of ablation on networks that invite mistakes: every lesion's effect is that of the damaged network itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.data import Data
from planaria.measure.scores import ACCURACY, Score
from planaria.measure.task import Task
from planaria.sweep.ablate import Effects, ablate
from planaria.sweep.audit import _ties
from planaria.sweep.edges import Becomes, Flipped
from planaria.sweep.lesions import EachUnit, EachWeight, Job, What
from planaria.sweep.plan import BRUTE, EDIT_NEXT, REPLAY
from planaria.sweep.replay import edited
from planaria.sweep.tally import Judge


class Two(nn.Module):
    """Two linear layers, for subclasses that use them oddly."""

    def __init__(self, read: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(read, 5), nn.Linear(5, 3)


class Squares(Two):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h * h)


class Number(Two):
    """A weight becomes a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x) * self.t.item()))


class ThroughNumpy(Two):
    """A weight leaves the tensors and comes back."""

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.from_numpy(self.a.weight.detach().abs().sum(1).numpy() * 1.0)
        return self.b(torch.tanh(self.a(x) * scale))


class NormOfWeights(Two):
    """A weight is read by its product, and by what is added behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.linear(x, self.a.weight, self.a.weight.norm(dim=1)).relu())


class Backwards(Two):
    """Examples in the opposite order inside."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.flip(0)).relu()).flip(0)


class Centred(Two):
    """Each example's activations are taken relative to those of the others."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h - h.mean(0))


class ByTheNumber(Two):
    """Computes something else for many examples than for few."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) * (1.0 if len(x) < 8 else 1.5)).relu())


class InParts(Two):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b(self.a(part).relu()) for part in x.split(64)])


class Cast(Two):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().double())


class Rounds(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) * 2).long().float())


class Bytes(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.float() / 255).relu())


class Single(nn.Module):
    """A layer of one unit, without an axis for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 1), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x).squeeze(-1)).unsqueeze(-1))


class Trims(nn.Module):
    """Cuts tokens to the longest of the batch, by a number that torch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : max((x != 0).sum(1).tolist())]
        return self.b((self.a(self.embed(x)).relu() * (x != 0)[..., None]).sum(1) / 6)


class Squeezing(nn.Module):
    """A unit acts through its map, and through the gate that all maps together open."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3)
        self.down, self.up, self.last = nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        gate = torch.sigmoid(self.up(self.down(h.mean((2, 3))).relu())) * 4
        return self.last(self.b(h * gate[:, :, None, None]).relu().mean((2, 3)))


class Halves(nn.Module):
    """Half of the maps are read here, half there."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, padding=1)
        self.left, self.right, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).relu().chunk(2, 1)
        return self.last(torch.cat([self.left(left), self.right(right)], 1).relu().mean((2, 3)))


class SumOfMaps(nn.Module):
    """Adds channels, of which there are as many as positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().sum(1))


class PooledAcross(nn.Module):
    """Pools over channels and positions as if they were height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 6, 3, padding=1), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.max_pool2d(self.a(x).relu(), 3, 1, 1).flatten(1))


class Skipping(nn.Module):
    """Convolutions with a normalisation, a sum and ReLUs: all that is joined into one operation."""

    def __init__(self, **norm: object) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norm, self.last = nn.BatchNorm2d(4, **norm), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last((self.b(self.norm(self.a(x)).relu()) + x).relu().mean((2, 3)))


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.last = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.norm.running_mean.clone(), self.norm.running_var.clone()
        normed = F.batch_norm(self.a(x), mean, variance, self.norm.weight, self.norm.bias, True)
        return self.last(normed.relu().mean((2, 3)))


class Filled(Two):
    """A constant is changed in place between two of its uses."""

    def forward(self, x: Tensor) -> Tensor:
        constant = torch.ones(5)
        h = (self.a(x) + constant).relu()
        constant.mul_(0.5)
        return self.b(h * constant)


def _rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "rows", *shape))


def _tokens() -> Tensor:
    tokens = torch.randint(1, 9, (100, 6), generator=stream(0, "tokens"))
    for row in range(100):
        tokens[row, 2 + row % 5 :] = 0
    return tokens


VECTORS, IMAGES, LINES = _rows(90, 6), _rows(80, 2, 6, 6), _rows(90, 2, 6)
BYTES = torch.randint(256, (90, 6), generator=stream(0, "bytes"), dtype=torch.uint8)
ODD: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]] = {  # name -> module, inputs, example inputs
    "squares": (Squares, VECTORS, VECTORS),
    "number": (Number, VECTORS, VECTORS),
    "through-numpy": (ThroughNumpy, VECTORS, VECTORS),
    "norm-of-weights": (NormOfWeights, VECTORS, VECTORS),
    "backwards": (Backwards, VECTORS, VECTORS),
    "centred": (Centred, VECTORS, VECTORS),
    "centred-one-example": (Centred, VECTORS, VECTORS[:1]),
    "by-the-number": (ByTheNumber, VECTORS, VECTORS),
    "in-parts": (InParts, VECTORS, VECTORS),
    "cast": (Cast, VECTORS, VECTORS),
    "rounds": (Rounds, VECTORS, VECTORS),
    "bytes": (Bytes, BYTES, BYTES),
    "bytes-known-as-numbers": (Bytes, BYTES, BYTES.float()),
    "single": (Single, VECTORS, VECTORS),
    "trims": (Trims, _tokens(), _tokens()[:2]),
    "squeezing": (Squeezing, IMAGES, IMAGES),
    "halves": (Halves, IMAGES, IMAGES),
    "sum-of-maps": (SumOfMaps, LINES, LINES),
    "pooled-across": (PooledAcross, LINES, LINES),
    "filled": (Filled, VECTORS, VECTORS),
    "skipping": (Skipping, IMAGES, IMAGES),
    "skipping-plain-norm": (lambda: Skipping(affine=False, eps=0.5), IMAGES, IMAGES),
    "skipping-no-statistics": (lambda: Skipping(track_running_stats=False), IMAGES, IMAGES),
    "skipping-no-statistics-one-example": (lambda: Skipping(track_running_stats=False), IMAGES, IMAGES[:1]),
    "skipping-no-statistics-same-twice": (
        lambda: Skipping(track_running_stats=False),
        IMAGES,
        IMAGES[:1].repeat(2, 1, 1, 1),
    ),
    "batch-statistics-one-example": (BatchStatistics, IMAGES, IMAGES[:1]),
    "channels-last": (lambda: Skipping().to(memory_format=torch.channels_last), IMAGES, IMAGES),
    "zeros-known": (Squeezing, IMAGES, torch.zeros(1, 2, 6, 6)),
}
odd = pytest.mark.parametrize("name", ODD)


def _network(name: str) -> tuple[Network, Data]:
    make, inputs, examples = ODD[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
    net = Network.of(module, examples)
    labels = net(inputs).argmax(1)
    labels[::4] = (labels[::4] + 1) % 3
    return net, Data(inputs, labels)


def _sum(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    return (outputs * torch.tensor([1.0, 1.5, 2.0], dtype=outputs.dtype)).sum(1)


SUM = Score("sum", lambda y, t: float(_sum(y, t).mean()), per_example=_sum)


def _check(net: Network, data: Data, what: What, score: Score, **options: object) -> Effects:
    """Every lesion against the damaged network, run whole; nothing is audited, so that nothing is mended."""
    task = Task.of("odd", data, data, validation=data, classes=3)
    effects = ablate(net, what, task, score=score, audited=0, **options)
    judge, job = Judge(score), Job.of(what, net)
    intact = judge.values(net(data.inputs), data.targets)
    assert effects.intact == pytest.approx(float(intact.mean()), rel=1e-5)
    for key, tally in effects.tallies.items():
        for place in range(tally.total.numel()):
            outputs = edited(net, job.lesion(key, place, net))(data.inputs)
            change = judge.values(outputs, data.targets) - intact
            scale = 0.1 + _ties(outputs) if score is ACCURACY else 1e-4 * float(intact.square().sum())
            total, squares = float(tally.total.view(-1)[place]), float(tally.squares.view(-1)[place])
            assert total == pytest.approx(float(change.sum()), rel=1e-3, abs=scale, nan_ok=True), (key, place)
            assert squares == pytest.approx(float(change.square().sum()), rel=1e-3, abs=scale, nan_ok=True), (
                key,
                place,
            )
    return effects


@odd
@pytest.mark.parametrize("bitwise", [False, True])
def test_every_unit_of_an_odd_network(name: str, bitwise: bool) -> None:
    net, data = _network(name)
    for score in (SUM, ACCURACY):
        _check(net, data, EachUnit(), score, bitwise=bitwise)


@odd
def test_changed_weights_of_an_odd_network(name: str) -> None:
    net, data = _network(name)
    rng = stream(1, "weights")
    changed = {n: w * (1 + 0.5 * torch.randn(w.shape, generator=rng)).to(w) for n, w in net.weights.items()}
    single = [net.with_weights({n: w}) for n, w in changed.items()]
    effects = _check(net, data, [*single, net.with_weights(changed)], SUM)
    _check(net, data, EachWeight(), ACCURACY)
    left = name in {"number", "through-numpy"}  # weights leave the tensors
    assert left <= ({way.way for way in effects.plan.ways} == {BRUTE})


@pytest.mark.parametrize("new", [Becomes(float("nan")), Becomes(float("inf")), Flipped(30)], ids=repr)
def test_numbers_that_are_none_pass_through_joined_operations(new: Becomes | Flipped) -> None:
    net, data = _network("skipping")
    effects = _check(net, data, EachWeight(new, ("first", "a")), ACCURACY)
    assert {way.way for way in effects.plan.ways} == {REPLAY}
    if new != Flipped(30):
        assert int(effects.tallies["a.weight"].fell.min()) == round(effects.intact * len(data)), "all wrong"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_coarse_numbers_are_only_replayed(kind: torch.dtype) -> None:
    for name in ("skipping", "squeezing"):
        make, inputs, _ = ODD[name]
        torch.manual_seed(0)
        net = Network.of(make().to(kind), inputs.to(kind))
        data = Data(inputs.to(kind), net(inputs.to(kind)).argmax(1))
        task = Task.of("coarse", data, data, validation=data, classes=3)
        effects = ablate(net, EachUnit(), task)
        assert {way.way for way in effects.plan.ways} == {REPLAY}
        assert "so coarse" in effects.plan.explain()
        assert effects.audit.mismatches == 0


def test_which_ways_odd_networks_go() -> None:
    found = {}
    for name in ODD:
        net, data = _network(name)
        task = Task.of("odd", data, data, validation=data, classes=3)
        effects = ablate(net, EachUnit(), task, score=SUM, audited=0)
        found[name] = {way.way for way in effects.plan.ways}
    assert found["halves"] == {EDIT_NEXT}
    assert REPLAY in found["squeezing"]
    for name, ways in found.items():
        whole = "statistics" in name or name in {"trims", "by-the-number", "in-parts", "backwards", "centred"}
        if whole and name != "in-parts":
            assert ways == {BRUTE}, name
