"""LPIPS of attacked faces (Zhang et al. 2018)."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.perceptual import lpips_network


@torch.no_grad()
def lpips(clean: Float[Tensor, "n 3 h w"], adversarial: Float[Tensor, "n 3 h w"], weights: Path | None = None) -> float:
    """Mean LPIPS (AlexNet) of pixels in [0, 1].

    Args:
        clean: faces.
        adversarial: the same, attacked.
        weights: AlexNet's, see `tenfold.perceptual.lpips_network`.

    Raises:
        UserError: no weights.
    """
    network = lpips_network(weights)
    parts = zip(clean.split(64), adversarial.split(64), strict=True)
    return float(torch.cat([network(one, other, normalize=True).flatten() for one, other in parts]).mean())
