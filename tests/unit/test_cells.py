"""Cells: units with gates, at every step, in every form of gated and recurrent network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from architectures import Gated, Layers, Recurrent
from cases import NETWORKS, randomise
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.errors import AnatomyError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.core.tap import tap
from planaria.damage.damage import Damage
from planaria.damage.faults import StuckAt
from planaria.damage.sites import RankedUnits

Units = dict[str, tuple[int, str, str]]


def made(model: nn.Module, *shape: int, seed: int = 0) -> Network:
    randomise(model, seed)
    return Network.of(model, torch.randn(2, *shape, generator=stream(seed, "in")))


def units_of(net: Network) -> Units:
    """Layer -> what it has, after proving it on other inputs."""
    anatomy = Anatomy.of(net)
    anatomy.verify(net)
    anatomy.verify(net, torch.randn(3, *net.inputs.shape[1:], generator=stream(1, "in")))  # type: ignore[union-attr]
    return {group.layer: (group.count, group.kind, group.exact_by) for group in anatomy.groups}


# -------------------------------------------------------------------------------------------- recurrent layers


def without(rnn: nn.LSTM | nn.GRU | nn.RNN, unit: int) -> nn.Module:
    """The same one-layer network with one unit less, its weights cut by hand."""
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[type(rnn)]
    left = [index for index in range(rnn.hidden_size) if index != unit]
    rows = [gate * rnn.hidden_size + index for gate in range(gates) for index in left]
    small = type(rnn)(rnn.input_size, len(left), batch_first=True)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            cut = parameter[rows]
            getattr(small, name).copy_(cut[:, left] if name == "weight_hh_l0" else cut)
    return small


@pytest.mark.parametrize("rnn", [nn.LSTM, nn.GRU, nn.RNN])
def test_silencing_a_recurrent_unit_is_taking_it_out_of_the_layer(rnn: type[nn.LSTM]) -> None:
    net = made(Layers(rnn(4, 5, batch_first=True), 5), 6, 4)
    x = torch.randn(7, 6, 4, generator=stream(0, "more"))
    for unit in range(5):
        whole = net.to_module()
        small = Layers(without(whole.rnn, unit), 4)  # type: ignore[arg-type]
        with torch.no_grad():
            small.head.weight.copy_(whole.head.weight[:, [i for i in range(5) if i != unit]])  # type: ignore[union-attr, index]
            small.head.bias.copy_(whole.head.bias)  # type: ignore[union-attr, arg-type]
            wanted = small.eval()(x)
        silenced = silence(net, Anatomy.of(net).entries([Unit("rnn", unit)]).all)
        assert torch.allclose(silenced(x), wanted, atol=1e-6)


def test_a_recurrent_unit_owns_its_rows_of_every_gate_and_its_columns_wherever_it_is_read() -> None:
    net = NETWORKS["lstm"].network()
    slices = Anatomy.of(net).entries([Unit("rnn", 3)])
    rows = [3, 8, 13, 18]
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"):
        hit = slices.incoming[name].reshape(20, -1)
        assert hit.any(1).nonzero().flatten().tolist() == rows and bool(hit[rows].all())
    for name, height in (("rnn.weight_hh_l0", 20), ("fc1.weight", 4)):
        assert slices.outgoing[name].nonzero().tolist() == [[row, 3] for row in range(height)]


def test_the_outputs_change_at_every_step_when_a_unit_dies() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    net = made(Whole(), 6, 4)
    assert units_of(net) == {"rnn": (5, "recurrent", "both")}
    (group,) = Anatomy.of(net).groups
    assert len(group.gates) == 6
    hurt = silence(net, Anatomy.of(net).entries([Unit("rnn", 0)]).all)
    assert bool(((hurt(net.inputs) - net(net.inputs)).abs().amax((0, 2)) > 1e-4).all())  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [2, 3, 9])
@pytest.mark.parametrize("rnn", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_number_of_steps_does_not_matter(rnn: type[nn.LSTM], steps: int) -> None:
    net = made(Layers(rnn(4, 5, batch_first=True), 5), steps, 4)
    assert units_of(net) == {"rnn": (5, "recurrent", "both")}


@pytest.mark.parametrize("rnn", [nn.LSTM, nn.GRU, nn.RNN])
def test_where_there_is_one_step_there_is_no_recurrence_but_nothing_is_wrong(rnn: type[nn.LSTM]) -> None:
    net = made(Layers(rnn(4, 5, batch_first=True), 5), 1, 4)
    assert {kind for _, kind, _ in units_of(net).values()} <= {"neuron", "branch"}
    assert Anatomy.of(net).unreached["rnn"]


@pytest.mark.parametrize(
    ("options", "width", "names"),
    [
        ({}, 5, ["rnn"]),
        ({"num_layers": 2}, 5, ["rnn.l0", "rnn.l1"]),
        ({"bidirectional": True}, 10, ["rnn.l0", "rnn.l0_reverse"]),
        ({"num_layers": 3, "bias": False}, 5, ["rnn.l0", "rnn.l1", "rnn.l2"]),
    ],
    ids=str,
)
def test_layers_and_directions_are_told_apart_by_their_names(
    options: dict[str, int], width: int, names: list[str]
) -> None:
    net = made(Layers(nn.GRU(4, 5, batch_first=True, **options), width), 3, 4)
    assert list(units_of(net)) == names


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projections_are_units_of_their_own() -> None:
    net = made(Layers(nn.LSTM(4, 5, proj_size=3, batch_first=True), 3), 4, 4)
    assert units_of(net) == {"rnn": (5, "recurrent", "both"), "rnn.weight_hr_l0": (3, "neuron", "both")}


class Packed(nn.Module):
    """Sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) % x.shape[1] + 1
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0][-1])


