"""Anatomy: addresses, selections and messages, beside what the laws over the table say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cases import NETWORKS, randomise
from planaria.core.anatomy import KINDS, Anatomy, Check, Unit, silence
from planaria.core.errors import AnatomyError
from planaria.core.follow import thin
from planaria.core.network import Network
from planaria.core.streams import stream


def test_units_are_addressed_by_the_name_of_their_layer() -> None:
    anatomy = Anatomy.of(NETWORKS["transformer-post-norm"].network())
    assert Unit("encoder.layers.1.linear1", 5) in anatomy.units("neuron")
    assert Unit("encoder.layers.1.self_attn", 1) in anatomy.units("head")
    assert {unit.layer for unit in anatomy.units("branch")} >= {"embed", "encoder.layers.0.linear2"}
    assert anatomy.units() == tuple(u for g in anatomy.groups for u in (Unit(g.layer, i) for i in range(g.count)))


def test_groups_come_in_the_order_of_execution() -> None:
    names = ["mlp-relu", "cnn-batchnorm", "conv1d"]
    assert [[g.layer for g in Anatomy.of(NETWORKS[n].network()).groups] for n in names] == [
        ["0", "2"],
        ["0", "4", "8"],
        ["0", "3"],
    ]


def test_the_anatomy_is_traced_once_and_shared_by_derived_networks() -> None:
    net = NETWORKS["mlp-relu"].network()
    assert Anatomy.of(net) is Anatomy.of(net)
    assert Anatomy.of(net.with_weights({"0.bias": torch.zeros(7)})) is Anatomy.of(net)


def test_by_default_branches_are_left_out_unless_there_is_nothing_else() -> None:
    residual = Anatomy.of(NETWORKS["residual"].network())
    assert {g.kind for g in residual.select()} == {"channel"}
    assert {g.kind for g in residual.select(layers=["stem"])} == {"branch"}
    assert {g.kind for g in residual.select(["channel", "branch"])} == {"channel", "branch"}

    class OnlyBranches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.a(x))

    only = Anatomy.of(Network.of(OnlyBranches(), torch.randn(2, 4)))
    assert [g.kind for g in only.select()] == ["branch"]


def test_the_kinds_a_network_has_are_some_of_the_known_ones_in_their_order() -> None:
    for case in NETWORKS.values():
        kinds = Anatomy.of(case.network()).kinds
        assert list(kinds) == [kind for kind in KINDS if kind in kinds]


def test_asking_for_what_is_not_there_names_what_is() -> None:
    anatomy = Anatomy.of(NETWORKS["mlp-relu"].network())
    with pytest.raises(AnatomyError, match=r"kind 'neurons'.*Did you mean neuron"):
        anatomy.select(["neurons"])
    with pytest.raises(AnatomyError, match=r"units of kind head, got neuron"):
        anatomy.select(["head"])
    with pytest.raises(AnatomyError, match=r"layer '1'.*none of that name.*Known: 0, 2"):
        anatomy.select(layers=["1"])
    with pytest.raises(AnatomyError, match=r"layer '4'.*tap\(net, \[layer\]\)"):
        anatomy.select(layers=["4"])


@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(-1), nn.Sigmoid()], ids=repr)
def test_a_network_without_hidden_units_says_so(end: nn.Module) -> None:
    anatomy = Anatomy.of(Network.of(nn.Sequential(nn.Linear(3, 2), end), torch.randn(2, 3)))
    assert anatomy.units() == ()
    with pytest.raises(AnatomyError, match=r"got no units at all.*outputs are the network's outputs"):
        anatomy.select()


def test_a_network_needs_example_inputs_of_the_right_shape_and_type() -> None:
    model = NETWORKS["cnn-batchnorm"].build()
    with pytest.raises(AnatomyError, match=r"example inputs, got none.*Network\.of\(model, inputs\)"):
        Anatomy.of(Network.of(model))
    for wrong in (torch.zeros(2, 3, 6, 6), torch.zeros(2, 5), torch.zeros(2, 2, 6, 6, dtype=torch.long)):
        with pytest.raises(AnatomyError, match=r"runs on inputs of shape"):
            Anatomy.of(Network.of(model, wrong))
    with pytest.raises(AnatomyError, match="example inputs"):
        net = Network.of(model)
        Anatomy((), {}).verify(net)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_example_inputs_gives_the_same_units(count: int) -> None:
    for case in NETWORKS.values():
        if case.taps:
            continue
        anatomy = Anatomy.of(Network.of(case.build(), case.inputs(count)))
        assert {g.layer: (g.count, g.kind, g.exact_by) for g in anatomy.groups} == case.units, case.name


def test_constant_or_zero_example_inputs_give_the_same_units() -> None:
    for name in ("mlp-relu", "mlp-norms", "cnn-batchnorm", "residual", "transformer-pre-norm", "attention-separate"):
        case = NETWORKS[name]
        for inputs in (torch.zeros(2, *case.shape), torch.ones(2, *case.shape)):
            anatomy = Anatomy.of(Network.of(case.build(), inputs))
            assert {g.layer: (g.count, g.kind, g.exact_by) for g in anatomy.groups} == case.units, name


def test_zero_weights_and_fresh_normalisations_give_the_same_units() -> None:
    for name in ("mlp-relu", "mlp-norms", "cnn-batchnorm", "residual", "transformer-pre-norm"):
        case = NETWORKS[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            fresh = case.model()
        zero = case.build()
        with torch.no_grad():
            for parameter in zero.parameters():
                parameter.zero_()
        for model in (fresh, zero):
            anatomy = Anatomy.of(Network.of(model, case.inputs(3)))
            assert {g.layer: (g.count, g.kind, g.exact_by) for g in anatomy.groups} == case.units, name


def test_verify_reports_what_it_tried() -> None:
    net = NETWORKS["mlp-relu"].network()
    assert [(c.layer, c.units) for c in Anatomy.of(net).verify(net, per_layer=3)] == [("0", 3), ("2", 3)]
    assert all(isinstance(c, Check) and c.difference < 1e-5 for c in Anatomy.of(net).verify(net))


class MaxOverTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.max(1).values


class MeanOverTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


# Forms in which the first layer has no units of its own, with the reason that must be given.
WITHOUT = {
    "softmax inside": "a softmax",
    "weight norm": "",
    "circular padding": "an assignment into another tensor",
}

FORMS = {
    "prelu": lambda: nn.Sequential(nn.Linear(6, 5), nn.PReLU(5), nn.Linear(5, 3)),
    "hardswish": lambda: nn.Sequential(nn.Linear(6, 5), nn.Hardswish(), nn.Linear(5, 3)),
    "leaky relu": lambda: nn.Sequential(nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 3)),
    "randomised relu": lambda: nn.Sequential(nn.Linear(6, 5), nn.RReLU(), nn.Linear(5, 3)),
    "max over time": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Linear(3, 4), nn.ReLU(), MaxOverTime(), nn.Linear(4, 3)
    ),
    "mean over time": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Linear(3, 2), nn.ReLU(), MeanOverTime(), nn.Linear(2, 3)
    ),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.InstanceNorm1d(4, affine=True), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3)
    ),
    "batch norm without weights": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.ReLU(), nn.Linear(5, 3)
    ),
    "rms norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.RMSNorm(5), nn.ReLU(), nn.Linear(5, 3)),
    "glu": lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 3)),
    "softmax inside": lambda: nn.Sequential(nn.Linear(6, 5), nn.Softmax(-1), nn.Linear(5, 3)),
    "softplus": lambda: nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 3)),
    "many activations": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.ELU(), nn.Linear(5, 4), nn.Hardswish(), nn.Linear(4, 4), nn.Mish(), nn.Linear(4, 3)
    ),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    ),
    "circular padding": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.ReLU(),
        nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "uneven padding": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Conv1d(3, 4, 4, padding="same"), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 3)
    ),
    "channel shuffle": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 6, 1), nn.ReLU(), nn.ChannelShuffle(3), nn.Conv2d(6, 4, 1, groups=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ),
    "upsampling": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 2),
        nn.ReLU(), nn.Flatten(), nn.Linear(30, 3)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_network_are_exact_too_or_named(form: str) -> None:
    model = FORMS[form]()
    randomise(model, 0)
    inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    net = Network.of(model, inputs)
    anatomy = Anatomy.of(net)
    anatomy.verify(net)
    owned = {name.rpartition(".")[0] for name in anatomy.entries(anatomy.units()).all}
    for name in net.weights:
        layer = name.rpartition(".")[0]
        assert layer in owned | set(anatomy.unreached), f"{name} is passed over"
    first = next(iter(net.weights)).rpartition(".")[0]
    assert (first in {unit.layer for unit in anatomy.units()}) == (form not in WITHOUT)
    assert WITHOUT.get(form, "") in anatomy.unreached.get(first, "")


# ------------------------------------------------------------------------- what happens to an activation in place


class InPlace(nn.Module):
    """A hidden layer whose activation is worked on by a function before it is read."""

    def __init__(self, work: Callable[[InPlace, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.act, self.b, self.h = nn.Linear(6, 4), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 3)
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.work(self, x, self.act(self.a(x))))


def scale_a_slice(net: InPlace, x: Tensor, y: Tensor) -> Tensor:
    y[:, :2].mul_(2.0)
    return y


def add_to_a_slice(net: InPlace, x: Tensor, y: Tensor) -> Tensor:
    y[:, :2] += net.b(x)[:, :2]
    return y


def fill_a_slice(net: InPlace, x: Tensor, y: Tensor) -> Tensor:
    y[:, 0] = 0.5
    return y


def write_into_a_buffer(net: InPlace, x: Tensor, y: Tensor) -> Tensor:
    out = y.new_zeros(len(y), 4)
    out[:, :3] = y[:, 1:]
    return out


def fill_where(net: InPlace, x: Tensor, y: Tensor) -> Tensor:
    return y.masked_fill(x[:, :1] > 0, 0.7)


def rectify_through_a_view(net: InPlace, x: Tensor, y: Tensor) -> Tensor:
    y.view(-1, 2, 2).clamp_(max=0.3)
    return y


def read_a_number_off(net: InPlace, x: Tensor, y: Tensor) -> Tensor:
    return y / (1.0 + float(y.detach().max()))


def repeat_and_cut(net: InPlace, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y, y], 1)[:, 2:6]


def read_by_another_too(net: InPlace, x: Tensor, y: Tensor) -> Tensor:
    return y.flip(1) * torch.sigmoid(net.h(y).sum(1, keepdim=True))


WORK = [
    scale_a_slice, add_to_a_slice, fill_a_slice, write_into_a_buffer, fill_where, rectify_through_a_view,
    read_a_number_off, repeat_and_cut, read_by_another_too,
]  # fmt: skip


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
@pytest.mark.parametrize("count", [1, 4])
def test_units_are_exact_or_named_whatever_happens_to_their_activation(
    work: Callable[[InPlace, Tensor, Tensor], Tensor], count: int
) -> None:
    model = InPlace(work)
    randomise(model, 1)
    rng = stream(0, "in")
    net = Network.of(model, torch.randn(count, 6, generator=rng))
    inputs = torch.randn(5, 6, generator=rng)
    anatomy = Anatomy.of(net)
    anatomy.verify(net, inputs)
    units = [unit for unit in anatomy.units() if unit.layer == "a"]
    assert bool(units) != ("a" in anatomy.unreached)
    for unit in units:
        module = net.to_module()
        module.act.register_forward_hook(  # type: ignore[union-attr, operator]
            lambda m, args, out, index=unit.index: out * (torch.arange(4) != index)
        )
        with torch.no_grad():
            wanted = module(inputs)
        slices = anatomy.entries([unit])
        assert torch.allclose(silence(net, slices.all)(inputs), wanted, atol=1e-5)


def test_owners_that_do_not_change_along_axes_take_no_room_along_any_of_them() -> None:
    owner = torch.arange(4).view(4, 1, 1, 1).expand(4, 3, 2, 2).clone()
    found = thin(owner)
    assert torch.equal(found, owner) and torch.equal(thin(found), owner)
    assert found.stride() == thin(found).stride() == (1, 0, 0, 0)


# ------------------------------------------------------------------------------- models as their library has them


class FirstOutput(nn.Module):
    """A model of another library, called with whole numbers, of whose outputs the first tensor counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
