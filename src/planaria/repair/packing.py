"""Packing: moments, weights and hashes in few bytes, as a sidecar keeps them on file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 1e-7
"""Eigenvalues below this, relative to their mean, are not worth their bytes."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Moments of one reader as they are kept on file: G = F F^T + diagonal, with F = codes * scales.

    Attributes:
        codes: Leading eigenvectors times the root of their eigenvalues, in eight bits [groups, features + 1, rank].
        scales: One per eigenvector [groups, rank].
        rest: What is left of the diagonal, relative to `size`, in half precision [groups, features + 1].
        size: Its largest entry [groups].
        explained: Share of the mean square of what the reader reads that lies in these eigenvectors.
    """

    codes: Tensor
    scales: Tensor
    rest: Tensor
    size: Tensor
    explained: float

    @property
    def rank(self) -> int:
        """Eigenvectors kept per group."""
        return self.codes.shape[2]

    @staticmethod
    def of(moment: Tensor, values: Tensor, vectors: Tensor, rank: int) -> Factor:
        """From moments and their eigenvalues (ascending) and eigenvectors."""
        leading = vectors[..., -rank:] * values[:, None, -rank:].clamp_min(0).sqrt() if rank else vectors[..., :0]
        diagonal = moment.diagonal(dim1=1, dim2=2)
        scales = (leading.abs().amax(1) / 127).clamp_min(1e-30).float()
        codes = (leading / scales[:, None, :].double()).round().clamp(-127, 127)
        rest = (diagonal - (codes * scales[:, None, :]).square().sum(2)).clamp_min(0)
        size = rest.amax(1).clamp_min(1e-30).float()
        explained = float(leading.square().sum() / diagonal.sum().clamp_min(1e-30))
        return Factor(codes.to(torch.int8), scales, (rest / size[:, None]).half(), size, explained)

    def dense(self) -> Tensor:
        """The moments [groups, features + 1, features + 1], double precision."""
        factor = self.codes.double() * self.scales[:, None, :].double()
        moment = torch.bmm(factor, factor.transpose(1, 2))
        moment.diagonal(dim1=1, dim2=2).add_(self.rest.double() * self.size[:, None].double())
        return moment


def ranks_for(values: Mapping[str, Tensor], room: int) -> dict[str, int]:
    """Eigenvectors to keep of each reader: first those that explain most of what it reads for their bytes."""
    steps: list[tuple[float, str, int]] = []
    for name, spectrum in values.items():
        relative = (spectrum / spectrum.mean(1, keepdim=True).clamp_min(1e-30)).amax(0).flip(0)
        size = spectrum.shape[1]
        cost = spectrum.shape[0] * (size + 4)
        steps += [(-float(value) / size / cost, name, cost) for value in relative if float(value) > _LEAST]
    ranks, full = dict.fromkeys(values, 0), set()
    for _, name, cost in sorted(steps):
        if name in full or cost > room:
            full.add(name)
            continue
        ranks[name] += 1
        room -= cost
    return ranks


def eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight in eight bits, with one scale for each place on axis 1 (or for all)."""
    apart = [axis for axis in range(weight.ndim) if axis != 1]
    scale = (weight.float().abs().amax(apart, keepdim=True) / 127).clamp_min(1e-30)
    return (weight.float() / scale).round().clamp(-127, 127).to(torch.int8), scale


def prints_of(weight: Tensor) -> Tensor:
    """Hash of every row (axis 0; every entry of a vector), 16 bits."""
    # Copied, since a number seen through a larger shape has no bytes of its own.
    flat = torch.empty(weight.numel(), dtype=weight.dtype).copy_(weight.detach().reshape(-1))
    count = len(weight) if weight.ndim else 1
    word = {1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32)
    data = flat.view(word).view(count, -1 if flat.numel() else 0).to(torch.int64)
    place = torch.arange(1, data.shape[1] + 1)
    # Any odd numbers do; products and sums wrap around.
    key = place * 0x9E3779B97F4A7C1 ^ (place << 21)
    mixed = ((data + 1) * (key | 1)).sum(1)
    mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B
    return ((mixed ^ (mixed >> 32)) & 0xFFFF).to(torch.int32).to(torch.int16)


def one_line(tensors: list[Tensor], kind: torch.dtype) -> Tensor:
    """All numbers of some tensors, one after another."""
    return torch.cat([t.detach().cpu().flatten().to(kind) for t in tensors]) if tensors else torch.zeros(0, dtype=kind)
