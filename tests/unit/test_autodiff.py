"""Derivatives in eval mode, and the switches that make them possible."""

from __future__ import annotations

import pytest
import torch

from cases import NETWORKS, NetworkCase
from planaria.core.autodiff import jvp, plain_kernels, vjp
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import Weights, dot

# Not those with a fused recurrence, nor the one that reads a plain number off its activations.
DIFFERENTIABLE = [name for name in NETWORKS if not name.startswith(("lstm", "gru", "choosing"))]
CASES = pytest.mark.parametrize("name", DIFFERENTIABLE)


def doubled(case: NetworkCase) -> Network:
    inputs = case.inputs(3)
    return Network.of(case.build().double(), inputs if case.tokens else inputs.double())


def direction(net: Network, seed: int) -> Weights:
    rng = stream(seed, "direction")
    return {name: torch.randn(w.shape, generator=rng, dtype=torch.float64) for name, w in net.weights.items()}


@CASES
def test_directional_derivatives_equal_finite_differences(name: str) -> None:
    net = doubled(NETWORKS[name])
    assert net.inputs is not None
    v, step = direction(net, 1), 1e-6

    def function(weights: Weights) -> torch.Tensor:
        return net(net.inputs, weights)

    value, slope = jvp(function, net.weights, v)
    ahead = net(net.inputs, {n: w + step * v[n] for n, w in net.weights.items()})
    behind = net(net.inputs, {n: w - step * v[n] for n, w in net.weights.items()})
    assert torch.allclose(value, net(net.inputs), atol=1e-10)
    assert torch.allclose(slope, (ahead - behind) / (2 * step), rtol=1e-3, atol=1e-3)


@CASES
def test_forward_and_backward_derivatives_are_adjoint(name: str) -> None:
    net = doubled(NETWORKS[name])
    v = direction(net, 2)
    _, slope = jvp(lambda w: net(net.inputs, w), net.weights, v)
    u = torch.randn(slope.shape, generator=stream(3, "u"), dtype=torch.float64)
    value, pulled = vjp(lambda w: net(net.inputs, w), net.weights, u)
    assert torch.allclose(value, net(net.inputs))
    assert float((u * slope).sum()) == pytest.approx(float(dot(v, pulled)), rel=1e-8)
    assert pulled.keys() == net.weights.keys()
    assert not value.requires_grad


@pytest.mark.parametrize("attention", [True, False])
def test_the_switches_are_restored_after_an_exception_and_when_nested(attention: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(KeyError), plain_kernels(attention=attention), plain_kernels():
        assert not torch.backends.mha.get_fastpath_enabled()
        raise KeyError
    assert torch.backends.mha.get_fastpath_enabled() == before
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with plain_kernels():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("name", ["transformer-post-norm", "transformer-pre-norm"])
def test_the_encoders_fast_path_gives_the_same_outputs(name: str) -> None:
    case = NETWORKS[name]
    module = case.network().to_module()
    with torch.no_grad():
        assert torch.allclose(module(case.inputs(4)), case.network()(case.inputs(4)), atol=1e-5)


def test_names_that_a_function_does_not_use_have_zero_gradient() -> None:
    weights = {"used": torch.ones(2), "idle": torch.ones(3)}
    _, pulled = vjp(lambda w: 2 * w["used"], weights, torch.ones(2))
    assert pulled["used"].tolist() == [2.0, 2.0]
    assert pulled["idle"].tolist() == [0.0, 0.0, 0.0]
