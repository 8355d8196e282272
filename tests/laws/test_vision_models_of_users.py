"""Laws on the models that people bring: image, series and regression networks, siamese pairs, routed experts.

Small stand-ins for what torchvision, timm and research code are made of. Each must be silenced exactly, ablated as
brute force says, scored as a plain loop over the user's own module does, and repaired without reviving anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import randomise
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import InputError
from planaria.core.graph import strays, way
from planaria.core.network import Network, unwrapped
from planaria.core.streams import stream
from planaria.damage.sites import sizes
from planaria.measure.data import Data
from planaria.measure.models import check_fit
from planaria.measure.scores import Score
from planaria.measure.task import Task
from planaria.repair.refit import Sidecar, Teacher, refit
from planaria.repair.retrain import Retrain
from planaria.study.selectivity import responses
from planaria.sweep.ablate import ablate
from planaria.sweep.compact import compact
from planaria.sweep.lesions import EachUnit
from planaria.sweep.plan import BRUTE

# ------------------------------------------------------------------------------------------------- what people bring


class UNet(nn.Module):
    """Down, up again by a transposed convolution, joined with what was there before; one answer per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.middle = nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.joined = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 5, 3, padding=1)
        self.out = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm(self.down(x)), inplace=True)
        back = self.up(F.relu(self.middle(F.max_pool2d(first, 2))))
        return self.out(F.relu(self.joined(torch.cat([back, first], 1))))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
        self.decode = nn.Sequential(
            nn.Linear(5, 16), nn.ReLU(), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 2, 4, 2), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.tower(left) - self.tower(right)).abs())


class Conditioned(nn.Module):
    """Feature maps scaled and shifted by what another input says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film, self.head = nn.Conv2d(2, 4, 3), nn.Linear(5, 8), nn.Linear(4, 3)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[..., None, None].chunk(2, 1)
        return self.head(F.relu(self.conv(image) * scale + shift).mean((2, 3)))


class Windows(nn.Module):
    """Attention in windows that are shifted, with a table of regions built in place on every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out = nn.Conv2d(2, 6, 1), nn.Linear(6, 18), nn.Linear(6, 6)
        self.up, self.down, self.head = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        n, h, w, d = x.shape
        regions, number = x.new_zeros((h, w)), 0
        for rows in (slice(0, -2), slice(-2, -1), slice(-1, None)):
            for columns in (slice(0, -2), slice(-2, -1), slice(-1, None)):
                regions[rows, columns] = number
                number += 1
        regions = regions.view(h // 2, 2, w // 2, 2).permute(0, 2, 1, 3).reshape(-1, 4)
        apart = (regions[:, None] != regions[:, :, None]).float() * -100.0
        y = x.roll((-1, -1), (1, 2)).view(n, h // 2, 2, w // 2, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, d)
        q, k, v = self.qkv(y).view(-1, 4, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)).view(n, -1, 2, 4, 4) + apart[:, None]
        y = self.out((scores.view(-1, 2, 4, 4).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, d))
        y = y.view(n, h // 2, w // 2, 2, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, d).roll((1, 1), (1, 2))
        x = x + y
        return self.head((x + self.down(F.gelu(self.up(x)))).mean((1, 2)))


class Shifted(nn.Module):
    """Some channels moved along time, by assignment into zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv1d(2, 6, 3, padding=1), nn.Conv1d(6, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        moved = torch.zeros_like(h)
        moved[:, :2, :-1], moved[:, 2:4, 1:], moved[:, 4:] = h[:, :2, 1:], h[:, 2:4, :-1], h[:, 4:]
        return self.head(F.relu(self.b(moved)).mean(-1))


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.value, self.gate = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        gate = torch.sigmoid(self.gate(x))
        return self.head(gate * F.relu(self.value(x)) + (1 - gate) * x)


class Equilibrium(nn.Module):
    """One layer until its output changes no more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.first(x), torch.zeros(len(x), 6, dtype=x.dtype)
        for _ in range(12):
            new = torch.tanh(0.3 * self.again(z) + x)
            if bool((new - z).norm() < 1e-3 * new.norm()):
                return self.head(new)
            z = new
        return self.head(z)


class Routed(nn.Module):
    """A mixture of experts: which of them an example meets depends on the example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(5, 6), nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        share, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            if mine.any():
                out[mine] += share[mine, None] * expert(x[mine])
        return self.head(x + out)


def plain(norm: Callable[[int], nn.Module], act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Two convolutions with a normalisation each, the mean of every map, a readout."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), norm(4), act(), nn.Conv2d(4, 6, 3, 2), norm(6), act()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )


def shuffled() -> nn.Module:
    """A grouped convolution, its channels shuffled, then places for channels."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1, groups=2), nn.ReLU(), nn.ChannelShuffle(2)),
        *(nn.PixelShuffle(2), nn.Conv2d(2, 5, 3), nn.Hardswish(), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        nn.Linear(5, 3),
    )


def gated_series() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 8, 3), nn.GLU(1), nn.Conv1d(4, 6, 3, dilation=2), nn.PReLU(6)),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3)),
    )


