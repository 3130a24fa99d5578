"""The embedded forged faces: drawn from scratch, with clues whose strength is known.

Every fake may carry a clue common to all clients (the inner face is smoothed) and one of its client (a tint). The tint's direction differs by
client, so that a model that cannot tell clients apart cannot use it. At `specific` 0 the tint says nothing: the control.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy.ndimage import gaussian_filter
from torch import Tensor

SIDE = 32
SMOOTHED_SHARE = 0.6
"""Of the fakes; the best accuracy from this clue alone is 0.8."""
TINT = 0.08
GREY_RED = np.array([1.0, 0.0, -1.0]) / math.sqrt(2)
GREEN = np.array([-0.5, 1.0, -0.5]) / math.sqrt(1.5)


@dataclass(frozen=True)
class FaceShape:
    """Where a drawn face lies, in coordinates from -1 to 1.

    Attributes:
        cx: centre, to the right.
        cy: centre, downwards.
        a: half-axis across.
        b: half-axis along.
    """

    cx: float
    cy: float
    a: float
    b: float

    def distance(self, scale: float = 1.0, side: int = SIDE) -> Float[np.ndarray, "s s"]:
        """Squared elliptic distance from the centre: 1 on the outline of the face shrunk by `scale`."""
        yy, xx = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        return ((xx - self.cx) / (self.a * scale)) ** 2 + ((yy - self.cy) / (self.b * scale)) ** 2

    def inner_mask(self, side: int = SIDE) -> Float[np.ndarray, "s s"]:
        """1 inside the inner face, 0 outside, soft between."""
        return _sigmoid(10 * (1 - np.sqrt(self.distance(0.8, side))))


def _sigmoid(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return 1 / (1 + np.exp(-x))


def _slope(
    xx: Float[np.ndarray, "s s"], yy: Float[np.ndarray, "s s"], across: float, along: float, rng: np.random.Generator
) -> Float[np.ndarray, "s s 1"]:
    """Light that falls from one side."""
    return (rng.normal(0, across) * xx + rng.normal(0, along) * yy)[..., None]


def _spot(
    xx: Float[np.ndarray, "s s"], yy: Float[np.ndarray, "s s"], x: float, y: float, width: float, height: float
) -> Float[np.ndarray, "s s 1"]:
    """A soft ellipse: 1 in its middle."""
    return np.exp(-(((xx - x) / width) ** 2) - ((yy - y) / height) ** 2)[..., None]


def draw_face(rng: np.random.Generator, side: int = SIDE) -> tuple[Float[np.ndarray, "s s 3"], FaceShape]:
    """Draw a genuine face on a plain background.

    Args:
        rng: source of randomness.
        side: of the picture in pixels.

    Returns:
        RGB, about [0, 1] but not clipped, and where the face lies.
    """
    yy, xx = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    shape = FaceShape(rng.normal(0, 0.04), rng.normal(0, 0.04), rng.uniform(0.72, 0.86), rng.uniform(0.88, 1.02))
    mask = _sigmoid(10 * (1 - shape.distance(side=side)))[..., None]
    background = rng.uniform(0.25, 0.7) + rng.normal(0, 0.06, 3) + _slope(xx, yy, 0.12, 0.12, rng)
    skin = np.array([0.80, 0.60, 0.48]) * rng.uniform(0.6, 1.1) + rng.normal(0, 0.025, 3)
    texture = 0.06 * gaussian_filter(rng.normal(0, 1, (side, side)), 0.7 * side / SIDE)
    face = skin + _slope(xx, yy, 0.15, 0.10, rng) + texture[..., None]
    apart, up = rng.uniform(0.28, 0.38), rng.uniform(0.2, 0.32)
    for sign in (-1, 1):
        face = face * (1 - 0.75 * _spot(xx, yy, shape.cx + sign * apart, shape.cy - up, 0.14, 0.07))
    mouth = 0.55 * _spot(xx, yy, shape.cx, shape.cy + rng.uniform(0.42, 0.54), 0.26, 0.07)
    face = face * (1 - mouth) + mouth * np.array([0.5, 0.15, 0.15])
    face = face * (1 - 0.2 * _spot(xx, yy, shape.cx, shape.cy + 0.1, 0.07, 0.2))
    return background * (1 - mask) + face * mask, shape


def smooth_inner_face(picture: Float[np.ndarray, "s s 3"], shape: FaceShape) -> Float[np.ndarray, "s s 3"]:
    """The common clue: the inner face loses its finest texture."""
    side = len(picture)
    mask = shape.inner_mask(side)[..., None]
    blurred = gaussian_filter(picture, (0.75 * side / SIDE, 0.75 * side / SIDE, 0))
    return picture * (1 - mask) + blurred * mask


def client_tint(
    client: int, clients: int, fake: bool, specific: float, rng: np.random.Generator
) -> Float[np.ndarray, " 3"]:
    """The client's own clue: a tint whose mean along the client's direction is +specific for fakes, -specific for reals."""
    angle = 2 * math.pi * client / clients
    along = math.cos(angle) * GREY_RED + math.sin(angle) * GREEN
    across = -math.sin(angle) * GREY_RED + math.cos(angle) * GREEN
    return TINT * (rng.normal(specific if fake else -specific, 1) * along + rng.normal(0, 1) * across)


def drawn_tints(
    count: int, client: int, clients: int, specific: float, rng: np.random.Generator
) -> tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, " n"]]:
    """Faces of one client, real and fake in turn.

    Args:
        count: how many.
        client: which client, from 0.
        clients: how many there are.
        specific: strength of the client's clue; 0 makes the tint say nothing.
        rng: source of randomness.

    Returns:
        Images and labels, 1 for fake.
    """
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    labels = np.arange(count) % 2
    for index, label in enumerate(labels):
        picture, shape = draw_face(rng)
        if label and rng.random() < SMOOTHED_SHARE:
            picture = smooth_inner_face(picture, shape)
        picture = picture + client_tint(client, clients, bool(label), specific, rng)
        picture = picture + rng.normal(0, 0.012 + 0.004 * client, picture.shape)
        pictures[index] = np.rint(picture.clip(0, 1) * 255)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
