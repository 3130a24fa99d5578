"""What the command line prints: small tables of numbers that the report holds in full."""

from rich.table import Table

from fairfd.evaluation.audit.record import Audit, Estimate
from fairfd.evaluation.audit.thresholds import ThresholdAudit


def metrics_table(audit: Audit) -> Table:
    """The twelve metrics of a detector under each convention: value, debiased value, interval, p-value."""
    table = Table(title=audit.detector, title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    for name, result in audit.conventions.items():
        table.add_column(f"{name} (c={result.definition.utility_offset:g})", justify="right")
        table.add_column("debiased [interval]", justify="right")
        table.add_column("p", justify="right")
    results = list(audit.conventions.values())
    for metric in results[0].metrics:
        cells = [cell for result in results for cell in _cells(result.metrics[metric])]
        table.add_row(metric, *cells)
    return table


def _cells(estimate: Estimate) -> tuple[str, str, str]:
    between = "" if estimate.low is None else f" [{_decimal(estimate.low)}, {_decimal(estimate.high)}]"
    debiased = "" if estimate.debiased is None else f"{_decimal(estimate.debiased)}{between}"
    p = "" if estimate.p is None else f"{estimate.p:.3f}"
    return _decimal(estimate.value), debiased, p


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def accuracy_table(audit: Audit) -> Table:
    """Accuracy of each approach (real faces first) in each group, with the gap between the groups."""
    table = Table(box=None, pad_edge=False)
    table.add_column("accuracy")
    for name in (*audit.data.groups, "gap"):
        table.add_column(name, justify="right")
    for row in audit.approaches:
        table.add_row(row.approach, *(_decimal(value) for value in (*row.accuracy, row.gap.value)))
    return table


def thresholds_table(found: ThresholdAudit, rows: dict[str, tuple[float | None, float | None]]) -> Table:
    """Group thresholds, and what they do to the metrics of people who did not set them.

    Args:
        found: the analysis.
        rows: metric to its value at the common and at the group thresholds.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("", "common threshold", "group thresholds"):
        table.add_column(name, justify="right" if name else "left")
    for group, threshold in found.thresholds.items():
        table.add_row(f"threshold {group}", "", f"{threshold:.3f}")
    for metric, (before, after) in rows.items():
        table.add_row(metric, _decimal(before), _decimal(after))
    return table
