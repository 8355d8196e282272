"""Embeddings: many networks as points of a plane, each picture with what it keeps and what may be believed of it.

A picture of points in the plane always shows something. So there are several methods, from distances alone; each says
how many neighbours it keeps (trustworthiness: those it shows are neighbours; continuity: neighbours are shown as such),
how far its distances are from the true ones (stress), and whether other seeds draw the same. Walks are compared with a
random walk of the same steps: in many dimensions that, too, is a smooth curve in the plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from planaria.core.errors import InputError
from planaria.core.streams import stream
from planaria.geometry.chance import LEAST, WalkControl, walk_control
from planaria.geometry.clusters import Clusters, clusters_in, numbered
from planaria.geometry.faithfulness import (
    Labels,
    agreement,
    apart_of,
    classical,
    common,
    disparity,
    distinct,
    neighbours_of,
    silhouette,
    stress,
    trustworthiness,
    turn,
)
from planaria.geometry.placing import MDS, Method, usual
from planaria.measure.statistics import Floats, finite, numpy_generator

RANGE = (1e-100, 1e100)
"""Largest distances whose squares, and sums of them, double precision tells apart from 0 and infinity."""
NEIGHBOURS = 10
"""Most neighbours that faithfulness is judged by."""
FAITHFUL = 0.9
"""Trustworthiness and continuity from which a picture's neighbours may be believed. A picture of other points has
0.5; pictures of points without structure, 100 in 500 dimensions, have 0.57 to 0.77."""
ENOUGH = 3
"""Least neighbours, those of 10 points, by which a picture can be shown to be faithful: pictures of points without
structure, in 500 dimensions, pass in 48 of 100 draws of 5 points, 10 of 8 points, 2 of 10 points, none of 12."""
STABLE = 0.6
"""Share of neighbours in common with other seeds from which a picture is taken for the data's and not the seed's.
Points without structure, 100 in 500 dimensions, give 0.16 to 0.52."""
APART = 0.25
"""Mean silhouette in the distances themselves from which clusters need no picture to be believed, with a gap."""
GAP = 1.5
"""Gap between clusters, in links that hold one together, from which they are more than an even row of points cut in
pieces: those have silhouettes above 0.5, too. Measured, at the cut where the gap is widest: random walks come to 1.1,
40 points strewn over a square to 1.3 (95 %); two round clusters, 8 standard deviations apart in the plane, to 2.8."""
SAME = 0.9
"""Adjusted Rand index from which two pictures show the same clusters."""


# --------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, eq=False)
class Embedding:
    """One picture of the points, with what it keeps.

    Attributes:
        method: Name, with the main setting.
        settings: Of the method.
        local: Whether only distances between neighbours count, so that a gap by itself means little.
        points: [n, 2], turned and mirrored to lie like the first picture; the unit of t-SNE and UMAP means nothing.
        trustworthiness: Share of shown neighbours that are true ones, weighted by how far off the others are; 1 is
            best, 0.5 chance.
        continuity: The same of true neighbours that are shown as such.
        stress: Root of the squared errors of the distances over the squared distances, best scale; 0 is best.
        neighbours: How many of each point the two are about.
        runs: Seeds.
        disparity: Mean Procrustes disparity between seeds, 0 for one shape, 1 for none in common; None for one seed.
        overlap: Mean share of neighbours that two seeds have in common; None for one seed.
        clusters: What it shows, or None.
        separation: Mean silhouette of the given groups in the picture; None without groups.
        notes: Remarks.
    """

    method: str
    settings: Mapping[str, Any]
    local: bool
    points: Floats
    trustworthiness: float
    continuity: float
    stress: float
    neighbours: int
    runs: int
    disparity: float | None
    overlap: float | None
    clusters: Clusters | None
    separation: float | None
    notes: tuple[str, ...] = ()

    @property
    def faithful(self) -> bool:
        """Whether its neighbourhoods are nearly those of the distances, by enough points to tell."""
        return self.neighbours >= ENOUGH and min(self.trustworthiness, self.continuity) >= FAITHFUL

    @property
    def stable(self) -> bool:
        """Whether other seeds show nearly the same neighbourhoods."""
        return self.overlap is None or self.overlap >= STABLE

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        clusters = None
        if self.clusters is not None:
            c = self.clusters
            clusters = {"labels": c.labels.tolist(), "count": c.count}
            clusters |= {"here": c.here, "in_distances": c.in_distances, "gap": c.gap}
        own = {name: value for name, value in vars(self).items() if name not in ("points", "clusters", "settings")}
        return {
            **own,
            "settings": dict(self.settings),
            "points": self.points.tolist(),
            "clusters": clusters,
            "faithful": self.faithful,
            "stable": self.stable,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class Embeddings:
    """All pictures of the same points.

    Attributes:
        embeddings: One per method; the first is what the others are turned to.
        groups: Of the points, in order; None where none were given.
        separation: Mean silhouette of the groups in the distances themselves; None without groups.
        walks: Each walk against its controls.
        notes: What was left out or done instead.
    """

    embeddings: tuple[Embedding, ...]
    groups: tuple[str, ...] | None
    separation: float | None
    walks: tuple[WalkControl, ...]
    notes: tuple[str, ...]

    def __getitem__(self, method: str) -> Embedding:
        for one in self.embeddings:
            if one.method == method:
                return one
        known = ", ".join(one.method for one in self.embeddings)
        raise InputError("Embeddings[method]", f"one of {known}", repr(method))

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What may be believed, in sentences."""
        return (*self._neighbours(), *self._clusters(), *self._groups(), *(walk.said for walk in self.walks))

    def _neighbours(self) -> list[str]:
        told = []
        if all(one.neighbours < ENOUGH for one in self.embeddings):
            return ["The points are too few to tell whether a picture is faithful: any would look so."]
        good = [one for one in self.embeddings if one.faithful and one.stable]
        if good:
            best = max(good, key=lambda one: one.trustworthiness + one.continuity)
            names = "all pictures" if len(good) == len(self.embeddings) else _listed([one.method for one in good])
            told.append(
                f"Neighbours may be believed in {names}; most in {best.method} "
                f"(trustworthiness {best.trustworthiness:.2f}, continuity {best.continuity:.2f})."
            )
        else:
            told.append("No picture keeps the neighbours of the points and is the same for all seeds: believe none.")
        for one in self.embeddings:
            if not one.stable:
                told.append(f"{one.method}: seeds share {one.overlap:.0%} of the neighbours they show; not believed.")
            elif not one.faithful:
                least = min(one.trustworthiness, one.continuity)
                told.append(f"{one.method} is no faithful picture: trustworthiness or continuity is {least:.2f}.")
        kept = [one for one in self.embeddings if not one.local]
        if kept and min(one.stress for one in kept) > 0.2:
            least = min(one.stress for one in kept)
            told.append(f"The plane is too small for the distances: the best picture misses them by {least:.0%}.")
        return told

    def _clusters(self) -> list[str]:
        seen = [one for one in self.embeddings if one.clusters is not None]
        told, done = [], set()
        for one in seen:
            if one.method in done:
                continue
            assert one.clusters is not None
            same = [
                other
                for other in seen
                if other.clusters and agreement(one.clusters.labels, other.clusters.labels) >= SAME
            ]
            done |= {other.method for other in same}
            what = f"{one.clusters.count} clusters seen by {_listed([other.method for other in same])}"
            if one.clusters.in_distances >= APART and one.clusters.gap >= GAP:
                told.append(f"{what}: believed, the distances themselves tell them apart.")
            elif one.clusters.in_distances >= APART:
                told.append(f"{what}: not believed, no gap lies between them; an even row of points is cut like that.")
            elif any(not other.local for other in same):
                told.append(f"{what}: believed with care, a method that keeps distances shows them.")
            else:
                told.append(f"{what} only, going by neighbours: gaps come of themselves there; not believed.")
        return told or ["No picture shows clusters."]

    def _groups(self) -> list[str]:
        if self.separation is None:
            return []
        apart = "apart" if self.separation >= APART else "partly apart" if self.separation > 0.05 else "not apart"
        return [f"The groups are {apart} in the distances themselves (mean silhouette {self.separation:.2f})."]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = finite(
            {
                "embeddings": [one.to_dict() for one in self.embeddings],
                "groups": None if self.groups is None else list(self.groups),
                "separation": self.separation,
                "walks": [asdict(walk) | {"like_chance": walk.like_chance} for walk in self.walks],
                "verdicts": list(self.verdicts),
                "notes": list(self.notes),
            }
        )
        return plain

    def __str__(self) -> str:
        head = f"{'method':<24}{'trust':>8}{'contin.':>8}{'stress':>8}{'seeds':>8}{'overlap':>9}"
        lines = [head]
        for one in self.embeddings:
            overlap = "-" if one.overlap is None else f"{one.overlap:.2f}"
            numbers = f"{one.trustworthiness:>8.2f}{one.continuity:>8.2f}{one.stress:>8.2f}{one.runs:>8}{overlap:>9}"
            lines.append(f"{one.method:<24}{numbers}")
        return "\n".join([*lines, *self.verdicts, *self.notes])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# ------------------------------------------------------------------------------------------------------ verb


