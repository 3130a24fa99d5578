"""How well a detector detects, and whether its fairness numbers mean anything (paper: AUC and ACC beside every table).

The fairness metrics cannot see a useless detector: all-fake and all-real score zero on all twelve. And ACC on FairFD's eleven
fakes per real rewards saying "fake" (11/12 for all-fake). So balanced accuracy, AUC and a gate stand next to them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
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
)

NEAR_TRIVIAL = "near-trivial: fairness numbers are not meaningful"
"""How a gated detector is headed in reports."""

MIN_BALANCED_ACCURACY = 0.55
MIN_AUC = 0.55
MIN_RATE = 0.1


@dataclass(frozen=True)
class Scorecard:
    """Utility on one set of images; None where there are no real or no fake images to compute it from.

    Attributes:
        images: how many.
        auc: area under the ROC curve.
        ap: average precision, fake being the positive class.
        eer: FPR at the threshold where it is nearest to the FNR.
        acc: share classified correctly.
        balanced_acc: mean of TPR and TNR.
        tpr: share of fakes called fake.
        tnr: share of reals called real.
    """

    images: int
    auc: float | None
    ap: float | None
    eer: float | None
    acc: float | None
    balanced_acc: float | None
    tpr: float | None
    tnr: float | None


@dataclass(frozen=True, eq=False)
class Utility(Scorecard):
    """Utility over everything, per group and per cell.

    Attributes:
        per_group: scorecard of each group.
        approaches: row names of `per_cell`.
        groups: column names of `per_cell`.
        per_cell: AUC of each approach's fakes of a group against the same group's reals (paper Figure 3); the real row and
            empty cells are NaN.
    """

    per_group: dict[str, Scorecard]
    approaches: tuple[str, ...]
    groups: tuple[str, ...]
    per_cell: Float[np.ndarray, "f g"]


@dataclass(frozen=True)
class Gate:
    """Whether a detector is too near to trivial for its fairness numbers to mean anything.

    Attributes:
        near_trivial: it is: head its row with `NEAR_TRIVIAL` and leave it out of rankings.
        reasons: the limits that it missed, with the numbers.
    """

    near_trivial: bool
    reasons: tuple[str, ...]


def utility(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | Coded,
    approaches: ArrayLike | Coded,
    threshold: Threshold = 0.5,
    real: str | int = REAL,
    group_order: Sequence[str | int] | None = None,
    approach_order: Sequence[str | int] | None = None,
) -> Utility:
    """AUC, AP, EER, accuracy and balanced accuracy: pooled over everything, per group and (AUC) per cell.

    Args:
        scores: P(fake) in [0, 1], one per image.
        labels: 0 real, 1 fake.
        groups: sensitive group of each image.
        approaches: approach of each image; real images carry `real`.
        threshold: one threshold, or one per group; a tie is fake.
        real: the approach that means "not forged".
        group_order: columns to have, in this order.
        approach_order: forgery rows to have, in this order.

    Raises:
        UserError: as `RateTable.from_scores`.
    """
    score = checked_scores(scores)
    label = checked_labels(labels)
    group_names, group = encode(groups, group_order, "group")
    approach_names, approach = encode_approaches(approaches, real, approach_order)
    check_lengths(scores=score, labels=label, groups=group, approaches=approach)
    check_labels_match_approaches(label, approach)
    called = decide(score, group, group_names, threshold)
    everything = scorecard(score, label, called)
    members = [np.flatnonzero(group == s) for s in range(len(group_names))]
    columns = [auc_per_approach(score[of], approach[of], len(approach_names)) for of in members]
    return Utility(
        **vars(everything),
        per_group={
            name: scorecard(score[of], label[of], called[of]) for name, of in zip(group_names, members, strict=True)
        },
        approaches=approach_names,
        groups=group_names,
        per_cell=np.stack(columns, axis=1),
    )


def utility_gate(card: Scorecard) -> Gate:
    """Near-trivial when balanced accuracy < .55, AUC < .55, or the TPR or TNR < .1; undefined numbers do not count.

    Args:
        card: pooled utility of the detector.
    """
    limits = (
        ("balanced accuracy", card.balanced_acc, MIN_BALANCED_ACCURACY),
        ("AUC", card.auc, MIN_AUC),
        ("TPR", card.tpr, MIN_RATE),
        ("TNR", card.tnr, MIN_RATE),
    )
    reasons = tuple(
        f"{name} {value:.3f} < {limit:g}" for name, value, limit in limits if value is not None and value < limit
    )
    return Gate(bool(reasons), reasons)


def scorecard(
    score: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"], called_fake: Bool[np.ndarray, " n"]
) -> Scorecard:
    """Utility of one set of images.

    Args:
        score: P(fake).
        label: 0 real, 1 fake.
        called_fake: the decisions.
    """
    fake = label == 1
    tpr, tnr = _share(called_fake[fake]), _share(~called_fake[~fake])
    both = tpr is not None and tnr is not None
    # The scores are sorted once for all three.
    points = operating_points(score, label) if both else None
    return Scorecard(
        images=len(label),
        auc=_area(*points) if points else None,
        ap=_precision(*points) if points else None,
        eer=_equal_error(*points) if points else None,
        acc=_share(called_fake == fake),
        balanced_acc=(tpr + tnr) / 2 if tpr is not None and tnr is not None else None,
        tpr=tpr,
        tnr=tnr,
    )


def auc(score: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"]) -> float:
    """P(a fake scores above a real) + P(they tie) / 2: the Mann-Whitney statistic. NaN without reals or fakes."""
    if not len(label) or label.min() == label.max():
        return math.nan
    return _area(*operating_points(score, label))


def _area(false_positives: Int[np.ndarray, " t"], true_positives: Int[np.ndarray, " t"]) -> float:
    """Area under the operating points by trapezoids, which count ties 1/2."""
    doubled = np.sum(np.diff(false_positives) * (true_positives[1:] + true_positives[:-1]))
    return float(doubled / (2 * false_positives[-1] * true_positives[-1]))


def auc_per_approach(
    score: Float[np.ndarray, " n"], approach: Int[np.ndarray, " n"], rows: int
) -> Float[np.ndarray, " f"]:
    """AUC of each approach's fakes against the same reals; row 0 (the reals) and approaches without images are NaN."""
    fake = approach > 0
    beaten = wins(score[fake], score[~fake])
    count = np.bincount(approach[fake], minlength=rows)
    total = np.bincount(approach[fake], weights=beaten, minlength=rows)
    return np.divide(total, count, out=np.full(rows, math.nan), where=count > 0)


