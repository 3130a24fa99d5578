"""One call from scores to everything an auditor needs (paper Tables 2-14; intervals, noise floor and gate are ours).

`audit(scores)` computes the twelve metrics under each convention with intervals and noise floors, the accuracy matrix
with per-row gaps, utility, the peer metrics, the near-trivial gate and, on request, the subjects curve.
"""

import hashlib
import math
import platform
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from jaxtyping import Float

from fairfd.data.scores.validation import Threshold, encode
from fairfd.evaluation.audit.record import (
    FORMAT_VERSION,
    ApproachResult,
    Audit,
    ConventionResult,
    DataSummary,
    Estimate,
    Interval,
    Replicates,
    Settings,
    SubjectsCurve,
    UtilityResult,
)
from fairfd.evaluation.audit.sample_size import subjects_curve
from fairfd.evaluation.audit.uncertainty import (
    Bootstrap,
    IntervalKind,
    Permutation,
    approach_gaps,
    bootstrap,
    difference,
    permutation_test,
)
from fairfd.evaluation.metrics import Scorecard, Utility, utility_gate
from fairfd.evaluation.related_metrics import peer_metrics
from fairfd.evaluation.scores.score_table import MIN_IDENTITIES, ScoreTable, Text
from fairfd.method.fairness import METRIC_NAMES, OFFICIAL, PAPER, Convention, Empty, fairness, spread, utilities
from fairfd.method.rates import RateTable
from tenfold.errors import UserError

AA_AND_NAIVE = tuple(zip(METRIC_NAMES[4:8], METRIC_NAMES[:4], strict=True))
"""Which naive metric each approach-averaged one sharpens."""

_AT_A_TIME = 65536
"""Names that are Python strings at a time."""

ENOUGH = 200
"""Replicates below which intervals are too coarse to report; one fewer permutation will do."""


def audit(
    scores: ScoreTable,
    *,
    conventions: Sequence[Convention] = (OFFICIAL, PAPER),
    threshold: Threshold = 0.5,
    n_boot: int = 1000,
    n_perm: int = 999,
    seed: int = 0,
    level: float = 0.95,
    interval: IntervalKind = "basic",
    empty: Empty = "raise",
    min_identities: int = MIN_IDENTITIES,
    subject_sizes: Sequence[int] = (),
) -> Audit:
    """Audit one detector.

    Args:
        scores: one detector's scores, with labels, groups, approaches and, for honest intervals, identities.
        conventions: at least one; the first carries the report's verdict.
        threshold: scores at or above it are called fake; one number, or one per group.
        n_boot: bootstrap replicates, 0 for no intervals.
        n_perm: permutations, 0 for no noise floor and no p-values; at least 199 otherwise recommended.
        seed: of both. Audits of several detectors on the same people with one seed can be ranked.
        level: nominal coverage of the intervals.
        interval: "basic" (reflected) or, for comparison only, "percentile".
        empty: what an empty cell does: "raise" lists the cells, "drop" leaves them out, "nan" makes every number they
            reach undefined.
        min_identities: groups with fewer people are warned of.
        subject_sizes: people per group for the subjects curve (protocol P5: `fairfd.subjects.SIZES`); none by default.

    Raises:
        UserError: no or repeated conventions, empty cells with `empty="raise"`, a negative count, a level outside
            (0, 1).
    """
    if not conventions or len({convention.name for convention in conventions}) < len(conventions):
        raise UserError("an audit needs at least one convention, each once")
    if n_boot < 0 or n_perm < 0:
        raise UserError(f"n_boot is {n_boot} and n_perm {n_perm}: use 0 for none, or 200 and more")
    table = scores.rate_table(threshold)
    boots = [bootstrap(table, n_boot, seed, interval, level, c, empty) for c in conventions] if n_boot else []
    nulls = [permutation_test(table, n_perm, seed, c, empty) for c in conventions] if n_perm else []
    found = {
        convention.name: _convention_result(
            table, convention, empty, boots[i] if boots else None, nulls[i] if nulls else None
        )
        for i, convention in enumerate(conventions)
    }
    utility = scores.utility(threshold)
    curve, curve_warnings = _curve(table, subject_sizes, conventions[0], seed)
    warnings = (
        *scores.with_warnings(min_identities).warnings,
        *(line for c in conventions for line in fairness(table, c, empty).warnings),
        *(line for boot in boots for line in boot.warnings),
        *curve_warnings,
        *_few_replicates(n_boot, n_perm),
    )
    return Audit(
        version=FORMAT_VERSION,
        detector=scores.detector,
        data=_data(scores, table),
        threshold=dict(threshold) if isinstance(threshold, Mapping) else float(threshold),
        settings=Settings(n_boot, n_perm, seed, level, interval, empty, min_identities),
        conventions=found,
        approaches=_approach_results(table, boots[0] if boots else None),
        utility=_utility_result(utility),
        peer_metrics=peer_metrics(scores.score, scores.label, scores.groups, threshold),
        gate=utility_gate(utility),
        subjects_curve=curve,
        warnings=tuple(dict.fromkeys(warnings)),
        software=software(),
    )


