"""Law: a refit is the dense least-squares solution, computed here the slow way, and touches nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cases import NETWORKS, NetworkCase, hurt, randomise, sidecar, teacher
from planaria.core.anatomy import Anatomy, Unit
from planaria.core.errors import InputError
from planaria.core.graph import Watch, run
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence
from planaria.damage.sites import RandomUnits, RankedUnits
from planaria.repair.reader import read_by
from planaria.repair.readers import readers
from planaria.repair.refit import Refit, Sidecar, Teacher, refit
from purity import state

Array = NDArray[np.float64]
CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)


def refitted(net: Network, source: Sidecar | Teacher, ridge: float = 1e-4) -> Network:
    (moment,) = Refit(source, ridge)(net, stream(0, "x"))
    return moment.network


# ------------------------------------------------------------------------------------------- the slow twin


@dataclass(frozen=True)
class Layer:
    """A linear or convolutional layer with the inputs it saw."""

    name: str
    module: nn.Module
    x: Tensor

    def rows(self) -> list[Array]:
        """Per group: what one output number is computed from [rows, features]."""
        module, x = self.module, self.x
        if isinstance(module, nn.Linear):
            return [x.reshape(-1, x.shape[-1]).numpy().astype(np.float64)]
        assert isinstance(module, (nn.Conv1d, nn.Conv2d))
        if isinstance(module, nn.Conv1d):
            x = x[:, :, None]
        kernel, stride, padding, dilation = (
            (1, *v) if isinstance(module, nn.Conv1d) else v
            for v in (module.kernel_size, module.stride, module.padding, module.dilation)
        )
        if isinstance(module, nn.Conv1d):
            padding = (0, *module.padding)
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))  # type: ignore[arg-type]
        sizes = [
            (x.shape[2 + a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1  # type: ignore[operator]
            for a in (0, 1)
        ]
        width = x.shape[1] // module.groups
        groups = []
        for g in range(module.groups):
            mine = x[:, g * width : (g + 1) * width]
            rows = [
                [
                    mine[n, c, i * stride[0] + ki * dilation[0], j * stride[1] + kj * dilation[1]]  # type: ignore[operator]
                    for c, ki, kj in product(range(width), range(kernel[0]), range(kernel[1]))
                ]
                for n, i, j in product(range(len(x)), range(sizes[0]), range(sizes[1]))
            ]
            groups.append(np.array(rows, dtype=np.float64))
        return groups

    def matrices(self, weights: dict[str, Tensor]) -> list[Array]:
        """Per group: [features, outputs]."""
        weight = weights[f"{self.name}.weight"].flatten(1)
        count = getattr(self.module, "groups", 1)
        return [part.T.numpy().astype(np.float64) for part in weight.chunk(count)]


def layers(net: Network, inputs: Tensor) -> list[Layer]:
    """Linear and convolutional layers in the order of execution."""
    model, seen = net.to_module(), []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.register_forward_hook(lambda m, args, out, name=name: seen.append(Layer(name, m, args[0].detach())))
    with torch.no_grad():
        model(inputs)
    return seen


def row_weights(net: Network, inputs: Tensor) -> dict[str, Array]:
    """How much the outputs depend on what a layer makes at each row, relative to the example's other rows."""
    model = net.to_module()
    made: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.register_forward_hook(lambda m, args, out, name=name: made.setdefault(name, out.clone()))
    with torch.enable_grad():
        for parameter in model.parameters():
            parameter.requires_grad_()
        outputs = model(inputs)
    squares: dict[str, Tensor] = {}
    for draw in range(2):
        along = torch.randn(outputs.shape[1:], generator=stream(draw, "relevance"), dtype=torch.double)
        grads = torch.autograd.grad((outputs * along).sum(), list(made.values()), retain_graph=True)
        for name, grad in zip(made, grads, strict=True):
            squares[name] = squares.get(name, torch.zeros(())) + grad.square()
    weights = {}
    for name, square in squares.items():
        convolution = not isinstance(dict(model.named_modules())[name], nn.Linear)
        sizes = square.sum(1).flatten(1) if convolution else square.sum(-1).reshape(len(inputs), -1)
        weights[name] = (sizes.sqrt() / sizes.sqrt().mean(1, keepdim=True)).flatten().numpy()
    return weights


