"""Intervals, noise floors, p-values and ranks."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import kstest

from fairfd.evaluation.audit.ranking import rank_probabilities, rank_shares
from fairfd.evaluation.audit.resampling import FLOAT32_WHOLE, bootstrap_counts, permuted_counts, weighted_counts
from fairfd.evaluation.audit.uncertainty import (
    approach_gaps,
    bootstrap,
    difference,
    percentile_interval,
    permutation_test,
    small_group_warnings,
)
from fairfd.method.fairness import METRIC_NAMES, OFFICIAL, PAPER, fairness, spread
from fairfd.method.rates import RateTable
from tenfold.errors import UserError

AADPD = METRIC_NAMES.index("AADPD")


def vector(values) -> np.ndarray:
    return np.array([values[name] for name in METRIC_NAMES])


@pytest.fixture
def data(golden):
    return golden("bootstrap_permutation")


@pytest.fixture
def table(data):
    return RateTable.from_scores(data["scores"], data["labels"], data["group"], data["approach"], data["identity"])


def planted(rng: np.random.Generator, p: np.ndarray, per_group: int, images: int = 4, effect: float = 0.8) -> RateTable:
    """A table whose cell (f, s) has mean accuracy near p[f, s]; a person is better or worse than that throughout."""
    rows, groups = p.shape
    group_of = np.repeat(np.arange(groups), per_group)
    person = effect * rng.standard_normal((len(group_of), 1))
    correct = rng.binomial(images, expit(logit(p).T[group_of] + person))
    return RateTable.from_identity_counts(
        correct,
        np.full(correct.shape, images),
        group_of,
        [f"{i:05d}" for i in range(len(group_of))],
        ["real", *map(str, range(1, rows))],
        [f"group {s}" for s in range(groups)],
    )


def mean_accuracy(p: np.ndarray, effect: float = 0.8) -> np.ndarray:
    """The exact expectation of `planted`, by Gauss-Hermite quadrature over the person's effect."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    return (expit(logit(p)[..., None] + effect * nodes) * weights).sum(-1) / weights.sum()


