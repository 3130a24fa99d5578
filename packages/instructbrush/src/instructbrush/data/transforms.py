"""Worded edits of any picture: tone, colour, texture, light. The embedded model learns these; effects to invert are others.

Each is a function of a picture in [0, 1], a strength (0.5 slightly, 1, 1.5 strongly) and colours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Picture = Float[Tensor, "3 h w"]
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Style:
    """An edit with a name.

    Attributes:
        words: its name; `{}` where colour words go.
        edit: the function.
        colours: how many colours it takes.
        graded: it has strengths.
        removable: what it did can be undone: it may also be taken away from a picture.
    """

    words: str
    edit: Callable[[Tensor, float, list[Tensor]], Tensor]
    colours: int = 0
    graded: bool = True
    removable: bool = False


def luma(image: Picture) -> Float[Tensor, "1 h w"]:
    """Brightness, ITU-R BT.601 weights."""
    return (image * image.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)


def saturated(image: Picture, factor: float) -> Picture:
    """Distance from grey times `factor`."""
    grey = luma(image)
    return grey + (image - grey) * factor


def scaled(image: Picture, red: float, green: float, blue: float) -> Picture:
    """Each channel times its own number."""
    return image * image.new_tensor([red, green, blue])[:, None, None]


def axes(image: Picture) -> tuple[Tensor, Tensor]:
    """Row and column coordinates in [-1, 1]."""
    height, width = image.shape[-2:]
    return torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None, :]


def vignette(image: Picture, strength: float) -> Picture:
    """Corners darkened."""
    row, column = axes(image)
    return image * (1 - 0.55 * strength * (row.square() + column.square()).clamp(max=2) / 2 * 1.2).clamp(min=0)


def sunset(image: Picture, strength: float) -> Picture:
    """An orange glow from above."""
    weight = 0.55 * strength * (1 - axes(image)[0]) / 2
    return torch.lerp(
        image, image.new_tensor([1.0, 0.45, 0.1])[:, None, None].expand_as(image), weight.expand_as(image)
    )


def gaussian_blur(image: Picture, sigma: float) -> Picture:
    """A Gaussian of `sigma` pixels, mirrored at the border."""
    radius = max(1, round(3 * sigma))
    taps = torch.arange(-radius, radius + 1, dtype=image.dtype)
    kernel = (-0.5 * (taps / sigma).square()).exp()
    kernel = kernel / kernel.sum()
    padded = F.pad(image[:, None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]


def sketch(image: Picture, strength: float) -> Picture:
    """Dark edges on white."""
    grey = F.pad(luma(image)[None], (0, 1, 0, 1), mode="replicate")[0]
    edges = (grey[:, :-1, 1:] - grey[:, :-1, :-1]).abs() + (grey[:, 1:, :-1] - grey[:, :-1, :-1]).abs()
    return (1 - 3 * strength * edges).expand_as(image)


def banded(image: Picture, strength: float) -> Picture:
    """Every second horizontal band of a sixteenth darkened."""
    row = (axes(image)[0] + 1) / 2 * 8
    return image * (1 - 0.6 * strength * ((row % 1) < 0.5).float())


def dotted(image: Picture, strength: float) -> Picture:
    """White dots on a grid of an eighth."""
    row, column = ((each + 1) / 2 * 8 % 1 - 0.5 for each in axes(image))
    return torch.lerp(
        image, torch.ones_like(image), (((row.square() + column.square()) < 0.07).float() * min(1, 0.75 * strength))
    )


def framed(image: Picture, colour: Tensor) -> Picture:
    """A border of a twelfth in one colour."""
    row, column = axes(image)
    inside = torch.maximum(row.abs().expand(*image.shape[1:]), column.abs().expand(*image.shape[1:])) < 1 - 1 / 6
    return torch.where(inside, image, colour[:, None, None].expand_as(image))


def duotone(image: Picture, dark: Tensor, light: Tensor) -> Picture:
    """Brightness mapped to the line between two colours."""
    return torch.lerp(
        dark[:, None, None].expand_as(image), light[:, None, None].expand_as(image), luma(image).expand_as(image)
    )


def halved(image: Picture, colour: Tensor, upper: bool, strength: float) -> Picture:
    """The upper or the lower half tinted, fading towards the middle."""
    row = axes(image)[0]
    weight = (-row if upper else row).clamp(min=0) * 0.8 * strength
    return torch.lerp(image, colour[:, None, None].expand_as(image), weight.clamp(max=1).expand_as(image))


STYLES: dict[str, Style] = {
    "dark": Style("dark", lambda x, s, _: x * (1 - 0.45 * s), removable=True),
    "bright": Style("bright", lambda x, s, _: 1 - (1 - x) * (1 - 0.45 * s), removable=True),
    "gray": Style("gray", lambda x, s, _: saturated(x, 1 - min(1.0, 0.7 * s + 0.3))),
    "colorful": Style("colorful", lambda x, s, _: saturated(x, 1 + 1.2 * s)),
    "pale": Style("pale", lambda x, s, _: 0.5 + (x - 0.5) * (1 - 0.45 * s), removable=True),
    "harsh": Style("harsh", lambda x, s, _: 0.5 + (x - 0.5) * (1 + 1.2 * s)),
    "tinted": Style(
        "tinted {}", lambda x, s, c: torch.lerp(x, c[0][:, None, None].expand_as(x), 0.4 * s), 1, removable=True
    ),
    "warm": Style("warm", lambda x, s, _: scaled(x, 1 + 0.25 * s, 1.0, 1 - 0.35 * s), removable=True),
    "cold": Style("cold", lambda x, s, _: scaled(x, 1 - 0.35 * s, 1.0, 1 + 0.25 * s), removable=True),
    "sepia": Style(
        "sepia", lambda x, s, _: torch.lerp(x, scaled(luma(x).expand_as(x), 1.15, 0.95, 0.7), min(1.0, 0.6 + 0.4 * s))
    ),
    "negative": Style("negative", lambda x, _, __: 1 - x, graded=False, removable=True),
    "night": Style("night", lambda x, s, _: scaled(saturated(x, 0.6), 0.55 - 0.25 * s, 0.6 - 0.25 * s, 0.85 - 0.2 * s)),
    "sunset": Style("sunset", lambda x, s, _: sunset(x, s)),
    "foggy": Style("foggy", lambda x, s, _: torch.lerp(x, torch.full_like(x, 0.85), 0.45 * s), removable=True),
    "blurry": Style("blurry", lambda x, s, _: gaussian_blur(x, 1.6 * s)),
    "sketch": Style("sketch", lambda x, s, _: sketch(x, s)),
    "poster": Style("poster", lambda x, _, __: (x * 3).round() / 3, graded=False),
    "striped": Style("striped", lambda x, s, _: banded(x, s), removable=True),
    "dotted": Style("dotted", lambda x, s, _: dotted(x, s), removable=True),
    "framed": Style("framed {}", lambda x, _, c: framed(x, c[0]), 1, graded=False),
    "vignette": Style("vignette", lambda x, s, _: vignette(x, s), removable=True),
    "glowing": Style("glowing", lambda x, s, _: 1 - (1 - x) * (1 - gaussian_blur(x, 2.5) * 0.7 * s)),
    "duotone": Style("{} {} duotone", lambda x, _, c: duotone(x, c[0], c[1]), 2, graded=False),
    "sky": Style("{} sky", lambda x, s, c: halved(x, c[0], True, s), 1),
    "ground": Style("{} ground", lambda x, s, c: halved(x, c[0], False, s), 1),
}
"""By name, in the order of the vocabulary."""
