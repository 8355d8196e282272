"""Refit: rescue in practice; that it is the least-squares solution is a law."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cases import NETWORKS, randomise, trained
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.faults import Silence, StuckAt
from planaria.damage.sites import RandomEntries, RandomUnits
from planaria.repair.readers import readers
from planaria.repair.refit import Refit, Sidecar, Teacher, refit


def rescued(net: Network, source: Sidecar | Teacher, dose: float, seed: int) -> tuple[Network, Network]:
    damaged = Damage(Silence(), RandomUnits(per_layer=True)).at(dose)(net, stream(seed, "x"))
    return damaged, next(Refit(source)(damaged, stream(0, "x"))).network


@pytest.mark.parametrize("form", ["sidecar", "teacher"])
def test_half_the_units_gone_is_rescued_in_closed_form_on_the_digits(form: str) -> None:
    net, task = trained("digits")
    inputs = task.train.inputs[:512]
    source = Sidecar.of(net, inputs) if form == "sidecar" else Teacher(net, inputs)
    intact = task.score(net)
    before, after = [], []
    for seed in range(3):
        damaged, fixed = rescued(net, source, 0.3, seed)
        before.append(task.score(damaged))
        after.append(task.score(fixed))
    assert intact > 0.7
    assert sum(after) > sum(before) + 0.3
    assert sum(after) / 3 > intact - 0.2


def test_a_regression_is_rescued_too() -> None:
    net, task = trained("surface")
    damaged, fixed = rescued(net, Sidecar.of(net, task.train.inputs), 0.3, 1)
    assert task.score(fixed) > task.score(damaged)


def test_more_inputs_do_not_hurt() -> None:
    net, task = trained("digits")
    scores = [task.score(rescued(net, Sidecar.of(net, task.train.inputs[:n]), 0.5, 0)[1]) for n in (64, 1024)]
    assert scores[1] >= scores[0] - 0.02


def test_readers_are_the_layers_in_order_and_the_rest_has_a_reason() -> None:
    found, refused = readers(NETWORKS["cnn-batchnorm"].network())
    assert list(found) == ["0.weight", "4.weight", "8.weight", "10.weight"]
    assert [reader.bias for reader in found.values()] == ["0.bias", "5.bias", "8.bias", "10.bias"]
    assert refused == {}


def test_a_product_with_too_many_inputs_is_left_out_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(3, 9000, bias=False), nn.ReLU(), nn.Linear(9000, 2))
    net = Network.of(model, torch.zeros(1, 3))
    sidecar = Sidecar.of(net, torch.randn(4, 3, generator=stream(0, "in")))
    assert "9000 numbers" in sidecar.refused["2.weight"]
    assert list(sidecar.moments) == []


def test_a_sidecar_says_what_it_is_and_how_large() -> None:
    sidecar = Sidecar.of(NETWORKS["mlp-relu"].network(), NETWORKS["mlp-relu"].inputs(10))
    assert repr(sidecar) == "<Sidecar: moments of 2 readers over 10 inputs>"
    assert sidecar.bytes == 4 * (8 * 9 // 2 + 6 * 7 // 2)
    assert sidecar.cost.forward_passes == 1
    for moment in sidecar.moments.values():
        assert torch.allclose(moment, moment.transpose(1, 2))
        assert float(moment[0, -1, -1]) == 1.0


def test_a_sidecar_keeps_what_the_damage_destroys() -> None:
    case = NETWORKS["mlp-relu"]
    net = case.network()
    sidecar = Sidecar.of(net, case.inputs(50))
    units = Anatomy.of(net).units()[::2]
    lost = silence(net, Anatomy.of(net).entries(units).all)
    readable, gone = (refit(known, units, sidecar).network for known in (net, lost))
    assert readable.sha256 == gone.sha256
    assert float((gone(case.inputs(50)) - net(case.inputs(50))).norm()) < float(
        (lost(case.inputs(50)) - net(case.inputs(50))).norm()
    )


def test_stuck_units_are_no_reason_to_change_their_readers_weights_from_them() -> None:
    case = NETWORKS["mlp-tanh"]
    net = case.network()
    stuck = Damage(StuckAt(0.5), RandomUnits(layers=("0",))).at(0.5)(net, stream(0, "x"))
    inputs = case.inputs(200, "moments")
    (moment,) = Refit(Teacher(net, inputs))(stuck, stream(0, "x"))
    error = lambda other: float((other(inputs) - net(inputs)).square().mean())  # noqa: E731 - one formula, twice
    assert error(moment.network) < error(stuck)
    (moment,) = Refit(Sidecar.of(net, inputs))(stuck, stream(0, "x"))
    assert error(moment.network) < error(stuck)


def test_a_refit_after_a_second_hit_starts_from_what_the_first_left() -> None:
    net, task = trained("digits")
    source = Teacher(net, task.train.inputs[:300])
    once, fixed = rescued(net, source, 0.2, 0)
    again = Damage(Silence(), RandomUnits(per_layer=True)).at(0.2)(fixed, stream(5, "x"))
    (moment,) = Refit(source)(again, stream(0, "x"))
    assert task.score(moment.network) > task.score(again) - 0.01
    anatomy = Anatomy.of(net)
    assert len(anatomy.living(moment.network)) == len(anatomy.living(again)) < len(anatomy.living(once))


@pytest.mark.parametrize("bias", [True, False])
def test_a_network_of_two_layers_without_anything_else_is_refitted(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 2, bias=bias))
    randomise(model, 3)
    inputs = torch.randn(200, 4, generator=stream(0, "in"))
    net = Network.of(model, inputs)
    damaged, fixed = rescued(net, Sidecar.of(net, inputs), 0.3, 0)
    error = [float((n(inputs) - net(inputs)).square().mean()) for n in (damaged, fixed)]
    assert error[1] < error[0]


@pytest.mark.parametrize("form", ["sidecar", "teacher"])
def test_cut_connections_are_made_up_for_by_those_that_are_left(form: str) -> None:
    net, task = trained("digits")
    inputs = task.train.inputs[:1000]
    source = Sidecar.of(net, inputs) if form == "sidecar" else Teacher(net, inputs)
    # The sidecar knows what reads from units; the first layer reads the inputs.
    first, *rest = Anatomy.of(net).matrices
    site = RandomEntries(layers=tuple(rest) if form == "sidecar" else (first, *rest))
    cut = Damage(Silence(), site).at(0.6)(net, stream(0, "x"))
    fixed = next(Refit(source)(cut, stream(0, "x"))).network
    for name, weight in cut.weights.items():
        pinned = cut.plasticity[name] == 0
        assert torch.equal(fixed.weights[name][pinned], weight[pinned])
    before, after = (float((n(inputs) - net(inputs)).square().mean()) for n in (cut, fixed))
    assert after < 0.5 * before
    assert task.score(fixed) > task.score(cut)


def test_the_shift_of_a_product_without_a_bias_goes_into_the_batch_norm_behind_it() -> None:
    case = NETWORKS["cnn-batchnorm"]
    net, inputs = case.network(), case.inputs(200, "moments")
    damaged = Damage(Silence(), RandomUnits(layers=("0",))).at(0.5)(net, stream(0, "x"))
    fixed = next(Refit(Sidecar.of(net, inputs))(damaged, stream(0, "x"))).network
    assert not torch.equal(fixed.weights["5.bias"], damaged.weights["5.bias"])
    without = fixed.with_weights({"5.bias": damaged.weights["5.bias"]})

    def behind(n: Network) -> torch.Tensor:
        return n.to_module()[:6].eval()(inputs)  # type: ignore[index, no-any-return]

    with torch.no_grad():
        errors = [float((behind(n) - behind(net)).square().mean()) for n in (fixed, without, damaged)]
    assert errors[0] < errors[1] < errors[2]


def test_a_refit_of_a_single_input_runs_the_way_torch_runs_single_inputs() -> None:
    case = NETWORKS["transformer-post-norm"]
    net = case.network()
    inputs = case.inputs(5, "odd")
    assert Sidecar.of(net, inputs, batch=4).moments.keys() == Sidecar.of(net, inputs).moments.keys()


# ------------------------------------------------------------------------------------------------- what was made good


def test_every_refitted_layer_says_how_far_off_it_was_and_is() -> None:
    net, task = trained("digits")
    units = [unit for unit in Anatomy.of(net).units() if unit.index % 3 == 0]
    done = refit(net, units, Teacher(net, task.train.inputs[:800]))
    assert [fit.reader for fit in done.layers] == ["2.weight", "4.weight"]
    first = done.layers[0]
    assert (first.dead, first.living, first.rows, first.held_out) == (6, 10, 800, True)
    assert first.ridge == 1e-4
    assert all(0 < fit.after < fit.before for fit in done.layers)
    lines = str(done).splitlines()
    assert len(lines) == 3
    assert "6 of 16" in lines[1] and lines[1].startswith("2.weight")
    assert repr(done) == str(done)


def test_held_out_errors_are_those_of_a_refit_without_the_held_out_inputs() -> None:
    net, task = trained("digits")
    units = [Unit("2", index) for index in range(0, 12, 2)]
    inputs = task.train.inputs[:800]
    held = torch.arange(800) % 8 == 7
    (fit,) = refit(net, units, Teacher(net, inputs), ridge=1e-3).layers
    other = refit(net, units, Teacher(net, inputs[~held]), ridge=1e-3).network
    truth, made = net(inputs[held]).double(), other(inputs[held]).double()
    expected = float((made - truth).square().sum() / (truth - truth.mean(0)).square().sum())
    assert fit.after == pytest.approx(expected, rel=1e-3)


def test_a_sidecar_tells_the_errors_on_the_inputs_it_has_seen() -> None:
    net, task = trained("digits")
    units, inputs = [Unit("2", index) for index in range(0, 12, 2)], task.train.inputs[:800]
    done = refit(net, units, Sidecar.of(net, inputs), ridge=1e-3)
    (fit,) = done.layers
    truth = net(inputs).double()
    variance = (truth - truth.mean(0)).square().sum()
    hurt = silence(net, Anatomy.of(net).entries(units).all)
    for error, other in ((fit.before, hurt), (fit.after, done.network)):
        assert error == pytest.approx(float((other(inputs).double() - truth).square().sum() / variance), rel=1e-3)
    assert not fit.held_out
    assert "(of the inputs it was fitted to)" in str(done)


def test_nothing_dead_is_nothing_to_refit() -> None:
    net, task = trained("digits")
    for source in (Teacher(net, task.train.inputs[:50]), Sidecar.of(net, task.train.inputs[:50])):
        assert str(refit(net, (), source)) == "nothing to refit"


def test_what_nothing_makes_up_for_is_named_with_a_teacher_too() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up = nn.Embedding(7, 6), nn.Linear(6, 6)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = torch.relu(self.up(self.embed(tokens))).mean(1) @ self.embed.weight.T
            return made

    model = Shared()
    randomise(model, 0)
    tokens = torch.randint(7, (40, 3), generator=stream(0, "tokens"))
    net = Network.of(model, tokens)
    done = refit(net, [Unit("up", 2)], Teacher(net, tokens))
    assert "also read by embedding" in done.unrepaired["up"]


# ------------------------------------------------------------------------------------------- streams, loops, doubles


class Branches(nn.Module):
    """Two branches on a stream: the second can make up for what the first has lost."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 10), nn.Linear(10, 3)
        self.up, self.down = (
            nn.ModuleList(nn.Linear(10, 24) for _ in "ab"),
            nn.ModuleList(nn.Linear(24, 10) for _ in "ab"),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.relu(up(x)))
        made: torch.Tensor = self.head(x)
        return made


