"""Scores: how good a network's outputs are on held-out data. Higher is better, always.

By name, in `SCORES`: accuracy, agreement, top5 (any K: top3, top10), f1, nll and perplexity of labels; r2, pearson and
spearman of numbers; similarity of embeddings. What is lower when it is better carries a minus sign: nll is the mean log
likelihood, and perplexity is minus the perplexity.

Labels of -100 are ignored, as in torch and in Hugging Face. Scores that are means over examples (accuracy, agreement,
topK, nll) weigh every example alike, however many of its positions count; f1 and perplexity pool all positions. A
network that fails never looks good: outputs that are NaN or infinite get the least that the score can give.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from planaria.core.errors import InputError, nearest
from planaria.measure.labels import IGNORED, class_scores, counting, over_counted
from planaria.measure.shares import TOP


def _no_chance(targets: Tensor) -> float:
    del targets
    return 0.0


@dataclass(frozen=True, repr=False)
class Score:
    """How good outputs are, as one number that is higher when they are better.

    Args:
        name: Word under which the score is recorded.
        function: `(outputs [N, ...], targets [N, ...]) -> float`.
        chance: `(targets) -> float`, the score of guessing. 0 when not given.
        per_example: `(outputs, targets) -> Tensor [N]` whose mean is the score; None if it is not a mean.
        bounds: Least and greatest possible score, perhaps infinite, to which intervals are clipped; None if unknown.
        labels: Whether targets are classes: integers from 0 up, or -100 where a sequence has none.
        pooled: `(outputs, targets) -> (sum, count)` of numbers whose mean decides the score, as perplexity does by the
            log likelihoods of all positions; None if there are none. Outputs too many to keep are scored by it.
        of_mean: That mean -> score.

    Example:
        >>> import torch
        >>> share_close = Score("close", lambda y, t: float(((y - t).abs() < 0.5).float().mean()))
        >>> share_close.function(torch.tensor([0.1, 2.0]), torch.tensor([0.0, 0.0]))
        0.5
    """

    name: str
    function: Callable[[Tensor, Tensor], float]
    chance: Callable[[Tensor], float] = _no_chance
    per_example: Callable[[Tensor, Tensor], Tensor] | None = None
    bounds: tuple[float, float] | None = None
    labels: bool = False
    pooled: Callable[[Tensor, Tensor], tuple[float, int]] | None = None
    of_mean: Callable[[float], float] = float

    @property
    def of_answers(self) -> bool:
        """Whether only the place of the largest output matters, as in accuracy and agreement."""
        return self.per_example is _right

    def __repr__(self) -> str:
        if SCORES.get(self.name) is self:
            return f"SCORES[{self.name!r}]"
        return f"score_named({self.name!r})" if TOP.fullmatch(self.name) else f"<Score {self.name}>"


# ----------------------------------------------------------------------------------------------------- shapes


def same_shape(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets of a regression in one shape: [N, 1] and [N] match, nothing is ever broadcast.

    Args:
        outputs: Floats [N, ...].
        targets: Floats [N, ...] with as many numbers.

    Returns:
        The outputs in the shape of the targets, and the targets on the outputs' device.

    Raises:
        InputError: The shapes differ by more than dimensions of length 1.

    Example:
        >>> import torch
        >>> same_shape(torch.zeros(3, 1), torch.ones(3))[0].shape
        torch.Size([3])
    """
    if [n for n in outputs.shape if n != 1] != [n for n in targets.shape if n != 1]:
        raise InputError(
            "network outputs",
            f"the shape of the targets, {list(targets.shape)}",
            list(outputs.shape),
            "Give the network one output per target number.",
        )
    return outputs.reshape(targets.shape), targets.to(outputs.device)


def _finite_rows(scores: Tensor) -> Tensor | None:
    """Which rows of class scores are finite; None where all are."""
    # A finite sum says that all its terms are finite, in a tenth of the time; elsewhere than on the CPU asking takes
    # more than it saves.
    if scores.device.type == "cpu" and bool(scores.sum().isfinite()):
        return None
    return scores.isfinite().all(1)


