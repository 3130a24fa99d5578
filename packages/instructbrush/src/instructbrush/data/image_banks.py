"""Photographs held small in memory, and random crops of them."""

import random
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from tenfold.data import embedded_pictures, to_tensor
from tenfold.errors import UserError
from tenfold.images import list_images
from tenfold.runs import track


def shrunk(image: Float[Tensor, "3 h w"], short_side: int) -> Float[Tensor, "3 _ _"]:
    """Resize so that the shorter side has this many pixels (antialiased bilinear)."""
    height, width = image.shape[-2:]
    factor = short_side / min(height, width)
    size = (max(short_side, round(height * factor)), max(short_side, round(width * factor)))
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


class PhotoBank:
    """Photographs as 8-bit tensors, half as large again as the crops that are taken.

    Args:
        paths: pictures.
        side: of the crops.
    """

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self.side = side
        self.pictures: list[UInt8[Tensor, "3 h w"]] = [
            (shrunk(to_tensor(path), round(1.5 * side)) * 255).round().byte() for path in track(paths, "photographs")
        ]

    def __len__(self) -> int:
        return len(self.pictures)

    def crop(self, rng: random.Random) -> Float[Tensor, "3 s s"]:
        """A random square window of a random photograph, mirrored half of the time, in [0, 1]."""
        picture = rng.choice(self.pictures)
        height, width = picture.shape[-2:]
        window = rng.randint(self.side, min(height, width))
        top, left = rng.randint(0, height - window), rng.randint(0, width - window)
        image = picture[:, top : top + window, left : left + window].float() / 255
        if rng.random() < 0.5:
            image = image.flip(-1)
        return image if window == self.side else shrunk(image, self.side)


def training_photographs(folders: Sequence[Path], side: int) -> PhotoBank:
    """The photographs of some folders; without folders the embedded ones.

    Raises:
        UserError: a folder without pictures.
    """
    paths = [path for folder in folders for path in list_images(folder)] or list(embedded_pictures().values())
    if not paths:
        raise UserError("no photographs to learn from")
    return PhotoBank(paths, side)
