"""The constraint that keeps LayerNorm out of the way (paper §4.1 eq. 20, §4.4 eq. 27)."""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def prompt_distribution_loss(
    prompts: Mapping[str, Float[Tensor, "m d"]],
    reference: Mapping[str, Float[Tensor, "m d"]],
    reduction: Literal["official", "sum"] = "official",
) -> Float[Tensor, ""]:
    """L_LN = sum over layers of |mu(P) - mu(P')| + |sigma(P) - sigma(P')| (paper eq. 27).

    Mean and population standard deviation over the channels of each prompt, without eps. The gradient is zero where
    nothing has changed yet.

    Args:
        prompts: P of each layer.
        reference: P' of each layer, at the end of the task before; a constant.
        reduction: the official code averages over the prompts of a layer, the paper's L1 norm is their sum.
    """
    layers = []
    for name, prompt in prompts.items():
        before = reference[name].detach()
        drift = (prompt.mean(1) - before.mean(1)).abs() + (
            prompt.std(1, correction=0) - before.std(1, correction=0)
        ).abs()
        layers.append(drift.mean() if reduction == "official" else drift.sum())
    return torch.stack(layers).sum()
