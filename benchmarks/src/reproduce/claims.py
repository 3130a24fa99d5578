"""What is claimed, of which experiment, and by what comparison; `reproduce.judging` says whether it holds.

A claim is a sentence of a paper, or of our README, with one comparison of an experiment's numbers: an arm against another arm of
the same seeds, data and budget, or against a fixed number. Margins are part of the claim and stated before anything is measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Measurement = Mapping[str, Mapping[str, float]]
"""Arm to metric to value, for one seed."""

TIERS = ("smoke", "small", "medium", "paper")


@dataclass(frozen=True)
class Experiment:
    """A measurement that several claims read.

    Attributes:
        name: unique within the package.
        summary: what is done, in a sentence.
        seeds: for each tier it exists in, how many seeds are run by default.
        measure: given a seed, a tier and an empty folder for sample pictures, the value of each metric of each arm.
        arms: what is compared, code to words; every arm of a claim is among them.
        metrics: what is measured, code to words with the unit; every metric of a claim is among them.
    """

    name: str
    summary: str
    seeds: Mapping[str, int]
    measure: Callable[[int, str, Path], Measurement]
    arms: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One run of a protocol.

    Attributes:
        data: the folder with the public data, or its stand-in.
        tier: medium or paper.
        seed: of everything random.
        steps: so many training steps on a stand-in; None for the whole protocol.
    """

    data: Path
    tier: str
    seed: int
    steps: int | None


Command = list[str | Path | int]
"""A command and its arguments."""


@dataclass(frozen=True)
class Protocol:
    """A published protocol that several claims read, run by the package's own commands on public data (`reproduce.protocols`).

    Attributes:
        name: unique within the package.
        summary: what is done, in a sentence.
        needs: what `DATA/PACKAGE` must hold.
        hours: what it takes, arm by arm, on which GPU.
        seeds: for each tier it exists in, how many seeds are run by default.
        arms: what is compared, code to words.
        metrics: what is measured, code to words with the unit.
        commands: the command lines of an arm, without the interpreter; the folder is the arm's, where they run.
        scores: reads the value of each metric from the arm's folder after them.
        stand_in: writes tiny data in the layout of `needs`, enough for so many steps.
    """

    name: str
    summary: str
    needs: str
    hours: str
    seeds: Mapping[str, int]
    arms: Mapping[str, str]
    metrics: Mapping[str, str]
    commands: Callable[[Task, str], Sequence[Command]]
    scores: Callable[[Path], Mapping[str, float]]
    stand_in: Callable[[Path, int], None]


@dataclass(frozen=True)
class Comparison:
    """One arm's metric against another arm's, or against a number. Made by `higher`, `lower`, `not_lower`, ... below.

    Attributes:
        metric: which metric of the arms is compared.
        arm: the arm that the claim is about.
        other: the arm, or the number, it is compared with.
        relation: what is claimed of arm minus other, given the margin.
        margin: the smallest difference that matters, in the metric's unit; not negative.
    """

    metric: str
    arm: str
    other: str | float
    relation: Literal["higher", "lower", "not lower", "not higher", "same"]
    margin: float = 0.0


def higher(metric: str, arm: str, *, than: str | float, by: float = 0.0) -> Comparison:
    """The arm exceeds the other by more than `by` (superiority)."""
    return Comparison(metric, arm, than, "higher", by)


def lower(metric: str, arm: str, *, than: str | float, by: float = 0.0) -> Comparison:
    """The arm is below the other by more than `by` (superiority)."""
    return Comparison(metric, arm, than, "lower", by)


def not_lower(metric: str, arm: str, *, than: str | float, within: float) -> Comparison:
    """The arm is at most `within` below the other (non-inferiority)."""
    return Comparison(metric, arm, than, "not lower", within)


def same(metric: str, arm: str, *, as_: str | float, within: float) -> Comparison:
    """The arm is as the other, up to `within` either way (equivalence, by two one-sided tests)."""
    return Comparison(metric, arm, as_, "same", within)


def at_least(metric: str, arm: str, limit: float) -> Comparison:
    """The arm reaches a number."""
    return Comparison(metric, arm, limit, "not lower")


def at_most(metric: str, arm: str, limit: float) -> Comparison:
    """The arm keeps to a number."""
    return Comparison(metric, arm, limit, "not higher")


