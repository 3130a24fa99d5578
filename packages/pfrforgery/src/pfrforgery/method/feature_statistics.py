"""Feature statistics: the two operations of the personalised and the shared representation.

A feature map is content (normalised per sample and channel) in a frame of statistics (mean and variance over its pixels). One operation keeps the
content and mixes the statistics, the other keeps the statistics and swaps the content. Both come from SagNet (Nam et al., CVPR 2021);
that FedPR's R_s and R_p are these two is our reading, the paper's text being out of reach.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold import UserError

EPS = 1e-5
"""Added to a variance before its square root."""


def feature_statistics(z: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c 1 1"], Float[Tensor, "n c 1 1"]]:
    """Mean and unbiased variance over the pixels of each channel of each sample.

    Raises:
        UserError: a 1 x 1 map, which has no variance.
    """
    if z.shape[-1] * z.shape[-2] < 2:
        raise UserError("the feature map at the split is 1 x 1: split too deep for this image size")
    variance, mean = torch.var_mean(z, dim=(2, 3), correction=1, keepdim=True)
    return mean, variance


def normalise(
    z: Float[Tensor, "n c h w"],
    mean: Float[Tensor, "n c 1 1"],
    variance: Float[Tensor, "n c 1 1"],
    eps: float = EPS,
) -> Float[Tensor, "n c h w"]:
    """The content of a feature map: zero mean and unit variance in each channel of each sample."""
    return (z - mean) * (variance + eps).rsqrt()


def draw_permutation(count: int, generator: torch.Generator | None = None) -> Int[Tensor, " n"]:
    """A uniform random order of a batch; a sample may stay where it is."""
    return torch.randperm(count, generator=generator)


def mix_statistics(
    z: Float[Tensor, "n c h w"],
    perm: Int[Tensor, " n"] | None = None,
    weight: Float[Tensor, " n"] | None = None,
    *,
    generator: torch.Generator | None = None,
    eps: float = EPS,
) -> Float[Tensor, "n c h w"]:
    """Keep the content, interpolate mean and variance with those of another sample (R_s; SagNet's style randomisation).

    The variances are mixed, not the deviations, and gradients flow through everything, the partner's statistics too.

    Args:
        z: feature maps.
        perm: partner of each sample; drawn when None.
        weight: share of a sample's own statistics in [0, 1]; drawn uniformly, one per sample, when None.
        generator: source of the draws, on the CPU.
        eps: added to a variance before its square root.

    Raises:
        UserError: a 1 x 1 map.
    """
    mean, variance = feature_statistics(z)
    # Drawn on the CPU, so that a device does not change what is drawn.
    partner = (draw_permutation(len(z), generator) if perm is None else perm).to(z.device)
    own = torch.rand(len(z), generator=generator) if weight is None else weight
    own = own.to(z.device, z.dtype)[:, None, None, None]
    mixed_mean = own * mean + (1 - own) * mean[partner]
    mixed_variance = own * variance + (1 - own) * variance[partner]
    return normalise(z, mean, variance, eps) * (mixed_variance + eps).sqrt() + mixed_mean


def swap_content(
    z: Float[Tensor, "n c h w"],
    perm: Int[Tensor, " n"] | None = None,
    *,
    generator: torch.Generator | None = None,
    eps: float = EPS,
) -> Float[Tensor, "n c h w"]:
    """Keep the statistics, take the content of another sample (R_p; SagNet's content randomisation).

    No gradient reaches the content: it flows through a sample's own mean and variance only.

    Args:
        z: feature maps.
        perm: whose content each sample receives; drawn when None.
        generator: source of the draw, on the CPU.
        eps: added to a variance before its square root.

    Raises:
        UserError: a 1 x 1 map.
    """
    mean, variance = feature_statistics(z)
    partner = (draw_permutation(len(z), generator) if perm is None else perm).to(z.device)
    content = normalise(z, mean, variance, eps).detach()
    return content[partner] * (variance + eps).sqrt() + mean
