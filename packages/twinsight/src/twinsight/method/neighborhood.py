"""The neighbourhood-preserving constraint: what one twin finds alike, the other finds alike (paper eq. 9).

The paper leaves the neighbourhood relation and the discrepancy open. Here, as in the official code, the relation is the
cosine Gram matrix of a batch and the discrepancy the squared Frobenius distance.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Normalisation = Literal["mean", "official"]


def cosine_gram(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Cosine similarity of every pair of rows, in [-1, 1]: the neighbourhood relation N of paper eq. 9."""
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def pair_count(batch: int, normalisation: Normalisation) -> int:
    """What the sum over pairs is divided by.

    Args:
        batch: B, the number of pictures.
        normalisation: `mean` divides by B * B. `official` divides by `B XOR 2`, what the published code computes where it
            writes `bs ^ 2`: at B = 64 that weighs the constraint 62 times more.

    Raises:
        ValueError: `official` with a batch of two, where the published code divides by zero.
    """
    if normalisation == "mean":
        return batch * batch
    if batch == 2:
        raise ValueError("the official normalisation divides by 2 XOR 2 = 0 for a batch of two pictures")
    return batch ^ 2


def neighbourhood_preserving_loss(
    unsup_features: Float[Tensor, "b d1"],
    sup_features: Float[Tensor, "b d2"],
    normalisation: Normalisation = "mean",
) -> Float[Tensor, ""]:
    """Squared Frobenius distance between the cosine Gram matrices of the twins' features (paper eq. 9).

    The gradient reaches both feature matrices.

    Args:
        unsup_features: pooled features of the unsupervised twin, of the weak views.
        sup_features: pooled features of the supervised twin, of the same pictures.
        normalisation: see `pair_count`.

    Returns:
        A number in [0, 4] under `mean`; 0 when the features are equal up to a scale per row and a rotation.
    """
    difference = cosine_gram(unsup_features) - cosine_gram(sup_features)
    return difference.square().sum() / pair_count(len(difference), normalisation)
