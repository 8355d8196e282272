"""Fixtures every test may use, and the conditions every test runs under."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Equal bits need equal thread counts, and two workers with one thread each do not fight for two cores.
torch.set_num_threads(1)


@pytest.fixture
def data_root() -> Path:
    """Folder with real data (mnist/, cifar10/); the test is skipped, with the reason, where there is none."""
    root = os.environ.get("PLANARIA_DATA")
    if not root:
        pytest.skip("needs real data: set PLANARIA_DATA to a folder that holds mnist/ and cifar10/")
    if not Path(root).is_dir():
        pytest.fail(f"PLANARIA_DATA is {root}, which is not a folder")
    return Path(root).resolve()
