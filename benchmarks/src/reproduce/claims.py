"""What a claim is, and when it holds.

A claim compares a method with a baseline (another arm of the same experiment, or a fixed number) on one metric, over several
seeds. Both arms of a seed see the same data and the same budget, so the test is paired: a Student-t interval of the mean
difference. A claim holds when the whole interval lies on the claimed side, does not hold when the whole interval lies on
the other, and is inconclusive in between.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import stats

Measurement = Mapping[str, Mapping[str, float]]
"""Arm to metric to value, for one seed."""

TIERS = ("smoke", "small", "medium", "paper")


class Verdict(enum.StrEnum):
    """What the numbers say about a claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Experiment:
    """A measurement that several claims read.

    Attributes:
        package: whose experiment it is.
        name: unique within the package.
        summary: what is done, in a sentence.
        seeds: for each tier it exists in, how many seeds are run by default.
        measure: given a seed, a tier and an empty folder for sample pictures, the value of each metric of each arm.
    """

    package: str
    name: str
    summary: str
    seeds: Mapping[str, int]
    measure: Callable[[int, str, Path], Measurement]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, or of our README, that can be checked.

    Attributes:
        id: `package/short-name`.
        statement: the claim in our words.
        source: where it is made: paper section or table, or README.
        experiment: the name of the experiment that measures it.
        metric: which metric of the arms is compared.
        method: the arm that is claimed to be better.
        baseline: the arm, or the number, it is compared with.
        better: whether the method is claimed to be higher or lower.
        margin: the smallest difference that matters, in the metric's unit.
        recorded: the verdict as last measured, for each tier.
        remark: what a reader must know to judge the numbers.
    """

    id: str
    statement: str
    source: str
    experiment: str
    metric: str
    method: str
    baseline: str | float
    better: Literal["higher", "lower"]
    recorded: Mapping[str, Verdict]
    margin: float = 0.0
    remark: str = ""

    @property
    def package(self) -> str:
        """The package that makes the claim."""
        return self.id.split("/")[0]


@dataclass(frozen=True)
class Outcome:
    """A claim with its numbers.

    Attributes:
        method: mean of the method's metric over the seeds.
        baseline: mean of the baseline's.
        effect: mean of method minus baseline.
        interval: 95 % interval of the effect; None with one seed.
        seeds: number of seeds.
        verdict: what they say.
    """

    claim: Claim
    tier: str
    method: float
    baseline: float
    effect: float
    interval: tuple[float, float] | None
    seeds: int
    verdict: Verdict

    @property
    def recorded(self) -> Verdict | None:
        """The verdict that the registry records for this tier."""
        return self.claim.recorded.get(self.tier)

    def has_regressed(self, full: int) -> bool:
        """Whether a claim recorded as holding no longer does.

        An inconclusive result counts only with at least `full` seeds: with fewer, a wide interval is nobody's fault.
        """
        if self.recorded is not Verdict.HOLDS:
            return False
        return self.verdict is Verdict.DOES_NOT_HOLD or (self.verdict is Verdict.INCONCLUSIVE and self.seeds >= full)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student-t interval of the mean; a point when all values are equal, None with fewer than two."""
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2:
        return None
    spread = stats.sem(data)
    if spread == 0:
        return float(data[0]), float(data[0])
    low, high = stats.t.interval(level, data.size - 1, loc=data.mean(), scale=spread)
    return float(low), float(high)


def judge(claim: Claim, tier: str, measurements: Sequence[Measurement]) -> Outcome:
    """Compare the arms of a claim over the seeds that were measured.

    Raises:
        KeyError: the experiment did not report an arm or metric of the claim.
    """
    method = np.array([each[claim.method][claim.metric] for each in measurements], dtype=np.float64)
    if isinstance(claim.baseline, str):
        baseline = np.array([each[claim.baseline][claim.metric] for each in measurements], dtype=np.float64)
    else:
        baseline = np.full_like(method, claim.baseline)
    difference = method - baseline
    between = mean_interval(difference.tolist())
    return Outcome(
        claim=claim,
        tier=tier,
        method=float(method.mean()),
        baseline=float(baseline.mean()),
        effect=float(difference.mean()),
        interval=between,
        seeds=len(measurements),
        verdict=_verdict(claim, between),
    )


def _verdict(claim: Claim, between: tuple[float, float] | None) -> Verdict:
    if between is None:
        return Verdict.INCONCLUSIVE
    low, high = between
    # In units of "better by more than the margin": positive is what is claimed.
    ends = (
        (low - claim.margin, high - claim.margin)
        if claim.better == "higher"
        else (-high - claim.margin, -low - claim.margin)
    )
    if ends[0] > 0:
        return Verdict.HOLDS
    if ends[1] <= 0:
        return Verdict.DOES_NOT_HOLD
    return Verdict.INCONCLUSIVE


@dataclass(frozen=True)
class Speed:
    """Two ways of computing the same thing, timed in turn in one process.

    Attributes:
        id: `package/short-name`.
        statement: what is compared, in a sentence.
        prepare: makes the inputs; returns ours and theirs, each a call without arguments.
        target: the ratio theirs / ours that the package aims at.
        repeats: how often each is timed; the median counts.
        scale: how many times more work ours did than theirs in one call; the ratio is per unit of work.
        unit: what one unit of work is.
        peak_memory: also report the peak of the memory that each allocates through Python and numpy.
    """

    id: str
    statement: str
    prepare: Callable[[], tuple[Callable[[], object], Callable[[], object]]]
    target: float
    repeats: int = 3
    scale: float = 1.0
    unit: str = "call"
    peak_memory: bool = False

    @property
    def package(self) -> str:
        """The package that is timed."""
        return self.id.split("/")[0]


@dataclass(frozen=True)
class Suite:
    """All that one package is measured by."""

    package: str
    experiments: Sequence[Experiment] = field(default_factory=tuple)
    claims: Sequence[Claim] = field(default_factory=tuple)
    speeds: Sequence[Speed] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        names = {each.name for each in self.experiments}
        for claim in self.claims:
            if claim.experiment not in names:
                raise ValueError(f"{claim.id}: no experiment named {claim.experiment}")
            if not set(claim.recorded) <= set(self.experiment(claim).seeds):
                raise ValueError(f"{claim.id}: a verdict is recorded for a tier that {claim.experiment} lacks")

    def experiment(self, claim: Claim) -> Experiment:
        """The experiment that measures a claim."""
        return next(each for each in self.experiments if each.name == claim.experiment)