def _convention_result(
    table: RateTable, convention: Convention, empty: Empty, boot: Bootstrap | None, null: Permutation | None
) -> ConventionResult:
    values = fairness(table, convention, empty)
    return ConventionResult(
        definition=values.convention,
        metrics={name: _estimate(values[name], name, boot, null) for name in METRIC_NAMES},
        hidden_gaps=_hidden_gaps(boot) if boot else {},
        degenerate_rows=values.degenerate_rows,
        replicates=Replicates.pack(METRIC_NAMES, boot.replicates) if boot else None,
    )


def _estimate(value: float | None, name: str, boot: Bootstrap | None, null: Permutation | None) -> Estimate:
    return Estimate(
        value=_number(value),
        debiased=_number(boot.debiased[name]) if boot else None,
        low=_number(boot.low[name]) if boot else None,
        high=_number(boot.high[name]) if boot else None,
        null_mean=_number(null.null_mean[name]) if null else None,
        null_q95=_number(null.null_q95[name]) if null else None,
        p=_number(null.p[name]) if null else None,
    )


def _hidden_gaps(boot: Bootstrap) -> dict[str, Interval]:
    """AA less naive for the four pairs that are defined."""
    defined = [
        (aa, naive) for aa, naive in AA_AND_NAIVE if boot.point[aa] is not None and boot.point[naive] is not None
    ]
    found = {f"{aa} - {naive}": difference(boot, aa, naive) for aa, naive in defined}
    return {name: Interval(*map(_number, (gap.point, gap.debiased, gap.low, gap.high))) for name, gap in found.items()}


def _approach_results(table: RateTable, boot: Bootstrap | None) -> tuple[ApproachResult, ...]:
    """The rows of the accuracy matrix that have images."""
    gaps = approach_gaps(boot) if boot else {}
    point, utility = spread(table.accuracy), utilities(table.k, table.n, "macro")
    results = []
    for f, approach in enumerate(table.approaches):
        if not table.n[f].any():
            continue
        gap = gaps.get(approach)
        interval = (gap.debiased, gap.low, gap.high) if gap else (None, None, None)
        results.append(
            ApproachResult(
                approach=approach,
                is_real=f == 0,
                accuracy=_row(table.accuracy[f]),
                utility=_number(utility[f]),
                gap=Interval(*map(_number, (point[f], *interval))),
            )
        )
    return tuple(results)


def _utility_result(found: Utility) -> UtilityResult:
    # A plain scorecard of the pooled numbers, without the per-group parts that Utility adds.
    overall = Scorecard(**{name: getattr(found, name) for name in Scorecard.__dataclass_fields__})
    return UtilityResult(overall, dict(found.per_group), tuple(_row(row) for row in found.per_cell))


