"""The authors' pipeline around the attack, as their code has it: parse at 512, unite five classes, paste, normalise."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from asmattack.data.regions import FIXED, region_mask

PARSER_SIZE = 512
"""Side to which the authors resize the normalised image before parsing (bilinear, corners aligned)."""


def official_parser_input(x_norm: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 512 512"]:
    """What the authors' parser is shown."""
    return F.interpolate(x_norm, (PARSER_SIZE, PARSER_SIZE), mode="bilinear", align_corners=True)


def official_label_map(logits: Float[Tensor, "b 19 i j"], size: tuple[int, int]) -> Int64[Tensor, "b h w"]:
    """Parser logits resized to the image (bilinear, corners aligned), then argmax."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1)


def merge_official(
    x_norm: Float[Tensor, "b 3 h w"],
    adversarial: Float[Tensor, "b 3 h w"],
    labels: Int64[Tensor, "b h w"],
    mean: Float[Tensor, " 3"],
    std: Float[Tensor, " 3"],
) -> Float[Tensor, "b 3 h w"]:
    """Attacked pixels inside the five regions, the original elsewhere, normalised again (merge_face.py).

    For every image of the batch: the authors' code does it for the first one only, by reusing a variable.

    Args:
        x_norm: normalised clean images.
        adversarial: result of a whole-image attack, in [0, 1].
        labels: label maps.
        mean: of the normalisation.
        std: of the normalisation.
    """
    mean, std = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
    merged = torch.where(region_mask(labels, FIXED), adversarial, x_norm * std + mean)
    return (merged - mean) / std
