"""Drawn scenes: one coloured shape on a textured ground, in a light, with a caption (the miniature world of the embedded model)."""

import math
import random
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from instructbrush.data.vocabulary import COLOURS, SHAPES, TEXTURES


@dataclass(frozen=True)
class Scene:
    """What is drawn; lengths are fractions of the picture's side.

    Attributes:
        shape: of the object, one of SHAPES.
        colour: of the object, a name in COLOURS, or an RGB triple.
        ground: colour of the ground, a name in COLOURS.
        texture: of the ground, one of TEXTURES.
        centre: row and column.
        radius: of the object.
        slope: brightness gradient of the ground along rows and columns.
    """

    shape: str
    colour: str | tuple[float, float, float]
    ground: str
    texture: str
    centre: tuple[float, float]
    radius: float
    slope: tuple[float, float]

    @property
    def object_words(self) -> str:
        """Such as `red circle`."""
        return f"{self.colour} {self.shape}"

    @property
    def ground_words(self) -> str:
        """Such as `striped blue`, or `blue` when plain."""
        return self.ground if self.texture == "plain" else f"{self.texture} {self.ground}"

    @property
    def caption(self) -> str:
        """Such as `red circle on striped blue`."""
        return f"{self.object_words} on {self.ground_words}"


def random_scene(rng: random.Random) -> Scene:
    """A scene whose object and ground differ in colour."""
    colour, ground = rng.sample(list(COLOURS), 2)
    return Scene(
        shape=rng.choice(SHAPES),
        colour=colour,
        ground=ground,
        texture=rng.choices(TEXTURES, (0.6, 0.2, 0.2))[0],
        centre=(rng.uniform(0.33, 0.67), rng.uniform(0.33, 0.67)),
        radius=rng.uniform(0.19, 0.31),
        slope=(rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25)),
    )


def render(scene: Scene, side: int = 64) -> Float[Tensor, "3 {side} {side}"]:
    """Draw a scene, in [0, 1], with edges one pixel soft."""
    axis = (torch.arange(side) + 0.5) / side
    row, column = axis[:, None], axis[None, :]
    ground = torch.tensor(COLOURS[scene.ground])[:, None, None].expand(3, side, side)
    ground = ground * (1 + scene.slope[0] * (row - 0.5) + scene.slope[1] * (column - 0.5))
    ground = ground + (_pattern(scene.texture, row, column) * (0.6 if ground.mean() < 0.4 else -0.4))
    inside = (0.5 - _distance(scene, row, column) * side).clamp(0, 1)
    colour = COLOURS[scene.colour] if isinstance(scene.colour, str) else scene.colour
    return torch.lerp(ground, torch.tensor(colour)[:, None, None].expand_as(ground), inside).clamp(0, 1)


def _pattern(texture: str, row: Tensor, column: Tensor) -> Tensor:
    """1 where the ground's pattern is drawn: bands of a sixteenth, dots of a sixteenth on a grid of an eighth."""
    if texture == "striped":
        return ((row * 8) % 1 < 0.5).float().expand(row.shape[0], column.shape[1])
    if texture == "dotted":
        return ((((row * 8) % 1 - 0.5).square() + ((column * 8) % 1 - 0.5).square()) < 0.09).float()
    return torch.zeros(row.shape[0], column.shape[1])


def _distance(scene: Scene, row: Tensor, column: Tensor) -> Tensor:
    """Signed distance to the object's outline (about), negative inside."""
    y, x, r = row - scene.centre[0], column - scene.centre[1], scene.radius
    if scene.shape == "circle":
        return (x.square() + y.square()).sqrt() - r
    if scene.shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88 * r
    if scene.shape == "triangle":
        return torch.maximum(y - 0.6 * r, (x.abs() * math.sqrt(3) - y - 1.1 * r) / 2)
    bars = torch.minimum(torch.maximum(x.abs() / 3, y.abs()), torch.maximum(x.abs(), y.abs() / 3))
    return bars - r / 3
