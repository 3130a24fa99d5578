"""The unsupervised objectives: which two views show the same picture (paper eq. 6)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def nt_xent_loss(projections: Float[Tensor, "two_b p"], temperature: float = 0.07) -> Float[Tensor, ""]:
    """Normalised temperature-scaled cross-entropy of SimCLR over two views of each picture (paper eq. 6).

    Args:
        projections: of the 2B views, ordered [first view of each; second view of each]; need not be of unit length.
        temperature: tau.

    Returns:
        The mean over the 2B views; log(2B - 1) when all projections are equal.
    """
    unit = F.normalize(projections, dim=1)
    similarity = unit @ unit.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(unit), dtype=torch.bool, device=unit.device), -torch.inf)
    positive = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
    return F.cross_entropy(similarity, positive)


def negative_cosine(prediction: Float[Tensor, "b p"], projection: Float[Tensor, "b p"]) -> Float[Tensor, ""]:
    """SimSiam's D: minus the mean cosine between a prediction and a projection that takes no gradient."""
    return -F.cosine_similarity(prediction, projection.detach(), dim=1).mean()


def simsiam_loss(predictions: Float[Tensor, "two_b p"], projections: Float[Tensor, "two_b p"]) -> Float[Tensor, ""]:
    """SimSiam: each view's prediction against the other view's projection, halved; in [-1, 1]."""
    first, second = predictions.chunk(2)
    z_first, z_second = projections.chunk(2)
    return (negative_cosine(first, z_second) + negative_cosine(second, z_first)) / 2


def byol_distance(prediction: Float[Tensor, "b p"], target: Float[Tensor, "b p"]) -> Float[Tensor, " b"]:
    """BYOL's 2 - 2 cos for each sample; the target takes no gradient."""
    return 2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=1)


def byol_loss(predictions: Float[Tensor, "two_b p"], targets: Float[Tensor, "two_b p"]) -> Float[Tensor, ""]:
    """BYOL: each view's online prediction against the other view's momentum target, both directions; in [0, 8]."""
    first, second = predictions.chunk(2)
    t_first, t_second = targets.chunk(2)
    return (byol_distance(first, t_second) + byol_distance(second, t_first)).mean()
