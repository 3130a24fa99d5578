"""The label transfer: golden vectors, invariants 4, 5, 6 and 10 of section 14."""

import numpy as np
import pytest
from scipy import sparse

from multreid.data.synthetic import two_modality_features
from multreid.evaluation.metrics import pair_scores
from multreid.method import label_transfer as transfer
from multreid.method.jaccard import jaccard_similarity
from multreid.method.label_transfer import (
    affinities,
    cluster_centres,
    heterogeneous_step,
    homogeneous_step,
    mixed_targets,
    propagate,
    row_stochastic,
    start_from_transport,
    start_labels,
    transfer_labels,
)
from multreid.method.transport import kernels as kernel
from tenfold import UserError


@pytest.fixture(scope="module")
def golden_result(golden, infrared_labels):
    return transfer_labels(
        golden["features_rgb"], golden["features_ir"], golden["gt_rgb"], infrared_labels, k1=12, k2=4
    )


def test_golden_soft_labels(golden, golden_result) -> None:
    found = golden_result
    for name, value in {
        "mult_y_rgb": found.soft_a,
        "mult_y_ir": found.soft_b,
        "mult_y_rgb_cm": found.soft_cross_a,
        "mult_y_ir_cm": found.soft_cross_b,
    }.items():
        np.testing.assert_allclose(value, golden[name], atol=1e-5, err_msg=name)


def test_golden_hard_labels(golden, golden_result) -> None:
    np.testing.assert_array_equal(golden_result.labels_a, golden["mult_labels_rgb"])
    np.testing.assert_array_equal(golden_result.labels_b, golden["mult_labels_ir"])
    np.testing.assert_array_equal(golden_result.cross_a, golden["mult_rgb_ir_label"])
    np.testing.assert_array_equal(golden_result.cross_b, golden["mult_ir_rgb_label"])


def test_golden_centres(golden, infrared_labels) -> None:
    np.testing.assert_allclose(
        cluster_centres(golden["features_rgb"], golden["gt_rgb"]), golden["centers_rgb"], atol=1e-6
    )
    np.testing.assert_allclose(cluster_centres(golden["features_ir"], infrared_labels), golden["centers_ir"], atol=1e-6)


@pytest.fixture(scope="module")
def noisy():
    return two_modality_features(3, identities=12, per_identity=10, dimension=24, noise=0.9)


def test_soft_labels_stay_distributions(noisy) -> None:
    a, b, ids_a, ids_b = noisy
    found = transfer_labels(a, b, ids_a, ids_b, k1=12, k2=4)
    for soft in (found.soft_a, found.soft_b, found.soft_cross_a, found.soft_cross_b):
        assert soft.min() >= 0
        np.testing.assert_allclose(soft.sum(1), 1, atol=1e-4)


def test_affinities_are_row_stochastic(noisy) -> None:
    affinity = row_stochastic(jaccard_similarity(noisy[0], 12, 4))
    rows = affinity.times(np.eye(120, dtype=np.float32))
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)
    assert rows.min() >= 0


def test_alpha_one_leaves_only_the_smoothed_start(noisy) -> None:
    a, b, ids_a, ids_b = noisy
    found = transfer_labels(a, b, ids_a, ids_b, alpha=1.0, k1=12, k2=4)
    affinity = row_stochastic(jaccard_similarity(a, 12, 4))
    start = start_labels(a, cluster_centres(a, ids_a), 0.05)
    np.testing.assert_allclose(found.soft_a, homogeneous_step(affinity, start), atol=1e-5)
    cross = start_from_transport(a, cluster_centres(b, ids_b), cluster_centres(a, ids_a), ids_a, 25.0, "official")
    np.testing.assert_allclose(found.soft_cross_a, homogeneous_step(affinity, cross), atol=1e-5)


@pytest.mark.parametrize("start", ["ot", "matching"])
def test_perfect_features_give_the_true_partition_in_both_spaces(start) -> None:
    a, b, ids_a, ids_b = two_modality_features(
        0, identities=8, per_identity=10, dimension=32, noise=0.0, camera=0.0, shared=1.0
    )
    found = transfer_labels(a, b, ids_a, ids_b, k1=8, k2=3, start=start)
    assert pair_scores(found.labels_a, found.cross_b, ids_a, ids_b).f1 == 1
    assert pair_scores(found.cross_a, found.labels_b, ids_a, ids_b).f1 == 1


def test_exchanging_modalities_exchanges_the_labels(clusters) -> None:
    # A transport that has converged: the official rule stops after a column update, which is not symmetric.
    (a, ids_a), (b, ids_b) = clusters(6, 10, 16, 0.4), clusters(6, 10, 16, 0.4)
    b = b[:55]
    ids_b = ids_b[:55]
    options = {"k1": 10, "k2": 4, "reg": 5.0, "stopping": 1e-6}
    first = transfer_labels(a, b, ids_a, ids_b, **options)
    second = transfer_labels(b, a, ids_b, ids_a, **options)
    np.testing.assert_array_equal(first.labels_a, second.labels_b)
    np.testing.assert_array_equal(first.cross_a, second.cross_b)
    np.testing.assert_array_equal(first.cross_b, second.cross_a)
    # Within a space the first modality's labels are updated first, so that soft labels agree to the tolerance only.
    np.testing.assert_allclose(first.soft_cross_a, second.soft_cross_b, atol=0.02)


