"""A pytest plugin that prints how long the tests of each package took, beside its budget."""

from collections import defaultdict
from typing import Any

PACKAGE_BUDGET_SECONDS = 75.0
"""What the tests of one package may take on two cores."""


def share_of(nodeid: str) -> str:
    """The package (or `shared`, `benchmarks`, `tests`) that a test belongs to."""
    parts = nodeid.split("::")[0].split("/")
    return parts[1] if parts[0] == "packages" and len(parts) > 2 else parts[0]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print one line per package after a run."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                seconds[share_of(report.nodeid)] += report.duration
    if not seconds:
        return
    workers = getattr(terminalreporter.config.option, "numprocesses", None) or 1
    terminalreporter.section(f"seconds per package, on {workers} processes", sep="-")
    for name, total in sorted(seconds.items()):
        spent = total / workers
        over = f"  over the budget of {PACKAGE_BUDGET_SECONDS:.0f}" if spent > PACKAGE_BUDGET_SECONDS else ""
        terminalreporter.write_line(f"{name:<16}{spent:7.1f}{over}")
