"""The k-reciprocal Jaccard distance: golden vectors, invariants 2 and 10 of section 14, limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multreid.method import jaccard
from multreid.method.jaccard import jaccard_distance, jaccard_similarity
from multreid.method.nearest_neighbors import nearest
from tenfold import UserError


@pytest.mark.parametrize("modality", ["rgb", "ir"])
def test_golden_distances_are_reproduced(golden, modality) -> None:
    found = jaccard_distance(golden[f"features_{modality}"], k1=12, k2=4)
    np.testing.assert_allclose(found, golden[f"jaccard_{modality}"], atol=1e-6)


@pytest.mark.parametrize(("k1", "k2"), [(30, 6), (12, 4), (7, 1)])
def test_distance_is_symmetric_with_zero_diagonal_and_in_the_unit_interval(clusters, k1, k2) -> None:
    distance = jaccard_distance(clusters(10, 12)[0], k1, k2)
    np.testing.assert_array_equal(distance, distance.T)
    assert np.abs(np.diag(distance)).max() <= 1e-6
    assert distance.min() >= 0
    assert distance.max() <= 1


def direct_distance(features: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Instance by instance, with sets and dense rows, from section 3.3."""
    n = len(features)
    ranking, _ = nearest(features, features, k1)

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in ranking[i, : k + 1].tolist() if i in ranking[j, : k + 1]}

    weights = np.zeros((n, n))
    for i in range(n):
        found = reciprocal(i, k1)
        for candidate in sorted(found):
            half = reciprocal(candidate, round(k1 / 2))
            if len(half & reciprocal(i, k1)) > 2 / 3 * len(half):
                found = found | half
        columns = sorted(found)
        weight = np.exp(-(2 - 2 * features[i].astype(float) @ features[columns].T.astype(float)))
        weights[i, columns] = weight / weight.sum()
    if k2 > 1:
        weights = np.stack([weights[ranking[i, :k2]].mean(0) for i in range(n)])
    shared = np.minimum(weights[:, None], weights[None]).sum(2)
    return 1 - shared / (2 - shared)


@pytest.mark.parametrize(("k1", "k2", "noise"), [(12, 4, 0.5), (20, 6, 1.0), (5, 1, 0.2), (15, 3, 2.0)])
def test_sparse_result_equals_the_direct_definition(clusters, k1, k2, noise) -> None:
    features = clusters(7, 15, noise=noise)[0]
    np.testing.assert_allclose(jaccard_distance(features, k1, k2), direct_distance(features, k1, k2), atol=1e-5)


def test_result_does_not_depend_on_how_rows_are_blocked(clusters, monkeypatch) -> None:
    features = clusters(8, 10)[0]
    whole = jaccard_distance(features, 12, 4)
    monkeypatch.setattr(jaccard, "_BLOCK_PAIRS", 50)
    np.testing.assert_array_equal(jaccard_distance(features, 12, 4), whole)


def test_instances_of_far_identities_are_not_stored(clusters) -> None:
    features, labels = clusters(20, 12, noise=0.05)
    similarity = jaccard_similarity(features, 10, 3).tocoo()
    assert (labels[similarity.row] == labels[similarity.col]).all()
    assert similarity.nnz <= 20 * 12 * 12


def test_permuting_instances_permutes_distances(clusters) -> None:
    features = clusters(6, 12)[0]
    order = np.random.default_rng(1).permutation(len(features))
    np.testing.assert_allclose(
        jaccard_distance(features[order], 12, 4), jaccard_distance(features, 12, 4)[np.ix_(order, order)], atol=1e-6
    )


def test_scale_of_the_rows_does_not_matter(clusters) -> None:
    features = clusters(5, 10)[0]
    scales = np.geomspace(1e-3, 1e3, len(features), dtype=np.float32)[:, None]
    np.testing.assert_allclose(jaccard_distance(features * scales, 8, 3), jaccard_distance(features, 8, 3), atol=1e-5)


def test_duplicated_rows_are_at_distance_zero(clusters) -> None:
    features = clusters(6, 10)[0]
    features[3] = features[2]
    assert jaccard_distance(features, 10, 10)[2, 3] <= 1e-5


@pytest.mark.parametrize("k2", [1, 6])
def test_more_equal_rows_than_k1_are_all_neighbours_of_themselves(clusters, k2) -> None:
    # Which of the equal rows are nearest is chance: an instance may be missing from its own ranking.
    features = np.concatenate([np.repeat(clusters(1, 1)[0], 25, axis=0), clusters(4, 10, seed=1)[0]])
    distance = jaccard_distance(features, 8, k2)
    assert np.abs(np.diag(distance)).max() <= 1e-6
    np.testing.assert_array_equal(distance, distance.T)
    np.testing.assert_allclose(distance[25:, :25], 1, atol=1e-6)


@pytest.mark.parametrize(("gallery", "k"), [(640, 5), (643, 5), (1000, 15), (100, 30)])
def test_nearest_neighbours_are_those_of_a_full_sort(gallery, k) -> None:
    draw = np.random.default_rng(gallery)
    queries, rows = draw.standard_normal((150, 6), np.float32), draw.standard_normal((gallery, 6), np.float32)
    found, distances = nearest(queries, rows, k)
    full = ((queries[:, None].astype(float) - rows[None]) ** 2).sum(2)
    np.testing.assert_array_equal(found, full.argsort(1)[:, :k])
    np.testing.assert_allclose(distances, np.sort(full, 1)[:, :k], atol=1e-5)


def test_fewer_instances_than_k1_are_clipped_with_a_warning(clusters) -> None:
    with pytest.warns(UserWarning, match="k1 = 30 clipped to the 12"):
        assert jaccard_distance(clusters(3, 4)[0]).shape == (12, 12)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((0, 4), np.float32), "holds no instances"),
        (np.full((3, 4), np.nan, np.float32), "NaN or infinite"),
        (np.zeros((3, 4), np.float32), "all zero"),
    ],
)
def test_unusable_features_are_named(features, message) -> None:
    with pytest.raises(UserError, match=message):
        jaccard_distance(features)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), k1=st.integers(1, 12), k2=st.integers(1, 8), seed=st.integers(0, 99))
def test_any_size_gives_a_distance(n, k1, k2, seed) -> None:
    features = np.random.default_rng(seed).standard_normal((n, 5)).astype(np.float32)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distance = jaccard_distance(features, k1, k2)
    assert distance.shape == (n, n)
    assert (distance >= 0).all()
    assert (distance <= 1).all()
