"""The nineteen face-parsing classes and the semantic masks made of them (the paper's mask model: parse, unite, restrict)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

REGIONS = {
    name: index
    for index, name in enumerate(
        [
            "background",
            "skin",
            "nose",
            "eye_g",
            "l_eye",
            "r_eye",
            "l_brow",
            "r_brow",
            "l_ear",
            "r_ear",
            "mouth",
            "u_lip",
            "l_lip",
            "hair",
            "hat",
            "ear_r",
            "neck_l",
            "neck",
            "cloth",
        ]
    )
}
"""Canonical order: the authors' dictionary and the SegFormer face-parsing checkpoint."""

BISENET_TO_CANONICAL = (0, 1, 6, 7, 4, 5, 3, 8, 9, 15, 2, 10, 11, 12, 17, 16, 18, 13, 14)
"""Canonical id of each class of the widespread BiSeNet checkpoints."""

FIXED = (2, 4, 5, 6, 7)
"""Nose, eyes, brows: the authors' list for every image."""

CANDIDATES = (2, 4, 5, 6, 7, 10, 11, 12)
"""What a selection may choose from; a tie goes to the earlier one."""


def region_mask(labels: Int64[Tensor, "b h w"], classes: Iterable[int]) -> Bool[Tensor, "b 1 h w"]:
    """Union of the regions R_k = [labels == k] over `classes`."""
    wanted = torch.tensor(tuple(classes), dtype=labels.dtype, device=labels.device)
    return torch.isin(labels, wanted)[:, None]


def dilate(mask: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 1 h w"]:
    """Grow the mask by `radius` pixels in each direction."""
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


def feather(mask: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 1 h w"]:
    """Box mean of width 2 radius + 1 with edge padding: a soft mask, whose per-pixel budget is eps times it."""
    return F.avg_pool2d(F.pad(mask, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)
