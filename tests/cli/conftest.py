"""One finished run that many tests look at, and files of a user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import TINY, Finished, planaria
from planaria.cli import running

NETWORKS = """
import torch
from torch import nn


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


def recurrent():
    return Recurrent()


def encoder():
    return Encoder()


def digits():
    return Fc()


def small():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def dropping():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))


def regressor():
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 1))


def classifier():
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3))


def pictures():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 2))


class Fc(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)
"""

LOADERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset


def part(rows, seed):
    y = torch.arange(rows) % 3
    x = torch.randn(rows, 7, 4, generator=torch.Generator().manual_seed(seed)) + y[:, None, None]
    return DataLoader(TensorDataset(x, y), batch_size=16)


def sequences():
    return part(120, 0), part(60, 1)


def shuffled():
    return DataLoader(part(120, 0).dataset, batch_size=16, shuffle=True), part(60, 1)


def close(outputs, targets):
    return float(((outputs - targets).abs() < 0.5).float().mean())


def heights():
    x = torch.linspace(-1, 1, 150).reshape(-1, 1).repeat(1, 5)
    mixed = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    x = x[mixed]
    pairs = TensorDataset(x, (2 * x[:, :1]).abs())
    loss = torch.nn.functional.smooth_l1_loss
    return {"train": DataLoader(pairs, batch_size=50), "test": pairs, "loss": loss, "score": close}
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of every repair at two doses and two seeds, asked for JSON."""
    place = tmp_path_factory.mktemp("finished")
    command = ("rescue", *TINY[:-1], "2", "--doses", "0.3,0.6", "--every", "5", "--tolerance", "0.1", "--json")
    done = planaria(*command, "--out", "run", cwd=place)
    assert done.code == 0, done.err
    return Finished(command, place / "run", done)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with nets.py and data.py of a user's own."""
    (tmp_path / "nets.py").write_text(NETWORKS)
    (tmp_path / "data.py").write_text(LOADERS)
    return tmp_path


@pytest.fixture
def plain_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out, which takes longer than a tiny run, unless the test is about it."""
    if "report" not in request.node.name:
        monkeypatch.setattr(running, "render", lambda document, folder: "<!doctype html>")
