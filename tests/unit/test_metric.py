"""The metric: its geometries, what it refuses, how it solves, and what it says about its spectrum."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import planaria.geometry.jacobian as jacobian
import planaria.geometry.metric as metrics
from cases import NETWORKS
from planaria.core.errors import InputError
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights, dot, norm
from planaria.geometry.metric import Metric
from planaria.geometry.outputs import Euclidean, Fisher, LossHessian
from planaria.geometry.solve import ConjugateGradients, Gram, Nystrom, conjugate_gradients, dual_inverse, refined
from planaria.geometry.spectrum import Spectrum, hutchpp, lanczos, rest_of_trace, signs
from planaria.measure.losses import mse
from planaria.measure.statistics import Estimate


def net_of(*layers: nn.Module, seed: int = 0) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(*layers)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return Network.of(model.double())


def drawn(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=stream(0, name), dtype=torch.float64)


def along(net: Network, name: str = "v") -> Weights:
    return {n: drawn(*w.shape, name=f"{name} {n}").to(w) for n, w in net.weights.items()}


def small() -> tuple[Network, Tensor]:
    return net_of(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), drawn(8, 5)


def by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no Gram matrix were small enough."""
    monkeypatch.setattr(metrics, "fits", lambda net, inputs: False)


# ------------------------------------------------------------------------------------------------ geometries


def test_the_metric_of_a_linear_map_is_the_second_moment_of_its_inputs() -> None:
    net, x = Network.of(nn.Linear(3, 2, bias=False).double()), drawn(10, 3)
    assert torch.allclose(Metric(net, x).dense(), torch.block_diag(*[x.T @ x / 10] * 2), atol=1e-12)


def test_fisher_is_the_hessian_of_cross_entropy_where_the_network_is_linear() -> None:
    net, x = Network.of(nn.Linear(3, 4).double()), drawn(6, 3)
    hessian = Metric(net, x, LossHessian(torch.arange(6) % 4)).dense()
    assert torch.allclose(Metric(net, x, Fisher()).dense(), hessian, atol=1e-12)


def test_warmer_predictions_are_those_of_divided_logits() -> None:
    net, x = Network.of(nn.Linear(3, 4).double()), drawn(6, 3)
    halved = net.with_weights({name: w / 2 for name, w in net.weights.items()})
    assert torch.allclose(Metric(net, x, Fisher(2.0)).dense() * 4, Metric(halved, x, Fisher()).dense(), atol=1e-12)


def test_moving_all_logits_alike_has_no_length_for_fisher() -> None:
    net, x = small()
    same = {name: torch.ones_like(w) * (name == "2.bias") for name, w in net.weights.items()}
    assert Metric(net, x, Fisher()).norm(same) < 1e-8 < Metric(net, x).norm(same)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, "warm"])
def test_a_temperature_is_a_positive_number(temperature: float) -> None:
    with pytest.raises(InputError, match="Fisher"):
        Fisher(temperature)


def test_fisher_needs_classes() -> None:
    with pytest.raises(InputError, match=r"two classes.*Euclidean"):
        Metric(Network.of(nn.Linear(3, 1)), torch.zeros(2, 3), Fisher()) @ {}


def test_outputs_with_positions_count_them_all_for_each_input() -> None:
    net, x = Network.of(nn.Linear(3, 4).double()), drawn(5, 2, 3)
    flat = Metric(net, x.reshape(10, 3), Fisher()).dense()
    assert torch.allclose(Metric(net, x, Fisher()).dense(), 2 * flat, atol=1e-12)
    spectrum = Metric(net, x, Fisher()).eigh(2)
    assert float(spectrum.values[0]) == pytest.approx(2 * float(torch.linalg.eigvalsh(flat)[-1]))


def test_one_number_per_input_is_enough() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    g = Metric(Network.of(Single()), torch.eye(2))
    assert torch.equal((g @ {"w": torch.tensor([1.0, 0.0])})["w"], torch.tensor([0.5, 0.0]))


def test_a_regression_loss_has_a_hessian_too() -> None:
    net, x = Network.of(nn.Linear(3, 2).double()), drawn(6, 3)
    assert torch.allclose(Metric(net, x, LossHessian(drawn(6, 2), mse)).dense(), Metric(net, x).dense(), atol=1e-12)


