"""Faithfulness: what a picture keeps of distances, and in how far two pictures are the same; classical scaling."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from planaria.core.errors import InputError
from planaria.measure.statistics import Floats

Labels = NDArray[np.int64]


def classical(distances: Floats) -> tuple[Floats, Floats, float]:
    """Classical scaling: points of two dimensions whose inner products are nearest to those of the distances.

    B = -1/2 H D^2 H with H = 1 - 1/n; the points are its two leading eigenvectors, each times the root of its
    eigenvalue. For Euclidean distances these are the principal components.

    Args:
        distances: [n, n].

    Returns:
        Points [n, 2] with signs fixed; shares of the variance in all components [n], largest first; share of the
        spectrum (in absolute value) that is negative, 0 for Euclidean distances.

    Example:
        >>> line = np.array([0.0, 1.0, 3.0])
        >>> points, shares, _ = classical(np.abs(line[:, None] - line[None]))
        >>> round(float(shares[0]), 6), np.round(np.abs(points[:, 0] - points[0, 0]), 6).tolist()
        (1.0, [0.0, 1.0, 3.0])

    Source: Torgerson, 1952.
    """
    squares = distances**2
    products = -0.5 * (squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean())
    values, vectors = np.linalg.eigh((products + products.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    positive = np.maximum(values, 0.0)
    points = vectors[:, :2] * np.sqrt(positive[:2])
    for column in points.T:  # the first of the outermost points is on the positive side
        outer = int(np.argmax(np.abs(column) >= (1 - 1e-6) * np.abs(column).max()))
        column *= -1.0 if column[outer] < 0 else 1.0
    total, whole = float(positive.sum()), float(np.abs(values).sum())
    shares = positive / total if total > 0 else positive
    negative = -values[values < 0].sum()
    return points, shares, float(negative / whole) if whole > 0 else 0.0


def neighbours_of(distances: Floats, count: int) -> Labels:
    """The nearest others of each point, [n, count], nearest first."""
    apart = distances.copy()
    np.fill_diagonal(apart, -1.0)
    return np.argsort(apart, axis=1, kind="stable")[:, 1 : count + 1]


def trustworthiness(true: Floats, shown: Floats, neighbours: int) -> float:
    """Whether shown neighbours are true ones: 1 if all are, 0.5 or so at random.

    T = 1 - 2 / (n k (2n - 3k - 1)) * sum over points i and shown neighbours j of max(0, r(i, j) - k), with r the rank
    of j among the true neighbours of i. Continuity is the same with the two exchanged.

    Args:
        true: Distances [n, n].
        shown: Distances [n, n].
        neighbours: k, below n / 2.

    Raises:
        InputError: Another k, for which the formula is none.

    Source: Venna and Kaski, 2001.
    """
    count = len(true)
    if not 1 <= neighbours < count / 2:
        raise InputError("trustworthiness(neighbours)", f"a number from 1 to below {count / 2:g}", neighbours)
    order = neighbours_of(true, count - 1)
    ranks = np.zeros((count, count))
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(1.0, count), order.shape), axis=1)
    far = np.take_along_axis(ranks, neighbours_of(shown, neighbours), axis=1) - neighbours
    scale = count * neighbours * (2 * count - 3 * neighbours - 1) / 2
    return 1.0 - float(np.maximum(far, 0).sum()) / scale


def stress(true: Floats, shown: Floats) -> float:
    """Root of sum (d - s e)^2 over sum d^2 with the best scale s (Kruskal's stress of the first kind, rescaled)."""
    d, e = (part[np.triu_indices(len(part), 1)] for part in (true, shown))
    scale = float(d @ e) / (float(e @ e) or 1.0)
    return float(np.linalg.norm(d - scale * e) / (np.linalg.norm(d) or 1.0))


def disparity(one: Floats, other: Floats) -> float:
    """Procrustes: sum of squared differences of two sets of points [n, 2], centred, scaled to 1 and turned at best.

    Example:
        >>> square = np.array([[0, 0], [0, 1], [1, 1], [1, 0]], dtype=float)
        >>> round(disparity(square, 3 * square[:, ::-1] + 7), 6)
        0.0
    """
    a, b = _centred(one), _centred(other)
    return max(0.0, 1.0 - float(np.linalg.svd(a.T @ b, compute_uv=False).sum()) ** 2)


def _centred(points: Floats) -> Floats:
    points = points - points.mean(0)
    scale = float(np.linalg.norm(points))
    return points / scale if scale > 0 else points


def turn(points: Floats, like: Floats) -> Floats:
    """The rotation or reflection [2, 2] that brings points nearest to others."""
    u, _, v = np.linalg.svd(points.T @ like)
    return cast(Floats, u @ v)


def apart_of(points: Floats) -> Floats:
    """Distances [n, n] of points [n, 2]."""
    x, y = points.T
    return cast(Floats, np.hypot(x[:, None] - x, y[:, None] - y))


def common(one: Labels, other: Labels) -> float:
    """Mean share of neighbours [n, k] in common."""
    return float((one[:, :, None] == other[:, None, :]).any(2).mean())


def silhouette(distances: Floats, labels: Labels) -> float:
    """Mean of (b - a) / max(a, b): a the mean distance to the own cluster's others, b to the nearest other cluster."""
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    sizes = one_hot.sum(0)
    sums = distances @ one_hot
    own = sizes[labels]
    a = np.take_along_axis(sums, labels[:, None], 1)[:, 0] / np.maximum(own - 1, 1)
    means = sums / sizes
    np.put_along_axis(means, labels[:, None], np.inf, axis=1)
    b = means.min(1)
    larger = np.maximum(a, b)
    values = np.divide(b - a, larger, out=np.zeros_like(a), where=(larger > 0) & (own > 1))
    return float(values.mean())


def agreement(one: Labels, other: Labels) -> float:
    """Adjusted Rand index of two clusterings: 1 for the same, 0 for what chance gives."""
    table = np.zeros((int(one.max()) + 1, int(other.max()) + 1))
    np.add.at(table, (one, other), 1)

    def pairs(counts: Floats) -> float:
        return float((counts * (counts - 1)).sum() / 2)

    rows, columns, whole = pairs(table.sum(1)), pairs(table.sum(0)), pairs(table.sum(keepdims=True))
    chance, most = rows * columns / whole, (rows + columns) / 2
    return 1.0 if most == chance else (pairs(table) - chance) / (most - chance)


def distinct(distances: Floats) -> tuple[list[int], NDArray[np.int64]]:
    """Rows of distinct points, and for each point the place of the one that stands for it."""
    kept: list[int] = []
    where = np.zeros(len(distances), dtype=np.int64)
    nothing = 1e-9 * float(distances.max(initial=0.0))
    for row in range(len(distances)):
        same = [place for place, other in enumerate(kept) if distances[row, other] <= nothing]
        where[row] = same[0] if same else len(kept)
        if not same:
            kept.append(row)
    return kept, where
