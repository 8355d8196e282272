"""Relevance: rows that outputs do not depend on count for nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import NETWORKS, randomise
from planaria.core.anatomy import Anatomy, silence
from planaria.core.motion import Cost
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.repair.readers import readers, rows_of
from planaria.repair.refit import Sidecar, Teacher, refit
from planaria.repair.relevance import needed, program_for, relevance


class Padded(nn.Module):
    """A small encoder of tokens of which 0 is padding, on a residual stream, with a readout of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.up, self.down, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != 0)[..., None].float()
        x = self.embed(tokens) + torch.linspace(-1, 1, tokens.shape[1])[:, None]
        x = self.norm(x + self.down(F.relu(self.up(x))))
        made: Tensor = self.head((x * there).sum(1) / there.sum(1))
        return made


def padded(count: int, longest: int = 12) -> tuple[Network, Tensor]:
    """The network with inputs of different lengths."""
    model = Padded()
    randomise(model, 3)
    rng = stream(0, "tokens")
    tokens = torch.randint(1, 12, (count, longest), generator=rng)
    lengths = torch.randint(2, longest // 2, (count, 1), generator=rng)
    tokens = tokens * (torch.arange(longest) < lengths)
    return Network.of(model, tokens), tokens


def weights_of(net: Network, inputs: Tensor) -> tuple[dict[tuple[str, int], Tensor], Cost]:
    found, _ = readers(net, len(inputs))
    order, _ = rows_of(net, found, inputs)
    weights, cost = relevance(program_for(net, found, inputs), found, inputs, order)
    return dict(weights), cost


def test_padding_has_no_weight_and_tokens_have_one() -> None:
    net, tokens = padded(40)
    weights, cost = weights_of(net, tokens)
    for name in ("up.weight", "down.weight"):
        each = weights[name, 0].view(tokens.shape)
        assert bool((each[tokens == 0] == 0).all())
        assert bool((each[tokens != 0] > 0).all())
        assert torch.allclose(each.mean(1), torch.ones(40, dtype=torch.double))
    assert cost.backward_passes == 2
    assert cost.labels == 0


def test_only_the_first_token_counts_before_a_readout_of_the_first_token() -> None:
    case = NETWORKS["bert"]
    weights, _ = weights_of(case.network(), case.inputs(6, "rows"))
    assert weights  # every example's rows weigh as many as there are, all together
    for each in weights.values():
        assert torch.allclose(each.mean(), torch.ones((), dtype=torch.double))


def test_examples_with_one_row_need_no_weights() -> None:
    case = NETWORKS["mlp-relu"]
    found, _ = readers(case.network())
    assert not needed(found)
    assert program_for(case.network(), found, case.inputs(4)) is None
    assert weights_of(case.network(), case.inputs(4)) == ({}, Cost())


def test_every_example_has_the_same_weights_in_any_company() -> None:
    case = NETWORKS["cnn-batchnorm"]
    inputs = case.inputs(70, "rows")
    all_of_them, _ = weights_of(case.network(), inputs)
    some, _ = weights_of(case.network(), inputs[60:])
    for key, each in some.items():
        assert torch.allclose(all_of_them[key].view(70, -1)[60:], each.view(10, -1), rtol=1e-4)


@pytest.mark.parametrize("form", ["teacher", "sidecar"])
def test_a_refit_is_not_led_astray_by_padding(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, tokens = padded(600)
    units = [unit for unit in Anatomy.of(net).units("neuron") if unit.index % 2]
    fitted, others = tokens[:300], tokens[300:]

    def error(other: Network) -> float:
        return float((other(others) - net(others)).square().mean())

    def refitted() -> Network:
        source = Teacher(net, fitted) if form == "teacher" else Sidecar.of(net, fitted)
        return refit(net, units, source, ridge=1e-4).network

    damaged, weighed = silence(net, Anatomy.of(net).entries(units).all), refitted()
    module = "planaria.repair.sequential" if form == "teacher" else "planaria.repair.sidecar"
    monkeypatch.setattr(f"{module}.program_for", lambda *_: None)
    assert error(weighed) < error(refitted()) < error(damaged)


def test_a_network_that_cannot_be_replayed_has_rows_of_one_weight() -> None:
    case = NETWORKS["choosing"]
    found, _ = readers(case.network())
    assert relevance(None, found, case.inputs(4), {}) == ({}, Cost())
    assert refit(case.network(), (), Teacher(case.network(), case.inputs(20))).refitted == ()
