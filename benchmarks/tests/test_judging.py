"""When a claim holds, and when it does not; when a run contradicts its record."""

import numpy as np
import pytest

from reproduce.claims import (
    Claim,
    Comparison,
    Experiment,
    Measurement,
    Suite,
    at_least,
    at_most,
    claim,
    comparison_in_words,
    higher,
    lower,
    not_lower,
    same,
)
from reproduce.judging import Outcome, Verdict, judge, judge_all
from reproduce.records import Agreement, Record, RecordedClaim, agreement

WORDS = {"ours": "our method", "rival": "the rival"}
SEEDS = np.random.default_rng(0).normal(size=64)


def stated(comparison: Comparison, name: str = "claimed", *, deterministic: bool = False) -> Claim:
    return claim(
        f"pack/{name}", "Ours is better.", comparison, experiment="trial", source="Table 1", deterministic=deterministic
    )


def trial(differences: list[float], rival: float = 0.5) -> list[Measurement]:
    return [{"ours": {"score": rival + each}, "rival": {"score": rival}} for each in differences]


def verdict(comparison: Comparison, differences: list[float], *, deterministic: bool = False) -> Verdict:
    (outcome,) = judge("smoke", {stated(comparison, deterministic=deterministic): trial(differences)})
    return outcome.verdict


AHEAD = [0.3, 0.32, 0.31, 0.29, 0.33]
MIXED = [0.3, -0.2, 0.1, -0.3, 0.2]


@pytest.mark.parametrize(
    ("comparison", "differences", "expected"),
    [
        (higher("score", "ours", than="rival"), AHEAD, Verdict.HOLDS),
        (lower("score", "ours", than="rival"), AHEAD, Verdict.DOES_NOT_HOLD),
        (higher("score", "ours", than="rival", by=0.5), AHEAD, Verdict.DOES_NOT_HOLD),
        (higher("score", "ours", than="rival", by=0.1), AHEAD, Verdict.HOLDS),
        (higher("score", "ours", than="rival"), MIXED, Verdict.INCONCLUSIVE),
        (higher("score", "ours", than=0.6), AHEAD, Verdict.HOLDS),
        (at_least("score", "ours", 0.6), AHEAD, Verdict.HOLDS),
        (at_most("score", "ours", 0.6), AHEAD, Verdict.DOES_NOT_HOLD),
        (not_lower("score", "ours", than="rival", within=0.1), [-0.02, 0.01, 0.0, -0.01, 0.02], Verdict.HOLDS),
        (not_lower("score", "ours", than="rival", within=0.1), [-each for each in AHEAD], Verdict.DOES_NOT_HOLD),
        (same("score", "ours", as_="rival", within=0.1), [-0.02, 0.01, 0.0, -0.01, 0.02], Verdict.HOLDS),
        # Beyond either margin is a two-sided question, which five seeds cannot answer at 5 %.
        (same("score", "ours", as_="rival", within=0.1), AHEAD, Verdict.INCONCLUSIVE),
        (same("score", "ours", as_="rival", within=0.1), AHEAD * 2, Verdict.DOES_NOT_HOLD),
        # Two ties at a sixteenth were once enough to hold.
        (higher("score", "ours", than="rival"), [0.0625, 0.0625], Verdict.TOO_FEW),
        (higher("score", "ours", than="rival"), [0.0] * 5, Verdict.INCONCLUSIVE),
        (higher("score", "ours", than="rival"), [0.0625] * 5, Verdict.HOLDS),
        (higher("score", "ours", than="rival"), [0.1, 0.2, 0.3, 0.4], Verdict.TOO_FEW),
    ],
)
def test_verdicts(comparison: Comparison, differences: list[float], expected: Verdict) -> None:
    assert verdict(comparison, differences) is expected


def test_a_claim_without_chance_is_compared() -> None:
    above = higher("score", "ours", than="rival", by=0.1)
    assert verdict(above, [0.2], deterministic=True) is Verdict.HOLDS
    assert verdict(above, [0.05], deterministic=True) is Verdict.DOES_NOT_HOLD
    assert verdict(above, [0.05, 0.2], deterministic=True) is Verdict.INCONCLUSIVE


def test_what_is_not_finite_decides_nothing() -> None:
    assert not verdict(higher("score", "ours", than="rival"), [0.3, 0.3, 0.3, 0.3, float("nan")]).is_conclusive


def family(seeds: int, claims: int, shift: float, seed: int) -> list[Outcome]:
    rng = np.random.default_rng(seed)
    draws = rng.normal(shift, 1.0, (claims, seeds))
    return judge(
        "small",
        {
            stated(higher("score", "ours", than="rival"), f"claim-{number}"): trial(list(row))
            for number, row in enumerate(draws)
        },
    )


def test_few_families_hold_something_false() -> None:
    """Eight claims on their boundary, judged one by one at 5 %, would show a false one in every third family.

    `test_statistics.py` simulates the corrected rate itself; here a verdict must rest on it.
    """
    families = [family(6, 8, 0.0, seed) for seed in range(40)]
    # At a true rate of 5 % nine or more of 40 have a chance of 1 in 5,000.
    assert sum(any(each.verdict is Verdict.HOLDS for each in found) for found in families) <= 8
    alone = sum(any(each.p is not None and each.p <= 0.05 for each in found) for found in families)
    assert alone > 8