class Picture(nn.Module):
    """A recurrent cell of convolutions, which read inputs and state side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(2 + 3, 4 * 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 3, *x.shape[3:])
        for step in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([step, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h.mean((2, 3)))


class Simple(nn.Module):
    """A recurrence without products: states are mixed by gates only."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.head = nn.Linear(4, 15), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        values, forget, read = self.all(x).chunk(3, -1)
        c, states = torch.zeros(len(x), 5), []
        for t in range(x.shape[1]):
            f = torch.sigmoid(forget[:, t])
            c = f * c + (1 - f) * values[:, t]
            states.append(torch.sigmoid(read[:, t]) * torch.tanh(c))
        return self.head(torch.stack(states, 1).mean(1))


class Peephole(nn.Module):
    """A cell that looks at its own state through a weight, written with bare weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Parameter(torch.randn(4, 15)), nn.Parameter(torch.randn(5, 15))
        self.b, self.p, self.head = nn.Parameter(torch.randn(15)), nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 5)
        for step in x.unbind(1):
            i, g, o = (step @ self.w + h @ self.u + self.b).chunk(3, -1)
            i = torch.sigmoid(i + self.p * c)
            c = (1 - i) * c + i * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class Deep(nn.Module):
    """One block of two layers on a residual stream, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = (nn.Linear(*s) for s in ((4, 5), (5, 6), (6, 5), (5, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + self.down(torch.relu(self.up(x)))
        return self.head(x)


class Looking(nn.Module):
    """Attention over the states of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.query, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.rnn(x)
        pattern = torch.softmax(self.query(last[-1])[:, None] @ states.transpose(1, 2), -1)
        return self.head(torch.cat([(pattern @ states)[:, 0], last[-1]], 1))


RECURRENT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Units]] = {
    "packed": (Packed, (3, 4), {"rnn": (5, "recurrent", "both")}),
    "convolutions": (Picture, (3, 2, 4, 4), {"gates": (3, "recurrent", "incoming")}),
    "simple": (Simple, (3, 4), {"all": (5, "neuron", "both")}),
    "peephole": (Peephole, (3, 4), {"recurrent": (5, "recurrent", "both")}),
    "deep": (Deep, (4,), {"recurrent": (5, "recurrent", "both"), "up": (6, "neuron", "both")}),
    "looking": (Looking, (3, 4), {"rnn": (6, "recurrent", "incoming"), "attention": (1, "head", "outgoing")}),
}


@pytest.mark.parametrize("form", RECURRENT)
def test_other_recurrences_are_understood_too(form: str) -> None:
    model, shape, units = RECURRENT[form]
    net = made(model(), *shape)
    assert units_of(net) == units
    owned = set(Anatomy.of(net).entries(Anatomy.of(net).units()).all)
    assert {name for name in net.weights if not name.startswith(("head", "query"))} <= owned


class Normalised(nn.Module):
    """A recurrent cell with normalisations before its gates: no unit is made by rows of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(4, 20, bias=False), nn.Linear(5, 20, bias=False)
        self.norm_w, self.norm_u, self.head = nn.LayerNorm(20), nn.LayerNorm(20), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 5)
        for step in x.unbind(1):
            i, f, g, o = (self.norm_w(self.w(step)) + self.norm_u(self.u(h))).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


def test_a_recurrence_without_units_of_its_own_is_named_and_can_be_tapped() -> None:
    net = made(Normalised(), 3, 4)
    assert units_of(net) == {}
    assert {"w", "u"} <= set(Anatomy.of(net).unreached)
    tapped = tap(net, Anatomy.of(net).tappable(net))
    assert set(units_of(tapped)) == {"w", "u"}


def test_tapping_a_recurrent_layer_gates_what_it_emits_instead() -> None:
    net = tap(made(Recurrent(nn.LSTM), 4, 4), ["rnn"])
    assert units_of(net)["rnn"] == (5, "tap", "incoming")


@pytest.mark.filterwarnings("ignore")  # torch.export warns about torch itself
def test_an_exported_recurrent_network_has_the_same_units() -> None:
    model = Layers(nn.LSTM(4, 5, batch_first=True), 5).eval()
    randomise(model, 0)
    x = torch.randn(2, 3, 4, generator=stream(0, "in"))
    net = Network.of(torch.export.export(model, (x,)).module(), x)
    anatomy = Anatomy.of(net)
    anatomy.verify(net)
    assert [(group.layer, group.count, group.kind) for group in anatomy.groups] == [("rnn", 5, "recurrent")]


# ------------------------------------------------------------------------------------------------ gated neurons


def test_silencing_a_gated_neuron_is_zeroing_the_product_of_gate_and_value() -> None:
    net = NETWORKS["gated"].network()
    x = torch.randn(6, 6, generator=stream(0, "more"))
    for unit in range(5):
        module = net.to_module()
        module.down.register_forward_pre_hook(lambda m, args, unit=unit: (args[0] * (torch.arange(5) != unit),))
        with torch.no_grad():
            wanted = module(x)
        slices = Anatomy.of(net).entries([Unit("gated", unit)])
        assert set(slices.incoming) == {"gate.weight", "gate.bias", "up.weight", "up.bias"}
        assert torch.allclose(silence(net, slices.all)(x), wanted, atol=1e-6)


class Form(nn.Module):
    """Two layers whose outputs come together in some way."""

    def __init__(self, joined: Callable[[Tensor, Tensor], Tensor], width: int, second: int = 5) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(4, second), nn.Linear(width, 3)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.joined(self.a(x), self.b(x)))


A, B = (5, "neuron", "both"), (5, "neuron", "outgoing")
FORMS: dict[str, tuple[Callable[[], nn.Module], Units]] = {
    "bilinear": (lambda: Form(lambda a, b: a * b, 5), {"gated": A}),
    "gate of one": (lambda: Form(lambda a, b: torch.sigmoid(a) * torch.sigmoid(b), 5), {"gated": B}),
    "activation behind": (lambda: Form(lambda a, b: torch.tanh(2.0 * a * torch.sigmoid(b)), 5), {"gated": A}),
    "gate read too": (lambda: Form(lambda a, b: torch.cat([a.relu(), a.relu() * b.sigmoid()], 1), 10), {"gated": A}),
    # Each of these is read by itself, so each is a unit.
    "pairs": (lambda: Form(lambda a, b: torch.cat([a, b, a * b], 1), 15), {"a": A, "b": A}),
    # One gate for all: a unit of its own.
    "one gate": (lambda: Form(lambda a, b: a * b.sigmoid(), 5, 1), {"a": A, "b": (1, "neuron", "outgoing")}),
    # A unit that gates its neighbour would be one with it, and with all others.
    "neighbours": (lambda: Form(lambda a, b: a * a.roll(1, -1), 5), {"a": (5, "neuron", "incoming")}),
    "sum": (lambda: Form(lambda a, b: torch.relu(a + b), 5), dict.fromkeys("ab", (5, "branch", "incoming"))),
}


@pytest.mark.parametrize("form", FORMS)
def test_activations_that_are_multiplied_make_one_unit_where_neither_is_one_alone(form: str) -> None:
    model, units = FORMS[form]
    net = made(model(), 4)
    found = units_of(net)
    assert {layer: entry for layer, entry in found.items() if layer in units} == units
    assert sum(count for count, _, _ in found.values()) <= 10


def test_one_layer_that_is_compared_with_itself_keeps_its_units() -> None:
    class Compared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twin, self.head = nn.Linear(2, 5), nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            u, v = torch.relu(self.twin(x[:, :2])), torch.relu(self.twin(x[:, 2:]))
            return self.head(torch.cat([u, v, (u - v).abs(), u * v], 1))

    net = made(Compared(), 4)
    assert units_of(net) == {"twin": (5, "neuron", "both")}
    hit = Anatomy.of(net).entries([Unit("twin", 1)]).outgoing["head.weight"]
    assert hit[0].nonzero().flatten().tolist() == [1, 6, 11, 16]


def test_a_third_part_of_a_layer_without_a_gate_has_units_beside_the_gated_ones() -> None:
    class Thirds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all, self.head = nn.Linear(4, 15), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            value, gate, rest = self.all(x).chunk(3, -1)
            return self.head(torch.cat([value * torch.sigmoid(gate), torch.relu(rest)], 1))

    net = made(Thirds(), 4)
    assert units_of(net) == {"all": (10, "neuron", "both")}
    rows = [Anatomy.of(net).entries([Unit("all", i)]).incoming["all.bias"].nonzero().flatten().tolist() for i in (0, 9)]
    assert rows == [[0, 5], [14]]


def test_an_activation_that_is_written_out_keeps_its_neurons_and_their_bias() -> None:
    net = NETWORKS["gpt2"].network()
    assert "c_fc.bias" in Anatomy.of(net).entries([Unit("c_fc", 0)]).shift
    stuck = Damage(StuckAt(0.5), RankedUnits((Unit("c_fc", 2),))).at(1.0)(net, stream(0, "x"))
    assert float(stuck.weights["c_fc.bias"][2]) == 0.5


def test_a_gated_neuron_cannot_be_stuck_and_says_so() -> None:
    net = made(Gated(), 6)
    with pytest.raises(AnatomyError, match=r"layer 'gated'.*bias that can hold"):
        Damage(StuckAt(0.5), RankedUnits((Unit("gated", 2),))).at(1.0)(net, stream(0, "x"))


def test_of_a_gated_neurons_layers_the_reason_names_the_units_they_are_part_of() -> None:
    anatomy = Anatomy.of(NETWORKS["llama"].network())
    assert anatomy.unreached["mlp.gate_proj"] == "its outputs are parts of the units of 'mlp'"
    assert anatomy.tappable(NETWORKS["llama"].network()) == ()


def test_channels_with_an_excitation_own_it_but_not_the_squeezing() -> None:
    net = NETWORKS["inverted-residual"].network()
    slices = Anatomy.of(net).entries([Unit("gated", 4)])
    assert slices.incoming["excite.fc2.bias"].nonzero().flatten().tolist() == [4]
    assert slices.scale["depthwise_norm.weight"].nonzero().flatten().tolist() == [4]
    assert set(slices.outgoing) == {"project.weight", "excite.fc1.weight"}


# ------------------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings_have_dimensions_too(mode: str) -> None:
    model = nn.Sequential(nn.EmbeddingBag(7, 5, mode=mode), nn.ReLU(), nn.Linear(5, 3))
    randomise(model, 0)
    net = Network.of(model, torch.randint(7, (2, 4), generator=stream(0, "in")))
    anatomy = Anatomy.of(net)
    anatomy.verify(net)
    assert [(g.layer, g.count, g.kind, g.exact_by) for g in anatomy.groups] == [("0", 5, "embedding", "both")]


def test_a_dimension_of_an_embedding_is_a_column_and_left_out_by_default() -> None:
    anatomy = Anatomy.of(NETWORKS["bert"].network())
    hit = anatomy.entries([Unit("words", 2)]).incoming["words.weight"]
    assert torch.equal(hit, (torch.arange(6) == 2).expand(7, 6))
    assert {group.kind for group in anatomy.select()} == {"neuron", "head"}
    assert [group.layer for group in anatomy.select(["embedding"])] == ["words", "types"]
    assert [group.layer for group in anatomy.select(layers=["words"])] == ["words"]


def test_tied_embeddings_say_so_and_can_be_tapped() -> None:
    net = NETWORKS["gpt2"].network()
    assert "tied" in Anatomy.of(net).unreached["wte"]
    assert Anatomy.of(net).tappable(net) == ("wte",)
    tapped = tap(net, ["wte"])
    Anatomy.of(tapped).verify(tapped)
