"""What holds for every test and every doctest."""

from __future__ import annotations

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Weights that a test draws without a seed of its own are the same whatever ran before it."""
    del item
    torch.manual_seed(0)
