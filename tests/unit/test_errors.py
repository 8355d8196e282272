"""Errors name what was wrong, what was expected, what came, and the remedy; each knows its exit code."""

from __future__ import annotations

import pickle

import pytest

from planaria.core.errors import (
    AnatomyError,
    EnvironmentProblem,
    InputError,
    PlanariaError,
    UnsafeError,
    nearest,
)


@pytest.mark.parametrize(
    ("kind", "code"), [(InputError, 2), (AnatomyError, 2), (UnsafeError, 4), (EnvironmentProblem, 5)]
)
def test_every_error_has_its_exit_code_and_is_one_of_ours(kind: type[PlanariaError], code: int) -> None:
    error = kind("Dose", "a number from 0 to 1", 1.5, "Give a fraction.")
    assert isinstance(error, PlanariaError)
    assert error.exit_code == code
    assert str(error) == "Dose: expected a number from 0 to 1, got 1.5. Give a fraction."
    assert (error.where, error.expected, error.got, error.remedy) == (
        "Dose",
        "a number from 0 to 1",
        1.5,
        "Give a fraction.",
    )


def test_an_error_without_a_remedy_ends_after_what_came() -> None:
    assert str(InputError("x", "y", "z")) == "x: expected y, got z."


def test_bad_values_are_value_errors_too() -> None:
    assert issubclass(InputError, ValueError)


def test_errors_travel_between_processes() -> None:
    error = AnatomyError("layer 'a'", "units", "none", "Tap it.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is AnatomyError
    assert str(back) == str(error)


def test_a_mistyped_word_gets_the_nearest_name_and_an_odd_one_the_whole_list() -> None:
    assert nearest("silense", ["noise", "silence"]) == "Did you mean silence? Known: noise, silence."
    assert nearest("zzz", ["b", "a"]) == "Known: a, b."