def embed(
    distances: Tensor | ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    walks: Mapping[str, Sequence[int]] | None = None,
    methods: Sequence[Method] | None = None,
    seed: int = 0,
) -> Embeddings:
    """Points in the plane from their distances, by several methods, each with what may be believed of it.

    Args:
        distances: [n, n], symmetric, of at least 5 distinct points; of networks, see `planaria.geometry.distances`.
        groups: Name of each point's group, to tell how far they are apart.
        walks: Name -> rows of `distances` in the order of a walk, to compare each with a random walk and with other
            orders of its points. Walks of fewer than 5 points are left out.
        methods: By default `usual`: PCA, MDS, Isomap, t-SNE at three perplexities, UMAP, as far as installed.
        seed: Of everything random.

    Returns:
        The pictures, with verdicts in words. Points at distance zero are placed as one, which is said.

    Raises:
        InputError: Distances that are no numbers, negative or not symmetric, fewer than 5 distinct points, groups or
            walks that do not fit.
        EnvironmentProblem: A method was asked for whose library is missing.

    Example:
        >>> from planaria.geometry.placing import PCA
        >>> corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.4]], dtype=float)
        >>> apart = np.linalg.norm(corners[:, None] - corners[None], axis=-1)
        >>> found = embed(apart, methods=[PCA()])
        >>> round(found["PCA"].stress, 6), found["PCA"].trustworthiness
        (0.0, 1.0)

    Source: trustworthiness and continuity (Venna and Kaski, 2001); random walks in principal components (Antognini and
    Sohl-Dickstein, 2018).

    Not guaranteed: that a faithful picture of two dimensions is the whole truth of many.
    """
    given = _checked(distances)
    count = len(given)
    if groups is not None and len(groups) != count:
        raise InputError("embed(groups)", f"{count} names, one per point", len(groups))
    kept, where = distinct(given)
    notes = []
    if len(kept) < LEAST:
        raise InputError(
            "embed(distances)", f"{LEAST} distinct points or more", f"{len(kept)} of {count}", "Give more networks."
        )
    if len(kept) < count:
        notes.append(f"{count - len(kept)} of {count} points lie on others and are placed with them.")
    apart = given[np.ix_(kept, kept)]
    named = None if groups is None else numbered([groups[row] for row in kept])
    if named is not None and named.max() == 0:
        named = None
    if methods is None:
        methods, missing = usual(len(kept))
        notes += missing
    if not methods or not all(callable(method) and not isinstance(method, type) for method in methods):
        got = list(methods) if methods else "none"
        raise InputError("embed(methods)", "one or more of those in planaria.geometry.placing: PCA(), MDS()", got)
    pictures: list[Embedding] = []
    for method in methods:
        like = pictures[0].points if pictures else None
        pictures.append(_picture(method, apart, named, like, seed))
    controls = []
    for name, rows in (walks or {}).items():
        control = walk_control(name, _rows(name, rows, count), given, seed)
        if control is None:
            notes.append(f"{name} has fewer than {LEAST} distinct points: not compared with a random walk.")
        else:
            controls.append(control)
    return Embeddings(
        tuple(replace(one, points=one.points[where], clusters=_spread(one.clusters, where)) for one in pictures),
        None if groups is None else tuple(groups),
        None if named is None else silhouette(apart, named),
        tuple(controls),
        tuple(notes),
    )


