"""Readers: what becomes rows and what does not, form by form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import NETWORKS, randomise
from planaria.core.anatomy import Anatomy, Unit, silence
from planaria.core.graph import Watch, run
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.repair.forms import Flat, Patches, Stacked
from planaria.repair.reader import read_by
from planaria.repair.readers import readers
from planaria.repair.refit import Refit, Sidecar, Teacher


def off_by(net: Network, inputs: Tensor) -> dict[str, float]:
    """Reader -> how far its rows are from what it makes, apart from a bias."""
    found, _ = readers(net, len(inputs))
    read: dict[str, Tensor] = {}
    errors: dict[str, float] = {}

    def seen(tag: str, args: tuple[Any, ...], output: Any) -> None:
        for name, reader in found.items():
            if tag in reader.tags:
                read[name] = reader.features(read_by(tag, args)).double()
            if tag in reader.outs:
                rows = reader.outputs(output)
                assert torch.equal(reader.back(rows, output), output)
                missed = rows.double() - torch.bmm(read[name], reader.matrix(net.weights))
                errors[name] = float((missed - missed.mean(1, keepdim=True)).abs().max())

    run(net, inputs, Watch(seen))
    return errors


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_convolution_is_a_product_of_patches(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    whole = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731 - short
    groups, transposed = data.draw(st.sampled_from([1, 2])), data.draw(st.booleans())
    kernel, stride, dilation = whole(1, 3), whole(1, 3), whole(1, 2)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": whole(0, 2), "groups": groups}
    if transposed:
        options["output_padding"] = tuple(
            data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    convolution: Any = getattr(nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
    model = nn.Sequential(convolution(2, 4, kernel, **options), nn.Flatten(), nn.LazyLinear(2))
    inputs = torch.randn(3, 2, *(6,) * axes, generator=stream(0, "inputs"))
    with torch.no_grad():
        try:
            model(inputs)
        except RuntimeError:
            return  # torch has no such convolution: nothing is left of the padded input
    randomise(model, 0)
    net = Network.of(model, inputs)
    assert isinstance(readers(net)[0]["0.weight"].form, Patches)
    assert off_by(net, inputs)["0.weight"] < 1e-4


class Matrices(nn.Module):
    """Attention of which every head has matrices of its own, multiplied one head at a time."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.Q, self.V = nn.Parameter(torch.empty(3, 6, 6)), nn.Parameter(torch.empty(3, 6, 4))
        self.O = nn.Parameter(torch.empty(3, 4, 6))
        self.bias = nn.Parameter(torch.empty(6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        pattern = torch.softmax((x[:, None] @ self.Q) @ x[:, None].transpose(2, 3), -1)
        heard = pattern @ (x[:, None] @ self.V)  # [examples, head, token, 4]
        if self.form == "matmul":
            made = (heard @ self.O).sum(1)
        elif self.form == "head first":
            made = (heard.transpose(0, 1) @ self.O[:, None]).sum(0)
        elif self.form == "bmm":
            flat = heard.transpose(0, 1).reshape(3, -1, 4)
            made = torch.bmm(flat, self.O).view(3, len(x), -1, 6).sum(0)
        else:
            made = torch.einsum("nhte,hed->ntd", heard, self.O)
        y: Tensor = x + made + self.bias
        return self.head(y.mean(1))


@pytest.mark.parametrize("form", ["matmul", "head first", "bmm", "einsum"])
def test_stacked_heads_that_are_added_up_are_one_reader(form: str) -> None:
    model = Matrices(form)
    randomise(model, 0)
    inputs = torch.randn(300, 5, 6, generator=stream(0, "inputs"))
    net = Network.of(model, inputs)
    found, refused = readers(net)
    assert refused == {}
    assert found["O"].columns.shape == (1, 12, 6)
    assert found["O"].bias == "bias"
    assert off_by(net, inputs[:4])["O"] < 1e-4
    assert isinstance(found["V"].form, (Flat, Stacked))
    anatomy = Anatomy.of(net)
    layer = next(group.layer for group in anatomy.groups if group.kind == "head" and group.count == 3)
    hurt = silence(net, anatomy.entries([Unit(layer, 1)]).all)
    for source in (Sidecar.of(net, inputs), Teacher(net, inputs)):
        fixed = next(Refit(source)(hurt, stream(0, "x"))).network
        before, after = (float((n(inputs) - net(inputs)).square().mean()) for n in (hurt, fixed))
        assert after < 0.8 * before


def test_readers_are_found_at_every_kind_of_consumer() -> None:
    expected = {
        "bert": {"attention.output.weight", "output.weight"},
        "llama": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
        "lstm": {"rnn.weight_hh_l0", "fc1.weight"},
        "gated": {"down.weight"},
        "deconv-groupnorm": {"3.weight"},
        "cnn-depthwise": {"2.weight", "4.weight"},
    }
    for name, readings in expected.items():
        assert readings <= readers(NETWORKS[name].network())[0].keys(), name


def test_where_a_reader_joins_a_stream_is_known() -> None:
    found, _ = readers(NETWORKS["residual"].network())
    joined = {name: reader.junction for name, reader in found.items()}
    assert joined["conv1.weight"] is None and joined["stem.weight"] is None
    for name in ("conv2.weight", "conv3.weight", "down.weight"):
        junction = joined[name]
        assert junction is not None and junction.norm is not None, name
    turned, _ = readers(NETWORKS["transformer-post-norm"].network())
    junction = turned["encoder.layers.0.self_attn.out_proj.weight"].junction
    assert junction is not None and junction.moves  # time goes before examples there


def test_a_recurrent_layer_is_read_at_every_step_the_first_included() -> None:
    found, refused = readers(NETWORKS["lstm"].network())
    assert len(found["rnn.weight_hh_l0"].tags) == 4
    assert found["rnn.weight_hh_l0"].bias == "rnn.bias_hh_l0"
    assert refused == {}


def test_a_bias_that_several_products_share_belongs_to_one_of_them() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
            self.shift = nn.Parameter(torch.empty(3))
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(x)
            made: Tensor = self.head(torch.relu(self.a(x) + self.b(-x) + self.shift))
            return made

    model = Parallel()
    randomise(model, 0)
    found, _ = readers(Network.of(model, torch.randn(4, 4, generator=stream(0, "inputs"))))
    assert [found[f"{name}.weight"].bias for name in "ab"] == ["shift", None]


def test_a_table_of_positions_is_no_bias() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.places = nn.Linear(4, 3, bias=False), nn.Parameter(torch.empty(5, 3))
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.head(torch.relu(self.embed(x) + self.places).mean(1))
            return made

    model = Places()
    randomise(model, 0)
    found, _ = readers(Network.of(model, torch.randn(4, 5, 4, generator=stream(0, "inputs"))))
    assert found["embed.weight"].bias is None
