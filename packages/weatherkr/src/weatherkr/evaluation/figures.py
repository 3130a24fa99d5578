"""Per-task curves as SVG: PSNR on each task after each task learnt, one line a method."""

from collections.abc import Mapping
from html import escape

from weatherkr.evaluation.report import ContinualReport

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#a0522d")
_WIDTH, _HEIGHT, _LEFT, _TOP = 300, 200, 46, 30


def curves_svg(reports: Mapping[str, ContinualReport]) -> str:
    """A panel for each task, side by side.

    Args:
        reports: method to what it scored after each task; all of the same tasks.

    Returns:
        An SVG document. The dashed line is the degraded pictures' PSNR.
    """
    first = next(iter(reports.values()))
    values = [s for report in reports.values() for row in report.rows for s in row.values()]
    low = int(min(min(s.psnr, s.input_psnr) for s in values)) - 1
    high = int(max(max(s.psnr, s.input_psnr) for s in values)) + 2
    total = len(first.tasks) * (_WIDTH + 20) + 110
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {_HEIGHT + 80}" font-family="sans-serif" font-size="12">',
        f'<rect width="{total}" height="{_HEIGHT + 80}" fill="white"/>',
    ]
    for number, task in enumerate(first.tasks):
        parts += _panel(float(number * (_WIDTH + 20)), task, reports, low, high)
    for number, name in enumerate(reports):
        y = _TOP + 14 + 18 * number
        parts.append(f'<text x="{total - 100}" y="{y}" fill="{_COLOURS[number % len(_COLOURS)]}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(offset: float, task: str, reports: Mapping[str, ContinualReport], low: int, high: int) -> list[str]:
    order = next(iter(reports.values())).tasks
    step = (_WIDTH - 40) / max(len(order) - 1, 1)

    def x(after: int) -> float:
        return offset + _LEFT + 10 + after * step * 0.8

    def y(psnr: float) -> float:
        return _TOP + _HEIGHT * (high - psnr) / (high - low)

    parts = [f'<text x="{offset + _LEFT}" y="18">PSNR on {escape(task)}, dB</text>']
    for level in range(low, high + 1, max((high - low) // 6, 1)):
        parts.append(
            f'<line x1="{offset + _LEFT}" x2="{offset + _WIDTH}" y1="{y(float(level)):.1f}" y2="{y(float(level)):.1f}" stroke="#dddddd"/>'
        )
        parts.append(f'<text x="{offset + _LEFT - 6}" y="{y(float(level)) + 4:.1f}" text-anchor="end">{level}</text>')
    parts += [
        f'<text x="{x(after):.1f}" y="{_TOP + _HEIGHT + 20}" text-anchor="middle">after {escape(name)}</text>'
        for after, name in enumerate(order)
    ]
    for number, report in enumerate(reports.values()):
        points = [(after, row[task].psnr) for after, row in enumerate(report.rows) if task in row]
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x(after):.1f},{y(psnr):.1f}" for after, psnr in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(after):.1f}" cy="{y(psnr):.1f}" r="3" fill="{colour}"/>' for after, psnr in points]
    level = next(row[task].input_psnr for report in reports.values() for row in report.rows if task in row)
    parts.append(
        f'<line x1="{offset + _LEFT}" x2="{offset + _WIDTH}" y1="{y(float(level)):.1f}" y2="{y(float(level)):.1f}" stroke="black" stroke-dasharray="4 3"/>'
    )
    return parts
