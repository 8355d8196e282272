"""Keeping: how a study gets a step that may have been done before, in a run that was stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Step = dict[str, Any]
"""What a step comes to, as plain values."""
Keep = Callable[[str, Callable[[], Step]], Step]
"""Name of a step and how it is done -> its result; done now, or remembered."""


def done_now(name: str, make: Callable[[], Step]) -> Step:
    """The `Keep` that remembers nothing.

    Args:
        name: Of the step.
        make: Does it.

    Example:
        >>> done_now("first", lambda: {"score": 0.5})
        {'score': 0.5}
    """
    del name
    return make()
