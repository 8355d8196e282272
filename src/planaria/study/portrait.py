"""Portrait: what damage and rescue did to a network beside its score.

Calibration, sparsity, size when what is dead is cut out, and the score on corrupted and attacked inputs: before the
damage, after it, and after the rescue. All stages meet the same examples, corruptions and attacks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.graph import forward_multiply_adds
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.measure.adversarial import EPSILONS, STEPS, Attacked, attack, untested
from planaria.measure.calibration import calibration_error, negative_log_likelihood
from planaria.measure.corruption import CORRUPTIONS, Corruption
from planaria.measure.scores import Score
from planaria.measure.statistics import Estimate, mean_interval, wilson
from planaria.measure.task import Data, Task
from planaria.sweep.compact import Compact, compact

BEFORE, DAMAGED, RESCUED = "before damage", "after damage", "after rescue"
"""Stages of a rescue."""
CORRUPTED, ATTACKED = 1000, 500
"""Usual numbers of test examples that are corrupted and attacked."""
WORK = 3e11
"""Multiply-adds that corruptions, and attacks, of one network may take: for large networks, fewer examples."""
FEWEST = 10
"""Examples below which that is not reduced."""


@dataclass(frozen=True)
class Corrupted:
    """Score on corrupted inputs.

    Attributes:
        corruption: What was done to them.
        score: With its interval over examples.
        examples: How many.
    """

    corruption: Corruption
    score: Estimate
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.corruption.name,
            "strength": self.corruption.strength,
            "score": self.score.to_dict(),
            "examples": self.examples,
        }


@dataclass(frozen=True, eq=False)
class Portrait:
    """One network at one stage; intervals are over test examples.

    Attributes:
        stage: Of a rescue; any word.
        score: On the test split.
        nll: Negative log-likelihood in nats; None where the task is no classification.
        ece: Expected calibration error; None in the same places.
        uncalibrated: Why there is neither, or None.
        sparsity: Share of the weight entries that are zero.
        compact: The network without its dead units.
        corruption: Scores on corrupted inputs.
        adversarial: Scores under attack.
        unattacked: Why there are none, or None.
    """

    stage: str
    score: Estimate
    nll: Estimate | None
    ece: Estimate | None
    uncalibrated: str | None
    sparsity: float
    compact: Compact
    corruption: tuple[Corrupted, ...]
    adversarial: tuple[Attacked, ...]
    unattacked: str | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON; estimates as low, best and high."""
        return {
            "stage": self.stage,
            "score": self.score.to_dict(),
            "nll": None if self.nll is None else self.nll.to_dict(),
            "ece": None if self.ece is None else self.ece.to_dict(),
            "calibration_untested": self.uncalibrated,
            "sparsity": self.sparsity,
            "compact": self.compact.to_dict(),
            "corruption": [entry.to_dict() for entry in self.corruption],
            "adversarial": [entry.to_dict() for entry in self.adversarial],
            "adversarial_untested": self.unattacked,
        }


def portrait(
    net: Network, task: Task, *, stage: str = "", seed: int = 0, corrupted: int = CORRUPTED, attacked: int = ATTACKED
) -> Portrait:
    """Everything that is reported of a network beside its score.

    Args:
        net: The network; dead units are recognised by their pinned entries.
        task: Its test split is what is measured on.
        stage: Word for the result.
        seed: Of the examples that are corrupted and attacked, of the corruptions, and of the attacks' random starts.
        corrupted: Test examples to corrupt; fewer where the network is large, see WORK.
        attacked: Test examples to attack, the same; 0 for none.

    Returns:
        The portrait. What cannot be measured is None or empty, with the reason.

    Raises:
        InputError: On negative numbers of examples, or a network that does not fit the task.

    Example:
        >>> from torch import nn
        >>> from planaria.measure.datasets import task
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)))
        >>> found = portrait(net, task("digits"), corrupted=50, attacked=0)
        >>> [f"{entry.corruption.name} {entry.corruption.strength}" for entry in found.corruption][:2]
        ['gaussian noise 0.25', 'gaussian noise 0.5']
        >>> found.unattacked
        'no examples were to be attacked'
    """
    for name, count in (("corrupted", corrupted), ("attacked", attacked)):
        if count < 0:
            raise InputError(f"portrait({name})", "a number of examples of at least 0", count)
    net = net.with_inputs(task.train.examples)
    outputs = task.outputs(net, task.test)
    score = _scored(task.scorer, outputs, task.test.targets)
    nll = ece = None
    uncalibrated = None if task.classes is not None else "the task is no classification"
    if uncalibrated is None:
        try:
            nll = negative_log_likelihood(outputs, task.test.targets)
            ece = calibration_error(outputs, task.test.targets)
        except InputError as problem:  # a score of the user's own may read outputs of any shape
            uncalibrated = str(problem)
    adversarial, unattacked = _attacked(net, task, seed, attacked, uncalibrated)
    return Portrait(
        stage=stage,
        score=score,
        nll=nll,
        ece=ece,
        uncalibrated=uncalibrated,
        sparsity=net.sparsity,
        compact=compact(net),
        corruption=_corrupted(net, task, seed, corrupted),
        adversarial=adversarial,
        unattacked=unattacked,
    )