def volume() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 5, 2)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)),
    )


def curve() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))


ROWS = 40


def rows(*shape: int) -> Tensor:
    return torch.randn(ROWS, *shape, generator=stream(0, "rows", *shape))


@dataclass(frozen=True)
class Brought:
    """A model as someone brings it.

    Attributes:
        make: Makes the module.
        inputs: What it takes: a tensor, a tuple or a mapping.
        score: Of its task.
        brute: Whether its pass cannot be recorded.
    """

    make: Callable[[], nn.Module]
    inputs: Any
    score: str = "accuracy"
    brute: bool = False


IMAGES, SERIES, VECTORS = rows(2, 6, 6), rows(2, 9), rows(5)
BROUGHT: dict[str, Brought] = {
    "unet": Brought(UNet, IMAGES),
    "autoencoder": Brought(Autoencoder, IMAGES, "r2"),
    "siamese": Brought(Siamese, (VECTORS, rows(5) + 1)),
    "conditioned": Brought(Conditioned, {"image": IMAGES, "condition": VECTORS}),
    "windows": Brought(Windows, IMAGES),
    "shifted": Brought(Shifted, SERIES, brute=True),
    "highway": Brought(Highway, VECTORS),
    "equilibrium": Brought(Equilibrium, VECTORS, brute=True),
    "group-norm": Brought(lambda: plain(lambda width: nn.GroupNorm(2, width)), IMAGES),
    "instance-norm": Brought(lambda: plain(lambda width: nn.InstanceNorm2d(width, affine=True)), IMAGES),
    "local-response": Brought(lambda: plain(lambda width: nn.LocalResponseNorm(2)), IMAGES),
    "channels-last": Brought(
        lambda: plain(nn.BatchNorm2d).to(memory_format=torch.channels_last),
        IMAGES.to(memory_format=torch.channels_last),
    ),
    "shuffled": Brought(shuffled, rows(2, 4, 4)),
    "gated-series": Brought(gated_series, SERIES),
    "volume": Brought(volume, rows(1, 4, 4, 4)),
    "curve": Brought(curve, VECTORS, "spearman"),
}
brought = pytest.mark.parametrize("name", BROUGHT)