def bias_of(layer: Layer, net: Network) -> tuple[str, Array | float]:
    """Name of the bias that takes a layer's shift, and what a shift becomes there: its own, or that of a batch norm
    right behind it."""
    name = f"{layer.name}.bias"
    if name in net.weights or not layer.name.isdigit():
        return name, 1.0
    norm = dict(net.to_module().named_modules()).get(str(int(layer.name) + 1))
    if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return name, 1.0
    assert norm.running_var is not None
    factor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return f"{int(layer.name) + 1}.bias", factor.numpy()


def twin_of_the_sidecar(intact: Network, damaged: Network, inputs: Tensor, ridge: float) -> dict[str, Array]:
    """Least squares over activations: what living features must add to replace what dead ones gave."""
    answer: dict[str, Array] = {}
    each = row_weights(intact, inputs)
    for layer in layers(intact, inputs):
        weight = f"{layer.name}.weight"
        bias, factor = bias_of(layer, damaged)
        whole, now = layer.matrices(intact.weights), layer.matrices(damaged.weights)
        pinned = {weight: (damaged.plasticity[weight] == 0) & (damaged.weights[weight] == 0)}
        gone = [(part == 1).all(1) for part in layer.matrices({weight: pinned[weight].double()})]
        if not any(g.any() for g in gone):
            continue
        parts, shifts = [], []
        for rows, old, new, dead in zip(layer.rows(), whole, now, gone, strict=True):
            living = rows[:, ~dead]
            if bias in intact.weights:
                living = np.hstack([living, np.ones((len(rows), 1))])
            lost = rows[:, dead] @ old[dead]
            root = np.sqrt(each[layer.name])[:, None]
            living, lost = living * root, lost * root
            level = ridge * float((living**2).mean())
            # Ridge regression as ordinary least squares with extra rows.
            a = np.vstack([living, np.sqrt(level * len(rows)) * np.eye(living.shape[1])])
            b = np.vstack([lost, np.zeros((living.shape[1], lost.shape[1]))])
            change = np.linalg.lstsq(a, b, rcond=None)[0]
            fixed = new.copy()
            fixed[~dead] += change[: int((~dead).sum())]
            parts.append(fixed)
            shifts.append(change[-1])
        keep = damaged.plasticity[weight].numpy() == 0
        dense = np.concatenate([p.T for p in parts]).reshape(damaged.weights[weight].shape)
        answer[weight] = np.where(keep, damaged.weights[weight].numpy(), dense)
        if bias in intact.weights:
            moved = damaged.weights[bias].numpy() + factor * np.concatenate(shifts)
            answer[bias] = np.where(damaged.plasticity[bias].numpy() == 0, damaged.weights[bias].numpy(), moved)
    return answer


TWINS = ["mlp-relu", "mlp-sigmoid", "mlp-norms", "cnn-batchnorm", "cnn-depthwise", "conv1d", "tokens-wise", "dropout"]


def doubled(case: NetworkCase) -> Network:
    return Network.of(case.build().double(), case.inputs(3).double())


@pytest.mark.parametrize("ridge", [1e-4, 1e-1])
@pytest.mark.parametrize("name", TWINS)
def test_a_sidecar_refit_is_the_least_squares_solution(name: str, ridge: float) -> None:
    case = NETWORKS[name]
    intact, inputs = doubled(case), case.inputs(40, "moments").double()
    damaged = Damage(Silence(), RandomUnits(per_layer=True)).at(0.5)(intact, stream(2, "x"))
    fixed = refitted(damaged, Sidecar.of(intact, inputs), ridge)
    expected = twin_of_the_sidecar(intact, damaged, inputs, ridge)
    assert expected
    for weight, values in expected.items():
        assert np.allclose(fixed.weights[weight].numpy(), values, rtol=1e-6, atol=1e-7), weight
    changed = {n for n, w in fixed.weights.items() if not torch.equal(w, damaged.weights[n])}
    assert changed <= set(expected)


