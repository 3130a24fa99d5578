"""How sure a ranking of detectors is (the paper's Tables 13 and 14 rank by single numbers; this is this package's addition)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fairfd.evaluation.audit.uncertainty import bootstrap
from fairfd.method.fairness import METRIC_NAMES, OFFICIAL, Convention, Empty, ratio
from fairfd.method.rates import RateTable
from tenfold.errors import UserError


@dataclass(frozen=True, eq=False)
class RankProbabilities:
    """How sure the ranking of detectors is.

    Attributes:
        detectors: names.
        probability: (12, detector, rank): share of replicates in which the detector has this rank, rank 0 fairest; ties
            share their ranks equally.
        paired: whether all detectors were resampled with the same people.
    """

    detectors: tuple[str, ...]
    probability: Float[np.ndarray, "12 d d"]
    paired: bool

    def of(self, metric: str, detector: str) -> Float[np.ndarray, " d"]:
        """Probabilities of ranks 0, 1, ... of one detector by one metric."""
        return self.probability[METRIC_NAMES.index(metric), self.detectors.index(detector)]


def rank_probabilities(
    tables: Mapping[str, RateTable],
    n_boot: int = 1000,
    seed: int = 0,
    convention: Convention = OFFICIAL,
    empty: Empty = "raise",
) -> RankProbabilities:
    """Probability of each rank of each detector, over replicates that draw the same people for all of them.

    Leave near-trivial detectors out (`fairfd.utility_gate`): they would rank first. A metric that is undefined in any table
    has NaN probabilities. Tables without identities cannot be paired and are drawn independently.

    Args:
        tables: by detector name; the same identities, groups and approaches in each.
        n_boot: replicates.
        seed: of the draws.
        convention: the choices left open by the paper.
        empty: see `fairfd.fairness`.

    Raises:
        UserError: fewer than two detectors, or tables of different people, groups or approaches.
    """
    detectors = tuple(tables)
    if len(detectors) < 2:
        raise UserError("a ranking needs at least two detectors")
    first = tables[detectors[0]]
    for name in detectors[1:]:
        _check_same_people(detectors[0], first, name, tables[name])
    paired = first.unit == "identity"
    runs = [
        bootstrap(tables[name], n_boot, seed if paired else seed + d, convention=convention, empty=empty)
        for d, name in enumerate(detectors)
    ]
    values = np.stack([run.replicates for run in runs])
    whole = ~np.any([run.counts.lost_a_cell(run.table) for run in runs], axis=0)
    return RankProbabilities(detectors, rank_shares(values[:, whole]), paired)


def rank_shares(values: Float[np.ndarray, "d b m"]) -> Float[np.ndarray, "m d r"]:
    """Share of replicates in which each detector has each rank (rank 0 is the smallest value, the fairest).

    Args:
        values: of each detector, replicate and metric; replicate b of every detector has resampled the same people.

    Returns:
        (metric, detector, rank); tied detectors share the ranks they span; NaN for a metric that is undefined.
    """
    better = (values[None] < values[:, None]).sum(axis=1)
    tied = (values[None] == values[:, None]).sum(axis=1)
    ranks = np.arange(len(values))[:, None, None, None]
    spans = (better <= ranks) & (ranks < better + tied)
    return ratio(spans, np.broadcast_to(tied, spans.shape)).mean(axis=2).transpose(2, 1, 0)


def _check_same_people(name: str, table: RateTable, other_name: str, other: RateTable) -> None:
    same_cells = table.groups == other.groups and table.approaches == other.approaches
    same_people = table.identities == other.identities and (
        table.identities is None or np.array_equal(table.group_of, other.group_of)
    )
    if not (same_cells and same_people):
        raise UserError(
            f"{name} and {other_name} were not scored on the same people, groups and approaches; "
            "rank detectors on one test set"
        )
