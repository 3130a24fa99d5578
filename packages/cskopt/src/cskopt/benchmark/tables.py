"""The tables that the command line prints."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from cskopt.benchmark.comparison import ProfileRow


def table_of(*columns: str) -> Table:
    """An empty table without lines, the first column of text, the others of numbers."""
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def percent(value: float | int) -> str:
    """A fraction in percent, a dash where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def mib(value: float | int | None) -> str:
    """Bytes in MiB, a dash where unknown."""
    return "-" if value is None else f"{value / 2**20:.2f}"


def layer_table(row: "ProfileRow") -> Table:
    """What each layer keeps (measured), computes (by formula) and trains."""
    report = row.report
    table = table_of(f"layer ({row.scheme})", "kind", "kept KiB", "forward MMAC", "backward MMAC", "trained")
    measured = dict(report.saved_by_layer)
    for cost in report.layers:
        kept = measured.pop(cost.name if cost.name != "(loss)" else "", 0)
        if kept or cost.forward_macs:
            table.add_row(
                cost.name,
                cost.kind,
                f"{kept / 1024:.1f}",
                f"{cost.forward_macs / 1e6:.1f}",
                f"{cost.backward_macs / 1e6:.1f}",
                str(cost.trained),
            )
    for name, kept in measured.items():
        table.add_row(name, "(function)", f"{kept / 1024:.1f}", "", "", "")
    return table


def scheme_table(rows: "Sequence[ProfileRow]") -> Table:
    """Schemes beside each other: memory, multiply-adds, time."""
    table = table_of(
        "scheme",
        "kept MiB",
        "by formula",
        "grads MiB",
        "Adam MiB",
        "peak MiB",
        "inference",
        "RSS",
        "CUDA",
        "MAC fwd G",
        "MAC bwd G",
        "step ms",
        "CPU ms",
        "trained",
    )
    for row in rows:
        r = row.report
        table.add_row(
            row.scheme,
            mib(r.saved),
            mib(r.predicted.kept),
            mib(r.grads),
            mib(r.optim_state),
            mib(r.peak_allocated),
            mib(r.peak_inference),
            mib(r.peak_rss),
            mib(r.peak_cuda),
            f"{r.macs_forward / 1e9:.3f}",
            f"{r.macs_backward / 1e9:.3f}",
            f"{r.step_ms:.0f}",
            f"{r.cpu_ms:.0f}",
            f"{r.trained:,}",
        )
    return table
