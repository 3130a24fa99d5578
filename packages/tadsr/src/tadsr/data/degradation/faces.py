"""The degradation that blind face restoration is trained with (GFPGAN's, as ResShift and TAD-SR use it): the size is kept."""

from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from tadsr.data.datasets import generator_of
from tadsr.data.degradation.jpeg import jpeg_codec
from tadsr.data.degradation.kernels import filter_batch, gaussian_kernel
from tadsr.data.degradation.real_esrgan import Draws, gaussian_noise
from tadsr.data.transforms import to_eight_bits

SIDE, SIGMA, SHRINK, NOISE, QUALITY, GRAY = 41, (0.1, 15.0), (0.8, 32.0), (0.0, 20.0), (30, 100), 0.01
"""Side of the blur kernel, its standard deviation in pixels, factor of shrinking, noise (of 255), JPEG quality, chance of no colour."""


def degrade_face(image: Float[Tensor, "1 3 h w"], seed: tuple[int, ...]) -> Float[Tensor, "1 3 h w"]:
    """Blur, shrink, add noise, compress, enlarge again.

    Args:
        image: in [0, 1], sides above 20 pixels.
        seed: what the choices follow from.
    """
    draws = Draws(generator_of(*seed, 0xFACE))
    height, width = image.shape[-2:]
    sigma = draws.uniform(*SIGMA)
    other, theta = (sigma, 0.0) if draws.chance(0.5) else (draws.uniform(*SIGMA), draws.uniform(-pi, pi))
    blurred = filter_batch(image, gaussian_kernel(SIDE, sigma, other, theta)[None])
    factor = draws.uniform(*SHRINK)
    small = _resized(blurred, max(1, int(height // factor)), max(1, int(width // factor)))
    noisy = gaussian_noise(small, draws.uniform(*NOISE), False, draws.generator).clamp(0, 1)
    compressed = jpeg_codec(noisy, [draws.whole(*QUALITY)])
    result = _resized(compressed, height, width)
    if draws.chance(GRAY):
        result = (
            result.mul(result.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).expand_as(result)
        )
    return to_eight_bits(result)


def _resized(image: Float[Tensor, "1 3 _ _"], height: int, width: int) -> Float[Tensor, "1 3 _ _"]:
    return torch.nn.functional.interpolate(image, (height, width), mode="bilinear", align_corners=False)
