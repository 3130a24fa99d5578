"""The detectors' losses as pure functions: AM-softmax, CORE, Capsule, UCF, LDAM and the CVaR family of DAG-/DAW-FDD.

Each function is one equation of the method's own paper (named in its docstring); where the official code of the benchmark
differs, that is said.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def am_softmax(
    cosines: Float[Tensor, "b c"], target: Int[Tensor, " b"], margin: float = 0.45, scale: float = 30.0
) -> Float[Tensor, ""]:
    """Additive-margin softmax (Wang et al. 2018): CE of scale * (cos - margin at the true class).

    Args:
        cosines: cosines between feature and class weights. The official code feeds raw logits.
        target: class indices.
        margin: m.
        scale: s. With m = 0 the loss is the cross-entropy of s * cosines.
    """
    one_hot = F.one_hot(target, cosines.shape[1]).to(cosines.dtype)
    return F.cross_entropy(scale * (cosines - margin * one_hot), target)


def core_consistency(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """CORE's cosine consistency of two views (CORE, Ni et al. 2022): mean of (cos(z1, z2) - 1)^2.

    Returns:
        0 for equal directions, 4 for opposite ones.
    """
    return (F.cosine_similarity(first, second, dim=1) - 1).square().mean()


def capsule_loss(outputs: Float[Tensor, "b d 2"], target: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Sum over the d output dimensions of the cross-entropy (Capsule-Forensics, Nguyen et al. 2019).

    Args:
        outputs: class scores before the softmax. The official code passes probabilities, and so takes softmax twice.
        target: 0 real, 1 fake.
    """
    per_dimension = F.cross_entropy(outputs.mT, target[:, None].expand(-1, outputs.shape[1]), reduction="none")
    return per_dimension.mean(0).sum()


# ------------------------------------------------------------------------------------------------------------------ UCF


def shuffle_within(labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """A random permutation that sends each index to one with the same label."""
    permutation = torch.empty_like(labels)
    by_label = torch.argsort(labels, stable=True)
    # Random numbers below 1/2 added to whole labels sort inside each label only, also after rounding.
    permutation[by_label] = torch.argsort(labels + torch.rand(len(labels), device=labels.device) / 2)
    return permutation


def triplet(
    anchor: Float[Tensor, "b d"], positive: Float[Tensor, "b d"], negative: Float[Tensor, "b d"], margin: float = 3.0
) -> Float[Tensor, ""]:
    """Mean of max(0, |a - p| - |a - n| + margin) (UCF, Yan et al. 2023)."""
    closeness = F.pairwise_distance(anchor, positive) - F.pairwise_distance(anchor, negative)
    return (closeness + margin).relu().mean()


def ucf_contrastive(
    common: Float[Tensor, "n d"],
    specific: Float[Tensor, "n d"],
    common_shuffle: Int[Tensor, " n"],
    specific_shuffle: Int[Tensor, " n"],
    margin: float = 3.0,
) -> Float[Tensor, ""]:
    """UCF's contrastive regularisation: four triplet terms (Yan et al. 2023).

    The batch is all reals, then as many fakes. A half's positives are its own shuffled samples, its negatives the other
    half's.

    Args:
        common: common forgery features.
        specific: method-specific forgery features.
        common_shuffle: permutation that keeps each half.
        specific_shuffle: permutation that keeps each forgery type.
        margin: of the triplets.
    """
    return _halves_apart(common, common[common_shuffle], margin) + _halves_apart(
        specific, specific[specific_shuffle], margin
    )


def _halves_apart(features: Float[Tensor, "n d"], shuffled: Float[Tensor, "n d"], margin: float) -> Float[Tensor, ""]:
    real, fake = features.chunk(2)
    shuffled_real, shuffled_fake = shuffled.chunk(2)
    return triplet(real, shuffled_real, shuffled_fake, margin) + triplet(fake, shuffled_fake, shuffled_real, margin)


# ----------------------------------------------------------------------------------------------------- PG-FDD's LDAM


def ldam_margins(counts: Int[Tensor, " c"], largest: float = 0.5) -> Float[Tensor, " c"]:
    """Label-distribution-aware margins (Cao et al. 2019): proportional to n^(-1/4), the largest being `largest`."""
    margins = counts.double() ** -0.25
    return (margins * (largest / margins.max())).float()


def ldam_loss(
    logits: Float[Tensor, "b c"], target: Int[Tensor, " b"], margins: Float[Tensor, " c"], scale: float = 30.0
) -> Float[Tensor, ""]:
    """LDAM loss (Cao et al. 2019): CE of scale * (logits - margin of the true class)."""
    one_hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    return F.cross_entropy(scale * (logits - one_hot * margins), target)


# -------------------------------------------------------------------------------------------------- CVaR, DAG, DAW


def worst_share_weights(size: Float[Tensor, " g"], alpha: float, ranks: int) -> Float[Tensor, "g ranks"]:
    """Weights of descending losses whose weighted sum is the mean of the worst alpha * n of n.

    Whole terms weigh 1/(alpha n), the term that straddles the border weighs its fraction, the rest 0.

    Args:
        size: n of each row.
        alpha: share of the samples, in (0, 1].
        ranks: number of columns.
    """
    worst = alpha * size[:, None]
    rank = torch.arange(ranks, dtype=size.dtype, device=size.device)
    return (worst - rank).clamp(0, 1) / worst


def cvar(losses: Float[Tensor, " n"], alpha: float) -> Float[Tensor, ""]:
    """Conditional value at risk: the mean of the worst `alpha` share (Ju et al. 2024, at the minimising threshold).

    The closed form of min_t t + mean(max(0, loss - t)) / alpha; the official code searches t per batch.

    Args:
        losses: per-sample losses.
        alpha: in (0, 1]. 1 gives the mean, 1/n the maximum.
    """
    size = torch.tensor([float(len(losses))], dtype=losses.dtype, device=losses.device)
    return (worst_share_weights(size, alpha, len(losses))[0] * losses.sort(descending=True).values).sum()


def dag_loss(losses: Float[Tensor, " n"], alpha: float = 0.5) -> Float[Tensor, ""]:
    """DAG-FDD, demographic-agnostic (Ju et al. 2024): CVaR over the batch."""
    return cvar(losses, alpha)


def daw_loss(
    losses: Float[Tensor, " n"], groups: Int[Tensor, " n"], inner: float = 0.9, outer: float = 0.5
) -> Float[Tensor, ""]:
    """DAW-FDD, demographic-aware (Ju et al. 2024): CVaR over groups of each group's CVaR.

    A group that the batch does not hold takes no part.

    Args:
        losses: per-sample losses.
        groups: group index of each sample.
        inner: alpha inside a group.
        outer: alpha over the groups.
    """
    present = groups.unique()
    member: Bool[Tensor, "g n"] = groups == present[:, None]
    # One row per group, its own losses first in descending order; the others' places get weight 0.
    ranked = losses.expand(len(present), -1).masked_fill(~member, -torch.inf).sort(1, descending=True).values
    ranked = ranked.masked_fill(ranked == -torch.inf, 0)
    weights = worst_share_weights(member.sum(1).to(losses.dtype), inner, len(losses))
    return cvar((weights * ranked).sum(1), outer)