def test_a_loss_without_curvature_on_a_linear_network_has_none() -> None:
    net, x = Network.of(nn.Linear(3, 2).double()), drawn(6, 3)
    g = Metric(net, x, LossHessian(torch.zeros(6), lambda outputs, targets: outputs.mean()))
    assert float(norm(g @ along(net))) == 0 == g.largest


def test_a_loss_is_one_number_for_as_many_targets_as_inputs() -> None:
    net, x = small()
    with pytest.raises(InputError, match="one target for each input"):
        Metric(net, x, LossHessian(torch.zeros(3)))
    g = Metric(net, x, LossHessian(torch.zeros(8), lambda outputs, targets: outputs.sum(1)))
    with pytest.raises(InputError, match="one number"):
        g @ along(net)


def test_a_direction_in_which_the_loss_curves_down_has_no_length() -> None:
    net, x = small()
    g = Metric(net, x, LossHessian(torch.arange(8) % 3))
    values, vectors = torch.linalg.eigh(g.dense())
    assert float(values[0]) < 0
    parts = vectors[:, 0].split([w.numel() for w in net.weights.values()])
    down = {n: part.view(w.shape) for (n, w), part in zip(net.weights.items(), parts, strict=True)}
    assert g.inner(down, down) == pytest.approx(float(values[0]))
    with pytest.raises(InputError, match="positive curvature"):
        g.norm(down)


@pytest.mark.parametrize("of", ["euclidean", Fisher, None, 3])
def test_a_geometry_is_a_value(of: object) -> None:
    with pytest.raises(InputError, match="Metric"):
        Metric(*small(), of)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)), "'1'"),
        (nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4, track_running_stats=False), nn.Flatten()), "'1'"),
    ],
)
def test_a_normalisation_by_the_batch_is_named(model: nn.Module, named: str) -> None:
    x = torch.randn(6, 3) if isinstance(model[0], nn.Linear) else torch.randn(6, 3, 2)
    with pytest.raises(InputError, match=f"{named}.*statistics of the batch.*track_running_stats"):
        Metric(Network.of(model), x) @ {}


