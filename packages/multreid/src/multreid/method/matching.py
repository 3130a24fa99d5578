"""Rival associations, for comparison (sections 7, 9 and 10): one label of the other modality per cluster, or per instance.

Each takes the centres of the clusters of two modalities and gives, for every cluster of the first, a cluster of the second.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from multreid.method.transport.sinkhorn import Stopping, sinkhorn_features
from multreid.method.validation import unit_rows


def centre_costs(a: Float[np.ndarray, "ka d"], b: Float[np.ndarray, "kb d"]) -> Float[np.ndarray, "ka kb"]:
    """1 / exp(cosine similarity) between centres: the cost that progressive graph matching assigns by."""
    return np.exp(-unit_rows(a) @ unit_rows(b).T)


def nearest_centre(a: Float[np.ndarray, "ka d"], b: Float[np.ndarray, "kb d"]) -> Int[np.ndarray, " ka"]:
    """The most similar centre of b for each centre (or instance) of a, by cosine; several may share one."""
    return (unit_rows(a) @ unit_rows(b).T).argmax(axis=1)


def hungarian(a: Float[np.ndarray, "ka d"], b: Float[np.ndarray, "kb d"]) -> Int[np.ndarray, " ka"]:
    """One-to-one assignment; clusters of a that are left over, when a has more, go to their nearest centre."""
    matched = nearest_centre(a, b)
    rows, columns = linear_sum_assignment(centre_costs(a, b))
    matched[rows] = columns
    return matched


def match_centres(a: Float[np.ndarray, "ka d"], b: Float[np.ndarray, "kb d"]) -> Int[np.ndarray, " ka"]:
    """Progressive graph matching (PGM, Wu and Ye, CVPR 2023): assign, then assign what is left over again, until none is.

    The published code assumes that a has at least as many clusters as b; here either side may be the larger.
    """
    costs = centre_costs(a, b)
    matched = np.full(len(a), -1)
    while (left := np.flatnonzero(matched < 0)).size:
        rows, columns = linear_sum_assignment(costs[left])
        matched[left[rows]] = columns
    return matched


def bilateral_hungarian(a: Float[np.ndarray, "ka d"], b: Float[np.ndarray, "kb d"]) -> Int[np.ndarray, " ka"]:
    """Bilateral matching with repeated columns (BCCM, Cheng et al., ACM MM 2023): one direction of it.

    Every centre of b may be taken once more often than an even share, ceil(ka / kb) + 1 times, so that a cluster that one
    modality split and the other did not need not be pushed to a wrong partner. The other direction is the call with the
    arguments exchanged: the two are solved on their own.
    """
    repeats = -(-len(a) // len(b)) + 1
    rows, columns = linear_sum_assignment(np.tile(centre_costs(a, b), (1, repeats)))
    matched = np.empty(len(a), dtype=np.int64)
    matched[rows] = columns % len(b)
    return matched


def transported_labels(
    features: Float[np.ndarray, "n d"],
    centres: Float[np.ndarray, "k d"],
    reg: float = 25.0,
    stopping: Stopping = "official",
) -> Int[np.ndarray, " n"]:
    """Plain optimal transport: each instance takes the centre of the other modality that receives most of its mass (OTLA)."""
    return sinkhorn_features(features, centres, reg, stopping=stopping).row_argmax()
