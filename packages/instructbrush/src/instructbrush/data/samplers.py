"""What the embedded model learns from: captioned pictures for the CLIP, worded edits for the editor."""

import random
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from instructbrush.data.image_banks import PhotoBank
from instructbrush.data.synthetic import Scene, random_scene, render
from instructbrush.data.transforms import STYLES, Style
from instructbrush.data.vocabulary import COLOURS, SHAPES, TEXTURES

STRENGTHS = {"slightly": 0.5, "": 1.0, "strongly": 1.5}
DRAWN = 0.4
"""The share of drawn scenes; the others are photographs."""


@dataclass(frozen=True)
class Dressing:
    """A style with its colours and strength chosen.

    Attributes:
        style: which.
        colours: names in COLOURS.
        grade: a key of STRENGTHS.
    """

    style: Style
    colours: tuple[str, ...]
    grade: str

    @property
    def words(self) -> str:
        """Such as `slightly tinted red`."""
        return f"{self.grade} {self.style.words.format(*self.colours)}".strip()

    def on(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        """The picture so edited, in [0, 1]."""
        colours = [torch.tensor(COLOURS[name]) for name in self.colours]
        return self.style.edit(image, STRENGTHS[self.grade], colours).clamp(0, 1)


@dataclass(frozen=True)
class EditExample:
    """A picture before and after an edit, and the words for it."""

    before: Float[Tensor, "3 s s"]
    after: Float[Tensor, "3 s s"]
    instruction: str


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture and its caption."""

    image: Float[Tensor, "3 s s"]
    caption: str


def random_dressing(rng: random.Random, removable: bool = False) -> Dressing:
    """A style with random colours and strength."""
    style = rng.choice([each for each in STYLES.values() if each.removable or not removable])
    grade = rng.choices(list(STRENGTHS), (0.25, 0.5, 0.25))[0] if style.graded else ""
    return Dressing(style, tuple(rng.sample(list(COLOURS), style.colours)), grade)


def draw_captioned(rng: random.Random, photos: PhotoBank) -> CaptionedPicture:
    """A scene or a photograph, dressed half of the time, with what it shows in words."""
    if rng.random() < DRAWN:
        scene = random_scene(rng)
        image, words = render(scene, photos.side), scene.caption
    else:
        image, words = photos.crop(rng), "photo"
    if rng.random() < 0.6:
        dressing = random_dressing(rng)
        # A frame or a glow is not a matter of degree to one who sees only the result.
        image, words = dressing.on(image), f"{replace(dressing, grade='').words} {words}"
    return CaptionedPicture(image, words)


def draw_edit(rng: random.Random, photos: PhotoBank) -> EditExample:
    """A worded edit of a scene or of a photograph."""
    if rng.random() >= DRAWN:
        return _dressed(rng, photos.crop(rng))
    scene = random_scene(rng)
    return _redrawn(rng, scene, photos.side) if rng.random() < 0.6 else _dressed(rng, render(scene, photos.side))


def _dressed(rng: random.Random, image: Float[Tensor, "3 s s"]) -> EditExample:
    kind = rng.random()
    if kind < 0.15:
        worn = random_dressing(rng, removable=True)
        return EditExample(worn.on(image), image, f"remove {worn.words}")
    if kind < 0.25:
        worn, chosen = random_dressing(rng, removable=True), random_dressing(rng)
        return EditExample(worn.on(image), chosen.on(image), f"turn {worn.words} into {chosen.words}")
    first = random_dressing(rng)
    opening = rng.choice(("make it", "turn it into", "make the photo"))
    if kind < 0.65:
        return EditExample(image, first.on(image), f"{opening} {first.words}")
    second = random_dressing(rng)
    return EditExample(image, second.on(first.on(image)), f"{opening} {first.words} and {second.words}")


def _redrawn(rng: random.Random, scene: Scene, side: int) -> EditExample:
    """One attribute of a scene changed."""
    what = rng.choices(("shape", "colour", "ground", "texture"), (0.2, 0.35, 0.3, 0.15))[0]
    choices = {"shape": SHAPES, "texture": TEXTURES}.get(what, tuple(COLOURS))
    taken = {getattr(scene, what)} | ({scene.colour, scene.ground} if what in ("colour", "ground") else set())
    changed = replace(scene, **{what: rng.choice([each for each in choices if each not in taken])})
    before, after = (
        (scene.object_words, changed.object_words)
        if what in ("shape", "colour")
        else (f"{scene.texture} {scene.ground} ground", f"{changed.texture} {changed.ground} ground")
    )
    words = f"turn {before} into {after}" if rng.random() < 0.75 else f"make it {after}"
    return EditExample(render(scene, side), render(changed, side), words)
