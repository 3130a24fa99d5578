"""From two plain feature matrices to associated labels, in one call: what `multreid associate` does."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from multreid.method.clustering import Clustering, cluster_features
from multreid.method.label_transfer import Association, Start, transfer_labels
from multreid.method.transport.sinkhorn import Stopping
from multreid.method.validation import check_features, check_pair


@dataclass(frozen=True)
class AssociatedFeatures:
    """Two modalities, clustered and associated.

    Attributes:
        clusters_a: DBSCAN's labels of a, -1 for outliers.
        clusters_b: DBSCAN's labels of b.
        association: labels of every instance, outliers included, in both label spaces.
    """

    clusters_a: Int[np.ndarray, " n"]
    clusters_b: Int[np.ndarray, " m"]
    association: Association


def associate(
    features_a: Float[np.ndarray, "n d"],
    features_b: Float[np.ndarray, "m e"],
    *,
    eps: float = 0.6,
    min_samples: int = 4,
    k1: int = 30,
    k2: int = 6,
    alpha: float = 0.2,
    start: Start = "ot",
    stopping: Stopping = "official",
    names: tuple[str, str] = ("features_a", "features_b"),
) -> AssociatedFeatures:
    """Cluster each modality, then transfer labels between them (sections 3.1, 3.3 and 3.4).

    Args:
        features_a: one row per instance of the first modality.
        features_b: the same of the second, from the same encoder.
        eps: of DBSCAN.
        min_samples: of DBSCAN.
        k1: of the Jaccard distance.
        k2: of the Jaccard distance.
        alpha: weight of the starting labels.
        start: where cross labels start, see `transfer_labels`.
        stopping: of the transport, see `sinkhorn`.
        names: what to call the two in errors.

    Raises:
        UserError: features that cannot be used, or a modality without any cluster.

    Example:
        >>> result = associate(features_visible, features_infrared)  # doctest: +SKIP
        >>> same = result.association.labels_a[:, None] == result.association.cross_b[None]  # doctest: +SKIP
    """
    a, b = check_features(features_a, names[0]), check_features(features_b, names[1])
    check_pair(a, b, names)
    in_a, in_b = (_cluster(each, k1, k2, eps, min_samples, name) for each, name in ((a, names[0]), (b, names[1])))
    association = transfer_labels(
        a,
        b,
        in_a.labels,
        in_b.labels,
        alpha=alpha,
        start=start,
        stopping=stopping,
        similarity_a=in_a.similarity,
        similarity_b=in_b.similarity,
    )
    return AssociatedFeatures(in_a.labels, in_b.labels, association)


def _cluster(features: np.ndarray, k1: int, k2: int, eps: float, min_samples: int, name: str) -> Clustering:
    return cluster_features(features, k1=k1, k2=k2, eps=eps, min_samples=min_samples, name=name)
