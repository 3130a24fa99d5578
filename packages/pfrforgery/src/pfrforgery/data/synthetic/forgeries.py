"""Five small families of forgery, each with its own trace: stand-ins for the generators that different organisations meet.

None imitates a particular published method. Each takes a genuine picture and works inside a soft elliptic mask, as face manipulations do.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.ndimage import gaussian_filter, zoom
from torch import Tensor

from pfrforgery.data.synthetic.faces import FaceShape, draw_face

Picture = Float[np.ndarray, "s s 3"]
Mask = Float[np.ndarray, "s s 1"]


def smooth(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    """An over-smooth decoder: fine texture is gone."""
    sigma = rng.uniform(0.6, 1.0)
    return picture * (1 - mask) + gaussian_filter(picture, (sigma, sigma, 0)) * mask


def resample(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    """A face generated at a lower resolution and enlarged: a resampling trace."""
    factor = rng.uniform(0.5, 0.7)
    small = zoom(picture, (factor, factor, 1), order=1)
    large = zoom(small, (picture.shape[0] / small.shape[0], picture.shape[1] / small.shape[1], 1), order=0)
    return picture * (1 - mask) + large * mask


def boundary(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    """A pasted face: brightness jumps where it was blended in."""
    hard = np.clip((mask - 0.5) * 6 + 0.5, 0, 1)
    return picture + hard * rng.choice((-1, 1)) * rng.uniform(0.05, 0.09)


def grid(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    """A transposed convolution's chequerboard."""
    yy, xx = np.mgrid[: picture.shape[0], : picture.shape[1]]
    pattern = ((yy + xx) % 2 * 2 - 1)[..., None]
    return picture + mask * pattern * rng.uniform(0.015, 0.03)


def recolour(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    """A colour transfer that missed: skin shifts from red to blue."""
    shift = rng.uniform(0.04, 0.08)
    return picture + mask * np.array([-shift, 0.0, shift])


FAMILIES: dict[str, Callable[[Picture, Mask, np.random.Generator], Picture]] = {
    "smooth": smooth,
    "resample": resample,
    "boundary": boundary,
    "grid": grid,
    "recolour": recolour,
}


def forge(picture: Picture, family: str, rng: np.random.Generator, shape: FaceShape | None = None) -> Picture:
    """Forge the middle of a picture.

    Args:
        picture: a genuine face, or any photograph.
        family: one of `FAMILIES`.
        rng: source of randomness.
        shape: where the face lies; the middle of the picture when None.
    """
    where = shape or FaceShape(rng.normal(0, 0.04), rng.normal(0, 0.04), 0.8, 0.95)
    return FAMILIES[family](picture, where.inner_mask(len(picture))[..., None], rng).clip(0, 1)


def family_of(client: int) -> str:
    """The family that a client meets; more than five clients share them in turn."""
    return list(FAMILIES)[client % len(FAMILIES)]


def drawn_family(
    count: int, family: str, side: int, rng: np.random.Generator
) -> tuple[UInt8[Tensor, "n 3 s s"], Int[Tensor, " n"]]:
    """Drawn faces, real and fake in turn, the fakes of one family.

    Args:
        count: how many.
        family: one of `FAMILIES`.
        side: of the pictures in pixels.
        rng: source of randomness.
    """
    pictures, labels = np.empty((count, side, side, 3), np.uint8), np.arange(count) % 2
    for index, label in enumerate(labels):
        picture, shape = draw_face(rng, side)
        if label:
            picture = forge(picture, family, rng, shape)
        picture = picture + rng.normal(0, 0.012, picture.shape)
        pictures[index] = np.rint(picture.clip(0, 1) * 255)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def photo_family(
    count: int, family: str, side: int, rng: np.random.Generator, photographs: list[Float[np.ndarray, "_ _ 3"]]
) -> tuple[UInt8[Tensor, "n 3 s s"], Int[Tensor, " n"]]:
    """Pieces of photographs, genuine and forged in turn, the forged ones of one family.

    Args:
        count: how many.
        family: one of `FAMILIES`.
        side: of the pieces in pixels.
        rng: source of randomness.
        photographs: RGB in [0, 1].
    """
    pictures, labels = np.empty((count, side, side, 3), np.uint8), np.arange(count) % 2
    for index, label in enumerate(labels):
        photograph = photographs[rng.integers(len(photographs))]
        top, left = (int(rng.integers(length - side + 1)) for length in photograph.shape[:2])
        piece = photograph[top : top + side, left : left + side].astype(np.float64)
        pictures[index] = np.rint((forge(piece, family, rng) if label else piece) * 255)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
