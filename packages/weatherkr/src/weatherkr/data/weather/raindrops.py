"""Raindrops on the lens or the pane before it."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from weatherkr.data.weather.config import RaindropSettings, draw


def add_raindrops(
    clean: Float[Tensor, "3 h w"], generator: Generator, settings: RaindropSettings, scale: float = 1.0
) -> Float[Tensor, "3 h w"]:
    """Drops that show the scene upside down, small, out of focus, with a lighter or darker rim.

    Args:
        clean: the photograph, in [0, 1].
        generator: where randomness comes from.
        settings: ranges of the draws.
        scale: of the drops, 1 for a picture about 320 pixels high.
    """
    _, height, width = clean.shape
    sigma = draw(generator, settings.blur) * scale
    blurred = gaussian_blur(clean, sigma)
    mean_radius = sum(settings.radius) / 2 * scale
    wanted = draw(generator, settings.coverage) * height * width / (math.pi * mean_radius**2)
    wet = clean.clone()
    for _ in range(math.ceil(wanted)):
        _add_drop(wet, blurred, generator, settings, scale)
    return wet


def gaussian_blur(image: Float[Tensor, "3 h w"], sigma: float) -> Float[Tensor, "3 h w"]:
    """Blur by rows, then by columns; edge pixels are repeated beyond the border."""
    radius = math.ceil(2 * sigma)
    steps = torch.arange(-radius, radius + 1, dtype=image.dtype)
    line = torch.exp(-steps.square() / (2 * sigma**2))
    line = (line / line.sum()).expand(3, 1, 1, -1)
    padded = F.pad(image[None], [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, line, groups=3), line.transpose(2, 3), groups=3)[0]


def _add_drop(
    wet: Float[Tensor, "3 h w"],
    blurred: Float[Tensor, "3 h w"],
    generator: Generator,
    settings: RaindropSettings,
    scale: float,
) -> None:
    """Put one drop on `wet`, in place, touching only the rectangle around it."""
    _, height, width = wet.shape
    row, column = draw(generator, (0.0, float(height))), draw(generator, (0.0, float(width)))
    radius, flattening = draw(generator, settings.radius) * scale, draw(generator, (0.75, 1.3))
    minify, rim_light = draw(generator, settings.minify), draw(generator, settings.light)
    reach = radius * 1.2
    top, bottom = max(int(row - reach * flattening), 0), min(int(row + reach * flattening) + 1, height)
    left, right = max(int(column - reach), 0), min(int(column + reach) + 1, width)
    if top >= bottom or left >= right:
        return
    y = (torch.arange(top, bottom) - row)[:, None] / flattening
    x = (torch.arange(left, right) - column)[None, :]
    distance = torch.hypot(y, x) / radius
    mask = ((1.1 - distance) / 0.2).clamp(0, 1)
    # Refraction turns the scene around the drop's centre and shrinks it.
    shown_y, shown_x = (row - minify * y).expand_as(mask), (column - minify * x).expand_as(mask)
    grid = torch.stack([2 * shown_x / max(width - 1, 1) - 1, 2 * shown_y / max(height - 1, 1) - 1], -1)
    seen = F.grid_sample(blurred[None], grid[None].to(blurred), padding_mode="reflection", align_corners=True)[0]
    seen = (seen + rim_light * distance.clamp(max=1).square()).clamp(0, 1)
    patch = wet[:, top:bottom, left:right]
    patch.lerp_(seen, mask.to(patch))
