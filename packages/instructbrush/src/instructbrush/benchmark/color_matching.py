"""A colour map fitted to all pixels of the pairs: the baseline that wins wherever an edit is nothing but a change of tone."""

import torch
from jaxtyping import Float
from torch import Tensor


def fit_affine_colour(before: Float[Tensor, "k 3 h w"], after: Float[Tensor, "k 3 h w"]) -> Float[Tensor, "4 3"]:
    """The least-squares affine map from RGB to RGB."""
    first, second = (each.movedim(1, -1).reshape(-1, 3).double() for each in (before, after))
    design = torch.cat([first, torch.ones(len(first), 1, dtype=torch.float64)], dim=1)
    # The driver that also solves flat pictures, whose colours do not span the space.
    return torch.linalg.lstsq(design, second, driver="gelsd").solution.float()


def apply_affine_colour(matrix: Float[Tensor, "4 3"], images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Map the colours of pictures in [0, 1], clipped."""
    mapped = torch.einsum("bchw,cd->bdhw", images, matrix[:3]) + matrix[3][:, None, None]
    return mapped.clamp(0, 1)