class AlwaysTraining(nn.Module):
    """Normalises by the batch whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(self.first(x), torch.zeros(4), torch.ones(4), training=True)


class StaysTraining(nn.BatchNorm1d):
    """Ignores that it is to be evaluated."""

    def train(self, mode: bool = True) -> StaysTraining:
        return super().train(True)


@pytest.mark.parametrize("model", [AlwaysTraining(), nn.Sequential(nn.Linear(3, 4), StaysTraining(4))])
@pytest.mark.parametrize("count", [1, 5])
def test_a_normalisation_that_ignores_eval_mode_is_found(model: nn.Module, count: int) -> None:
    with pytest.raises(InputError, match="statistics of the batch"):
        Metric(Network.of(model), torch.randn(count, 3)).norm({})


def test_normalisations_of_single_inputs_are_fine() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.InstanceNorm1d(4, affine=True), nn.GroupNorm(2, 4), nn.Flatten())
    net = Network.of(model.double())
    g, v = Metric(net, drawn(5, 3, 6)), along(net)
    assert g.norm(v) ** 2 == pytest.approx(float(dot(v, g @ v)))


def test_a_network_that_computes_something_else_each_time_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 64)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.layer(x), 0.5, training=True)

    with pytest.raises(InputError, match=r"the same twice.*dropout"):
        Metric(Network.of(Noisy()), torch.ones(4, 3)) @ {}


def test_outputs_that_are_not_finite_are_named() -> None:
    net, x = Network.of(nn.Linear(2, 1)), torch.tensor([[0.0, 1.0], [1.0, math.nan], [0.0, 0.0]])
    with pytest.raises(InputError, match="1 of 3 inputs, first for input 1"):
        Metric(net, x) @ {}


def test_directions_that_are_not_finite_are_named() -> None:
    net, x = small()
    with pytest.raises(InputError, match=r"Metric @ v\['2.bias'\].*1 NaN or infinite of 3"):
        Metric(net, x) @ {"2.bias": torch.tensor([0.0, math.inf, 1.0])}


def test_products_that_overflow_are_refused() -> None:
    net = Network.of(nn.Linear(1, 1, bias=False)).with_weights({"weight": torch.tensor([[1e-30]])})
    with pytest.raises(InputError, match=r"finite numbers.*overflow"):
        Metric(net, torch.tensor([[1e30]])) @ {"weight": torch.tensor([[1e30]])}


@pytest.mark.parametrize("v", [{"nothing": torch.zeros(3)}, {"0.weight": torch.zeros(2, 2)}])
def test_directions_that_do_not_fit_are_refused(v: Weights) -> None:
    net, x = small()
    g = Metric(net, x)
    for use in (g.__matmul__, g.push, g.norm, g.solve, lambda v: g.inner(v, v)):
        with pytest.raises(InputError, match="Metric"):
            use(v)


def test_cotangents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[8, 3\].*\[8\]"):
        Metric(*small()).pull(torch.zeros(8))


def test_no_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="at least one input"):
        Metric(small()[0], torch.zeros(0, 5))


def test_a_dense_matrix_of_a_large_network_is_refused() -> None:
    with pytest.raises(InputError, match="at most 5000 weights"):
        Metric(Network.of(nn.Linear(200, 30)), torch.zeros(2, 200)).dense()


def test_a_normalisation_by_the_batch_is_named_whatever_is_asked() -> None:
    net = Network.of(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)))
    for ask in (lambda g: g.largest, lambda g: g.trace(), lambda g: g.solve(along(net)), lambda g: g.eigh()):
        for count in (1, 5):
            with pytest.raises(InputError, match="statistics of the batch"):
                ask(Metric(net, torch.randn(count, 3)))


@pytest.mark.parametrize("ask", ["largest", "trace", "solve", "eigh", "dense", "norm"])
def test_inputs_that_are_not_finite_are_refused_by_the_metric_itself(ask: str) -> None:
    net, x = Network.of(nn.Linear(2, 1)), torch.tensor([[0.0, 1.0], [1.0, math.nan]])
    with pytest.raises(InputError, match=r"^Metric\(net, inputs\): expected finite outputs.*1 of 2 inputs"):
        found = getattr(Metric(net, x), ask)
        found(along(net)) if ask in ("solve", "norm") else found()


class Square(torch.autograd.Function):
    """x^2, with a derivative that has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class Detached(torch.autograd.Function):
    """2 x, with a derivative that torch does not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient.detach()


class Forwards(torch.autograd.Function):
    """2 x, without a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x


class Through(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function.apply(self.one(x)))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 2)), "_embedding_bag_backward.*nn.Embedding"),
        (Through(Square), "got Square, whose derivative"),
        (Through(Detached), "got Detached, whose derivative"),
        (Through(Forwards), "custom autograd.Function"),
    ],
)
def test_what_torch_cannot_differentiate_twice_is_named(model: nn.Module, named: str) -> None:
    net = net_of(model)
    x = torch.arange(12).view(4, 3) % 9 if isinstance(model, nn.Sequential) else drawn(4, 3)
    for of in (Euclidean(), Fisher(), LossHessian(torch.arange(4) % 2)):
        with pytest.raises(InputError, match=rf"Metric.*torch can differentiate.*{named}"):
            Metric(net, x, of) @ along(net)
    with pytest.raises(InputError, match=f"torch can differentiate.*{named}"):
        Metric(net, x).solve(along(net))
    with pytest.raises(InputError, match=f"torch can differentiate.*{named}"):
        Metric(net, x, LossHessian(torch.arange(4) % 2)).dense()


def test_gradients_that_are_nothing_but_rounding_are_not_mistaken_for_wrong_ones() -> None:
    class Ones(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).softmax(1).sum(1, keepdim=True)

    net = Network.of(Ones())
    assert Metric(net, torch.randn(6, 3)).norm(along(net)) < 1e-5


