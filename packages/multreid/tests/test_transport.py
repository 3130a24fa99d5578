"""Entropic transport: golden vectors, invariant 3 of section 14, the sparse kernel against the dense one."""

import numpy as np
import pytest

from multreid.data.synthetic import two_modality_features
from multreid.method import matrix_products as products
from multreid.method.nearest_neighbors import squared_distances
from multreid.method.transport import kernels as kernel
from multreid.method.transport import sinkhorn as transport
from multreid.method.transport.sinkhorn import sinkhorn, sinkhorn_features
from tenfold import UserError


def test_golden_plan_between_instances(golden) -> None:
    plan = sinkhorn(golden["pairwise"])
    np.testing.assert_allclose(plan.dense(), golden["sinkhorn"], atol=1e-7)


def test_golden_plan_between_instances_and_centres(golden) -> None:
    plan = sinkhorn_features(golden["features_rgb"], golden["centers_ir"])
    np.testing.assert_allclose(plan.dense(), golden["sinkhorn_centers"], atol=1e-7)


def test_official_rule_may_stop_after_one_iteration() -> None:
    # Equal costs: b does not change in the first iteration, and step 0 is looked at.
    plan = sinkhorn(np.ones((5, 4), np.float32))
    assert plan.iterations == 1
    assert plan.converged
    np.testing.assert_allclose(plan.dense(), 1 / 20, rtol=1e-6)


def test_official_rule_is_only_looked_at_every_ten_steps(golden) -> None:
    plan = sinkhorn(golden["pairwise"])
    assert plan.iterations == 500 or plan.iterations % 10 == 1
    assert plan.converged == (plan.iterations < 500)


def test_column_sums_are_exact_and_row_sums_are_as_reported(clusters) -> None:
    a, b = clusters(6, 8)[0], clusters(6, 9, seed=1)[0]
    plan = sinkhorn_features(a, b)
    np.testing.assert_allclose(plan.dense().sum(0), 1 / len(b), rtol=1e-5)
    assert np.abs(plan.dense().sum(1) * len(a) - 1).max() == pytest.approx(plan.row_error, rel=1e-3, abs=1e-5)


def test_plain_tolerance_is_reached(clusters) -> None:
    a, b = clusters(5, 8, noise=1.0)[0], clusters(5, 8, noise=1.0, seed=1)[0]
    plan = sinkhorn_features(a, b, reg=5.0, stopping=1e-3, max_iterations=20000)
    assert plan.converged
    np.testing.assert_allclose(plan.dense().sum(1), 1 / len(a), rtol=1.1e-3)
    np.testing.assert_allclose(plan.dense().sum(0), 1 / len(b), rtol=1e-5)


def test_cap_is_reported_as_not_converged(clusters) -> None:
    plan = sinkhorn_features(clusters(5, 8)[0], clusters(5, 8, seed=3)[0], stopping=1e-9, max_iterations=3)
    assert plan.iterations == 3
    assert not plan.converged


def test_adding_a_constant_to_the_cost_changes_nothing(golden) -> None:
    first, second = sinkhorn(golden["pairwise"]), sinkhorn(golden["pairwise"] + 3)
    assert first.iterations == second.iterations
    np.testing.assert_allclose(first.dense(), second.dense(), atol=1e-6)


def test_costs_beyond_float32_range_do_not_underflow() -> None:
    cost = np.array([[0.0, 50.0], [60.0, 90.0], [10.0, 0.0]], np.float32)
    plan = sinkhorn(cost, stopping=1e-4, max_iterations=5000)
    assert np.isfinite(plan.dense()).all()
    np.testing.assert_allclose(plan.dense().sum(0), 0.5, rtol=1e-4)


def test_exchanging_sides_transposes_the_converged_plan(clusters) -> None:
    cost = squared_distances(clusters(4, 6)[0], clusters(4, 7, seed=5)[0])
    first, second = (sinkhorn(each, 5.0, stopping=1e-5, max_iterations=20000) for each in (cost, cost.T.copy()))
    np.testing.assert_allclose(first.dense(), second.dense().T, atol=1e-6)


@pytest.fixture(scope="module")
def pair(clusters):
    return clusters(30, 12, 32, 0.8)[0], clusters(30, 10, 32, 0.8)[0]


