"""Making low-quality images: the bicubic protocol, and second-order Real-ESRGAN degradation in batches."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tadsr.recipes import Degradation
from tadsr.resampling import bicubic_down


def degrade(
    hr: Float[Tensor, "b 3 h w"], kind: Degradation, seeds: Sequence[tuple[int, ...]], scale: int = 4
) -> Float[Tensor, "b 3 _ _"]:
    """Low-quality images, `scale` times smaller, in 8 bits.

    Args:
        hr: in [0, 1], sides multiples of `scale`.
        kind: which pipeline.
        seeds: one tuple of numbers per picture, from which its degradation follows.
        scale: of the super-resolution.
    """
    if kind == "bicubic":
        return bicubic_down(hr, scale)
    from tadsr.degradation.real_esrgan import SETTINGS, degrade_one

    return torch.cat(
        [degrade_one(image[None], SETTINGS[kind], seed, scale) for image, seed in zip(hr, seeds, strict=True)]
    )
