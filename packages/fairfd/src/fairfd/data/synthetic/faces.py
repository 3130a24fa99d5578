"""Parametric faces drawn in batches, with 17 exact landmarks: data for experiments that need no photographs of people.

A person is a geometry and colours; an image adds pose, light, mouth opening and sensor noise. Groups differ in skin
reflectance and in nothing else, and are called "A" to "D": they stand for no population.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

GROUPS = ("A", "B", "C", "D")
REFLECTANCE = (0.86, 0.70, 0.57, 0.46)
"""Mean skin reflectance of the groups."""

_SKIN_HUE = (1.0, 0.80, 0.68)
_MEANS = {
    "head_width": 0.60,
    "head_height": 0.78,
    "eye_x": 0.27,
    "eye_y": -0.10,
    "eye_width": 0.13,
    "eye_height": 0.065,
    "brow_y": -0.26,
    "brow_width": 0.16,
    "brow_height": 0.035,
    "nose_y": 0.20,
    "nose_width": 0.09,
    "mouth_y": 0.44,
    "mouth_width": 0.22,
    "mouth_height": 0.055,
    "hair_line": -0.46,
}
_SPREAD = 0.10
_TEXTURES = 12
# Wave number of the finest skin pattern, radians per half head: about three pixels at the experiment's size.
_FINEST = 50.0
_PATTERN = 0.5


@dataclass(frozen=True)
class People:
    """Geometry and colours of n persons, in units of half the image; y grows downwards.

    Attributes:
        shape: one column per entry of the geometry (head, eyes, brows, nose, mouth, hair line).
        skin: RGB reflectance.
        hair: RGB.
        iris: RGB.
        lips: RGB.
        backdrop: RGB.
        texture: wave vectors and phase (x, y, phase) of a faint skin pattern.
    """

    shape: Float[Tensor, "n k"]
    skin: Float[Tensor, "n 3"]
    hair: Float[Tensor, "n 3"]
    iris: Float[Tensor, "n 3"]
    lips: Float[Tensor, "n 3"]
    backdrop: Float[Tensor, "n 3"]
    texture: Float[Tensor, "n t 3"]

    def part(self, name: str) -> Float[Tensor, "n 1 1"]:
        """One entry of the geometry, shaped to meet pixels."""
        return self.shape[:, list(_MEANS).index(name)][:, None, None]

    def pick(self, index: Tensor) -> "People":
        """The persons at these positions."""
        return People(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Shots:
    """What differs between n images.

    Attributes:
        shift: of the head, in units of half the image.
        turn: in the image plane, radians.
        scale: of the head.
        light: direction (x, y) and strength of the light.
        opening: of the mouth, in units of half the image.
        smile: how far the mouth's corners are raised, likewise.
    """

    shift: Float[Tensor, "n 2"]
    turn: Float[Tensor, " n"]
    scale: Float[Tensor, " n"]
    light: Float[Tensor, "n 3"]
    opening: Float[Tensor, " n"]
    smile: Float[Tensor, " n"]


def draw_people(groups: Float[Tensor, " n"], generator: torch.Generator) -> People:
    """Draw persons; all but the mean skin reflectance is distributed alike in all groups.

    Args:
        groups: mean skin reflectance of each person's group.
        generator: source of randomness.
    """
    count = len(groups)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *size, generator=generator)

    means = torch.tensor(list(_MEANS.values()))
    shape = means * (1 + _SPREAD * torch.randn(count, len(means), generator=generator).clamp(-2, 2))
    skin = groups[:, None] * uniform(0.9, 1.1, 1) * torch.tensor(_SKIN_HUE) * uniform(0.96, 1.04, 3)
    texture = torch.cat([uniform(-_FINEST, _FINEST, _TEXTURES, 2), uniform(0.0, 2 * torch.pi, _TEXTURES, 1)], 2)
    return People(
        shape=shape,
        skin=skin,
        hair=uniform(0.05, 0.35, 1) * torch.tensor([1.0, 0.8, 0.6]) * uniform(0.8, 1.2, 3),
        iris=uniform(0.1, 0.5, 3),
        lips=torch.tensor([0.95, 0.62, 0.62]) * uniform(0.85, 1.1, 3),
        backdrop=uniform(0.2, 0.8, 3),
        texture=texture,
    )


def draw_shots(count: int, generator: torch.Generator, scale: float = 1.2) -> Shots:
    """Draw poses, lights and expressions.

    Args:
        count: how many.
        generator: source of randomness.
        scale: mean of the head's; at 1.2 some chins touch the edge, as in tight face crops, at 1 none does.
    """

    def normal(spread: float, *size: int) -> Tensor:
        return spread * torch.randn(count, *size, generator=generator).clamp(-2, 2)

    return Shots(
        shift=normal(0.04, 2),
        turn=normal(0.07),
        scale=scale + normal(0.04),
        light=torch.cat([normal(0.5, 2), 0.25 + normal(0.08, 1)], 1),
        opening=normal(0.05).clamp_min(0),
        smile=normal(0.03),
    )


def render(
    people: People, shots: Shots, size: int, generator: torch.Generator, noise: float = 0.01
) -> Float[Tensor, "n 3 s s"]:
    """Draw one image of each person.

    Args:
        people: n persons.
        shots: n shots.
        size: side in pixels.
        generator: source of the sensor noise.
        noise: standard deviation of the noise at full brightness; it falls with the root of the brightness.

    Returns:
        RGB in [0, 1].
    """
    u, v = _face_coordinates(shots, size)
    edge = 2.0 * size

    def inside(x: Tensor | float, y: Tensor | float, width: Tensor, height: Tensor) -> Tensor:
        """Coverage of an ellipse, with an edge of about one pixel."""
        dx, dy = u - x, v - y
        level = torch.hypot(dx / width, dy / height)
        # First-order distance to the rim, negative inside.
        distance = level * (level - 1) / torch.hypot(dx / width**2, dy / height**2).clamp_min(1e-6)
        return torch.sigmoid(-edge * torch.where(level < 1e-3, -torch.minimum(width, height), distance))

    def paint(image: Tensor, coverage: Tensor, colour: Tensor) -> Tensor:
        return image + coverage[:, None] * (colour - image)

    def flat(colour: Tensor) -> Tensor:
        return colour[:, :, None, None]

    part = people.part
    head_width, head_height = part("head_width"), part("head_height")
    image = flat(people.backdrop) * (1 - 0.15 * v[:, None])
    image = paint(image, inside(0.0, -0.12, head_width * 1.12, head_height * 1.05), flat(people.hair))
    skin = flat(people.skin) * _shading(people, shots, u / head_width, v / head_height)[:, None]
    image = paint(image, inside(0.0, 0.0, head_width, head_height), skin)
    fringe = torch.sigmoid((part("hair_line") - v - 0.25 * (u / head_width) ** 2) * edge / 2)
    image = paint(image, fringe * inside(0.0, 0.0, head_width * 1.02, head_height * 1.02), flat(people.hair))
    shade = inside(0.0, part("nose_y") - 0.02, part("nose_width"), part("nose_width") * 0.55)
    image = paint(image, 0.35 * shade, skin * 0.6)
    ridge = inside(0.02, part("nose_y") - 0.16, part("nose_width") * 0.3, part("nose_width") * 1.6)
    image = paint(image, 0.25 * ridge, (skin * 1.3).clamp_max(1))
    for side in (-1, 1):
        x, y = side * part("eye_x"), part("eye_y")
        white = inside(x, y, part("eye_width"), part("eye_height"))
        image = paint(image, white, torch.full_like(image, 0.92))
        image = paint(
            image, white * inside(x, y, part("eye_height") * 0.9, part("eye_height") * 0.9), flat(people.iris)
        )
        pupil = inside(x, y, part("eye_height") * 0.4, part("eye_height") * 0.4)
        image = paint(image, white * pupil, torch.full_like(image, 0.05))
        brow = inside(x, part("brow_y") + 0.06 * (u - x) * side, part("brow_width"), part("brow_height"))
        image = paint(image, brow, flat(people.hair * 0.8))
    opening = shots.opening[:, None, None]
    # Raised corners: the mouth's middle line is a parabola.
    line = part("mouth_y") - shots.smile[:, None, None] * ((u / part("mouth_width")) ** 2).clamp_max(1.5)
    image = paint(
        image,
        inside(0.0, line + opening / 2, part("mouth_width"), part("mouth_height") + opening / 2),
        flat(people.lips * people.skin),
    )
    gap = inside(0.0, line + opening / 2, part("mouth_width") * 0.8, opening / 2 + 0.006)
    gap = gap * (opening / 0.02).clamp(0, 1)
    image = paint(image, gap, torch.full_like(image, 0.12)).clamp(0, 1)
    grain = torch.randn(image.shape, generator=generator)
    return (image + noise * image.sqrt() * grain).clamp(0, 1)


def landmarks(people: People, shots: Shots, size: int) -> Float[Tensor, "n 17 2"]:
    """The 17 landmarks in pixels, in the order of `SCHEME_17`: outline, brows, eyes, nose, mouth."""
    part = {name: people.shape[:, i] for i, name in enumerate(_MEANS)}
    zero = torch.zeros_like(shots.turn)
    head_width, head_height = part["head_width"], part["head_height"]
    corner_y = part["mouth_y"] - shots.smile + shots.opening / 2
    points = [
        # The outline on the head's ellipse, at angles from ear to ear.
        *((-head_width * c, head_height * s) for c, s in ((0.98, 0.2), (0.71, 0.704))),
        (zero, head_height),
        *((head_width * c, head_height * s) for c, s in ((0.71, 0.704), (0.98, 0.2))),
        *_ends(part["eye_x"], part["brow_width"], part["brow_y"]),
        *_ends(part["eye_x"], part["eye_width"], part["eye_y"]),
        (zero, part["nose_y"]),
        (-part["mouth_width"], corner_y),
        (part["mouth_width"], corner_y),
        (zero, part["mouth_y"] + part["mouth_height"] + shots.opening),
    ]
    face = torch.stack([torch.stack(pair, 1) for pair in points], 1)
    cosine, sine = shots.turn.cos(), shots.turn.sin()
    rotation = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    moved = shots.scale[:, None, None] * face @ rotation.mT + shots.shift[:, None]
    return (moved + 1) * (size / 2) - 0.5


def _ends(x: Tensor, half_width: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Outer and inner end on the left, inner and outer end on the right."""
    return [(-x - half_width, y), (-x + half_width, y), (x - half_width, y), (x + half_width, y)]