# --------------------------------------------------------------------------------------- accuracy and topK


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    scores = class_scores(outputs, targets)
    # The argmax of a row with NaN is the first NaN: an answer, and for that class even a right one.
    right, finite = scores.argmax(1) == targets.to(scores.device), _finite_rows(scores)
    if finite is not None:
        right &= finite
    return right.double() if right.ndim == 1 else over_counted(right, targets)


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float(_right(outputs, targets).mean())


def _classes(targets: Tensor) -> int:
    """Number of classes that occur."""
    return len(torch.unique(targets[targets != IGNORED]))


def _one_of_the_classes(targets: Tensor) -> float:
    return 1.0 / _classes(targets)


def _in_top(outputs: Tensor, targets: Tensor, count: int) -> Tensor:
    scores = class_scores(outputs, targets)
    classes = scores.shape[1]
    if count > classes:
        raise InputError(f"score 'top{count}'", f"at most the {classes} classes of the network", count, "Ask for less.")
    labels, finite = targets.to(scores.device).unsqueeze(1), _finite_rows(scores)
    own = scores.gather(1, labels.clamp(0, classes - 1))
    # Among equals the first classes come first, as in argmax: top1 is the accuracy.
    number = torch.arange(classes, device=scores.device).view(1, -1, *[1] * (scores.ndim - 2))
    better = (scores > own) | ((scores == own) & (number < labels))
    right = (better.sum(1) < count) & (targets.to(scores.device) < classes)
    return over_counted(right if finite is None else right & finite, targets)


def _top_share(outputs: Tensor, targets: Tensor, count: int) -> float:
    return float(_in_top(outputs, targets, count).mean())


def _top_chance(targets: Tensor, count: int) -> float:
    return min(1.0, count / _classes(targets))


@cache
def _top(count: int) -> Score:
    function, chance = partial(_top_share, count=count), partial(_top_chance, count=count)
    return Score(f"top{count}", function, chance, partial(_in_top, count=count), (0.0, 1.0), labels=True)


# ------------------------------------------------------------------------------------------------------- f1


def _pooled(targets: Tensor) -> Tensor:
    """Labels of all positions that count, [positions]."""
    return targets[counting(targets)]


def _f1(outputs: Tensor, targets: Tensor) -> float:
    scores = class_scores(outputs, targets)
    targets = targets.to(scores.device)
    labels, answers, finite = _pooled(targets), scores.argmax(1)[targets != IGNORED], _finite_rows(scores)
    size = max(scores.shape[1], 1 + int(labels.max()))
    valid = torch.ones_like(labels, dtype=torch.bool) if finite is None else finite[targets != IGNORED]
    hits = torch.bincount(labels[(labels == answers) & valid], minlength=size)
    # Answers and labels of a class: together twice the hits, the false and the missed ones.
    all_of_it = torch.bincount(labels, minlength=size) + torch.bincount(answers[valid], minlength=size)
    return float((2.0 * hits[all_of_it > 0].double() / all_of_it[all_of_it > 0]).mean())


def _f1_of_guessing(targets: Tensor) -> float:
    shares = _frequencies(_pooled(targets))
    return float((2.0 * shares / (1.0 + len(shares) * shares)).mean())


