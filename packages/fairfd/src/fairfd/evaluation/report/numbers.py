"""Numbers as a reader of the report sees them: percentage points, per cent, three decimals; a dash where undefined."""

from fairfd.evaluation.audit.record import Audit, Interval

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
