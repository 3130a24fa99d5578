"""The metrics of AI-Face-FairnessBench (CVPR 2025) and two plain ones, for comparison with results from there.

They pool the approaches. A rate that a group has no image for is undefined, and so is everything built on it: it is never
taken as 0, and a group never vanishes silently.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from fairfd.data.scores.validation import (
    Coded,
    Threshold,
    check_lengths,
    checked_labels,
    checked_scores,
    decide,
    encode,
)
from fairfd.method.fairness import ratio


@dataclass(frozen=True)
class PeerMetrics:
    """None where some group has no real or no fake images to compute it from.

    Attributes:
        F_DP: largest range over groups of the positive or negative rate; the pooled DPD of paper Eq. 6.
        F_MEO: largest range over groups of FPR, FNR, TNR or TPR (fairlearn's worst-case equalised odds).
        F_OAE: range over groups of the accuracy.
        F_EO: sum over groups of |FPR_s - FPR| + |TPR_s - TPR|.
        F_EFPR: the FPR part of F_EO.
        fpr_gap: range over groups of the FPR.
        worst_tpr: smallest TPR of a group.
        worst_tnr: smallest TNR of a group.
    """

    F_DP: float | None
    F_MEO: float | None
    F_OAE: float | None
    F_EO: float | None
    F_EFPR: float | None
    fpr_gap: float | None
    worst_tpr: float | None
    worst_tnr: float | None


@dataclass(frozen=True, eq=False)
class GroupRates:
    """Pooled rates of each group.

    Attributes:
        groups: names.
        tpr: share of fakes called fake, NaN without fakes.
        fpr: share of reals called fake, NaN without reals.
        positive_rate: share called fake.
        acc: share classified correctly.
        overall_tpr: TPR over all groups.
        overall_fpr: FPR over all groups.
    """

    groups: tuple[str, ...]
    tpr: Float[np.ndarray, " g"]
    fpr: Float[np.ndarray, " g"]
    positive_rate: Float[np.ndarray, " g"]
    acc: Float[np.ndarray, " g"]
    overall_tpr: float
    overall_fpr: float


def peer_metrics(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike | Coded, threshold: Threshold = 0.5
) -> PeerMetrics:
    """AI-Face's five fairness metrics, the FPR gap and the worst group's TPR and TNR.

    Args:
        scores: P(fake) in [0, 1], one per image.
        labels: 0 real, 1 fake.
        groups: sensitive group of each image.
        threshold: one threshold, or one per group; a tie is fake.

    Raises:
        UserError: scores, labels or groups are not as described.
    """
    rates = group_rates(scores, labels, groups, threshold)
    tpr_spread, fpr_spread = float(np.ptp(rates.tpr)), float(np.ptp(rates.fpr))
    fpr_apart = float(np.abs(rates.fpr - rates.overall_fpr).sum())
    tpr_apart = float(np.abs(rates.tpr - rates.overall_tpr).sum())
    values = {
        # Negative rates are 1 - positive rates, FNR is 1 - TPR and TNR is 1 - FPR: their ranges are the same.
        "F_DP": float(np.ptp(rates.positive_rate)),
        "F_MEO": float(np.max([fpr_spread, tpr_spread])),
        "F_OAE": float(np.ptp(rates.acc)),
        "F_EO": fpr_apart + tpr_apart,
        "F_EFPR": fpr_apart,
        "fpr_gap": fpr_spread,
        "worst_tpr": float(rates.tpr.min()),
        "worst_tnr": float(1 - rates.fpr.max()),
    }
    return PeerMetrics(**{name: None if math.isnan(value) else value for name, value in values.items()})


def group_rates(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike | Coded, threshold: Threshold = 0.5
) -> GroupRates:
    """TPR, FPR, positive rate and accuracy of each group, pooled over approaches.

    Args:
        scores: P(fake) in [0, 1], one per image.
        labels: 0 real, 1 fake.
        groups: sensitive group of each image.
        threshold: one threshold, or one per group; a tie is fake.
    """
    score, label = checked_scores(scores), checked_labels(labels)
    names, group = encode(groups, None, "group")
    check_lengths(scores=score, labels=label, groups=group)
    called = decide(score, group, names, threshold)

    def share(hit: Bool[np.ndarray, " n"], among: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " g"]:
        return ratio(
            np.bincount(group[hit & among], minlength=len(names)), np.bincount(group[among], minlength=len(names))
        )

    fake, everyone = label == 1, np.ones(len(label), bool)
    return GroupRates(
        groups=names,
        tpr=share(called, fake),
        fpr=share(called, ~fake),
        positive_rate=share(called, everyone),
        acc=share(called == fake, everyone),
        overall_tpr=_share(called[fake]),
        overall_fpr=_share(called[~fake]),
    )


def _share(hits: Bool[np.ndarray, " n"]) -> float:
    return float(hits.mean()) if len(hits) else math.nan
