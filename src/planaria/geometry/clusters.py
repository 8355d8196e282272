"""Clusters that a picture of points shows, and whether the distances that it was made from have them, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planaria.geometry.faithfulness import Labels, silhouette
from planaria.measure.statistics import Floats

SEEN = 0.7
"""Mean silhouette from which clusters count as seen; two halves of an evenly filled line come to 0.6."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters that a picture shows: the number of each point's, and the mean silhouette here and in the distances."""

    labels: Labels
    here: float
    in_distances: float

    @property
    def count(self) -> int:
        """How many."""
        return int(self.labels.max()) + 1


def clusters_in(shown: Floats, true: Floats) -> Clusters | None:
    """The clusters that a picture shows best, if they are clear: average linkage, at least 3 points each."""
    from scipy.cluster.hierarchy import average, fcluster

    tree = average(shown[np.triu_indices(len(shown), 1)])
    found: list[Clusters] = []
    for count in range(2, min(8, len(shown) // 4) + 1):
        labels = numbered(fcluster(tree, count, "maxclust").astype(str).tolist())
        if labels.max() + 1 == count and np.bincount(labels).min() >= 3:
            found.append(Clusters(labels, silhouette(shown, labels), silhouette(true, labels)))
    best = max(found, key=lambda one: one.here, default=None)
    return best if best is not None and best.here >= SEEN else None


def numbered(names: Sequence[str]) -> Labels:
    """The number of each name, in the order in which they first come."""
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], dtype=np.int64)
