"""The trace of a forward pass, and the count of its multiplications."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import NETWORKS, NetworkCase
from planaria.core.graph import forward_multiply_adds, trace
from planaria.core.network import Network

CASES = pytest.mark.parametrize("case", NETWORKS.values(), ids=str)


@CASES
def test_a_trace_computes_what_the_network_computes(case: NetworkCase) -> None:
    net, inputs = case.network(), case.inputs(2)
    graph = trace(net, inputs)
    (output,) = graph.outputs
    assert torch.allclose(output.tensor, net(inputs), atol=1e-6)
    assert output.active
    assert graph.is_output(output)


@CASES
def test_every_rearrangement_of_a_weight_knows_where_its_entries_come_from(case: NetworkCase) -> None:
    net = case.network()
    graph = trace(net, case.inputs(2))
    followed = 0
    for call in graph.calls:
        for value in call.outputs:
            if value is not None and value.weight is not None:
                assert value.index is not None
                flat = net.weights[value.weight].flatten()
                inside = value.index >= 0
                assert torch.equal(value.tensor[inside], flat[value.index[inside]])
                followed += 1
    assert followed > 0 or case.name == "functional"


@CASES
def test_every_weight_that_is_read_is_read_by_some_call(case: NetworkCase) -> None:
    graph = trace(case.network(), case.inputs(2))
    unread = {name for name, reads in graph.reads.items() if not reads}
    assert unread == ({"negative.weight", "negative.bias"} if case.name == "choosing" else set())


# --------------------------------------------------------------------------------------------- the ledger

ENCODER = 4 * 5 * 8 + 2 * (4 * 8 * 24 + 2 * 2 * 4 * 4 * 4 + 4 * 8 * 8 + 2 * 4 * 8 * 6) + 8 * 3
COUNTS = {
    "mlp-relu": 6 * 7 + 7 * 5 + 5 * 3,
    "mlp-norms": 6 * 7 + 7 * 5 + 5 * 4 + 4 * 3,
    "cnn-batchnorm": 36 * 2 * 9 * 4 + 9 * 4 * 9 * 5 + 45 * 6 + 6 * 3,
    "cnn-depthwise": 36 * 2 * 9 * 4 + 36 * 9 * 4 + 9 * 2 * 9 * 6 + 6 * 3,
    "conv1d": 10 * 2 * 3 * 4 + 2 * 4 * 3 * 5 + 5 * 3,
    "transformer-post-norm": ENCODER,
    "transformer-pre-norm": ENCODER,
    "attention-separate": 4 * 4 * 6 * 6 + 2 * 3 * 4 * 4 * 2 + 2 * 4 * 6 * 5 + 6 * 3,
    "attention-written-out": 4 * 6 * 18 + 2 * 2 * 4 * 4 * 3 + 4 * 6 * 6 + 6 * 3,
    "lstm-tapped": 4 * (4 * 20 + 5 * 20) + 5 * 4 + 4 * 3,
    "lstm-double": 4 * (4 * 20 + 5 * 20) + 5 * 4 + 4 * 3,
    "gru-tapped": 4 * (4 * 15 + 5 * 15) + 5 * 4 + 4 * 3,
    "tokens-tied": 6 * 5 + 5 * 6 + 6 * 7,
    "called-twice": 6 * 5 + 2 * 5 * 5 + 5 * 3,
}


@pytest.mark.parametrize(("name", "expected"), COUNTS.items(), ids=list(COUNTS))
def test_multiply_adds_are_counted_as_by_hand(name: str, expected: int) -> None:
    case = NETWORKS[name]
    assert forward_multiply_adds(Network.of(case.build()), case.inputs(2)) == expected


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_count_is_per_example(count: int) -> None:
    case = NETWORKS["cnn-batchnorm"]
    assert forward_multiply_adds(Network.of(case.build()), case.inputs(count)) == COUNTS["cnn-batchnorm"]


def test_the_count_follows_the_shape_of_the_inputs() -> None:
    net = Network.of(nn.Conv2d(1, 1, 3, bias=False))
    assert forward_multiply_adds(net, torch.zeros(1, 1, 4, 4)) == 4 * 9
    assert forward_multiply_adds(net, torch.zeros(1, 1, 5, 5)) == 9 * 9


def test_an_attention_that_the_tracer_sees_written_out_counts_the_same() -> None:
    class Fused(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.q, self.fused = nn.Linear(6, 6), fused

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x).view(len(x), 4, 2, 3).transpose(1, 2)
            if self.fused:
                return F.scaled_dot_product_attention(q, q, q)
            return (q @ q.transpose(-1, -2) / 3**0.5).softmax(-1) @ q

    counts = [forward_multiply_adds(Network.of(Fused(fused)), torch.zeros(2, 4, 6)) for fused in (True, False)]
    assert counts[0] == counts[1]
