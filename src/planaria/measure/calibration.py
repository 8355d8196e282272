"""Calibration: whether a classifier's confidence is the share of times that it is right.

The probabilities are the softmax of the outputs, so outputs must be logits or log-probabilities. Intervals are over
examples; where an example has several labels, its mean counts once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from planaria.core.errors import InputError
from planaria.measure.labels import IGNORED, class_scores, over_counted
from planaria.measure.statistics import Estimate, mean_interval

BINS = 15
"""Bins of the expected calibration error, as Guo et al. use them."""


def negative_log_likelihood(outputs: Tensor, targets: Tensor) -> Estimate:
    """Mean of -log p(label), in nats, with Student's interval over examples.

    Args:
        outputs: Logits or log-probabilities [N, classes, ...] or [N, ..., classes].
        targets: Labels [N, ...]; -100 is ignored.

    Returns:
        The mean; infinite, with an interval that says nothing, where an output is NaN or infinite.

    Raises:
        InputError: If outputs and labels do not fit together.

    Example:
        >>> print(negative_log_likelihood(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])))
        0.693 [0.693, 0.693]
    """
    outputs, targets = _checked(outputs, targets)
    each = nn.functional.cross_entropy(outputs.double(), targets, ignore_index=IGNORED, reduction="none")
    each = each.masked_fill(~outputs.isfinite().all(1), math.inf)
    return mean_interval(over_counted(each, targets).cpu().numpy(), within=(0.0, math.inf))


def calibration_error(outputs: Tensor, targets: Tensor, *, bins: int = BINS) -> Estimate:
    """Expected calibration error: sum over bins of (share of examples in it) * |accuracy - mean confidence|.

    Confidence is the probability of the class that is predicted; the bins divide [0, 1] into equal widths, each with
    its upper edge. The error is the mean over examples of s * (right - confidence), s = -1 or 1 the sign of that
    difference in the example's bin; the interval is Student's for this mean, the signs taken as known. An example with
    NaN or infinite outputs counts as wrong with confidence 1.

    Args:
        outputs: Logits or log-probabilities [N, classes, ...] or [N, ..., classes].
        targets: Labels [N, ...]; -100 is ignored.
        bins: Number of bins.

    Returns:
        The error, from 0 (perfectly calibrated) to 1.

    Raises:
        InputError: If outputs and labels do not fit together, or there is no bin.

    Example:
        >>> sure_and_half_right = torch.tensor([[9.0, -9.0]] * 4), torch.tensor([0, 1, 0, 1])
        >>> f"{calibration_error(*sure_and_half_right).best:.2f}"
        '0.50'

    Source: Guo, Pleiss, Sun & Weinberger 2017, "On calibration of modern neural networks".

    Not guaranteed: freedom from bias. Few examples per bin make the error too large, most where the truth is near 0.
    """
    if bins < 1:
        raise InputError("calibration_error(bins)", "at least one bin", bins)
    outputs, targets = _checked(outputs, targets)
    healthy = outputs.isfinite().all(1)
    confidence, predicted = outputs.double().softmax(1).max(1)
    confidence = torch.where(healthy, confidence, 1.0)
    gap = (((predicted == targets) & healthy).double() - confidence).where(targets != IGNORED, 0.0)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    total = torch.zeros(bins, dtype=gap.dtype, device=gap.device).index_add(0, place.flatten(), gap.flatten())
    signed = torch.where(total < 0, -1.0, 1.0).to(gap)[place] * gap
    return mean_interval(over_counted(signed, targets).cpu().numpy(), within=(0.0, 1.0))


def _checked(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return class_scores(outputs, targets), targets.to(outputs.device)
