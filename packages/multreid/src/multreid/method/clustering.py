"""Clusters within one modality: DBSCAN on the k-reciprocal Jaccard distance (section 3.1)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from sklearn.cluster import DBSCAN

from multreid.method.jaccard import jaccard_similarity
from multreid.method.label_transfer import cluster_centres
from multreid.method.validation import unit_rows
from tenfold import UserError


@dataclass(frozen=True)
class Clustering:
    """Clusters of one modality.

    Attributes:
        labels: 0 to K - 1, -1 for outliers.
        similarity: 1 - Jaccard distance, from which they were made.
    """

    labels: Int[np.ndarray, " n"]
    similarity: sparse.csr_array

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.labels.max()) + 1


def cluster_features(
    features: Float[np.ndarray, "n d"],
    *,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.6,
    min_samples: int = 4,
    name: str = "features",
) -> Clustering:
    """Cluster the instances of one modality.

    Args:
        features: one row per instance; taken as unit rows.
        k1: of the Jaccard distance.
        k2: of the Jaccard distance.
        eps: largest distance between neighbours, in (0, 1): 0.6 for SYSU-MM01, 0.3 for RegDB.
        min_samples: neighbours, itself included, that make an instance the core of a cluster.
        name: what to call the features in an error.

    Raises:
        UserError: every instance is an outlier.
    """
    if not 0 < eps < 1:
        raise UserError(f"eps = {eps}: a Jaccard distance lies between 0 and 1, and eps must too")
    similarity = jaccard_similarity(features, k1, k2)
    labels = dbscan(similarity, eps, min_samples)
    if labels.max() < 0:
        raise UserError(
            f"{name}: no cluster at eps {eps} and min_samples {min_samples} (all {len(labels)} instances are outliers); "
            "raise eps or lower min_samples"
        )
    return Clustering(labels, similarity)


def dbscan(similarity: sparse.csr_array, eps: float, min_samples: int) -> Int[np.ndarray, " n"]:
    """DBSCAN with distance 1 - similarity; only pairs within eps are ever looked at."""
    near = similarity.tocoo()
    within = 1 - near.data <= eps
    # scikit-learn takes what is stored as neighbours, zeros included.
    distance = sparse.csr_matrix(
        (np.maximum(1 - near.data[within], 0), (near.row[within], near.col[within])), shape=near.shape
    )
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distance).labels_.astype(np.int64)


def assign_outliers(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Give every outlier the cluster with the nearest centre (of its own modality)."""
    rows = unit_rows(features)
    nearest = (rows @ unit_rows(cluster_centres(rows, labels)).T).argmax(axis=1)
    return np.where(labels >= 0, labels, nearest)
