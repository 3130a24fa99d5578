"""Rain streaks and snow flakes: semi-transparent shapes before the scene, and a thin veil."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from weatherkr.data.weather.config import RainSettings, SnowSettings, draw


def coordinates(radius: int) -> tuple[Float[Tensor, "k 1"], Float[Tensor, "1 k"]]:
    """Rows and columns of a kernel of side 2 radius + 1, from its centre."""
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    return steps[:, None], steps[None, :]


def line_kernel(length: float, width: float, degrees: float) -> Float[Tensor, "k k"]:
    """A streak with a Gaussian profile across and soft ends; its largest value is 1.

    Args:
        length: in pixels.
        width: full width at half maximum, in pixels.
        degrees: from the vertical, clockwise.
    """
    y, x = coordinates(math.ceil(length / 2 + width))
    angle = math.radians(degrees)
    along = y * math.cos(angle) - x * math.sin(angle)
    across = y * math.sin(angle) + x * math.cos(angle)
    sigma = width / 2.355
    # Half a pixel of softness at the ends; the profile is integrated over a pixel so that thin streaks do not vanish.
    ends = (length / 2 + 0.5 - along.abs()).clamp(0, 1)
    return ends * torch.exp(-across.square() / (2 * (sigma**2 + 1 / 12)))


def flake_kernel(radius: float, motion: float, degrees: float) -> Float[Tensor, "k k"]:
    """A soft disc, smeared along the way it moves; its largest value is 1.

    Args:
        radius: in pixels.
        motion: pixels moved while the shutter is open.
        degrees: direction of the movement from the vertical.
    """
    y, x = coordinates(math.ceil(radius + motion / 2 + 1))
    angle = math.radians(degrees)
    along = y * math.cos(angle) - x * math.sin(angle)
    across = y * math.sin(angle) + x * math.cos(angle)
    distance = torch.hypot((along.abs() - motion / 2).clamp(min=0), across)
    softness = max(0.6, radius / 2)
    kernel = ((radius + softness / 2 - distance) / softness).clamp(0, 1)
    return kernel / kernel.amax()


def scatter_shape(
    height: int,
    width: int,
    kernel: Float[Tensor, "k k"],
    coverage: float,
    opacity: tuple[float, float],
    generator: Generator,
) -> Float[Tensor, "h w"]:
    """How much of each pixel is hidden by copies of a shape at random places, 0 to 1.

    Args:
        height: of the picture.
        width: of the picture.
        kernel: the shape.
        coverage: area of all copies side by side, as a share of the picture.
        opacity: of each copy, drawn between these.
        generator: where randomness comes from.
    """
    radius = kernel.shape[0] // 2
    rows, columns = height + 2 * radius, width + 2 * radius
    # Impulses outside the picture reach into it: the canvas is larger by the kernel on each side.
    density = coverage / kernel.sum().item()
    hits = torch.rand(rows, columns, generator=generator) < density
    low, high = opacity
    impulses = hits * (low + (high - low) * torch.rand(rows, columns, generator=generator))
    size = [-(-side // 32) * 32 for side in (rows, columns)]
    spectrum = torch.fft.rfft2(impulses, size) * torch.fft.rfft2(kernel, size)
    stamped = torch.fft.irfft2(spectrum, size)
    # Circular convolution: the centre of the kernel lies at `radius`, and what wraps around lies outside this window.
    return stamped[2 * radius : 2 * radius + height, 2 * radius : 2 * radius + width].clamp(0, 1)


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
