"""How many people a comparison of groups needs: the metric on ever fewer of them (protocol P5; paper, Table 4).

With 16 people per group, as in the paper's FaceForensics++ experiment, an unbiased detector shows an AADPD near .1.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from fairfd.evaluation.audit.record import SubjectsCurve, SubjectsPoint
from fairfd.evaluation.audit.resampling import CellCounts, regrouped_counts, weighted_counts
from fairfd.method.fairness import METRIC_NAMES, OFFICIAL, Convention, metrics_of
from fairfd.method.rates import RateTable
from tenfold.errors import UserError

SIZES = (16, 50, 100, 500)
"""People per group in protocol P5; everybody comes last."""

NOBODY = -1
"""The group of a person who is not drawn."""


def subjects_curve(
    table: RateTable,
    *,
    sizes: Sequence[int] = SIZES,
    metric: str = "AADPD",
    convention: Convention = OFFICIAL,
    draws: int = 200,
    seed: int = 0,
) -> SubjectsCurve:
    """Draw people without replacement, equally many per group, and recompute the metric; then with everybody.

    The values are plug-in ones, so that the curve shows their inflation at few people. Each draw is recomputed with
    its group labels shuffled, which gives the noise floor at that size. Draws that leave a cell empty are left out.

    Args:
        table: counts per identity.
        sizes: people per group; those not below the smallest group are left out.
        metric: one of the twelve.
        convention: the choices left open by the paper.
        draws: random draws per size.
        seed: of the draws.

    Raises:
        UserError: the table has no identities, fewer than two groups, an unknown metric, or a size below 2.
    """
    if table.unit != "identity":
        raise UserError("the subjects curve needs an identity column")
    if len(table.groups) < 2 or metric not in METRIC_NAMES or draws < 1 or any(size < 2 for size in sizes):
        raise UserError(
            "the subjects curve needs two groups, sizes of at least 2, a draw, and one of " + ", ".join(METRIC_NAMES)
        )
    column = METRIC_NAMES.index(metric)
    rng = np.random.default_rng(seed)
    smallest = int(table.clusters_per_group.min())
    points = []
    for size in [*sorted(size for size in set(sizes) if size < smallest), None]:
        if size is None:
            chosen = np.ones((1, len(table.group_of)), dtype=bool)
        else:
            chosen = drawn_people(table.group_of, size, draws, rng)
        found = _metric(weighted_counts(table, chosen.astype(np.int8)), table, convention, column)
        # The noise floor with everybody needs as many shuffles as the other sizes have draws.
        shuffled = shuffled_groups(table.group_of, chosen.repeat(draws // len(chosen), axis=0), rng)
        null = _metric(regrouped_counts(table, shuffled), table, convention, column)
        if len(found):
            points.append(_point(smallest if size is None else size, size is None, found, null))
    return SubjectsCurve(convention=convention.name, metric=metric, points=tuple(points))


def drawn_people(
    group_of: Int[np.ndarray, " i"], size: int, draws: int, rng: np.random.Generator
) -> Bool[np.ndarray, "b i"]:
    """Who is drawn: `size` people of every group without replacement, in each of several draws."""
    chosen = np.zeros((draws, len(group_of)), dtype=bool)
    for s in range(int(group_of.max()) + 1):
        members = np.flatnonzero(group_of == s)
        # The people with the smallest random keys: a sample without replacement for all draws at once.
        keys = rng.random((draws, len(members)))
        picked = np.argpartition(keys, size - 1, axis=1)[:, :size]
        chosen[np.arange(draws)[:, None], members[picked]] = True
    return chosen


def shuffled_groups(
    group_of: Int[np.ndarray, " i"], chosen: Bool[np.ndarray, "b i"], rng: np.random.Generator
) -> Int[np.ndarray, "b i"]:
    """Group labels shuffled among the drawn people of each draw; the others get `NOBODY`."""
    shuffled = np.full(chosen.shape, NOBODY, dtype=np.int64)
    count = int(chosen[0].sum())
    places = np.nonzero(chosen)[1].reshape(len(chosen), count)
    labels = rng.permuted(group_of[places], axis=1)
    shuffled[np.arange(len(chosen))[:, None], places] = labels
    return shuffled


def _metric(counts: CellCounts, table: RateTable, convention: Convention, column: int) -> Float[np.ndarray, " b"]:
    values = metrics_of(counts.k, counts.n, convention)[:, column]
    return values[~(counts.lost_a_cell(table) | np.isnan(values))]


def _point(size: int, is_all: bool, found: Float[np.ndarray, " b"], null: Float[np.ndarray, " p"]) -> SubjectsPoint:
    low, high = np.quantile(found, (0.025, 0.975)).tolist()
    return SubjectsPoint(
        people_per_group=size,
        is_all=is_all,
        draws=len(found),
        mean=float(found.mean()),
        low=low,
        high=high,
        null_mean=float(null.mean()) if len(null) else None,
        null_q95=float(np.quantile(null, 0.95)) if len(null) else None,
    )
