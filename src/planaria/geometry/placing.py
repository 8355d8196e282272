"""Placing: methods that place points in the plane from their distances."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from planaria.core.errors import EnvironmentProblem
from planaria.geometry.faithfulness import apart_of, classical, neighbours_of
from planaria.measure.statistics import Floats


@dataclass(frozen=True, eq=False)
class Placed:
    """One run of a method: points [n, 2], what it minimised (lower is better), and remarks."""

    points: Floats
    objective: float = 0.0
    notes: tuple[str, ...] = ()


class Method(Protocol):
    """A way to place points from their distances; with more than one run, each starts at random."""

    @property
    def name(self) -> str:
        """Name with its main setting."""
        ...

    @property
    def runs(self) -> int:
        """How often it is run; 1 where chance plays no part."""
        ...

    @property
    def local(self) -> bool:
        """Whether only distances between neighbours count, so that a gap by itself means little."""
        ...

    def __call__(self, distances: Floats, rng: np.random.Generator, /) -> Placed:
        """Points [n, 2] of distances [n, n], distinct ones."""
        ...


@dataclass(frozen=True)
class PCA:
    """The first two principal components: classical scaling of the distances, exact where these are Euclidean."""

    @property
    def name(self) -> str:
        """Name."""
        return "PCA"

    @property
    def runs(self) -> int:
        """Chance plays no part."""
        return 1

    @property
    def local(self) -> bool:
        """All distances count."""
        return False

    def __call__(self, distances: Floats, rng: np.random.Generator, /) -> Placed:
        """Points [n, 2] of distances [n, n]."""
        del rng
        points, shares, crooked = classical(distances)
        told = [f"two components hold {shares[:2].sum():.0%} of the variance"]
        if crooked > 0.01:
            told.append(f"no points have just these distances: {crooked:.0%} of the spectrum is negative, and left out")
        return Placed(points, notes=tuple(told))


@dataclass(frozen=True)
class MDS:
    """Scaling by least squares of the distances: majorisation (SMACOF) from several starts.

    Args:
        runs: The first starts at the principal components, the others at random; the one with least stress is shown.
        updates: At most, per run.
    """

    runs: int = 5
    updates: int = 500

    @property
    def name(self) -> str:
        """Name."""
        return "MDS"

    @property
    def local(self) -> bool:
        """All distances count."""
        return False

    def __call__(self, distances: Floats, rng: np.random.Generator, /) -> Placed:
        """Points [n, 2] of distances [n, n], from a random start."""
        spread = math.sqrt(float((distances**2).mean()))
        return self.from_start(distances, spread * rng.standard_normal((len(distances), 2)))

    def from_start(self, distances: Floats, points: Floats) -> Placed:
        """Points [n, 2] that majorisation comes to from some others; objective: sum of squared errors of distances.

        Update: x <- B(x) x / n with B_ij = -d_ij / e_ij, rows of B adding up to zero, e the distances of the points x.

        Source: de Leeuw, 1977 (SMACOF).
        """
        last, upper = math.inf, np.triu_indices(len(distances), 1)
        for _ in range(self.updates):
            apart = apart_of(points)
            loss = float(((distances - apart)[upper] ** 2).sum())
            if last - loss <= 1e-9 * loss:
                break
            last = loss
            weights = np.divide(distances, apart, out=np.zeros_like(distances), where=apart > 0)
            points = (weights.sum(1, keepdims=True) * points - weights @ points) / len(distances)
        return Placed(points, last)


@dataclass(frozen=True)
class Isomap:
    """Classical scaling of the shortest ways along the graph that joins each point to its nearest neighbours.

    Nothing is drawn at random: the eigenvectors are computed densely, without a start vector, and their signs fixed.

    Args:
        neighbours: Of each point; fewer where there are fewer points.
    """

    neighbours: int = 8

    @property
    def name(self) -> str:
        """Name."""
        return "Isomap"

    @property
    def runs(self) -> int:
        """Chance plays no part."""
        return 1

    @property
    def local(self) -> bool:
        """Gaps in the graph make clusters, and where it is joined they mean little."""
        return True

    def __call__(self, distances: Floats, rng: np.random.Generator, /) -> Placed:
        """Points [n, 2] of distances [n, n]; parts of the graph that hang apart are joined, which is said.

        Source: Tenenbaum, de Silva and Langford, 2000.
        """
        del rng
        from scipy.sparse.csgraph import connected_components, minimum_spanning_tree, shortest_path

        near = neighbours_of(distances, min(self.neighbours, len(distances) - 1))
        joined = np.zeros(distances.shape, dtype=bool)
        np.put_along_axis(joined, near, True, axis=1)
        joined |= joined.T
        parts, _ = connected_components(joined, directed=False)
        notes: tuple[str, ...] = ()
        if parts > 1:  # the shortest links between parts are edges of the smallest tree that spans all points
            tree = minimum_spanning_tree(distances).toarray() > 0
            joined |= tree | tree.T
            notes = (f"the neighbours hang together in {parts} parts, joined here by their shortest links",)
        ways = shortest_path(np.where(joined, distances, 0.0), directed=False)
        return Placed(classical(ways)[0], notes=notes)


@dataclass(frozen=True)
class TSNE:
    """Neighbourhoods as probabilities, kept in the plane (scikit-learn's t-SNE, from random starts).

    Args:
        perplexity: Neighbours that count for each point, roughly; lowered where there are too few points.
        runs: Seeds; the one with least divergence is shown.
    """

    perplexity: float
    runs: int = 5

    @property
    def name(self) -> str:
        """Name."""
        return f"t-SNE (perplexity {self.perplexity:g})"

    @property
    def local(self) -> bool:
        """Only neighbours count."""
        return True

    def __call__(self, distances: Floats, rng: np.random.Generator, /) -> Placed:
        """Points [n, 2] of distances [n, n]; objective: Kullback-Leibler divergence.

        Source: van der Maaten and Hinton, 2008.

        Raises:
            EnvironmentProblem: scikit-learn is not installed.
        """
        manifold = _library("sklearn.manifold", "scikit-learn", "embed")
        perplexity = min(self.perplexity, (len(distances) - 1) / 2)
        fitted = manifold.TSNE(
            2,
            perplexity=perplexity,
            metric="precomputed",
            init="random",
            learning_rate="auto",
            random_state=int(rng.integers(2**31)),
        ).fit(distances / distances.mean())  # a copy, because it squares what it is given in place
        notes = () if perplexity == self.perplexity else (f"perplexity lowered to {perplexity:g}",)
        return Placed(np.asarray(fitted.embedding_, dtype=np.float64), float(fitted.kl_divergence_), notes)


@dataclass(frozen=True)
class UMAP:
    """Fuzzy neighbourhoods, kept in the plane (umap-learn, from random starts).

    Args:
        neighbours: Of each point; fewer where there are fewer points.
        runs: Seeds; the first is shown.
    """

    neighbours: int = 15
    runs: int = 5

    @property
    def name(self) -> str:
        """Name."""
        return "UMAP"

    @property
    def local(self) -> bool:
        """Only neighbours count."""
        return True

    def __call__(self, distances: Floats, rng: np.random.Generator, /) -> Placed:
        """Points [n, 2] of distances [n, n].

        Source: McInnes, Healy and Melville, 2018.

        Raises:
            EnvironmentProblem: umap-learn is not installed.
        """
        library = _library("umap", "umap-learn", "umap")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that points cannot be added later, and one thread is used
            placed = library.UMAP(
                n_neighbors=min(self.neighbours, len(distances) - 1),
                metric="precomputed",
                init="random",
                random_state=int(rng.integers(2**31)),
            ).fit_transform(distances.copy())
        return Placed(np.asarray(placed, dtype=np.float64))


def usual(count: int) -> tuple[tuple[Method, ...], tuple[str, ...]]:
    """The methods that are tried by default, and what is left out because a library is missing.

    Args:
        count: Number of points; the three perplexities of t-SNE grow with it, up to 10, 30 and 100.

    Example:
        >>> [method.name for method in usual(100)[0][:3]]
        ['PCA', 'MDS', 'Isomap']
    """
    methods: list[Method] = [PCA(), MDS(), Isomap()]
    notes = []
    if find_spec("sklearn") is not None:
        shares = ((10, 0.04), (30, 0.12), (100, 0.3))
        methods += [TSNE(p) for p in dict.fromkeys(max(2.0, round(min(cap, s * (count - 1)), 1)) for cap, s in shares)]
    else:
        notes.append("t-SNE is left out: scikit-learn is not installed (pip install 'planaria[embed]').")
    if find_spec("umap") is not None:
        methods.append(UMAP())
    else:
        notes.append("UMAP is left out: umap-learn is not installed (pip install 'planaria[umap]').")
    return tuple(methods), tuple(notes)


def _library(module: str, name: str, extra: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # of parts of umap-learn that are not used here
            return import_module(module)
    except ImportError as problem:
        got = f"{type(problem).__name__}: {problem}"
        raise EnvironmentProblem(
            "embed", f"the library {name}", got, f"Install it: pip install 'planaria[{extra}]'."
        ) from problem
