"""Distances between many networks: twins, hostile weights, and what may not depend on how they are computed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cases import NETWORKS
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.trees import norm, subtract
from planaria.geometry import distances
from planaria.geometry.distances import answer_distances, output_distances, weight_distances
from purity import fingerprint, world


def family(name: str = "mlp-relu", count: int = 4, size: float = 0.3) -> list[Network]:
    net, rng = NETWORKS[name].network(), stream(5, "family")
    moved = [
        net.with_weights({n: w + size * torch.randn(w.shape, generator=rng).to(w) for n, w in net.weights.items()})
        for _ in range(count - 1)
    ]
    return [net, *moved]


def by_pairs(nets: list[Network]) -> Tensor:
    doubles = [{name: weight.double() for name, weight in net.weights.items()} for net in nets]
    return torch.stack([torch.stack([norm(subtract(a, b)) for b in doubles]) for a in doubles])


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-batchnorm", "transformer-pre-norm", "lstm-tapped", "tied"])
def test_all_distances_are_symmetric_with_a_zero_diagonal_and_equal_to_those_pair_by_pair(name: str) -> None:
    nets, x = family(name), NETWORKS[name].inputs(12)
    found = weight_distances(nets)
    assert torch.allclose(found, by_pairs(nets), rtol=1e-9)
    outputs = torch.stack([net(x).double().flatten(1) for net in nets])
    apart = (outputs[:, None] - outputs[None]).square().sum(-1).mean(-1).sqrt()
    assert torch.allclose(output_distances(nets, x), apart, rtol=1e-9, atol=1e-12)
    p = torch.stack([net(x).double().softmax(-1) for net in nets])
    p = p.reshape(len(nets), -1, p.shape[-1])
    middle = (p[:, None] + p[None]) / 2
    js = (p[:, None] * (p[:, None] / middle).log() + p[None] * (p[None] / middle).log()).sum(-1) / 2
    assert torch.allclose(answer_distances(nets, x), js.mean(-1).clamp(min=0).sqrt(), atol=1e-7)
    for one in (found, output_distances(nets, x), answer_distances(nets, x)):
        assert one.dtype is torch.float64 and torch.equal(one, one.T) and not one.diagonal().any()


@settings(deadline=None, max_examples=30)
@given(exponent=st.integers(-12, 4), offset=st.integers(0, 6))
def test_small_distances_keep_their_digits_beside_large_ones(exponent: int, offset: int) -> None:
    base = Network.of(torch.nn.Linear(5, 4).double())
    far = base.with_weights({n: w + 10.0**offset for n, w in base.weights.items()})
    near = far.with_weights({n: w + 10.0**exponent for n, w in far.weights.items()})
    nets = [base, far, near, far]
    found = weight_distances(nets)
    assert torch.allclose(found, by_pairs(nets), rtol=1e-5)
    assert found[1, 3] == 0


def test_the_result_does_not_depend_on_how_much_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    nets, x = family(), NETWORKS["mlp-relu"].inputs(20)
    whole = [weight_distances(nets), output_distances(nets, x), answer_distances(nets, x)]
    monkeypatch.setattr(distances, "ROOM", 8 * len(nets) * 3)
    parts = [weight_distances(nets), output_distances(nets, x), answer_distances(nets, x)]
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_network_that_is_not_finite_is_infinitely_far_from_all_others() -> None:
    nets, x = family(), NETWORKS["mlp-relu"].inputs(4)
    first = next(iter(nets[0].weights))
    for place in (0, 2):
        for bad in (math.nan, math.inf):
            broken = list(nets)
            broken[place] = nets[place].with_weights({first: torch.full_like(nets[place].weights[first], bad)})
            for found in (weight_distances(broken), output_distances(broken, x), answer_distances(broken, x)):
                others = [at for at in range(4) if at != place]
                assert found[place, others].isinf().all() and found[others, place].isinf().all()
                assert found[others][:, others].isfinite().all() and found[place, place] == 0


def test_what_cannot_be_compared_is_refused_by_name() -> None:
    nets, x = family(), NETWORKS["mlp-relu"].inputs(4)
    with pytest.raises(InputError, match="at least one network"):
        weight_distances([])
    with pytest.raises(InputError, match=r"network 1 with .*'weight'"):
        weight_distances([Network.of(torch.nn.Linear(2, 3)), Network.of(torch.nn.Linear(3, 2))])
    with pytest.raises(InputError, match="no 'bias'"):
        weight_distances([Network.of(torch.nn.Linear(2, 3)), Network.of(torch.nn.Linear(2, 3, bias=False))])
    with pytest.raises(InputError, match="at least one example"):
        output_distances(nets, x[:0])
    with pytest.raises(InputError, match="outputs of one shape"):
        answer_distances([Network.of(torch.nn.Linear(2, 3)), Network.of(torch.nn.Linear(2, 4))], torch.ones(3, 2))


def test_nothing_is_changed_by_looking() -> None:
    nets, x = family(), NETWORKS["mlp-relu"].inputs(4)
    before, around = [fingerprint(net) for net in nets], world()
    weight_distances(nets), output_distances(nets, x), answer_distances(nets, x)
    assert [fingerprint(net) for net in nets] == before and world() == around


def test_one_network_alone_has_distance_zero() -> None:
    net, x = NETWORKS["mlp-relu"].network(), NETWORKS["mlp-relu"].inputs(4)
    for found in (weight_distances([net]), output_distances([net], x), answer_distances([net], x)):
        assert found.tolist() == [[0.0]]
