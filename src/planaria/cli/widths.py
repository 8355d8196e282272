"""The finite-size test: response curves of networks of several widths, trained alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from planaria.cli import inputs
from planaria.cli.running import Run, pace
from planaria.cli.screen import Screen
from planaria.core.errors import InputError
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.measure.models import build, check_fit
from planaria.measure.scaling import FEWEST_WIDTHS, Scaling, finite_size
from planaria.measure.statistics import numpy_generator
from planaria.measure.transition import FEWEST_DOSES, FEWEST_DRAWS
from planaria.repair.retrain import Retrain
from planaria.study.respond import iter_respond
from planaria.study.train import train

DOSES = "0:1:26"
"""Doses that are whole numbers of units at every multiple of 25."""


@dataclass(frozen=True)
class Widths:
    """Which networks the finite-size test trains.

    Attributes:
        widths: Units per hidden layer, ascending.
        networks: Networks of every width.
    """

    widths: tuple[int, ...]
    networks: int

    def identity(self) -> dict[str, Any]:
        """The choice as plain values."""
        return {"widths": list(self.widths), "networks": self.networks}


def chosen(
    text: str | None, networks: int | None, prepared: inputs.Prepared, damage: Damage, doses: int, draws: int
) -> Widths | None:
    """Widths as given on the command line, checked; None if none are.

    Raises:
        InputError: On widths that are no numbers, too few, of a network whose weights are given, or whose model has no
            width; with doses that count units; with too few doses or orders.
    """
    if text is None:
        if networks is not None:
            raise InputError("--networks", "--widths beside it", "none", "Give --widths 25,50,100,200,400,800.")
        return None
    widths = tuple(sorted(set(inputs.numbers("--widths", text, int))))
    if widths[0] < 1 or len(widths) < FEWEST_WIDTHS:
        expected = f"{FEWEST_WIDTHS} widths of at least 1, or more"
        raise InputError("--widths", expected, repr(text), "For example 25,50,100,200,400,800.")
    if prepared.recipe is None:
        raise InputError(
            "--widths", "networks that are trained now", "--weights beside it", "Leave --weights out: widths differ."
        )
    if not damage.site.dose.relative:
        raise InputError(
            "--widths", "a dose that is a fraction", damage.site.dose.unit, "Counts are not comparable between widths."
        )
    for option, number, fewest in (("--doses", doses, FEWEST_DOSES), ("--draws", draws, FEWEST_DRAWS)):
        if number < fewest:
            raise InputError(option, f"{fewest} or more with --widths", number, "Orders must be random.")
    found = Widths(widths, networks or (1 if prepared.subject.quick else 2))
    for width in widths:  # what is wrong shows before anything is trained
        check_fit(_model(prepared, width, 0), prepared.task)
    return found


def finite_size_test(
    current: Run,
    choice: Widths,
    damage: inputs.DamageChoice,
    doses: tuple[float, ...],
    draws: int,
    screen: Screen,
) -> Scaling:
    """Train the networks, damage them, and compare their curves; finished orders come from the ledger."""
    scores: list[list[list[list[float]]]] = []
    with screen.progress(len(choice.widths) * choice.networks * draws, "orders of the finite-size test") as steps:
        for width in choice.widths:
            curves = []
            for network in range(choice.networks):
                net: Network | None = None
                rows = []
                for draw in range(draws):
                    mark = current.id(what="width", width=width, member=network, draw=draw, doses=list(doses))
                    if mark not in current.ledger:
                        net = _trained(current.prepared, width, network) if net is None else net
                        order = network * draws + draw  # every network has orders of its own
                        seed = current.prepared.subject.seed
                        points = iter_respond(net, damage.on(net), current.task, doses, draw=order, seed=seed)
                        found = [point.score for point in points]
                        cell = {"what": "width", "width": width, "member": network, "draw": draw, "scores": found}
                        current.ledger.record(mark, cell)
                    stored: Any = current.ledger[mark]["scores"]
                    rows.append(stored)
                    steps.done(what=f"orders of the finite-size test (width {width})")
                curves.append(rows)
            scores.append(curves)
    rng = numpy_generator(stream(current.prepared.subject.seed, "finite size"))
    task = current.task
    return finite_size(choice.widths, doses, scores, task.chance, rng, bounds=task.scorer.bounds)


def seconds(choice: Widths, prepared: inputs.Prepared, evaluations: int) -> tuple[int, float]:
    """Updates and seconds that the finite-size test takes, from a short trial of every width.

    Args:
        choice: The networks.
        prepared: Task and recipe.
        evaluations: Points of the curve of one network.
    """
    task, recipe = prepared.task, prepared.recipe
    assert recipe is not None
    training = prepared.updates
    total = 0.0
    for width in choice.widths:
        net = Network.of(_model(prepared, width, 0), task.train.examples)
        update, _, test = pace(net, task, Retrain(task, batch=recipe.batch), longest=0.3)
        total += choice.networks * (training * update + evaluations * test)
    return training * len(choice.widths) * choice.networks, total


def show(scaling: Scaling, screen: Screen) -> None:
    """Steepness and fluctuations by width, in the terminal."""
    grid = Table(title="finite-size test")
    for name in ("width", "steepness", "susceptibility"):
        grid.add_column(name, justify="right")
    for width, steep, loud in zip(scaling.widths, scaling.steepness, scaling.susceptibility, strict=True):
        grid.add_row(str(width), f"{steep:.2f}", f"{loud:.3f}")
    screen.table(grid)
    screen.results.print(scaling.words, markup=False)


def _model(prepared: inputs.Prepared, width: int, network: int) -> Any:
    subject, task = prepared.subject, prepared.task
    shape = tuple(task.train.inputs.shape[1:])
    return build(subject.model, shape, task.output_size, subject.seed + network, width=width).to(
        task.train.inputs.device
    )


def _trained(prepared: inputs.Prepared, width: int, network: int) -> Network:
    """One network of the test, trained by the recipe of the run."""
    assert prepared.recipe is not None
    model = _model(prepared, width, network)
    net, _ = train(model, prepared.task, prepared.recipe, seed=prepared.subject.seed + network)
    return inputs.tapped(net, prepared.subject.taps)
