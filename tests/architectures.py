"""Small modules of every form that the anatomy must read; `cases.py` makes networks of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Stem, two blocks with an addition in place, mean over positions: the form of small image networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        branch += x
        x = F.relu(branch, inplace=True)
        out = self.bn4(self.conv3(x))
        out += self.bn3(self.down(x))
        return self.fc(F.relu(out).mean((2, 3)))


class Encoder(nn.Module):
    """A classifier on `nn.TransformerEncoder`, post-norm with ReLU or pre-norm with GELU."""

    def __init__(self, pre: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 6, dropout=0.1, batch_first=True, norm_first=pre, activation="gelu" if pre else "relu"
        )
        self.embed = nn.Linear(5, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(self.embed(x)).mean(1)))


class StackedHeads(nn.Module):
    """Attention by hand with one weight per head, stacked [head, width, head width]: research code's form."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.randn(2, 8, 4)) for _ in range(3))
        self.b_Q, self.b_K, self.b_V = (nn.Parameter(torch.randn(2, 4)) for _ in range(3))
        self.W_O = nn.Parameter(torch.randn(2, 4, 8))
        self.b_O = nn.Parameter(torch.randn(8))
        self.norm = nn.LayerNorm(8)
        self.W_in, self.b_in = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))
        self.W_out, self.b_out = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        q = torch.einsum("bpd,hde->bphe", y, self.W_Q) + self.b_Q
        k = torch.einsum("bpd,hde->bphe", y, self.W_K) + self.b_K
        v = torch.einsum("bpd,hde->bphe", y, self.W_V) + self.b_V
        pattern = (torch.einsum("bqhe,bkhe->bhqk", q, k) / 2.0).softmax(-1)
        z = torch.einsum("bkhe,bhqk->bqhe", v, pattern)
        x = x + torch.einsum("bqhe,hed->bqd", z, self.W_O) + self.b_O
        x = x + F.gelu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out
        return self.head(x.mean(1))


class SeparateProjections(nn.Module):
    """Layers for q, k, v and o and the fused attention function: as in large language models."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.o = nn.Linear(6, 6)
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (layer(x).view(n, t, 3, d // 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(n, t, d))
        x = x + self.down(F.silu(self.up(x)))
        return self.head(x[:, -1])


class WrittenOut(nn.Module):
    """Attention as products and a softmax of its own, q, k and v from one layer, on a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (part.view(n, t, 2, d // 2).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        pattern = (q @ k.transpose(-1, -2) / 2.0).softmax(-1)
        x = x + self.out((pattern @ v).transpose(1, 2).reshape(n, t, d))
        return self.head(torch.tanh(x).mean(1))


class GroupedQueries(nn.Module):
    """Four query heads that share two heads of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(6, 4)
        self.o, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 4, 2).transpose(1, 2)
        k, v = (layer(x).view(n, t, 2, 2).transpose(1, 2).repeat_interleave(2, 1) for layer in (self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.o(mixed.transpose(1, 2).reshape(n, t, 8))).mean(1))


class Decoder(nn.Module):
    """A decoder layer: attention within, and attention to an encoded input."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Linear(6, 6)
        self.layer = nn.TransformerDecoderLayer(6, 2, 5, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x, torch.tanh(self.memory(x))).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer and a readout of its last state."""

    def __init__(self, rnn: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rnn = rnn(4, 5, batch_first=True)
        self.fc1 = nn.Linear(5, 4)
        self.fc2 = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc2(torch.relu(self.fc1(out[:, -1])))


class CalledTwice(nn.Module):
    """One layer called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.shared = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.shared(torch.relu(self.shared(x)))))


class TwoViews(nn.Module):
    """One layer called on two parts of the input, its outputs read by two other layers: a siamese network."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 5)
        self.left, self.right = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, :3], x[:, 3:]
        return self.left(torch.relu(self.shared(a))) + self.right(torch.relu(self.shared(b)))


class Tied(nn.Module):
    """Two layers with one weight, read the one way and the other: an autoencoder with a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 4)
        self.decode = nn.Linear(4, 6)
        self.decode.weight = nn.Parameter(torch.empty(0))
        self.middle = nn.Linear(6, 6)
        self.output = nn.Linear(6, 6)
        self.output.weight = self.middle.weight
        self.head = nn.Linear(6, 3)
        del self.decode

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.encode(x)) @ self.encode.weight
        return self.head(torch.relu(self.output(torch.relu(self.middle(x)))))


