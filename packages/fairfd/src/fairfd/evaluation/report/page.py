"""The report page: audits turned into sentences, tables and figures.

Only words and layout are decided here; every number comes from `fairfd.audit_results.Audit`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from fairfd.evaluation.audit.limits import Limit, Violation
from fairfd.evaluation.audit.ranking import rank_shares
from fairfd.evaluation.audit.record import Audit, ConventionResult, SubjectsCurve
from fairfd.evaluation.metrics import NEAR_TRIVIAL
from fairfd.evaluation.report.figures import (
    DetectorPoint,
    accuracy_heat_map,
    gap_bars,
    subjects_plot,
    utility_fairness_scatter,
)
from fairfd.evaluation.report.verdict import (
    HEADLINE,
    SIGNIFICANT,
    counted,
    decimal,
    headline,
    in_points,
    interval,
    level_of,
    main_convention,
    p_value,
    percent,
    tested_images,
    verdict,
)
from fairfd.evaluation.report.views import (
    CellRow,
    Comparison,
    DetectorView,
    Family,
    GlanceRow,
    GroupRow,
    LimitCell,
    LimitRow,
    MetricRow,
    MetricTable,
    Page,
    Pair,
    RankCell,
    Ranking,
    RankRow,
    Subjects,
    SubjectsRow,
)
from fairfd.method.fairness import METRIC_NAMES

VERDICTS_ON_PAGE_ONE = 3
"""With more detectors page one shows the summary table and each verdict opens its detector's section."""

RANKED = ("DPD", "AADPD", "URDPD")
"""The metrics the paper ranks detectors by (Tables 13, 14)."""

FAMILIES = {"Naive": METRIC_NAMES[:4], "Approach averaged": METRIC_NAMES[4:8], "Utility regularised": METRIC_NAMES[8:]}

_CONVENTIONS = {
    "official": (
        "Official convention.",
        "As the code behind the published tables: approaches weigh the same, c = 1 in UR.",
    ),
    "paper": ("Paper convention.", "The equations as printed: images are pooled, c = 0 in UR."),
}

_PEERS = {
    "F_DP": "largest gap in how often the detector says fake, or genuine",
    "F_MEO": "worst gap among the four error rates (equalised odds, worst case)",
    "F_OAE": "gap in overall accuracy",
    "F_EO": "sum over groups of how far FPR and TPR lie from the overall ones",
    "F_EFPR": "the FPR part of F_EO",
    "fpr_gap": "gap in genuine faces called fake",
}


def make_page(audits: Sequence[Audit], limits: Sequence[Limit], violations: Sequence[Violation]) -> Page:
    """The page about one or more audits.

    Args:
        audits: one per detector.
        limits: limits set by the user, to be shown as met or not.
        violations: of these limits, from `fairfd.gates.check_limits`.
    """
    views = tuple(_view(audit) for audit in audits)
    broken = {(violation.detector, violation.limit) for violation in violations}
    return Page(
        names=_names(audits),
        lead=_lead(audits),
        version=audits[0].software.get("fairfd", ""),
        near_trivial=NEAR_TRIVIAL,
        views=views,
        glance=tuple(_glance(view) for view in views) if len(views) > 1 else (),
        verdicts_first=len(views) <= VERDICTS_ON_PAGE_ONE,
        limits=tuple(
            LimitRow(_limit_name(limit), tuple(_limit_cell(audit, limit, broken) for audit in audits))
            for limit in limits
        ),
        comparison=_comparison(audits) if len(audits) > 1 else None,
    )


def _names(audits: Sequence[Audit]) -> str:
    if len(audits) > VERDICTS_ON_PAGE_ONE:
        return counted(len(audits), "detector")
    return ", ".join(audit.detector for audit in audits)


def _glance(view: DetectorView) -> GlanceRow:
    estimate, audit = headline(view.audit), view.audit
    judged = estimate.value is not None and not audit.gate.near_trivial
    return GlanceRow(
        name=audit.detector,
        kind=view.verdict.kind,
        badge=view.verdict.badge,
        measured=in_points(estimate.value) if judged else "–",
        chance=in_points(estimate.null_q95) if judged else "–",
        corrected=in_points(estimate.debiased) if judged else "–",
        interval=interval(estimate, 100.0, 1) if judged else "–",
        auc=decimal(audit.utility.overall.auc),
    )


def _limit_name(limit: Limit) -> str:
    part = {"value": "", "debiased": ", corrected", "low": ", lower end", "high": ", upper end"}[limit.quantity]
    return f"{limit.metric} ({limit.convention}{part}) at most {limit.maximum:g}"


def _limit_cell(audit: Audit, limit: Limit, broken: Collection[tuple[str, Limit]]) -> LimitCell:
    observed = getattr(audit.conventions[limit.convention].metrics[limit.metric], limit.quantity)
    shown = "near-trivial" if audit.gate.near_trivial else "undefined" if observed is None else decimal(observed)
    return LimitCell((audit.detector, limit) not in broken, shown)


