"""Where the pre-training of the embedded backbone draws its classes: glyphs, handwritten characters, photographs.

A bank is a set of classes that yields as many samples as asked for. None needs a label that a person gave to a photograph:
a glyph's class is its recipe, a character's its folder, and a photograph is a class of its own (exemplar discrimination, Dosovitskiy et al. 2014), its samples random views.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tenfold import UserError
from tenfold.data import to_tensor
from tenfold.images import list_images
from vptnsp.config import IMAGE_SIZE
from vptnsp.data.synthetic import GlyphClasses, draw_classes, render_glyphs

PHOTOGRAPH_SIZE = 96
CHARACTER_SIZE = 48


@runtime_checkable
class ClassBank(Protocol):
    """A set of classes to draw samples from."""

    @property
    def num_classes(self) -> int:
        """How many."""
        ...

    def draw(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "n 3 s s"], Int[Tensor, " n"]]:
        """Draw pictures in [0, 1] and their labels, classes equally likely."""
        ...


@dataclass(frozen=True)
class GlyphBank:
    """Gabor glyphs of the base domain."""

    classes: GlyphClasses
    num_classes: int

    @classmethod
    def create(cls, num_classes: int, seed: int) -> "GlyphBank":
        """Draw the classes from a seed."""
        return cls(draw_classes(num_classes, torch.Generator().manual_seed(seed)), num_classes)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "n 3 s s"], Int[Tensor, " n"]]:
        """Draw samples of random classes."""
        labels = torch.randint(self.num_classes, (count,), generator=generator)
        return render_glyphs(self.classes, labels, generator, IMAGE_SIZE), labels


def random_views(
    pictures: Float[Tensor, "n c h w"],
    generator: torch.Generator,
    *,
    extent: tuple[float, float],
    turn: float,
    mirror: bool,
) -> Float[Tensor, "n c s s"]:
    """Look at each picture through a random square window.

    Args:
        pictures: the pictures.
        generator: where chance comes from.
        extent: smallest and largest side of the window, as a share of the picture's.
        turn: the window is turned by up to this many radians.
        mirror: whether half of the views are mirrored.
    """
    count = len(pictures)
    side = extent[0] + (extent[1] - extent[0]) * torch.rand(count, generator=generator)
    aspect = torch.exp(0.25 * (2 * torch.rand(count, generator=generator) - 1))
    angle = turn * (2 * torch.rand(count, generator=generator) - 1)
    sign = 1.0 - 2.0 * (torch.rand(count, generator=generator) < 0.5).float() if mirror else torch.ones(count)
    width, height = side * aspect, side / aspect
    centre = (1 - side.clamp(max=1))[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1)
    matrix = torch.stack(
        [sign * width * angle.cos(), -height * angle.sin(), sign * width * angle.sin(), height * angle.cos()], dim=-1
    )
    theta = torch.cat([matrix.unflatten(-1, (2, 2)), centre[..., None]], dim=-1)
    # Twice the resolution, then averaged: a window that shrinks a picture would alias otherwise.
    grid = F.affine_grid(theta, [count, pictures.shape[1], 2 * IMAGE_SIZE, 2 * IMAGE_SIZE], align_corners=False)
    views = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(views, 2)


@dataclass(frozen=True)
class PhotographBank:
    """Photographs, each a class of its own."""

    pictures: UInt8[Tensor, "n 3 h w"]

    @property
    def num_classes(self) -> int:
        """One for each photograph."""
        return len(self.pictures)

    @classmethod
    def read(cls, folder: Path, count: int) -> "PhotographBank":
        """Read `count` pictures spread evenly over a folder (all when it has fewer), the central square of each at 96 pixels."""
        paths = list_images(folder)
        chosen = paths[:: max(1, len(paths) // count)][:count]
        return cls(torch.stack([_central_square(to_tensor(path), PHOTOGRAPH_SIZE) for path in chosen]))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "n 3 s s"], Int[Tensor, " n"]]:
        """Draw random views: windows of 35 to 100 % of the side, mirrored, in another light, some without colour."""
        labels = torch.randint(self.num_classes, (count,), generator=generator)
        views = random_views(self.pictures[labels].float() / 255, generator, extent=(0.35, 1.0), turn=0.15, mirror=True)
        contrast, brightness = (torch.rand(2, count, 1, 1, 1, generator=generator) - 0.5).unbind(0)
        tint = 0.3 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
        views = (views - 0.5) * (1 + contrast) + 0.5 + 0.4 * brightness + tint
        grey = torch.rand(count, 1, 1, 1, generator=generator) < 0.2
        return torch.where(grey, views.mean(1, keepdim=True), views).clamp(0, 1), labels


def _central_square(picture: Float[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 s s"]:
    side = min(picture.shape[1:])
    top, left = (picture.shape[1] - side) // 2, (picture.shape[2] - side) // 2
    square = picture[:, top : top + side, left : left + side]
    small = F.interpolate(square[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return (small * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class CharacterBank:
    """Handwritten characters."""

    strokes: UInt8[Tensor, "n h w"]
    """Ink, 255 where the pen was."""
    character: Int[Tensor, " n"]

    @property
    def num_classes(self) -> int:
        """The number of characters."""
        return int(self.character.max()) + 1

    @classmethod
    def read(cls, folder: Path, alphabets: tuple[str, ...] = ()) -> "CharacterBank":
        """Read Omniglot's layout `ALPHABET/CHARACTER/DRAWING.png`.

        Args:
            folder: holds one folder per alphabet.
            alphabets: the ones to read; all when empty.

        Raises:
            UserError: an alphabet that is not there.
        """
        missing = [name for name in alphabets if not (folder / name).is_dir()]
        if missing:
            raise UserError(f"{folder}: no alphabet {', '.join(missing)}")
        roots = [folder / name for name in alphabets] or [folder]
        paths = [path for root in roots for path in list_images(root)]
        names = sorted({path.parent for path in paths})
        ink = [255 - _central_square(to_tensor(path), CHARACTER_SIZE)[0] for path in paths]
        return cls(torch.stack(ink), torch.tensor([names.index(path.parent) for path in paths]))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Float[Tensor, "n 3 s s"], Int[Tensor, " n"]]:
        """Draw characters in a random ink on random paper, slightly turned and moved."""
        which = torch.randint(len(self.strokes), (count,), generator=generator)
        ink = self.strokes[which].float()[:, None] / 255
        views = random_views(ink, generator, extent=(0.8, 1.1), turn=math.pi / 12, mirror=False)
        paper, pen = torch.rand(2, count, 3, 1, 1, generator=generator).unbind(0)
        # Ink that can be told from paper: pushed away from it where the two are close.
        pen = torch.where((pen - paper).abs().mean(1, keepdim=True) < 0.25, (paper + 0.5) % 1.0, pen)
        pictures = paper + (pen - paper) * (1.5 * views).clamp(max=1)
        pictures = pictures + 0.05 * torch.randn(pictures.shape, generator=generator)
        return pictures.clamp(0, 1), self.character[which]
