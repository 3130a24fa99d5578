"""What happens to a picture between the attacker and the detector: compressed, or resized on the way."""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from tenfold import UserError

UNTREATED = "none"
"""The pictures as they were attacked."""


def through_jpeg(image: UInt8[Tensor, "3 h w"], quality: int) -> UInt8[Tensor, "3 h w"]:
    """Compressed and read again."""
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(stream)).copy()).permute(2, 0, 1)


def down_and_up(images: UInt8[Tensor, "n 3 h w"], factor: float) -> UInt8[Tensor, "n 3 h w"]:
    """Shrunk by `factor` and enlarged again (bilinear, antialiased), in whole levels."""
    size = (images.shape[-2], images.shape[-1])
    small = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    for each in (small, size):
        pixels = F.interpolate(images.float(), each, mode="bilinear", antialias=True, align_corners=False)
        images = pixels.round().clamp(0, 255).byte()
    return images


def parse_treatment(name: str) -> tuple[str, float]:
    """Kind and amount of `jpeg:QUALITY` or `resize:FACTOR`.

    Raises:
        UserError: neither of the two, a quality outside 1 to 100, a factor outside (0, 1).
    """
    kind, _, rest = name.partition(":")
    try:
        amount = float(rest)
    except ValueError:
        amount = math.nan
    if kind == "jpeg" and amount in range(1, 101):
        return kind, amount
    if kind == "resize" and 0 < amount < 1:
        return kind, amount
    raise UserError(f"{name}: expected jpeg:QUALITY (1 to 100) or resize:FACTOR (between 0 and 1)")


def treated(images: Float[Tensor, "n 3 h w"], name: str) -> Float[Tensor, "n 3 h w"]:
    """Pixels in [0, 1] after a treatment of the 8-bit pictures; `none` leaves them as they are.

    Raises:
        UserError: see `parse_treatment`.
    """
    if name == UNTREATED:
        return images
    kind, amount = parse_treatment(name)
    levels = (images * 255).round().byte().cpu()
    if kind == "jpeg":
        levels = torch.stack([through_jpeg(each, int(amount)) for each in levels])
    else:
        levels = down_and_up(levels, amount)
    return levels.to(images.device).float() / 255