def passes(net: Network, task: Task, *, corrupted: int = CORRUPTED, attacked: int = ATTACKED) -> float:
    """Forward passes over the test split that one portrait takes, a backward pass counted as one too.

    Args:
        net: A network like the one to be portrayed.
        task: Its task.
        corrupted: As for `portrait`.
        attacked: The same.

    Example:
        >>> from torch import nn
        >>> from planaria.measure.datasets import task
        >>> passes(Network.of(nn.Linear(64, 10)), task("digits"), corrupted=0, attacked=0)
        1.0
    """
    fitting, attacks = _fitting(task), 0 if untested(task) else 2 * STEPS * len(EPSILONS)
    examples = _affordable(task, corrupted, net, len(fitting)) * len(fitting)
    return 1.0 + (examples + _affordable(task, attacked, net, attacks) * attacks) / len(task.test)


def stages(net: Network, damage: Damage, dose: float, rescued: Network, *, seed: int = 0) -> dict[str, Network]:
    """The three networks that a rescue is told by: before the damage, after the whole lesion, after the rescue.

    Args:
        net: The undamaged network.
        damage: Fault and site.
        dose: On the damage's axis.
        rescued: The repaired network, for example `Attempt.network`.
        seed: Of the lesion, as in `attempt`.

    Returns:
        Stage -> network.

    Example:
        >>> from torch import nn
        >>> from planaria.damage.damage import RandomUnits, Silence
        >>> net = Network.of(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), torch.zeros(1, 2))
        >>> hurt = stages(net, Damage(Silence(), RandomUnits()), 0.5, net)["after damage"]
        >>> compact(hurt).units_removed
        2
    """
    lesion = damage.site.select(net, dose, stream(seed, "lesion"))
    hurt = damage.fault.strike(net, lesion, stream(seed, "fault")) if lesion.all else net
    return {BEFORE: net, DAMAGED: hurt, RESCUED: rescued}


def _scored(scorer: Score, outputs: Tensor, targets: Tensor) -> Estimate:
    """Score with its interval over examples, where it is a mean over them."""
    if scorer.per_example is None:
        value = float(scorer.function(outputs, targets))
        return Estimate(math.nan, -math.inf if math.isnan(value) else value, math.nan)
    values = scorer.per_example(outputs, targets).double()
    if bool(((values == 0) | (values == 1)).all()):
        return wilson(int(values.sum()), len(values))
    values = torch.where(values.isnan(), -math.inf, values)
    return mean_interval(values.cpu().numpy(), within=scorer.bounds)


def _affordable(task: Task, wanted: int, net: Network, passes: int) -> int:
    """Test examples to measure on: as many as wanted, or as the work allows."""
    each = forward_multiply_adds(net, task.test.inputs) * passes
    return min(wanted, len(task.test), max(FEWEST, int(WORK // max(1, each))))


def _some(task: Task, seed: int, count: int) -> Data:
    """Test examples drawn by the seed."""
    return task.test.take(torch.randperm(len(task.test), generator=stream(seed, "portrait"))[:count])


def _fitting(task: Task) -> list[Corruption]:
    if task.test.layout is not None:
        return []  # tokens, marks and numbers side by side: no corruption is meant for all of them
    return [corruption for corruption in CORRUPTIONS if corruption.suits(task.test.inputs)]


def _corrupted(net: Network, task: Task, seed: int, wanted: int) -> tuple[Corrupted, ...]:
    fitting = _fitting(task)
    if not (wanted and fitting):
        return ()
    data = _some(task, seed, _affordable(task, wanted, net, len(fitting)))
    found = []
    for corruption in fitting:
        rng = stream(seed, "portrait", corruption.name, corruption.strength)
        spoilt = Data(corruption(data.inputs, rng), data.targets)
        score = _scored(task.scorer, task.outputs(net, spoilt), spoilt.targets)
        found.append(Corrupted(corruption, score, len(spoilt)))
    return tuple(found)


def _attacked(
    net: Network, task: Task, seed: int, wanted: int, uncalibrated: str | None
) -> tuple[tuple[Attacked, ...], str | None]:
    reason = "no examples were to be attacked" if wanted == 0 else untested(task) or uncalibrated
    if reason is not None:
        return (), reason
    data = _some(task, seed, _affordable(task, wanted, net, 2 * STEPS * len(EPSILONS)))
    try:
        return attack(net, task, data, stream(seed, "portrait", "attack")), None
    except RuntimeError as problem:  # a forward that breaks the gradient to its inputs
        return (), f"the attack failed: {(str(problem).splitlines() or ['no message'])[0]}"
