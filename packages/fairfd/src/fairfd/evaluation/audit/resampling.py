"""Counts per cell under resampled and under shuffled identities: the randomness behind intervals and p-values.

The paper reports single numbers; this is this package's addition. Images of one person are dependent and every pristine image
appears under all approaches, so that identities are drawn, all their cells together, within their group. Draws never touch
images: with K[i, f] and N[i, f] of `fairfd.rates.RateTable` a replicate's counts are W K and W N for multiplicities W.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Real

from fairfd.method.rates import RateTable
from tenfold.errors import UserError

FLOAT32_WHOLE = 2**24
"""Below this, float32 adds whole numbers exactly."""


@dataclass(frozen=True, eq=False)
class CellCounts:
    """Correct and all images per cell, in each of b replicates.

    Attributes:
        k: correct images; row 0 is the real face.
        n: images.
    """

    k: Real[np.ndarray, "b f g"]
    n: Real[np.ndarray, "b f g"]

    def lost_a_cell(self, table: RateTable) -> Bool[np.ndarray, " b"]:
        """Replicates in which a cell that has images in `table` has none."""
        return ((self.n == 0) & (table.n > 0)).any(axis=(1, 2))


def weighted_counts(table: RateTable, weights: Num[np.ndarray, "b i"]) -> CellCounts:
    """Counts when cluster i comes up `weights[b, i]` times in replicate b.

    Args:
        table: the observed counts.
        weights: multiplicities, one column per cluster in the table's order (sorted identity names).

    Raises:
        UserError: as many columns as clusters are needed.
    """
    if weights.shape[1] != len(table.group_of):
        raise UserError(f"weights: {weights.shape[1]} columns do not fit {len(table.group_of)} clusters")
    members = [np.flatnonzero(table.group_of == s) for s in range(len(table.groups))]
    return _stacked([_times(weights[:, of_group], table, of_group) for of_group in members])


def bootstrap_counts(table: RateTable, n_boot: int, seed: int, chunk: int = 250) -> CellCounts:
    """Counts of `n_boot` bootstrap samples: identities drawn with replacement within their group.

    The result depends on the seed and on who is in the table, not on the order of its rows nor on `chunk`.

    Args:
        table: the observed counts.
        n_boot: replicates.
        seed: of the draws; each group has its own stream.
        chunk: replicates drawn at a time; bounds the memory (250 x identities multiplicities).

    Raises:
        UserError: the table holds published accuracies, which have nothing to resample.
    """
    _check_resamplable(table)
    streams = np.random.SeedSequence(seed).spawn(len(table.groups))
    return _stacked([_drawn(table, s, n_boot, np.random.default_rng(streams[s]), chunk) for s in range(len(streams))])


def permuted_counts(table: RateTable, n_perm: int, seed: int, chunk: int = 250) -> CellCounts:
    """Counts after shuffling the group labels over identities `n_perm` times: what an unbiased detector would show.

    Args:
        table: the observed counts.
        n_perm: shuffles.
        seed: of the shuffles.
        chunk: shuffles at a time; bounds the memory and changes nothing else.

    Raises:
        UserError: the table holds published accuracies.
    """
    _check_resamplable(table)
    rng = np.random.default_rng(seed)
    if table.unit == "image":
        return _dealt_counts(table, n_perm, rng)
    shuffled = (
        regrouped_counts(table, rng.permuted(np.tile(table.group_of.astype(np.int32), (size, 1)), axis=1))
        for size in _chunks(n_perm, chunk)
    )
    parts = list(shuffled)
    return CellCounts(np.concatenate([part.k for part in parts]), np.concatenate([part.n for part in parts]))


def regrouped_counts(table: RateTable, group_of: Int[np.ndarray, "b i"]) -> CellCounts:
    """Counts when identity i belongs to group `group_of[b, i]` in replicate b.

    Args:
        table: the observed counts, one row per identity.
        group_of: indices into `table.groups`, in the table's order (sorted identity names).
    """
    everyone = np.arange(len(table.group_of))
    return _stacked([_times(group_of == s, table, everyone) for s in range(len(table.groups))])


def _drawn(table: RateTable, s: int, n_boot: int, rng: np.random.Generator, chunk: int) -> Float[np.ndarray, "b 2 f"]:
    """Correct and all images of group s in each bootstrap sample."""
    members = np.flatnonzero(table.group_of == s)
    copies = table.copies[members]
    parts = [_times(_multiplicities(copies, size, rng), table, members) for size in _chunks(n_boot, chunk)]
    return np.concatenate(parts)


def _multiplicities(copies: Int[np.ndarray, " i"], size: int, rng: np.random.Generator) -> Int[np.ndarray, "b i"]:
    """How often each cluster comes up when as many are drawn, with replacement, as there are."""
    clusters = len(copies)
    if clusters and copies.max() > 1:
        return rng.multinomial(copies.sum(), copies / copies.sum(), size=size)
    # Counting drawn indices is far cheaper than a multinomial with as many outcomes as draws. int64 draws, unlike
    # narrower ones, leave no half-used random word behind at the end of a chunk.
    drawn = rng.integers(0, max(clusters, 1), size=(size, clusters), dtype=np.int64)
    drawn += clusters * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)


def _times(
    weights: Num[np.ndarray, "b i"] | Bool[np.ndarray, "b i"], table: RateTable, clusters: Int[np.ndarray, " i"]
) -> Float[np.ndarray, "b 2 f"]:
    """W K and W N of some clusters, in float32 where that is exact and float64 elsewhere."""
    counts = np.concatenate([table.correct[clusters], table.total[clusters]], axis=1)
    largest = np.max(table.total, initial=0) * max(int(np.max(weights.sum(axis=1), initial=0)), 1)
    exact = np.issubdtype(counts.dtype, np.integer) and largest < FLOAT32_WHOLE
    dtype = np.float32 if exact else np.float64
    product = weights.astype(dtype) @ counts.astype(dtype)
    return product.astype(np.float64).reshape(len(weights), 2, -1)


def _dealt_counts(table: RateTable, n_perm: int, rng: np.random.Generator) -> CellCounts:
    """Shuffled groups of independent images: deal the images, of which there are two kinds per approach, to the groups.

    Dealing kinds without replacement (multivariate hypergeometric) has the distribution of shuffling every image.
    """
    profiles, kind = np.unique(np.concatenate([table.correct, table.total], axis=1), axis=0, return_inverse=True)
    images = np.bincount(kind.ravel(), weights=table.copies, minlength=len(profiles)).astype(np.int64)
    hands = np.empty((n_perm, len(table.groups), len(profiles)), np.int64)
    for b in range(n_perm):
        left = images
        for s, size in enumerate(table.clusters_per_group.tolist()):
            hands[b, s] = rng.multivariate_hypergeometric(left, size)
            left = left - hands[b, s]
    counts = (hands @ profiles).reshape(n_perm, len(table.groups), 2, -1)
    return CellCounts(np.swapaxes(counts[:, :, 0], 1, 2), np.swapaxes(counts[:, :, 1], 1, 2))


def _stacked(per_group: list[Float[np.ndarray, "b 2 f"]]) -> CellCounts:
    stacked = np.stack(per_group, axis=-1)
    return CellCounts(stacked[:, 0], stacked[:, 1])


def _chunks(total: int, size: int) -> Iterator[int]:
    """Sizes of the pieces that `total` falls into."""
    for start in range(0, total, size):
        yield min(size, total - start)


def _check_resamplable(table: RateTable) -> None:
    if table.unit == "published":
        raise UserError("published accuracies hold no identities to resample; intervals need a score file")
