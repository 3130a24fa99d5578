"""How strong and how varied each synthetic weather is. Lengths are in pixels of a picture about 320 pixels high; see `scale`."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Generator

Range = tuple[float, float]
"""Lowest and highest value of a uniform draw."""

Setting = Literal["standard", "shifted"]
"""`standard` trains the shipped model; `shifted` draws from other ranges, to test on weather it was not trained for."""


def draw(generator: Generator, bounds: Range) -> float:
    """One uniform number between the bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator).item()


@dataclass(frozen=True)
class HazeSettings:
    """Scattering of light by depth (Koschmieder).

    Attributes:
        beta: scattering coefficient, for a depth of 1.
        airlight: brightness of the haze.
        tint: largest deviation of the airlight of one channel.
        near: depth of the nearest point.
        span: share of the depths between `near` and 1 that the picture has.
    """

    beta: Range = (0.6, 2.0)
    airlight: Range = (0.75, 1.0)
    tint: float = 0.02
    near: Range = (0.1, 0.5)
    span: Range = (0.3, 1.0)


@dataclass(frozen=True)
class RainSettings:
    """Streaks in layers, nearer ones longer and wider, and the veil of the rain too far to see.

    Attributes:
        angle: degrees from the vertical.
        length: of the nearest streaks.
        width: of the nearest streaks.
        coverage: share of the picture that the streaks of one layer would cover side by side.
        layers: how many, the next half as near.
        opacity: how much of the scene a streak hides.
        light: brightness of the streaks.
        veil: share of the light that far rain scatters.
    """

    angle: Range = (-25.0, 25.0)
    length: Range = (14.0, 36.0)
    width: Range = (1.0, 2.0)
    coverage: Range = (0.08, 0.25)
    layers: int = 2
    opacity: Range = (0.4, 0.8)
    light: Range = (0.75, 0.95)
    veil: Range = (0.0, 0.12)


@dataclass(frozen=True)
class SnowSettings:
    """Flakes of several sizes, falling: slightly blurred along the way they move.

    Attributes:
        radius: from the farthest flakes to the nearest.
        layers: how many sizes, spaced evenly on a logarithmic scale.
        coverage: share of the picture that the flakes of one size would cover side by side.
        opacity: of a flake at its centre.
        angle: degrees from the vertical that the flakes move.
        motion: how far a flake moves while the shutter is open, in radii.
        veil: share of the light that far snow scatters.
    """

    radius: Range = (0.7, 4.5)
    layers: int = 4
    coverage: Range = (0.015, 0.06)
    opacity: Range = (0.6, 1.0)
    angle: Range = (-40.0, 40.0)
    motion: Range = (0.0, 1.5)
    veil: Range = (0.0, 0.12)


@dataclass(frozen=True)
class RaindropSettings:
    """Drops on the lens: each shows the scene behind it upside down, small and out of focus.

    Attributes:
        radius: of a drop.
        coverage: share of the picture that the drops would cover side by side.
        blur: standard deviation of what the drop shows, in pixels.
        minify: how many times smaller a drop shows the scene.
        light: how much brighter or darker a drop is, at its rim.
    """

    radius: Range = (4.0, 14.0)
    coverage: Range = (0.08, 0.2)
    blur: Range = (1.5, 3.0)
    minify: Range = (3.0, 6.0)
    light: Range = (-0.12, 0.12)


WeatherSettings = HazeSettings | RainSettings | SnowSettings | RaindropSettings

SETTINGS: dict[str, dict[Setting, WeatherSettings]] = {
    "haze": {
        "standard": HazeSettings(),
        "shifted": HazeSettings(beta=(0.5, 1.6), airlight=(0.7, 0.9), tint=0.05, near=(0.0, 0.3), span=(0.6, 1.0)),
    },
    "rain": {
        "standard": RainSettings(),
        "shifted": RainSettings(
            angle=(-40.0, 40.0),
            length=(20.0, 50.0),
            width=(1.2, 2.4),
            coverage=(0.06, 0.15),
            layers=3,
            light=(0.7, 1.0),
        ),
    },
    "snow": {
        "standard": SnowSettings(),
        "shifted": SnowSettings(radius=(1.0, 6.0), layers=3, coverage=(0.02, 0.08), opacity=(0.5, 0.9)),
    },
    "raindrop": {
        "standard": RaindropSettings(),
        "shifted": RaindropSettings(radius=(6.0, 20.0), coverage=(0.06, 0.16), minify=(2.0, 4.0)),
    },
}


def describe_settings(settings: WeatherSettings) -> str:
    """The ranges in one line."""
    return ", ".join(f"{each.name} {getattr(settings, each.name)}" for each in fields(settings))
