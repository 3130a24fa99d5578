"""What a face may undergo in training: mirrored, compressed."""

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from asmattack.data.corruptions import through_jpeg


def drawn_flips(count: int, generator: torch.Generator) -> Bool[Tensor, " n"]:
    """Which faces are mirrored: each with probability one half."""
    return torch.rand(count, generator=generator) < 0.5


def mirrored(values: Tensor, flips: Bool[Tensor, " n"]) -> Tensor:
    """The chosen rows mirrored left to right (the last axis)."""
    return torch.where(flips.view(-1, *[1] * (values.ndim - 1)), values.flip(-1), values)


SIDES = torch.tensor([0, 1, 2, 3, 5, 4, 7, 6, 9, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18])
"""Each class's counterpart on the other side of the face."""


def mirrored_labels(labels: Int64[Tensor, "n h w"], flips: Bool[Tensor, " n"]) -> Int64[Tensor, "n h w"]:
    """Label maps mirrored with their faces: left and right trade names too."""
    return torch.where(flips[:, None, None], SIDES[labels].flip(-1), labels)


def compressed(
    images: UInt8[Tensor, "n 3 h w"], probability: float, generator: torch.Generator
) -> UInt8[Tensor, "n 3 h w"]:
    """Each face through JPEG with `probability`, at a quality drawn from 60 to 100."""
    if probability <= 0:
        return images
    chosen = torch.rand(len(images), generator=generator) < probability
    qualities = torch.randint(60, 101, (len(images),), generator=generator)
    changed = images.clone()
    for row in chosen.nonzero().flatten().tolist():
        changed[row] = through_jpeg(images[row], int(qualities[row]))
    return changed