def _curve(
    table: RateTable, sizes: Sequence[int], convention: Convention, seed: int
) -> tuple[SubjectsCurve | None, tuple[str, ...]]:
    if not sizes:
        return None, ()
    if table.unit != "identity" or len(table.groups) < 2:
        return None, ("no subjects curve: it needs an identity column and two groups",)
    return subjects_curve(table, sizes=sizes, convention=convention, seed=seed), ()


def _few_replicates(n_boot: int, n_perm: int) -> Iterator[str]:
    if 0 < n_boot < ENOUGH:
        yield f"{n_boot} bootstrap replicates: the intervals are coarse; use {ENOUGH} or more"
    if 0 < n_perm < ENOUGH - 1:
        yield f"{n_perm} permutations: no p-value can fall below {1 / (1 + n_perm):.2g}; use {ENOUGH - 1} or more"


def _data(scores: ScoreTable, table: RateTable) -> DataSummary:
    has_people = table.identities is not None
    return DataSummary(
        sha256=rows_sha256(scores),
        people_sha256=people_sha256(table),
        images=len(scores),
        people=len(table.identities) if table.identities is not None else None,
        people_per_group=tuple(table.clusters_per_group.tolist()) if has_people else None,
        groups=table.groups,
        approaches=table.approaches,
        images_per_cell=tuple(tuple(row) for row in table.n.tolist()),
        people_per_cell=tuple(tuple(row) for row in table.clusters_per_cell.tolist()) if has_people else None,
    )


def rows_sha256(scores: ScoreTable) -> str:
    """Hash of the rows in an order of their own: the same scores in another order have the same hash.

    Rows are sorted by a checksum of the image's name and by everything else; that two different names have the same checksum
    and the rest in common does not happen in practice.
    """
    columns = (scores.groups, scores.approaches, *(() if scores.people is None else (scores.people,)))
    coded = [encode(column, None, "column") for column in columns]
    cell = np.ravel_multi_index([codes for _, codes in coded], [len(names) for names, _ in coded]) % 2**31
    checksum = np.concatenate([[zlib.crc32(name.encode()) for name in part] for part in _parts(scores.image)])
    order = np.lexsort((scores.score, checksum.astype(np.int64) << 31 | cell))
    digest = hashlib.sha256()
    for names, codes in coded:
        digest.update("\n".join(names).encode())
        digest.update(codes[order].astype("<i4").tobytes())
    digest.update(scores.label[order].astype("<i4").tobytes())
    digest.update(scores.score[order].astype("<f8").tobytes())
    for rows in np.array_split(order, len(order) // _AT_A_TIME + 1):
        digest.update("\n".join(scores.image[rows].tolist()).encode() + b"\n")
    return digest.hexdigest()


def _parts(names: Text) -> Iterator[list[str]]:
    return (names[start : start + _AT_A_TIME].tolist() for start in range(0, len(names), _AT_A_TIME))


def people_sha256(table: RateTable) -> str:
    """Hash of who was tested: everybody's identity and group, scores excluded; cell counts where these are unknown."""
    if table.identities is None:
        return _sha256([*table.groups, *table.approaches, *map(str, table.n.ravel().tolist())])
    groups = (table.groups[s] for s in table.group_of.tolist())
    return _sha256(map("\t".join, zip(table.identities, groups, strict=True)))


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def software() -> dict[str, str]:
    """Versions of what computes the numbers."""
    try:
        own = version("fairfd")
    except PackageNotFoundError:
        own = "unknown"
    return {"fairfd": own, "numpy": np.__version__, "python": platform.python_version()}


def _row(values: Float[np.ndarray, " g"]) -> tuple[float | None, ...]:
    return tuple(_number(value) for value in values.tolist())


def _number(value: float | np.floating | None) -> float | None:
    """A plain float; None where undefined, so that NaN never reaches a file."""
    return None if value is None or math.isnan(value) else float(value)
