"""Reported numbers, class order and the learning-rate sequence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import UserError
from vptnsp.data.tasks import class_order
from vptnsp.evaluation.metrics import (
    average_forgetting,
    average_incremental_accuracy,
    final_average_accuracy,
    pooled_accuracy,
)
from vptnsp.evaluation.protocols import Counts, StreamRecord, to_lists, to_matrix
from vptnsp.training.step import learning_rates


@pytest.mark.parametrize("tasks", [3, 5, 10])
def test_golden_forgetting_and_pooled_accuracy_after_each_task(golden, tasks):
    data = golden("protocol")
    matrix, samples = data[f"accmat_T{tasks}"].astype(np.float64), data[f"numsamples_T{tasks}"]
    for after in range(tasks):
        # The official code was handed the whole matrix: its best is over later rows too.
        ours = average_forgetting(matrix, "official", after)
        assert ours == pytest.approx(data[f"forgetting_T{tasks}"][after], abs=1e-6)
    np.testing.assert_allclose(pooled_accuracy(matrix, samples), data[f"weighted_acc_T{tasks}"], atol=1e-6)


def test_golden_class_orders(golden):
    data = golden("protocol")
    for key in data:
        if key.startswith("order_"):
            classes, tasks, seed = (int(part[1:].removeprefix("eed")) for part in key.split("_")[1:])
            np.testing.assert_array_equal(class_order(classes, tasks, seed), data[key])


@pytest.mark.parametrize("kind", ["vpt", "clip", "alt"])
def test_golden_learning_rates_decay_one_epoch_early(golden, kind):
    data = golden("protocol")
    expected, milestones = data[f"lr_{kind}"], tuple(data[f"lr_{kind}_milestones"].tolist())
    ours = learning_rates(len(expected), float(expected[0]), "official", milestones)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert ours != learning_rates(len(expected), float(expected[0]), "paper", milestones)


def test_ten_epochs_decay_after_four_and_seven_in_the_official_schedule():
    np.testing.assert_allclose(learning_rates(10, 1.0, "official"), [1] * 4 + [0.1] * 3 + [0.01] * 3)
    np.testing.assert_allclose(learning_rates(10, 1.0, "paper"), [1] * 5 + [0.1] * 3 + [0.01] * 2)


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9))
@settings(max_examples=25, deadline=None)
def test_official_forgetting_is_never_negative_and_never_below_the_papers(values):
    matrix = np.tril(np.array(values).reshape(3, 3))
    official = average_forgetting(matrix, "official")
    assert official >= 0
    assert official >= average_forgetting(matrix) - 1e-12


def test_the_papers_forgetting_can_be_negative_and_is_zero_for_one_task():
    improving = np.array([[0.5, np.nan], [0.8, 0.9]])
    assert average_forgetting(improving) == pytest.approx(-0.3)
    assert average_forgetting(np.array([[0.7]])) == 0
    recovering = np.array([[0.9, 0, 0], [0.5, 0.8, 0], [0.6, 0.7, 0.9]])
    assert average_forgetting(recovering) == pytest.approx((0.3 + 0.1) / 2)  # the best of all rows before, not the last
    assert final_average_accuracy(improving) == pytest.approx(0.85)
    assert average_incremental_accuracy(improving, np.array([10, 30])) == pytest.approx((0.5 + 0.875) / 2)


def test_a_record_reports_both_accuracies_and_survives_json():
    record = StreamRecord(2)
    record.add(0, 0, Counts(10, 8, 9))
    record.add(1, 0, Counts(10, 6, 9))
    record.add(1, 1, Counts(30, 24, 30))
    summary = record.summary()
    assert summary["acc_task_mean"] == pytest.approx(0.7)
    assert summary["acc_pooled"] == pytest.approx(0.75)
    assert summary["forgetting"] == pytest.approx(0.2)
    assert summary["task_aware_forgetting"] == pytest.approx(0.0)
    assert summary["matrix"][0][1] is None
    np.testing.assert_array_equal(to_matrix(to_lists(record.accuracy)), record.accuracy)


def test_an_uneven_deal_is_refused():
    with pytest.raises(UserError, match="100 classes cannot be dealt out to 7"):
        class_order(100, 7, 0)
