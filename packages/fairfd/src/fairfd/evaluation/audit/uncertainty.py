"""Intervals, noise floors and p-values for the twelve metrics (not in the paper).

The range of noisy estimates is biased upwards: an unbiased detector shows an AADPD of .03 to .1 with a hundred people or fewer per
group. So every value comes with a bootstrap-debiased one, with a *basic* (reflected) interval, whose coverage the
percentile interval does not have, and with the null distribution obtained by shuffling the group labels over identities.
At the null no interval covers well, because the truth lies on the boundary: that is what the p-value is for.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num

from fairfd.evaluation.audit.resampling import (
    CellCounts,
    bootstrap_counts,
    permuted_counts,
    regrouped_counts,
    weighted_counts,
)
from fairfd.method.fairness import (
    METRIC_NAMES,
    OFFICIAL,
    Convention,
    Empty,
    FairnessValues,
    check_empty_cells,
    fairness,
    metrics_of,
    ratio,
    reached_by_empty_cells,
    spread,
)
from fairfd.method.rates import ASSUMES_INDEPENDENT, RateTable
from tenfold.errors import UserError

IntervalKind = Literal["basic", "percentile"]

# Two ways of adding the same counts differ in the last bits; a shuffle that leaves the table as it is must count as reached.
TIE = 1e-12


@dataclass(frozen=True)
class Interval:
    """A value with its uncertainty; None where undefined.

    Attributes:
        point: the plug-in value.
        debiased: 2 t - mean(t*), not below 0 for a metric.
        low: lower end.
        high: upper end.
    """

    point: float | None
    debiased: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """What the identities drawn with replacement say about the twelve metrics.

    Attributes:
        point: plug-in values.
        debiased: max(0, 2 t - mean(t*)).
        low: lower ends of the intervals, not below 0.
        high: upper ends, not below 0.
        replicates: (b, 12) in the order of `METRIC_NAMES`; a dropped replicate is a row of NaN.
        counts: the counts per cell that the replicates come from.
        table: the observed table.
        convention: under which the metrics were computed.
        interval: "basic" or "percentile".
        level: nominal coverage.
        n_boot: replicates drawn.
        dropped: replicates in which some cell lost all its images.
        warnings: one line each.
    """

    point: FairnessValues
    debiased: dict[str, float | None]
    low: dict[str, float | None]
    high: dict[str, float | None]
    replicates: Float[np.ndarray, "b 12"]
    counts: CellCounts
    table: RateTable
    convention: Convention
    interval: IntervalKind
    level: float
    n_boot: int
    dropped: int
    warnings: tuple[str, ...]

    def __getitem__(self, metric: str) -> Interval:
        """One metric with its interval."""
        return Interval(self.point[metric], self.debiased[metric], self.low[metric], self.high[metric])


@dataclass(frozen=True, eq=False)
class Permutation:
    """The metrics of an unbiased detector with this many people: group labels shuffled over identities.

    Attributes:
        point: observed values.
        p: (1 + #{null >= t}) / (1 + n_perm).
        null_mean: the noise floor, mean of the null.
        null_q95: its 95 % quantile.
        replicates: (b, 12) in the order of `METRIC_NAMES`; a dropped shuffle is a row of NaN.
        n_perm: shuffles used.
        dropped: shuffles in which some cell lost all its images.
    """

    point: FairnessValues
    p: dict[str, float | None]
    null_mean: dict[str, float | None]
    null_q95: dict[str, float | None]
    replicates: Float[np.ndarray, "b 12"]
    n_perm: int
    dropped: int


def bootstrap(
    table: RateTable,
    n_boot: int = 1000,
    seed: int = 0,
    interval: IntervalKind = "basic",
    level: float = 0.95,
    convention: Convention = OFFICIAL,
    empty: Empty = "raise",
    weights: Num[np.ndarray, "b i"] | None = None,
    chunk: int = 250,
) -> Bootstrap:
    """Cluster bootstrap: identities with replacement within their group, all their cells together.

    Args:
        table: counts per identity.
        n_boot: replicates.
        seed: the same seed gives the same people for every detector scored on them.
        interval: "basic" reflects the quantiles about the point, "percentile" takes them as they are (it does not cover).
        level: nominal coverage.
        convention: the choices left open by the paper.
        empty: see `fairfd.fairness`.
        weights: multiplicities to use in place of random ones, one column per cluster in the table's order.
        chunk: replicates at a time; bounds the memory and changes nothing else.

    Raises:
        UserError: empty cells with `empty="raise"`, published accuracies, or a level outside (0, 1).
    """
    _check_settings(n_boot, level)
    check_empty_cells(table, empty)
    drawn = bootstrap_counts(table, n_boot, seed, chunk) if weights is None else weighted_counts(table, weights)
    replicates = _replicates(drawn, table, convention, empty)
    point = fairness(table, convention, empty)
    kept = replicates[~drawn.lost_a_cell(table)]
    centre = _vector(point)
    low, high = _ends(centre, kept, interval, level)
    low, high = np.maximum(low, 0.0), np.maximum(high, 0.0)
    dropped = len(replicates) - len(kept)
    return Bootstrap(
        point=point,
        debiased=_named(np.maximum(debiased(centre, kept), 0.0), table),
        low=_named(low, table),
        high=_named(high, table),
        replicates=replicates,
        counts=drawn,
        table=table,
        convention=point.convention,
        interval=interval,
        level=level,
        n_boot=len(replicates),
        dropped=dropped,
        warnings=_bootstrap_warnings(table, dropped, len(replicates)),
    )


def difference(result: Bootstrap, first: str, second: str) -> Interval:
    """First metric less the second, over the same replicates: AADPD - DPD is the bias that averaging hides.

    AA >= naive holds for pure noise too, so that the plug-in difference proves nothing; this interval does. It is not cut
    off at 0.

    Args:
        result: of `bootstrap`.
        first: name of a metric.
        second: name of the metric to subtract.
    """
    a, b = METRIC_NAMES.index(first), METRIC_NAMES.index(second)
    point = _vector(result.point)
    kept = result.replicates[~result.counts.lost_a_cell(result.table)]
    return _interval(point[a] - point[b], kept[:, a] - kept[:, b], result, floor=-math.inf)


def approach_gaps(result: Bootstrap) -> dict[str, Interval]:
    """The gap r_f of each approach, with its interval over the same replicates.

    Args:
        result: of `bootstrap`.

    Returns:
        By approach, "real" first.
    """
    kept = ~result.counts.lost_a_cell(result.table)
    gaps = spread(ratio(result.counts.k[kept], result.counts.n[kept]))
    point = spread(result.table.accuracy)
    return {
        approach: _interval(point[f], gaps[:, f], result, floor=0.0)
        for f, approach in enumerate(result.table.approaches)
    }


def permutation_test(
    table: RateTable,
    n_perm: int = 999,
    seed: int = 0,
    convention: Convention = OFFICIAL,
    empty: Empty = "raise",
    groups_of_identities: Int[np.ndarray, "b i"] | None = None,
    chunk: int = 250,
) -> Permutation:
    """Noise floor and p-value: what the metrics would be if group had nothing to do with the detector.

    Args:
        table: counts per identity.
        n_perm: shuffles; use at least 199.
        seed: of the shuffles.
        convention: the choices left open by the paper.
        empty: see `fairfd.fairness`.
        groups_of_identities: shuffled labels to use in place of random ones, one column per identity in the table's order.
        chunk: shuffles at a time; bounds the memory and changes nothing else.

    Raises:
        UserError: empty cells with `empty="raise"`, or published accuracies.
    """
    _check_settings(n_perm, 0.95)
    check_empty_cells(table, empty)
    if groups_of_identities is None:
        shuffled = permuted_counts(table, n_perm, seed, chunk)
    else:
        shuffled = regrouped_counts(table, groups_of_identities)
    replicates = _replicates(shuffled, table, convention, empty)
    kept = replicates[~shuffled.lost_a_cell(table)]
    point = fairness(table, convention, empty)
    observed = _vector(point)
    reached = (kept >= observed - TIE).sum(axis=0)
    p = np.where(np.isnan(observed), math.nan, (1 + reached) / (1 + len(kept)))
    return Permutation(
        point=point,
        p=_named(p, table),
        null_mean=_named(_mean(kept), table),
        null_q95=_named(_quantiles(kept, 0.95), table),
        replicates=replicates,
        n_perm=len(replicates),
        dropped=len(replicates) - len(kept),
    )


def small_group_warnings(table: RateTable, min_identities: int = 20, seed: int = 0) -> tuple[str, ...]:
    """A loud line when groups have too few identities, with the value an unbiased detector would show at these sizes.

    Args:
        table: counts per identity; tables without identities give no warning.
        min_identities: groups below this are named.
        seed: of the 199 shuffles that give the floor.

    Returns:
        One line, or none.
    """
    sizes = dict(zip(table.groups, table.clusters_per_group.tolist(), strict=True))
    small = [f"{group} ({size})" for group, size in sizes.items() if size < min_identities]
    if table.unit != "identity" or not small:
        return ()
    floor = permutation_test(table, 199, seed, empty="drop").null_mean["AADPD"]
    shown = "" if floor is None else f"; at these sizes an unbiased detector shows AADPD {floor:.3f} on average"
    return (f"fewer than {min_identities} identities in {', '.join(small)}: do not compare groups so small{shown}",)


def debiased(point: Float[np.ndarray, "*m"], replicates: Float[np.ndarray, "b *m"]) -> Float[np.ndarray, "*m"]:
    """2 t - mean(t*): the bootstrap estimate of the bias taken off the plug-in value."""
    return np.asarray(2 * point - _mean(replicates))


def basic_interval(
    point: Float[np.ndarray, "*m"], replicates: Float[np.ndarray, "b *m"], level: float
) -> Float[np.ndarray, "2 *m"]:
    """[2 t - q_upper, 2 t - q_lower]: the quantiles reflected about the point."""
    tail = (1 - level) / 2
    return 2 * point - np.stack([_quantiles(replicates, 1 - tail), _quantiles(replicates, tail)])


def percentile_interval(replicates: Float[np.ndarray, "b *m"], level: float) -> Float[np.ndarray, "2 *m"]:
    """[q_lower, q_upper]: does not cover for ranges of noisy estimates; for comparison with others' reports."""
    tail = (1 - level) / 2
    return np.stack([_quantiles(replicates, tail), _quantiles(replicates, 1 - tail)])


def _ends(
    point: Float[np.ndarray, "*m"], replicates: Float[np.ndarray, "b *m"], kind: IntervalKind, level: float
) -> Float[np.ndarray, "2 *m"]:
    return basic_interval(point, replicates, level) if kind == "basic" else percentile_interval(replicates, level)


def _interval(point: float, replicates: Float[np.ndarray, " b"], result: Bootstrap, floor: float) -> Interval:
    """One quantity's interval, of the kind and level of `result`."""
    if len(result.table.groups) == 1:
        return Interval(float(point), None, None, None)
    centre = np.asarray(point, dtype=np.float64)
    low, high = _ends(centre, replicates, result.interval, result.level).tolist()
    ends = (float(debiased(centre, replicates)), low, high)
    return Interval(*(None if math.isnan(end) else max(floor, end) for end in (float(point), *ends)))


def _replicates(
    counts: CellCounts, table: RateTable, convention: Convention, empty: Empty
) -> Float[np.ndarray, "b 12"]:
    """The metrics of each replicate; NaN rows where a cell was lost, NaN columns where an empty cell reaches."""
    values = metrics_of(counts.k, counts.n, convention)
    values[counts.lost_a_cell(table)] = math.nan
    values[:, reached_by_empty_cells(table, empty)] = math.nan
    return values


def _vector(values: FairnessValues) -> Float[np.ndarray, "12"]:
    return np.array([math.nan if value is None else value for value in values.values()])


def _named(values: Float[np.ndarray, "12"], table: RateTable) -> dict[str, float | None]:
    """By metric; None where undefined and, as one group alone has nothing to estimate, everywhere in a table of one."""
    alone = len(table.groups) == 1
    return {
        name: None if alone or math.isnan(value) else value
        for name, value in zip(METRIC_NAMES, values.tolist(), strict=True)
    }


def _mean(replicates: Float[np.ndarray, "b *m"]) -> Float[np.ndarray, "*m"]:
    return np.asarray(replicates.mean(axis=0)) if len(replicates) else np.full(replicates.shape[1:], math.nan)


def _quantiles(replicates: Float[np.ndarray, "b *m"], q: float) -> Float[np.ndarray, "*m"]:
    return (
        np.asarray(np.quantile(replicates, q, axis=0)) if len(replicates) else np.full(replicates.shape[1:], math.nan)
    )


def _check_settings(replicates: int, level: float) -> None:
    if replicates < 1:
        raise UserError(f"{replicates} replicates; use at least 1, and 200 or more for a report")
    if not 0 < level < 1:
        raise UserError(f"level is {level}; use a coverage between 0 and 1, for example 0.95")


def _bootstrap_warnings(table: RateTable, dropped: int, drawn: int) -> tuple[str, ...]:
    warnings = []
    if table.unit == "image":
        warnings.append(f"no identities: the intervals {ASSUMES_INDEPENDENT.replace('assumes', 'assume')}")
    if len(table.groups) == 1:
        warnings.append("one group only: no interval")
    if dropped:
        warnings.append(f"{dropped} of {drawn} replicates left out: some cell lost all its images; it holds few people")
    return tuple(warnings)