def test_what_is_there_is_found() -> None:
    assert np.mean([each.verdict is Verdict.HOLDS for each in family(10, 5, 3.0, 1)]) == 1


def test_the_share_of_false_discoveries_goes_over_all_packages() -> None:
    measured = {
        package: {
            claim(
                f"{package}/one", "Ours.", higher("score", "ours", than="rival"), experiment="trial", source="T"
            ): trial(AHEAD)
        }
        for package in ("first", "second")
    }
    outcomes = judge_all("small", measured)
    assert [each.q for each in outcomes] == pytest.approx([1 / 32, 1 / 32])


def record_of(outcome: Outcome) -> Record:
    kept = RecordedClaim(outcome.claim.id, outcome.verdict, outcome.differences)
    return Record("pack", "small", "2026-01-01", "", {}, {}, (kept,), ())


def judged(differences: list[float], *, deterministic: bool = False) -> Outcome:
    comparison = higher("score", "ours", than="rival")
    (outcome,) = judge("small", {stated(comparison, deterministic=deterministic): trial(differences)})
    return outcome


@pytest.mark.parametrize(
    ("recorded", "found", "expected"),
    [
        (AHEAD, AHEAD, Agreement.AGREES),
        (AHEAD, [0.2, 0.4, 0.3, 0.25, 0.35], Agreement.AGREES),
        (AHEAD, [-each for each in AHEAD], Agreement.CONTRADICTS),
        (AHEAD, [0.31, 0.3], Agreement.TOO_SMALL),
        (AHEAD, [-5.0, -5.1], Agreement.CONTRADICTS),
        (MIXED, [0.1, -0.1, 0.2, -0.2, 0.1], Agreement.AGREES),
        (MIXED, [0.1, 0.2], Agreement.TOO_SMALL),
        ([0.0625] * 5, [0.0625] * 5, Agreement.AGREES),
        ([0.0625] * 5, [0.0625, 0.125], Agreement.TOO_SMALL),
        ([0.0625] * 5, [-0.0625] * 5, Agreement.CONTRADICTS),
        ([0.3], [0.3], Agreement.AGREES),
        ([0.3], [0.2], Agreement.TOO_SMALL),
    ],
)
def test_a_run_is_held_against_its_record(recorded: list[float], found: list[float], expected: Agreement) -> None:
    assert agreement(judged(found), record_of(judged(recorded))) is expected


def test_what_is_without_chance_must_be_as_recorded() -> None:
    before = record_of(judged([0.2], deterministic=True))
    assert agreement(judged([0.3], deterministic=True), before) is Agreement.AGREES
    assert agreement(judged([-0.1], deterministic=True), before) is Agreement.CONTRADICTS
    assert agreement(judged([0.3]), None) is Agreement.NEW


def suite_of(*claims: Claim) -> Suite:
    experiment = Experiment("trial", "", {"small": 5}, lambda *_: {}, WORDS, {"score": "the score"})
    return Suite("pack", "An idea.", (experiment,), claims)


def test_claims_are_checked_when_they_are_stated() -> None:
    assert suite_of(stated(higher("score", "ours", than="rival"))).claims
    for wrong, words in (
        (lambda: stated(higher("other", "ours", than="rival")), "no words for the metric other"),
        (lambda: stated(higher("score", "theirs", than="rival")), "no words for the arm theirs"),
        (
            lambda: claim("pack/x", "no sentence", higher("score", "ours", than=1), experiment="trial", source="T"),
            "sentence",
        ),
        (
            lambda: claim("x", "A sentence.", higher("score", "ours", than=1), experiment="trial", source="T"),
            "an id is",
        ),
        (lambda: stated(higher("score", "ours", than="rival", by=-1.0)), "margin"),
        (
            lambda: claim("pack/x", "A sentence.", higher("score", "ours", than=1), experiment="none", source="T"),
            "no experiment",
        ),
        (
            lambda: claim("other/x", "A sentence.", higher("score", "ours", than=1), experiment="trial", source="T"),
            "no claim of pack",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            suite_of(wrong())


def test_comparisons_are_said_in_words() -> None:
    experiment = suite_of().experiments[0]
    said = comparison_in_words(higher("score", "ours", than="rival", by=2), experiment)
    assert said == "our method: the score higher than the rival by more than 2"
    assert comparison_in_words(at_most("score", "ours", 3), experiment) == "our method: the score at most 3"


def test_seeds_that_are_needed_grow_with_the_family() -> None:
    # However clear an effect is, five seeds have 32 signs: no p is below 1/32, which is too much for two independent claims.
    clear = [{"ours": {"auc": 0.9 + seed / 1000}, "rival": {"auc": 0.5}} for seed in range(5)]
    unclear = [{"ours": {"auc": value}, "rival": {"auc": 0.5}} for value in (0.4, 0.6, 0.45, 0.62, 0.5)]
    claims = [
        claim(f"fairfd/claim-{number}", "Ours wins.", higher("auc", "ours", than="rival"), experiment="x", source="§1")
        for number in range(20)
    ]
    alone = judge("small", {claims[0]: clear})[0]
    assert (alone.verdict, alone.needed) == (Verdict.HOLDS, None)
    family = judge("small", {claims[0]: [*clear[:4], unclear[0]], **dict.fromkeys(claims[1:], unclear)})
    assert family[0].verdict is Verdict.INCONCLUSIVE
    assert family[0].needed == 9  # 2^9 > 20 / .05