@pytest.mark.parametrize(("far", "tolerance"), [(0.003, 5e-5), (0.0003, 1e-5)])
def test_summing_up_small_entries_hardly_changes_the_plan(pair, monkeypatch, far, tolerance) -> None:
    monkeypatch.setattr(kernel, "SMALL", 0)
    dense, near = sinkhorn_features(*pair, far=0.0), sinkhorn_features(*pair, far=far)
    assert not isinstance(near.kernel.near, np.ndarray)
    assert 0 < near.far_mass < 1e-3
    assert dense.far_mass == 0
    assert near.iterations == dense.iterations
    np.testing.assert_allclose(near.dense() * len(pair[0]), dense.dense() * len(pair[0]), atol=tolerance)


def test_kernel_products_agree_with_the_plan(pair, monkeypatch) -> None:
    monkeypatch.setattr(kernel, "SMALL", 0)
    plan = sinkhorn_features(*pair)
    right, left = np.random.default_rng(0).random((2, 360, 3), np.float32)
    right = right[: plan.shape[1]]
    np.testing.assert_allclose(plan.kernel.times(right), plan.dense() @ right, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(plan.kernel.transposed.times(left), plan.dense().T @ left, rtol=1e-4, atol=1e-7)


def test_products_agree_without_mkl(pair, monkeypatch) -> None:
    monkeypatch.setattr(kernel, "SMALL", 0)
    right = np.random.default_rng(0).random((300, 70), np.float32)
    with_mkl = sinkhorn_features(*pair)
    monkeypatch.setattr(products.torch.backends.mkl, "is_available", lambda: False)
    without = sinkhorn_features(*pair)
    np.testing.assert_allclose(without.dense(), with_mkl.dense(), rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(without.kernel.times(right), with_mkl.kernel.times(right), rtol=1e-3, atol=1e-7)


@pytest.fixture(scope="module")
def shuffled_pair(pair):
    """Features in no order, with their clusters numbered with gaps, one of them -1."""
    draw = np.random.default_rng(4)
    sides = [(rows, np.repeat(np.arange(30) * 2 - 1, len(rows) // 30)) for rows in pair]
    orders = [draw.permutation(len(rows)) for rows in pair]
    return [(rows[order], groups[order]) for (rows, groups), order in zip(sides, orders, strict=True)]


@pytest.mark.parametrize("block_entries", [2**19, 5 * 300])
def test_sums_over_groups_are_exact_for_what_is_constant_in_them(shuffled_pair, monkeypatch, block_entries) -> None:
    # Sums over groups are kept, not single entries: products with indicators of groups are those of the whole kernel.
    monkeypatch.setattr(kernel, "SMALL", 0)
    monkeypatch.setattr(kernel, "_BLOCK_ENTRIES", block_entries)
    (a, groups_a), (b, groups_b) = shuffled_pair
    order_a, order_b = np.argsort(groups_a, kind="stable"), np.argsort(groups_b, kind="stable")
    groups = kernel.Groups(np.arange(0, 360, 12), np.arange(0, 300, 10))
    exponents = kernel.exponents_of_features(a[order_a], b[order_b], 5.0)
    f, g = np.full(360, -6.0), np.full(300, -6.0)
    whole = kernel.stabilised_kernel(exponents, f, g, 0.0)
    near = kernel.stabilised_kernel(exponents, f, g, 0.9, groups)
    assert near.far is not None
    assert near.far.mass > 0.01 * whole.near.sum()
    in_b, in_a = (np.repeat(np.eye(30, dtype=np.float32), each, axis=0) for each in (10, 12))
    draw = np.random.default_rng(0)
    rows, columns = (draw.random(n, np.float32) + 0.5 for n in (360, 300))
    for way in (
        lambda k: k,
        lambda k: k.reordered(order_a, order_b).reordered(np.argsort(order_a), np.argsort(order_b)),
    ):
        np.testing.assert_allclose(way(near).times(in_b), whole.near @ in_b, rtol=1e-4)
        np.testing.assert_allclose(way(near).transposed.times(in_a), whole.near.T @ in_a, rtol=1e-4)
    scaled = near.scaled(rows, columns)
    ones = np.ones(300, np.float32)
    np.testing.assert_allclose(scaled.times(ones), rows * near.times(columns), rtol=1e-4)
    back = np.ones(360, np.float32)
    np.testing.assert_allclose(scaled.transposed.times(back), columns * near.transposed.times(rows), rtol=1e-4)


def test_groups_make_summed_up_entries_truer(shuffled_pair, monkeypatch) -> None:
    (a, groups_a), (b, groups_b) = shuffled_pair
    whole = sinkhorn_features(a, b, far=0.0)
    monkeypatch.setattr(kernel, "SMALL", 0)
    grouped, alone = (sinkhorn_features(a, b, far=0.03, groups=each) for each in ((groups_a, groups_b), None))
    labels = np.eye(60, dtype=np.float32)[groups_b]
    exact = whole.kernel.times(labels)
    errors = [np.abs(each.kernel.times(labels) - exact).max() * len(a) for each in (grouped, alone)]
    assert grouped.far_mass > 5e-5
    # A hundredth of `far`, as for labels.
    assert errors[0] < 3e-4
    assert errors[0] < errors[1] / 5
    np.testing.assert_allclose(grouped.dense() * len(a), whole.dense() * len(a), atol=5e-4)


def test_sums_follow_the_factors(shuffled_pair, monkeypatch) -> None:
    # What small entries add is kept while factors change by less than `STALE`, and not a call longer.
    monkeypatch.setattr(kernel, "SMALL", 0)
    near = sinkhorn_features(shuffled_pair[0][0], shuffled_pair[1][0], 5.0, far=0.9).kernel
    assert near.far.mass > 0.01
    sums, v = near.scaling(), np.ones(300, np.float32)
    for step in (1.0, 1 + kernel.STALE / 2, 1 + kernel.STALE, 1.5, 0.2):
        v = v * np.float32(step)
        row_sums, column_sums = sums(v)
        np.testing.assert_allclose(row_sums, near.times(v), rtol=kernel.STALE)
        np.testing.assert_allclose(column_sums, near.transposed.times(1 / row_sums), rtol=kernel.STALE)
    np.testing.assert_allclose(row_sums, near.times(v), rtol=1e-6)


def test_kernel_is_computed_anew_when_corrections_have_settled(monkeypatch) -> None:
    a, b, _, labels = two_modality_features(0, identities=25, per_identity=14, dimension=256, noise=1.0)
    sides, indicator = (labels, labels), np.eye(25, dtype=np.float32)[labels]
    exact = sinkhorn_features(a, b).kernel.times(indicator)
    monkeypatch.setattr(kernel, "SMALL", 0)
    errors = []
    for settled in (transport.SETTLED, -1):
        monkeypatch.setattr(transport, "SETTLED", settled)
        found = sinkhorn_features(a, b, far=0.01, groups=sides)
        assert found.far_mass > 1e-4
        errors.append(np.abs(found.kernel.times(indicator) - exact).max() * len(a))
    assert errors[0] < 3e-5
    assert errors[0] < errors[1] / 5


def test_kernel_is_whole_where_little_can_be_left_out(clusters, monkeypatch) -> None:
    monkeypatch.setattr(kernel, "SMALL", 0)
    plan = sinkhorn_features(clusters(2, 20)[0], clusters(2, 20, seed=1)[0], reg=0.1)
    assert isinstance(plan.kernel.near, np.ndarray)


def test_result_does_not_depend_on_how_rows_are_blocked(golden, monkeypatch) -> None:
    whole = sinkhorn(golden["pairwise"]).dense()
    monkeypatch.setattr(kernel, "_BLOCK_ENTRIES", 200)
    np.testing.assert_allclose(sinkhorn(golden["pairwise"]).dense(), whole, atol=1e-7)


@pytest.mark.parametrize(
    ("cost", "options", "message"),
    [
        (np.zeros((0, 3), np.float32), {}, "no empty side"),
        (np.full((2, 3), np.inf, np.float32), {}, "finite"),
        (np.ones((2, 3), np.float32), {"reg": 0.0}, "reg"),
        (np.ones((2, 3), np.float32), {"max_iterations": 0}, "max_iterations"),
    ],
)
def test_unusable_costs_and_options_are_named(cost, options, message) -> None:
    with pytest.raises(UserError, match=message):
        sinkhorn(cost, **options)


def test_different_dimensions_are_named(clusters) -> None:
    with pytest.raises(UserError, match=r"16 columns and .* 8"):
        sinkhorn_features(clusters(2, 3, 16)[0], clusters(2, 3, 8)[0])
