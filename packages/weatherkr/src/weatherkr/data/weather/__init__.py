"""Synthetic weather on clean photographs: haze by depth, rain streaks, snow flakes, raindrops on the lens. Seeded, on the fly."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from tenfold.errors import UserError
from weatherkr.data.weather.config import SETTINGS, Setting
from weatherkr.data.weather.haze import add_haze
from weatherkr.data.weather.rain_snow import add_rain, add_snow
from weatherkr.data.weather.raindrops import add_raindrops

Kind = Literal["haze", "rain", "snow", "raindrop"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ADD: dict[str, Callable[..., Tensor]] = {
    "haze": add_haze,
    "rain": add_rain,
    "snow": add_snow,
    "raindrop": add_raindrops,
}


def degrade(
    clean: Float[Tensor, "*b 3 h w"],
    kind: str,
    generator: Generator,
    setting: Setting = "standard",
    scale: float = 1.0,
) -> Float[Tensor, "*b 3 h w"]:
    """Put weather on clean photographs; each of a batch gets its own draw.

    Args:
        clean: one or more photographs, in [0, 1].
        kind: `haze`, `rain`, `snow` or `raindrop`.
        generator: a CPU generator; the same state gives the same weather.
        setting: `standard` or `shifted`, see `weatherkr.weather.settings`.
        scale: of streaks, flakes and drops; 1 suits a picture about 320 pixels high.

    Returns:
        Degraded photographs in [0, 1].

    Raises:
        UserError: no such kind or setting.
    """
    if kind not in SETTINGS:
        raise UserError(f"{kind}: no such weather; there are {', '.join(KINDS)}")
    if setting not in SETTINGS[kind]:
        raise UserError(f"setting {setting}: choose {' or '.join(SETTINGS[kind])}")
    add, chosen = _ADD[kind], SETTINGS[kind][setting]
    if clean.ndim == 3:
        return add(clean, generator, chosen, scale).clamp(0, 1)
    return torch.stack([add(each, generator, chosen, scale).clamp(0, 1) for each in clean])
