"""How good an association is, where identities are known (section 10): pair precision, pair recall and their harmonic mean."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from tenfold import UserError


class PairScores(NamedTuple):
    """Over all pairs of one instance of each modality.

    Attributes:
        precision: true pairs among the pairs given one label.
        recall: pairs given one label among the true pairs.
        f1: harmonic mean of the two.
    """

    precision: float
    recall: float
    f1: float


def pair_scores(
    labels_a: Int[np.ndarray, " n"],
    labels_b: Int[np.ndarray, " m"],
    identities_a: Int[np.ndarray, " i"],
    identities_b: Int[np.ndarray, " j"],
) -> PairScores:
    """Pair precision and recall of labels in one label space.

    Args:
        labels_a: of the first modality's instances, in that space.
        labels_b: of the second's, in the same space.
        identities_a: true identities.
        identities_b: true identities, numbered alike.

    Raises:
        UserError: no true pair at all, or lengths that differ.
    """
    if labels_a.shape != identities_a.shape or labels_b.shape != identities_b.shape:
        raise UserError(
            f"labels ({labels_a.size}, {labels_b.size}) and identities ({identities_a.size}, {identities_b.size}) differ in number"
        )
    _, label = np.unique(np.concatenate([labels_a, labels_b]), return_inverse=True)
    _, identity = np.unique(np.concatenate([identities_a, identities_b]), return_inverse=True)
    cell = label * (identity.max() + 1) + identity
    n = labels_a.size
    given, true, both = _pairs(label, n), _pairs(identity, n), _pairs(cell, n)
    if true == 0:
        raise UserError("no identity occurs in both modalities: there is no true pair to find")
    precision, recall = both / given if given else 0.0, both / true
    return PairScores(precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0)


def _pairs(groups: Int[np.ndarray, " n"], first: int) -> float:
    """Pairs of one of the `first` entries and one of the rest in the same group."""
    size = int(groups.max()) + 1
    return float(np.bincount(groups[:first], minlength=size) @ np.bincount(groups[first:], minlength=size))