def _face_coordinates(shots: Shots, size: int) -> tuple[Float[Tensor, "n s s"], Float[Tensor, "n s s"]]:
    """Position of every pixel in the face's own frame."""
    axis = (torch.arange(size) + 0.5) / (size / 2) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dx = x - shots.shift[:, 0, None, None]
    dy = y - shots.shift[:, 1, None, None]
    cosine, sine, scale = (t[:, None, None] for t in (shots.turn.cos(), shots.turn.sin(), shots.scale))
    return (cosine * dx + sine * dy) / scale, (cosine * dy - sine * dx) / scale


def _shading(
    people: People, shots: Shots, x: Float[Tensor, "n s s"], y: Float[Tensor, "n s s"]
) -> Float[Tensor, "n s s"]:
    """Light on an ellipsoid, times the person's faint skin pattern."""
    depth = (1 - x**2 - y**2).clamp_min(0).sqrt()
    light_x, light_y, strength = shots.light.T[:, :, None, None]
    shade = 1 - strength + strength * (0.4 + 0.6 * depth + 0.5 * (light_x * x + light_y * y))
    kx, ky, phase = people.texture.permute(2, 1, 0)[..., None, None]
    pattern = torch.sin(kx * x + ky * y + phase).mean(0)
    return shade * (1 + _PATTERN * pattern)
