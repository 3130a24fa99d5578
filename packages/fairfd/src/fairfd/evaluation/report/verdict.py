"""The verdict on a detector, in words for a reader without background in machine learning.

Absence of evidence is never called fairness, and a near-trivial detector is never called fair.
"""

from collections.abc import Iterator, Sequence
from operator import itemgetter

from fairfd.evaluation.audit.record import ApproachResult, Audit, ConventionResult, Estimate, Interval
from fairfd.evaluation.report.figures import best
from fairfd.evaluation.report.views import Pair, Verdict

HEADLINE = "AADPD"
"""The metric of the verdict: the paper's own, averaged over approaches, the same under both conventions."""

SIGNIFICANT = 0.05
"""Permutation p-values below it count as evidence of a gap."""


def headline(audit: Audit) -> Estimate:
    """The estimate that the verdict rests on."""
    return main_convention(audit).metrics[HEADLINE]


def main_convention(audit: Audit) -> ConventionResult:
    """The official convention; the first where it is absent."""
    return audit.conventions.get("official") or next(iter(audit.conventions.values()))


def verdict(audit: Audit) -> Verdict:
    """The verdict on one detector: near-trivial, nothing to compare, gap beyond chance, or none shown.

    It rests on AADPD: a gap is "shown" when its permutation p-value is below .05.
    """
    estimate = headline(audit)
    if audit.gate.near_trivial:
        return Verdict("void", "Cannot be judged: near-trivial detector", _near_trivial(audit), _quality(audit))
    if len(audit.data.groups) < 2 or estimate.value is None:
        return Verdict("void", "Nothing to compare", _nothing_to_compare(audit), _quality(audit))
    facts = (*_gap(audit, estimate), *_quality(audit))
    details = tuple(_concrete_sentences(audit))
    if estimate.p is None:
        gap = points(estimate.value)
        untested = f"The average gap between groups is {gap}; no chance level was computed, so it may be chance."
        return Verdict("void", "Gap measured, chance not ruled out", (untested, *details), facts)
    if estimate.p < SIGNIFICANT:
        return Verdict("gap", "Gap between groups shown", (_gap_shown(audit, estimate), *details), facts)
    return Verdict("none", "No gap shown beyond chance", (_none_shown(estimate), *details), facts)


def _near_trivial(audit: Audit) -> tuple[str, ...]:
    return (
        f"It is close to giving everybody the same answer, or to guessing ({'; '.join(audit.gate.reasons)}).",
        "Such a detector looks fair by construction: no conclusion about fairness can be drawn.",
    )


def _nothing_to_compare(audit: Audit) -> tuple[str, ...]:
    reason = "The data hold one group only" if len(audit.data.groups) < 2 else f"{HEADLINE} is undefined on these data"
    return (f"{reason}; fairness cannot be assessed.",)


def _gap_shown(audit: Audit, estimate: Estimate) -> str:
    return (
        f"The detector does not treat all groups alike. Averaged over {tested_images(audit)}, "
        f"the best and the worst served group differ by {points(best(estimate))}{_range_of(estimate, audit)}; "
        f"measured: {points(estimate.value)}."
        f"{_chance(estimate)}"
    )


def _none_shown(estimate: Estimate) -> str:
    return (
        f"The measured average gap of {points(estimate.value)} between the best and the worst served group "
        f"is no larger than chance can explain (p = {p_value(estimate.p)}).{_chance(estimate)} "
        "Smaller real gaps cannot be seen with these data: this is not proof that there is none."
    )


def _chance(estimate: Estimate) -> str:
    if not estimate.null_q95:
        return ""
    return f" Chance alone would give a measured gap of up to {points(estimate.null_q95)} with this many people."


def tested_images(audit: Audit) -> str:
    """What was shown to the detector, in words."""
    fakes = sum(not row.is_real for row in audit.approaches)
    kinds = [f"{counted(fakes, 'kind')} of fakes"] if fakes else []
    return " and ".join(["genuine faces"] * any(row.is_real for row in audit.approaches) + kinds)


def _concrete_sentences(audit: Audit) -> Iterator[str]:
    """The largest gaps on genuine faces and on fakes, in the words of the person affected."""
    rows = [row for row in audit.approaches if row.gap.value and sum(a is not None for a in row.accuracy) > 1]
    for row in rows:
        if row.is_real:
            best_group, worst_group = _extremes(row, audit.data.groups)
            yield (
                f"Genuine faces: called fake most often in group {worst_group[0]} ({percent(1 - worst_group[1])}), "
                f"least often in group {best_group[0]} ({percent(1 - best_group[1])})."
            )
    fakes = [row for row in rows if not row.is_real]
    if fakes:
        widest = max(fakes, key=lambda row: row.gap.value or 0.0)
        best_group, worst_group = _extremes(widest, audit.data.groups)
        yield (
            f"Fakes: the widest gap is on {widest.approach}, caught in {percent(best_group[1])} of cases "
            f"in group {best_group[0]} and {percent(worst_group[1])} in group {worst_group[0]}."
        )


def _extremes(row: ApproachResult, groups: Sequence[str]) -> tuple[tuple[str, float], tuple[str, float]]:
    """Name and accuracy of the best and of the worst served group; among equals the first."""
    known = [(group, accuracy) for group, accuracy in zip(groups, row.accuracy, strict=True) if accuracy is not None]
    return max(known, key=itemgetter(1)), min(known, key=itemgetter(1))


def _gap(audit: Audit, estimate: Estimate) -> tuple[Pair, ...]:
    corrected = Pair("Average gap", points(best(estimate)), f"{HEADLINE}, corrected{_range_of(estimate, audit)}")
    measured = Pair("As measured", points(estimate.value), "comparable with published tables")
    chance = Pair("Chance level", points(estimate.null_q95), "95 % of even-handed detectors measure less")
    return tuple(
        pair
        for pair, shown in zip(
            (corrected, measured, chance), (estimate.debiased, estimate.value, estimate.null_q95), strict=True
        )
        if shown is not None
    )


def _quality(audit: Audit) -> tuple[Pair, ...]:
    return (
        Pair("Detection quality", decimal(audit.utility.overall.auc), "AUC: 0.5 is guessing, 1 is perfect"),
        Pair("Balanced accuracy", percent(audit.utility.overall.balanced_acc), "mean over genuine faces and fakes"),
    )


def _range_of(estimate: Interval, audit: Audit) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({level_of(audit)} interval {100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


NO_BREAK = "\N{NO-BREAK SPACE}"


def points(value: float | None) -> str:
    """A gap in percentage points."""
    return "unknown" if value is None else f"{100 * value:.1f}{NO_BREAK}points"


def in_points(value: float | None) -> str:
    """A gap in percentage points, for a column that says so."""
    return "–" if value is None else f"{100 * value:.1f}"


def percent(value: float | None) -> str:
    """A share in per cent."""
    return "–" if value is None else f"{100 * value:.1f}{NO_BREAK}%"


def decimal(value: float | None, digits: int = 3) -> str:
    """A metric as a decimal."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def interval(gap: Interval, scale: float = 1.0, digits: int = 3) -> str:
    """The two ends of an interval, both times `scale`."""
    if gap.low is None or gap.high is None:
        return "–"
    return f"{decimal(scale * gap.low, digits)} to {decimal(scale * gap.high, digits)}"


def p_value(value: float | None) -> str:
    """A p-value, with one digit below a thousandth."""
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def level_of(audit: Audit) -> str:
    """Nominal coverage of the audit's intervals."""
    return f"{100 * audit.settings.level:g}{NO_BREAK}%"


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural where needed."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
