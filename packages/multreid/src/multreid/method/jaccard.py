"""The k-reciprocal Jaccard distance (section 3.3, homogeneous affinities), sparse from the first step to the last.

Each instance is described by a weight vector over its k-reciprocal neighbours (Zhong et al., CVPR 2017); two instances
are as close as their vectors overlap: J = 1 - sum_k min(v_ik, v_jk) / sum_k max(v_ik, v_jk). A vector has tens of entries
whatever the number of instances, and most pairs have no neighbour in common (J = 1 exactly), so nothing of size n x n
is needed: the result is the similarity 1 - J as a sparse matrix.
"""

import warnings

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from multreid.method.nearest_neighbors import nearest
from multreid.method.validation import check_features, unit_rows
from tenfold import UserError

_BLOCK_PAIRS = 2**18
"""Pairs of entries expanded at once: a few MiB, which stay in the cache."""


def jaccard_distance(features: Float[np.ndarray, "n d"], k1: int = 30, k2: int = 6) -> Float[np.ndarray, "n n"]:
    """The k-reciprocal Jaccard distance between all instances of one modality, dense.

    Args:
        features: one row per instance; taken as unit rows.
        k1: neighbours among which reciprocity is asked for, the instance itself included.
        k2: neighbours over which weight vectors are averaged; 1 for none.

    Returns:
        Distances in [0, 1], symmetric, zero on the diagonal up to rounding.

    Raises:
        UserError: features that are empty or not finite; k1 or k2 below 1.

    Source: section 3.3; official code, which returns k1 neighbours from its index where k1 + 1 were meant: so here.
    """
    return np.subtract(1, jaccard_similarity(features, k1, k2).toarray(), dtype=np.float32)


def jaccard_similarity(features: Float[np.ndarray, "n d"], k1: int = 30, k2: int = 6) -> sparse.csr_array:
    """1 - J of `jaccard_distance` as a sparse float32 matrix with n rows; pairs with nothing in common are not stored."""
    features = unit_rows(check_features(features, "features"))
    if k1 < 1 or k2 < 1:
        raise UserError(f"k1 = {k1}, k2 = {k2}: both must be at least 1")
    n = len(features)
    if k1 > n:
        warnings.warn(f"k1 = {k1} clipped to the {n} instances there are", stacklevel=2)
    ranking = _itself_among(nearest(features, features, min(max(k1, k2), n))[0])
    weights = neighbour_weights(features, expanded_reciprocal(ranking[:, :k1], k1))
    if k2 > 1:
        weights = averaged_over_neighbours(weights, ranking[:, :k2])
    return overlap_to_similarity(overlap(weights))


def _itself_among(ranking: Int[np.ndarray, "n k"]) -> Int[np.ndarray, "n k"]:
    """The ranking with each instance in its own row, which it can be missing from where more than k rows are equal."""
    itself = np.arange(len(ranking))
    missing = ~(ranking == itself[:, None]).any(axis=1)
    ranking[missing, 0] = itself[missing]
    return ranking


def reciprocal(ranking: Int[np.ndarray, "n k"]) -> sparse.csr_array:
    """Pairs that are in each other's ranking: a 0/1 matrix with n rows."""
    forward = _indicator(ranking)
    return (forward * forward.T).tocsr()


def _indicator(ranking: Int[np.ndarray, "n k"]) -> sparse.csr_array:
    n, k = ranking.shape
    ones = np.ones(n * k, dtype=np.int32)
    return sparse.csr_array((ones, ranking.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))


def expanded_reciprocal(ranking: Int[np.ndarray, "n k"], k1: int) -> sparse.csr_array:
    """Reciprocal neighbours, joined by those of a neighbour when more than two thirds of these are already there.

    Args:
        ranking: at most k1 nearest neighbours of each instance, itself first.
        k1: asked for; a neighbour's own set is of size k1 / 2, rounded to even, plus one.

    Returns:
        A 0/1 matrix with n rows.
    """
    full = reciprocal(ranking)
    half = reciprocal(ranking[:, : round(k1 / 2) + 1])
    # For neighbours c of i only: |half(c) & full(i)|, and the rule in whole numbers.
    shared = (full @ half.T) * full
    coordinates = shared.tocoo()
    accepted = 3 * coordinates.data > 2 * half.sum(axis=1)[coordinates.col]
    pattern = (np.ones(accepted.sum(), np.int32), (coordinates.row[accepted], coordinates.col[accepted]))
    union = full + sparse.csr_array(pattern, shape=full.shape) @ half
    union.data[:] = 1
    union.sort_indices()
    return union