@dataclass(frozen=True)
class Claim:
    """A sentence that can be checked; made by `claim`.

    Attributes:
        id: `package/short-name`.
        statement: the claim in our words, a sentence.
        comparison: what must hold of the numbers.
        experiment: the name of the experiment that measures it.
        source: where it is made: paper section or table, or README.
        deterministic: no chance is involved (a formula, memory, exactness, a shipped model on fixed pictures): one measurement
            decides, and no statistics are done.
        remark: what a reader must know to judge the numbers.
    """

    id: str
    statement: str
    comparison: Comparison
    experiment: str
    source: str
    deterministic: bool = False
    remark: str = ""

    @property
    def package(self) -> str:
        """The package that makes the claim."""
        return self.id.split("/")[0]

    @property
    def name(self) -> str:
        """The claim's name within its package."""
        return self.id.split("/", 1)[1]


def claim(
    id: str,  # noqa: A002  # what it is
    statement: str,
    comparison: Comparison,
    *,
    experiment: str,
    source: str,
    deterministic: bool = False,
    remark: str = "",
) -> Claim:
    """State a claim; see `Claim` for the arguments.

    Example:
        >>> claim(
        ...     "vptnsp/less-drift-than-sequential",
        ...     "Features of the first task move less than under sequential prompt tuning.",
        ...     lower("drift", "nsp2", than="seq"),
        ...     experiment="glyphs",
        ...     source="paper §4, Fig. 4",
        ... ).name
        'less-drift-than-sequential'

    Raises:
        ValueError: the id has no package, the statement is no sentence, or the margin is negative.
    """
    if id.count("/") != 1:
        raise ValueError(f"{id}: an id is package/short-name")
    if not (statement[:1].isupper() or statement[:1].isdigit()) or not statement.endswith("."):
        raise ValueError(f"{id}: the statement must be a sentence: {statement}")
    if comparison.margin < 0:
        raise ValueError(f"{id}: a margin is not negative; say not_lower(..., within=...)")
    return Claim(id, statement, comparison, experiment, source, deterministic, remark.rstrip("."))


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
    """All that one package is measured by.

    Attributes:
        package: which.
        idea: what the paper claims, in a sentence.
        experiments: what is run.
        claims: what is claimed of it, in the order of the report: a claim that refers to another comes after it.
        speeds: what is timed.
    """

    package: str
    idea: str
    experiments: Sequence[Experiment | Protocol] = ()
    claims: Sequence[Claim] = ()
    speeds: Sequence[Speed] = ()

    def __post_init__(self) -> None:
        names = [each.name for each in self.experiments]
        if len(set(names)) < len(names) or len({each.id for each in self.claims}) < len(self.claims):
            raise ValueError(f"{self.package}: two experiments or two claims have the same name")
        for claim in self.claims:
            if claim.package != self.package:
                raise ValueError(f"{claim.id}: is no claim of {self.package}")
            if claim.experiment not in names:
                raise ValueError(f"{claim.id}: no experiment named {claim.experiment}")
            experiment, comparison = self.experiment(claim), claim.comparison
            for arm in (comparison.arm, comparison.other):
                if isinstance(arm, str) and arm not in experiment.arms:
                    raise ValueError(f"{claim.id}: {experiment.name} has no words for the arm {arm}")
            if comparison.metric not in experiment.metrics:
                raise ValueError(f"{claim.id}: {experiment.name} has no words for the metric {comparison.metric}")

    def experiment(self, claim: Claim) -> Experiment | Protocol:
        """The experiment that measures a claim."""
        return next(each for each in self.experiments if each.name == claim.experiment)


def comparison_in_words(comparison: Comparison, experiment: Experiment | Protocol) -> str:
    """The comparison as a person would say it: `nearest class means: accuracy (%) higher than frozen prompts by more than 2`."""
    arm = experiment.arms[comparison.arm]
    metric = experiment.metrics[comparison.metric]
    margin = f"{comparison.margin:g}"
    if isinstance(comparison.other, str):
        other = experiment.arms[comparison.other]
        said = {
            "higher": f"higher than {other}" + (f" by more than {margin}" if comparison.margin else ""),
            "lower": f"lower than {other}" + (f" by more than {margin}" if comparison.margin else ""),
            "not lower": f"at most {margin} below {other}",
            "not higher": f"at most {margin} above {other}",
            "same": f"as {other}, up to {margin} either way",
        }
    else:
        other = f"{comparison.other:g}"
        said = {
            "higher": f"above {other}" + (f" by more than {margin}" if comparison.margin else ""),
            "lower": f"below {other}" + (f" by more than {margin}" if comparison.margin else ""),
            "not lower": f"at least {comparison.other - comparison.margin:g}",
            "not higher": f"at most {comparison.other + comparison.margin:g}",
            "same": f"{other}, up to {margin} either way",
        }
    return f"{arm}: {metric} {said[comparison.relation]}"
