"""Bicubic resampling as the protocols have it: MATLAB's antialiased `imresize` for making, plain torch for enlarging."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def cubic(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0))


@lru_cache(maxsize=64)
def _weights(length: int, out: int, scale: float) -> Float[Tensor, "out length"]:
    """Rows of weights that resample a line of `length` samples, mirrored at its ends, to `out` (MATLAB's `imresize`)."""
    stretch = min(scale, 1.0)
    width = 4 / stretch
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    first = (centre - width / 2).floor().long() + 1
    index = first[:, None] + torch.arange(int(width) + 2)
    weight = cubic((centre[:, None] - index) * stretch) * stretch
    weight = weight / weight.sum(1, keepdim=True)
    mirrored = index.remainder(2 * length)
    mirrored = torch.where(mirrored < length, mirrored, 2 * length - 1 - mirrored)
    return torch.zeros(out, length, dtype=torch.float64).scatter_add_(1, mirrored, weight)


def matlab_resize(image: Float[Tensor, "*b c h w"], scale: float) -> Float[Tensor, "*b c h2 w2"]:
    """MATLAB's `imresize(image, scale, "bicubic")`: antialiased when shrinking, ends mirrored, sides rounded up.

    Args:
        image: any range; values are not clamped.
        scale: factor of both sides.
    """
    height, width = image.shape[-2:]
    rows = _weights(height, -int(-height * scale // 1), scale).to(image.device, image.dtype)
    columns = _weights(width, -int(-width * scale // 1), scale).to(image.device, image.dtype)
    return rows @ image @ columns.mT


def enlarge(image: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c _ _"]:
    """Plain bicubic enlargement, not clamped: what every model starts from."""
    return image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)


def to_eight_bits(image: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Clamp to [0, 1] and round to multiples of 1/255: what a PNG keeps."""
    return (image.clamp(0, 1) * 255).round() / 255


def bicubic_down(image: Float[Tensor, "b c h w"], scale: int = 4) -> Float[Tensor, "b c _ _"]:
    """The bicubic protocol's low-quality image: MATLAB's bicubic by 1/scale, in 8 bits. `image` is in [0, 1]."""
    return to_eight_bits(matlab_resize(image, 1 / scale))
