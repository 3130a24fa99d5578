"""When a claim holds, and when it does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reproduce.claims import Claim, Experiment, Suite, Verdict, judge, mean_interval


def claim(
    better: str = "higher", margin: float = 0.0, baseline: str | float = "rival", recorded: Verdict = Verdict.HOLDS
) -> Claim:
    return Claim(
        id="pack/ours-is-better",
        statement="Ours is better.",
        source="Table 1",
        experiment="trial",
        metric="score",
        method="ours",
        baseline=baseline,
        better=better,  # ty: ignore[invalid-argument-type]  # a literal at every call
        recorded={"smoke": recorded},
        margin=margin,
    )


def trial(ours: list[float], rival: list[float]) -> list[dict[str, dict[str, float]]]:
    return [{"ours": {"score": a}, "rival": {"score": b}} for a, b in zip(ours, rival, strict=True)]


def test_the_interval_is_students() -> None:
    values = [0.1, 0.4, 0.35, 0.2]
    assert mean_interval(values) == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(0.95))
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert mean_interval([0.5]) is None


def test_the_test_is_paired() -> None:
    # The seeds differ by far more than the arms: only the pairing shows the difference.
    ours, rival = [0.11, 0.52, 0.91], [0.10, 0.50, 0.90]
    assert judge(claim(), "smoke", trial(ours, rival)).verdict is Verdict.INCONCLUSIVE
    assert judge(claim(), "smoke", trial([0.111, 0.511, 0.911], rival)).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("ours", "better", "margin", "verdict"),
    [
        ([0.8, 0.82, 0.81], "higher", 0.0, Verdict.HOLDS),
        ([0.8, 0.82, 0.81], "lower", 0.0, Verdict.DOES_NOT_HOLD),
        ([0.2, 0.22, 0.21], "lower", 0.0, Verdict.HOLDS),
        ([0.2, 0.22, 0.21], "higher", 0.0, Verdict.DOES_NOT_HOLD),
        ([0.8, 0.82, 0.81], "higher", 0.5, Verdict.DOES_NOT_HOLD),
        ([0.2, 0.22, 0.21], "lower", 0.5, Verdict.DOES_NOT_HOLD),
        ([0.1, 0.9, 0.6], "higher", 0.0, Verdict.INCONCLUSIVE),
        ([0.5, 0.5, 0.5], "higher", 0.0, Verdict.DOES_NOT_HOLD),
        ([0.8], "higher", 0.0, Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts(ours: list[float], better: str, margin: float, verdict: Verdict) -> None:
    assert judge(claim(better, margin), "smoke", trial(ours, [0.5] * len(ours))).verdict is verdict
    assert judge(claim(better, margin, baseline=0.5), "smoke", trial(ours, ours)).verdict is verdict


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.floats(-1, 1))
def test_turning_everything_round_turns_the_verdict_round(values: list[float], baseline: float) -> None:
    upward = judge(claim("higher", baseline=baseline), "smoke", trial(values, values))
    downward = judge(claim("lower", baseline=-baseline), "smoke", trial([-each for each in values], values))
    assert upward.verdict is downward.verdict
    assert np.isclose(upward.effect, -downward.effect)


def test_regression_is_a_recorded_claim_that_fails() -> None:
    worse, unclear = trial([0.1, 0.11, 0.12], [0.5] * 3), trial([0.1, 0.9, 0.6], [0.5] * 3)
    assert judge(claim(), "smoke", worse).has_regressed(full=5)
    assert judge(claim(), "smoke", unclear).has_regressed(full=3)
    assert not judge(claim(), "smoke", unclear).has_regressed(full=5)
    assert not judge(claim(recorded=Verdict.DOES_NOT_HOLD), "smoke", worse).has_regressed(full=3)
    assert not judge(claim(), "small", worse).has_regressed(full=3)


def test_a_claim_without_its_experiment_is_refused() -> None:
    with pytest.raises(ValueError, match="no experiment named trial"):
        Suite("pack", (), (claim(),))
    experiment = Experiment("pack", "trial", "", {"small": 3}, lambda *_: {})
    with pytest.raises(ValueError, match="tier that trial lacks"):
        Suite("pack", (experiment,), (claim(),))
