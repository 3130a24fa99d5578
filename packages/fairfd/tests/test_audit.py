"""The audit: the core's numbers, an exact JSON file, an honest subjects curve (spec 11, 14.26)."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairfd.evaluation.audit.record import Audit, Estimate, Replicates, decode
from fairfd.evaluation.audit.run import audit, people_sha256, rows_sha256
from fairfd.evaluation.audit.sample_size import NOBODY, drawn_people, shuffled_groups, subjects_curve
from fairfd.evaluation.audit.uncertainty import approach_gaps, bootstrap, difference, permutation_test
from fairfd.evaluation.scores.score_table import ScoreTable
from fairfd.method.fairness import METRIC_NAMES, OFFICIAL, PAPER, Convention, fairness
from tenfold.errors import UserError

GROUPS = ("A", "B", "C")
APPROACHES = ("real", "swap", "blend")


def score_table(
    people: int = 25, gap: float = 0.25, approaches: tuple[str, ...] = APPROACHES, groups: tuple[str, ...] = GROUPS
) -> ScoreTable:
    """Two images per person and approach; group A is caught less often and accused less often."""
    rng = np.random.default_rng(7)
    shape = (len(groups), people, len(approaches), 2)
    g, i, f, _ = np.meshgrid(*map(np.arange, shape), indexing="ij")
    fake = np.array([approach != "real" for approach in approaches])[f]
    score = np.where(fake, 0.65, 0.35) - gap * (g == 0) + rng.normal(0, 0.15, shape)
    return ScoreTable.create(
        np.clip(score, 0, 1).ravel(),
        fake.ravel().astype(np.int64),
        np.array(groups)[g].ravel(),
        np.array(approaches)[f].ravel(),
        identity=(g * people + i).ravel(),
        image=[f"{n}.png" for n in range(score.size)],
        detector="net",
    )


@pytest.fixture(scope="module")
def scores() -> ScoreTable:
    return score_table()


@pytest.fixture(scope="module")
def found(scores: ScoreTable) -> Audit:
    return audit(scores, n_boot=80, n_perm=59, seed=3, subject_sizes=(12, 5, 25, 26, 400))


def test_metrics_intervals_and_null_are_those_of_the_core(scores: ScoreTable, found: Audit) -> None:
    table = scores.rate_table()
    for convention in (OFFICIAL, PAPER):
        result = found.conventions[convention.name]
        values = fairness(table, convention)
        boot = bootstrap(table, 80, 3, convention=convention)
        null = permutation_test(table, 59, 3, convention=convention)
        assert result.definition == values.convention
        assert tuple(result.metrics) == METRIC_NAMES
        for name, estimate in result.metrics.items():
            assert estimate == Estimate(
                values[name],
                boot.debiased[name],
                boot.low[name],
                boot.high[name],
                null.null_mean[name],
                null.null_q95[name],
                null.p[name],
            )
        assert result.replicates is not None
        np.testing.assert_allclose(result.replicates.unpack(), boot.replicates, rtol=1e-6)


def test_hidden_gap_is_the_difference_over_the_same_replicates(scores: ScoreTable, found: Audit) -> None:
    boot = bootstrap(scores.rate_table(), 80, 3)
    gap = found.conventions["official"].hidden_gaps["AADPD - DPD"]
    core = difference(boot, "AADPD", "DPD")
    assert (gap.value, gap.debiased, gap.low, gap.high) == (core.point, core.debiased, core.low, core.high)


def test_rows_carry_accuracy_gap_and_interval(scores: ScoreTable, found: Audit) -> None:
    table = scores.rate_table()
    gaps = approach_gaps(bootstrap(table, 80, 3))
    assert [row.approach for row in found.approaches] == ["real", "blend", "swap"]
    assert [row.is_real for row in found.approaches] == [True, False, False]
    for f, row in enumerate(found.approaches):
        assert row.accuracy == tuple(table.accuracy[f])
        assert row.utility == pytest.approx(table.accuracy[f].mean())
        assert row.gap.value == pytest.approx(np.ptp(table.accuracy[f]))
        assert (row.gap.low, row.gap.high) == (gaps[row.approach].low, gaps[row.approach].high)


def test_data_summary_counts_images_and_people(found: Audit) -> None:
    data = found.data
    assert (data.images, data.people, data.people_per_group) == (450, 75, (25, 25, 25))
    assert data.images_per_cell == ((50, 50, 50),) * 3
    assert data.people_per_cell == ((25, 25, 25),) * 3


def test_json_round_trip_is_exact(found: Audit) -> None:
    text = found.to_json()
    assert Audit.from_json(text) == found
    assert next(iter(json.loads(text))) == "version"
    assert "NaN" not in text


@settings(max_examples=25, deadline=None)
@given(st.lists(st.none() | st.floats(0, 1e9), min_size=7, max_size=7))
def test_every_finite_number_survives_the_file(numbers: list[float | None]) -> None:
    estimate = Estimate(*numbers)
    assert decode(Estimate, json.loads(json.dumps(vars(estimate))), "estimate") == estimate


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-9], "not an audit file"),
        (lambda _: "[]", "no field 'version'"),
        (lambda text: text.replace('"version": 1', '"version": 99'), "version 99"),
        (lambda text: text.replace('"detector"', '"name"'), "audit.detector is missing"),
        (lambda text: text.replace('"images": 450', '"images": "many"'), "audit.data.images cannot be 'many'"),
        (lambda text: text.replace('"interval": "basic"', '"interval": "vague"'), "audit.settings.interval"),
    ],
)
def test_damaged_file_is_refused_with_the_field(found: Audit, damage, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Audit.from_json(damage(found.to_json()))


def test_damaged_replicates_are_refused() -> None:
    with pytest.raises(UserError, match="damaged bootstrap replicates"):
        Replicates(3, ("DPD",), "AAAA").unpack()


def test_hash_of_rows_ignores_their_order_and_hash_of_people_ignores_scores(scores: ScoreTable) -> None:
    shuffled = scores.take(np.random.default_rng(0).permutation(len(scores)))
    assert rows_sha256(shuffled) == rows_sha256(scores)
    rescored = replace(scores, score=scores.score / 2)
    assert rows_sha256(rescored) != rows_sha256(scores)
    assert (
        people_sha256(rescored.rate_table())
        == people_sha256(shuffled.rate_table())
        == people_sha256(scores.rate_table())
    )
    assert people_sha256(score_table(people=24).rate_table()) != people_sha256(scores.rate_table())


def test_same_seed_gives_the_same_audit_whatever_the_row_order(scores: ScoreTable) -> None:
    shuffled = scores.take(np.random.default_rng(0).permutation(len(scores)))
    one, two = audit(scores, n_boot=20, n_perm=19), audit(shuffled, n_boot=20, n_perm=19)
    # AUC adds up in another order: equal up to the last bits.
    assert replace(two, utility=one.utility) == one
    assert two.utility.overall.auc == pytest.approx(one.utility.overall.auc, abs=1e-12)


def test_intervals_and_null_can_be_left_out(scores: ScoreTable) -> None:
    bare = audit(scores, n_boot=0, n_perm=0, conventions=(PAPER,))
    assert list(bare.conventions) == ["paper"]
    estimate = bare.conventions["paper"].metrics["AADPD"]
    assert estimate.value is not None
    assert (estimate.low, estimate.null_mean, estimate.p) == (None, None, None)
    assert bare.approaches[0].gap.value is not None
    assert Audit.from_json(bare.to_json()) == bare


def test_all_fake_detector_has_zeros_and_is_gated(scores: ScoreTable) -> None:
    result = audit(replace(scores, score=np.ones(len(scores))), n_boot=20, n_perm=19)
    assert all(e.value == 0 for c in result.conventions.values() for e in c.metrics.values())
    assert result.gate.near_trivial


def test_empty_cells_are_refused_dropped_or_made_null(scores: ScoreTable) -> None:
    holed = scores.take((scores.group != "B") | (scores.approach != "swap"))
    with pytest.raises(UserError, match="swap/B"):
        audit(holed, n_boot=5, n_perm=5)
    dropped = audit(holed, empty="drop", n_boot=5, n_perm=5)
    assert dropped.approaches[2].accuracy[1] is None
    assert dropped.conventions["official"].metrics["AADPD"].value is not None
    undefined = audit(holed, empty="nan", n_boot=5, n_perm=5)
    assert undefined.conventions["official"].metrics["AADPD"].value is None
    assert Audit.from_json(undefined.to_json()) == undefined


def test_without_genuine_faces_odds_are_null() -> None:
    result = audit(score_table(approaches=("swap", "blend")), n_boot=5, n_perm=5)
    metrics = result.conventions["official"].metrics
    assert metrics["AADEOdds"].value is None
    assert metrics["AADEO"].value is not None
    assert [row.approach for row in result.approaches] == ["blend", "swap"]
    assert any("no real images" in line for line in result.warnings)


def test_single_group_has_zeros_without_interval() -> None:
    result = audit(score_table(groups=("A",)), n_boot=5, n_perm=5, subject_sizes=(5,))
    estimate = result.conventions["official"].metrics["DPD"]
    assert (estimate.value, estimate.low) == (0.0, None)
    assert result.subjects_curve is None
    assert any("subjects curve" in line for line in result.warnings)


def test_small_groups_and_missing_identities_are_warned_of_once(scores: ScoreTable) -> None:
    few = audit(scores, n_boot=5, n_perm=5, min_identities=30)
    assert sum("30" in line for line in few.warnings) >= 1
    assert len(set(few.warnings)) == len(few.warnings)
    unclustered = audit(replace(scores, people=None), n_boot=5, n_perm=5)
    assert unclustered.data.people is None
    assert unclustered.data.people_per_cell is None
    assert any("independent" in line for line in unclustered.warnings)


def test_group_thresholds_are_recorded(scores: ScoreTable) -> None:
    thresholds = {"A": 0.3, "B": 0.5, "C": 0.5}
    result = audit(scores, threshold=thresholds, n_boot=0, n_perm=0)
    assert result.threshold == thresholds
    assert Audit.from_json(result.to_json()) == result


def test_impossible_settings_are_refused(scores: ScoreTable) -> None:
    with pytest.raises(UserError, match="at least one convention"):
        audit(scores, conventions=())
    with pytest.raises(UserError, match="each once"):
        audit(scores, conventions=(OFFICIAL, Convention(threshold=0.4)))
    with pytest.raises(UserError, match="n_boot is -1"):
        audit(scores, n_boot=-1)


def test_subjects_curve_ends_with_everybody_and_skips_sizes_beyond(scores: ScoreTable, found: Audit) -> None:
    curve = found.subjects_curve
    assert curve is not None
    assert [(point.people_per_group, point.is_all) for point in curve.points] == [(5, False), (12, False), (25, True)]
    everybody = curve.points[-1]
    assert everybody.mean == pytest.approx(fairness(scores.rate_table())["AADPD"])
    assert everybody.low == everybody.high == everybody.mean
    # The detector is biased: shuffling the labels must take the gap away.
    assert all((point.null_mean or math.nan) < 0.7 * point.mean for point in curve.points)


def test_fewer_people_raise_the_noise_floor_and_the_measured_gap_of_an_unbiased_detector() -> None:
    curve = subjects_curve(score_table(people=60, gap=0.0).rate_table(), sizes=(4, 16), draws=60)
    means = [point.mean for point in curve.points]
    floors = [point.null_mean or math.nan for point in curve.points]
    assert means == sorted(means, reverse=True)
    assert floors == sorted(floors, reverse=True)
    assert means[0] == pytest.approx(floors[0], rel=0.15)


def test_drawn_people_are_equally_many_per_group_and_shuffles_keep_their_labels() -> None:
    rng = np.random.default_rng(0)
    group_of = np.repeat([0, 1, 2], [5, 9, 7])
    chosen = drawn_people(group_of, 5, 20, rng)
    assert all((chosen[:, group_of == s].sum(axis=1) == 5).all() for s in range(3))
    assert len({row.tobytes() for row in chosen}) > 1
    shuffled = shuffled_groups(group_of, chosen, rng)
    assert (shuffled[~chosen] == NOBODY).all()
    assert (shuffled != np.where(chosen, group_of, NOBODY)).any(axis=1).all()
    assert all((np.bincount(row[row != NOBODY]) == 5).all() for row in shuffled)


def test_subjects_curve_refuses_what_it_cannot_draw(scores: ScoreTable) -> None:
    with pytest.raises(UserError, match="identity column"):
        subjects_curve(replace(scores, people=None).rate_table())
    with pytest.raises(UserError, match="sizes of at least 2"):
        subjects_curve(scores.rate_table(), sizes=(1,))
    with pytest.raises(UserError, match="one of DPD"):
        subjects_curve(scores.rate_table(), metric="AUC")
