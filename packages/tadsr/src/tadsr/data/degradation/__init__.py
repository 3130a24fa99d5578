"""Making low-quality images: the bicubic protocol, and second-order Real-ESRGAN degradation in batches."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tadsr.config import Degradation, scale_of
from tadsr.data.transforms import bicubic_down


def degrade(
    hr: Float[Tensor, "b 3 h w"], kind: Degradation, seeds: Sequence[tuple[int, ...]]
) -> Float[Tensor, "b 3 _ _"]:
    """Low-quality images, four times smaller (faces: of the same size), in 8 bits.

    Args:
        hr: in [0, 1], sides multiples of 4.
        kind: which pipeline.
        seeds: one tuple of numbers per picture, from which its degradation follows.
    """
    if kind == "bicubic":
        return bicubic_down(hr)
    if kind == "faces":
        from tadsr.data.degradation.faces import degrade_face

        return torch.cat([degrade_face(image[None], seed) for image, seed in zip(hr, seeds, strict=True)])
    from tadsr.data.degradation.real_esrgan import SETTINGS, degrade_one

    return torch.cat(
        [degrade_one(image[None], SETTINGS[kind], seed, scale_of(kind)) for image, seed in zip(hr, seeds, strict=True)]
    )
