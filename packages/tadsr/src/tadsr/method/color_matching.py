"""Giving a result the colours of its input: its low frequencies, or its channels' mean and spread."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tadsr.config import ColourFix
from tadsr.data.transforms import enlarge

Image = Float[Tensor, "b 3 _h _w"]


def low_frequencies(image: Image, levels: int = 5) -> Image:
    """What is left after that many à-trous smoothings with a 3 x 3 binomial kernel of doubling spacing."""
    line = torch.tensor([0.25, 0.5, 0.25], device=image.device, dtype=image.dtype)
    kernel = (line[:, None] * line[None, :]).expand(3, 1, 3, 3)
    for level in range(levels):
        radius = min(2**level, min(image.shape[-2:]) - 1)
        if radius < 1:
            return image
        padded = F.pad(image, (radius,) * 4, mode="replicate")
        image = F.conv2d(padded, kernel, groups=3, dilation=radius)
    return image


def fix_colours(result: Image, low_quality: Image, method: ColourFix) -> Image:
    """Correct the colours of an enlarged picture.

    Args:
        result: the enlarged picture.
        low_quality: what it was made from, smaller by an integer factor.
        method: wavelet exchanges the low frequencies, adain matches each channel's mean and standard deviation.
    """
    if method == "none":
        return result
    reference = enlarge(low_quality, result.shape[-1] // low_quality.shape[-1])
    if method == "wavelet":
        return result - low_frequencies(result) + low_frequencies(reference)
    spread, mean = torch.std_mean(result, (2, 3), keepdim=True)
    reference_spread, reference_mean = torch.std_mean(reference, (2, 3), keepdim=True)
    return (result - mean) / spread.clamp_min(1e-6) * reference_spread + reference_mean
