"""The accuracy matrix and its counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairfd.method.rates import RateTable
from tenfold.errors import UserError

CASES = ("full", "uneven", "one_approach", "two_groups", "allfake", "allreal", "ties", "empty_cell")


def test_scores_give_the_golden_counts(golden):
    for case in CASES:
        data = golden(f"scores_{case}")
        columns = data["scores"], data["labels"], data["group"], data["approach"]
        by_identity = RateTable.from_scores(*columns, data["identity"])
        by_image = RateTable.from_scores(*columns)
        for table in (by_identity, by_image):
            np.testing.assert_array_equal(table.k, data["n_correct"])
            np.testing.assert_array_equal(table.n, data["n_total"])
            np.testing.assert_allclose(table.accuracy, data["acc"], atol=1e-12)
            assert table.approaches[0] == "real"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_score_of_exactly_the_threshold_is_fake(dtype):
    for threshold in (0.5, 0.7):
        scores = np.array([threshold, threshold], dtype)
        table = RateTable.from_scores(scores, [0, 1], ["a", "a"], ["real", "swap"], threshold=threshold)
        np.testing.assert_array_equal(table.k, [[0], [1]])


def test_a_group_can_have_its_own_threshold():
    columns = [0.4, 0.4], [1, 1], ["a", "b"], ["swap", "swap"]
    table = RateTable.from_scores(*columns, threshold={"a": 0.3, "b": 0.5})
    np.testing.assert_array_equal(table.k[1], [1, 0])
    with pytest.raises(UserError, match="no threshold for group b"):
        RateTable.from_scores(*columns, threshold={"a": 0.3})


@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 4), rows=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_counts_equal_a_count_by_hand(seed, groups, rows):
    rng = np.random.default_rng(seed)
    images = int(rng.integers(1, 60))
    identity = rng.integers(0, 7, images)
    group, approach = identity % groups, rng.integers(0, rows, images)
    scores = rng.integers(0, 5, images) / 4
    label = (approach > 0).astype(int)
    table = RateTable.from_scores(scores, label, group, approach, identity)
    for i, name in enumerate(table.identities):
        for f, row in enumerate(table.approaches):
            chosen = (identity == int(name)) & (approach == (0 if row == "real" else int(row)))
            assert table.total[i, f] == chosen.sum()
            assert table.correct[i, f] == ((scores >= 0.5) == label)[chosen].sum()


def test_strings_integers_and_lists_name_the_same_cells():
    scores, labels = [0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0]
    as_numbers = RateTable.from_scores(scores, labels, [10, 10, 9, 9], [3, 0, 3, 0])
    as_strings = RateTable.from_scores(scores, labels, list("baab"), np.array(["x", "data", "x", "data"]), real="data")
    assert (as_numbers.groups, as_numbers.approaches) == (("9", "10"), ("real", "3"))
    assert (as_strings.groups, as_strings.approaches) == (("a", "b"), ("real", "x"))
    renamed = RateTable.from_scores(scores, labels, [1, 1, 2, 2], [5, 7, 5, 7], real=7)
    assert renamed.approaches == ("real", "5")


def test_given_orders_fix_rows_and_columns_and_keep_absent_ones_empty():
    table = RateTable.from_scores(
        [0.9, 0.1], [1, 0], ["b", "b"], ["x", "real"], group_order=["c", "b"], approach_order=["y", "x"]
    )
    assert (table.groups, table.approaches) == (("c", "b"), ("real", "y", "x"))
    np.testing.assert_array_equal(table.n, [[0, 1], [0, 0], [0, 1]])
    assert ("real", "c") in table.empty_cells
    assert np.isnan(table.accuracy[1]).all()


def test_no_real_image_is_no_empty_cell():
    table = RateTable.from_scores([0.9, 0.8], [1, 1], ["a", "b"], ["x", "x"])
    assert table.approaches == ("real", "x")
    assert not table.has_real
    assert table.empty_cells == ()


def test_tables_count_clusters_and_can_be_thinned(golden):
    data = golden("scores_uneven")
    columns = data["scores"], data["labels"], data["group"], data["approach"]
    table = RateTable.from_scores(*columns, data["identity"])
    groups = [len(np.unique(data["identity"][data["group"] == s])) for s in range(len(table.groups))]
    np.testing.assert_array_equal(table.clusters_per_group, groups)
    assert (table.clusters_per_cell <= table.n).all()
    assert (table.clusters_per_cell <= table.clusters_per_group).all()
    np.testing.assert_array_equal(RateTable.from_scores(*columns).clusters_per_group, table.n.sum(axis=0))
    some = table.take(np.flatnonzero(table.group_of == 0)[:3])
    assert some.clusters_per_group.tolist()[0] == 3
    assert len(some.identities) == 3


def test_published_accuracies_are_kept_as_they_are():
    A = [[0.9, 0.8], [0.3, np.nan]]
    table = RateTable.from_accuracy(A, ["real", "x"], ["a", "b"])
    np.testing.assert_array_equal(table.accuracy, A)
    assert table.empty_cells == (("x", "b"),)


def test_counts_make_a_table_of_independent_images():
    k, n = np.array([[3, 0], [2, 5]]), np.array([[4, 0], [2, 9]])
    table = RateTable.from_counts(k, n, ["real", "x"], ["a", "b"])
    np.testing.assert_array_equal(table.k, k)
    np.testing.assert_array_equal(table.n, n)
    assert table.unit == "image"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [np.nan, 0.1, 0.2, np.inf]}, r"not a finite number at positions 0, 3"),
        ({"scores": [-3.0, 0.1, 0.2, 7.5]}, r"from -3 to 7.5, outside \[0, 1\].*--logits"),
        ({"labels": [2, 0, 1, 1]}, r"neither 0 \(real\) nor 1 \(fake\) at position 0"),
        ({"labels": ["fake", "real", "fake", "fake"]}, "use the numbers 0"),
        ({"labels": [0, 0, 1, 1]}, "label and approach disagree at position 0"),
        ({"identities": ["p", "p", "p", "q"]}, r"identity in two groups: p \(the first in a and b\)"),
        ({"groups": ["a", "a", "b"]}, "columns differ in length"),
        ({"groups": [["a", "a", "b", "b"]]}, "one value per image"),
        ({"groups": ["a", 1, "b", "b"]}, "strings or integers"),
        ({"groups": [0.5, 1.0, 2.0, 2.0]}, "strings or integers"),
        ({"group_order": ["a"]}, "group: b in the data but not in the given order"),
        ({"group_order": ["a", "b", "a"]}, "names something twice"),
        ({"approach_order": ["y"]}, "approach: x in the data"),
        ({"scores": [], "labels": [], "groups": [], "approaches": []}, "no images"),
        ({"real": "genuine"}, "'real' names the real row"),
        ({"scores": [[0.1, 0.2, 0.3, 0.4]]}, "not an array of shape"),
    ],
)
def test_bad_columns_are_named_in_one_line(change, message):
    columns = {
        "scores": [0.9, 0.1, 0.8, 0.2],
        "labels": [1, 0, 1, 1],
        "groups": ["a", "a", "b", "b"],
        "approaches": ["x", "real", "x", "x"],
    }
    with pytest.raises(UserError, match=message) as caught:
        RateTable.from_scores(**(columns | change))
    assert "\n" not in str(caught.value)


def test_only_the_first_five_places_are_named():
    labels = [0] * 9
    with pytest.raises(UserError, match=r"positions 0, 1, 2, 3, 4 and 4 more"):
        RateTable.from_scores([0.5] * 9, labels, ["a"] * 9, ["x"] * 9)


@pytest.mark.parametrize(
    ("A", "approaches", "message"),
    [
        ([[90.0, 80.0]], ["real"], r"must lie in \[0, 1\]"),
        ([[0.9, 0.8]], ["swap"], "first row must be 'real'"),
        ([[0.9, 0.8]], ["real", "swap"], "does not fit"),
        ([[0.9, 0.8]] * 2, ["real", "real"], "distinct"),
    ],
)
def test_bad_published_tables_are_refused(A, approaches, message):
    with pytest.raises(UserError, match=message):
        RateTable.from_accuracy(A, approaches, ["a", "b"])


def test_impossible_counts_are_refused():
    one = np.array([[1]])
    with pytest.raises(UserError, match="0 <= correct <= total"):
        RateTable.from_counts(2 * one, one, ["real"], ["a"])
    with pytest.raises(UserError, match="0 <= correct <= total"):
        RateTable.from_identity_counts(2 * one, one, np.array([0]), ["p"], ["real"], ["a"])
