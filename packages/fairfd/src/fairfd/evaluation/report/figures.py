"""The report's figures as inline SVG: accuracy by approach and group, gaps, detectors compared, people needed.

Each function draws one figure (what the paper shows in Figures 2 and 3 and Tables 4, 13, 14) and returns markup. The
figures are 420 units wide so that their text stays readable on a telephone; they carry no colour of their own but class
names that the page's style sheet fills in, so that they follow light, dark and print. Every text passes through
markupsafe.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fairfd.evaluation.audit.record import ApproachResult, Interval, SubjectsCurve

WIDTH = 420.0
"""Figure width in SVG units, about pixels on a telephone."""

CHARACTER = 6.7
"""Width of a character of a wide typeface at the 11-unit label size, used to keep labels inside their place."""


@dataclass(frozen=True)
class DetectorPoint:
    """One detector in the utility-fairness plane.

    Attributes:
        name: of the detector.
        auc: how well it detects, in [0, 1].
        gap: the fairness metric with its interval; smaller is fairer.
        near_trivial: drawn hollow; not to be ranked.
    """

    name: str
    auc: float
    gap: Interval
    near_trivial: bool


def accuracy_heat_map(rows: Sequence[ApproachResult], groups: Sequence[str]) -> Markup:
    """Share of images classified correctly, one row per approach (genuine faces first), one column per group.

    Darker means more mistakes. Empty cells are hatched. Grows wider than 420 units beyond seven groups.
    """
    label = _label_width([row.approach for row in rows])
    cell = max(46.0, (WIDTH - label) / len(groups))
    longest = min(max(map(len, groups)) * CHARACTER, 120.0)
    slanted = longest > cell
    # Slanted by 40 degrees, a label needs sin(40) of its length above the matrix and cos(40) beside it.
    head, overhang = (22 + 0.64 * longest, max(0.0, 0.77 * longest - cell / 2)) if slanted else (22.0, 0.0)
    width = label + cell * len(groups) + overhang
    parts = [
        _slanted_text(label + cell * (column + 0.5), head - 8, _shorten(group, 120.0), full=group)
        if slanted
        else _text(label + cell * (column + 0.5), head - 8, group, "label middle")
        for column, group in enumerate(groups)
    ]
    y = head
    for row in rows:
        parts.append(_text(label - 8, y + 18, _shorten(_row_name(row), label - 8), "label end", full=row.approach))
        for column, accuracy in enumerate(row.accuracy):
            x = label + cell * column
            name = f"{_row_name(row)}, {groups[column]}: "
            if accuracy is None:
                parts.append(_rect(x + 1, y + 1, cell - 2, 26.0, "empty", title=name + "no images"))
                parts.append(_text(x + cell / 2, y + 18, "–", "label middle"))
                continue
            # Opacity up to .85: the label stays readable in front of the darkest cell in light and dark.
            title = f"{name}{accuracy:.1%} correct"
            parts.append(_rect(x + 1, y + 1, cell - 2, 26.0, "heat", title=title, opacity=0.04 + 0.81 * (1 - accuracy)))
            parts.append(_text(x + cell / 2, y + 18, f"{100 * accuracy:.1f}", "value middle"))
        y += 28 if not row.is_real else 36
    return _figure(width, y + 2, "Accuracy in per cent by approach and group", parts)


def gap_bars(rows: Sequence[ApproachResult]) -> Markup:
    """Largest difference between groups for each approach, in percentage points, with its interval as a whisker.

    The bar ends at the debiased gap; a tick marks the measured one, which a reflected interval need not contain.
    """
    drawn = [row for row in rows if row.gap.value is not None]
    ticks = _ticks(max((_top(row.gap) for row in drawn), default=0.0))
    left, right, row_height = 8.0, 112.0, 38.0
    scale = _linear(0.0, ticks[-1], left, WIDTH - right)
    height = 8 + row_height * len(drawn)
    parts = [_vertical(scale(tick), 4.0, height, "grid") for tick in ticks]
    parts += [_text(scale(tick), height + 15, f"{100 * tick:g}", "label middle") for tick in ticks]
    parts.append(_text(WIDTH, height + 15, "percentage points", "label end"))
    for index, row in enumerate(drawn):
        y = 8 + row_height * index
        value = best(row.gap)
        parts.append(_text(left, y + 11, _shorten(_row_name(row), WIDTH - left), "label", full=row.approach))
        parts.append(_rect(left, y + 16, max(scale(value) - left, 0.5), 12.0, "bar real" if row.is_real else "bar"))
        text = f"{100 * value:.1f}"
        if row.gap.low is not None and row.gap.high is not None:
            parts.append(_whisker(scale(row.gap.low), scale(row.gap.high), y + 22))
            text += f" [{100 * row.gap.low:.1f}–{100 * row.gap.high:.1f}]"
        if row.gap.debiased is not None:
            parts.append(_vertical(scale(row.gap.value or 0.0), y + 14, y + 30, "raw"))
        parts.append(_text(WIDTH, y + 26, text, "value end"))
    return _figure(WIDTH, height + 20, "Gap between groups for each approach", parts)


def utility_fairness_scatter(points: Sequence[DetectorPoint], metric: str) -> Markup:
    """Detectors by AUC (right is better) and fairness metric (down is fairer), intervals as whiskers."""
    left, bottom, height = 40.0, 262.0, 300.0
    auc_ticks = _auc_ticks([point.auc for point in points])
    x = _linear(auc_ticks[0], auc_ticks[-1], left, WIDTH - 12)
    ticks = _ticks(max(_top(point.gap) for point in points))
    y = _linear(0.0, ticks[-1], bottom, 12.0)
    parts = [_horizontal(left, WIDTH - 12, y(tick), "grid") for tick in ticks]
    parts += [_text(left - 5, y(tick) + 4, f"{tick:g}", "label end") for tick in ticks]
    parts += [_text(x(tick), bottom + 15, f"{tick:g}", "label middle") for tick in auc_ticks]
    parts.append(_text(WIDTH - 12, bottom + 32, "AUC: better detection →", "label end"))
    parts.append(_text(left, bottom + 32, f"↑ {metric}: less fair", "label"))
    marks = [(x(point.auc), y(best(point.gap))) for point in points]
    for point, (px, py) in zip(points, marks, strict=True):
        if point.gap.low is not None and point.gap.high is not None:
            parts.append(_vertical(px, y(point.gap.low), y(point.gap.high), "whisker"))
        kind = "dot trivial" if point.near_trivial else "dot"
        parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(kind, px, py))
    names = [point.name + (" (near-trivial)" if point.near_trivial else "") for point in points]
    for name, (lx, ly) in zip(names, _place_labels(names, marks, left, bottom), strict=True):
        parts.append(_text(lx, ly, name, "label"))
    return _figure(WIDTH, height, f"Detection quality against {metric}", parts)


def subjects_plot(curve: SubjectsCurve) -> Markup:
    """The metric when fewer people are tested: mean and 95 % band over random draws, against the noise floor."""
    points = curve.points
    left, bottom = 40.0, 222.0
    counts = [math.log(point.people_per_group) for point in points]
    x = _linear(counts[0], max(counts[-1], counts[0] + 1e-9), left + 14, WIDTH - 24)
    ticks = _ticks(max(max(point.high, point.null_q95 or 0.0) for point in points))
    y = _linear(0.0, ticks[-1], bottom, 12.0)
    parts = [_horizontal(left, WIDTH - 10, y(tick), "grid") for tick in ticks]
    parts += [_text(left - 5, y(tick) + 4, f"{tick:g}", "label end") for tick in ticks]
    upper = [(x(count), y(point.high)) for count, point in zip(counts, points, strict=True)]
    lower = [(x(count), y(point.low)) for count, point in zip(counts, points, strict=True)]
    parts.append(Markup('<polygon class="band" points="{}"/>').format(_path(upper + lower[::-1])))
    floor = [(x(c), y(p.null_q95)) for c, p in zip(counts, points, strict=True) if p.null_q95 is not None]
    chance = [(x(c), y(p.null_mean)) for c, p in zip(counts, points, strict=True) if p.null_mean is not None]
    parts.append(Markup('<polyline class="floor" points="{}"/>').format(_path(floor)))
    parts.append(Markup('<polyline class="floor mean" points="{}"/>').format(_path(chance)))
    middle = [(x(count), y(point.mean)) for count, point in zip(counts, points, strict=True)]
    parts.append(Markup('<polyline class="curve" points="{}"/>').format(_path(middle)))
    for (px, py), point in zip(middle, points, strict=True):
        parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(px, py))
        if point.is_all:
            parts.append(_text(WIDTH - 2, bottom + 15, f"all: {point.people_per_group}", "label end"))
        elif px < WIDTH - 85:
            # Nearer to the end it would run into the label of the last point.
            parts.append(_text(px, bottom + 15, str(point.people_per_group), "label middle"))
    parts.append(_text(WIDTH - 10, bottom + 32, "people per group (log scale)", "label end"))
    parts.append(_text(left, bottom + 32, curve.metric, "label"))
    return _figure(WIDTH, bottom + 40, f"{curve.metric} by number of people tested", parts)


# ------------------------------------------------------------------------------------------------------ geometry


def best(gap: Interval) -> float:
    """The debiased value, the measured one without intervals, 0 when undefined."""
    return gap.debiased if gap.debiased is not None else gap.value or 0.0


def _linear(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _ticks(largest: float) -> list[float]:
    """Round numbers from 0 to at least `largest`, at most seven; up to .02 for an empty axis."""
    largest = max(largest, 0.02)
    power = 10.0 ** math.floor(math.log10(largest / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if 5 * factor * power >= largest)
    return [round(index * step, 10) for index in range(math.ceil(largest / step - 1e-9) + 1)]


def _auc_ticks(values: Sequence[float]) -> list[float]:
    """Multiples of .05 (of .1 over a wide range) that enclose the values with room for labels."""
    low, high = math.floor(min(values) * 20 - 0.2) * 5, min(100, math.ceil(max(values) * 20 + 1) * 5)
    step = 5 if high - low <= 30 else 10
    low -= low % step
    return [percent / 100 for percent in range(low, high + step, step) if percent <= 100]


def _top(gap: Interval) -> float:
    return max(gap.value or 0.0, gap.high or 0.0)


def _label_width(names: Sequence[str]) -> float:
    return min(140.0, 16 + CHARACTER * max(max(map(len, names)), len("genuine faces")))


def _shorten(text: str, width: float) -> str:
    room = max(3, int(width / CHARACTER))
    return text if len(text) <= room else text[: room - 1] + "…"


def _row_name(row: ApproachResult) -> str:
    return "genuine faces" if row.is_real else row.approach


def _place_labels(
    names: Sequence[str], marks: Sequence[tuple[float, float]], left: float, bottom: float
) -> list[tuple[float, float]]:
    """Left end and baseline of each label: the first of right, left, above, below that hides no mark and no label."""
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in marks]
    placed = []
    for name, (px, py) in zip(names, marks, strict=True):
        width = CHARACTER * len(name)
        offsets = [(9, 4), (-9 - width, 4), (-width / 2, -10), (-width / 2, 18), (9, 16), (9, -8), (-9 - width, 16)]
        boxes = [(px + dx, py + dy - 10, px + dx + width, py + dy + 2) for dx, dy in offsets]
        inside = [box for box in boxes if left <= box[0] and box[2] <= WIDTH and box[1] >= 0 and box[3] <= bottom + 4]
        free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
        box = (free or inside or boxes)[0]
        taken.append(box)
        placed.append((box[0], box[3] - 2))
    return placed


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


# ---------------------------------------------------------------------------------------------------------- markup


def _figure(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}" style="min-width:{:.0f}px">')
    # 320: a 400-pixel window less the page's margins; wider figures scroll inside their frame.
    return head.format(width, height, title, 320 * width / WIDTH) + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, text: str, kind: str, *, full: str | None = None) -> Markup:
    title = Markup("<title>{}</title>").format(full) if full and full != text else Markup("")
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}{}</text>').format(kind, x, y, text, title)


def _slanted_text(x: float, y: float, text: str, *, full: str) -> Markup:
    turn = Markup('<g transform="translate({:.1f} {:.1f}) rotate(-40)">{}</g>')
    return turn.format(x, y, _text(0.0, 0.0, text, "label", full=full))


def _rect(
    x: float, y: float, width: float, height: float, kind: str, *, title: str = "", opacity: float | None = None
) -> Markup:
    faded = Markup(' fill-opacity="{:.3f}"').format(opacity) if opacity is not None else Markup("")
    inner = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"{}>{}</rect>').format(
        kind, x, y, width, height, faded, inner
    )


def _vertical(x: float, y1: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(kind, x, x, y1, y2)


def _horizontal(x1: float, x2: float, y: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(kind, x1, x2, y, y)


def _whisker(x1: float, x2: float, y: float) -> Markup:
    ends = [_vertical(end, y - 4, y + 4, "whisker") for end in (x1, x2)]
    return _horizontal(x1, x2, y, "whisker") + ends[0] + ends[1]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
