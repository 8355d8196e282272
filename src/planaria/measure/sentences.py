"""Sentence encoders: a transformer whose hidden states become one vector per text, and pairs of texts compared."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from planaria.core.errors import InputError, nearest

POOLINGS = ("mean", "cls", "max")
"""Ways to one vector per text that `SentenceEncoder` knows."""


class SentenceEncoder(nn.Module):
    """A transformer whose last hidden states become one vector per text.

    Args:
        transformer: Takes `input_ids`, `attention_mask` and perhaps `token_type_ids`, and returns hidden states
            [N, T, d] first.
        pooling: "mean" over the tokens that the attention mask keeps, "max" over the same, or "cls", the first token.
        normalise: Whether vectors get length 1.

    Raises:
        InputError: Another pooling.

    Source: Reimers and Gurevych 2019, "Sentence-BERT", section 3.

    Example:
        >>> class Hidden(nn.Embedding):
        ...     def forward(self, input_ids, attention_mask=None):
        ...         return (nn.functional.embedding(input_ids, self.weight),)
        >>> encoder = SentenceEncoder(Hidden(9, 4))
        >>> encoder(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 1, 0]])).norm(dim=1).detach().round(decimals=4)
        tensor([1.])
    """

    def __init__(self, transformer: nn.Module, pooling: str = "mean", normalise: bool = True) -> None:
        nn.Module.__init__(self)
        if pooling not in POOLINGS:
            raise InputError("SentenceEncoder(pooling)", "a known pooling", repr(pooling), nearest(pooling, POOLINGS))
        self.transformer, self.pooling, self.normalise = transformer, pooling, normalise
        self.typed = "token_type_ids" in inspect.signature(transformer.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Vectors [N, d] of texts with tokens [N, T]."""
        if self.typed and token_type_ids is not None:
            out = self.transformer(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        else:
            out = self.transformer(input_ids=input_ids, attention_mask=attention_mask)
        hidden: Tensor = out[0]
        kept = attention_mask[:, :, None].to(hidden.dtype)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "mean":
            pooled = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        else:
            pooled = hidden.masked_fill(kept == 0, torch.finfo(hidden.dtype).min).amax(1)
        return nn.functional.normalize(pooled, dim=1) if self.normalise else pooled


class Similarity(nn.Module):
    """Cosine similarity of the two texts of a pair, as an encoder sees them.

    Args:
        encoder: Vectors [N, d] from `input_ids`, `attention_mask` and perhaps `token_type_ids`.

    Example:
        >>> class Hidden(nn.Embedding):
        ...     def forward(self, input_ids, attention_mask=None):
        ...         return (nn.functional.embedding(input_ids, self.weight),)
        >>> ids = torch.tensor([[[1, 2, 0], [1, 2, 0]]])
        >>> Similarity(SentenceEncoder(Hidden(9, 4)))(ids, ids.sign()).detach().round(decimals=4)
        tensor([1.])
    """

    def __init__(self, encoder: nn.Module) -> None:
        nn.Module.__init__(self)
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Cosines [N] of pairs of texts with tokens [N, 2, T]."""
        types = None if token_type_ids is None else token_type_ids.flatten(0, 1)
        vectors: Tensor = self.encoder(input_ids.flatten(0, 1), attention_mask.flatten(0, 1), types)
        first, second = vectors.unflatten(0, (-1, 2)).unbind(1)
        return nn.functional.cosine_similarity(first, second, dim=1)
