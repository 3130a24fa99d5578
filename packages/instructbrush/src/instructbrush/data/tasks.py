"""Edits that the embedded model was not taught and has no word for: what instructions are learnt from and judged on."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from instructbrush.data.datasets import PairSet
from instructbrush.data.image_banks import PhotoBank
from instructbrush.data.synthetic import Scene, random_scene, render
from instructbrush.data.transforms import axes, luma, scaled, sketch
from tenfold.data import embedded_pictures
from tenfold.random import seed_of

LEARNT = ("astronaut", "coffee", "flower", "motorcycle_left", "retina", "ihc")
"""Embedded photographs that training pairs are cut from."""
TESTED = ("chelsea", "china", "rocket")
"""And those for test pairs."""


@dataclass(frozen=True)
class Effect:
    """An edit without a name in the model's words.

    Attributes:
        group: global (the whole photograph) or local (one thing in a drawn scene).
        closest: the nearest instruction in the model's words, for the text baseline.
        edit: of a photograph, or of a scene.
    """

    group: Literal["global", "local"]
    closest: str
    edit: Callable[[Tensor], Tensor] | Callable[[Scene], Scene]


def _tint(x: Tensor) -> Tensor:
    return scaled(x, 1.05, 0.8, 0.5) + x.new_tensor([0.06, 0.02, 0.0])[:, None, None]


def _cross_process(x: Tensor) -> Tensor:
    """Curves of crossed film chemistry: contrast in red, lifted and flattened blue."""
    red, green, blue = x
    return torch.stack([red.square() * (3 - 2 * red), 0.9 * green.pow(0.85), 0.25 + 0.5 * blue])


def _leak(x: Tensor) -> Tensor:
    """Light falls in from the left."""
    weight = (0.6 - axes(x)[1]).clamp(0, 1.2) * 0.6
    return x + x.new_tensor([1.0, 0.35, 0.1])[:, None, None] * weight


def _comic(x: Tensor) -> Tensor:
    """Few levels, dark outlines."""
    return (x * 4).round() / 4 * (0.2 + 0.8 * sketch(x, 1.0).clamp(0, 1))


EFFECTS: dict[str, Effect] = {
    "tint": Effect("global", "make it strongly warm", _tint),
    "permuted": Effect("global", "make it slightly negative", lambda x: x[[1, 2, 0]]),
    "solarised": Effect("global", "make it negative", lambda x: 1 - (2 * x - 1).abs()),
    "crossed": Effect("global", "make it harsh and warm", _cross_process),
    "leak": Effect("global", "make it sunset", _leak),
    "comic": Effect("global", "make it poster and sketch", _comic),
    "heat": Effect(
        "global", "make it blue yellow duotone", lambda x: torch.cat([luma(x), luma(x).square(), 0.5 - 0.5 * luma(x)])
    ),
    "pink": Effect("local", "turn it into purple circle", lambda scene: replace(scene, colour=(0.95, 0.55, 0.75))),
    "small": Effect("local", "remove circle", lambda scene: replace(scene, radius=0.55 * scene.radius)),
    "grown": Effect("local", "turn it into square", lambda scene: replace(scene, radius=1.45 * scene.radius)),
}
"""By name."""


def bank(names: tuple[str, ...], side: int) -> PhotoBank:
    """Embedded photographs by name."""
    found: dict[str, Path] = embedded_pictures()
    return PhotoBank([found[name] for name in names], side)


def draw_pairs(name: str, count: int, photos: PhotoBank, seed: int) -> PairSet:
    """Pairs of an effect; each follows from the seed and its number.

    Args:
        name: a key of EFFECTS.
        count: how many.
        photos: what global effects are cut from.
        seed: of the draw.
    """
    effect = EFFECTS[name]
    before: list[Float[Tensor, "3 s s"]] = []
    after: list[Float[Tensor, "3 s s"]] = []
    for index in range(count):
        rng = random.Random(seed_of(seed, name, index))
        if effect.group == "global":
            image = photos.crop(rng)
            changed = effect.edit(image)  # ty: ignore[invalid-argument-type]  # global effects take pictures
        else:
            scene = replace(random_scene(rng), texture="plain")
            image = render(scene, photos.side)
            changed = render(effect.edit(scene), photos.side)  # ty: ignore[invalid-argument-type]  # local effects take scenes
        before.append(image)
        after.append(torch.as_tensor(changed).clamp(0, 1))
    return PairSet(tuple(f"{index:02d}" for index in range(count)), torch.stack(before), torch.stack(after))
