"""Haze: light scattered on its way, more the farther it comes from."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from weatherkr.data.weather.config import HazeSettings, draw
from weatherkr.data.weather.depth import depth_field


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
