"""The twelve metrics as a `torchmetrics.Metric`, for training and evaluation loops (paper, Eqs. 2, 3 and 6-9).

The state is counts that add up, over batches, processes and merged metrics; a batch that lacks a group or an approach adds
nothing to it. (torchmetrics' own group metrics shift the counts of a batch that lacks a group to the wrong one.)
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from fairfd.data.scores.validation import REAL
from fairfd.method.fairness import METRIC_NAMES, OFFICIAL, Convention, Empty, fairness
from fairfd.method.rates import RateTable
from tenfold.errors import UserError


class FairFDMetric(Metric):
    """All twelve fairness metrics, accumulated over batches.

    `compute()` returns a dictionary from metric name to a scalar tensor, NaN where undefined; `rate_table()` gives the counts
    to `fairfd.bootstrap` and `fairfd.permutation_test`.

    Args:
        num_groups: G, sensitive groups, coded 0..G-1.
        num_approaches: M+1 rows: approach 0 is the real face, 1..M are forgeries.
        num_identities: number of persons, coded 0..I-1, for clustered intervals; without it images count as independent.
        convention: the choices left open by the paper; its threshold (0.5 where None) makes the decisions, a tie is fake.
        empty: what `compute` does about empty cells, see `fairfd.fairness`. "nan" by default: a batch on its own, as
            `forward` evaluates it, seldom fills every cell.
        validate_args: check ranges in `update`, which waits for the device.
        **kwargs: of `torchmetrics.Metric`.

    Raises:
        UserError: fewer than one group, one approach or (if given) one identity.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    correct: Tensor
    total: Tensor
    members: Tensor

    def __init__(
        self,
        num_groups: int,
        num_approaches: int,
        num_identities: int | None = None,
        convention: Convention = OFFICIAL,
        empty: Empty = "nan",
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_groups < 1 or num_approaches < 1 or (num_identities is not None and num_identities < 1):
            raise UserError("FairFDMetric needs at least one group, one approach (the real face) and one identity")
        self.num_groups = num_groups
        self.num_approaches = num_approaches
        self.num_identities = num_identities
        self.convention = convention
        self.threshold = 0.5 if convention.threshold is None else convention.threshold
        self.empty: Empty = empty
        self.validate_args = validate_args
        # Without identities a group's images are counted together; with them, each person's on their own.
        clusters = num_groups if num_identities is None else num_identities
        self.add_state("correct", torch.zeros(clusters, num_approaches, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(clusters, num_approaches, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("members", torch.zeros(clusters, num_groups, dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        preds: Float[Tensor, " n"],
        target: Int[Tensor, " n"],
        groups: Int[Tensor, " n"],
        approaches: Int[Tensor, " n"],
        identities: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Count one batch.

        Args:
            preds: P(fake) in [0, 1].
            target: 0 real, 1 fake.
            groups: 0..G-1.
            approaches: 0 for real images, 1..M for forgeries.
            identities: 0..I-1, if and only if the metric was made with `num_identities`.

        Raises:
            UserError: a value out of range, or a target that disagrees with its approach.
        """
        if (identities is None) != (self.num_identities is None):
            raise UserError("FairFDMetric: pass identities exactly when it was made with num_identities")
        clusters = groups if identities is None else identities
        if self.validate_args:
            self._check(preds, target, groups, approaches, clusters)
        right = (preds >= self.threshold) == (target == 1)
        cell = clusters * self.num_approaches + approaches
        self.correct += _counted(cell[right], self.correct)
        self.total += _counted(cell, self.total)
        self.members += _counted(clusters * self.num_groups + groups, self.members)

    def compute(self) -> dict[str, Tensor]:
        """The twelve metrics of everything counted so far.

        Raises:
            UserError: empty cells with `empty="raise"`, or an identity that was given two groups.
        """
        values = fairness(self.rate_table(), self.convention, self.empty)
        return {
            name: torch.tensor(math.nan if values[name] is None else values[name], device=self.correct.device)
            for name in METRIC_NAMES
        }

    def rate_table(self, groups: Sequence[str] | None = None, approaches: Sequence[str] | None = None) -> RateTable:
        """The counts so far, for intervals and reports.

        Args:
            groups: names of the groups; "0", "1", ... by default.
            approaches: names of the M+1 rows, "real" first; "real", "1", "2", ... by default.

        Raises:
            UserError: an identity was given two groups, or the names do not fit.
        """
        group_names = tuple(groups or map(str, range(self.num_groups)))
        row_names = tuple(approaches or (REAL, *map(str, range(1, self.num_approaches))))
        correct, total = self.correct.cpu().numpy(), self.total.cpu().numpy()
        if self.num_identities is None:
            return RateTable.from_counts(correct.T, total.T, row_names, group_names, self.threshold)
        members = self.members.cpu().numpy()
        torn = (members > 0).sum(axis=1) > 1
        if torn.any():
            first = ", ".join(map(str, torn.nonzero()[0][:5]))
            raise UserError(f"identity in two groups: {first}; fix the labels or drop them")
        seen = members.any(axis=1)
        return RateTable.from_identity_counts(
            correct[seen],
            total[seen],
            members[seen].argmax(axis=1),
            tuple(map(str, seen.nonzero()[0])),
            row_names,
            group_names,
            self.threshold,
        )

    def _check(self, preds: Tensor, target: Tensor, groups: Tensor, approaches: Tensor, clusters: Tensor) -> None:
        if not bool(((preds >= 0) & (preds <= 1)).all()):
            raise UserError("preds must be P(fake) in [0, 1]; apply softmax or sigmoid to logits first")
        limits = (
            ("target", target, 2),
            ("groups", groups, self.num_groups),
            ("approaches", approaches, self.num_approaches),
            ("identities", clusters, len(self.correct)),
        )
        for name, codes, limit in limits:
            if not bool(((codes >= 0) & (codes < limit)).all()):
                raise UserError(f"{name} must lie in 0..{limit - 1}; found {int(codes.min())}..{int(codes.max())}")
        if not bool(((target == 0) == (approaches == 0)).all()):
            raise UserError("target and approaches disagree: target 0 (real) goes with approach 0 only")


def _counted(codes: Int[Tensor, " n"], like: Int[Tensor, "i c"]) -> Int[Tensor, "i c"]:
    """How often each code occurs, in the shape of `like`."""
    return torch.bincount(codes, minlength=like.numel()).reshape(like.shape)
