"""Embeddings: what each picture keeps is counted right, and verdicts say no where a picture flatters."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planaria.core.errors import EnvironmentProblem, InputError
from planaria.core.network import Network
from planaria.geometry import placing
from planaria.geometry.chance import random_walk
from planaria.geometry.distances import weight_distances
from planaria.geometry.embed import Embeddings, embed
from planaria.geometry.faithfulness import (
    agreement,
    apart_of,
    classical,
    disparity,
    silhouette,
    stress,
    trustworthiness,
)
from planaria.geometry.placing import MDS, PCA, TSNE, UMAP, Isomap, usual
from planaria.measure.statistics import Floats
from purity import world

PLAIN = (PCA(), MDS(), Isomap())


def distances_of(points: Floats) -> Floats:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def drawn(count: int, dimensions: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, dimensions))


def clusters(count: int = 3, size: int = 12) -> Floats:
    centres = 8.0 * drawn(count, 20, seed=1)
    return np.repeat(centres, size, axis=0) + drawn(count * size, 20)


# ------------------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize("neighbours", [1, 4, 9])
def test_trustworthiness_is_that_of_scikit_learn(neighbours: int) -> None:
    manifold = pytest.importorskip("sklearn.manifold", reason="the twin is scikit-learn's")
    true, shown = drawn(30, 6), drawn(30, 2, seed=1)
    ours = trustworthiness(distances_of(true), distances_of(shown), neighbours)
    assert ours == pytest.approx(manifold.trustworthiness(true, shown, n_neighbors=neighbours), abs=1e-12)


def test_classical_scaling_gives_the_principal_components() -> None:
    points = drawn(20, 5) * np.array([5.0, 3.0, 1.0, 0.5, 0.1])
    found, shares, crooked = classical(distances_of(points))
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(found), np.abs(u[:, :2] * s[:2]), atol=1e-8)
    assert shares[:5] == pytest.approx(s**2 / (s**2).sum(), abs=1e-9)
    assert crooked < 1e-9


def test_distances_that_no_points_have_are_told() -> None:
    ring = np.abs(np.arange(8)[:, None] - np.arange(8))
    found = embed(np.minimum(ring, 8 - ring).astype(float), methods=[PCA()])
    assert "no points have just these distances" in found.embeddings[0].notes[-1]


def test_majorisation_comes_to_the_stress_of_scikit_learn() -> None:
    manifold = pytest.importorskip("sklearn.manifold", reason="the twin is scikit-learn's")
    true = distances_of(drawn(25, 6))
    start = classical(true)[0]
    theirs, _ = manifold.smacof(true, init=start, n_init=1, max_iter=500, eps=1e-9, normalized_stress=False)
    ours = MDS().from_start(true, start)
    assert stress(true, apart_of(ours.points)) == pytest.approx(stress(true, distances_of(theirs)), rel=1e-3)


def test_majorisation_never_raises_the_stress() -> None:
    true, points = distances_of(drawn(15, 6)), drawn(15, 2, seed=1)
    losses = [MDS(updates=updates).from_start(true, points).objective for updates in (1, 2, 5, 20, 100)]
    assert losses == sorted(losses, reverse=True)


def test_isomap_is_that_of_scikit_learn() -> None:
    manifold = pytest.importorskip("sklearn.manifold", reason="the twin is scikit-learn's")
    angles = np.sort(drawn(40, 1)[:, 0])
    true = distances_of(np.stack([np.cos(angles), np.sin(angles), 0.2 * angles], 1))
    ours = Isomap(6)(true, np.random.default_rng(0)).points
    theirs = manifold.Isomap(n_neighbors=6, metric="precomputed").fit_transform(true)
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0, 6.2), st.floats(0.1, 10))
def test_disparity_does_not_see_turns_shifts_and_scales(seed: int, angle: float, scale: float) -> None:
    points = drawn(9, 2, seed)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    assert disparity(points, scale * points @ turn + 3.0) == pytest.approx(0.0, abs=1e-9)
    assert disparity(points, drawn(9, 2, seed + 1)) > 1e-3


def test_stress_is_zero_for_the_same_distances_in_another_unit() -> None:
    true = distances_of(drawn(10, 2))
    assert stress(true, 7 * true) == pytest.approx(0.0, abs=1e-12)
    assert stress(true, distances_of(drawn(10, 2, seed=1))) > 0.1


def test_silhouette_and_agreement_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="the twin is scikit-learn's")
    true = distances_of(drawn(30, 4))
    rng = np.random.default_rng(3)
    one, other = rng.integers(0, 3, 30), rng.integers(0, 4, 30)
    assert silhouette(true, one) == pytest.approx(metrics.silhouette_score(true, one, metric="precomputed"))
    assert agreement(one, other) == pytest.approx(metrics.adjusted_rand_score(one, other))
    assert agreement(one, one) == 1.0


# ------------------------------------------------------------------------------------------------- pictures


def test_points_of_a_plane_are_shown_as_they_are() -> None:
    points = drawn(20, 2)
    found = embed(distances_of(points), methods=PLAIN)
    for method in ("PCA", "MDS"):
        picture = found[method]
        assert picture.stress < 1e-4
        assert picture.trustworthiness == picture.continuity == 1.0
        assert disparity(picture.points, points) < 1e-6
    assert found["MDS"].overlap is not None
    assert found["PCA"].overlap is None


def test_the_same_seed_gives_the_same_pictures_and_torch_tensors_do_too() -> None:
    true = distances_of(drawn(16, 5))
    methods = [*PLAIN, TSNE(3.0, runs=2)]
    one, other = embed(true, methods=methods, seed=3), embed(torch.from_numpy(true).float(), methods=PLAIN, seed=3)
    again = embed(true, methods=methods, seed=3)
    assert one.to_dict() == again.to_dict()
    for method in ("PCA", "Isomap"):
        assert np.allclose(one[method].points, other[method].points, atol=1e-4)


def test_the_distances_given_and_the_global_state_are_left_as_they_were() -> None:
    true = distances_of(drawn(16, 5))
    before, around = true.copy(), world()
    embed(true, methods=[*PLAIN, TSNE(3.0, runs=2)], walks={"mine": range(16)})
    assert np.array_equal(true, before)
    assert world() == around


def test_networks_are_placed_by_the_distances_between_their_weights() -> None:
    net = Network.of(torch.nn.Linear(3, 2))
    nets = [net.with_weights({name: w + step for name, w in net.weights.items()}) for step in range(6)]
    found = embed(weight_distances(nets), methods=[PCA()])
    steps = np.diff(found["PCA"].points[:, 0])
    assert np.abs(steps) == pytest.approx([math.sqrt(8)] * 5, rel=1e-5)


def test_a_network_that_is_infinitely_far_is_refused_by_name() -> None:
    true = distances_of(drawn(8, 3))
    true[2, :] = true[:, 2] = math.inf
    with pytest.raises(InputError, match=r"got inf between 0 and 2\. Leave out networks"):
        embed(true)


def test_real_clusters_are_believed() -> None:
    names = [str(row // 12) for row in range(36)]
    found = embed(distances_of(clusters()), groups=names, methods=[*PLAIN, TSNE(5.0, runs=2)])
    assert found.separation is not None
    assert found.separation > 0.5
    assert found["PCA"].clusters is not None
    assert found["PCA"].clusters.count == 3
    assert any("3 clusters" in told and "the distances themselves tell them apart" in told for told in found.verdicts)
    assert any("The groups are apart" in told for told in found.verdicts)


def test_points_without_structure_are_not_believed() -> None:
    found = embed(distances_of(drawn(30, 500)), methods=[*PLAIN, TSNE(5.0, runs=3)])
    assert "believe none" in found.verdicts[0]
    assert not any(picture.faithful for picture in found.embeddings)
    assert found["MDS"].overlap is not None
    assert found["MDS"].overlap < 0.6
    assert not any(": believed" in told for told in found.verdicts)


def test_of_few_points_no_picture_is_called_faithful() -> None:
    for count, few in ((9, True), (10, False)):
        found = embed(distances_of(np.arange(float(count))[:, None]), methods=[PCA()])
        assert min(found["PCA"].trustworthiness, found["PCA"].continuity) > 0.95
        assert found["PCA"].faithful is not few
        assert ("too few to tell" in found.verdicts[0]) is few


@pytest.mark.parametrize("neighbours", [0, 5, 9])
def test_trustworthiness_by_half_of_the_points_is_refused(neighbours: int) -> None:
    true = distances_of(drawn(10, 3))
    with pytest.raises(InputError, match="from 1 to below 5"):
        trustworthiness(true, true, neighbours)


def test_clusters_that_only_neighbour_embeddings_show_are_not_believed() -> None:
    found = embed(distances_of(drawn(24, 400)), methods=[*PLAIN, _Torn()])
    assert found["torn"].clusters is not None
    assert any("torn only" in told and "not believed" in told for told in found.verdicts)


def test_a_row_of_points_that_a_picture_cuts_in_pieces_has_no_clusters() -> None:
    row = np.arange(24.0)[:, None] + 0.1 * drawn(24, 1)
    found = embed(distances_of(row), methods=[_Torn()])
    shown = found["torn"].clusters
    assert shown is not None
    assert shown.in_distances > 0.5
    assert shown.gap < 1.5
    assert any("not believed, no gap lies between them" in told for told in found.verdicts)
    assert not any(": believed" in told for told in found.verdicts)


class _Torn:
    """Shows three clusters, whatever the distances are."""

    name, runs, local = "torn", 1, True

    def __call__(self, distances: Floats, rng: np.random.Generator) -> placing.Placed:
        places = np.arange(len(distances)) * 3 // len(distances)
        return placing.Placed(10.0 * np.stack([places, places**2], 1) + rng.normal(size=(len(distances), 2)))


def test_parts_that_hang_apart_are_joined_and_it_is_said() -> None:
    found = embed(distances_of(clusters()), methods=[Isomap(4)])
    assert "3 parts" in found.embeddings[0].notes[0]
    assert np.isfinite(found.embeddings[0].points).all()


def test_points_on_each_other_are_placed_together_and_counted() -> None:
    points = drawn(8, 3)
    found = embed(distances_of(points[[0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 3]]), methods=[*PLAIN, TSNE(2.0, runs=2)])
    for picture in found.embeddings:
        assert picture.points.shape == (11, 2)
        assert np.array_equal(picture.points[[8, 9, 10]], picture.points[[0, 0, 3]])
    assert "3 of 11 points lie on others" in found.notes[0]


def test_perplexities_grow_with_the_number_of_points() -> None:
    pytest.importorskip("sklearn", reason="t-SNE needs it")

    def perplexities(count: int) -> list[float]:
        return [method.perplexity for method in usual(count)[0] if isinstance(method, TSNE)]

    assert perplexities(5) == [2.0]
    assert len(perplexities(100)) == 3
    assert perplexities(5000) == [10, 30, 100]
    few = embed(distances_of(drawn(5, 3)))
    assert {picture.points.shape for picture in few.embeddings} == {(5, 2)}


def test_what_is_not_installed_is_left_out_or_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(placing, "find_spec", lambda name: None)
    monkeypatch.setattr(placing, "import_module", missing)
    found = embed(distances_of(drawn(8, 3)))
    assert [picture.method for picture in found.embeddings] == ["PCA", "MDS", "Isomap"]
    assert "planaria[embed]" in found.notes[0]
    assert "planaria[umap]" in found.notes[1]
    with pytest.raises(EnvironmentProblem, match="scikit-learn"):
        embed(distances_of(drawn(8, 3)), methods=[TSNE(2.0)])
    with pytest.raises(EnvironmentProblem, match="umap-learn"):
        embed(distances_of(drawn(8, 3)), methods=[UMAP()])


def test_umap_places_points() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the libraries that it loads
        pytest.importorskip("umap", reason="umap-learn is an extra of its own")
        found = embed(distances_of(clusters()), methods=[UMAP(runs=2)])
    assert found["UMAP"].trustworthiness > 0.6


# ---------------------------------------------------------------------------------------------------- walks


def test_a_random_walk_holds_three_quarters_in_two_components() -> None:
    shares = classical(random_walk(np.ones(400)))[1]
    assert shares[0] == pytest.approx(6 / math.pi**2, abs=0.01)
    assert shares[1] == pytest.approx(6 / math.pi**2 / 4, abs=0.01)


def walked(points: Floats) -> Embeddings:
    return embed(distances_of(points), walks={"mine": range(len(points))}, methods=[PCA()])


def test_a_walk_at_random_is_told_from_one_that_goes_somewhere() -> None:
    at_random = walked(drawn(40, 2000).cumsum(0))
    assert at_random.walks[0].like_chance
    assert at_random.walks[0].p < 0.01
    assert "that of a random walk" in at_random.verdicts[-1]
    straight = walked(np.linspace(0, 30, 40)[:, None] * drawn(1, 50) + 0.1 * drawn(40, 50))
    assert not straight.walks[0].like_chance
    assert "is not that of a random walk" in straight.verdicts[-1]


def test_a_walk_without_order_is_told() -> None:
    found = walked(drawn(30, 300))
    assert found.walks[0].p > 0.05
    assert found.walks[0].order == pytest.approx(1.0, abs=0.05)
    assert found.walks[0].order_random < 0.7
    assert "no order" in found.verdicts[-1]


def test_a_walk_that_stands_still_is_not_compared() -> None:
    points = np.concatenate([drawn(10, 3), np.zeros((10, 3))])
    found = embed(distances_of(points), walks={"still": range(10, 20)}, methods=[PCA()])
    assert found.walks == ()
    assert "still has fewer than 5" in found.notes[-1]


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d[:5], "a square matrix"),
        (lambda d: np.where(d > np.quantile(d, 0.9), np.nan, d), "finite numbers, got nan between"),
        (lambda d: np.where(d > np.quantile(d, 0.9), np.inf, d), "finite numbers, got inf between"),
        (lambda d: -d, "at least 0"),
        (lambda d: d + 1.0, "0 of a point to itself"),
        (np.triu, "symmetric"),
        (lambda d: d[:4, :4], "5 distinct points or more, got 4 of 4"),
        (np.zeros_like, "5 distinct points or more, got 1 of 8"),
        (lambda d: d[:0, :0], "5 distinct points"),
    ],
)
def test_distances_that_are_none_are_refused(spoil: object, message: str) -> None:
    assert callable(spoil)
    with pytest.raises(InputError, match=message):
        embed(spoil(distances_of(drawn(8, 3))), methods=[PCA()])


def test_groups_and_walks_that_do_not_fit_are_refused() -> None:
    true = distances_of(drawn(8, 3))
    with pytest.raises(InputError, match="8 names"):
        embed(true, groups=["a"])
    with pytest.raises(InputError, match="rows from 0 to 7"):
        embed(true, walks={"mine": [0, 1, 2, 3, 8]}, methods=[PCA()])
    with pytest.raises(InputError, match="one or more"):
        embed(true, methods=[])
    with pytest.raises(InputError, match="one of PCA"):
        _ = embed(true, methods=[PCA()])["tsne"]
    assert embed(true, groups=["a"] * 8, methods=[PCA()]).separation is None


def test_a_result_is_plain_values_and_reads_as_a_table() -> None:
    import json

    found = embed(distances_of(clusters()), groups=["a"] * 18 + ["b"] * 18, walks={"w": range(36)}, methods=PLAIN)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["embeddings"][1]["method"] == "MDS"
    assert len(record["embeddings"][0]["points"]) == 36
    assert record["walks"][0]["steps"] == 35
    assert record["verdicts"] == list(found.verdicts)
    assert "trust" in str(found).splitlines()[0]
