"""Group thresholds on a calibration split of people (paper supplement, Tables 6 and 7; specification, section 3.9)."""

import numpy as np
import pytest

from fairfd.evaluation.audit.thresholds import best_threshold, calibration_split, group_thresholds, threshold_audit
from tenfold.errors import UserError


def test_golden_thresholds_are_reproduced(golden):
    data = golden("thresholds_and_peer_metrics")
    found = group_thresholds(data["scores"], data["labels"], data["group"])
    np.testing.assert_allclose(list(found.values()), data["best_threshold"], rtol=0, atol=1e-9)
    for s in range(4):
        chosen = data["group"] == s
        threshold, merit = best_threshold(data["scores"][chosen], data["labels"][chosen])
        assert merit == pytest.approx(data["best_balanced_accuracy"][s], abs=1e-9)
        called = data["scores"][chosen] >= np.float32(threshold)
        fake = data["labels"][chosen] == 1
        assert (called[fake].mean() + (~called[~fake]).mean()) / 2 == pytest.approx(merit)


def test_no_threshold_does_better():
    rng = np.random.default_rng(0)
    for _ in range(20):
        score, label = rng.integers(0, 10, 40) / 10, np.append(rng.integers(0, 2, 38), [0, 1])
        threshold, merit = best_threshold(score, label)
        grid = np.linspace(0, 1.1, 221)
        rates = [((score >= t)[label == 1].mean() + (score < t)[label == 0].mean()) / 2 for t in grid]
        assert merit == pytest.approx(max(rates))
        assert threshold in score or threshold > 1


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken():
    # Every threshold in (.2, .9] parts them; the candidates are the scores themselves.
    assert best_threshold(np.array([0.1, 0.2, 0.9, 0.95]), np.array([0, 0, 1, 1])) == (0.9, 1.0)
    assert best_threshold(np.array([0.3, 0.55, 0.8]), np.array([1, 0, 1]))[0] == pytest.approx(0.8)
    # Reals score above fakes: calling nothing fake and calling all fake are equally good.
    assert best_threshold(np.array([0.8, 0.9]), np.array([1, 0])) == (0.8, 0.5)
    nothing, _ = best_threshold(np.array([0.01, 1.0]), np.array([1, 0]))
    assert nothing in (0.01, pytest.approx(1, abs=1e-6))


def test_nobody_sets_and_judges_a_threshold(golden):
    data = golden("scores_full")
    columns = [data[name] for name in ("scores", "labels", "group", "approach", "identity")]
    found = threshold_audit(*columns, fraction=0.4, seed=3)
    calibrated, judged = set(data["identity"][found.calibration]), set(data["identity"][~found.calibration])
    assert not calibrated & judged
    assert set(map(int, found.after.identities)) == judged
    chosen = found.calibration
    assert found.thresholds == group_thresholds(*(column[chosen] for column in columns[:3]))
    np.testing.assert_array_equal(found.before.n, found.after.n)
    assert found.after.threshold == found.thresholds
    assert any("unlawful" in line for line in found.warnings)
    again = threshold_audit(*columns, fraction=0.4, seed=3)
    assert again.thresholds == found.thresholds
    assert (threshold_audit(*columns, fraction=0.4, seed=4).calibration != chosen).any()


def test_group_thresholds_raise_each_groups_own_balanced_accuracy(golden):
    data = golden("scores_full")
    columns = [data[name] for name in ("scores", "labels", "group", "approach", "identity")]
    found = threshold_audit(*columns)
    for s, name in enumerate(found.before.groups):
        chosen = found.calibration & (data["group"] == s)
        score, fake = data["scores"][chosen], data["labels"][chosen] == 1
        at_half = ((score >= 0.5)[fake].mean() + (score < 0.5)[~fake].mean()) / 2
        assert found.balanced_acc[name] >= at_half - 1e-12


def test_the_split_takes_some_and_never_all_of_each_group():
    group_of = np.repeat([0, 1, 2], [2, 10, 5])
    for fraction, sizes in ((0.01, [1, 1, 1]), (0.5, [1, 5, 2]), (0.99, [1, 9, 4])):
        chosen = calibration_split(group_of, "abc", fraction, 0)
        assert np.bincount(group_of[chosen]).tolist() == sizes


def test_impossible_splits_are_refused():
    columns = [0.1, 0.9, 0.2, 0.8], [0, 1, 0, 1], list("aabb"), ["real", "x"] * 2
    with pytest.raises(UserError, match="identity column"):
        threshold_audit(*columns, None)
    with pytest.raises(UserError, match="group a has 1 identities"):
        threshold_audit(*columns, list("ppqq"))
    with pytest.raises(UserError, match="lacks real or fake"):
        threshold_audit(*columns, list("pqrs"))
    with pytest.raises(UserError, match="between 0 and 1"):
        threshold_audit(*columns, list("pqrs"), fraction=1.0)
    with pytest.raises(UserError, match="group b lacks real or fake"):
        group_thresholds([0.1, 0.9, 0.2], [0, 1, 0], list("aab"))