def _frequencies(labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Shares of the classes that occur among labels [positions], double."""
    if weights is None:
        weights = torch.ones_like(labels, dtype=torch.float64)
    sums = torch.bincount(labels, weights)
    return sums[sums > 0] / sums.sum()


# ----------------------------------------------------------------------------------------- nll and perplexity


def _log_likelihoods(outputs: Tensor, targets: Tensor) -> Tensor:
    """Log probability of each label, [N, ...] in double precision; of those that do not count anything."""
    scores = class_scores(outputs, targets)
    targets = targets.to(scores.device)
    wrong = (targets >= scores.shape[1]) | ((targets < 0) & (targets != IGNORED))
    if bool(wrong.any()):
        raise InputError(
            "targets",
            f"labels from 0 to {scores.shape[1] - 1}, one output of the network for each",
            f"{int(wrong.sum())} outside, such as {int(targets[wrong][0])}",
            "Give the network one output per class.",
        )
    wide = scores if scores.dtype in {torch.float32, torch.float64} else scores.float()
    found = -nn.functional.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="none").double()
    finite = _finite_rows(scores)
    return found if finite is None else found.masked_fill(~finite, -math.inf)


def _log_likelihood_by_example(outputs: Tensor, targets: Tensor) -> Tensor:
    return over_counted(_log_likelihoods(outputs, targets), targets)


def _nll(outputs: Tensor, targets: Tensor) -> float:
    return float(_log_likelihood_by_example(outputs, targets).mean())


def _minus_entropy(shares: Tensor) -> float:
    return float((shares * shares.log()).sum())


def _nll_of_frequencies(targets: Tensor) -> float:
    counted = counting(targets).reshape(len(targets), -1)
    weights = (counted.double() / counted.sum(1, keepdim=True))[counted]
    return _minus_entropy(_frequencies(_pooled(targets), weights))


def _minus_perplexity(mean_log_likelihood: float) -> float:
    return -math.exp(-mean_log_likelihood) if mean_log_likelihood > -700.0 else -math.inf


def _log_likelihood_of_all(outputs: Tensor, targets: Tensor) -> tuple[float, int]:
    found = _log_likelihoods(outputs, targets)[counting(targets).to(outputs.device)]
    return float(found.sum()), found.numel()


def _perplexity(outputs: Tensor, targets: Tensor) -> float:
    total, count = _log_likelihood_of_all(outputs, targets)
    return _minus_perplexity(total / count)


def _perplexity_of_frequencies(targets: Tensor) -> float:
    return _minus_perplexity(_minus_entropy(_frequencies(_pooled(targets))))


# --------------------------------------------------------------------------------------- numbers and embeddings


def _r2(outputs: Tensor, targets: Tensor) -> float:
    outputs, targets = same_shape(outputs, targets)
    if not bool(outputs.isfinite().all()):
        return -math.inf
    outputs, targets = outputs.double(), targets.double()
    error = float(((outputs - targets) ** 2).sum())
    spread = float(((targets - targets.mean(0)) ** 2).sum())
    if spread == 0.0:
        return 1.0 if error == 0.0 else 0.0
    return 1.0 - error / spread


def _pair(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
    """Outputs and targets [N] in double precision; None where an output is NaN or infinite."""
    outputs, targets = same_shape(outputs, targets)
    if targets.numel() != len(targets):
        expected = "one number per example, [N] or [N, 1]"
        raise InputError("a correlation", expected, list(targets.shape), "Take r2 or similarity.")
    if not bool(outputs.isfinite().all()):
        return None
    return outputs.reshape(-1).double(), targets.reshape(-1).double()


def _correlation(a: Tensor, b: Tensor) -> float:
    if bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return 0.0
    one, other = (_directions((x / x.abs().max() - (x / x.abs().max()).mean())[None]) for x in (a, b))
    return float((one * other).sum().clamp(-1.0, 1.0))


def _pearson(outputs: Tensor, targets: Tensor) -> float:
    pair = _pair(outputs, targets)
    return -1.0 if pair is None else _correlation(*pair)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0).double() - (counts.double() - 1.0) / 2.0
    return ranks[place]


def _spearman(outputs: Tensor, targets: Tensor) -> float:
    pair = _pair(outputs, targets)
    return -1.0 if pair is None else _correlation(_ranks(pair[0]), _ranks(pair[1]))


def _directions(rows: Tensor) -> Tensor:
    """Rows [N, d] of length 1; rows of zeros stay zero. Scaled first, so that no square overflows or vanishes."""
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    lengths: Tensor = rows.square().sum(1, keepdim=True).sqrt().clamp(min=1.0)
    return rows / lengths


def _cosines(outputs: Tensor, targets: Tensor) -> Tensor:
    outputs, targets = same_shape(outputs, targets)
    if not len(outputs):
        return outputs.new_zeros(0, dtype=torch.float64)
    rows, wanted = (x.reshape(len(x), -1).double() for x in (outputs, targets))
    finite = rows.isfinite().all(1)
    cosines = (_directions(rows.masked_fill(~finite[:, None], 0.0)) * _directions(wanted)).sum(1).clamp(-1.0, 1.0)
    return cosines.masked_fill(~finite, -1.0)


def _similarity(outputs: Tensor, targets: Tensor) -> float:
    return float(_cosines(outputs, targets).mean())


# ------------------------------------------------------------------------------------------------- the scores


ACCURACY = Score("accuracy", _accuracy, _one_of_the_classes, _right, (0.0, 1.0), labels=True)
"""Share of examples whose largest output is the label's; of sequences, mean share of the positions.

A row with any NaN or Inf is wrong, whatever its argmax. Chance is 1 / (classes present in the targets).
"""

AGREEMENT = Score("agreement", _accuracy, _one_of_the_classes, _right, (0.0, 1.0), labels=True)
"""Share of examples answered as the intact network answers: its accuracy on labels that are those answers.

It needs no labels of anyone's; it says nothing about how good the intact network is.
"""

F1 = Score("f1", _f1, _f1_of_guessing, None, (0.0, 1.0), labels=True)
"""Mean over classes of F1 = 2 hits / (labels + answers of the class): macro F1, of two classes too.

Classes are those that occur among labels or answers, positions of sequences are pooled, and a row with any NaN or Inf
is no answer. Not a mean over examples. Chance is that of answering uniformly at random among the K classes present,
of many examples: the mean over classes of 2 p / (1 + K p), p the share of the class.
"""

NLL = Score("nll", _nll, _nll_of_frequencies, _log_likelihood_by_example, (-math.inf, 0.0), labels=True)
"""Minus the mean negative log likelihood of the labels, in nats: from -inf to 0, printed with its minus sign.

-inf for a row with any NaN or Inf. Chance is minus the entropy of the labels: the best that can be done without looking
at the inputs, which is to answer with the frequencies of the classes (as 0 is for R2, whose guess is the mean).
"""

PERPLEXITY = Score(
    "perplexity",
    _perplexity,
    _perplexity_of_frequencies,
    bounds=(-math.inf, -1.0),
    labels=True,
    pooled=_log_likelihood_of_all,
    of_mean=_minus_perplexity,
)
"""Minus the perplexity, -exp(mean negative log likelihood over all positions): from -inf to -1.

Pooled over positions, so not a mean over examples. Chance is minus the exponential of the labels' entropy.
"""

R2 = Score("r2", _r2, bounds=(-math.inf, 1.0))
"""Share of the targets' variance explained: 1 - sum (y - t)^2 / sum (t - mean t)^2, all outputs pooled.

-inf when any output is NaN or Inf. For targets without variance: 1 when every output is exact, else 0.
Chance, the score of the mean, is 0. Not a mean over examples, so `per_example` is None.
"""

PEARSON = Score("pearson", _pearson, bounds=(-1.0, 1.0))
"""Correlation of outputs and targets, one number per example each. 0 where either is constant; -1 for NaN or Inf."""

SPEARMAN = Score("spearman", _spearman, bounds=(-1.0, 1.0))
"""Correlation of the ranks of outputs and targets, one number per example each; equal values share a mean rank.

0 where either is constant, -1 when any output is NaN or Inf. Chance is 0.
"""

SIMILARITY = Score("similarity", _similarity, per_example=_cosines, bounds=(-1.0, 1.0))
"""Mean cosine between output and target of each example, for embeddings against the intact network's own [N, d].

0 for an output of zeros, -1 for one with NaN or Inf. Chance is 0, the cosine of unrelated directions.

Not guaranteed: that unrelated embeddings have cosine 0; those of many networks share a large mean.
"""

SCORES: dict[str, Score] = {
    score.name: score
    for score in (ACCURACY, AGREEMENT, _top(5), F1, NLL, PERPLEXITY, R2, PEARSON, SPEARMAN, SIMILARITY)
}


def score_named(name: str) -> Score:
    """The score of a name: one of `SCORES`, or "topK" with a number, the share of labels among the K largest outputs.

    Of equal outputs the first classes come first, so that top1 is the accuracy. Chance is K / (classes present).

    Args:
        name: The name.

    Returns:
        The score, the same object every time.

    Raises:
        InputError: No such score.

    Example:
        >>> import torch
        >>> score_named("top2").function(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1]))
        1.0
    """
    if name in SCORES:
        return SCORES[name]
    if top := TOP.fullmatch(name):
        return _top(int(top[1]))
    raise InputError("score", "a known name or a function", repr(name), nearest(name, [*SCORES, "topK"]))