def module_of(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
    randomise(module, 0)
    return module.eval()


def called(module: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        if isinstance(inputs, dict):
            found = module(**inputs)
        else:
            found = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
    assert isinstance(found, Tensor)
    return found


@cache
def case(name: str) -> tuple[nn.Module, Network, Task, Tensor]:
    """The user's module, the network, its task, and what the module gives for the task's inputs."""
    one = BROUGHT[name]
    module = module_of(one.make)
    truth = called(module, one.inputs)
    if one.score == "accuracy":
        labels = truth.argmax(1)
        labels[::3] = (labels[::3] + 1) % 3
        if labels.ndim > 1:
            labels[:, :2] = -100  # no label there
        data = Data.of((one.inputs, labels))
        task = Task.of(name, data, data, validation=data, classes=3)
    else:
        wanted = truth + 0.3 * truth.std() * torch.randn(truth.shape, generator=stream(0, "noise"))
        data = Data.of((one.inputs, wanted))
        task = Task.of(name, data, data, validation=data, loss="mse", score=one.score)
    return module, Network.of(module, data.examples), task, truth


def third(net: Network) -> list[Unit]:
    """One in three units of every layer that has several."""
    groups = [group for group in Anatomy.of(net).select() if group.count > 1]
    return [Unit(group.layer, index) for group in groups for index in range(0, group.count, 3)]


@brought
def test_it_computes_and_scores_as_the_users_own_module_does(name: str) -> None:
    module, net, task, truth = case(name)
    assert torch.allclose(net(task.test.inputs), truth, rtol=1e-5, atol=1e-6)
    assert task.score(net) == pytest.approx(task.score(module))
    if BROUGHT[name].score == "accuracy":
        targets = task.test.targets
        counted = targets != -100
        right = ((truth.argmax(1) == targets) & counted).reshape(ROWS, -1).sum(1) / counted.reshape(ROWS, -1).sum(1)
        assert task.score(net) == pytest.approx(float(right.double().mean()))


@brought
def test_every_layer_is_silenced_exactly(name: str) -> None:
    _, net, task, _ = case(name)
    anatomy = Anatomy.of(net)
    assert anatomy.select()
    if name == "equilibrium":
        return  # damage changes the number of its steps, and gates are those of the intact pass
    for check in anatomy.verify(net, task.test.inputs[:8], per_layer=4):
        assert check.exact


def _sum(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    flat = outputs.reshape(len(outputs), -1).double()
    return flat @ torch.linspace(1, 2, flat.shape[1], dtype=torch.float64)


SUM = Score("sum", lambda y, t: float(_sum(y, t).mean()), per_example=_sum)


@brought
def test_ablation_is_brute_force(name: str) -> None:
    _, net, task, truth = case(name)
    effects = ablate(net, EachUnit(), task, score=SUM, audited=0)
    assert ({one.way for one in effects.plan.ways} == {BRUTE}) == BROUGHT[name].brute
    intact, anatomy = _sum(truth, truth), Anatomy.of(net)
    slack = 1e-4 * ROWS * (1 + float(intact.abs().max()))
    for group in anatomy.select():
        for index in range(0, group.count, 2):
            hurt = silence(net, anatomy.entries([Unit(group.layer, index)]).all)
            change = float((_sum(hurt(task.test.inputs), truth) - intact).sum())
            assert float(effects.tallies[group.layer].total[index]) == pytest.approx(change, abs=slack), (group, index)


@brought
@pytest.mark.parametrize("source", ["sidecar", "teacher"])
def test_a_refit_helps_and_revives_nothing(name: str, source: str) -> None:
    _, net, task, truth = case(name)
    lesion, x = third(net), task.test.inputs
    entries = Anatomy.of(net).entries(lesion).all
    hurt = silence(net, entries)
    found = refit(net, lesion, Sidecar.of(net, x) if source == "sidecar" else Teacher(net, x))
    before, after = (float((one(x) - truth).norm()) for one in (hurt, found.network))
    assert after <= 1.02 * before
    assert after < 0.9 * before or found.unrepaired or source == "sidecar"
    again = silence(found.network, entries)
    assert torch.allclose(again(x), found.network(x), rtol=1e-4, atol=1e-5)


@brought
def test_retraining_moves_no_dead_unit(name: str) -> None:
    _, net, task, _ = case(name)
    entries = Anatomy.of(net).entries(third(net)).all
    hurt = silence(net, entries)
    for _, moment in zip(range(3), Retrain(task, batch=16)(hurt, stream(0, "retrain")), strict=False):
        found = moment.network
    assert any(not torch.equal(found.weights[key], weight) for key, weight in hurt.weights.items())
    for key, hit in entries.items():
        assert not found.weights[key][hit].any()
    x = task.test.inputs
    assert torch.allclose(silence(found, entries)(x), found(x), rtol=1e-4, atol=1e-5)


@brought
def test_a_compacted_network_computes_the_same(name: str) -> None:
    _, net, task, truth = case(name)
    hurt = silence(net, Anatomy.of(net).entries(third(net)).all)
    small = compact(hurt, task.test.inputs)
    wanted = hurt(task.test.inputs)
    assert torch.allclose(small.network(task.test.inputs), wanted, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))
    assert torch.allclose(called(small.module, BROUGHT[name].inputs), wanted, rtol=1e-4, atol=1e-4)
    assert small.units_removed or small.kept


# -------------------------------------------------------------------------------------- where the data decide the way


@cache
def routed() -> tuple[Network, Task]:
    module = module_of(Routed)
    module.router.bias.data.zero_()
    with torch.no_grad():
        truth = module(VECTORS)
        chosen = module.router(F.relu(module.first(VECTORS))).argmax(-1)  # type: ignore[operator, union-attr]
    assert len(chosen.unique()) > 2
    other = int((chosen != chosen[0]).nonzero()[0])
    net = Network.of(module, VECTORS[[0, other]])
    data = Data(VECTORS, truth.argmax(1))
    return net, Task.of("routed", data, data, validation=data, classes=3)


def test_inputs_that_go_another_way_are_told() -> None:
    net, task = routed()
    assert net.inputs is not None
    assert strays(net, task.test.inputs) and not strays(net, net.inputs)
    assert way(net, net.inputs)[:2] == ("addmm first.weight", "addmm router.weight")
    steady, their = case("unet")[1:3]
    assert not strays(steady, their.test.inputs)


def test_nothing_is_refitted_by_what_other_layers_read() -> None:
    net, task = routed()
    x = task.test.inputs
    lesion = [Unit(group.layer, 0) for group in Anatomy.of(net).groups if group.layer.startswith("experts")]
    hurt = silence(net, Anatomy.of(net).entries(lesion).all)
    sidecar = Sidecar.of(net, x)
    assert not sidecar.moments and all("the data decide" in why for why in sidecar.refused.values())
    for source in (sidecar, Teacher(net, x)):
        found = refit(net, lesion, source)
        assert not found.refitted
        assert torch.equal(found.network(x), hurt(x))
        assert found.unrepaired.keys() == {unit.layer for unit in lesion}
        assert all("the data decide" in why for layer, why in found.unrepaired.items() if layer.endswith(".0"))


def test_experts_are_ablated_as_brute_force_says() -> None:
    net, task = routed()
    effects = ablate(net, EachUnit(), task, score=SUM, audited=4)
    assert {one.way for one in effects.plan.ways} == {BRUTE}
    anatomy, x = Anatomy.of(net), task.test.inputs
    for layer, lost in effects.lost.items():
        hurt = silence(net, anatomy.entries([Unit(layer, 1)]).all)
        assert float(lost[1]) == pytest.approx(float((_sum(net(x), x) - _sum(hurt(x), x)).mean()), abs=1e-4)


def test_activations_of_experts_are_not_those_of_others() -> None:
    net, task = routed()
    experts = [group.layer for group in Anatomy.of(net).groups if group.layer.startswith("experts")]
    found = responses(net, task.test, experts)
    assert found.unknown.keys() == set(experts)
    # Mean |activation| of an expert's units over the rows that it meets, in parts of 32 inputs.
    module = net.to_module()
    layer = next(name for name in experts if name.endswith(".0"))
    said: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda m, args, out: said.append(F.relu(out).detach()))
    for part in task.test.inputs.split(32):
        module(part)
    handle.remove()
    expected = torch.cat(said).double().mean(0)
    outgoing = net.weights[layer.replace(".0", ".2") + ".weight"].double()
    assert torch.allclose(sizes(net, layers=(layer,), inputs=task.test.inputs)[layer], expected * outgoing.norm(dim=0))


# ----------------------------------------------------------------------------------------------- wrapped and unusual


def test_wrappers_are_taken_off() -> None:
    inner = module_of(lambda: plain(nn.BatchNorm2d))

    class Compiled(nn.Module):
        """What torch.compile returns, as far as its form goes."""

        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = inner

    for wrapped in (nn.DataParallel(inner), Compiled(), nn.DataParallel(Compiled())):
        assert unwrapped(wrapped) is inner
        net = Network.of(wrapped, IMAGES)
        assert net.weights.keys() == dict(inner.named_parameters()).keys()
        assert torch.equal(net(IMAGES), called(inner, IMAGES))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::FutureWarning")
def test_scripted_modules_are_refused_with_a_reason() -> None:
    scripted = torch.jit.trace(nn.Linear(2, 3), torch.zeros(1, 2))
    with pytest.raises(InputError, match=r"Network.of\(model\): expected a module whose operations .* got TorchScript"):
        Network.of(scripted, torch.zeros(1, 2))
    with pytest.raises(InputError, match=r"Network.of\(model\)\.0: .* TorchScript"):
        Network.of(nn.Sequential(scripted, nn.Linear(3, 2)), torch.zeros(1, 2))


class Remembering(nn.Module):
    """Keeps what it has computed, graph and all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.last: Tensor | None = None
        self.seen: dict[str, Tensor] = {}
        self.all: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = F.relu(self.first(x))
        self.seen["last"], self.all = self.last, [self.last]
        return self.head(self.last)


def test_a_module_that_keeps_activations_can_be_copied() -> None:
    module = module_of(Remembering)
    module(VECTORS).sum().backward()
    assert module.last is not None and module.last.grad_fn is not None  # type: ignore[union-attr]
    net = Network.of(module, VECTORS)
    assert torch.equal(net(VECTORS), called(module, VECTORS))
    assert torch.equal(called(net.to_module(), VECTORS), called(module, VECTORS))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_normalisation_by_hooks_can_be_copied() -> None:
    module = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    net = Network.of(module, VECTORS)
    doubled = net.with_weights({"0.weight_g": 2 * net.weights["0.weight_g"], "0.bias": 2 * net.weights["0.bias"]})
    with torch.no_grad():
        wanted = module[2](2 * F.relu(module[0](VECTORS)))
    assert torch.allclose(doubled(VECTORS), wanted, atol=1e-6)


def test_what_cannot_be_copied_is_said() -> None:
    module = nn.Linear(2, 1)
    module.queue = (row for row in ())  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"a module that can be copied, got TypeError: .*generator"):
        Network.of(module, torch.zeros(1, 2))


def test_a_network_that_draws_in_eval_mode_is_refused_before_anything_is_trained() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(5, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(F.relu(self.first(x)), 0.5))

    data = Data(VECTORS, torch.arange(ROWS) % 3)
    with torch.random.fork_rng(), pytest.raises(InputError, match="the same outputs for the same inputs in eval mode"):
        check_fit(module_of(Drawing), Task.of("drawing", data, data, validation=data, classes=3))


class InTraining(nn.Module):
    """Does something else in train mode."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.first, self.head, self.aside, self.fault = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(9, 3), fault

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.first(x))
        if not self.training:
            return self.head(h)
        if self.fault == "shape":
            return self.head(h), self.aside(h)
        if self.fault == "graph":
            return self.head(h).detach()
        return {"aside": self.head(-h), "main": self.head(h)}


