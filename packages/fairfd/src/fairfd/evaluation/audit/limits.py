"""Limits on the metrics for automated checks: `--max aadpd=.05`, `--max paper.urdpd.high=.1`.

A limit reads `[convention.]metric[.quantity]=number`; names are case-insensitive. The convention is `official`
unless named, the quantity `value` unless named (`high`, the upper end of the interval, is the cautious choice). A
limit that cannot be judged, because the metric is undefined or the detector near-trivial, counts as violated: an
all-fake detector has twelve zeros.
"""

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fairfd.evaluation.audit.record import Audit
from fairfd.method.fairness import METRIC_NAMES
from tenfold.errors import UserError

Quantity = Literal["value", "debiased", "low", "high"]

CONVENTIONS = ("official", "paper")
QUANTITIES: tuple[Quantity, ...] = ("value", "debiased", "low", "high")

_METRICS: dict[str, str] = {name.lower(): name for name in METRIC_NAMES}


@dataclass(frozen=True)
class Limit:
    """One upper limit.

    Attributes:
        convention: "official" or "paper".
        metric: one of the twelve, in the paper's spelling.
        quantity: "value", "debiased", or an end of the interval, "low" or "high".
        maximum: largest number that passes.
    """

    convention: str
    metric: str
    quantity: Quantity
    maximum: float

    def __str__(self) -> str:
        return f"{self.convention}.{self.metric}.{self.quantity} <= {self.maximum:g}"


@dataclass(frozen=True)
class Violation:
    """A limit that a detector does not meet.

    Attributes:
        detector: its name.
        limit: which one.
        observed: the number found, None when it is undefined.
        reason: one sentence for the terminal and the report.
    """

    detector: str
    limit: Limit
    observed: float | None
    reason: str


def parse_limit(text: str) -> Limit:
    """A limit from `[convention.]metric[.quantity]=number`.

    Raises:
        UserError: an unknown name (with the nearest known one) or a number that is missing, negative or not finite.
    """
    name, _, number = text.partition("=")
    words = [word.strip().lower() for word in name.split(".")]
    convention = words.pop(0) if words[0] in CONVENTIONS else "official"
    quantity = next((q for q in QUANTITIES if words[1:] == [q]), None) if len(words) > 1 else "value"
    if not words or words[0] not in _METRICS or quantity is None or len(words) > 2:
        raise UserError(f"--max {text}: {_unknown_name(words, quantity)}")
    try:
        maximum = float(number)
    except ValueError:
        maximum = math.nan
    if not 0 <= maximum < math.inf:
        raise UserError(f"--max {text}: give a number of at least 0 after '=', for example {name or 'aadpd'}=.05")
    return Limit(convention, _METRICS[words[0]], quantity, maximum)


def _unknown_name(words: Sequence[str], quantity: Quantity | None) -> str:
    if words and words[0] in _METRICS and quantity is None:
        return f"'{'.'.join(words[1:])}' is none of {', '.join(QUANTITIES)}"
    known = [*_METRICS, *CONVENTIONS]
    close = difflib.get_close_matches(words[0], known, n=1) if words else []
    hint = f"; did you mean {close[0]}?" if close else ""
    listed = f"metrics: {', '.join(_METRICS)}; paper.NAME for the other convention"
    return f"no metric '{'.'.join(words)}'{hint} ({listed})"


def parse_limits(texts: Iterable[str]) -> tuple[Limit, ...]:
    """Several limits; a text may hold more than one, separated by commas."""
    return tuple(parse_limit(part.strip()) for text in texts for part in text.split(",") if part.strip())


def check_limits(audits: Sequence[Audit], limits: Sequence[Limit]) -> tuple[Violation, ...]:
    """Every limit that some detector does not meet, by detector, in the order given. Empty means that all passed.

    Raises:
        UserError: a limit on a convention that an audit was made without.
    """
    found = (_check(audit, limit) for audit in audits for limit in limits)
    return tuple(violation for violation in found if violation is not None)


def _check(audit: Audit, limit: Limit) -> Violation | None:
    if limit.convention not in audit.conventions:
        raise UserError(
            f"limit {limit}: the audit of {audit.detector} has no convention {limit.convention}; "
            "run it with --convention both"
        )
    observed = getattr(audit.conventions[limit.convention].metrics[limit.metric], limit.quantity)
    if audit.gate.near_trivial:
        reason = f"{audit.detector} is near-trivial ({'; '.join(audit.gate.reasons)}): its fairness cannot be judged"
    elif observed is None:
        reason = f"{audit.detector}: {limit.convention}.{limit.metric}.{limit.quantity} is undefined on this data"
    elif observed > limit.maximum:
        name = f"{limit.convention}.{limit.metric}.{limit.quantity}"
        reason = f"{audit.detector}: {name} is {observed:.4g}, above the limit {limit.maximum:g}"
    else:
        return None
    return Violation(audit.detector, limit, observed, reason)