def neighbour_weights(features: Float[np.ndarray, "n d"], neighbours: sparse.csr_array) -> sparse.csr_array:
    """Softmax of minus the squared distance over each instance's neighbours: rows that sum to one."""
    rows = np.repeat(np.arange(len(features)), np.diff(neighbours.indptr))
    columns = neighbours.indices
    similarity = np.empty(columns.size, dtype=np.float32)
    step = max(1, 2**21 // features.shape[1])
    for start in range(0, columns.size, step):
        part = slice(start, start + step)
        np.einsum("pd,pd->p", features[rows[part]], features[columns[part]], out=similarity[part])
    # -(2 - 2 s), shifted by the largest value possible, 0: unit rows.
    exponential = np.exp(2 * similarity - 2)
    total = np.add.reduceat(exponential, neighbours.indptr[:-1])
    return sparse.csr_array((exponential / total[rows], columns, neighbours.indptr), shape=neighbours.shape)


def averaged_over_neighbours(weights: sparse.csr_array, ranking: Int[np.ndarray, "n k2"]) -> sparse.csr_array:
    """Local query expansion: each weight vector becomes the mean of those of its k2 nearest instances."""
    mean = _indicator(ranking).astype(np.float32) * np.float32(1 / ranking.shape[1])
    return (mean @ weights).tocsr()


def overlap(weights: sparse.csr_array) -> sparse.csr_array:
    """sum_k min(v_ik, v_jk) for all pairs of rows i <= j that share a neighbour: upper triangle, float32.

    For blocks of rows, every entry (i, k) meets the entries (j, k) with j >= i of its column. The minima of a block of rows
    are a sparse matrix in which a pair occurs once for every neighbour that it shares: a product with the identity sums them
    up. Work and memory follow the number of such meetings, not n^2.
    """
    n = weights.shape[0]
    rows = np.repeat(np.arange(n, dtype=np.int32), np.diff(weights.indptr))
    # A stable sort by column keeps the rows of a column in order: position[e] is where entry e lies in its column.
    order = np.argsort(weights.indices, kind="stable")
    position = np.empty(order.size, dtype=np.int32)
    position[order] = np.arange(order.size, dtype=np.int32)
    column_rows, column_values = rows[order], weights.data[order]
    column_ends = np.cumsum(np.bincount(weights.indices, minlength=n))
    meetings = (column_ends[weights.indices] - position).astype(np.int32)
    per_row = np.add.reduceat(meetings, weights.indptr[:-1], dtype=np.int64)
    identity = sparse.csr_array(sparse.identity(n, dtype=np.float32, format="csr"))
    parts = []
    for first, last in _blocks(per_row):
        entries = slice(weights.indptr[first], weights.indptr[last])
        lengths = meetings[entries]
        # The meetings of each entry, one after another: its own position in the column, the next, and so on.
        ends = np.cumsum(lengths, dtype=np.int32)
        where = np.arange(ends[-1], dtype=np.int32) + np.repeat(position[entries] - (ends - lengths), lengths)
        minima = np.minimum(np.repeat(weights.data[entries], lengths), column_values[where])
        starts = np.concatenate([[0], np.cumsum(per_row[first:last])]).astype(np.int32)
        summed = sparse.csr_array((minima, column_rows[where], starts), shape=(last - first, n)) @ identity
        # Transposing twice sorts each row.
        parts.append(summed.T.tocsr().T.tocsr())
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def _blocks(work: Int[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Cut rows into consecutive blocks of about `_BLOCK_PAIRS` work (at least one row)."""
    done = np.concatenate([[0], np.cumsum(work)])
    blocks, first = [], 0
    while first < work.size:
        last = int(np.searchsorted(done, done[first] + _BLOCK_PAIRS, side="right")) - 1
        last = max(last, first + 1)
        blocks.append((first, last))
        first = last
    return blocks


def overlap_to_similarity(upper: sparse.csr_array) -> sparse.csr_array:
    """1 - J from the overlap s of two vectors that each sum to one: s / (2 - s); both triangles. Overwrites the overlap.

    Args:
        upper: overlaps of rows i <= j, with a full diagonal and sorted columns.
    """
    # Rounding may carry the overlap of a vector with itself past one.
    np.minimum(upper.data, 1, out=upper.data)
    np.divide(upper.data, 2 - upper.data, out=upper.data)
    # The diagonal lies in both triangles and counts half in each.
    upper.data[upper.indptr[:-1]] /= 2
    return upper + upper.T.tocsr()
