"""Metrics against golden values, scikit-learn and their invariants."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from pfrforgery.evaluation.metrics import binary_metrics, over_clients, video_scores
from tenfold import UserError

Golden = Callable[[str], dict[str, np.ndarray]]


def test_frame_and_video_metrics_are_the_golden_ones(golden: Golden) -> None:
    data = golden("metrics")
    found = binary_metrics(data["scores"], data["labels"])
    expected = {"acc": "acc_05", "bacc": "balanced_acc", "auc": "auc", "eer": "eer", "ap": "ap"}
    for name, key in expected.items():
        assert getattr(found, name) == pytest.approx(float(data[key]), abs=1e-6), name
    videos = [f"{video:05d}" for video in data["video_ids"].tolist()]
    scores, labels = video_scores(data["frame_scores"], data["frame_labels"], videos)
    np.testing.assert_allclose(scores, data["video_scores"], atol=1e-6)
    np.testing.assert_array_equal(labels, data["video_labels"])
    of_videos = binary_metrics(data["frame_scores"], data["frame_labels"], videos)
    assert of_videos.auc == pytest.approx(float(data["video_auc"]), abs=1e-6)
    assert of_videos.eer == pytest.approx(float(data["video_eer"]), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=60))
def test_metrics_agree_with_scikit_learn_and_with_themselves(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in pairs]) / 20
    labels = np.array([int(label) for _, label in pairs])
    found = binary_metrics(scores, labels)
    if labels.min() == labels.max():
        assert math.isnan(found.auc)
        assert math.isnan(found.eer)
        return
    assert found.auc == pytest.approx(roc_auc_score(labels, scores))
    assert found.ap == pytest.approx(average_precision_score(labels, scores))
    assert found.auc == pytest.approx(1 - binary_metrics(-scores, labels).auc)
    assert binary_metrics(scores**3, labels).auc == pytest.approx(found.auc)
    assert 0 <= found.eer <= 1


def test_constant_scores_tell_nothing() -> None:
    found = binary_metrics(np.full(10, 0.3), np.arange(10) % 2)
    assert (found.auc, found.eer, found.acc) == (0.5, 0.5, 0.5)
    assert binary_metrics(np.full(10, 0.5), np.ones(10, int)).acc == 1


def test_the_nearest_point_is_an_option() -> None:
    scores, labels = np.array([0.9, 0.8, 0.7, 0.2]), np.array([1, 0, 1, 0])
    assert binary_metrics(scores, labels, eer_method="nearest").eer in (0.0, 0.5)


def test_over_clients_leaves_out_what_is_undefined() -> None:
    found = over_clients([0.5, math.nan, 0.9], [10, 10, 30])
    assert (found.mean, found.worst) == (pytest.approx(0.7), 0.5)
    assert found.weighted == pytest.approx(0.8)
    assert over_clients([0.1, 0.4], [1, 1], lower_is_better=True).worst == 0.4
    assert math.isnan(over_clients([math.nan], [3]).mean)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [([0.1, math.nan], [0, 1], "NaN"), ([], [], "0 scores"), ([0.1, 0.2], [0, 2], "0 .real. or 1")],
)
def test_bad_scores_are_refused(scores: list[float], labels: list[int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        binary_metrics(np.array(scores, np.float64), np.array(labels, np.int64))
    with pytest.raises(UserError, match="both labels"):
        binary_metrics(np.array([0.1, 0.2]), np.array([0, 1]), ["a", "a"])