def test_permuting_instances_permutes_labels(noisy) -> None:
    a, b, ids_a, ids_b = noisy
    order = np.random.default_rng(0).permutation(len(a))
    first, second = (
        transfer_labels(a[rows], b, ids_a[rows], ids_b, k1=12, k2=4) for rows in (np.arange(len(a)), order)
    )
    np.testing.assert_allclose(second.soft_cross_a, first.soft_cross_a[order], atol=1e-4)
    np.testing.assert_allclose(second.soft_cross_b, first.soft_cross_b, atol=1e-4)


def test_renumbering_clusters_renumbers_labels(noisy) -> None:
    a, b, ids_a, ids_b = noisy
    renamed = np.random.default_rng(1).permutation(12)
    first = transfer_labels(a, b, ids_a, ids_b, k1=12, k2=4)
    second = transfer_labels(a, b, renamed[ids_a], ids_b, k1=12, k2=4)
    np.testing.assert_allclose(second.soft_cross_b[:, renamed], first.soft_cross_b, atol=1e-4)
    np.testing.assert_array_equal(second.cross_a, first.cross_a)


@pytest.mark.parametrize("far", [0.01, 0.001])
def test_summed_up_transport_changes_labels_by_less_than_a_hundredth_of_far(monkeypatch, far) -> None:
    a, b, ids_a, ids_b = two_modality_features(1, identities=25, per_identity=14, dimension=32, noise=0.6)
    dense = transfer_labels(a, b, ids_a, ids_b)
    monkeypatch.setattr(kernel, "SMALL", 0)
    near = transfer_labels(a, b, ids_a, ids_b, far=far)
    assert near.transport.far_mass > 0
    for name in ("soft_a", "soft_b", "soft_cross_a", "soft_cross_b"):
        np.testing.assert_allclose(getattr(near, name), getattr(dense, name), atol=far / 100)


def test_propagation_reports_the_larger_relative_change() -> None:
    # Nobody is close to anyone else of the own modality: the homogeneous step changes nothing.
    closeness = affinities(
        sparse.csr_array(np.eye(2, dtype=np.float32)),
        sparse.csr_array(np.eye(3, dtype=np.float32)),
        kernel.Kernel(np.full((2, 3), 1 / 6, np.float32)),
    )
    own, cross = np.eye(2, dtype=np.float32), np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    for sides, (first, second) in ((closeness, (own, cross)), (closeness.swapped(), (cross, own))):
        found = propagate(sides, first, second, 0.2, max_iterations=1)
        changes = [np.abs(new - old).sum() / old.sum() for new, old in ((found.own, first), (found.cross, second))]
        assert found.change == pytest.approx(max(changes), rel=1e-5)
        assert (found.iterations, found.converged) == (1, False)


def test_labels_do_not_depend_on_how_many_are_propagated_at_once(noisy, monkeypatch) -> None:
    together = transfer_labels(*noisy, k1=12, k2=4)
    monkeypatch.setattr(transfer, "_PANEL", 3)
    apart = transfer_labels(*noisy, k1=12, k2=4)
    assert apart.space_a.iterations == together.space_a.iterations
    for name in ("soft_a", "soft_b", "soft_cross_a", "soft_cross_b"):
        np.testing.assert_allclose(getattr(apart, name), getattr(together, name), atol=1e-6)


def test_outliers_are_labelled_too(noisy) -> None:
    a, b, ids_a, ids_b = noisy
    marked = np.where(np.arange(len(a)) % 10 == 9, -1, ids_a)
    found = transfer_labels(a, b, marked, ids_b, k1=12, k2=4)
    assert (found.labels_a >= 0).all()
    assert (found.labels_a == ids_a).mean() > 0.9


def test_one_step_each_of_the_propagation() -> None:
    start = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    received = np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    np.testing.assert_allclose(heterogeneous_step(received, start, 0.2), [[0.2, 0.8], [0.4, 0.6]], atol=1e-6)
    mean = row_stochastic(sparse.csr_array(np.full((2, 2), 3, np.float32)))
    np.testing.assert_allclose(homogeneous_step(mean, start), [[0.75, 0.25], [0.25, 0.75]], atol=1e-6)


def test_mixed_targets_keep_the_hard_label_and_the_mass() -> None:
    soft = np.array([[0.2, 0.5, 0.3]], np.float32)
    np.testing.assert_allclose(mixed_targets(soft), [[0.06, 0.85, 0.09]], atol=1e-6)


def test_a_single_cluster_in_each_modality_is_associated(clusters) -> None:
    a, ids = clusters(1, 12)
    found = transfer_labels(a, a[::-1].copy(), ids, ids, k1=5, k2=2)
    assert (found.cross_a == 0).all()
    np.testing.assert_allclose(found.soft_cross_b, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_a": np.full(120, -1)}, "no cluster at all"),
        ({"labels_a": np.arange(120) % 5 * 2}, "cluster 1 has no instance"),
        ({"labels_a": np.zeros(7, int)}, "expected 120 whole numbers"),
        ({"labels_a": np.full(120, -3)}, "-3 is not a cluster"),
        ({"alpha": 1.5}, "alpha"),
        ({"features_a": np.full((120, 24), np.nan, np.float32)}, "features_a: 120 rows"),
        ({"features_a": np.ones((120, 23), np.float32)}, "23 columns"),
    ],
)
def test_unusable_input_is_named(noisy, change, message) -> None:
    a, b, ids_a, ids_b = noisy
    call = {"features_a": a, "features_b": b, "labels_a": ids_a, "labels_b": ids_b} | change
    with pytest.raises(UserError, match=message):
        transfer_labels(**call)
