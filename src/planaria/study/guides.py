"""Guides: which number known beforehand tells best what silencing a unit does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from planaria.core.streams import stream
from planaria.measure.statistics import Estimate, Floats, numpy_generator, student_quantile
from planaria.study.weak_points import rank_correlation

GATE, MAGNITUDE, ACTIVATION = "gate", "magnitude", "activation"
"""Gate vulnerability; norm of the entries by which a unit is read; that norm times the unit's root mean square."""
GUIDES = (GATE, MAGNITUDE, ACTIVATION)
CHANGE, LOSS = "change", "loss"
"""What is to be told: squared change of the outputs, rise of the test loss."""
REPLICAS = 2000


@dataclass(frozen=True)
class Trial:
    """A unit that was really silenced.

    Attributes:
        layer: Its layer.
        unit: Its number there.
        predicted: c_i.
        magnitude: Norm of the entries by which it is read.
        activation: Its root mean square, times that norm.
        actual: Mean squared change of the outputs.
        loss: Rise of the mean test loss; None without a task.
    """

    layer: str
    unit: int
    predicted: float
    magnitude: float
    activation: float
    actual: float
    loss: float | None

    @staticmethod
    def of(row: Sequence[Any]) -> Trial:
        """From plain values in this order."""
        return Trial(*row)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Trials:
    """Predictions for single units beside what silencing them does.

    Attributes:
        trials: The units.
        seed: Of the resampling.
    """

    trials: tuple[Trial, ...]
    seed: int = 0

    def _column(self, name: str) -> Floats:
        keys = {GATE: "predicted", MAGNITUDE: "magnitude", ACTIVATION: "activation", CHANGE: "actual", LOSS: "loss"}
        return np.array([getattr(trial, keys[name]) for trial in self.trials], dtype=np.float64)

    @property
    def told(self) -> tuple[str, ...]:
        """What can be told of these units: "change", and "loss" where it is known and finite."""
        if len(self.trials) < 4 or not np.isfinite(self._column(CHANGE)).all():
            return ()
        known = all(trial.loss is not None and math.isfinite(trial.loss) for trial in self.trials)
        return (CHANGE, LOSS) if known else (CHANGE,)

    def correlation(self, guide: str, told: str) -> Estimate | None:
        """Spearman's rank correlation of a guide with what it should tell; None where one has no order.

        A perfect one is as sure as if two neighbours had changed places: of 4 units it says little.

        Args:
            guide: "gate", "magnitude" or "activation".
            told: "change" or "loss".
        """
        if told not in self.told:
            return None
        ranks, truth = torch.from_numpy(self._column(guide)), torch.from_numpy(self._column(told))
        found = rank_correlation(ranks, truth)
        if found is None or abs(found.best) < 1:
            return found
        order, one = truth.argsort(), len(truth) // 2
        places = order.clone()
        places[[one - 1, one]] = order[[one, one - 1]]
        near = rank_correlation(order.argsort(), places.argsort())
        assert near is not None
        return Estimate(near.low, 1.0, 1.0) if found.best > 0 else Estimate(-1.0, -1.0, -near.low)

    @cached_property
    def slope(self) -> Estimate | None:
        """Actual change by predicted change: least squares through the origin, expanded percentile bootstrap of units.

        1 where the first order is all there is; below 1 where later layers make up for a loss, or saturate. The largest
        changes decide it.

        Source: Hesterberg 2015, "What teachers should know about the bootstrap" (expanded by Student's quantile).

        Not guaranteed: 95 % coverage where few units have nearly all of the change: 87 to 90 % there in simulations.
        """
        if not self.told:
            return None
        x, y = self._column(GATE), self._column(CHANGE)
        if not (x @ x) > 0:
            return None
        rows = self._resampled("slope")
        best = float((x @ y) / (x @ x))
        replicas = (x * y)[rows].sum(1) / np.maximum((x * x)[rows].sum(1), np.finfo(np.float64).tiny)
        wider = math.sqrt(len(x) / (len(x) - 1)) * student_quantile(0.95, len(x) - 1) / NormalDist().inv_cdf(0.975)
        replicas = best + wider * (replicas - best)
        low, high = (float(q) for q in np.quantile(replicas, (0.025, 0.975)))
        return Estimate(min(low, best), best, max(high, best))

    def better(self, guide: str, told: str) -> tuple[Estimate, float] | None:
        """How much better the gate is than another guide: difference of rank correlations, and its p-value.

        Units are resampled, the same for both: a paired percentile bootstrap.

        Args:
            guide: The other guide.
            told: "change" or "loss".
        """
        # Not at the top of the file: it takes longer than all else here together.
        from scipy.stats import rankdata

        if self.correlation(GATE, told) is None or self.correlation(guide, told) is None:
            return None
        rows = self._resampled(f"{guide}, {told}")
        every = np.concatenate((np.arange(len(self.trials))[None], rows))

        def ranks(name: str) -> Floats:
            ranked = rankdata(self._column(name)[every], axis=1)
            ranked -= ranked.mean(1, keepdims=True)
            # Of a replica that holds one unit over and over, nothing is known: it counts as no correlation.
            ranked /= np.maximum(np.sqrt((ranked**2).sum(1, keepdims=True)), 1e-12)
            return np.asarray(ranked, dtype=np.float64)

        truth = ranks(told)
        difference = ((ranks(GATE) - ranks(guide)) * truth).sum(1)
        best, replicas = float(difference[0]), difference[1:]
        low, high = (float(q) for q in np.quantile(replicas, (0.025, 0.975)))
        tail = min(float((replicas <= 0).mean()), float((replicas >= 0).mean()))
        return Estimate(min(low, best), best, max(high, best)), min(1.0, max(2 * tail, 1 / REPLICAS))

    def _resampled(self, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        count = len(self.trials)
        return numpy_generator(stream(self.seed, "guides", name)).integers(count, size=(REPLICAS, count))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        guides = []
        for told in self.told:
            for guide in GUIDES:
                related, apart = self.correlation(guide, told), self.better(guide, told) if guide != GATE else None
                guides.append(
                    {
                        "guide": guide,
                        "told": told,
                        "correlation": None if related is None else related.to_dict(),
                        "gate_better_by": None if apart is None else apart[0].to_dict(),
                        "p_value": None if apart is None else apart[1],
                    }
                )
        slope = self.slope
        return {
            "units": [trial.to_dict() for trial in self.trials],
            "slope": None if slope is None else slope.to_dict(),
            "guides": guides,
        }
