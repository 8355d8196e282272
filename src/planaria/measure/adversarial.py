"""Adversarial score: how many examples a network still gets right when each is moved to where it does worst.

The attacks are foolbox's, which is optional (`pip install 'planaria[attacks]'`); none is made here, because an attack
of one's own that fails says nothing.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor, nn

from planaria.core.autodiff import plain_kernels
from planaria.core.errors import EnvironmentProblem, InputError
from planaria.core.network import Network
from planaria.core.port import Port
from planaria.core.streams import lend
from planaria.measure.scores import ACCURACY
from planaria.measure.statistics import Estimate, wilson
from planaria.measure.task import Data, Task

EPSILONS = (2 / 255, 8 / 255)
"""Usual sizes of attacks on images, as fractions of the data's range."""
PGD_STEPS = 40
"""Steps of projected gradient descent."""
STEPS = PGD_STEPS + 1
"""Steps of one `attack` for each epsilon, each a forward and a backward pass: PGD's, and the one of FGSM."""


@dataclass(frozen=True)
class Attacked:
    """Result of one attack at one size.

    Attributes:
        attack: "PGD" or "FGSM".
        epsilon: Largest change of any input number, as a fraction of the data's range.
        score: Share of the examples that are still right, with Wilson's interval.
        examples: How many were attacked.
    """

    attack: str
    epsilon: float
    score: Estimate
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values.

        Example:
            >>> Attacked("PGD", 0.01, wilson(8, 10), 10).to_dict()["examples"]
            10
        """
        return {
            "attack": self.attack,
            "epsilon": self.epsilon,
            "score": self.score.to_dict(),
            "examples": self.examples,
        }


def untested(task: Task) -> str | None:
    """Why a task's networks cannot be attacked, or None if they can.

    Example:
        >>> import torch
        >>> x = torch.arange(6.0).reshape(6, 1)
        >>> untested(Task.of("line", (x, x), (x, x), loss="mse", score="r2"))
        'the task is no classification with one label per example'
    """
    if task.classes is None or task.test.targets.ndim != 1:
        return "the task is no classification with one label per example"
    inputs = task.test.inputs
    if task.test.layout is not None:
        return "the network takes several tensors"
    if not inputs.is_floating_point():
        return "the inputs are whole numbers (tokens), which cannot be moved a little"
    if inputs.ndim != 4 and not task.preprocessing.get("flat"):
        return "the inputs are no images [examples, channels, height, width]"
    if float(inputs.min()) == float(inputs.max()):
        return "all inputs are equal, so that they have no range"
    if importlib.util.find_spec("foolbox") is None:
        return "foolbox is not installed; pip install 'planaria[attacks]'"
    return None


def attack(
    net: Network, task: Task, data: Data, rng: Generator, *, epsilons: Sequence[float] = EPSILONS
) -> tuple[Attacked, ...]:
    """Accuracy under projected gradient descent and the fast gradient sign method, both bounded in every number.

    No number of an input moves by more than epsilon * (largest - smallest number of the test split), nor out of that
    range. PGD starts at random and takes 40 steps of 2.5 * epsilon / 40, which reach all of it. An example counts as
    right if it is right before and after.

    Args:
        net: Classifier.
        task: Its test split gives the range.
        data: Examples to attack.
        rng: For PGD's random starts.
        epsilons: Sizes, as fractions of the range.

    Returns:
        One result per attack and epsilon.

    Raises:
        InputError: If the task cannot be attacked (see `untested`).
        EnvironmentProblem: If foolbox is not installed.

    Source: Goodfellow et al. 2015 (FGSM), Madry et al. 2018 (PGD); Rauber et al. 2020 (foolbox).

    Not guaranteed: the worst case. A stronger attack finds more; a low score is a fact, a high one an upper bound.
    """
    reason = untested(task)
    if reason is not None:
        kind = EnvironmentProblem if "installed" in reason else InputError
        raise kind("attack(task)", "a task that can be attacked", reason)
    foolbox = _foolbox()
    low, high = float(task.test.inputs.min()), float(task.test.inputs.max())
    attacks = {
        "PGD": foolbox.attacks.LinfPGD(rel_stepsize=2.5 / PGD_STEPS, steps=PGD_STEPS),
        "FGSM": foolbox.attacks.LinfFastGradientAttack(),
    }
    module = _Called(net.to_module().requires_grad_(False), net.port).eval()
    model = foolbox.PyTorchModel(module, bounds=(low, high), device=data.inputs.device)
    before = _right(net, data.inputs, data)
    found = []
    for name, made in attacks.items():
        with lend(rng, data.inputs.device), plain_kernels():
            _, moved, _ = made(model, data.inputs, data.targets, epsilons=[e * (high - low) for e in epsilons])
        for epsilon, inputs in zip(epsilons, moved, strict=True):
            right = int((before & _right(net, inputs, data)).sum())
            found.append(Attacked(name, epsilon, wilson(right, len(data)), len(data)))
    return tuple(found)


class _Called(nn.Module):
    """A module whose outputs are the tensor that counts."""

    def __init__(self, module: nn.Module, port: Port) -> None:
        nn.Module.__init__(self)
        self.module, self.port = module, port

    def forward(self, inputs: Tensor) -> Any:
        """Outputs [N, classes]."""
        return self.port(self.module, inputs)


def _right(net: Network, inputs: Tensor, data: Data) -> Tensor:
    assert ACCURACY.per_example is not None
    return ACCURACY.per_example(net(inputs), data.targets) > 0


def _foolbox() -> Any:
    with warnings.catch_warnings():  # it imports from places that scipy has renamed
        warnings.simplefilter("ignore")
        import foolbox
    return foolbox