@pytest.mark.parametrize(
    ("v", "said"),
    [
        ([1.0], "Metric @ v: expected a dictionary.*got list"),
        (torch.zeros(6, 5), "Metric @ v: expected a dictionary.*got Tensor"),
        ({"0.weight": [[1.0]]}, r"Metric @ v\['0.weight'\]: expected real numbers of shape \[6, 5\], got list"),
        ({"0.weight": torch.zeros(6, 5, dtype=torch.complex64)}, "real numbers.*complex64"),
        ({"nothing": 3}, r"Metric @ v\['nothing'\]: expected the name of a weight, got int"),
    ],
)
def test_directions_that_are_no_weights_are_refused(v: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Metric(*small()) @ v


def test_what_is_no_network_cotangent_or_setting_is_refused() -> None:
    net, x = small()
    g: Any = Metric(net, x)
    for ask, said in (
        (lambda: Metric(nn.Linear(5, 3), x), r"Metric\(net\): expected a Network, got Linear.*Network.of"),
        (lambda: g.pull([1.0]), r"Metric.pull\(u\).*\[8, 3\], got list"),
        (lambda: g.solve(along(net), by="gram"), r"Metric.solve\(by\).*'gram'"),
        (lambda: g.solve(along(net), tolerance="small"), r"Metric.solve\(tolerance\)"),
    ):
        with pytest.raises(InputError, match=said):
            ask()


# ------------------------------------------------------------------------------------------------ half precision


def halved(dtype: torch.dtype) -> tuple[Network, Network, Tensor]:
    """A network of half precision, the same weights in double precision, and inputs."""
    net, x = small()
    half = Network.of(net.to_module().to(dtype))
    return half, Network.of(half.to_module().double()), x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of", [Euclidean(), Fisher(), LossHessian(torch.arange(8) % 3)])
def test_weights_of_half_precision_have_the_metric_of_the_same_numbers(dtype: torch.dtype, of: Any) -> None:
    half, precise, x = halved(dtype)
    g, twin, v = Metric(half, x, of), Metric(precise, x.double(), of), along(half)
    assert g.largest == pytest.approx(twin.largest, rel=1e-5)
    for found, wanted in (
        (g @ v, twin @ v),
        (g.solve(v, damping=2.0).direction, twin.solve(v, damping=2.0).direction),
        (g.eigh(1).vectors[0], twin.eigh(1).vectors[0]),
    ):
        sign = math.copysign(1.0, float(dot(found, wanted)))
        for name, one in found.items():
            assert one.dtype == dtype
            assert torch.allclose(sign * one.double(), wanted[name], rtol=0.02, atol=0.01)
    assert torch.allclose(g.eigh(3).values, twin.eigh(3).values, rtol=1e-4)
    assert g.trace().best == pytest.approx(twin.trace().best, rel=1e-4)
    assert g.norm(v) == pytest.approx(twin.norm(v), rel=1e-4) if not isinstance(of, LossHessian) else True
    assert torch.allclose(g.dense().double(), twin.dense(), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_solved_by_products_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    by_products(monkeypatch)
    half, _, x = halved(dtype)
    solved = Metric(half, x).solve(along(half), damping=0.1, by=ConjugateGradients(rank=6))
    assert solved.converged
    assert Metric(half, x).trace().best == pytest.approx(float(Metric(half, x).eigh(24).values.sum()), rel=0.2)


def test_several_inputs_of_half_precision_are_widened_too() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return self.layer(x) * gate[:, None]

    inputs = {"x": drawn(6, 3).bfloat16(), "gate": torch.arange(6)}
    net = Network.of(Two().bfloat16(), inputs)
    assert Metric(net, inputs).outputs.dtype == torch.float32
    assert Metric(net, inputs).solve(along(net)).converged


def test_a_network_that_insists_on_half_precision_is_taken_as_it_is() -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2).bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.bfloat16())

    net, x = Network.of(Insists()), drawn(6, 3).float()
    g = Metric(net, x)
    assert g.outputs.dtype == torch.bfloat16
    solved = g.solve(along(net), damping=0.5)
    assert math.isfinite(solved.residual) and solved.residual < 0.1
    assert len(g.eigh(2).vectors) == 2 and g.trace().best > 0


# ------------------------------------------------------------------------------------------------ products


def test_names_that_are_left_out_do_not_move() -> None:
    net, x = small()
    g, v = Metric(net, x), along(net)
    part = {"0.weight": v["0.weight"]}
    whole = {n: w if n in part else torch.zeros_like(w) for n, w in v.items()}
    assert torch.equal(g.push(part), g.push(whole))
    assert all(torch.equal(one, two) for one, two in zip((g @ part).values(), (g @ whole).values(), strict=True))
    assert g.norm({}) == 0