def test_given_weights_reproduce_the_golden_replicates_and_intervals(table, data):
    found = bootstrap(table, weights=data["weights"])
    np.testing.assert_allclose(found.replicates, data["replicates"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vector(found.point), data["point"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vector(found.debiased), data["debiased"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vector(found.low), data["basic_lo"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vector(found.high), data["basic_hi"], rtol=0, atol=1e-9)
    percentile = bootstrap(table, weights=data["weights"], interval="percentile")
    np.testing.assert_allclose(vector(percentile.low), data["percentile_lo"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vector(percentile.high), data["percentile_hi"], rtol=0, atol=1e-9)


def test_given_shuffles_reproduce_the_golden_null(table, data):
    found = permutation_test(table, groups_of_identities=data["perm_group_of_identity"])
    np.testing.assert_allclose(found.replicates, data["perm_replicates"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vector(found.p), data["perm_pvalue"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vector(found.null_mean), data["null_mean"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(vector(found.null_q95), data["null_q95"], rtol=0, atol=1e-9)


def test_everybody_once_gives_the_point(table):
    ones = np.ones((1, len(table.identities)), np.int64)
    for convention in (OFFICIAL, PAPER):
        found = bootstrap(table, weights=ones, convention=convention)
        np.testing.assert_allclose(found.replicates[0], vector(fairness(table, convention)), atol=1e-12)


def test_unshuffled_labels_count_as_reached(table):
    found = permutation_test(table, groups_of_identities=np.tile(table.group_of, (3, 1)))
    assert set(found.p.values()) == {1.0}


@pytest.mark.parametrize("clustered", [True, False])
def test_the_seed_alone_decides_the_draws(data, clustered):
    columns = [data[name] for name in ("scores", "labels", "group", "approach", "identity")]
    columns = columns if clustered else columns[:4]
    table = RateTable.from_scores(*columns)
    order = np.random.default_rng(1).permutation(len(columns[0]))
    shuffled = RateTable.from_scores(*[column[order] for column in columns])
    for count in (bootstrap_counts, permuted_counts):
        reference = count(table, 30, 5)
        for again in (count(table, 30, 5, chunk=7), count(table, 30, 5, chunk=1), count(shuffled, 30, 5)):
            np.testing.assert_array_equal(again.k, reference.k)
            np.testing.assert_array_equal(again.n, reference.n)
        assert (count(table, 30, 6).k != reference.k).any()


def test_bootstrap_draws_keep_the_number_of_people_per_group(table):
    everyone = RateTable.from_identity_counts(
        np.zeros_like(table.total[:, :1]),
        np.ones_like(table.total[:, :1]),
        table.group_of,
        table.identities,
        ["real"],
        table.groups,
    )
    for count in (bootstrap_counts, permuted_counts):
        drawn = count(everyone, 50, 0).n
        np.testing.assert_array_equal(drawn, np.broadcast_to(everyone.n, drawn.shape))


def test_independent_images_are_drawn_as_if_each_were_a_person(data):
    columns = [data[name] for name in ("scores", "labels", "group", "approach")]
    compact = RateTable.from_scores(*columns)
    one_by_one = RateTable.from_scores(*columns, np.arange(len(data["scores"])))
    assert len(compact.copies) < len(one_by_one.copies) / 10
    for count in (bootstrap_counts, permuted_counts):
        few, many = count(compact, 3000, 0), count(one_by_one, 3000, 0)
        np.testing.assert_allclose(few.k.mean(axis=0), many.k.mean(axis=0), atol=0.5)
        np.testing.assert_allclose(few.n.mean(axis=0), many.n.mean(axis=0), atol=0.5)
        np.testing.assert_allclose(few.k.std(axis=0), many.k.std(axis=0), rtol=0.1)
    assert any("independent images" in line for line in bootstrap(compact, 20).warnings)


def test_shuffling_images_deals_each_to_one_group(data):
    table = RateTable.from_scores(*(data[name] for name in ("scores", "labels", "group", "approach")))
    shuffled = permuted_counts(table, 20, 0)
    for counts, observed in ((shuffled.k, table.k), (shuffled.n, table.n)):
        np.testing.assert_array_equal(counts.sum(axis=2), np.tile(observed.sum(axis=1), (20, 1)))
    np.testing.assert_array_equal(shuffled.n.sum(axis=1), np.tile(table.clusters_per_group, (20, 1)))


def test_clustering_by_person_widens_the_interval():
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(160), 20)
    talent = np.repeat(rng.random(160), 20)
    scores = (rng.random(len(identity)) < talent).astype(float)
    columns = scores, np.ones(len(scores), int), identity % 2, np.full(len(scores), 1)
    widths = []
    for identities in (None, identity):
        found = bootstrap(RateTable.from_scores(*columns, identities), 500)
        widths.append(found.replicates[:, AADPD].std())
    assert widths[1] > 1.5 * widths[0]


def test_float32_gives_way_where_it_would_round():
    big = FLOAT32_WHOLE + 1
    table = RateTable.from_identity_counts(
        np.array([[big], [1]]), np.array([[big], [1]]), np.array([0, 1]), ["p", "q"], ["real"], ["a", "b"]
    )
    counts = weighted_counts(table, np.array([[1, 1], [3, 2]]))
    np.testing.assert_array_equal(counts.k[:, 0], [[big, 1], [3 * big, 2]])


def test_replicates_that_lose_a_cell_are_dropped_and_counted():
    # Group b has the approach on one of three persons only.
    identities, groups = list("pqruvw"), list("aaabbb")
    table = RateTable.from_scores(
        [0.1, 0.2, 0.9, 0.1, 0.8, 0.1, 0.9, 0.9, 0.9, 0.3],
        [0] * 6 + [1] * 4,
        [*groups, "a", "a", "a", "b"],
        ["real"] * 6 + ["x"] * 4,
        [*identities, "p", "q", "r", "u"],
    )
    found = bootstrap(table, 300)
    assert 0 < found.dropped < 300
    assert np.isnan(found.replicates).all(axis=1).sum() == found.dropped
    assert any(f"{found.dropped} of 300" in line for line in found.warnings)
    assert found.low["AADPD"] is not None
    assert permutation_test(table, 50).dropped == 0 or permutation_test(table, 50).n_perm == 50


def test_empty_cells_follow_the_policy(golden):
    data = golden("scores_empty_cell")
    table = RateTable.from_scores(data["scores"], data["labels"], data["group"], data["approach"], data["identity"])
    with pytest.raises(UserError, match="no image in"):
        bootstrap(table, 10)
    dropped = bootstrap(table, 200, empty="drop")
    assert dropped.dropped < 200
    assert dropped.low["AADPD"] <= dropped.point["AADPD"]
    assert set(bootstrap(table, 10, empty="nan").high.values()) == {None}


def test_one_group_and_undefined_metrics_have_no_interval():
    rng = np.random.default_rng(0)
    columns = rng.random(40), np.ones(40, int), np.arange(40) % 2, np.ones(40, int), np.arange(40)
    no_reals = bootstrap(RateTable.from_scores(*columns), 50)
    assert no_reals["AADEOdds"].low is None
    assert no_reals["AADPD"].low is not None
    single = RateTable.from_scores(*columns[:2], np.zeros(40, int), *columns[3:])
    alone = bootstrap(single, 50)
    assert alone.point["AADPD"] == 0
    assert set(alone.low.values()) == set(alone.high.values()) == {None}
    assert set(permutation_test(single, 20).p.values()) == {None}


def test_published_accuracies_and_bad_settings_are_refused(table):
    published = RateTable.from_accuracy([[0.9, 0.8], [0.4, 0.5]], ["real", "x"], ["a", "b"])
    for refused in (bootstrap, permutation_test):
        with pytest.raises(UserError, match="no identities to resample"):
            refused(published)
        with pytest.raises(UserError, match="at least 1"):
            refused(table, 0)
    with pytest.raises(UserError, match="coverage between 0 and 1"):
        bootstrap(table, level=95.0)
    with pytest.raises(UserError, match="columns do not fit"):
        bootstrap(table, weights=np.ones((2, 3)))


def test_the_difference_of_two_metrics_keeps_its_sign(table, data):
    found = bootstrap(table, weights=data["weights"])
    hidden = difference(found, "AADPD", "DPD")
    replicates = data["replicates"][:, AADPD] - data["replicates"][:, 0]
    assert hidden.point == pytest.approx(data["point"][AADPD] - data["point"][0])
    assert hidden.debiased == pytest.approx(2 * hidden.point - replicates.mean())
    assert hidden.low == pytest.approx(2 * hidden.point - np.quantile(replicates, 0.975))
    assert difference(found, "DPD", "AADPD").high == pytest.approx(-hidden.low)


def test_every_approach_has_the_interval_of_its_gap(table, data):
    found = bootstrap(table, weights=data["weights"])
    gaps = approach_gaps(found)
    assert tuple(gaps) == table.approaches
    assert gaps["real"].point == pytest.approx(np.ptp(table.accuracy[0]))
    replicates = spread(found.counts.k / found.counts.n)[:, 0]
    assert gaps["real"].high == pytest.approx(2 * gaps["real"].point - np.quantile(replicates, 0.025))
    assert np.mean([gap.point for gap in gaps.values()]) == pytest.approx(found.point["AADPD"])


def test_ranks_are_paired_and_ties_are_shared():
    values = np.array([[[0.1], [0.3]], [[0.2], [0.3]], [[0.3], [0.1]]])
    np.testing.assert_allclose(rank_shares(values)[0], [[0.5, 0.25, 0.25], [0, 0.75, 0.25], [0.5, 0, 0.5]])
    rng = np.random.default_rng(0)
    fair, unfair = np.full((4, 4), 0.7), np.full((4, 4), 0.7) - np.array([0.0, 0.1, 0.2, 0.3])
    tables = {"unfair": planted(rng, unfair, 60), "fair": planted(rng, fair, 60)}
    ranks = rank_probabilities(tables | {"copy": tables["fair"]}, 200)
    assert ranks.paired
    np.testing.assert_allclose(ranks.probability.sum(axis=2), 1)
    np.testing.assert_allclose(ranks.of("AADPD", "fair"), ranks.of("AADPD", "copy"))
    assert ranks.of("AADPD", "unfair")[2] > 0.95


def test_detectors_on_other_people_are_not_ranked(table):
    other = table.take(np.arange(len(table.identities) - 1))
    with pytest.raises(UserError, match="same people"):
        rank_probabilities({"one": table, "two": other})
    with pytest.raises(UserError, match="at least two"):
        rank_probabilities({"one": table})


def test_small_groups_are_named_with_the_noise_floor(table):
    (line,) = small_group_warnings(table)
    assert "0 (12)" in line
    floor = permutation_test(table, 199).null_mean["AADPD"]
    assert f"AADPD {floor:.3f}" in line
    assert small_group_warnings(table, min_identities=12) == ()


def test_p_values_are_uniform_when_group_means_nothing():
    rng = np.random.default_rng(14)
    p = np.repeat([[0.8], [0.3], [0.5], [0.6]], 4, axis=1)
    found = [permutation_test(planted(rng, p, 100), 99, seed).p for seed in range(200)]
    for name in ("DPD", "AADPD", "URSTD"):
        # p-values lie on the grid 1/100, 2/100, ...; spreading each over its step makes the null exactly uniform.
        spread_out = np.array([values[name] for values in found]) - rng.random(200) / 100
        assert kstest(spread_out, "uniform").pvalue > 0.01


def test_the_basic_interval_covers_where_the_percentile_interval_does_not():
    rng = np.random.default_rng(15)
    logits = logit(np.array([0.8, 0.3, 0.5, 0.6, 0.4, 0.7, 0.5]))
    shift = rng.permuted(np.tile([-0.25, -0.1, 0.1, 0.25], (7, 1)), axis=1)
    p = expit(logits[:, None] + shift)
    truth = spread(mean_accuracy(p)).mean()
    assert 0.08 < truth < 0.12
    basic = percentile = 0
    for seed in range(160):
        found = bootstrap(planted(rng, p, 100), 300, seed)
        basic += found.low["AADPD"] <= truth <= found.high["AADPD"]
        low, high = percentile_interval(found.replicates[:, AADPD], 0.95)
        percentile += low <= truth <= high
    assert 0.88 <= basic / 160 <= 1
    assert percentile / 160 < 0.7
