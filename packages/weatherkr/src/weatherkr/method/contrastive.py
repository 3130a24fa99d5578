"""The contrast loss C(anchor, positive, negative) in a form that cannot overflow (official code, models/ContrastLoss.py)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LEVEL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
TAU = 0.5

Extractor = Callable[[Tensor], Sequence[Tensor]]
"""An image to its feature maps, one for each level."""


def level_distances(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float[Tensor, " levels"]:
    """D_i: mean absolute difference of the features of each level, over every element of the *batch* (not picture by picture)."""
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in zip(first, second, strict=True)])


def contrast_terms(
    positive: Float[Tensor, " levels"], negative: Float[Tensor, " levels"], tau: float = TAU
) -> Float[Tensor, " levels"]:
    """-log(e^{-p/tau} / (e^{-p/tau} + e^{-n/tau})) of each level, written as softplus((p - n) / tau).

    The official code exponentiates first: its value is NaN once both distances exceed about 52, its gradient from about 46.
    This form agrees with it below and is finite everywhere.

    Args:
        positive: D_i(anchor, positive), at least 0.
        negative: D_i(anchor, negative), at least 0.
        tau: temperature.
    """
    return F.softplus((positive - negative) / tau)


def contrast_from_features(
    anchor: Sequence[Tensor],
    positive: Sequence[Tensor],
    negative: Sequence[Tensor],
    weights: Sequence[float] = LEVEL_WEIGHTS,
    tau: float = TAU,
) -> Float[Tensor, ""]:
    """C of features that have been extracted already."""
    terms = contrast_terms(level_distances(anchor, positive), level_distances(anchor, negative), tau)
    return (terms * terms.new_tensor(weights)).sum()


class ContrastLoss(nn.Module):
    """C(a, p, n) = sum_i w_i softplus((D_i(a, p) - D_i(a, n)) / tau).

    It is never zero: with a = p it is sum_i w_i log(1 + exp(-D_i(a, n) / tau)). Gradients reach the anchor only.

    Args:
        extractor: an image to its feature maps; see `weatherkr.perceptual`.
        weights: w_i, one for each map.
        tau: temperature.
    """

    def __init__(self, extractor: Extractor, weights: Sequence[float] = LEVEL_WEIGHTS, tau: float = TAU) -> None:
        super().__init__()
        self.extractor = extractor
        self.weights, self.tau = tuple(weights), tau

    def forward(
        self,
        anchor: Float[Tensor, "b 3 h w"],
        positive: Float[Tensor, "b 3 h w"],
        negative: Float[Tensor, "b 3 h w"],
    ) -> Float[Tensor, ""]:
        """C of three batches of images of at least 16 pixels a side; unclamped values are fine."""
        with torch.no_grad():
            fixed = self.extractor(torch.cat([positive, negative]))
        count = positive.shape[0]
        return contrast_from_features(
            self.extractor(anchor),
            [level[:count] for level in fixed],
            [level[count:] for level in fixed],
            self.weights,
            self.tau,
        )
