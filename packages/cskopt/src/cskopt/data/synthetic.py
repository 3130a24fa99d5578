"""Twenty classes of textured shapes, generated: the data of the small experiment. No download."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

SIDE = 28


@dataclass(frozen=True)
class _ClassLook:
    """What all pictures of a class share."""

    lobes: int
    depth: float
    aspect: float
    frequencies: Float[np.ndarray, " 2"]
    angles: Float[np.ndarray, " 2"]
    mix: float
    colours: Float[np.ndarray, "2 3"]


def _draw_look(rng: np.random.Generator) -> _ClassLook:
    return _ClassLook(
        lobes=int(rng.integers(2, 7)),
        depth=float(rng.uniform(0.12, 0.5)),
        aspect=float(rng.uniform(0.6, 1)),
        frequencies=rng.uniform(1.2, 3.4, 2),
        angles=rng.uniform(0, np.pi, 2),
        mix=float(rng.uniform(0, 1)),
        colours=rng.uniform(0, 1, (2, 3)),
    )


def _pictures_of(look: _ClassLook, count: int, rng: np.random.Generator) -> UInt8[Tensor, "n 3 28 28"]:
    """Pictures of one class, each with its own place, size, turn, phases, colour, background and noise."""
    shift, turn = rng.uniform(-0.15, 0.15, (count, 2, 1, 1)), rng.uniform(-0.35, 0.35, (count, 1, 1))
    scale = rng.uniform(0.55, 0.75, (count, 1, 1))
    axis = np.linspace(-1, 1, SIDE)
    x = (axis[None, None, :] - shift[:, 0]) / scale
    y = (axis[None, :, None] - shift[:, 1]) / scale
    u, v = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / look.aspect
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    mask = 1 / (1 + np.exp(-12 * (1 + look.depth * np.cos(look.lobes * angle) - radius)))
    phases = rng.uniform(0, 2 * np.pi, (2, count, 1, 1))
    gratings = [
        0.5 + 0.5 * np.sin(2 * np.pi * f * (u * np.cos(a) + v * np.sin(a)) + phase)
        for f, a, phase in zip(look.frequencies, look.angles, phases, strict=True)
    ]
    texture = (look.mix * gratings[0] + (1 - look.mix) * gratings[1])[:, None]
    first, second = look.colours[:, None, :, None, None]
    colour = first * texture + second * (1 - texture) + 0.15 * rng.standard_normal((count, 3, 1, 1))
    coarse = torch.from_numpy(
        0.5 + 0.2 * rng.standard_normal((count, 3, 1, 1)) + 0.35 * (rng.random((count, 3, 5, 5)) - 0.5)
    )
    background = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear", align_corners=True).numpy()
    picture = mask[:, None] * colour + (1 - mask[:, None]) * background
    picture += 0.12 * rng.standard_normal(picture.shape)
    return torch.from_numpy((picture.clip(0, 1) * 255).round().astype(np.uint8))


def shape_pictures(
    classes: int, per_class: int, seed: int, part: str = "train"
) -> tuple[UInt8[Tensor, "n 3 28 28"], Tensor]:
    """Pictures and labels of textured shapes.

    Args:
        classes: how many.
        per_class: pictures of each.
        seed: of the classes' looks and of the pictures.
        part: `train` and `test` have the same classes and different pictures.

    Returns:
        8-bit RGB pictures of 28 x 28, class by class, and their labels.
    """
    looks = [_draw_look(np.random.default_rng([seed, each])) for each in range(classes)]
    offset = 1 if part == "train" else 2
    pictures = [
        _pictures_of(look, per_class, np.random.default_rng([seed, index, offset])) for index, look in enumerate(looks)
    ]
    return torch.cat(pictures), torch.arange(classes).repeat_interleave(per_class)