@pytest.mark.parametrize("name", TWINS)
def test_single_precision_agrees_with_double(name: str) -> None:
    case = NETWORKS[name]
    intact, inputs = case.network(), case.inputs(200, "moments")
    damaged = Damage(Silence(), RandomUnits(per_layer=True)).at(0.4)(intact, stream(2, "x"))
    fixed = refitted(damaged, Sidecar.of(intact, inputs))
    double = doubled(case)
    damaged_double = Damage(Silence(), RandomUnits(per_layer=True)).at(0.4)(double, stream(2, "x"))
    expected = refitted(damaged_double, Sidecar.of(double, inputs.double()))
    a, b = fixed(inputs), expected(inputs.double())
    assert float((a - b).abs().max()) < 1e-2 * float(b.abs().max())


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_batch_size_of_a_sidecar_does_not_matter(batch: int) -> None:
    case = NETWORKS["cnn-depthwise"]
    intact, inputs = doubled(case), case.inputs(40, "moments").double()
    one, other = Sidecar.of(intact, inputs), Sidecar.of(intact, inputs, batch=batch)
    for name, moment in one.moments.items():
        assert torch.allclose(moment, other.moments[name], rtol=1e-10)


def test_a_sequential_refit_goes_layer_by_layer_from_the_repaired_network() -> None:
    case = NETWORKS["mlp-tanh"]
    intact, inputs = doubled(case), case.inputs(60, "moments").double()
    damaged = Damage(Silence(), RankedUnits((Unit("0", 1), Unit("0", 4), Unit("2", 0)))).at(1.0)(intact, stream(0, "x"))
    ridge = 1e-6
    weights = {name: w.numpy().copy() for name, w in damaged.weights.items()}
    now = inputs.numpy()
    targets = [*[layer.x.numpy() for layer in layers(intact, inputs)][1:], intact(inputs).numpy()]
    for at, dead in (("0", []), ("2", [1, 4]), ("4", [0])):
        w, b = weights[f"{at}.weight"], weights[f"{at}.bias"]
        target = np.arctanh(targets[("0", "2", "4").index(at)]) if at != "4" else targets[2]
        living = np.hstack([np.delete(now, dead, 1), np.ones((len(now), 1))])
        error = target - (now @ w.T + b)
        level = ridge * float((living**2).mean())
        a = np.vstack([living, np.sqrt(level * len(now)) * np.eye(living.shape[1])])
        change = np.linalg.lstsq(a, np.vstack([error, np.zeros((living.shape[1], error.shape[1]))]), rcond=None)[0]
        keep = np.setdiff1d(np.arange(w.shape[1]), dead)
        free = damaged.plasticity[f"{at}.weight"].numpy() != 0
        proposal = w.copy()
        proposal[:, keep] += change[:-1].T
        weights[f"{at}.weight"] = np.where(free, proposal, w)
        weights[f"{at}.bias"] = np.where(damaged.plasticity[f"{at}.bias"].numpy() != 0, b + change[-1], b)
        z = now @ weights[f"{at}.weight"].T + weights[f"{at}.bias"]
        now = np.tanh(z) if at != "4" else z
    fixed = refitted(damaged, Teacher(intact, inputs), ridge)
    assert np.allclose(fixed(inputs).numpy(), now, rtol=1e-4, atol=1e-5)
    for name, values in weights.items():
        assert np.allclose(fixed.weights[name].numpy(), values, rtol=1e-3, atol=1e-4), name


# -------------------------------------------------------------------------------------- lossless redundancy