@pytest.mark.parametrize(
    ("fault", "said"), [("shape", "in train mode: expected .* RuntimeError"), ("graph", "gradient")]
)
def test_a_network_that_cannot_be_trained_is_told_why(fault: str, said: str) -> None:
    data = Data(VECTORS, torch.arange(ROWS) % 3)
    task = Task.of("odd", data, data, validation=data, classes=3)
    net = Network.of(module_of(lambda: InTraining(fault)), VECTORS)
    with pytest.raises(InputError, match=said):
        next(iter(Retrain(task, batch=8)(net, stream(0, "retrain"))))


def test_the_output_that_counts_in_training_can_be_named() -> None:
    data = Data(VECTORS, torch.arange(ROWS) % 3)
    task = Task.of("odd", data, data, validation=data, classes=3)
    module = module_of(lambda: InTraining(""))
    net = Network.of(module, VECTORS, output="main")
    assert torch.equal(net(VECTORS), called(module, VECTORS))
    moment = next(iter(Retrain(task, batch=ROWS)(net, stream(0, "retrain"))))
    copied = copy.deepcopy(module)
    task.loss(copied(VECTORS), data.targets).backward()
    for name, parameter in copied.named_parameters():  # the first step of Adam goes against the sign of the gradient
        step = moment.network.weights[name] - net.weights[name]
        assert parameter.grad is None or bool((step * parameter.grad <= 0).all())