def _checked(distances: Tensor | ArrayLike) -> Floats:
    """A copy in double precision, symmetric to the last bit."""
    where = "embed(distances)"
    given = distances.detach().cpu().double().numpy() if isinstance(distances, Tensor) else np.asarray(distances, float)
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise InputError(where, "a square matrix", list(given.shape))
    if not np.isfinite(given).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(given))[0])
        remedy = "Leave out networks whose weights or outputs are not finite."
        raise InputError(where, "finite numbers", f"{given[row, column]} between {row} and {column}", remedy)
    largest = float(np.abs(given).max(initial=0.0))
    if largest and not RANGE[0] < largest < RANGE[1]:
        raise InputError(where, "numbers whose squares a computer can tell", f"up to {largest:.1g}", "Scale them.")
    if (given < -1e-9 * largest).any() or (np.abs(np.diag(given)) > 1e-6 * largest).any():
        raise InputError(where, "distances of at least 0, and 0 of a point to itself", "others")
    if (np.abs(given - given.T) > 1e-6 * largest).any():
        raise InputError(where, "a symmetric matrix", "one that is not")
    given = cast(Floats, np.maximum((given + given.T) / 2, 0.0))
    np.fill_diagonal(given, 0.0)
    return given


def _spread(clusters: Clusters | None, where: NDArray[np.int64]) -> Clusters | None:
    return None if clusters is None else replace(clusters, labels=clusters.labels[where])