def twin_units(case: NetworkCase, layer: str, keep: int, copy: int) -> Network:
    """The network with one unit of a layer made a copy of another, as seen by everything that reads it."""
    net = case.network()
    anatomy = Anatomy.of(net)
    original, duplicate = anatomy.entries([Unit(layer, keep)]), anatomy.entries([Unit(layer, copy)])
    weights = {name: w.clone() for name, w in net.weights.items()}
    for role in ("incoming", "scale", "shift"):
        for name, hit in getattr(duplicate, role).items():
            weights[name][hit] = weights[name][getattr(original, role)[name]]
    buffers = {name: b.clone() for name, b in net.buffers.items()}
    for name, buffer in buffers.items():
        if buffer.ndim == 1 and name.partition(".")[0] == str(int(layer) + 1):
            buffer[copy] = buffer[keep]
    return net.with_weights(weights, buffers)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("mlp-relu", "0"), ("mlp-sigmoid", "2"), ("mlp-norms", "3"), ("cnn-batchnorm", "0"), ("cnn-batchnorm", "4"),
     ("cnn-batchnorm", "8"), ("conv1d", "0"), ("conv1d", "3")],
)  # fmt: skip
@pytest.mark.parametrize("source", ["sidecar", "teacher"])
def test_a_deleted_duplicate_is_repaired_exactly(name: str, layer: str, source: str) -> None:
    case = NETWORKS[name]
    net = twin_units(case, layer, keep=1, copy=3)
    inputs = case.inputs(300, "moments")
    damaged = Damage(Silence(), RankedUnits((Unit(layer, 3),))).at(1.0)(net, stream(0, "x"))
    test = case.inputs(50, "test")
    scale = float(net(test).abs().max())
    assert float((damaged(test) - net(test)).abs().max()) > 1e-2 * scale, "the unit did not matter"
    fixed = refitted(damaged, Sidecar.of(net, inputs) if source == "sidecar" else Teacher(net, inputs), ridge=1e-7)
    assert float((fixed(test) - net(test)).abs().max()) < 1e-4 * scale * (10 if source == "teacher" else 1)