# -------------------------------------------------------------------------------------------------- one detector


def _view(audit: Audit) -> DetectorView:
    return DetectorView(
        audit=audit,
        verdict=verdict(audit),
        has_intervals=any(e.low is not None for c in audit.conventions.values() for e in c.metrics.values()),
        level=level_of(audit),
        heat_map=accuracy_heat_map(audit.approaches, audit.data.groups),
        bars=gap_bars(audit.approaches),
        group_rows=tuple(_group_rows(audit)),
        metric_tables=tuple(_metric_table(name, result) for name, result in audit.conventions.items()),
        utility=_utility(audit),
        peers=tuple(
            Pair(name.replace("fpr_gap", "FPR gap"), decimal(getattr(audit.peer_metrics, name)), note)
            for name, note in _PEERS.items()
        ),
        subjects=_subjects(audit.subjects_curve) if audit.subjects_curve else None,
        record=_record(audit),
        cells=_cells(audit),
    )


def _group_rows(audit: Audit) -> Iterator[GroupRow]:
    """False alarms, caught fakes (mean over approaches), AUC, people and images of each group."""
    real = next((row for row in audit.approaches if row.is_real), None)
    fakes = [row for row in audit.approaches if not row.is_real]
    people = audit.data.people_per_group
    for index, group in enumerate(audit.data.groups):
        accepted = real.accuracy[index] if real else None
        caught = [row.accuracy[index] for row in fakes if row.accuracy[index] is not None]
        yield GroupRow(
            group=group,
            false_alarm=percent(None if accepted is None else 1 - accepted),
            caught=percent(float(np.mean(np.array(caught, dtype=np.float64))) if caught else None),
            auc=decimal(audit.utility.per_group[group].auc),
            people=f"{people[index]:,}" if people else "unknown",
            images=f"{sum(row[index] for row in audit.data.images_per_cell):,}",
        )


def _metric_table(name: str, result: ConventionResult) -> MetricTable:
    title, explanation = _CONVENTIONS.get(name, (f"{name.capitalize()} convention.", ""))
    offset = f"{result.definition.utility_offset:g}"
    families = tuple(
        Family(family, offset if family.startswith("Utility") else None, tuple(_metric_rows(result, names)))
        for family, names in FAMILIES.items()
    )
    lines = (f"c + accuracy is 0 on {row}: it contributes 0 to UR." for row in result.degenerate_rows)
    hidden = Family("Approach averaged minus naive", None, tuple(_hidden_rows(result)))
    return MetricTable(title, explanation, (*families, hidden) if hidden.rows else families, tuple(lines))


def _hidden_rows(result: ConventionResult) -> Iterator[MetricRow]:
    """AA less naive; only an interval above 0 is evidence that averaging hides a gap."""
    for name, gap in result.hidden_gaps.items():
        yield MetricRow(
            name=name.split(" - ")[1],
            value=decimal(gap.value, 4),
            debiased=decimal(gap.debiased),
            interval=interval(gap),
            floor="",
            p="",
            is_significant=False,
        )


def _metric_rows(result: ConventionResult, names: Iterable[str]) -> Iterator[MetricRow]:
    for name in names:
        estimate = result.metrics[name]
        yield MetricRow(
            name=name,
            value=decimal(estimate.value, 4),
            debiased=decimal(estimate.debiased),
            interval=interval(estimate),
            floor=decimal(estimate.null_q95),
            p=p_value(estimate.p),
            is_significant=estimate.p is not None and estimate.p < SIGNIFICANT,
        )


def _utility(audit: Audit) -> tuple[Pair, ...]:
    found, peers = audit.utility.overall, audit.peer_metrics
    return (
        Pair("AUC", decimal(found.auc), "chance that a fake scores above a genuine face"),
        Pair("Average precision", decimal(found.ap)),
        Pair("Equal error rate", decimal(found.eer), "error when both kinds of mistake are equally frequent"),
        Pair("Balanced accuracy", decimal(found.balanced_acc), "mean of the next two"),
        Pair("Genuine faces accepted (TNR)", decimal(found.tnr), f"worst group {decimal(peers.worst_tnr)}"),
        Pair("Fakes caught (TPR)", decimal(found.tpr), f"worst group {decimal(peers.worst_tpr)}"),
        Pair("Accuracy", decimal(found.acc), "rewards “fake” when most images are fakes"),
    )


def _subjects(curve: SubjectsCurve) -> Subjects:
    rows = tuple(
        SubjectsRow(
            people=f"all ({point.people_per_group})" if point.is_all else str(point.people_per_group),
            mean=decimal(point.mean),
            band="–" if point.is_all else f"{decimal(point.low)} to {decimal(point.high)}",
            floor=decimal(point.null_q95),
        )
        for point in curve.points
    )
    return Subjects(curve.metric, curve.convention, subjects_plot(curve), rows)


