"""Rain streaks and snow flakes: semi-transparent shapes before the scene, and a thin veil."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from weatherkr.data.weather.config import RainSettings, SnowSettings, draw
from weatherkr.data.weather.stamping import flake_kernel, line_kernel, scatter_shape


def cover(scene: Float[Tensor, "3 h w"], hidden: Float[Tensor, "#h #w"], light: float) -> Float[Tensor, "3 h w"]:
    """What hides a share of each pixel shows its own light in that share."""
    return scene * (1 - hidden) + light * hidden


def add_rain(
    clean: Float[Tensor, "3 h w"], generator: Generator, settings: RainSettings, scale: float = 1.0
) -> Float[Tensor, "3 h w"]:
    """Streaks that share a direction, in layers: each farther one half as long and wide, and as dense.

    Args:
        clean: the photograph, in [0, 1].
        generator: where randomness comes from.
        settings: ranges of the draws.
        scale: of the streaks, 1 for a picture about 320 pixels high.
    """
    _, height, width = clean.shape
    angle, light = draw(generator, settings.angle), draw(generator, settings.light)
    length, thickness = draw(generator, settings.length) * scale, draw(generator, settings.width) * scale
    opacity, coverage = draw(generator, settings.opacity), draw(generator, settings.coverage)
    rainy = cover(clean, torch.full((1, 1), draw(generator, settings.veil)), light)
    # Nearest last: it hides the others.
    for layer in reversed(range(settings.layers)):
        jitter = draw(generator, (-3.0, 3.0))
        kernel = line_kernel(max(length / 2**layer, 3.0), max(thickness / 2**layer, 0.6), angle + jitter)
        hidden = scatter_shape(height, width, kernel, coverage, (0.4, 1.0), generator)
        rainy = cover(rainy, opacity * hidden, light)
    return rainy


def add_snow(
    clean: Float[Tensor, "3 h w"], generator: Generator, settings: SnowSettings, scale: float = 1.0
) -> Float[Tensor, "3 h w"]:
    """Flakes of several sizes.

    Args:
        clean: the photograph, in [0, 1].
        generator: where randomness comes from.
        settings: ranges of the draws.
        scale: of the flakes, 1 for a picture about 320 pixels high.
    """
    _, height, width = clean.shape
    light, angle = draw(generator, (0.9, 1.0)), draw(generator, settings.angle)
    snowy = cover(clean, torch.full((1, 1), draw(generator, settings.veil)), light)
    smallest, largest = (math.log(bound) for bound in settings.radius)
    for layer in range(settings.layers):
        share = (layer + draw(generator, (0.0, 1.0))) / settings.layers
        radius = math.exp(smallest + share * (largest - smallest)) * scale
        kernel = flake_kernel(radius, radius * draw(generator, settings.motion), angle)
        hidden = scatter_shape(height, width, kernel, draw(generator, settings.coverage), settings.opacity, generator)
        snowy = cover(snowy, hidden, light)
    return snowy
