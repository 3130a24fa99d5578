"""The two views of each picture, made for a whole batch at once where the operation allows it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

Images = Float[Tensor, "b 3 h w"]
StrongView = Literal["randaugment", "geometric", "weak"]


def random_shift(images: Images, pad: int, generator: torch.Generator) -> Images:
    """Crop each picture anew from its reflect-padded self.

    Args:
        images: any range.
        pad: how far it may move, in pixels.
        generator: where the draws come from.
    """
    b, _, h, w = images.shape
    padded = F.pad(images, (pad,) * 4, mode="reflect")
    top, left = torch.randint(2 * pad + 1, (2, b), generator=generator)
    rows = (top[:, None] + torch.arange(h))[:, None, :, None]
    columns = (left[:, None] + torch.arange(w))[:, None, None, :]
    return padded[torch.arange(b)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]


def random_flip(images: Images, generator: torch.Generator) -> Images:
    """Mirror each picture with probability one half."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Float[Tensor, " b"]:
    return low + (high - low) * torch.rand(count, generator=generator)


def geometric(images: Images, generator: torch.Generator) -> Images:
    """A strong view for small grey pictures: rotation within 26 degrees, scale within 20 %, contrast, brightness, noise, an erased square.

    Args:
        images: in [0, 1].
        generator: where the draws come from.
    """
    b, _, h, w = images.shape
    angle = _uniform(b, -math.radians(26), math.radians(26), generator)
    scale = _uniform(b, 0.8, 1.2, generator)
    cos, sin, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros(b)
    matrices = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    turned = F.grid_sample(
        images, F.affine_grid(matrices, list(images.shape), align_corners=False), align_corners=False
    )
    contrast, brightness = _uniform(b, 0.6, 1.4, generator), _uniform(b, -0.2, 0.2, generator)
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
    """

    pad: int
    flip: bool
    strong: StrongView
    operations: int = 3
    magnitude: int = 5

    def weak_view(self, images: Images, generator: torch.Generator) -> Images:
        """A shifted, perhaps mirrored copy of each picture."""
        shifted = random_shift(images, self.pad, generator)
        return random_flip(shifted, generator) if self.flip else shifted

    def __call__(self, images: UInt8[Tensor, "b 3 h w"], generator: torch.Generator) -> tuple[Images, Images]:
        """The weak and the strong view of each picture, in [0, 1] but for noise."""
        plain = images / 255
        weak = self.weak_view(plain, generator)
        if self.strong == "randaugment":
            plain = rand_augment(images, self.operations, self.magnitude, generator) / 255
        elif self.strong == "geometric":
            plain = geometric(plain, generator)
        return weak, self.weak_view(plain, generator)