def test_pinned_entries_count_for_displacements_and_not_for_motions() -> None:
    net, x = small()
    pinned = net.pin({"0.weight": torch.ones(6, 5, dtype=torch.bool)})
    v = {"0.weight": drawn(6, 5)}
    assert Metric(pinned, x).norm(v) == Metric(net, x).norm(v) > 0
    assert float(norm(Metric(pinned, x) @ v)) == 0


@pytest.mark.parametrize("name", ["mlp-tanh", "cnn-batchnorm", "lstm", "tokens-tied"])
def test_graphs_that_are_not_kept_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = NETWORKS[name]
    net, x = case.network(), case.inputs(11)
    targets, v = torch.arange(11) % case.classes, along(net)
    whole = [Metric(net, x) @ v, Metric(net, x, LossHessian(targets)) @ v]
    monkeypatch.setattr(jacobian, "KEPT", 1)
    monkeypatch.setattr(jacobian, "PART", 1 << 11)
    g, h = Metric(net, x), Metric(net, x, LossHessian(targets))
    assert not g._jacobian.keeps and len(g._jacobian._rows) > 1
    for wanted, got in zip(whole, [g @ v, h @ v], strict=True):
        assert all(torch.allclose(wanted[n], got[n], rtol=1e-3, atol=1e-4 * float(norm(wanted))) for n in wanted)
    assert g.cost.multiply_adds == 7 * Metric(net, x).setup.multiply_adds // 3


def test_a_metric_can_be_sent_to_another_process_after_use() -> None:
    net, x = small()
    g, v = Metric(net, x, Fisher(2.0)), along(net)
    before = g @ v
    sent = pickle.loads(pickle.dumps(g))
    assert all(torch.equal(before[n], one) for n, one in (sent @ v).items())


def test_gradients_off_and_inference_mode_around_it_change_nothing() -> None:
    net, x = small()
    v = along(net)
    wanted = Metric(net, x) @ v
    with torch.no_grad():
        got = Metric(net, x) @ v
    assert all(torch.equal(wanted[n], got[n]) and not got[n].requires_grad for n in wanted)


def test_a_network_without_use_for_a_weight_gives_it_no_length() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    net = Network.of(Idle())
    g = Metric(net, torch.randn(4, 2))
    assert g.norm({"idle.weight": torch.ones(2, 2)}) == 0
    assert g.eigh(4).complete


def test_the_cost_of_a_product_is_four_passes() -> None:
    g = Metric(Network.of(nn.Linear(4, 3)), torch.zeros(5, 4))
    assert g.cost == Cost(examples=5, forward_passes=1, backward_passes=1, multiply_adds=4 * 5 * 12)


# ------------------------------------------------------------------------------------------------ equations


