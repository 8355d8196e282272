"""Small modules of every form that the anatomy must read; `cases.py` makes networks of them."""

from __future__ import annotations

from collections import OrderedDict

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


class ResNet8Block(nn.Module):
    """One block of the MLPerf Tiny network; it pads on the right and below only when it halves the image."""

    def __init__(self, inward: int, outward: int) -> None:
        nn.Module.__init__(self)
        self.halves = inward != outward
        self.conv1 = nn.Conv2d(inward, outward, 3, *((2, 0) if self.halves else (1, 1)))
        self.bn1 = nn.BatchNorm2d(outward, eps=1e-3)
        self.conv2 = nn.Conv2d(outward, outward, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outward, eps=1e-3)
        if self.halves:
            self.short = nn.Conv2d(inward, outward, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (0, 1, 0, 1)) if self.halves else x
        branch = self.bn2(self.conv2(self.bn1(self.conv1(padded)).relu()))
        out: Tensor = (branch + (self.short(x) if self.halves else x)).relu()
        return out


def resnet8() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1),
            bn1=nn.BatchNorm2d(16, eps=1e-3),
            relu=nn.ReLU(),
            block1=ResNet8Block(16, 16),
            block2=ResNet8Block(16, 32),
            block3=ResNet8Block(32, 64),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, 10),
        )
    )
