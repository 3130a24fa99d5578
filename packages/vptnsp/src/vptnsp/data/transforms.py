"""From pictures to what the backbone takes (paper App. B; official code)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torchvision.transforms import v2


def _normalised(mean: Sequence[float], std: Sequence[float]) -> list[torch.nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def evaluation_transform(
    size: int, mean: Sequence[float], std: Sequence[float], style: Literal["stretch", "crop"]
) -> v2.Compose:
    """What test pictures go through, and training pictures in the second-moment pass.

    Args:
        size: side of the input, in pixels.
        mean: of the backbone, per channel.
        std: of the backbone, per channel.
        style: `stretch` to the input size (CIFAR, bicubic), or `crop` the centre after stretching to 8/7 of it (bilinear).
    """
    larger = round(size * 256 / 224)
    if style == "stretch":
        resize = [v2.Resize((size, size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)]
    else:
        resize = [v2.Resize((larger, larger), antialias=True), v2.CenterCrop(size)]
    return v2.Compose([*resize, *_normalised(mean, std)])


def training_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    style: Literal["stretch", "crop"],
    augmentation: Literal["none", "autoaugment"],
) -> v2.Compose:
    """What training pictures go through: AutoAugment on the original picture, a random resized crop, no flip.

    Args:
        size: as in `evaluation_transform`.
        mean: as in `evaluation_transform`.
        std: as in `evaluation_transform`.
        style: `stretch` takes CIFAR's policy and bicubic crops, `crop` ImageNet's and bilinear ones.
        augmentation: `none` is the evaluation transform.
    """
    if augmentation == "none":
        return evaluation_transform(size, mean, std, style)
    cifar = style == "stretch"
    policy = v2.AutoAugmentPolicy.CIFAR10 if cifar else v2.AutoAugmentPolicy.IMAGENET
    mode = v2.InterpolationMode.BICUBIC if cifar else v2.InterpolationMode.BILINEAR
    return v2.Compose(
        [
            v2.AutoAugment(policy, interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomResizedCrop(size, interpolation=mode, antialias=True),
            *_normalised(mean, std),
        ]
    )
