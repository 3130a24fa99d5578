"""Haze: light scattered on its way, more the farther it comes from."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from weatherkr.data.weather.config import HazeSettings, draw

_LUMA = (0.299, 0.587, 0.114)


def box_mean(image: Float[Tensor, "1 c h w"], radius: int) -> Float[Tensor, "1 c h w"]:
    """Mean over a window of side 2 radius + 1, shrunk at the borders; two passes of running sums."""
    for axis in (2, 3):
        sums = F.pad(image.cumsum(axis), (1, 0, 0, 0) if axis == 3 else (0, 0, 1, 0))
        side = image.shape[axis]
        places = torch.arange(side)
        first, last = (places - radius).clamp(min=0), (places + radius + 1).clamp(max=side)
        count = (last - first).to(image).view((-1, 1) if axis == 2 else (-1,))
        image = (sums.index_select(axis, last) - sums.index_select(axis, first)) / count
    return image


def guided_filter(
    guide: Float[Tensor, "1 1 h w"], source: Float[Tensor, "1 1 h w"], radius: int, eps: float
) -> Float[Tensor, "1 1 h w"]:
    """Smooth `source` without crossing the edges of `guide` (He et al., TPAMI 2013, eqs. 5, 6, 8)."""
    means = box_mean(torch.cat([guide, source, guide * source, guide * guide], 1).double(), radius)
    mean_guide, mean_source, mean_product, mean_square = means.split(1, 1)
    slope = (mean_product - mean_guide * mean_source) / (mean_square - mean_guide.square() + eps)
    smoothed = box_mean(torch.cat([slope, mean_source - slope * mean_guide], 1), radius)
    return (smoothed[:, :1] * guide + smoothed[:, 1:]).to(source.dtype)


def smooth_field(height: int, width: int, cells: int, generator: Generator) -> Float[Tensor, "1 1 h w"]:
    """Random relief: a coarse grid of noise, enlarged smoothly, in about [0, 1]."""
    grid = torch.rand(1, 1, cells, cells, generator=generator)
    return F.interpolate(grid, (height, width), mode="bicubic", align_corners=True)


def receding_ground(height: int, width: int, horizon: float) -> Float[Tensor, "1 1 h w"]:
    """Depth of a plane seen from above it: 1 at the horizon and above, falling to the bottom edge.

    Args:
        height: of the picture.
        width: of the picture.
        horizon: its place from the top, 0 to 1.
    """
    rows = torch.linspace(0, 1, height)
    below = (rows - horizon).clamp(min=0)
    return (0.15 / (0.15 + below)).view(1, 1, -1, 1).expand(1, 1, height, width)


def depth_field(clean: Float[Tensor, "3 h w"], generator: Generator) -> Float[Tensor, "h w"]:
    """Draw a depth map for a photograph.

    Args:
        clean: the photograph, in [0, 1].
        generator: where randomness comes from.

    Returns:
        Depth from 0 (nearest) to 1 (farthest).
    """
    _, height, width = clean.shape
    ground = receding_ground(height, width, draw(generator, (0.0, 0.5)))
    relief = smooth_field(height, width, 4, generator)
    share = draw(generator, (0.3, 0.8))
    rough = share * ground + (1 - share) * relief
    luma = (clean * clean.new_tensor(_LUMA)[:, None, None]).sum(0)[None, None]
    depth = guided_filter(luma, rough, max(min(height, width) // 10, 1), 1e-2)
    low, high = depth.amin(), depth.amax()
    return ((depth - low) / (high - low).clamp(min=1e-6))[0, 0]


def scatter(
    clean: Float[Tensor, "3 h w"], transmission: Float[Tensor, "#h #w"], airlight: Float[Tensor, "3"]
) -> Float[Tensor, "3 h w"]:
    """I = J t + A (1 - t) (Koschmieder): what of the scene's light arrives, and the light scattered into the way."""
    return clean * transmission + airlight[:, None, None] * (1 - transmission)


def add_haze(
    clean: Float[Tensor, "3 h w"],
    generator: Generator,
    settings: HazeSettings,
    scale: float = 1.0,  # noqa: ARG001  # every weather takes it; haze has no lengths in pixels
    depth: Float[Tensor, "h w"] | None = None,
) -> Float[Tensor, "3 h w"]:
    """Haze with transmission t = exp(-beta d).

    Args:
        clean: the photograph, in [0, 1].
        generator: where randomness comes from.
        settings: ranges of the draws.
        scale: unused.
        depth: from 0 to 1, farther is larger; drawn from the picture when None.
    """
    if depth is None:
        depth = depth_field(clean, generator)
    near = draw(generator, settings.near)
    depth = near + (1 - near) * draw(generator, settings.span) * depth
    tints = settings.tint * (2 * torch.rand(3, generator=generator) - 1)
    airlight = (draw(generator, settings.airlight) + tints).clamp(max=1)
    return scatter(clean, torch.exp(-draw(generator, settings.beta) * depth), airlight)
