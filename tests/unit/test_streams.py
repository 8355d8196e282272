"""Streams: named generators, the same everywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planaria.core.streams import lend, stream

names = st.lists(st.text(max_size=5) | st.integers(-5, 5) | st.floats(-2, 2), max_size=3).map(tuple)


def numbers(seed: int, *name: str | int | float) -> list[int]:
    return torch.randint(2**62, (4,), generator=stream(seed, *name)).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(-(2**70), 2**70), names, st.integers(0, 5), names)
def test_streams_of_one_name_agree_and_others_do_not(
    a: int, one: tuple[str, ...], b: int, two: tuple[str, ...]
) -> None:
    assert numbers(a, *one) == numbers(a, *one)
    if repr((a, *one)) != repr((b, *two)):
        assert numbers(a, *one) != numbers(b, *two)


def test_a_stream_is_the_same_in_another_process() -> None:
    code = (
        "import torch; from planaria.core.streams import stream;"
        "print(torch.rand(3, generator=stream(3, 'a', 2)).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(torch.rand(3, generator=stream(3, "a", 2)).tolist())


def test_the_first_numbers_of_a_stream_are_fixed_for_good() -> None:
    assert torch.randint(1000, (4,), generator=stream(0, "lesion")).tolist() == RECORDED


RECORDED = [210, 783, 932, 234]


def test_names_are_not_run_together() -> None:
    assert numbers(0, "ab") != numbers(0, "a", "b")
    assert numbers(1, 2) != numbers(12)
    assert numbers(0, 1) != numbers(0, "1")


def test_a_stream_does_not_depend_on_what_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = numbers(0, "x")
    torch.manual_seed(2)
    stream(0, "y")
    assert numbers(0, "x") == first


def test_lending_gives_the_global_generator_back_even_after_an_exception() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), lend(stream(0, "x"), torch.device("cpu")):
        torch.rand(5)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_lending_twice_gives_new_numbers() -> None:
    rng = stream(0, "x")
    drawn = []
    for _ in range(2):
        with lend(rng, torch.device("cpu")):
            drawn.append(torch.rand(3))
    assert not torch.equal(*drawn)
