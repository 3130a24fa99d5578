"""Gabor glyphs: procedural classes of pictures, and a shifted domain of them (this package's small-scale experiment).

A class is three Gabor patches; a sample turns, shifts, scales and disturbs them. The base domain pre-trains the embedded
backbone; the shifted domain (contrast inverted in part, a grating behind) with other classes makes the stream of tasks.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

PATCHES = 3
"""Gabor patches per class."""


@dataclass(frozen=True)
class GlyphClasses:
    """What makes each class: its Gabor patches, on a square that reaches from -1 to 1.

    Attributes:
        centre: of each patch.
        orientation: of the grating, in radians.
        frequency: half-cycles per unit length.
        width: standard deviation of the window.
        phase: of the grating, in radians.
        colour: RGB contrast in [-1, 1].
    """

    centre: Float[Tensor, "c 3 2"]
    orientation: Float[Tensor, "c 3"]
    frequency: Float[Tensor, "c 3"]
    width: Float[Tensor, "c 3"]
    phase: Float[Tensor, "c 3"]
    colour: Float[Tensor, "c 3 3"]


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def draw_classes(count: int, generator: torch.Generator) -> GlyphClasses:
    """Draw `count` classes; the same generator state gives the same classes."""
    return GlyphClasses(
        centre=_uniform(-0.6, 0.6, (count, PATCHES, 2), generator),
        orientation=_uniform(0.0, math.pi, (count, PATCHES), generator),
        frequency=_uniform(3.0, 10.0, (count, PATCHES), generator),
        width=_uniform(0.18, 0.33, (count, PATCHES), generator),
        phase=_uniform(0.0, 2 * math.pi, (count, PATCHES), generator),
        colour=_uniform(-1.0, 1.0, (count, PATCHES, 3), generator),
    )


def _square(size: int) -> Float[Tensor, "s s 2"]:
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)


def render_glyphs(
    classes: GlyphClasses, labels: Int[Tensor, " n"], generator: torch.Generator, size: int = 32, noise: float = 0.25
) -> Float[Tensor, "n 3 {size} {size}"]:
    """Draw one sample of each label.

    Each is turned by up to 0.3 rad, shifted by up to 0.175, scaled by 0.85 to 1.15, and disturbed by Gaussian noise.

    Args:
        classes: the classes.
        labels: which of them.
        generator: for what varies within a class.
        size: pixels a side.
        noise: standard deviation of the pixel noise where full contrast is 1.

    Returns:
        RGB in [0, 1], 0.5 where there is nothing.
    """
    count = len(labels)
    turn = _uniform(-0.3, 0.3, (count,), generator)
    shift = _uniform(-0.175, 0.175, (count, 1, 1, 2), generator)
    scale = _uniform(0.85, 1.15, (count, 1, 1, 1), generator)
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=-1).unflatten(-1, (2, 2))
    place = torch.einsum("nij,nhwj->nhwi", rotation, (_square(size) - shift) / scale)
    signed = torch.zeros(count, 3, size, size)
    for patch in range(PATCHES):
        offset = place - classes.centre[labels, patch][:, None, None]
        angle, width, frequency, phase = (
            each[labels, patch][:, None, None]
            for each in (classes.orientation, classes.width, classes.frequency, classes.phase)
        )
        along = offset[..., 0] * angle.cos() + offset[..., 1] * angle.sin()
        window = torch.exp(-offset.square().sum(-1) / (2 * width**2))
        grating = torch.cos(math.pi * frequency * along + phase)
        signed += classes.colour[labels, patch][:, :, None, None] * (window * grating)[:, None]
    signed += noise * torch.randn(signed.shape, generator=generator)
    return (0.5 + 0.5 * signed).clamp(0, 1)


def shift_domain(
    images: Float[Tensor, "n 3 s s"], strength: float, generator: torch.Generator
) -> Float[Tensor, "n 3 s s"]:
    """Move pictures into the continual domain: (1 - s) image + 1.5 s inverted grey + a grating of amplitude 0.6 s.

    Args:
        images: in [0, 1].
        strength: s; 0 leaves them as they are.
        generator: for the phase of each picture's grating.
    """
    signed = 2 * images - 1
    inverted_grey = -signed.mean(1, keepdim=True)
    phase = _uniform(0.0, 2 * math.pi, (len(images), 1, 1, 1), generator)
    diagonal = _square(images.shape[-1]).sum(-1) / math.sqrt(2)
    grating = torch.cos(4 * math.pi * diagonal + phase)
    mixed = (1 - strength) * signed + 1.5 * strength * inverted_grey + 0.6 * strength * grating
    return (0.5 + 0.5 * mixed).clamp(0, 1)