def test_a_branch_makes_up_for_what_the_stream_has_lost() -> None:
    model = Branches()
    randomise(model, 1)
    inputs = torch.randn(600, 6, generator=stream(0, "inputs"))
    net = Network.of(model, inputs)
    units = [unit for unit in Anatomy.of(net).units("neuron") if unit.layer == "up.0" and unit.index % 4]
    done = refit(net, units, Teacher(net, inputs[:300]))
    fits = {fit.reader: fit for fit in done.layers}
    assert fits["down.1.weight"].dead == 0
    assert fits["down.1.weight"].after < 0.9 * fits["down.1.weight"].before
    before = silence(net, Anatomy.of(net).entries(units).all)
    errors = [float((n(inputs[300:]) - net(inputs[300:])).square().mean()) for n in (before, done.network)]
    assert errors[1] < 0.5 * errors[0]


def test_refitting_twice_is_refitting_once_where_the_bias_is_added_elsewhere() -> None:
    case = NETWORKS["attention-stacked"]
    net, inputs = case.network(), case.inputs(200, "moments")
    hurt = Damage(Silence(), RandomUnits()).at(0.4)(net, stream(1, "x"))
    once = next(Refit(Teacher(net, inputs), 1e-3)(hurt, stream(0, "x"))).network
    twice = next(Refit(Teacher(net, inputs), 1e-3)(once, stream(0, "x"))).network
    moved = [float((b(inputs) - a(inputs)).norm()) for a, b in ((hurt, once), (once, twice))]
    assert moved[1] < 0.1 * moved[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_units_are_replaced_by_the_others_at_every_step(kind: Any) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = kind(8, 32, batch_first=True), nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.head(self.rnn(x.view(len(x), 8, 8))[0][:, -1])
            return made

    _, task = trained("digits")
    model = Rows()
    randomise(model, 0)
    net = Network.of(model, task.train.inputs)
    units = [Unit("rnn", index) for index in range(0, 32, 4)]
    hurt = silence(net, Anatomy.of(net).entries(units).all)
    inputs, others = task.train.inputs[:400], task.train.inputs[400:700]
    for source in (Sidecar.of(net, inputs), Teacher(net, inputs)):
        done = refit(net, units, source)
        assert "rnn.weight_hh_l0" in done.refitted
        error = [float((n(others) - net(others)).square().mean()) for n in (hurt, done.network)]
        assert error[1] < 0.6 * error[0]


def test_a_fit_that_a_loop_makes_worse_is_not_kept() -> None:
    model = nn.RNN(3, 12, batch_first=True)
    wrapped = _Last(model)
    randomise(wrapped, 0)
    with torch.no_grad():
        model.weight_hh_l0.mul_(3.0)  # a chaotic loop: living units cannot follow where dead ones would lead
    inputs = torch.randn(40, 12, 3, generator=stream(0, "inputs"))
    net = Network.of(wrapped, inputs)
    done = refit(net, [Unit("rnn", index) for index in range(0, 12, 2)], Teacher(net, inputs), ridge=1e-3)
    (fit, *_) = done.layers
    assert fit.reader == "rnn.weight_hh_l0"
    assert fit.after <= fit.before
    if fit.after == fit.before:
        assert "rnn.weight_hh_l0" not in done.refitted


class _Last(nn.Module):
    def __init__(self, rnn: nn.RNN) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head(self.rnn(x)[0][:, -1])
        return made


# ----------------------------------------------------------------------------------------------- other people's models


def _inputs_of_tokens(count: int) -> dict[str, torch.Tensor]:
    rng = stream(0, "tokens")
    ids = torch.randint(1, 30, (count, 10), generator=rng)
    mask = (torch.arange(10) < torch.randint(3, 11, (count, 1), generator=rng)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_models_of_the_transformers_library_are_refitted(name: str) -> None:
    library = pytest.importorskip("transformers", reason="a model of that library is refitted")
    shared = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3}
    shared |= {"intermediate_size": 24, "max_position_embeddings": 16, "pad_token_id": 0}
    if name == "bert":
        model = library.BertForSequenceClassification(library.BertConfig(**shared))
    else:
        model = library.LlamaForSequenceClassification(library.LlamaConfig(**shared, num_key_value_heads=2))
    randomise(model, 0)
    given = _inputs_of_tokens(400)
    net = Network.of(model.eval(), given)
    rows = net.port.rows(given)
    units = [unit for unit in Anatomy.of(net).units() if unit.index % 3 == 1]
    kinds = {group.layer: group.kind for group in Anatomy.of(net).groups}
    units = [unit for unit in units if kinds[unit.layer] in {"neuron", "head"}]
    assert {kinds[unit.layer] for unit in units} == {"neuron", "head"}
    hurt = silence(net, Anatomy.of(net).entries(units).all)
    fitted, others = rows[:300], rows[300:]
    before = float((hurt(others) - net(others)).square().mean())
    for source in (Teacher(net, fitted), Sidecar.of(net, fitted)):
        done = refit(net, units, source)
        assert done.unrepaired == {}
        assert float((done.network(others) - net(others)).square().mean()) < 0.8 * before
