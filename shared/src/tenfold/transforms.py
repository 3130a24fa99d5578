"""What happens to pictures on their way: the real JPEG codec, resizing and back."""

import io

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def jpeg_roundtrip(images: Float[Tensor, "b 3 h w"], qualities: int | list[int]) -> Float[Tensor, "b 3 h w"]:
    """Encode and decode each picture with libjpeg, in whole levels of 8 bits.

    Args:
        images: in [0, 1].
        qualities: 1 to 100, one for all or one each.
    """
    each = [qualities] * len(images) if isinstance(qualities, int) else qualities
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.stack([_through_jpeg(image, quality) for image, quality in zip(levels, each, strict=True)])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images) / 255


def _through_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int) -> UInt8[np.ndarray, "h w 3"]:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def resize_roundtrip(images: Float[Tensor, "b 3 h w"], factor: float) -> Float[Tensor, "b 3 h w"]:
    """Shrink by `factor` and enlarge again (bilinear, antialiased), in whole levels of 8 bits each time.

    Args:
        images: in [0, 1].
        factor: of the sides, in (0, 1).
    """
    size = (images.shape[-2], images.shape[-1])
    small = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    levels = (images.clamp(0, 1) * 255).round()
    for target in (small, size):
        levels = (
            F.interpolate(levels, target, mode="bilinear", antialias=True, align_corners=False).round().clamp(0, 255)
        )
    return levels / 255
