"""Losses: what repairs lower. Each is a mean over the batch that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from planaria.core.errors import InputError
from planaria.measure.labels import IGNORED, class_scores
from planaria.measure.scores import same_shape

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of class scores against labels, in nats, over all positions whose label is not -100.

    Args:
        outputs: [N, classes, ...] or, where shapes tell, [N, ..., classes]; see `class_scores`.
        labels: Integers [N, ...]; or floats of the outputs' shape, the probabilities of the classes in dimension 1.

    Returns:
        A scalar.

    Raises:
        InputError: The shapes do not fit, or there are labels without an output.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(2, 3, 4), torch.tensor([[0, 1, -100], [3, 2, 1]]))
        tensor(1.3863)

    Not guaranteed: a number for a batch in which no label counts; it is NaN.
    """
    if labels.is_floating_point():
        return nn.functional.cross_entropy(outputs, labels)
    scores = class_scores(outputs, labels)
    try:
        return nn.functional.cross_entropy(scores, labels, ignore_index=IGNORED)
    except IndexError as problem:
        expected = f"labels from 0 to {scores.shape[1] - 1}, one output of the network for each"
        remedy = "Give the network one output per class."
        raise InputError("targets", expected, f"up to {int(labels.max())}", remedy) from problem


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error. [N, 1] and [N] match; other shapes raise instead of being broadcast."""
    outputs, targets = same_shape(outputs, targets)
    return nn.functional.mse_loss(outputs, targets.to(outputs.dtype))


def cosine(outputs: Tensor, targets: Tensor) -> Tensor:
    """One minus the mean cosine between output and target of each example, for embeddings.

    Args:
        outputs: [N, d]; more dimensions are joined.
        targets: The same shape.

    Returns:
        A scalar from 0 to 2. It does not depend on the lengths of the outputs.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> import torch
        >>> cosine(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(0.5000)
    """
    outputs, targets = same_shape(outputs, targets)
    rows, wanted = outputs.reshape(len(outputs), -1), targets.to(outputs.dtype).reshape(len(targets), -1)
    return 1.0 - nn.functional.cosine_similarity(rows, wanted).mean()


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse, "cosine": cosine}
