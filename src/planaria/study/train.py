"""Train a network from scratch: the start of a study when the user brings no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from planaria.core.errors import InputError
from planaria.core.motion import settle, updates
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.measure.task import Task
from planaria.repair.retrain import SGD, Retrain


@dataclass(frozen=True)
class Recipe:
    """How to train from scratch: SGD with momentum, the rate falling along a half cosine to 0.

    Args:
        epochs: Passes over the training split.
        rate: Initial rate per update.
        batch: Examples per update.
        decay: Weight decay.

    Raises:
        InputError: If one of them is not positive.

    Example:
        >>> Recipe(epochs=3)
        Recipe(epochs=3, rate=0.1, batch=128, decay=0.0)
    """

    epochs: int
    rate: float = 0.1
    batch: int = 128
    decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise InputError(f"Recipe.{name}", "a whole number of at least 1", repr(getattr(self, name)))
        if not (isinstance(self.rate, (int, float)) and self.rate > 0):
            raise InputError("Recipe.rate", "a number above 0", repr(self.rate))

    @staticmethod
    def suited(task: Task, model: nn.Module, quick: bool = False) -> Recipe:
        """Settings that train the named networks well on small and medium data; no claim beyond that."""
        convolutional = any(parameter.ndim > 2 for parameter in model.parameters())
        rows = len(task.train)
        epochs = max(3, min(60, 600_000 // rows))
        if convolutional:
            epochs = max(3, min(30, 100_000 // rows))
        rate = (0.02 if convolutional else 0.1) if task.classes else 0.01
        decay = 0.0 if convolutional else 1e-4
        return Recipe(max(1, epochs // 3) if quick else epochs, rate, usual_batch(rows), decay)

    def updates(self, rows: int) -> int:
        """Updates that the training takes on a training split of so many rows."""
        return max(1, self.epochs * rows // self.batch)


def usual_batch(rows: int) -> int:
    """Examples per update that suit a training split of so many rows.

    Example:
        >>> usual_batch(60_000), usual_batch(1_000)
        (128, 32)
    """
    return 128 if rows >= 5000 else 32


def train(model: nn.Module, task: Task, recipe: Recipe, *, seed: int = 0) -> tuple[Network, dict[str, Any]]:
    """Train a module's weights from where they are.

    Args:
        model: Initialised module; it is not changed.
        task: Trained on its training split.
        recipe: How.
        seed: Order of the examples.

    Returns:
        The trained network, and the record of how it was trained.

    Example:
        >>> from planaria.measure.datasets import task
        >>> net, record = train(nn.Linear(64, 10), task("digits"), Recipe(1))
        >>> record["updates"]
        8
    """
    net = Network.of(model, task.train.examples)
    number = recipe.updates(len(task.train))
    optimiser = SGD(recipe.rate, momentum=0.9, decay=recipe.decay)
    flow = Retrain(task, optimiser, recipe.batch, horizon=number)
    moment = settle(flow, updates(number)).moment(net, stream(seed, "train"))
    record = {
        "epochs": recipe.epochs,
        "updates": number,
        "batch": recipe.batch,
        "optimiser": repr(optimiser),
        "rate_schedule": "half cosine to 0",
        "seed": seed,
        "seconds": moment.cost.seconds,
    }
    return moment.network, record
