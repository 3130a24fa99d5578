"""The twelve metrics (paper Eqs. 2, 3, 6-9; specification, sections 3.2-3.6, 3.8 and invariants 1-12)."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairfd.evaluation.scores.score_table import ScoreTable, to_metric_frame
from fairfd.method.fairness import (
    METRIC_NAMES,
    OFFICIAL,
    PAPER,
    Convention,
    FairnessValues,
    aadpd,
    fairness,
    metrics_of,
    spread,
    urdpd,
    utilities,
)
from fairfd.method.rates import RateTable
from tenfold.errors import UserError

EQ3 = replace(OFFICIAL, utility_offset=0.0)
NAIVE, AVERAGED, REGULARISED = METRIC_NAMES[:4], METRIC_NAMES[4:8], METRIC_NAMES[8:]
COLUMNS = ("scores", "labels", "group", "approach", "identity")
SCORE_CASES = ("full", "uneven", "one_approach", "two_groups", "allfake", "allreal", "ties")


def published(A: np.ndarray) -> RateTable:
    rows = ["real", *(f"approach {f}" for f in range(1, len(A)))]
    return RateTable.from_accuracy(A, rows, [f"group {s}" for s in range(len(A[0]))])


def vector(values: FairnessValues) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values.values()])


def random_accuracies(seed: int, rows: int = 12, groups: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, groups))


def counted(data: dict[str, np.ndarray]) -> RateTable:
    return RateTable.from_scores(data["scores"], data["labels"], data["group"], data["approach"], data["identity"])


def test_accuracy_matrices_give_the_official_values_under_each_offset(golden):
    data = golden("metrics_from_accuracy")
    cases = [name.removesuffix("__acc") for name in data if name.endswith("__acc")]
    assert len(cases) == 13
    assert tuple(data["metric_names"]) == METRIC_NAMES
    for case in cases:
        table = published(data[f"{case}__acc"])
        for offset, expected in ((1.0, "official"), (0.0, "eq3_offset0"), (0.5, "offset_half")):
            values = fairness(table, Convention(utility_offset=offset))
            np.testing.assert_allclose(vector(values), data[f"{case}__{expected}"], rtol=0, atol=1e-9)


def test_scores_give_the_official_and_the_pooled_values(golden):
    for case in SCORE_CASES:
        data = golden(f"scores_{case}")
        table = counted(data)
        np.testing.assert_allclose(vector(fairness(table)), data["official_macro"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(vector(fairness(table, EQ3)), data["eq3_macro_offset0"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(vector(fairness(table, PAPER))[:4], data["paper_pooled_naive"], rtol=0, atol=1e-9)


def test_dropping_an_empty_cell_gives_the_golden_values(golden):
    data = golden("scores_empty_cell")
    table = counted(data)
    np.testing.assert_allclose(vector(fairness(table, empty="drop")), data["drop_policy_offset1"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        vector(fairness(table, EQ3, empty="drop")), data["drop_policy_offset0"], rtol=0, atol=1e-9
    )


def test_replicates_are_evaluated_as_if_one_by_one():
    rng = np.random.default_rng(0)
    n = rng.integers(1, 9, (5, 3, 2, 4))
    k = rng.integers(0, n + 1)
    for convention in (OFFICIAL, PAPER):
        together = metrics_of(k, n, convention)
        assert together.shape == (5, 3, 12)
        np.testing.assert_array_equal(together[4, 2], metrics_of(k[4, 2], n[4, 2], convention))


def test_the_figure_2_example_hides_bias_from_the_naive_metrics():
    A = np.array([[0.9] * 4, [0.85, 0.75, 0.80, 0.65], [0.40, 0.50, 0.63, 0.50]])
    np.testing.assert_allclose(spread(A)[1:], [0.20, 0.23])
    assert fairness(published(A))["DPD"] == pytest.approx(0.0933, abs=5e-5)
    assert aadpd(A) == pytest.approx(0.1433, abs=5e-5)


def test_utility_weighs_a_gap_more_where_accuracy_is_low():
    A = np.array([[0.5] * 4, [0.15, 0.25, 0.2, 0.2], [0.75, 0.85, 0.8, 0.8]])
    assert spread(A)[1] == pytest.approx(spread(A)[2])
    u = A.mean(axis=1)
    np.testing.assert_allclose((spread(A) / (u + 1))[1:], [0.0833, 0.0556], atol=5e-5)
    np.testing.assert_allclose((spread(A) / u)[1:], [0.5, 0.125])
    assert urdpd(A, u) == pytest.approx(np.mean(spread(A) / u))


def test_only_offset_zero_exposes_a_nearly_all_fake_detector():
    A = np.array([[0.02, 0.03, 0.01, 0.06]] + [[0.97, 0.98, 0.98, 0.99]] * 5)
    assert fairness(published(A))["URDPD"] == pytest.approx(0.0165, abs=1e-4)
    assert fairness(published(A), EQ3)["URDPD"] == pytest.approx(0.295, abs=1e-3)


@pytest.mark.parametrize("rows", [2, 3, 7, 12])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_aadpd_follows_from_aadeodds_and_aadeo(rows, offset):
    M = rows - 1
    v = fairness(published(random_accuracies(rows, rows)), Convention(utility_offset=offset))
    for dpd, deodds, deo in (AVERAGED[:3], REGULARISED[:3]):
        assert v[dpd] == pytest.approx((2 * v[deodds] + (M - 1) * v[deo]) / (M + 1), abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(2, 13), groups=st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_averaging_approaches_last_never_lowers_a_gap(seed, rows, groups):
    v = fairness(published(random_accuracies(seed, rows, groups)))
    for averaged, naive in zip(AVERAGED, NAIVE, strict=True):
        assert v[averaged] >= v[naive] - 1e-12


def test_nothing_is_hidden_when_all_approaches_rank_and_space_the_groups_alike():
    A = np.array([[0.1], [0.3], [0.2]]) + np.array([[0.0, 0.2, 0.5, 0.6]])
    v = fairness(published(A))
    for averaged, naive in zip(AVERAGED, NAIVE, strict=True):
        assert v[averaged] == pytest.approx(v[naive], abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_regularised_values_fall_with_the_offset_within_their_bounds(seed, groups):
    table = published(random_accuracies(seed, 6, groups))
    at = {offset: fairness(table, Convention(utility_offset=offset)) for offset in (0.0, 0.3, 1.0)}
    for averaged, regularised in zip(AVERAGED, REGULARISED, strict=True):
        aa, ur0, ur1 = at[0.0][averaged], at[0.0][regularised], at[1.0][regularised]
        assert ur0 > at[0.3][regularised] > ur1
        assert aa / 2 - 1e-12 <= ur1 <= aa + 1e-12
        assert ur0 >= aa - 1e-12


def test_one_approach_leaves_nothing_to_average():
    v = fairness(published(random_accuracies(5, rows=2)))
    assert v["AADPD"] == pytest.approx(v["AADEOdds"], abs=1e-12)
    assert v["AADPD"] == pytest.approx(v["DEOdds"], abs=1e-12)
    assert v["AADEO"] == pytest.approx(v["DEO"], abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(2, 8))
@settings(max_examples=25, deadline=None)
def test_the_population_deviation_lies_between_its_bounds(seed, groups):
    row = random_accuracies(seed, 1, groups)
    ratio = float(spread(row)[0]) / fairness(published(row))["STD"]
    assert 2 - 1e-9 <= ratio <= math.sqrt(2 * groups) + 1e-9


def test_calling_the_opposite_changes_utility_alone():
    A = random_accuracies(3)
    v, opposite = fairness(published(A)), fairness(published(1 - A))
    for name in (*NAIVE, *AVERAGED):
        assert opposite[name] == pytest.approx(v[name], abs=1e-12)
    assert all(abs(opposite[name] - v[name]) > 1e-4 for name in REGULARISED)


@pytest.mark.parametrize("A", [[[0.0] * 4] + [[1.0] * 4] * 3, [[1.0] * 4] + [[0.0] * 4] * 3, [[1.0] * 4] * 4])
@pytest.mark.parametrize("convention", [OFFICIAL, PAPER])
def test_all_fake_all_real_and_perfect_score_twelve_zeros(A, convention):
    np.testing.assert_array_equal(vector(fairness(published(np.array(A)), convention)), np.zeros(12))


def test_names_and_order_of_groups_and_forgeries_change_nothing(golden):
    data = golden("scores_full")
    original = counted(data)
    renamed = RateTable.from_scores(
        data["scores"],
        data["labels"],
        np.array(["z", "b", "q", "a"])[data["group"]],
        np.array(["real", *"lkjihgfedcb"])[data["approach"]],
    )
    for convention in (OFFICIAL, PAPER):
        np.testing.assert_allclose(
            vector(fairness(renamed, convention)), vector(fairness(original, convention)), atol=1e-12
        )


def test_twice_the_data_set_changes_nothing(golden):
    data = golden("scores_uneven")
    twice = counted({name: np.concatenate([data[name]] * 2) for name in COLUMNS})
    for convention in (OFFICIAL, PAPER):
        np.testing.assert_allclose(
            vector(fairness(twice, convention)), vector(fairness(counted(data), convention)), atol=1e-12
        )


def test_twice_one_cell_changes_pooled_naive_values_only(golden):
    data = golden("scores_full")
    once = counted(data)
    leading = int(np.argmax(once.k[1:].sum(axis=0) / once.n[1:].sum(axis=0)))
    cell = (data["approach"] == 3) & (data["group"] == leading)
    more = counted({name: np.concatenate([data[name], data[name][cell]]) for name in COLUMNS})
    np.testing.assert_allclose(vector(fairness(more)), vector(fairness(once)), atol=1e-12)
    paper_once, paper_more = fairness(once, PAPER), fairness(more, PAPER)
    assert all(abs(paper_more[name] - paper_once[name]) > 1e-6 for name in NAIVE)
    for name in AVERAGED:
        assert paper_more[name] == pytest.approx(paper_once[name], abs=1e-12)


def test_pooled_positive_rates_equal_fairlearn(golden):
    fairlearn = pytest.importorskip("fairlearn.metrics")
    for case in ("uneven", "ties"):
        data = golden(f"scores_{case}")
        v = fairness(counted(data), PAPER)
        called = (data["scores"] >= 0.5).astype(int)
        of = {"y_true": data["labels"], "y_pred": called, "sensitive_features": data["group"]}
        assert v["DPD"] == pytest.approx(fairlearn.demographic_parity_difference(**of), abs=1e-12)
        assert v["DEOdds"] == pytest.approx(fairlearn.equalized_odds_difference(**of, agg="mean"), abs=1e-12)
        assert v["DEO"] == pytest.approx(fairlearn.equal_opportunity_difference(**of), abs=1e-12)


def test_fairlearn_gets_the_same_accuracies(golden):
    pytest.importorskip("fairlearn.metrics")
    data = golden("scores_two_groups")
    table = ScoreTable.create(*(data[name] for name in ("scores", "labels", "group", "approach")))
    frame = to_metric_frame(table)
    rates = table.rate_table()
    for f, approach in enumerate(rates.approaches):
        for s, group in enumerate(rates.groups):
            assert frame.by_group["accuracy"][approach, group] == pytest.approx(rates.accuracy[f, s])


def test_macro_positive_rates_count_false_and_true_positives_together():
    # A group that is called fake more often: large as positive rate, cancelled as accuracy.
    A = np.array([[0.6, 0.8], [0.9, 0.7]])
    assert fairness(published(A))["DPD"] == pytest.approx(0.0, abs=1e-12)
    assert fairness(published(A), replace(OFFICIAL, naive_dpd="positive_rate"))["DPD"] == pytest.approx(0.2)


def test_pooled_utility_weighs_groups_by_their_images():
    k, n = np.array([[9, 5]]), np.array([[90, 10]])
    assert utilities(k, n, "macro")[0] == pytest.approx((0.1 + 0.5) / 2)
    assert utilities(k, n, "pooled")[0] == pytest.approx(14 / 100)


def test_an_approach_that_nobody_detects_contributes_zero_and_is_named():
    A = np.array([[0.9, 0.8], [0.0, 0.0], [0.5, 0.4]])
    v = fairness(published(A), EQ3)
    assert v.degenerate_rows == ("approach 1",)
    assert v["URDEO"] == pytest.approx((0 + 0.1 / 0.45) / 2)
    assert fairness(published(A)).degenerate_rows == ()


def test_empty_cells_are_named_unless_a_policy_is_chosen():
    table = published(np.array([[0.9, 0.8, 0.7], [0.5, np.nan, 0.4], [0.3, np.nan, np.nan]]))
    with pytest.raises(UserError, match=r"no image in approach 1/group 1, approach 2/group 1, approach 2/group 2"):
        fairness(table)
    v = fairness(table, empty="drop")
    assert v.dropped_rows == ("approach 2",)
    assert v["AADPD"] == pytest.approx((0.2 + 0.1) / 2)
    assert any("approach 2" in line for line in v.warnings)


def test_nan_reaches_just_what_an_empty_cell_touches():
    fake_cell = fairness(published(np.array([[0.9, 0.8], [0.5, np.nan], [0.3, 0.2]])), empty="nan")
    assert all(math.isnan(value) for value in fake_cell.values())
    real_cell = fairness(published(np.array([[0.9, np.nan], [0.5, 0.1], [0.3, 0.2]])), empty="nan")
    finite = {name for name, value in real_cell.items() if not math.isnan(value)}
    assert finite == {"DEO", "AADEO", "URDEO"}
    # As numpy lets NaN through a plain range of plain means.
    assert real_cell["DEO"] == pytest.approx(np.ptp(np.array([[0.5, 0.1], [0.3, 0.2]]).mean(axis=0)))


def test_odds_are_undefined_without_reals_and_opportunity_without_fakes():
    no_reals = fairness(published(np.array([[np.nan, np.nan], [0.5, 0.1], [0.3, 0.2]])))
    assert {name for name, value in no_reals.items() if value is None} == {"DEOdds", "AADEOdds", "URDEOdds"}
    assert no_reals["AADPD"] == no_reals["AADEO"] == pytest.approx(0.25)
    assert no_reals["STD"] == pytest.approx(np.std([0.4, 0.15]))
    no_fakes = fairness(published(np.array([[0.9, 0.8]])))
    undefined = {name for name, value in no_fakes.items() if value is None}
    assert undefined == {name for name in METRIC_NAMES if "DEO" in name}
    assert no_fakes["AADPD"] == pytest.approx(0.1)
    assert no_reals.warnings
    assert no_fakes.warnings


def test_one_group_has_zeros_and_a_warning():
    v = fairness(published(np.array([[0.9], [0.4]])))
    np.testing.assert_array_equal(vector(v), np.zeros(12))
    assert any("one group" in line for line in v.warnings)


@pytest.mark.parametrize("empty", ["raise", "nan"])
def test_json_keeps_convention_and_values(empty):
    table = published(np.array([[0.9, 0.8], [0.0, 0.0], [0.5, 0.4 if empty == "raise" else np.nan]]))
    values = fairness(table, EQ3, empty)
    text = json.dumps(values.to_json(), allow_nan=False)
    back = FairnessValues.from_json(json.loads(text))
    np.testing.assert_array_equal(vector(back), vector(values))
    assert (back.convention, back.degenerate_rows, back.warnings) == (
        values.convention,
        values.degenerate_rows,
        values.warnings,
    )
    undefined = fairness(published(np.array([[0.9, 0.8]])))
    assert FairnessValues.from_json(json.loads(json.dumps(undefined.to_json())))["DEO"] is None


def test_values_carry_the_threshold_that_made_the_decisions():
    columns = [0.6, 0.2, 0.7, 0.9], [1, 0, 1, 0], list("aabb"), ["x", "real"] * 2
    assert fairness(RateTable.from_scores(*columns, threshold=0.8)).convention.threshold == 0.8
    assert fairness(RateTable.from_scores(*columns, threshold={"a": 0.1, "b": 0.3})).convention.threshold is None


def test_conventions_know_their_names_and_refuse_nonsense():
    assert (OFFICIAL.name, PAPER.name, EQ3.name) == ("official", "paper", "custom")
    assert replace(PAPER, threshold=0.7).name == "paper"
    for wrong in ({"utility_offset": -1.0}, {"utility_offset": math.nan}, {"ddof": 2}):
        with pytest.raises(UserError):
            Convention(**wrong)


def test_pooling_published_accuracies_warns_that_cells_count_alike():
    assert any("no counts" in line for line in fairness(published(random_accuracies(1)), PAPER).warnings)
