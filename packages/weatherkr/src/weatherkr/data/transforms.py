"""Pictures between floats and bytes."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_bytes(image: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """Round an image in [0, 1] to 8 bits."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
