"""The two views of each picture, made for a whole batch at once where the operation allows it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from twinsight.data.views import (
    color_jitter,
    cutout,
    grey,
    random_resized_crop,
    three_operations,
    uniform,
    with_probability,
)

Images = Float[Tensor, "b 3 h w"]
WeakView = Literal["shift", "resized-crop"]
StrongView = Literal["official", "randaugment", "geometric", "weak"]
Padding = Literal["zero", "reflect"]


def random_shift(images: Images, pad: int, generator: torch.Generator, padding: Padding = "reflect") -> Images:
    """Crop each picture anew from its padded self.

    Args:
        images: any range.
        pad: how far it may move, in pixels.
        generator: where the draws come from.
        padding: what is around it: black, or its mirror image.
    """
    b, _, h, w = images.shape
    padded = F.pad(images, (pad,) * 4, mode="constant" if padding == "zero" else "reflect")
    top, left = torch.randint(2 * pad + 1, (2, b), generator=generator)
    rows = (top[:, None] + torch.arange(h))[:, None, :, None]
    columns = (left[:, None] + torch.arange(w))[:, None, None, :]
    return padded[torch.arange(b)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]


def random_flip(images: Shaped[Tensor, "b 3 h w"], generator: torch.Generator) -> Shaped[Tensor, "b 3 h w"]:
    """Mirror each picture with probability one half."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def geometric(images: Images, generator: torch.Generator) -> Images:
    """A strong view for small grey pictures: rotation within 26 degrees, scale within 20 %, contrast, brightness, noise, an erased square.

    Args:
        images: in [0, 1].
        generator: where the draws come from.
    """
    b, _, h, w = images.shape
    angle = uniform(b, -math.radians(26), math.radians(26), generator)
    scale = uniform(b, 0.8, 1.2, generator)
    cos, sin, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros(b)
    matrices = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    turned = F.grid_sample(
        images, F.affine_grid(matrices, list(images.shape), align_corners=False), align_corners=False
    )
    contrast, brightness = uniform(b, 0.6, 1.4, generator), uniform(b, -0.2, 0.2, generator)
    changed = turned * contrast[:, None, None, None] + brightness[:, None, None, None]
    changed = changed + 0.3 * torch.randn(changed.shape, generator=generator)
    side = min(5, h - 1, w - 1)
    top, left = (
        torch.randint(h - side + 1, (b,), generator=generator),
        torch.randint(w - side + 1, (b,), generator=generator),
    )
    rows, columns = torch.arange(h), torch.arange(w)
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + side)
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + side)
    return changed.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def rand_augment(
    images: UInt8[Tensor, "b 3 h w"], operations: int, magnitude: int, generator: torch.Generator
) -> UInt8[Tensor, "b 3 h w"]:
    """torchvision's RandAugment, drawn for each picture."""
    from torchvision.transforms import v2

    augment = v2.RandAugment(num_ops=operations, magnitude=magnitude)
    with torch.random.fork_rng(devices=[]):
        # torchvision draws from the global generator only.
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return torch.stack([augment(image) for image in images])


@dataclass(frozen=True)
class ViewMaker:
    """How the two views of a picture are made.

    Attributes:
        pad: how far the weak view may move, in pixels.
        flip: whether it may be mirrored.
        strong: what comes before the weak pipeline in the strong view; `weak`: nothing.
        operations: of RandAugment.
        magnitude: of RandAugment.
        weak: `shift`, or `resized-crop`: an enlarged part of the picture in other colours (the official views of SVHN).
        padding: what is around a picture that moves.
    """

    pad: int
    flip: bool
    strong: StrongView
    operations: int = 3
    magnitude: int = 5
    weak: WeakView = "shift"
    padding: Padding = "reflect"

    def weak_view(self, images: Images, generator: torch.Generator) -> Images:
        """A shifted, perhaps mirrored copy of each picture."""
        shifted = random_shift(images, self.pad, generator, self.padding)
        return random_flip(shifted, generator) if self.flip else shifted

    def recoloured(self, images: UInt8[Tensor, "b 3 h w"], generator: torch.Generator) -> Images:
        """An enlarged part of each picture, perhaps mirrored, mostly in other colours, sometimes grey."""
        part = random_resized_crop(images, generator)
        part = random_flip(part, generator) if self.flip else part
        part = with_probability(0.8, lambda each: color_jitter(each, generator), part, generator)
        return with_probability(0.2, grey, part, generator) / 255

    def strong_start(self, images: UInt8[Tensor, "b 3 h w"], generator: torch.Generator) -> UInt8[Tensor, "b 3 h w"]:
        """What 8-bit pictures become before the weak pipeline of the strong view."""
        if self.strong == "official":
            return cutout(three_operations(images, generator), generator)
        if self.strong == "randaugment":
            return rand_augment(images, self.operations, self.magnitude, generator)
        return images

    def __call__(self, images: UInt8[Tensor, "b 3 h w"], generator: torch.Generator) -> tuple[Images, Images]:
        """The weak and the strong view of each picture, in [0, 1] but for noise."""
        if self.weak == "resized-crop":
            return self.recoloured(images, generator), self.recoloured(self.strong_start(images, generator), generator)
        weak = self.weak_view(images / 255, generator)
        changed = self.strong_start(images, generator) / 255
        if self.strong == "geometric":
            changed = geometric(changed, generator)
        return weak, self.weak_view(changed, generator)
