"""Survive: damage arrives as a stream, and after every event the network is repaired within a budget.

A walk is x_t = r(D(x_{t-1})), in one of the two modes of `planaria.study.regime`; what walks add up to is in
`planaria.study.walks` and `planaria.study.survival`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Generator

from planaria.core.anatomy import ASIDE, Anatomy, Group, Unit, silence
from planaria.core.errors import InputError
from planaria.core.motion import After, Budget, Cost, Flow, Moment, Settle, after, settle
from planaria.core.network import Network
from planaria.core.streams import stream
from planaria.damage.damage import Damage
from planaria.damage.sites import RandomUnits
from planaria.measure.statistics import finite
from planaria.measure.task import Task
from planaria.repair.refit import Refit
from planaria.repair.regrow import dead_units, embryonic
from planaria.repair.sidecar import Sidecar
from planaria.study.attempt import ROUNDING, Baseline
from planaria.study.regime import ATTRITION, EACH, Attrition, Mode, Regime, Turnover
from planaria.study.respond import respond
from planaria.study.survival import Resilience, Survival
from planaria.study.walks import Event, Walk

DOSES = tuple(dose / 10 for dose in range(11))
"""Doses of the response curves that resilience is read from."""


def iter_survive(
    net: Network,
    repair: Flow,
    task: Task,
    regime: Regime,
    *,
    name: str = "repair",
    seed: int = 0,
    baseline: Baseline | None = None,
) -> Iterator[Event]:
    """Events of one walk, one after another.

    Damage depends on the seed alone: every repair meets the same hits.

    A Refit from a Sidecar refers to the intact network; in a walk it makes good the loss of every unit once, by adding
    what it would do about all units lost so far less what it did about those lost before. It knows the original units
    only, so that its help fades as they are replaced.

    Args:
        net: The intact network.
        repair: A flow that leaves dead units dead; a new run of it after every event.
        task: Scored on its validation split.
        regime: What the network lives under.
        name: Of the repair; part of its random streams.
        seed: Of damage, returns and repair.
        baseline: Scores of `net`, if known.

    Returns:
        Iterator of events; their networks are after the repair.

    Raises:
        InputError: If the damage hits nothing, brings a repair that is no flow, or one that revives dead units.
    """
    if hasattr(repair, "stages") or not callable(repair):
        raise InputError(
            f"survive(repairs[{name!r}])",
            "a flow, (net, rng) -> moments",
            type(repair).__name__,
            "A schedule brings its own stream of damage; pass the flow in it.",
        )
    net = net.with_inputs(task.train.examples)
    known_before = baseline or Baseline.of(net, task)
    return _walk(net, repair, task, regime, name, seed, known_before.validation)


def _walk(
    net: Network, repair: Flow, task: Task, regime: Regime, name: str, seed: int, intact: float
) -> Iterator[Event]:
    damage, mode = regime.damage, regime.mode
    groups = _groups(net, damage)
    flow = _in_a_stream(repair, net)
    now, cost, score = net, Cost(), intact
    died: dict[Unit, int] = {}
    for event in range(1, regime.events + 1):
        delay = mode.delay if isinstance(mode, Turnover) else regime.events
        back = [unit for unit, when in died.items() if event - when >= delay]
        died = {unit: when for unit, when in died.items() if unit not in back}
        whole = embryonic(now, back, stream(seed, "return", event)) if back else now
        struck = whole
        if event <= regime.events - regime.rest and regime.dose > 0:
            struck = _strike(whole, damage, regime.dose, stream(seed, "event", event))
            if struck is whole and event == 1:
                remedy = "Take a larger one; on the command line by --dose-per-event and --turnover-rates."
                raise InputError("survive(dose)", "a dose that hits at least one unit or entry", regime.dose, remedy)
            if struck is whole and isinstance(mode, Attrition):
                return  # nothing is left
        gone = _dead(struck, groups) - _dead(whole, groups)
        if isinstance(mode, Turnover) and event == 1 and regime.dose > 0 and not gone:
            raise InputError(
                "survive(mode=Turnover)",
                "damage that kills units, such as Damage(Silence(), RandomUnits())",
                repr(damage),
                "What is not dead cannot return; use Attrition().",
            )
        died |= dict.fromkeys(gone, event)
        hit = score if struck is now else task.score(struck, task.validation)
        done = settle(flow, regime.within).moment(struck, stream(seed, "repair", name, event))
        dead = _dead(done.network, groups)
        if not died.keys() <= dead:
            raise InputError(
                f"survive(repairs[{name!r}])",
                "a repair that leaves dead units dead",
                f"{len(died.keys() - dead)} revived",
                "Units that return are the business of the mode: Turnover(delay=...).",
            )
        score = hit if done.network is struck else task.score(done.network, task.validation)
        now, cost = done.network, cost + done.cost
        inside = score >= intact - regime.tolerance - ROUNDING
        yield Event(event, len(dead), len(back), hit, score, inside, cost, now)


def _strike(net: Network, damage: Damage, dose: float, rng: Generator) -> Network:
    """The network after a hit; itself if there was nothing to hit."""
    slices = damage.site.select(net, dose, rng)
    return damage.fault.strike(net, slices, rng) if slices.all else net


def _groups(net: Network, damage: Damage) -> tuple[Group, ...]:
    """The groups of units whose dead are counted: those that the damage can hit."""
    anatomy, site = Anatomy.of(net), damage.site
    if isinstance(site, RandomUnits):
        return anatomy.select(site.kinds, site.layers)
    return tuple(group for group in anatomy.groups if group.kind not in ASIDE)


def _dead(net: Network, groups: Sequence[Group]) -> set[Unit]:
    dead = Anatomy.of(net).dead(net)
    return {Unit(group.layer, index) for group in groups for index in dead[group.layer].nonzero().flatten().tolist()}


def _in_a_stream(repair: Flow, intact: Network) -> Flow:
    """The repair as it must be run event after event."""
    if isinstance(repair, Refit) and isinstance(repair.source, Sidecar):
        return after(_Onward(intact, repair), _nothing)
    if isinstance(repair, After) and isinstance(repair.operator, Settle):
        first = repair.operator.flow
        if isinstance(first, Refit) and isinstance(first.source, Sidecar):
            return after(_Onward(intact, first), repair.flow)
    return repair


def _nothing(net: Network, rng: Generator, /) -> Iterator[Moment]:
    del net, rng
    return iter(())


class _Onward:
    """A refit from a sidecar that remembers what it has made good: w <- w + refit(all lost) - refit(lost before).

    In attrition, without retraining in between, this is what a Refit does by itself. Otherwise a Refit would pull every
    reader back to the intact network's, event after event: it would undo the retraining since, and listen to embryonic
    units as if they were the old ones.
    """

    def __init__(self, intact: Network, refit: Refit) -> None:
        self._intact, self._refit = intact, refit
        self._lost: set[Unit] = set()
        self._known = intact.weights

    def __call__(self, net: Network, rng: Generator, /) -> Network:
        return self.moment(net, rng).network

    def moment(self, net: Network, rng: Generator, /) -> Moment:
        anatomy, dead = Anatomy.of(net), set(dead_units(net))
        if dead <= self._lost:
            return Moment(net)
        self._lost |= dead
        lesioned = silence(self._intact, anatomy.entries(sorted(self._lost)).all)
        done = settle(self._refit).moment(lesioned, rng)
        target = {name: net.weights[name] + (w - self._known[name]) for name, w in done.network.weights.items()}
        for name, hit in anatomy.entries(sorted(dead)).outgoing.items():  # those that are stuck must not be heard
            target[name] = target[name].masked_fill(hit.to(net.device), 0)
        self._known = done.network.weights
        return Moment(net.move(target), done.cost)


def walk(
    net: Network,
    repair: Flow,
    task: Task,
    regime: Regime,
    *,
    name: str = "repair",
    seed: int = 0,
    baseline: Baseline | None = None,
) -> Walk:
    """One whole walk; see `iter_survive`.

    Returns:
        Its events, with the test score at the end; only the last event keeps its network.
    """
    net = net.with_inputs(task.train.examples)
    scores = baseline or Baseline.of(net, task)
    before = len(_dead(net, _groups(net, regime.damage)))
    events: list[Event] = []
    for one in iter_survive(net, repair, task, regime, name=name, seed=seed, baseline=scores):
        if events:
            events[-1] = replace(events[-1], network=None)
        events.append(one)
    end = events[-1].network
    assert end is not None
    return Walk(name, seed, scores.test, task.score(end), before, tuple(events))


def survive(
    net: Network,
    damage: Damage,
    repairs: Mapping[str, Flow],
    task: Task,
    *,
    events: int,
    dose: float,
    mode: Mode = ATTRITION,
    within: Budget = EACH,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    tolerance: float = 0.01,
) -> Survival:
    """Let damage arrive as a stream and repair the network after every event, within a budget.

    The good set is {networks with validation score >= intact - tolerance}. The same seeds bring the same hits to every
    repair.

    Args:
        net: The intact network; it is not changed.
        damage: Fault and site; the site draws at random.
        repairs: Name -> flow that leaves dead units dead; `leave` is the control.
        task: Validation split decides, test split reports.
        events: Horizon.
        dose: Per event, on the damage's axis.
        mode: Attrition() or Turnover(delay=...).
        within: Budget of the repair after each event.
        seeds: One walk per repair each.
        tolerance: Of the good set, in the score's own unit.

    Returns:
        All walks, with retention, survival, median horizon, return times and their intervals.

    Raises:
        InputError: If there is no repair or seed, a number is out of range, or a repair revives dead units.

    Example:
        >>> from torch import nn
        >>> from planaria.damage.faults import Silence
        >>> from planaria.measure.datasets import task
        >>> from planaria.study.rescue import leave
        >>> net = Network.of(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)))
        >>> death = Damage(Silence(), RandomUnits())
        >>> life = survive(net, death, {"none": leave}, task("digits"), events=3, dose=0.25, seeds=[0])
        >>> [event.dead for event in life.walks[0].events]
        [2, 4, 6]

    Not guaranteed: that what holds up to the horizon holds beyond it.
    """
    for what, given in (("repairs", repairs), ("seeds", seeds)):
        if not given:
            raise InputError(f"survive({what})", "at least one", "none")
    regime = Regime(damage, dose, events, mode, within, tolerance)
    net = net.with_inputs(task.train.examples)
    baseline = Baseline.of(net, task)
    walks = tuple(
        walk(net, repair, task, regime, name=name, seed=seed, baseline=baseline)
        for seed in seeds
        for name, repair in repairs.items()
    )
    return collect(walks, regime, net, task)


def collect(walks: Sequence[Walk], regime: Regime, net: Network, task: Task) -> Survival:
    """Result of finished walks."""
    units = sum(group.count for group in _groups(net, regime.damage))
    return Survival(tuple(walks), regime, units, task.scorer.bounds)


def turnover_study(
    net: Network,
    damage: Damage,
    repair: Flow,
    task: Task,
    *,
    rates: Sequence[float],
    events: int,
    delay: int = 5,
    within: Budget = EACH,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    draws: int = 10,
) -> Resilience:
    """Whether turnover builds resilience: the same budget at every rate of turnover, then fresh damage without repair.

    At each rate the network walks in turnover mode, rate per event, with the same budget after each of the same number
    of events. The last `delay` events bring no damage: every unit has returned and has been repaired at least once
    before the network is judged, none is dead. Then the response curve to fresh lesions of the same damage is taken.
    Rate 0 is the control: the same extra training without damage.

    Args:
        net: The intact network.
        damage: Fault and site; the site draws at random.
        repair: What repairs after each event; its cost must not depend on the damage, as that of retraining does not.
        task: Scored on its test split.
        rates: Doses per event, on the damage's axis; 0 is added.
        events: Of each walk, more than `delay`.
        delay: Events for which a unit is dead.
        within: Budget after each event.
        seeds: One walk per rate each.
        draws: Orders of each response curve.

    Returns:
        Area under the response curve and score per rate, with differences from the control paired over seeds.

    Raises:
        InputError: If there is no seed or rate above 0, or a number is out of range.
    """
    if not seeds:
        raise InputError("turnover_study(seeds)", "at least one", "none")
    regimes = turnover_regimes(damage, rates, events, delay, within)
    net = net.with_inputs(task.train.examples)
    baseline = Baseline.of(net, task)
    rows = [
        resilience_row(net, repair, task, regime, seed=seed, draws=draws, baseline=baseline)
        for seed in seeds
        for regime in regimes
    ]
    return Resilience(tuple(rows), task.scorer.bounds)


def turnover_regimes(
    damage: Damage, rates: Sequence[float], events: int, delay: int, within: Budget
) -> tuple[Regime, ...]:
    """One regime per rate, ascending from 0.

    Raises:
        InputError: If there is no rate above 0, or a number is out of range.
    """
    checked = sorted({0.0, *(float(damage.site.dose.check(rate)) for rate in rates)})
    if len(checked) < 2:
        raise InputError(
            "turnover_study(rates)", "at least one rate above 0", "0 alone", "There is nothing to compare."
        )
    mode = Turnover(delay)
    return tuple(Regime(damage, rate, events, mode, within, rest=delay) for rate in checked)


def resilience_row(
    net: Network,
    repair: Flow,
    task: Task,
    regime: Regime,
    *,
    seed: int,
    draws: int,
    baseline: Baseline | None = None,
) -> dict[str, Any]:
    """One walk at one rate, and the response curve at its end, as plain values."""
    done = walk(net, repair, task, regime, name="turnover", seed=seed, baseline=baseline)
    end = done.events[-1]
    assert end.network is not None
    curve = respond(end.network, regime.damage, task, doses=DOSES, draws=draws, seed=seed)
    row = {"rate": regime.dose, "seed": seed, "area": curve.area.best, "score": done.after, "dead": end.dead}
    plain: dict[str, Any] = {**finite(row), "cost": asdict(end.cost)}
    return plain