@pytest.mark.parametrize("form", ["transformer-pre-norm", "attention-separate"])
def test_a_deleted_duplicate_head_is_repaired_exactly(form: str) -> None:
    case = NETWORKS[form]
    net = case.network()
    layer = next(g.layer for g in Anatomy.of(net).groups if g.kind == "head")
    anatomy = Anatomy.of(net)
    first, second = anatomy.entries([Unit(layer, 0)]), anatomy.entries([Unit(layer, 1)])
    weights = {name: w.clone() for name, w in net.weights.items()}
    for role in ("incoming", "shift"):
        for name, hit in getattr(second, role).items():
            weights[name][hit] = weights[name][getattr(first, role)[name]]
    net = net.with_weights(weights)
    damaged = Damage(Silence(), RankedUnits((Unit(layer, 1),))).at(1.0)(net, stream(0, "x"))
    inputs, test = case.inputs(300, "moments"), case.inputs(50, "test")
    fixed = refitted(damaged, Sidecar.of(net, inputs), ridge=1e-7)
    scale = float(net(test).abs().max())
    assert float((damaged(test) - net(test)).abs().max()) > 1e-3 * scale
    assert float((fixed(test) - net(test)).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn-no-bias", "lstm-stacked"])
@pytest.mark.parametrize("source", ["sidecar", "teacher"])
def test_a_deleted_duplicate_in_a_recurrent_layer_is_repaired_exactly(name: str, source: str) -> None:
    case = NETWORKS[name]
    net = case.network()
    group = next(g for g in Anatomy.of(net).groups if g.kind == "recurrent")
    one, other = group.count - 2, group.count - 1
    weights = {n: w.clone() for n, w in net.weights.items()}
    for owner in (group.owners["incoming"], group.owners["shift"]):
        for n, of in owner.items():
            rows = of if of.ndim == 1 else of[:, 0]
            weights[n][rows == other] = weights[n][rows == one]
    net = net.with_weights(weights)
    damaged = Damage(Silence(), RankedUnits((Unit(group.layer, other),))).at(1.0)(net, stream(0, "x"))
    inputs, test = case.inputs(300, "moments"), case.inputs(50, "test")
    scale = float(net(test).abs().max())
    assert float((damaged(test) - net(test)).abs().max()) > 1e-3 * scale, "the unit did not matter"
    fixed = refitted(damaged, Sidecar.of(net, inputs) if source == "sidecar" else Teacher(net, inputs), ridge=1e-7)
    assert float((fixed(test) - net(test)).abs().max()) < 1e-3 * scale


# ------------------------------------------------------------------------------------------------- rows of readers


@CASES
def test_the_rows_of_a_reader_give_what_it_makes(case: NetworkCase) -> None:
    net, inputs = case.network(), case.inputs(5, "rows")
    found, _ = readers(net, 5)
    assert found
    read: dict[str, Tensor] = {}
    tried = set()

    def seen(tag: str, args: tuple[Any, ...], output: Any) -> None:
        for name, reader in found.items():
            if tag in reader.tags:
                read[name] = reader.features(read_by(tag, args)).double()
            if tag in reader.outs:
                made = torch.bmm(read.pop(name), reader.matrix(net.weights))
                if reader.inside:
                    made = made + reader.shift(net, net.weights)[:, None]
                rows = reader.outputs(output)
                assert torch.equal(reader.back(rows, output), output), name
                missed = rows.double() - made
                missed = missed - missed.mean(1, keepdim=True)  # a bias that is not its own
                assert float(missed.abs().max()) <= 1e-4 * (1 + float(rows.abs().max())), name
                tried.add(name)

    run(net, inputs, Watch(seen))
    assert tried == set(found)


# ----------------------------------------------------------------------------------------- nothing else moves


@CASES
@pytest.mark.parametrize("make", [lambda case: sidecar(case.name), teacher], ids=["sidecar", "teacher"])
def test_without_dead_units_a_refit_is_the_identity(
    case: NetworkCase, make: Callable[[NetworkCase], Sidecar | Teacher]
) -> None:
    net = case.network()
    assert state(refitted(net, make(case))) == state(net)


@CASES
@pytest.mark.parametrize("make", [lambda case: sidecar(case.name), teacher], ids=["sidecar", "teacher"])
def test_a_refit_never_touches_pinned_or_unrelated_weights(
    case: NetworkCase, make: Callable[[NetworkCase], Sidecar | Teacher]
) -> None:
    damaged = hurt(case)
    rng = stream(case.seed, "pins")
    pins = {name: torch.rand(w.shape, generator=rng) < 0.2 for name, w in damaged.weights.items()}
    damaged = damaged.pin(pins)
    fixed = refitted(damaged, make(case))
    for name, weight in damaged.weights.items():
        held = damaged.plasticity[name] == 0
        assert torch.equal(fixed.weights[name][held], weight[held]), name
        assert bool(fixed.weights[name].isfinite().all())
    assert state(fixed)[1] == state(damaged)[1], "plasticity has changed"
    anatomy = Anatomy.of(damaged)
    assert {n: d.tolist() for n, d in anatomy.dead(fixed).items()} == {
        n: d.tolist() for n, d in anatomy.dead(damaged).items()
    }


@CASES
def test_a_refit_never_raises_the_error_that_it_minimises(case: NetworkCase) -> None:
    units = [unit for unit in Anatomy.of(case.network()).units() if unit.index % 3 == 1]
    few = case.inputs(12, "moments")  # too few to hold some out
    for source in (Teacher(case.network(), few), Sidecar.of(case.network(), few)):
        for fit in refit(case.network(), units, source).layers:
            assert not fit.held_out
            assert 0 <= fit.after <= fit.before * (1 + 1e-4) + 1e-6, fit


@CASES
def test_a_refit_does_not_make_the_outputs_worse_where_it_was_fitted(case: NetworkCase) -> None:
    net, damaged = case.network(), hurt(case, 0.3)
    inputs = case.inputs(32, "moments")
    fixed = refitted(damaged, teacher(case))

    def error(other: Network) -> float:
        return float((other(inputs).double() - net(inputs).double()).square().mean())

    assert error(fixed) <= error(damaged) * 1.01 + 1e-12


def test_all_units_of_a_layer_dead_leaves_the_mean_as_bias() -> None:
    case = NETWORKS["mlp-relu"]
    net, inputs = case.network(), case.inputs(100, "moments")
    damaged = Damage(Silence(), RandomUnits(layers=("2",))).at(1.0)(net, stream(0, "x"))
    fixed = refitted(damaged, Sidecar.of(net, inputs))
    assert torch.allclose(fixed(inputs), net(inputs).mean(0).expand(100, 3), atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_without_living_inputs_and_without_bias_stays_silent(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=bias))
    randomise(model, 0)
    inputs = torch.randn(20, 4, generator=stream(0, "in"))
    net = Network.of(model, inputs)
    damaged = Damage(Silence(), RandomUnits()).at(1.0)(net, stream(0, "x"))
    for source in (Sidecar.of(net, inputs), Teacher(net, inputs)):
        fixed = refitted(damaged, source)
        assert bool(fixed(inputs).isfinite().all())
        assert bool((fixed.weights["2.weight"] == 0).all())


@pytest.mark.parametrize("count", [1, 2])
def test_very_few_inputs_give_finite_weights(count: int) -> None:
    for name in ("mlp-relu", "cnn-batchnorm", "transformer-post-norm"):
        case = NETWORKS[name]
        net, few = case.network(), case.inputs(count, "few")
        for source in (Sidecar.of(net, few), Teacher(net, few)):
            fixed = refitted(hurt(case), source)
            assert all(bool(w.isfinite().all()) for w in fixed.weights.values())


def test_constant_and_zero_inputs_give_finite_weights() -> None:
    case = NETWORKS["mlp-relu"]
    net = case.network()
    for inputs in (torch.zeros(10, 6), torch.ones(10, 6)):
        for source in (Sidecar.of(net, inputs), Teacher(net, inputs)):
            assert all(bool(w.isfinite().all()) for w in refitted(hurt(case), source).weights.values())


def test_a_sidecar_of_another_network_is_refused() -> None:
    one, other = NETWORKS["mlp-relu"], NETWORKS["cnn-batchnorm"]
    with pytest.raises(InputError, match=r"Sidecar\.moments.*another network"):
        refitted(hurt(one), sidecar(other.name))
    with pytest.raises(InputError, match="intact form of the same network"):
        refitted(hurt(one), teacher(other))
    with pytest.raises(InputError, match="intact"):
        refitted(hurt(NETWORKS["transformer-post-norm"]), sidecar("attention-separate"))


def test_unusable_inputs_and_settings_are_refused() -> None:
    net = NETWORKS["mlp-relu"].network()
    with pytest.raises(InputError, match="at least one input"):
        Sidecar.of(net, torch.zeros(0, 6))
    with pytest.raises(InputError, match="finite"):
        Sidecar.of(net, torch.full((3, 6), float("nan")))
    for ridge in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"Refit\.ridge"):
            Refit(sidecar("mlp-relu"), ridge)
    with pytest.raises(InputError):
        refitted(hurt(NETWORKS["mlp-relu"]), Teacher(net, torch.zeros(0, 6)))


def test_what_has_no_moments_is_named() -> None:
    assert sidecar("attention-stacked").refused == {}
    assert "also read by embedding" in sidecar("tokens-tied").refused["embed.weight"]
    assert "in different ways" in sidecar("tied").refused["encode.weight"]


def test_a_sidecar_refit_sees_no_data_and_a_sequential_one_pays_for_it() -> None:
    case = NETWORKS["mlp-relu"]
    (one,) = Refit(sidecar(case.name))(hurt(case), stream(0, "x"))
    (two,) = Refit(teacher(case))(hurt(case), stream(0, "x"))
    assert (one.cost.examples, one.cost.labels, one.cost.forward_passes, one.cost.backward_passes) == (0, 0, 0, 0)
    assert one.cost.multiply_adds > 0
    assert (two.cost.examples, two.cost.labels, two.cost.backward_passes) == (32, 0, 0)
    assert two.cost.forward_passes == 2
    assert two.cost.multiply_adds > one.cost.multiply_adds
    assert sidecar(case.name).cost.examples == 32
    assert isinstance(one.cost, Cost)
