"""Whether claims hold: the verdicts of one package in one tier, judged together.

**holds**: exact tests reject, for the whole family of the package's claims at 5 %, that the claim is at best on the boundary of what it says.
**does not hold**: they reject the claim itself, in a family of its own at 5 %. **inconclusive**: neither. **too few seeds**: fewer than
five were measured, and chance is involved. Both families are needed because a claim can be wrong in one way only: so at most 5 % of packages have a
false *holds*, and at most 5 % a false *does not hold*. See `reproduce.statistics` for the tests and why these.

Superiority (`higher`, `lower`) tests the difference against the margin. Non-inferiority (`not_lower`, `at_least`, `at_most`) tests it against the margin on the
other side. Equivalence (`same`) is two one-sided tests (Schuirmann 1987): it holds when both reject; it does not hold when the
difference is shown to lie beyond either margin.

A deterministic claim is compared, margin included, and no statistics are done: it holds when every measurement agrees with it and does not hold
when none does.
"""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from reproduce.claims import Claim, Comparison, Measurement
from reproduce.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    effect_size,
    false_discovery_rates,
    family_p,
    flip_interval,
    flip_p,
    seeds_needed,
    student_interval,
)


class Verdict(enum.StrEnum):
    """What the numbers say about a claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    INCONCLUSIVE = "inconclusive"
    TOO_FEW = "too few seeds"

    @property
    def is_conclusive(self) -> bool:
        """Whether it says yes or no."""
        return self in (Verdict.HOLDS, Verdict.DOES_NOT_HOLD)


@dataclass(frozen=True)
class Outcome:
    """A claim with its numbers.

    Attributes:
        claim: which.
        tier: measured at which size.
        method: mean of the arm's metric over the seeds.
        baseline: mean of the other's.
        differences: method minus baseline, one a seed.
        verdict: what they say.
        reason: what the verdict rests on, where that is not the usual test.
        p: one-sided, of the claim by itself, by sign flips; None where none is done.
        p_family: the same, adjusted for all claims of the package.
        p_against: of the opposite, adjusted.
        q: the share of false claims expected among those shown with no larger q.
        interval: 90 % interval of the difference, by sign flips: each end bounds it with 95 % confidence.
        student: 90 % Student-t interval of the mean difference, for comparison.
        d_z: mean over standard deviation of the differences, small-sample bias removed.
        needed: where inconclusive: the seeds that would show, with a chance of 80 %, an effect as large as the measured one
            in a family of so many claims; None where as many were measured.
    """

    claim: Claim
    tier: str
    method: float
    baseline: float
    differences: tuple[float, ...]
    verdict: Verdict
    reason: str = ""
    p: float | None = None
    p_family: float | None = None
    p_against: float | None = None
    q: float | None = None
    interval: tuple[float, float] | None = None
    student: tuple[float, float] | None = None
    d_z: float | None = None
    needed: int | None = None

    @property
    def seeds(self) -> int:
        """How many seeds were measured."""
        return len(self.differences)

    @property
    def effect(self) -> float:
        """Mean of method minus baseline."""
        return math.fsum(self.differences) / len(self.differences)


def judge(tier: str, measured: Mapping[Claim, Sequence[Measurement]]) -> list[Outcome]:
    """Judge the claims of one package together.

    Args:
        tier: what to say they were measured at.
        measured: each claim with the seeds of its experiment.

    Raises:
        KeyError: an experiment did not report an arm or metric of its claim.
    """
    outcomes = [_bare_outcome(claim, tier, seeds) for claim, seeds in measured.items()]
    tested = [each for each in outcomes if _is_tested(each)]
    in_favour = _family(tested, +1)
    against = _family(tested, -1)
    decided = iter(zip(in_favour, against, strict=True))
    boundaries = sum(2 if each.claim.comparison.relation == "same" else 1 for each in tested)
    return [
        _tested_outcome(each, *next(decided), boundaries) if _is_tested(each) else _exact_outcome(each)
        for each in outcomes
    ]


def judge_all(
    tier: str, measured: Mapping[str, Mapping[Claim, Sequence[Measurement]]], shown: Sequence[Outcome] = ()
) -> list[Outcome]:
    """Judge several packages, each a family, and give every outcome its q among all of them (Benjamini & Hochberg).

    Args:
        tier: what to say they were measured at.
        measured: package to its claims with their seeds.
        shown: outcomes that stand beside them.
    """
    outcomes = [*shown, *(each for claims in measured.values() for each in judge(tier, claims))]
    rates = iter(false_discovery_rates([each.p for each in outcomes if each.p is not None]))
    return [replace(each, q=next(rates)) if each.p is not None else each for each in outcomes]


def _bare_outcome(claim: Claim, tier: str, measured: Sequence[Measurement]) -> Outcome:
    comparison = claim.comparison
    method = [float(each[comparison.arm][comparison.metric]) for each in measured]
    if isinstance(comparison.other, str):
        baseline = [float(each[comparison.other][comparison.metric]) for each in measured]
    else:
        baseline = [float(comparison.other)] * len(method)
    differences = tuple(a - b for a, b in zip(method, baseline, strict=True))
    return Outcome(
        claim, tier, float(np.mean(method)), float(np.mean(baseline)), differences, verdict=Verdict.INCONCLUSIVE
    )


def _is_tested(outcome: Outcome) -> bool:
    enough = outcome.seeds >= FEWEST_SEEDS
    return enough and not outcome.claim.deterministic and all(map(math.isfinite, outcome.differences))


def sides(comparison: Comparison, differences: Sequence[float]) -> list[Float[np.ndarray, " seeds"]]:
    """The differences from each boundary of the claim, positive where it is right; equivalence has two boundaries."""
    found = np.asarray(differences, dtype=np.float64)
    margin = comparison.margin
    return {
        "higher": [found - margin],
        "lower": [-found - margin],
        "not lower": [found + margin],
        "not higher": [margin - found],
        "same": [found + margin, margin - found],
    }[comparison.relation]


def _family(outcomes: Sequence[Outcome], sign: int) -> list[float]:
    """Adjusted p of every outcome: all boundaries of a claim must be rejected; against it, one of them."""
    members = [[sign * side for side in sides(each.claim.comparison, each.differences)] for each in outcomes]
    adjusted = iter(family_p([side for sides_ in members for side in sides_]))
    combine = max if sign > 0 else min
    return [combine([next(adjusted) for _ in sides_]) for sides_ in members]


def _tested_outcome(outcome: Outcome, p_family: float, p_against: float, boundaries: int) -> Outcome:
    found, claimed = outcome.differences, sides(outcome.claim.comparison, outcome.differences)
    verdict = (
        Verdict.HOLDS if p_family <= LEVEL else Verdict.DOES_NOT_HOLD if p_against <= LEVEL else Verdict.INCONCLUSIVE
    )
    equal = "" if np.ptp(found) else "all differences are equal: the test counts signs, and there is no interval"
    # What is nearest to its boundary needs the most seeds.
    sizes = [size for side in claimed if (size := effect_size(side)) is not None]
    return replace(
        outcome,
        verdict=verdict,
        reason=equal,
        p=max(map(flip_p, claimed)),
        p_family=p_family,
        p_against=p_against,
        interval=flip_interval(found),
        student=student_interval(found),
        d_z=effect_size(found),
        needed=_more_seeds(sizes, outcome.seeds, boundaries) if verdict is Verdict.INCONCLUSIVE else None,
    )


def _more_seeds(sizes: Sequence[float], seeds: int, boundaries: int) -> int | None:
    """How many seeds would show an effect of the size nearest to its boundary; None where that many were measured.

    However large an effect is, n seeds have 2^n equally likely signs, so no p is below 2^-n: a family of so many tests needs log2(tests / level).
    """
    needed = seeds_needed(min(sizes, key=abs)) if sizes else None
    if needed is None:
        return None
    needed = max(needed, math.ceil(math.log2(boundaries / LEVEL)))
    return needed if needed > seeds else None


def _exact_outcome(outcome: Outcome) -> Outcome:
    """The outcome without a test: numbers that are not finite, too few seeds, or no chance involved."""
    if not all(map(math.isfinite, outcome.differences)):
        return replace(outcome, reason="a number is not finite")
    if not outcome.claim.deterministic:
        reason = f"{outcome.seeds} of at least {FEWEST_SEEDS}"
        return replace(outcome, verdict=Verdict.TOO_FEW, reason=reason)
    strict = outcome.claim.comparison.relation in ("higher", "lower")
    distance = np.min(sides(outcome.claim.comparison, outcome.differences), axis=0)
    agrees = distance > 0 if strict else distance >= 0
    if agrees.all():
        return replace(outcome, verdict=Verdict.HOLDS, reason="compared exactly")
    if not agrees.any():
        return replace(outcome, verdict=Verdict.DOES_NOT_HOLD, reason="compared exactly")
    return replace(outcome, reason=f"{agrees.sum()} of {len(agrees)} measurements agree")


def count_verdicts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many claims hold, do not hold, and are open."""
    held, failed = (
        sum(each.verdict is verdict for each in outcomes) for verdict in (Verdict.HOLDS, Verdict.DOES_NOT_HOLD)
    )
    return {"hold": held, "do not hold": failed, "open": len(outcomes) - held - failed}
