"""A badge per package: how many of its claims hold, do not hold and are open, by the largest tier that is recorded."""

from html import escape

from reproduce.claims import TIERS, Suite
from reproduce.judging import count_verdicts, judge
from reproduce.records import load_record, measurements_of
from tenfold import UserError

HEIGHT = 20
LETTER = 6.6
"""Width of a letter of 11 pixels' Verdana, on average."""


def badge(suite: Suite) -> str:
    """The badge of a package as SVG.

    Args:
        suite: its claims.

    Raises:
        UserError: nothing of it is recorded.
    """
    records = [record for tier in reversed(TIERS) if (record := load_record(suite.package, tier))]
    if not records:
        raise UserError(f"{suite.package}: nothing is recorded; run `reproduce run --only {suite.package} --record`")
    record = records[0]
    counts = count_verdicts(judge(record.tier, measurements_of(record, suite)))
    label = f"claims ({record.tier})"
    value = f"{counts['hold']} hold, {counts['do not hold']} do not, {counts['open']} open"
    return draw_badge(label, value)


def draw_badge(label: str, value: str) -> str:
    """A label on grey beside a value on blue: neither colour praises or blames."""
    left, right = (round(LETTER * len(words)) + 12 for words in (label, value))
    texts = "".join(
        f'<text x="{x}" y="14">{escape(words)}</text>' for x, words in ((left / 2, label), (left + right / 2, value))
    )
    title = escape(f"{label}: {value}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}" role="img" aria-label="{title}">'
        f'<title>{title}</title><rect width="{left}" height="{HEIGHT}" fill="#555"/>'
        f'<rect x="{left}" width="{right}" height="{HEIGHT}" fill="#1f6feb"/>'
        f'<g fill="#fff" text-anchor="middle" font-family="Verdana,Geneva,sans-serif" font-size="11">{texts}</g></svg>\n'
    )