def test_the_factor_is_kept_for_the_next_right_hand_side(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = small()
    g, calls = Metric(net, x), []
    monkeypatch.setattr(metrics, "dual_inverse", lambda *args: calls.append(args) or dual_inverse(*args))
    first, second = g.solve(along(net)), g.solve(along(net, "w"))
    assert len(calls) == 1
    assert first.by == "gram" and first.cost.multiply_adds > second.cost.multiply_adds > 0
    json.dumps(first.to_dict())
    assert "gram" in str(first)


@settings(deadline=None, max_examples=20)
@given(st.floats(-6, 1), st.integers(0, 5))
def test_any_damping_is_solved_or_said_not_to_be(power: float, seed: int) -> None:
    net, x = small()
    solved = Metric(net, x).solve(along(net, str(seed)), damping=10**power)
    assert solved.converged == (solved.residual <= 1e-5) == (not solved.reason)
    assert solved.converged


def test_single_precision_says_when_rounding_is_in_the_way() -> None:
    case = NETWORKS["mlp-tanh"]
    net = case.network()
    solved = Metric(net, case.inputs(40)).solve(along(net), damping=1e-14)
    assert not solved.converged and "double precision" in solved.reason
    assert math.isfinite(solved.residual) and all(bool(torch.isfinite(one).all()) for one in solved.direction.values())
    assert str(solved).count("not converged") == 1


def test_a_singular_gram_matrix_is_solved_by_its_eigenvalues() -> None:
    columns = drawn(30, 2)
    kernel = columns @ columns.T - 1e-9 * torch.eye(30, dtype=torch.float64)
    inverse, how = dual_inverse(kernel, 1e-12)
    assert how == "gram, eigenvalues"
    s = columns @ torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(kernel @ inverse(s), s, atol=1e-6)


def test_repeated_inputs_make_no_trouble() -> None:
    net, x = small()
    twice = torch.cat([x, x, x[:1].expand(5, -1)])
    solved = Metric(net, twice).solve(along(net), damping=1e-8)
    assert solved.converged
    assert Metric(net, twice).eigh(1).complete


def test_negative_curvature_is_said() -> None:
    net, x = small()
    solved = Metric(net, x, LossHessian(torch.arange(8) % 3)).solve(along(net), damping=1e-4)
    assert not solved.converged and "negative curvature" in solved.reason
    enough = Metric(net, x, LossHessian(torch.arange(8) % 3)).solve(along(net), damping=2.0)
    assert enough.converged


def test_nothing_to_solve_costs_nothing() -> None:
    net, x = small()
    solved = Metric(net, x).solve({})
    assert solved.converged and float(norm(solved.direction)) == 0 and solved.cost == Cost()


@pytest.mark.parametrize("damping", [0, -1e-3, math.nan, math.inf, None])
def test_damping_is_positive(damping: float) -> None:
    net, x = small()
    with pytest.raises(InputError, match="damping"):
        Metric(net, x).solve(along(net), damping=damping)


def test_a_metric_that_is_zero_cannot_be_solved() -> None:
    net, x = small()
    none = net.pin({n: torch.ones_like(w, dtype=torch.bool) for n, w in net.weights.items()})
    for g in (Metric(none, x), Metric(Network.of(nn.Linear(2, 1, bias=False)), torch.zeros(3, 2))):
        with pytest.raises(InputError, match="metric that is zero"):
            g.solve(along(g.net))
        assert g.trace().best == 0 and g.eigh(1 if g.entries else None).stiff(0.1) == 0


def test_a_gram_matrix_of_an_indefinite_metric_is_refused() -> None:
    net, x = small()
    with pytest.raises(InputError, match="LossHessian"):
        Metric(net, x, LossHessian(torch.arange(8) % 3)).solve(along(net), by=Gram())


def test_half_plastic_weights_move_half_as_far_along_free_directions() -> None:
    net, x = Network.of(nn.Linear(3, 1, bias=False).double()), torch.eye(3, dtype=torch.float64)[:2]
    net = net.with_plasticity({"weight": torch.tensor([[1.0, 1.0, 0.5]], dtype=torch.float64)})
    b = {"weight": torch.ones(1, 3, dtype=torch.float64)}
    solved = Metric(net, x).solve(b, damping=0.1)
    assert solved.mu == pytest.approx(0.05)
    assert torch.allclose(solved.direction["weight"], torch.tensor([[1 / 0.55, 1 / 0.55, 10.0]]).double())


def test_conjugate_gradients_stop_at_their_limit_and_say_so() -> None:
    net, x = small()
    solved = Metric(net, x).solve(along(net), damping=1e-8, by=ConjugateGradients(steps=2))
    assert not solved.converged and solved.steps == 2 and "not enough" in solved.reason


def test_a_good_preconditioner_saves_steps() -> None:
    values = torch.cat([torch.logspace(0, -3, 20), torch.full((180,), 1e-6)]).double()
    b = drawn(200)
    plain = conjugate_gradients(lambda y: values * y, b, 1e-4, 1e-8, 500)
    inverse = Nystrom.of(lambda y: values * y, b, 25).inverse(1e-4)
    helped = conjugate_gradients(lambda y: values * y, b, 1e-4, 1e-8, 500, inverse=inverse)
    assert helped.steps < plain.steps / 2
    for found in (plain, helped):
        assert torch.allclose(found.vector, b / (values + 1e-4), rtol=1e-4)


def test_refinement_repairs_a_rough_inverse() -> None:
    values, b = torch.rand(50, generator=stream(0, "e")).double() + 0.1, drawn(50)
    rough = refined(lambda y: values * y, lambda r: r / (values + 0.1) * 1.01, b, 0.1, 1e-10, 8)
    assert rough.residual <= 1e-10 and 1 < rough.steps < 8
    wrong = refined(lambda y: values * y, lambda r: -r, b, 0.1, 1e-10, 8)
    assert wrong.residual == 1.0 and not wrong.vector.any() and wrong.reason


# ------------------------------------------------------------------------------------------------ spectrum


def test_products_give_the_same_spectrum_as_the_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = small()
    wanted = Metric(net, x).eigh(4)
    by_products(monkeypatch)
    g = Metric(net, x)
    got = g.eigh(4)
    assert not got.complete and got.trace is not None
    assert torch.allclose(got.values, wanted.values[:4], rtol=1e-6)
    assert g.largest == pytest.approx(float(wanted.values[0]), rel=1e-5)
    for one, two in zip(got.vectors, wanted.vectors, strict=True):
        assert abs(float(dot(one, two))) == pytest.approx(1.0, abs=1e-4)
    assert max(got.residuals) < 1e-4
    whole, part = wanted.effective_dimension(0.01), got.effective_dimension(0.01)
    assert part.low <= whole.best <= part.high and part.low < part.high
    assert got.resilient_fraction(0.01).high <= 1


def test_products_find_every_eigenvalue_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = small()
    wanted = Metric(net, x, Fisher()).eigh(None)
    by_products(monkeypatch)
    g = Metric(net, x, Fisher())
    got = g.eigh(16)
    assert got.complete and got.rank == 16
    assert torch.allclose(got.values[: len(wanted.values)], wanted.values, atol=1e-4 * g.largest)


def test_hutchinson_plus_plus_covers_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = small()
    exact = Metric(net, x).trace()
    assert exact.low == exact.high
    by_products(monkeypatch)
    hits = 0
    for seed in range(20):
        estimate = Metric(net, x).trace(18, seed)
        hits += estimate.low <= exact.best <= estimate.high
        assert estimate.best == pytest.approx(exact.best, rel=0.4)
    assert hits >= 15
    with pytest.raises(InputError, match="queries"):
        Metric(net, x).trace(3)


def test_more_directions_than_the_inputs_can_tell_apart_are_refused() -> None:
    net, x = small()
    with pytest.raises(InputError, match=r"from 1 to 24.*got 25.*more inputs: 8 of them give 8 x 3 outputs"):
        Metric(net, x).eigh(25)
    with pytest.raises(InputError, match="from 1 to 16"):
        Metric(net, x, Fisher()).eigh(17)
    for k in (0, -1, 2.5):
        with pytest.raises(InputError, match="eigh"):
            Metric(net, x).eigh(k)  # type: ignore[arg-type]


def test_without_a_gram_matrix_a_number_of_directions_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    by_products(monkeypatch)
    with pytest.raises(InputError, match="Give k"):
        Metric(*small()).eigh()


def test_a_loss_has_eigenvalues_of_both_signs() -> None:
    net, x = small()
    g = Metric(net, x, LossHessian(torch.arange(8) % 3))
    values = torch.linalg.eigvalsh(g.dense())
    got = g.eigh(6)
    wanted = values[values.abs().argsort(descending=True)[:6]].sort(descending=True).values
    assert float(got.values[-1]) < 0 < float(got.values[0])
    assert torch.allclose(got.values, wanted, atol=1e-4 * float(values.abs().max()))


def test_equal_eigenvalues_do_not_stop_lanczos() -> None:
    values = torch.tensor([3.0, 3.0, 3.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    rng = stream(0, "start")
    found, vectors, residuals = lanczos(
        lambda y: values * y, lambda: torch.randn(6, generator=rng, dtype=torch.float64), 4, 6
    )
    assert torch.allclose(found, values[:4])
    assert torch.allclose(vectors @ vectors.T, torch.eye(4).double(), atol=1e-10)
    assert float(residuals.max()) < 1e-8


def test_the_trace_of_a_positive_metric_begins_at_what_is_known() -> None:
    values = torch.tensor([4.0] * 3 + [1e-3] * 200 + [1.0], dtype=torch.float64)
    rng, basis = stream(0, "probes"), torch.eye(204, dtype=torch.float64)[:, :3]
    args = (lambda y: values * y, lambda: torch.randn(204, generator=rng).double() * (values < 4), basis, 12.0, 3)
    assert min(rest_of_trace(*args, positive=True).low for _ in range(20)) >= 12.0
    assert min(rest_of_trace(*args).low for _ in range(20)) < 12.0  # of an indefinite one, who knows
    assert hutchpp(lambda y: values * y, lambda: signs(values, rng), 6, positive=True).low >= 0


def test_nothing_that_is_plastic_is_said() -> None:
    net, x = small()
    none = net.pin({n: torch.ones_like(w, dtype=torch.bool) for n, w in net.weights.items()})
    for of in (Euclidean(), LossHessian(torch.arange(8) % 3)):
        with pytest.raises(InputError, match="nothing that is plastic"):
            Metric(none, x, of).eigh(2)


def test_the_trace_of_nothing_is_zero() -> None:
    rng = stream(0, "probe")
    assert hutchpp(lambda y: 0 * y, lambda: signs(torch.ones(4), rng), 9) == Estimate(0, 0, 0)


def test_a_spectrum_answers_in_numbers_and_words() -> None:
    values = torch.tensor([10.0, 5.0, 0.05]).double()
    whole = Spectrum(values, (), entries=100, complete=True, rank=3)
    assert whole.stiff(0.01) == 2
    assert whole.effective_dimension(5.0).best == pytest.approx(10 / 15 + 0.5 + 0.05 / 5.05)
    assert whole.resilient_fraction(5.0).best == pytest.approx(1 - whole.effective_dimension(5.0).best / 100)
    assert "all that are not zero" in str(whole)
    part = replace(whole, complete=False, rank=50)
    assert part.effective_dimension(5.0).high > whole.effective_dimension(5.0).high
    assert "at most 50" in str(part)
    with pytest.raises(InputError, match="known eigenvalues"):
        part.stiff(0.001)
    for tau in (0, 1, -1, math.nan):
        with pytest.raises(InputError, match="tau"):
            whole.stiff(tau)
    for mu in (0, -1, math.nan):
        with pytest.raises(InputError, match="mu"):
            whole.effective_dimension(mu)
    assert json.loads(json.dumps(whole.to_dict()))["entries"] == 100


def test_what_rounding_hides_is_said_and_lies_within_the_bounds() -> None:
    rng = stream(0, "decaying")
    scale = 10.0 ** -torch.linspace(0, 5, 40, dtype=torch.float64)  # eigenvalues over ten decades
    x = torch.linalg.qr(torch.randn(40, 40, generator=rng, dtype=torch.float64)).Q * scale
    precise = Metric(Network.of(nn.Linear(40, 1, bias=False).double(), x), x).eigh()
    net = Network.of(nn.Linear(40, 1, bias=False), x.float())
    g = Metric(net, x.float())
    got = g.eigh()
    largest = float(got.values[0])
    assert precise.complete and len(precise.values) == precise.rank == 40
    assert got.complete and 10 < len(got.values) < 40 and 0 < got.resolved < 1e-5 * largest
    assert float(got.values[-1]) > got.resolved and got.to_dict()["resolved"] == got.resolved
    assert f"all above {got.resolved:.2g}" in str(got)
    known = precise.values[: len(got.values)]
    assert float((got.values - known).abs().max()) < got.resolved
    for mu in torch.logspace(-14, 1, 31).tolist():
        true, found = precise.effective_dimension(mu * largest).best, got.effective_dimension(mu * largest)
        assert found.low - 0.05 <= true <= found.high + 0.05
        assert got.resilient_fraction(mu * largest).low == pytest.approx(1 - found.high / got.entries)
    near, far = got.effective_dimension(0.1 * largest), got.effective_dimension(1e-9 * largest)
    assert near.high - near.low < 1e-3 and far.high - far.low > 3
    assert got.stiff(1e-3) == precise.stiff(1e-3)
    with pytest.raises(InputError, match="double precision"):
        got.stiff(0.1 * got.resolved / largest)
    assert precise.stiff(1e-9) == int((precise.values > 1e-9 * float(precise.values[0])).sum())


def test_the_default_geometry_is_euclidean() -> None:
    net, x = small()
    assert Metric(net, x).of == Euclidean()
    assert "8 inputs, Euclidean" in repr(Metric(net, x))
