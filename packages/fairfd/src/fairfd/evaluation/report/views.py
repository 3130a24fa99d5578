"""What a report page is made of: plain, ready-worded pieces that the template only lays out."""

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from fairfd.evaluation.audit.record import Audit


@dataclass(frozen=True)
class Pair:
    """A named value with an optional remark."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """The first thing a reader sees about a detector.

    Attributes:
        kind: "gap" (shown), "none" (none shown beyond chance) or "void" (cannot be judged); chooses the colour.
        badge: the verdict in a few words.
        sentences: the verdict in plain language.
        facts: the numbers behind it.
    """

    kind: Literal["gap", "none", "void"]
    badge: str
    sentences: tuple[str, ...]
    facts: tuple[Pair, ...]


@dataclass(frozen=True)
class GroupRow:
    """Mistakes and people of one group."""

    group: str
    false_alarm: str
    caught: str
    auc: str
    people: str
    images: str


@dataclass(frozen=True)
class MetricRow:
    """One metric under one convention."""

    name: str
    value: str
    debiased: str
    interval: str
    floor: str
    p: str
    is_significant: bool


@dataclass(frozen=True)
class Family:
    """Four metrics; `offset` is the c of the utility-regularised ones, None elsewhere."""

    name: str
    offset: str | None
    rows: tuple[MetricRow, ...]


@dataclass(frozen=True)
class MetricTable:
    """The twelve metrics under one convention."""

    title: str
    explanation: str
    families: tuple[Family, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SubjectsRow:
    """One size of the subjects curve."""

    people: str
    mean: str
    band: str
    floor: str


@dataclass(frozen=True)
class Subjects:
    """The subjects curve, drawn and tabled."""

    metric: str
    convention: str
    plot: Markup
    rows: tuple[SubjectsRow, ...]


@dataclass(frozen=True)
class CellRow:
    """Images (people) of one approach."""

    approach: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class DetectorView:
    """Everything the page shows about one detector."""

    audit: Audit
    verdict: Verdict
    has_intervals: bool
    level: str
    heat_map: Markup
    bars: Markup
    group_rows: tuple[GroupRow, ...]
    metric_tables: tuple[MetricTable, ...]
    utility: tuple[Pair, ...]
    peers: tuple[Pair, ...]
    subjects: Subjects | None
    record: tuple[Pair, ...]
    cells: tuple[CellRow, ...]


@dataclass(frozen=True)
class RankCell:
    """A rank probability in per cent, and how strongly to tint its cell."""

    percent: int
    tint: int


@dataclass(frozen=True)
class RankRow:
    """Rank probabilities of one detector."""

    name: str
    cells: tuple[RankCell, ...]


@dataclass(frozen=True)
class Ranking:
    """Rank probabilities of all ranked detectors by one metric, the likely fairest first."""

    metric: str
    convention: str
    ranks: tuple[int, ...]
    rows: tuple[RankRow, ...]


@dataclass(frozen=True)
class Comparison:
    """Several detectors beside each other."""

    metric: str
    scatter: Markup
    rankings: tuple[Ranking, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LimitCell:
    """How one detector stands against one limit."""

    is_met: bool
    note: str


@dataclass(frozen=True)
class LimitRow:
    """One limit against every detector."""

    limit: str
    cells: tuple[LimitCell, ...]


@dataclass(frozen=True)
class GlanceRow:
    """One detector in the summary of several."""

    name: str
    kind: str
    badge: str
    measured: str
    chance: str
    corrected: str
    interval: str
    auc: str


@dataclass(frozen=True)
class Page:
    """The whole page.

    Attributes:
        names: of the detectors.
        lead: what was tested.
        version: of this software.
        near_trivial: how a gated detector is headed.
        views: the detectors.
        glance: all detectors in one table, when there are several.
        verdicts_first: verdicts stand on page one; with many detectors each stands in its own section.
        limits: limits set by the user.
        comparison: several detectors beside each other.
    """

    names: str
    lead: str
    version: str
    near_trivial: str
    views: tuple[DetectorView, ...]
    glance: tuple[GlanceRow, ...]
    verdicts_first: bool
    limits: tuple[LimitRow, ...]
    comparison: Comparison | None
