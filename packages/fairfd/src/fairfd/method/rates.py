"""The accuracy matrix A[f, s] and the counts behind it (paper, notation of Eqs. 2, 3 and 6-9).

Row 0 is the real face (its accuracy is the TNR), rows 1..M are the forgery approaches (TPR); columns are the sensitive
groups. The counts are kept per identity, because a person's images are dependent and the identity is therefore the unit
that `fairfd.uncertainty` resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Real
from numpy.typing import ArrayLike

from fairfd.data.scores.validation import (
    REAL,
    Coded,
    Threshold,
    check_labels_match_approaches,
    check_lengths,
    checked_labels,
    checked_scores,
    decide,
    encode,
    encode_approaches,
    group_of_identity,
)
from tenfold.errors import UserError

ASSUMES_INDEPENDENT = "assumes independent images"
"""How a result that had no identities to resample is marked."""

Unit = Literal["identity", "image", "published"]


@dataclass(frozen=True, eq=False)
class RateTable:
    """Correct decisions K[i, f] out of N[i, f] for each cluster i (an identity) and approach f.

    Attributes:
        approaches: names of the M+1 rows; the first is always "real".
        groups: names of the G columns.
        correct: K, correctly classified images. Whole numbers, except in a table made from published accuracies.
        total: N, images.
        group_of: index into `groups` of each cluster.
        copies: how many equal clusters a row stands for. 1 for identities; images without identity differ only in their
            cell and in being right or wrong, so that a handful of rows holds any number of them.
        identities: name of each cluster; None when images are the clusters.
        threshold: decision threshold on P(fake), or one per group; None when unknown.
        unit: what a cluster is. "published" tables hold accuracies only and cannot be resampled.
    """

    approaches: tuple[str, ...]
    groups: tuple[str, ...]
    correct: Real[np.ndarray, "i f"]
    total: Int[np.ndarray, "i f"]
    group_of: Int[np.ndarray, " i"]
    copies: Int[np.ndarray, " i"]
    identities: tuple[str, ...] | None
    threshold: Threshold | None
    unit: Unit

    @classmethod
    def from_scores(
        cls,
        scores: ArrayLike,
        labels: ArrayLike,
        groups: ArrayLike | Coded,
        approaches: ArrayLike | Coded,
        identities: ArrayLike | Coded | None = None,
        threshold: Threshold = 0.5,
        real: str | int = REAL,
        group_order: Sequence[str | int] | None = None,
        approach_order: Sequence[str | int] | None = None,
    ) -> "RateTable":
        """Count the decisions `score >= threshold` (a tie is fake) per identity and approach.

        Args:
            scores: P(fake) in [0, 1], one per image.
            labels: 0 real, 1 fake.
            groups: sensitive group of each image, strings or integers.
            approaches: approach of each image, strings or integers; real images carry `real`.
            identities: person of each image; a forgery carries the identity of its pristine base image. Without them
                each image is its own cluster, which understates every interval.
            threshold: one threshold, or one per group (paper supplement, Tables 6 and 7).
            real: the approach that means "not forged". Among integer approaches the default is 0.
            group_order: columns to have, in this order; by default those present, sorted.
            approach_order: forgery rows to have, in this order; by default those present, sorted.

        Raises:
            UserError: a score is not finite or outside [0, 1], a label is not 0 or 1, a label disagrees with its
                approach, an identity has two groups, or a name is not in the given order. Positions count from 0.
        """
        score = checked_scores(scores)
        label = checked_labels(labels)
        group_names, group = encode(groups, group_order, "group")
        approach_names, approach = encode_approaches(approaches, real, approach_order)
        check_lengths(scores=score, labels=label, groups=group, approaches=approach)
        check_labels_match_approaches(label, approach)
        correct = decide(score, group, group_names, threshold) == (label == 1)
        if identities is None:
            shape = (len(approach_names), len(group_names))
            cell = approach * shape[1] + group
            return cls.from_counts(
                np.bincount(cell[correct], minlength=shape[0] * shape[1]).reshape(shape),
                np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape),
                approach_names,
                group_names,
                threshold,
            )
        identity_names, identity = encode(identities, None, "identity")
        check_lengths(scores=score, identities=identity)
        group_of = group_of_identity(identity, identity_names, group, group_names)
        shape = (len(identity_names), len(approach_names))
        cell = identity * shape[1] + approach
        return cls.from_identity_counts(
            np.bincount(cell[correct], minlength=shape[0] * shape[1]).reshape(shape),
            np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape),
            group_of,
            identity_names,
            approach_names,
            group_names,
            threshold,
        )

    @classmethod
    def from_identity_counts(
        cls,
        correct: Int[np.ndarray, "i f"],
        total: Int[np.ndarray, "i f"],
        group_of: Int[np.ndarray, " i"],
        identities: Sequence[str],
        approaches: Sequence[str],
        groups: Sequence[str],
        threshold: Threshold | None = None,
    ) -> "RateTable":
        """A table from counts per identity.

        Args:
            correct: correct images of each identity under each approach.
            total: images.
            group_of: index into `groups` of each identity.
            identities: their names.
            approaches: row names, "real" first.
            groups: column names.
            threshold: the threshold that made the decisions, for the record.

        Raises:
            UserError: `correct` is not within 0..total, or the names do not fit.
        """
        _check_names(approaches, groups, (total.shape[1], len(groups)))
        if np.any(correct < 0) or np.any(correct > total):
            raise UserError("counts: every cell needs 0 <= correct <= total")
        return cls(
            approaches=tuple(approaches),
            groups=tuple(groups),
            correct=correct,
            total=total,
            group_of=group_of,
            copies=np.ones(len(identities), np.int64),
            identities=tuple(identities),
            threshold=threshold,
            unit="identity",
        )

    @classmethod
    def from_counts(
        cls,
        k: Int[np.ndarray, "f g"],
        n: Int[np.ndarray, "f g"],
        approaches: Sequence[str],
        groups: Sequence[str],
        threshold: Threshold | None = None,
    ) -> "RateTable":
        """A table of independent images from cell counts.

        Args:
            k: correct images per cell.
            n: images per cell.
            approaches: row names, "real" first.
            groups: column names.
            threshold: the threshold that made the decisions, for the record.

        Raises:
            UserError: k is not within 0..n, or the names do not fit.
        """
        _check_names(approaches, groups, k.shape)
        if np.any(k < 0) or np.any(k > n):
            raise UserError("counts: every cell needs 0 <= correct <= total")
        # Two kinds of image per cell, wrong and right, each a cluster with one image in row f.
        kinds = np.stack([n - k, k])
        outcome, row, column = np.nonzero(kinds)
        total = np.eye(len(n), dtype=np.int64)[row]
        return cls(
            approaches=tuple(approaches),
            groups=tuple(groups),
            correct=total * outcome[:, None],
            total=total,
            group_of=column,
            copies=kinds[outcome, row, column],
            identities=None,
            threshold=threshold,
            unit="image",
        )

    @classmethod
    def from_accuracy(cls, A: ArrayLike, approaches: Sequence[str], groups: Sequence[str]) -> "RateTable":
        """A table from published accuracies; pooled averages then take all cells as equal in size.

        Args:
            A: (M+1, G) accuracies in [0, 1]; NaN where the publication has no number.
            approaches: row names, "real" first.
            groups: column names.

        Raises:
            UserError: an accuracy outside [0, 1], or names that do not fit.
        """
        accuracy = np.array(A, dtype=np.float64)
        _check_names(approaches, groups, accuracy.shape)
        known = ~np.isnan(accuracy)
        if np.any((accuracy[known] < 0) | (accuracy[known] > 1)):
            raise UserError("accuracies must lie in [0, 1]; divide percentages by 100")
        columns = len(groups)
        return cls(
            approaches=tuple(approaches),
            groups=tuple(groups),
            correct=np.where(known, accuracy, 0.0).T.copy(),
            total=known.T.astype(np.int64),
            group_of=np.arange(columns),
            copies=np.ones(columns, np.int64),
            identities=None,
            threshold=None,
            unit="published",
        )

    @cached_property
    def k(self) -> Real[np.ndarray, "f g"]:
        """Correct images per cell."""
        return self._sum_over_clusters(self.correct)

    @cached_property
    def n(self) -> Int[np.ndarray, "f g"]:
        """Images per cell."""
        return self._sum_over_clusters(self.total)

    @cached_property
    def accuracy(self) -> Float[np.ndarray, "f g"]:
        """A[f, s] = k / n; NaN in an empty cell."""
        return np.divide(self.k, self.n, out=np.full(self.n.shape, np.nan), where=self.n > 0)

    @cached_property
    def clusters_per_group(self) -> Int[np.ndarray, " g"]:
        """Identities per group (images, where images are the clusters)."""
        counts = np.zeros(len(self.groups), np.int64)
        np.add.at(counts, self.group_of, self.copies)
        return counts

    @cached_property
    def clusters_per_cell(self) -> Int[np.ndarray, "f g"]:
        """Identities with at least one image, per cell."""
        return self._sum_over_clusters((self.total > 0).astype(np.int64))

    def take(self, clusters: Int[np.ndarray, " j"]) -> "RateTable":
        """The table of some of the clusters, for example of fewer people per group (protocol P5)."""
        names = None if self.identities is None else tuple(self.identities[i] for i in clusters)
        return replace(
            self,
            correct=self.correct[clusters],
            total=self.total[clusters],
            group_of=self.group_of[clusters],
            copies=self.copies[clusters],
            identities=names,
        )

    @property
    def has_real(self) -> bool:
        """Whether there is any real image."""
        return bool(self.n[0].any())

    @property
    def empty_cells(self) -> tuple[tuple[str, str], ...]:
        """(approach, group) of each cell without images; a table without any real image has no real row to be empty."""
        empty = self.n == 0
        if not self.has_real:
            empty[0] = False
        return tuple((self.approaches[f], self.groups[s]) for f, s in zip(*np.nonzero(empty), strict=True))

    def _sum_over_clusters(self, counts: Real[np.ndarray, "i f"]) -> Real[np.ndarray, "f g"]:
        sums = np.zeros((len(self.groups), counts.shape[1]), counts.dtype)
        np.add.at(sums, self.group_of, counts * self.copies[:, None])
        return sums.T


def _check_names(approaches: Sequence[str], groups: Sequence[str], shape: tuple[int, ...]) -> None:
    if shape != (len(approaches), len(groups)):
        raise UserError(f"a matrix of shape {shape} does not fit {len(approaches)} approaches x {len(groups)} groups")
    if not approaches or approaches[0] != REAL:
        raise UserError(f"the first row must be '{REAL}'; where there are no real images, give it as empty")
    if len(set(approaches)) != len(approaches) or len(set(groups)) != len(groups) or not groups:
        raise UserError("approaches and groups need distinct names, and at least one group")