def _record(audit: Audit) -> tuple[Pair, ...]:
    settings = audit.settings
    if isinstance(audit.threshold, dict):
        threshold = ", ".join(f"{group} {value:g}" for group, value in audit.threshold.items())
    else:
        threshold = f"{audit.threshold:g} (a score at or above it is called fake)"
    return (
        Pair("Decision threshold", threshold),
        Pair("Images", f"{audit.data.images:,}"),
        Pair("People", "unknown: no identity column" if audit.data.people is None else f"{audit.data.people:,}"),
        Pair("Bootstrap replicates", f"{settings.n_boot:,}, {settings.interval}, {level_of(audit)}"),
        Pair("Permutations", f"{settings.n_perm:,}"),
        Pair("Seed", str(settings.seed)),
        Pair("Empty cells", settings.empty),
        Pair("Scores, SHA-256", audit.data.sha256),
        *(Pair(name, version) for name, version in audit.software.items()),
    )


def _cells(audit: Audit) -> tuple[CellRow, ...]:
    people = audit.data.people_per_cell
    return tuple(
        CellRow(
            approach,
            tuple(
                f"{images:,} ({people[row][column]:,})" if people else f"{images:,}"
                for column, images in enumerate(audit.data.images_per_cell[row])
            ),
        )
        for row, approach in enumerate(audit.data.approaches)
    )


def _lead(audits: Sequence[Audit]) -> str:
    data = audits[0].data
    people = "" if data.people is None else f" of {data.people:,} people"
    tested = (
        f"Tested on {data.images:,} images{people} in {counted(len(data.groups), 'group')} ({', '.join(data.groups)}): "
        f"{tested_images(audits[0])}."
    )
    if any(audit.data.people_sha256 != data.people_sha256 for audit in audits):
        return f"{len(audits)} audits of different test data, so that their numbers are not comparable. First: {tested}"
    return tested


# ------------------------------------------------------------------------------------------------ several detectors


def _comparison(audits: Sequence[Audit]) -> Comparison:
    marks = [
        DetectorPoint(audit.detector, audit.utility.overall.auc, headline(audit), audit.gate.near_trivial)
        for audit in audits
        if audit.utility.overall.auc is not None and headline(audit).value is not None
    ]
    ranked = [audit for audit in audits if not audit.gate.near_trivial]
    trivial = [audit.detector for audit in audits if audit.gate.near_trivial]
    notes = [f"Left out as near-trivial: {', '.join(trivial)}."] if trivial else []
    obstacle = _ranking_obstacle(ranked)
    if obstacle:
        notes.append(f"No ranking: {obstacle}.")
    return Comparison(
        metric=HEADLINE,
        scatter=utility_fairness_scatter(marks, HEADLINE) if marks else Markup(""),
        rankings=() if obstacle else tuple(_rankings(ranked)),
        notes=tuple(notes),
    )


def _ranking_obstacle(audits: Sequence[Audit]) -> str:
    """Why detectors cannot be ranked on the same resampled people; empty when they can."""
    if len(audits) < 2:
        return "it needs two detectors that are not near-trivial"
    if any(audit.data.people is None for audit in audits):
        return "it needs an identity column, so that the same people are resampled for every detector"
    if any(main_convention(audit).replicates is None for audit in audits):
        return "the audits were made without intervals"
    settings = {
        (a.data.people_sha256, a.data.groups, a.data.approaches, a.settings.seed, a.settings.n_boot) for a in audits
    }
    return "" if len(settings) == 1 else "the audits differ in people, groups, approaches, seed or number of replicates"


def _rankings(audits: Sequence[Audit]) -> Iterator[Ranking]:
    """Rank probabilities under the main convention, over replicates in which no detector lost a cell."""
    results = [main_convention(audit) for audit in audits]
    values = np.stack([result.replicates.unpack() for result in results if result.replicates is not None])
    for metric in RANKED:
        column = values[:, :, METRIC_NAMES.index(metric)]
        whole = ~np.isnan(column).any(axis=0)
        if whole.any():
            convention = results[0].definition.name
            yield _ranking(metric, convention, [audit.detector for audit in audits], column[:, whole])


def _ranking(metric: str, convention: str, names: Sequence[str], values: Float[np.ndarray, "d b"]) -> Ranking:
    shares = rank_shares(values[:, :, None])[0]
    order = np.argsort(shares @ np.arange(len(names)), kind="stable")
    rows = tuple(
        # Tint up to 45 %: the text stays readable in light and dark.
        RankRow(names[d], tuple(RankCell(round(100 * share), round(45 * share)) for share in shares[d].tolist()))
        for d in order.tolist()
    )
    return Ranking(metric, convention, tuple(range(1, len(names) + 1)), rows)
