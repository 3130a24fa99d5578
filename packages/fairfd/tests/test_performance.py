"""Utility, the near-trivial gate, peer metrics and trivial detectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from fairfd.benchmark import group_oracle, trivial_detectors
from fairfd.evaluation.metrics import auc, average_precision, equal_error_rate, utility, utility_gate
from fairfd.evaluation.related_metrics import group_rates, peer_metrics
from fairfd.method.fairness import OFFICIAL, PAPER, fairness
from fairfd.method.rates import RateTable
from tenfold.errors import UserError

CASES = ("full", "uneven", "one_approach", "two_groups", "allfake", "allreal", "ties", "empty_cell")


def columns(data):
    return data["scores"], data["labels"], data["group"], data["approach"]


def test_golden_utility_is_reproduced(golden):
    for case in CASES:
        data = golden(f"scores_{case}")
        u = utility(*columns(data))
        assert u.images == len(data["scores"])
        assert u.auc == pytest.approx(float(data["auc"]), abs=1e-9)
        assert u.acc == pytest.approx(float(data["accuracy"]), abs=1e-9)
        assert u.balanced_acc == pytest.approx(float(data["balanced_accuracy"]), abs=1e-9)
        assert u.ap == pytest.approx(float(data["average_precision"]), abs=1e-9)
        np.testing.assert_allclose([card.auc for card in u.per_group.values()], data["auc_by_group"], atol=1e-9)
        np.testing.assert_allclose(u.per_cell, data["auc_by_approach_group"], atol=1e-9, equal_nan=True)


def test_golden_peer_metrics_are_reproduced(golden):
    data = golden("thresholds_and_peer_metrics")
    found = peer_metrics(data["scores"], data["labels"], data["group"])
    for name in ("F_DP", "F_MEO", "F_OAE", "F_EO", "F_EFPR"):
        assert getattr(found, name) == pytest.approx(float(data[name]), abs=1e-9)
    rates = group_rates(data["scores"], data["labels"], data["group"])
    for name in ("tpr", "fpr", "positive_rate", "acc"):
        np.testing.assert_allclose(getattr(rates, name), data[name], atol=1e-9)
    assert found.worst_tpr == pytest.approx(data["tpr"].min())
    assert found.worst_tnr == pytest.approx(1 - data["fpr"].max())
    for case in CASES:
        scores = golden(f"scores_{case}")
        peers = peer_metrics(*columns(scores)[:3])
        assert peers.fpr_gap == pytest.approx(float(scores["fpr_gap"]), abs=1e-9)
        assert pytest.approx(float(scores["fairlearn_eo_worst_case"]), abs=1e-9) == peers.F_MEO


@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_auc_counts_ties_as_one_half(seed, levels):
    rng = np.random.default_rng(seed)
    label = np.concatenate([[0, 1], rng.integers(0, 2, 60)])
    score = rng.integers(0, levels, len(label)) / levels
    fake, real = score[label == 1][:, None], score[label == 0]
    by_pairs = (fake > real).mean() + (fake == real).mean() / 2
    assert auc(score, label) == pytest.approx(by_pairs, abs=1e-12)
    assert auc(score, label) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert average_precision(score, label) == pytest.approx(average_precision_score(label, score), abs=1e-12)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    assert equal_error_rate(score, label) == pytest.approx(fpr[np.argmin(np.abs(1 - tpr - fpr))], abs=1e-12)


def test_auc_is_unchanged_by_monotone_maps_and_by_a_second_softmax(golden):
    data = golden("scores_full")
    scores, label = data["scores"].astype(np.float64), data["labels"]
    assert auc(scores**3, label) == auc(scores, label)
    # The official Capsule puts (1 - p, p) through softmax again.
    twice = np.exp(scores) / (np.exp(scores) + np.exp(1 - scores))
    once, again = utility(scores, *columns(data)[1:]), utility(twice, *columns(data)[1:])
    assert (again.auc, again.acc, again.balanced_acc) == (once.auc, once.acc, once.balanced_acc)
    assert 0.268 < twice.min() <= twice.max() < 0.732


def test_trivial_detectors_are_perfectly_fair_and_gated(golden):
    data = golden("scores_full")
    rows = trivial_detectors(data["group"])
    assert list(rows) == ["all-fake", "all-real", "random", "group-oracle"]
    for scores in rows.values():
        assert utility_gate(utility(scores, *columns(data)[1:])).near_trivial
    for name in ("all-fake", "all-real"):
        table = RateTable.from_scores(rows[name], *columns(data)[1:])
        for convention in (OFFICIAL, PAPER):
            assert set(fairness(table, convention).values()) == {0.0}
    assert utility(rows["all-fake"], *columns(data)[1:]).acc == pytest.approx(11 / 12)
    oracle = RateTable.from_scores(rows["group-oracle"], *columns(data)[1:])
    assert fairness(oracle)["AADPD"] == 1


def test_a_perfect_detector_is_fair_and_passes_the_gate(golden):
    data = golden("scores_full")
    perfect = data["labels"].astype(float)
    assert set(fairness(RateTable.from_scores(perfect, *columns(data)[1:])).values()) == {0.0}
    assert utility_gate(utility(perfect, *columns(data)[1:])).reasons == ()


def test_the_gate_says_which_limit_was_missed():
    # A good ranking with a threshold that calls nearly everything fake.
    scores = np.concatenate([np.linspace(0.45, 0.7, 100), np.linspace(0.6, 1, 100)])
    card = utility(scores, np.repeat([0, 1], 100), np.tile([0, 1], 100), np.repeat([0, 1], 100), threshold=0.46)
    gate = utility_gate(card)
    assert gate.near_trivial
    assert any(reason.startswith("TNR 0.0") for reason in gate.reasons)
    assert not any("AUC" in reason for reason in gate.reasons)


def test_numbers_without_reals_or_fakes_are_none_not_zero():
    u = utility([0.9, 0.2, 0.7], [1, 1, 1], ["a", "a", "b"], ["x", "x", "x"])
    assert (u.auc, u.eer, u.ap, u.balanced_acc, u.tnr) == (None,) * 5
    assert u.tpr == pytest.approx(2 / 3)
    assert np.isnan(u.per_cell).all()
    assert utility_gate(u).reasons == ()
    # fairlearn would take group b's missing TPR as 0.
    peers = peer_metrics([0.9, 0.2, 0.1], [1, 0, 0], ["a", "a", "b"])
    assert (peers.F_MEO, peers.worst_tpr) == (None, None)
    assert peers.fpr_gap == 0


def test_utility_follows_group_thresholds():
    of = [1, 1], ["a", "b"], ["x", "x"]
    assert utility([0.4, 0.4], *of, threshold={"a": 0.3, "b": 0.5}).acc == 0.5


def test_the_group_oracle_needs_an_existing_group():
    with pytest.raises(UserError, match="no image of group z; choose among a, b"):
        group_oracle(["a", "b"], "z")
