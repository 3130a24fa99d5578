"""Speed as a ratio: ours and theirs in turn, in one process, so that a machine's mood cancels."""

import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

from reproduce.claims import Speed


@dataclass(frozen=True)
class Timing:
    """A speed comparison with its numbers.

    Attributes:
        id: of the comparison.
        ours: median seconds per unit of work.
        theirs: median seconds per unit of work.
        ratio: theirs / ours: how many times faster ours is.
        target: the ratio aimed at.
        our_peak: peak MiB that ours allocated, or None where not asked for.
        their_peak: peak MiB that theirs allocated.
    """

    id: str
    statement: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    target: float
    our_peak: float | None = None
    their_peak: float | None = None

    @property
    def reaches_target(self) -> bool:
        """Whether the ratio is at least the one aimed at."""
        return self.ratio >= self.target


def time_speed(speed: Speed) -> Timing:
    """Time both ways in turn; the first call of ours warms up, and the medians count."""
    ours, theirs = speed.prepare()
    ours()
    our_seconds, their_seconds = [], []
    for _ in range(speed.repeats):
        our_seconds.append(_seconds(ours))
        their_seconds.append(_seconds(theirs))
    per_unit = statistics.median(our_seconds) / speed.scale
    other = statistics.median(their_seconds)
    peaks = (_peak_mib(ours), _peak_mib(theirs)) if speed.peak_memory else (None, None)
    return Timing(speed.id, speed.statement, speed.unit, per_unit, other, other / per_unit, speed.target, *peaks)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _peak_mib(call: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
