"""Rival associations behind one call (sections 7, 9 and 10), each giving hard labels in both label spaces."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from multreid.evaluation.metrics import pair_scores
from multreid.method.clustering import assign_outliers
from multreid.method.label_transfer import (
    Association,
    HardLabels,
    affinities,
    cluster_centres,
    homogeneous_step,
    propagate,
    row_stochastic,
    start_from_transport,
    start_labels,
)
from multreid.method.matching import bilateral_hungarian, hungarian, match_centres, nearest_centre, transported_labels
from multreid.method.transport.sinkhorn import sinkhorn_features
from multreid.method.validation import unit_rows

Rival = Literal["ot", "pgm", "bccm", "hungarian", "nearest"]
_MATCHINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "pgm": match_centres,
    "bccm": bilateral_hungarian,
    "hungarian": hungarian,
}


def both_spaces_f1(
    labels: Association | HardLabels, identities_a: Int[np.ndarray, " n"], identities_b: Int[np.ndarray, " m"]
) -> float:
    """Pair F1, mean over the two label spaces (section 10); see `pair_scores`."""
    first = pair_scores(labels.labels_a, labels.cross_b, identities_a, identities_b).f1
    return (first + pair_scores(labels.cross_a, labels.labels_b, identities_a, identities_b).f1) / 2


def associate_by(
    rival: Rival,
    features_a: Float[np.ndarray, "n d"],
    features_b: Float[np.ndarray, "m d"],
    labels_a: Int[np.ndarray, " n"],
    labels_b: Int[np.ndarray, " m"],
) -> HardLabels:
    """Associate clustered features by one of the rivals of the label transfer.

    Args:
        rival: `ot` labels instances by transport to the other modality's centres, `nearest` by the most similar of them; the
            others match centres, and an instance takes the partner of its cluster (outliers: of the nearest cluster of
            their modality).
        features_a: one row per instance.
        features_b: the same of the other modality.
        labels_a: clusters, -1 for outliers.
        labels_b: see `labels_a`.
    """
    a, b = unit_rows(features_a), unit_rows(features_b)
    centres_a, centres_b = cluster_centres(a, labels_a, "labels_a"), cluster_centres(b, labels_b, "labels_b")
    if rival == "ot":
        return HardLabels(
            start_labels(a, centres_a, 0.05).argmax(1),
            start_labels(b, centres_b, 0.05).argmax(1),
            transported_labels(a, centres_b),
            transported_labels(b, centres_a),
        )
    own_a, own_b = assign_outliers(a, labels_a), assign_outliers(b, labels_b)
    if rival == "nearest":
        return HardLabels(own_a, own_b, nearest_centre(a, centres_b), nearest_centre(b, centres_a))
    match = _MATCHINGS[rival]
    return HardLabels(own_a, own_b, match(centres_a, centres_b)[own_a], match(centres_b, centres_a)[own_b])


def without_homogeneous_step(
    features_a: Float[np.ndarray, "n d"],
    features_b: Float[np.ndarray, "m d"],
    labels_a: Int[np.ndarray, " n"],
    labels_b: Int[np.ndarray, " m"],
) -> HardLabels:
    """The label transfer with neighbours within a modality left out: an ablation."""
    a, b = unit_rows(features_a), unit_rows(features_b)
    plan = sinkhorn_features(a, b)
    alone = affinities(_identity(len(a)), _identity(len(b)), plan.kernel)
    starts = _starts(a, b, labels_a, labels_b)
    in_a = propagate(alone, starts[0], starts[1], 0.2)
    in_b = propagate(alone.swapped(), starts[2], starts[3], 0.2)
    return HardLabels(in_a.own.argmax(1), in_b.own.argmax(1), in_b.cross.argmax(1), in_a.cross.argmax(1))


def without_heterogeneous_step(
    features_a: Float[np.ndarray, "n d"],
    features_b: Float[np.ndarray, "m d"],
    labels_a: Int[np.ndarray, " n"],
    labels_b: Int[np.ndarray, " m"],
    similarity_a: sparse.csr_array,
    similarity_b: sparse.csr_array,
    iterations: int = 20,
) -> HardLabels:
    """The label transfer with nothing passing between the modalities after the start: an ablation."""
    a, b = unit_rows(features_a), unit_rows(features_b)
    within_a, within_b = row_stochastic(similarity_a), row_stochastic(similarity_b)
    own_a, cross_b, own_b, cross_a = _starts(a, b, labels_a, labels_b)
    for _ in range(iterations):
        own_a, cross_a = homogeneous_step(within_a, own_a), homogeneous_step(within_a, cross_a)
        own_b, cross_b = homogeneous_step(within_b, own_b), homogeneous_step(within_b, cross_b)
    return HardLabels(own_a.argmax(1), own_b.argmax(1), cross_a.argmax(1), cross_b.argmax(1))


def _identity(size: int) -> sparse.csr_array:
    return sparse.csr_array(sparse.identity(size, dtype=np.float32, format="csr"))


def _starts(a: np.ndarray, b: np.ndarray, labels_a: np.ndarray, labels_b: np.ndarray) -> tuple[np.ndarray, ...]:
    """Starting labels: a in a's space, b in a's, b in b's, a in b's."""
    centres_a, centres_b = cluster_centres(a, labels_a), cluster_centres(b, labels_b)
    return (
        start_labels(a, centres_a, 0.05),
        start_from_transport(b, centres_a, centres_b, labels_b, 25.0, "official"),
        start_labels(b, centres_b, 0.05),
        start_from_transport(a, centres_b, centres_a, labels_a, 25.0, "official"),
    )
