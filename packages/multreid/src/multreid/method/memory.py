"""The cluster memory with its contrastive loss, ClusterNCE (section 3.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def momentum_update(
    bank: Float[Tensor, "k d"], features: Float[Tensor, "b d"], labels: Int[Tensor, " b"], momentum: float
) -> Float[Tensor, "k d"]:
    """bank[y] <- normalise(mu bank[y] + (1 - mu) f), sample after sample in batch order (section 3.2).

    Samples of different clusters do not touch each other: the n-th samples of all clusters are taken together, so the
    loop is as long as the most frequent cluster, not as the batch.

    Args:
        bank: unit rows.
        features: unit rows.
        labels: the cluster of each.
        momentum: mu.

    Returns:
        The new bank.
    """
    bank = bank.clone()
    order = labels.argsort(stable=True)
    ordered = labels[order]
    places = torch.arange(labels.numel(), device=labels.device)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    occurrence = places - torch.where(is_first, places, 0).cummax(0).values
    for turn in range(int(occurrence.max()) + 1):
        rows = order[occurrence == turn]
        chosen = labels[rows]
        bank[chosen] = F.normalize(momentum * bank[chosen] + (1 - momentum) * features[rows], dim=1)
    return bank


class _UpdatingProduct(torch.autograd.Function):
    """features bank^T, whose backward pass also updates the bank."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, labels: Tensor, bank: Tensor, momentum: float) -> Tensor:
        # The gradient is that of the bank as it was: a loss may use one memory several times.
        ctx.save_for_backward(features, labels, bank.clone())
        ctx.bank, ctx.momentum = bank, momentum
        return features @ bank.T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        features, labels, bank = ctx.saved_tensors
        ctx.bank.copy_(momentum_update(ctx.bank, features, labels, ctx.momentum))
        return grad_outputs[0] @ bank, None, None, None


class ClusterMemory(nn.Module):
    """One unit vector per cluster, and similarities to it as logits (section 3.2).

    Args:
        centres: where the bank starts; rows are normalised.
        temperature: by which similarities are divided.
        momentum: mu, the share of the old vector that an update keeps.
    """

    bank: Tensor

    def __init__(self, centres: Float[Tensor, "k d"], temperature: float = 0.05, momentum: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("bank", F.normalize(centres.float(), dim=1))
        self.temperature = temperature
        self.momentum = momentum

    def forward(self, features: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Logits of features of any norm; the backward pass moves the rows of `labels` towards them."""
        unit = F.normalize(features.float(), dim=1)
        product = _UpdatingProduct.apply(unit, labels, self.bank, self.momentum)
        return product / self.temperature

    def similarities(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Logits without an update: a plain product with the bank as it is now."""
        return F.normalize(features.float(), dim=1) @ self.bank.clone().T / self.temperature
