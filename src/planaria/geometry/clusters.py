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
    """Clusters that a picture shows.

    Attributes:
        labels: Number of each point's.
        here: Mean silhouette in the picture.
        in_distances: Mean silhouette in the distances that it was made from.
        gap: In these, the shortest way from one cluster to another over the longest link that holds one together, the
            longest edge of the smallest trees that span them. About 1 where an even row of points is cut anywhere.
    """

    labels: Labels
    here: float
    in_distances: float
    gap: float

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
            found.append(Clusters(labels, silhouette(shown, labels), silhouette(true, labels), gap(true, labels)))
    best = max(found, key=lambda one: one.here, default=None)
    return best if best is not None and best.here >= SEEN else None


def gap(distances: Floats, labels: Labels) -> float:
    """Shortest distance between points of two clusters over the longest link inside one (minimum spanning tree).

    Example:
        >>> row = np.array([0.0, 1.0, 2.0, 7.0, 8.0, 10.0])
        >>> gap(np.abs(row[:, None] - row), np.array([0, 0, 0, 1, 1, 1]))
        2.5
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    groups = [np.flatnonzero(labels == number) for number in range(int(labels.max()) + 1)]
    longest = max(float(minimum_spanning_tree(distances[np.ix_(one, one)]).max()) for one in groups)
    shortest = float(distances[labels[:, None] != labels].min())
    return shortest / longest if longest > 0 else float("inf")


def numbered(names: Sequence[str]) -> Labels:
    """The number of each name, in the order in which they first come."""
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], dtype=np.int64)