def wins(fake: Float[np.ndarray, " n"], real: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Share of the reals that each fake scores above, ties counted 1/2; NaN without reals."""
    if not len(real):
        return np.full(len(fake), math.nan)
    ordered = np.sort(real)
    below = np.searchsorted(ordered, fake, side="left")
    not_above = np.searchsorted(ordered, fake, side="right")
    return (below + not_above) / (2 * len(real))


def average_precision(score: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"]) -> float:
    """Sum over thresholds of (recall gained) x (precision there), fake being the positive class."""
    return _precision(*operating_points(score, label))


def _precision(false_positives: Int[np.ndarray, " t"], true_positives: Int[np.ndarray, " t"]) -> float:
    precision = true_positives[1:] / (true_positives[1:] + false_positives[1:])
    return float(np.sum(np.diff(true_positives) * precision) / true_positives[-1])


def equal_error_rate(score: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"]) -> float:
    """FPR at the operating point that minimises |FNR - FPR|, the first of several."""
    return _equal_error(*operating_points(score, label))


def _equal_error(false_positives: Int[np.ndarray, " t"], true_positives: Int[np.ndarray, " t"]) -> float:
    fpr, fnr = false_positives / false_positives[-1], 1 - true_positives / true_positives[-1]
    return float(fpr[np.argmin(np.abs(fnr - fpr))])


def operating_points(
    score: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"]]:
    """False and true positives at every threshold, from "nothing is fake" down through the distinct scores."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    true_positives = np.cumsum(label[order])[last_of_tie]
    false_positives = 1 + last_of_tie - true_positives
    return np.insert(false_positives, 0, 0), np.insert(true_positives, 0, 0)


def _share(hits: Bool[np.ndarray, " n"]) -> float | None:
    return float(hits.mean()) if len(hits) else None
