"""Plots as inline SVG: dots and intervals of arms, and effects with theirs (a forest plot)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from reproduce.judging import Outcome
from reproduce.statistics import student_interval


def dot_plot(values: Mapping[str, Sequence[float]], metric: str, width: int = 760) -> str:
    """Each arm's values over the seeds on a common axis.

    Args:
        values: arm to its values, one a seed.
        metric: the axis title.
        width: in pixels.

    Returns:
        An `<svg>` element whose colours follow the page.
    """
    finite = [value for row in values.values() for value in row if math.isfinite(value)]
    if not finite:
        return ""
    ticks = axis_ticks(min(finite), max(finite))
    left, row_height, top = _room_for(values), 26, 8
    height = top + row_height * len(values) + 40
    span = (ticks[-1] - ticks[0]) or 1.0

    def x(value: float) -> float:
        return left + (value - ticks[0]) / span * (width - left - 24)

    bottom = top + row_height * len(values)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(metric)} of each arm">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for index, (arm, row) in enumerate(values.items()):
        y = top + row_height * (index + 0.5)
        parts.append(f'<text class="arm" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(arm)}</text>')
        between = student_interval([value for value in row if math.isfinite(value)])
        if between:
            low, high = max(between[0], ticks[0]), min(between[1], ticks[-1])
            parts.append(f'<line class="interval" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.extend(
            f'<circle class="seed" cx="{x(value):.1f}" cy="{y:.1f}" r="4"><title>{value:.4g}</title></circle>'
            for value in row
            if math.isfinite(value)
        )
    parts.append(
        f'<text class="axis" x="{width / 2:.0f}" y="{height - 6}" text-anchor="middle">{escape(metric)}</text></svg>'
    )
    return "".join(parts)


def forest_plot(outcomes: Sequence[Outcome], metric: str, width: int = 760) -> str:
    """The effects of claims on one metric with their intervals by sign flips, around the line of no difference.

    Args:
        outcomes: claims whose effects have one unit.
        metric: the axis title.
        width: in pixels.

    Returns:
        An `<svg>` element whose colours follow the page.
    """
    rows = [each for each in outcomes if math.isfinite(each.effect)]
    if not rows:
        return ""
    ends = [0.0, *(each.effect for each in rows), *(end for each in rows if each.interval for end in each.interval)]
    ticks = axis_ticks(min(ends), max(ends))
    left, row_height, top = _room_for(each.claim.name for each in rows), 26, 8
    span = ticks[-1] - ticks[0]
    bottom = top + row_height * len(rows)

    def x(value: float) -> float:
        return left + (value - ticks[0]) / span * (width - left - 24)

    parts = [f'<svg viewBox="0 0 {width} {bottom + 40}" role="img" aria-label="effects: {escape(metric)}">']
    for tick in ticks:
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for index, each in enumerate(rows):
        y = top + row_height * (index + 0.5)
        parts.append(
            f'<text class="arm" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(each.claim.name)}</text>'
        )
        if each.interval:
            parts.append(
                f'<line class="interval" x1="{x(each.interval[0]):.1f}" x2="{x(each.interval[1]):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        kind = each.verdict.replace(" ", "-")
        parts.append(
            f'<circle class="effect {kind}" cx="{x(each.effect):.1f}" cy="{y:.1f}" r="5"><title>{each.effect:.4g}</title></circle>'
        )
    parts.append(
        f'<text class="axis" x="{width / 2:.0f}" y="{bottom + 34}" text-anchor="middle">difference in {escape(metric)}</text></svg>'
    )
    return "".join(parts)


def _room_for(names: Iterable[str]) -> int:
    """Pixels that the longest name takes left of the axis, at 12 pixels' height; at most half of a figure."""
    return min(380, 24 + round(6.6 * max(map(len, names))))


def history_plot(points: Sequence[tuple[str, float]], width: int = 160, height: int = 36) -> str:
    """A claim over time: its effect at each date, with the line of no difference where it is near.

    Args:
        points: date and effect, oldest first; dates are equally far apart.
        width: in pixels.
        height: in pixels.

    Returns:
        An `<svg>` element; empty for fewer than two finite effects.
    """
    finite = [(date, effect) for date, effect in points if math.isfinite(effect)]
    if len(finite) < 2:
        return ""
    low, high = min(effect for _, effect in finite), max(effect for _, effect in finite)
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.1 * span, high + 0.1 * span

    def y(effect: float) -> float:
        return 4 + (high - effect) / (high - low) * (height - 8)

    places = [(6 + index * (width - 12) / (len(finite) - 1), y(effect)) for index, (_, effect) in enumerate(finite)]
    zero = f'<line class="zero" x1="0" x2="{width}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>' if low <= 0 <= high else ""
    line = " ".join(f"{x:.1f},{y_:.1f}" for x, y_ in places)
    dots = "".join(
        f'<circle class="seed" cx="{x:.1f}" cy="{y_:.1f}" r="2.5"><title>{escape(date)}: {effect:.4g}</title></circle>'
        for (x, y_), (date, effect) in zip(places, finite, strict=True)
    )
    label = f"effect from {escape(finite[0][0])} to {escape(finite[-1][0])}"
    return (
        f'<svg class="history" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{zero}'
        f'<polyline class="course" points="{line}"/>{dots}</svg>'
    )


def axis_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that enclose [low, high]: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(float(value), 12) for value in np.arange(first, max(last, first + 1) + 1) * step]