def _rows(name: str, rows: Sequence[int], count: int) -> list[int]:
    if any(not isinstance(row, (int, np.integer)) or not 0 <= row < count for row in rows):
        raise InputError(f"embed(walks)[{name!r}]", f"rows from 0 to {count - 1}", list(rows))
    return [int(row) for row in rows]


def _picture(method: Method, apart: Floats, groups: Labels | None, like: Floats | None, seed: int) -> Embedding:
    def rng(run: int) -> np.random.Generator:
        return numpy_generator(stream(seed, "embed", method.name, run))

    runs = [method(apart, rng(run)) for run in range(method.runs)]
    if isinstance(method, MDS):
        runs[0] = method.from_start(apart, classical(apart)[0])
    best = min(runs, key=lambda run: run.objective)
    points = best.points - best.points.mean(0)
    if like is not None:
        points = points @ turn(points, like)
    shown, k = apart_of(points), _neighbours(len(apart))
    pairs = list(combinations(runs, 2))
    near = {id(run): neighbours_of(apart_of(run.points), k) for run in runs}
    shared = [common(near[id(a)], near[id(b)]) for a, b in pairs]
    settings = {name: value for name, value in vars(method).items() if name != "runs"}
    return Embedding(
        method=method.name,
        settings=settings,
        local=method.local,
        points=points,
        trustworthiness=trustworthiness(apart, shown, k),
        continuity=trustworthiness(shown, apart, k),
        stress=stress(apart, shown),
        neighbours=k,
        runs=method.runs,
        disparity=float(np.mean([disparity(a.points, b.points) for a, b in pairs])) if pairs else None,
        overlap=float(np.mean(shared)) if pairs else None,
        clusters=clusters_in(shown, apart),
        separation=None if groups is None else silhouette(shown, groups),
        notes=best.notes,
    )


def _neighbours(count: int) -> int:
    """Neighbours that faithfulness is about; below half the points, as its formula asks."""
    return max(1, min(NEIGHBOURS, (count - 1) // 3))
