"""Detection metrics of one client, and what is reported over clients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from tenfold import UserError

THRESHOLD = 0.5
"""An image is called fake when its score is at least this."""


@dataclass(frozen=True)
class BinaryMetrics:
    """Metrics of P(fake) scores; undefined ones (a class is absent) are NaN.

    Attributes:
        acc: accuracy at 0.5.
        bacc: mean of the accuracies on real and on fake.
        auc: probability that a fake scores above a real, ties count half.
        eer: rate at which as many reals are called fake as fakes real.
        ap: average precision.
    """

    acc: float
    bacc: float
    auc: float
    eer: float
    ap: float


def binary_metrics(
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    videos: Sequence[str] | None = None,
    eer_method: Literal["linear", "nearest"] = "linear",
) -> BinaryMetrics:
    """Metrics of images, or of videos by their mean score.

    Args:
        scores: P(fake) in [0, 1].
        labels: 0 real, 1 fake.
        videos: the video of each image; given, metrics are of videos.
        eer_method: between two points of the curve, or `nearest`, the point where the rates differ least (DeepfakeBench).

    Raises:
        UserError: scores that are NaN, labels that are neither 0 nor 1, or another number of them.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if len(scores) != len(labels) or not len(scores):
        raise UserError(f"{len(scores)} scores for {len(labels)} labels")
    if not np.isfinite(scores).all():
        raise UserError("scores are NaN or infinite")
    if not np.isin(labels, (0, 1)).all():
        raise UserError("labels must be 0 (real) or 1 (fake)")
    if videos is not None:
        scores, labels = video_scores(scores, labels, videos)
    right = (scores >= THRESHOLD) == labels
    has_both = 0 < labels.sum() < len(labels)
    balanced = float((right[labels == 0].mean() + right[labels == 1].mean()) / 2) if has_both else math.nan
    rates = roc_points(scores, labels) if has_both else None
    return BinaryMetrics(
        acc=float(right.mean()),
        bacc=balanced,
        auc=auc(scores, labels),
        eer=eer(*rates, method=eer_method) if rates else math.nan,
        ap=average_precision(scores, labels),
    )


def video_scores(
    scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], videos: Sequence[str]
) -> tuple[Float[np.ndarray, " v"], Int[np.ndarray, " v"]]:
    """Mean score and label of each video, in ascending order of the videos.

    Raises:
        UserError: a video with two labels.
    """
    _, first, index = np.unique(np.asarray(videos), return_index=True, return_inverse=True)
    if (labels[first][index] != labels).any():
        raise UserError("a video has frames of both labels")
    return np.bincount(index, scores) / np.bincount(index), labels[first]


def auc(scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """P(score of a fake > score of a real) + P(equal) / 2, from mid-ranks; NaN when a class is absent."""
    fakes = int(labels.sum())
    reals = len(labels) - fakes
    if not fakes or not reals:
        return math.nan
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = counts.cumsum() - (counts - 1) / 2
    return float((mid_ranks[index][labels == 1].sum() - fakes * (fakes + 1) / 2) / (fakes * reals))


def roc_points(
    scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """False-positive and false-negative rates at descending distinct scores, from (0, 1)."""
    _, index = np.unique(-scores, return_inverse=True)
    fakes = np.bincount(index, labels).cumsum()
    reals = np.bincount(index, 1 - labels).cumsum()
    return np.r_[0.0, reals / reals[-1]], np.r_[1.0, 1 - fakes / fakes[-1]]


def eer(
    fpr: Float[np.ndarray, " t"],
    fnr: Float[np.ndarray, " t"],
    method: Literal["linear", "nearest"] = "linear",
) -> float:
    """Where false-positive and false-negative rate meet."""
    gap = fpr - fnr
    if method == "nearest":
        return float(fpr[np.abs(gap).argmin()])
    meet = int(np.argmax(gap >= 0))
    if gap[meet] == 0:
        return float(fpr[meet])
    share = -gap[meet - 1] / (gap[meet] - gap[meet - 1])
    return float(fpr[meet - 1] + share * (fpr[meet] - fpr[meet - 1]))


def average_precision(scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Sum of (recall_i - recall_{i-1}) * precision_i at distinct scores; NaN without a fake."""
    if not labels.sum():
        return math.nan
    _, index = np.unique(-scores, return_inverse=True)
    called = np.bincount(index).cumsum()
    fakes = np.bincount(index, labels).cumsum()
    return float((np.diff(fakes / fakes[-1], prepend=0.0) * (fakes / called)).sum())


@dataclass(frozen=True)
class OverClients:
    """One metric over clients; a client whose value is undefined is left out.

    Attributes:
        mean: unweighted, the headline.
        weighted: weighted by test images. Of an AUC it is not the AUC of the pooled images.
        worst: of the client that fares worst.
        std: population deviation over the clients.
    """

    mean: float
    weighted: float
    worst: float
    std: float


def over_clients(values: Sequence[float], examples: Sequence[int], lower_is_better: bool = False) -> OverClients:
    """Summarise one metric over clients.

    Args:
        values: of each client; NaN where undefined.
        examples: test images of each client.
        lower_is_better: the worst value is the highest.
    """
    data, weight = np.asarray(values, np.float64), np.asarray(examples, np.float64)
    known = np.isfinite(data)
    if not known.any():
        return OverClients(math.nan, math.nan, math.nan, math.nan)
    data, weight = data[known], weight[known]
    worst = data.max() if lower_is_better else data.min()
    return OverClients(float(data.mean()), float(np.average(data, weights=weight)), float(worst), float(data.std()))
