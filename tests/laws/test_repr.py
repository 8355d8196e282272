"""Law: the repr of a configuration value evaluates back to an equal value; users' text is not evaluated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import planaria
from planaria.core.anatomy import KINDS, Unit
from planaria.core.errors import InputError
from planaria.core.motion import (
    Budget,
    Chain,
    after,
    chain,
    examples,
    multiply_adds,
    repeat,
    seconds,
    settle,
    steps,
    updates,
)
from planaria.damage.damage import Damage, Strike, parse_damage
from planaria.damage.faults import Noise, Silence, StuckAt
from planaria.damage.sites import Dose, RandomEntries, RandomUnits, RankedUnits
from planaria.measure.datasets import task
from planaria.repair.incoming import Drawn, GradMax
from planaria.repair.regrow import Recycle, Regrow, Ripen
from planaria.repair.restart import Restart
from planaria.repair.retrain import SGD, Adam, AdamW, Retrain
from planaria.study.rescue import Criterion
from planaria.study.schedule import Beforehand, Schedule, leave
from planaria.study.train import Recipe

NAMES: dict[str, Any] = {
    made.__name__: made
    for made in (
        Adam, AdamW, Beforehand, Budget, Chain, Criterion, Damage, Dose, Drawn, GradMax, Noise, RandomEntries,
        RandomUnits, RankedUnits, Recipe, Recycle, Regrow, Restart, Retrain, Ripen, SGD, Schedule, Silence, Strike,
        StuckAt, Unit, after, chain, repeat, settle, task,
    )
}  # fmt: skip

finite = st.floats(-1e30, 1e30)
names = st.text(st.characters(codec="utf-8"), max_size=12)
units = st.builds(Unit, names, st.integers(0, 10**6))
some_names = st.none() | st.lists(names, min_size=1, max_size=3).map(tuple)
kinds = st.none() | st.lists(st.sampled_from(KINDS), min_size=1, unique=True).map(tuple)
unit_doses = st.sampled_from([Dose("fraction of units"), Dose("units")])
faults = (
    st.builds(Silence, st.booleans())
    | st.builds(StuckAt, finite, st.booleans())
    | st.builds(Noise, st.floats(0, 1e6), st.booleans())
)
sites = (
    st.builds(RandomUnits, unit_doses, st.booleans(), kinds, some_names)
    | st.builds(RankedUnits, st.lists(units, unique=True, max_size=4).map(tuple), unit_doses, st.booleans())
    | st.builds(RandomEntries, st.sampled_from([Dose("fraction of entries"), Dose("entries")]), some_names)
)
damages = st.builds(Damage, faults, sites)


@st.composite
def strikes(draw: st.DrawFn) -> Strike:
    damage = draw(damages)
    return damage.at(draw(st.floats(0, 1) if damage.site.dose.relative else st.integers(0, 10**9)))


budgets = (
    st.builds(steps, st.integers(0, 10**9))
    | st.builds(updates, st.integers(0, 10**9))
    | st.builds(examples, st.integers(0, 10**9))
    | st.builds(multiply_adds, st.integers(0, 10**15))
    | st.builds(seconds, st.floats(0, 1e6))
)
operators = st.recursive(
    strikes() | st.builds(Regrow, st.floats(0, 100)),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: chain(*parts))
        | st.builds(lambda operator, budget: settle(repeat(operator), budget), inner, st.none() | budgets)
    ),
    max_leaves=5,
)
flows = st.builds(repeat, operators) | st.builds(after, operators, st.builds(repeat, operators))
optimisers = (
    st.builds(SGD, st.floats(0, 10), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
    | st.builds(Adam, st.floats(0, 10), st.floats(0, 1))
    | st.builds(AdamW, st.floats(0, 10), st.floats(0, 1))
)
values = (
    damages
    | strikes()
    | budgets
    | operators
    | flows
    | optimisers
    | st.builds(Recipe, st.integers(1, 1000), st.floats(1e-6, 10), st.integers(1, 4096))
    | st.builds(Criterion, st.floats(0, 1), st.integers(1, 20), st.integers(1, 1000))
    | st.builds(Schedule, st.builds(repeat, operators), st.integers(1, 100))
    | st.builds(Beforehand, st.builds(repeat, operators), st.floats(0, 1), st.builds(repeat, operators))
    | st.builds(Restart)
)


@given(values)
@settings(max_examples=300, deadline=None)
def test_the_repr_of_a_configuration_value_evaluates_back_to_it(value: object) -> None:
    back = eval(repr(value), dict(NAMES))
    assert back == value
    assert repr(back) == repr(value)
    assert hash(back) == hash(value)


@given(optimisers, st.integers(1, 512), st.none() | st.integers(1, 100))
@settings(max_examples=10, deadline=None)
def test_so_does_that_of_a_retraining_on_a_named_task(optimiser: Any, batch: int, horizon: int | None) -> None:
    retrain = Retrain(task("digits"), optimiser, batch, horizon)
    chosen = Regrow(incoming=GradMax(task("digits"), batch))
    for flow in (after(Regrow(), retrain), Ripen(chosen, retrain, batch), repeat(Recycle(task("digits"), 0.1, batch))):
        assert eval(repr(flow), dict(NAMES)) == flow


def test_the_front_door_has_every_name_that_a_repr_uses() -> None:
    shown = {name for name in NAMES if name not in {"Chain", "Strike", "Recipe"}}
    missing = {name for name in shown if name not in planaria.__all__}
    assert missing <= {"Budget", "Criterion", "Schedule"}, missing


def test_leaving_alone_is_named_in_a_record() -> None:
    assert leave.__name__ == "leave"


# ---------------------------------------------------------------------------------------- text from users


@given(damages)
@settings(max_examples=100, deadline=None)
def test_a_damage_is_read_back_from_its_text(damage: Damage) -> None:
    assert parse_damage(repr(damage)) == damage
    assert parse_damage(f"  {damage!r}\n") == damage


pieces = """
Damage( Silence( RandomUnits( RankedUnits( Dose( Unit( Noise( StuckAt( ) ( [ ] , = lasting dose ranking kinds
'units' 1 - 1e999 None True ** * { } : lambda __import__ ('os') .system eval( f'{x}' \\ # print " @
"""
words = st.sampled_from([*pieces.split(), "\n", "\0", "\u2026"])
arguments = st.lists(words, max_size=8).map("Damage(Silence(), {})".format)


@given(st.text() | st.lists(words, max_size=12).map("".join) | arguments)
@settings(max_examples=300, deadline=None)
@example("")
@example("Damage(Silence(), RandomUnits()); 1")
@example("(" * 300)
@example("-" * 5000 + "1")
@example("9" * 5000)
def test_any_other_text_is_an_input_error_and_nothing_else(text: str) -> None:
    try:
        damage = parse_damage(text)
    except InputError as error:
        assert len(str(error)) < 2000, "the message repeats a wall of text"
    else:
        assert isinstance(damage, Damage)
        assert eval(repr(damage), dict(NAMES)) == damage


REFUSED = [
    "Silence()",
    "Damage",
    "Damage()",
    "Damage(Silence())",
    "Damage(1, 2)",
    "Damage(Silence(), 3)",
    "Damage(RandomUnits(), Silence())",
    "Damage(Silence(), RandomUnits(), 1)",
    "Damage(Silence(), RandomUnits(dose=3))",
    "Damage(Silence(), RandomUnits(dose='units'))",
    "Damage(Silence(), RandomUnits(kinds='neuron'))",
    "Damage(Silence(), RandomUnits(layers='fc1'))",
    "Damage(Silence(), RandomUnits(layers=(1,)))",
    "Damage(Silence(), RandomUnits(per_layer=3))",
    "Damage(Silence(lasting='no'), RandomUnits())",
    "Damage(Silence(**{'lasting': False}), RandomUnits())",
    "Damage(*(Silence(), RandomUnits()))",
    "Damage(StuckAt('1'), RandomUnits())",
    "Damage(StuckAt(True), RandomUnits())",
    "Damage(StuckAt(None), RandomUnits())",
    "Damage(StuckAt(1e999), RandomUnits())",
    "Damage(Noise(-1), RandomUnits())",
    f"Damage(Noise(1{'0' * 400}), RandomUnits())",
    "Damage(Silence(), RankedUnits((1, 2)))",
    "Damage(Silence(), RankedUnits((Unit('a', 'b'),)))",
    "Damage(Silence(), RankedUnits((Unit('a', -1),)))",
    "Damage(Silence(), RankedUnits((Unit(1, 1),)))",
    "Damage(Silence(), RankedUnits((Unit('a', 1), Unit('a', 1))))",
    "Damage(Silence(), RandomEntries(Dose('units')))",
    "Damage(Silence(), RandomUnits(Dose('epsilon')))",
    "Damage(Silence(), x := RandomUnits())",
    "Damage(Silence(), RandomUnits() or 1)",
    "[Damage(Silence(), RandomUnits()) for _ in (1,)][0]",
    "Damage.__class__",
    "Damage(Silence(), RandomUnits()).at(0.5)",
    "open('/etc/passwd')",
    "__import__('os').system('true')",
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_damage_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_damage(text)
    assert str(caught.value)


def test_a_mistyped_name_gets_the_nearest_one() -> None:
    with pytest.raises(InputError, match="Did you mean Silence"):
        parse_damage("Damage(Silense(), RandomUnits())")


def test_nothing_in_the_text_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = tmp_path / "witness"
    trace: list[str] = []
    monkeypatch.setattr("builtins.eval", lambda *_: trace.append("eval"))
    monkeypatch.setattr("builtins.exec", lambda *_: trace.append("exec"))
    attacks = [
        f"__import__('pathlib').Path({str(witness)!r}).touch()",
        f"Damage(Silence(lasting=open({str(witness)!r}, 'w')), RandomUnits())",
        f"Damage(Silence(), RandomUnits(layers=(print('x'), open({str(witness)!r}, 'w'))))",
        f"(lambda: open({str(witness)!r}, 'w'))()",
        f"Damage(Silence(), RandomUnits())if open({str(witness)!r}, 'w') else 1",
        "Damage.__init__.__globals__['__builtins__']",
    ]
    for attack in attacks:
        with pytest.raises(InputError):
            parse_damage(attack)
    assert not witness.exists()
    assert trace == []
    assert "os" in sys.modules  # the interpreter is as it was
