"""Labels: which of them count, and which dimension of a classifier's outputs they are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from planaria.core.errors import InputError

IGNORED = -100
"""Label of a position that is not scored, as in torch and in Hugging Face."""


def class_scores(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs of a classifier with the classes in dimension 1, wherever they were.

    Args:
        outputs: [N, classes, ...] as torch has them, or [N, ..., classes] as Hugging Face has them.
        targets: Labels [N, ...].

    Returns:
        [N, classes, ...], a view.

    Raises:
        InputError: Neither fits the labels, or both do.

    Example:
        >>> import torch
        >>> class_scores(torch.zeros(2, 7, 5), torch.zeros(2, 7)).shape
        torch.Size([2, 5, 7])

    Not guaranteed: that position t is about label t. A language model's targets are the next tokens: shift them.
    """
    one_more = outputs.ndim == targets.ndim + 1
    second = one_more and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    last = one_more and outputs.ndim > 2 and outputs.shape[:-1] == targets.shape
    if second and last:
        raise InputError(
            "network outputs",
            f"scores whose shape says which dimension holds the classes, for labels {list(targets.shape)}",
            f"{list(outputs.shape)}, where dimension 1 and the last both may",
            f"Pad or cut the sequences to another length than the {outputs.shape[1]} classes.",
        )
    if not second and not last:
        raise InputError(
            "network outputs",
            "one row of class scores per label, [N, classes, ...] or [N, ..., classes] for labels "
            f"{list(targets.shape)}",
            list(outputs.shape),
            "Let the network return the scores before the argmax.",
        )
    return outputs if second else outputs.movedim(-1, 1)


def over_counted(values: Tensor, targets: Tensor) -> Tensor:
    """Mean over the positions of each example whose label is not -100.

    Args:
        values: [N, ...].
        targets: Labels [N, ...].

    Returns:
        [N], double precision.

    Raises:
        InputError: An example without any label that counts: it has no mean.

    Example:
        >>> import torch
        >>> over_counted(torch.tensor([[1.0, 0.0, 9.0]]), torch.tensor([[3, 4, -100]]))
        tensor([0.5000], dtype=torch.float64)
    """
    if not len(values):
        return values.new_zeros(0, dtype=torch.float64)
    counted = counting(targets).to(values.device).reshape(len(values), -1)
    return torch.where(counted, values.reshape(len(values), -1).double(), 0.0).sum(1) / counted.sum(1)


def counting(labels: Tensor, where: str = "labels") -> Tensor:
    """Where labels [N, ...] are not -100.

    Raises:
        InputError: An example has none that counts.

    Example:
        >>> import torch
        >>> counting(torch.tensor([[3, -100]])).tolist()
        [[True, False]]
    """
    counted = labels != IGNORED
    empty = ~counted.reshape(len(labels), -1).any(1) if len(labels) else counted
    if bool(empty.any()):
        raise InputError(
            where,
            "examples with at least one label",
            f"{int(empty.sum())} of {len(labels)} with nothing but {IGNORED}, which is ignored, the first in row "
            f"{int(empty.nonzero()[0])}",
            "Leave these examples out.",
        )
    return counted