TEXT = {"vocab_size": 30, "max_position_embeddings": 16}

# Model and configuration -> (kind of unit -> count, attention heads' layer in block 1, hidden neurons' layer there).
MODELS: dict[str, tuple[str, str, dict[str, object], dict[str, int], str, str]] = {
    "bert": (
        "BertForSequenceClassification",
        "BertConfig",
        SMALL | TEXT | {"hidden_size": 16},
        {"neuron": 56, "head": 8, "embedding": 16, "branch": 64},
        "bert.encoder.layer.1.attention",
        "bert.encoder.layer.1.intermediate.dense",
    ),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": 30, "max_position_embeddings": 16, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 20},
        {"neuron": 40, "head": 8, "embedding": 16, "branch": 64},
        "transformer.layer.1.attention",
        "transformer.layer.1.ffn.lin1",
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "n_inner": 20}
        | {"bos_token_id": 0, "eos_token_id": 0},
        {"neuron": 40, "head": 8, "branch": 64},
        "transformer.h.1.attn",
        "transformer.h.1.mlp.c_fc",
    ),
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        SMALL | TEXT | {"hidden_size": 16, "num_key_value_heads": 2},
        {"neuron": 40, "head": 8, "embedding": 16, "branch": 64},
        "model.layers.1.self_attn",
        "model.layers.1.mlp",
    ),
    "t5": (
        "T5EncoderModel",
        "T5Config",
        {"vocab_size": 30, "d_model": 16, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 4}
        | {"feed_forward_proj": "gated-gelu"},
        {"neuron": 40, "head": 8, "embedding": 16, "branch": 64},
        "encoder.block.1.layer.0.SelfAttention",
        "encoder.block.1.layer.1.DenseReluDense",
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        SMALL | {"hidden_size": 16, "image_size": 8, "patch_size": 4},
        {"neuron": 40, "head": 8, "branch": 80},
        "vit.layers.1.attention",
        "vit.layers.1.mlp.fc1",
    ),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_have_their_heads_neurons_and_branches(name: str, attention: str) -> None:
    library = pytest.importorskip("transformers", reason="needs transformers, of the hf extra")
    model, config, options, counts, heads, neurons = MODELS[name]
    made = getattr(library, model)(getattr(library, config)(**options, attn_implementation=attention)).eval()
    randomise(made, 0)
    rng = stream(0, name)
    x = torch.randn(2, 3, 8, 8, generator=rng) if name == "vit" else torch.randint(1, 30, (2, 7), generator=rng)
    net = Network.of(FirstOutput(made), x)
    anatomy = Anatomy.of(net)
    anatomy.verify(net, per_layer=3)
    assert {kind: len(anatomy.units(kind)) for kind in anatomy.kinds} == counts
    found = {group.layer: group for group in anatomy.groups}
    assert (found[f"model.{heads}"].kind, found[f"model.{heads}"].count) == ("head", 4)
    assert (found[f"model.{neurons}"].kind, found[f"model.{neurons}"].count) == ("neuron", 20)
    owned = set(anatomy.entries(anatomy.units()).all)
    for weight in set(net.weights) - owned:
        assert {weight, weight.rpartition(".")[0]} & set(anatomy.unreached), f"{weight} is passed over"
    assert not any("no rule" in reason or "_" in reason.split("'")[0] for reason in anatomy.unreached.values())
