"""Pictures side by side, to be judged by eye."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def strip(images: Sequence[Float[Tensor, "3 h w"]], margin: int = 4) -> Float[np.ndarray, "h2 w2 3"]:
    """Pictures of one size in a row, white between them, as an array in [0, 1]."""
    gap = torch.ones(3, images[0].shape[1], margin)
    parts = [part for image in images for part in (image.cpu(), gap)][:-1]
    return torch.cat(parts, 2).clamp(0, 1).permute(1, 2, 0).numpy()


def stacked(strips: Sequence[Float[np.ndarray, "_ _ 3"]], margin: int = 4) -> Float[np.ndarray, "h2 w2 3"]:
    """Strips below one another, filled up with white to the widest."""
    width = max(each.shape[1] for each in strips)
    filled = [np.pad(each, ((0, margin), (0, width - each.shape[1]), (0, 0)), constant_values=1.0) for each in strips]
    return np.concatenate(filled)[:-margin]
