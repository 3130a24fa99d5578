"""Rival associations, clustering, and the pair scores they are compared by."""

import numpy as np
import pytest

from multreid.benchmark import associate_by, without_heterogeneous_step, without_homogeneous_step
from multreid.data.synthetic import two_modality_features
from multreid.evaluation.metrics import pair_scores
from multreid.method.clustering import assign_outliers, cluster_features, dbscan
from multreid.method.jaccard import jaccard_similarity
from multreid.method.matching import bilateral_hungarian, hungarian, match_centres, nearest_centre, transported_labels
from tenfold import UserError

MATCHINGS = [nearest_centre, hungarian, match_centres, bilateral_hungarian]


@pytest.mark.parametrize("match", MATCHINGS)
def test_matching_recovers_a_permutation_of_the_same_centres(match) -> None:
    centres = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
    order = np.random.default_rng(1).permutation(9)
    np.testing.assert_array_equal(order[match(centres, centres[order])], np.arange(9))


@pytest.mark.parametrize("match", MATCHINGS)
@pytest.mark.parametrize(("ka", "kb"), [(5, 9), (9, 5), (11, 2), (1, 4)])
def test_every_cluster_gets_a_partner_whatever_the_counts(match, ka, kb) -> None:
    generator = np.random.default_rng(2)
    found = match(*(generator.standard_normal((k, 6)).astype(np.float32) for k in (ka, kb)))
    assert found.shape == (ka,)
    assert ((found >= 0) & (found < kb)).all()


def test_hungarian_is_one_to_one_where_nearest_centres_collide() -> None:
    a = np.array([[1.0, 0.0], [0.9, 0.1]], np.float32)
    b = np.array([[1.0, 0.05], [0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(nearest_centre(a, b), [0, 0])
    assert sorted(hungarian(a, b)) == [0, 1]
    assert sorted(match_centres(a, b)) == [0, 1]
    np.testing.assert_array_equal(bilateral_hungarian(a, b), [0, 0])


def test_progressive_matching_assigns_what_is_left_over_again() -> None:
    b = np.eye(2, dtype=np.float32)
    a = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.2]], np.float32)
    np.testing.assert_array_equal(np.bincount(match_centres(a, b)), [3, 2])


def test_transport_spreads_instances_over_equal_centres() -> None:
    features = np.array([[1.0, 0.0], [0.9, 0.436], [0.8, 0.6], [0.7, 0.714]], np.float32)
    centres = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(transported_labels(features, centres, stopping=1e-4), [0, 0, 1, 1])


@pytest.fixture(scope="module")
def merged():
    a, b, ids_a, ids_b = two_modality_features(0, look_alike=0.85, noise=0.7)
    return a, b, ids_a, ids_b, cluster_features(a, k1=20), cluster_features(b, k1=20)


def test_infrared_clusters_merge_look_alikes(merged) -> None:
    assert merged[4].count == 40
    assert 20 <= merged[5].count < 36


def test_clustering_is_dbscan_on_the_dense_distance(clusters) -> None:
    from sklearn.cluster import DBSCAN

    similarity = jaccard_similarity(clusters(8, 12, noise=0.9)[0], 12, 4)
    dense = np.maximum(1 - similarity.toarray(), 0)
    expected = DBSCAN(eps=0.6, min_samples=4, metric="precomputed").fit(dense).labels_
    np.testing.assert_array_equal(dbscan(similarity, 0.6, 4), expected)


def test_clusters_of_clean_features_are_the_identities(clusters) -> None:
    features, labels = clusters(9, 12, noise=0.1)
    found = cluster_features(features, k1=10, k2=3)
    assert pair_scores(found.labels, found.labels, labels, labels).f1 == 1


def test_no_cluster_names_eps(clusters) -> None:
    with pytest.raises(UserError, match=r"no cluster at eps 0.01 .* raise eps"):
        cluster_features(clusters(5, 4, noise=2.0)[0], k1=5, k2=2, eps=0.01)
    with pytest.raises(UserError, match=r"eps = 1\.5"):
        cluster_features(clusters(5, 4)[0], k1=5, eps=1.5)


def test_outliers_go_to_the_nearest_centre(clusters) -> None:
    features, labels = clusters(5, 8, noise=0.2)
    marked = np.where(np.arange(40) % 8 == 0, -1, labels)
    np.testing.assert_array_equal(assign_outliers(features, marked), labels)
    # A label that is there stays, also where another centre is nearer.
    strayed = np.where(np.arange(40) == 1, 4, marked)
    np.testing.assert_array_equal(assign_outliers(features, strayed), np.where(np.arange(40) == 1, 4, labels))


@pytest.mark.parametrize("rival", ["ot", "pgm", "bccm", "hungarian", "nearest"])
def test_each_rival_labels_every_instance_in_both_spaces(merged, rival) -> None:
    a, b, ids_a, ids_b, in_a, in_b = merged
    found = associate_by(rival, a, b, in_a.labels, in_b.labels)
    assert found.labels_a.max() < in_a.count
    assert found.cross_b.max() < in_a.count
    assert found.cross_a.max() < in_b.count
    assert pair_scores(found.labels_a, found.cross_b, ids_a, ids_b).f1 > 0.5


def test_ablations_label_every_instance(merged) -> None:
    a, b, ids_a, ids_b, in_a, in_b = merged
    for found in (
        without_homogeneous_step(a, b, in_a.labels, in_b.labels),
        without_heterogeneous_step(a, b, in_a.labels, in_b.labels, in_a.similarity, in_b.similarity),
    ):
        assert pair_scores(found.labels_a, found.cross_b, ids_a, ids_b).f1 > 0.4


def test_pair_scores_count_pairs() -> None:
    identities = np.array([0, 0, 1])
    found = pair_scores(np.array([5, 5, 5]), np.array([5, 7]), identities, np.array([0, 1]))
    # Pairs given one label: three; true ones among them: two; true pairs: (0, 0), (1, 0), (2, 1).
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    assert pair_scores(identities, identities, identities, identities) == (1, 1, 1)


def test_pair_scores_refuse_what_has_no_true_pair() -> None:
    with pytest.raises(UserError, match="no identity occurs in both"):
        pair_scores(np.array([0]), np.array([0]), np.array([1]), np.array([2]))
    with pytest.raises(UserError, match="differ in number"):
        pair_scores(np.array([0]), np.array([0]), np.array([1, 2]), np.array([2]))


def test_features_of_a_seed_are_always_the_same() -> None:
    first, second = (two_modality_features(7, identities=4, unequal=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.bincount(first[2]).min() >= 4