class Tokens(nn.Module):
    """Whole-number inputs: an embedding whose weight is also the output head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc2(torch.relu(self.fc1(self.embed(x).mean(1)))))


class Choosing(nn.Module):
    """The data decide which of two layers is used, and a number read off the activation rescales it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.positive, self.negative = nn.Linear(5, 4), nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.positive if float(x.mean()) > -2.0 else self.negative
        x = torch.relu(self.first(x))
        x = x / (1.0 + float(x.detach().sum()))
        return self.head(torch.relu(branch(x)))


class Functional(nn.Module):
    """No layers at all: bare parameters and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))
        self.w2, self.b2 = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2


class Concatenating(nn.Module):
    """Two branches joined by concatenation, one of them read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(5)
        self.mix = nn.Conv2d(5, 4, 3)
        self.fc = nn.Linear(4 * 4 + 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        joined = torch.relu(self.norm(torch.cat([a, torch.relu(self.b(x))], 1)))
        mixed = F.max_pool2d(torch.relu(self.mix(joined)), 2)
        return self.fc(torch.cat([mixed.flatten(1), a.amax((2, 3))], 1))


class Gated(nn.Module):
    """A gated linear unit: two layers whose outputs are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, 5), nn.Linear(6, 5)
        self.down = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layers(nn.Module):
    """A recurrent layer of several layers, directions or projections, and a readout of its last output."""

    def __init__(self, rnn: nn.Module, width: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Steps(nn.Module):
    """A recurrent cell in a loop, its state kept where the input is small, added to the input at the end."""

    def __init__(self, cell: nn.GRUCell | nn.LSTMCell | nn.RNNCell) -> None:
        super().__init__()
        self.cell, self.skip, self.head = cell, nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros_like(x[:, 0, :1]).expand(-1, 5)
        for step in x.unbind(1):
            keep = step[:, :1] > -0.5
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(step, (h, c))
            else:
                h = torch.where(keep, self.cell(step, h), h)
        return self.head(h + self.skip(x.mean(1)))


class LongShort(nn.Module):
    """An LSTM written out as research code does: one layer for inputs and state, gates cut from what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.start = nn.Linear(4 + 5, 4 * 5), nn.Parameter(torch.randn(5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.start.expand(len(x), 5), x.new_zeros(len(x), 5)
        for step in x.unbind(1):
            i, f, g, o = self.gates(torch.cat([step, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class GatedHalves(nn.Module):
    """Gates and values from one layer, in images and behind them: gated linear units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.down = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(4, 6, 1)
        self.both, self.head = nn.Linear(6, 10), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.norm(self.conv(x)), 1)
        value, gate = self.both(self.down(x).mean((2, 3))).chunk(2, -1)
        return self.head(F.gelu(gate) * value)


class SqueezeExcite(nn.Module):
    """Channels that a small network weighs by their means."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    """A block of mobile networks: expansion, depthwise convolution, squeeze and excitation, narrow residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.expand, self.expand_norm = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.depthwise_norm = nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6)
        self.excite = SqueezeExcite(6, 3)
        self.project, self.project_norm = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem_norm(self.stem(x)))
        y = F.hardswish(self.expand_norm(self.expand(x)))
        y = F.hardswish(self.depthwise_norm(self.depthwise(F.pad(y, (1, 1, 1, 1)))), inplace=True)
        x = x + self.project_norm(self.project(self.excite(y)))
        return self.head(x.mean((2, 3)))


class ConvNext(nn.Module):
    """A depthwise convolution, a layer normalisation with channels last, two products and a scale, on a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(2, 4, 2, 2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.gamma = nn.Parameter(torch.randn(4))
        self.last, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        x = x + (self.gamma * y).permute(0, 3, 1, 2)
        return self.head(self.last(x.mean((2, 3))))


class RootMeanSquare(nn.Module):
    """The normalisation of large language models, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Rotary(nn.Module):
    """Attention with rotated queries and keys, normalised head by head, and keys that two heads share."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.size, self.groups = width // heads, groups
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.q_norm = RootMeanSquare(self.size)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (layer(x).view(n, t, -1, self.size) for layer in (self.q_proj, self.k_proj, self.v_proj))
        angles = torch.outer(torch.arange(t), 0.5 ** torch.arange(self.size // 2)).repeat(1, 2)
        q, k = (self.turned(part.transpose(1, 2), angles.to(x)) for part in (self.q_norm(q), k))
        k, v = (p.repeat_interleave(width // self.size // self.groups, 1) for p in (k, v.transpose(1, 2)))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(n, t, width))

    @staticmethod
    def turned(x: Tensor, angles: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-two, one], -1) * angles.sin()


class GatedProducts(nn.Module):
    """The hidden layer of large language models: a gate and a value for every neuron."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Llama(nn.Module):
    """A block of a large language model: root-mean-square norms, rotary attention, gated neurons; head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 8)
        self.input_norm, self.self_attn = RootMeanSquare(8), Rotary(8, 4, 2)
        self.post_norm, self.mlp = nn.RMSNorm(8), GatedProducts(8, 6)
        self.norm, self.lm_head = RootMeanSquare(8), nn.Linear(8, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed_tokens(x)
        x = x + self.self_attn(self.input_norm(x))
        x = x + self.mlp(self.post_norm(x))
        return self.lm_head(self.norm(x)[:, -1])


class Transposed(nn.Module):
    """A linear layer whose weight is [inputs, outputs]."""

    def __init__(self, outward: int, inward: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inward, outward)), nn.Parameter(torch.randn(outward))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class GPT2(nn.Module):
    """Queries, keys and values split from one transposed layer, an activation written out, a head tied to tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(7, 6), nn.Embedding(4, 6)
        self.ln_1, self.c_attn, self.c_proj = nn.LayerNorm(6), Transposed(18, 6), Transposed(6, 6)
        self.ln_2, self.c_fc, self.c_out = nn.LayerNorm(6), Transposed(5, 6), Transposed(6, 5)
        self.ln_f = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape
        x = self.wte(x) + self.wpe(torch.arange(t))
        q, k, v = (p.view(n, t, 3, 2).transpose(1, 2) for p in self.c_attn(self.ln_1(x)).split(6, 2))
        hidden = torch.full((t, t), -torch.inf).triu(1)
        pattern = (q @ k.transpose(-1, -2) / 2**0.5 + hidden).softmax(-1)
        x = x + self.c_proj((pattern @ v).transpose(1, 2).reshape(n, t, 6))
        y = self.c_fc(self.ln_2(x))
        y = 0.5 * y * (1.0 + torch.tanh(0.8 * (y + 0.045 * torch.pow(y, 3.0))))
        x = x + self.c_out(y)
        return (self.ln_f(x) @ self.wte.weight.T)[:, -1]


class Bert(nn.Module):
    """An encoder with its norms behind the additions, three tables of embeddings and a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.types = nn.Embedding(7, 6), nn.Embedding(4, 6), nn.Embedding(2, 6)
        self.norm0, self.norm1, self.norm2 = (nn.LayerNorm(6) for _ in range(3))
        self.attention = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("query", "key", "value", "output")})
        self.intermediate, self.output = nn.Linear(6, 5), nn.Linear(5, 6)
        self.pooler, self.classifier = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape
        x = self.norm0(self.words(x) + self.types((x > 3).long()) + self.positions(torch.arange(t)))
        names = ("query", "key", "value")
        q, k, v = (self.attention[name](x).view(n, t, 2, 3).transpose(1, 2) for name in names)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 6)
        x = self.norm1(self.attention["output"](mixed) + x)
        x = self.norm2(self.output(F.gelu(self.intermediate(x))) + x)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class VisionTransformer(nn.Module):
    """Patches, a class token and positions; norms before the additions; the class token is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 6, 3, 3)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(6) for _ in range(3))
        self.qkv, self.proj = nn.Linear(6, 18), nn.Linear(6, 6)
        self.fc1, self.fc2, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


class Tables(nn.Module):
    """Means of embeddings, and single ones picked from a bare table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.table = nn.Embedding(7, 5), nn.Parameter(torch.randn(7, 4))
        self.fc, self.head = nn.Linear(9, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(torch.cat([self.words(x).mean(1), self.table[x[:, 0]]], 1))))