def test_a_network_for_even_batches_is_refused() -> None:
    class Paired(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(10, 4), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.first(x.view(-1, 10)))).view(-1, 3)

    data = Data(VECTORS, torch.arange(ROWS) % 3)
    with pytest.raises(InputError, match="any number of inputs at a time, got RuntimeError"):
        check_fit(module_of(Paired), Task.of("pairs", data, data, validation=data, classes=3))


def test_a_map_of_labels_with_255_for_none_is_told_what_to_write() -> None:
    labels = torch.zeros(ROWS, 6, 6, dtype=torch.int64)
    labels[:, 0] = 255
    data = Data(IMAGES, labels)
    with pytest.raises(InputError, match=r"expected 256 outputs.* Where a number such as 255 .* make it -100"):
        check_fit(module_of(UNet), Task.of("void", data, data, validation=data))
    with pytest.raises(InputError, match="What is no label must be -100"):
        Task.of("void", data, data, validation=data, classes=3)


def test_an_expanded_weight_costs_no_more_than_the_weight() -> None:
    class Sequence(nn.Module):
        """Time comes first, so that torch multiplies with the weight expanded to every step."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(256, 256, bias=False), nn.Linear(256, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.first(x.transpose(0, 1))).mean(0))

    net = Network.of(module_of(Sequence), torch.randn(2, 2000, 256, generator=stream(0, "long")))
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        anatomy = Anatomy.of(net)
    largest = max(event.cpu_memory_usage for event in profile.function_events)
    assert largest < 100 << 20, "one copy of the weight's places for every step would be a gigabyte"
    (group,) = anatomy.select()
    assert (group.layer, group.count, group.exact_by) == ("first", 256, "both")
