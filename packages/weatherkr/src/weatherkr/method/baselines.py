"""What the rivals of knowledge replay add to the loss: pooled-output distillation, importance of weights (EWC, PIGWM)."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def pooled_profile(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """Squares summed over the width and over the height, side by side, of unit length for each sample (official code, PodLoss.py)."""
    energy = features.float().square()
    profile = torch.cat([energy.sum(3).flatten(1), energy.sum(2).flatten(1)], 1)
    return F.normalize(profile, dim=1)


def pod_loss(old: Sequence[Tensor], new: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Pooled-output distillation: Euclidean distance of the profiles, mean over the batch and the maps."""
    distances = [
        torch.linalg.vector_norm(pooled_profile(a) - pooled_profile(b), dim=1).mean()
        for a, b in zip(old, new, strict=True)
    ]
    return torch.stack(distances).mean()


def gradient_importance(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    predict: Callable[[Tensor], Tensor],
    power: int,
) -> dict[str, Tensor]:
    """Importance of each weight: the mean over batches of |gradient of the L1 loss| ** power.

    Args:
        net: whose weights are judged; their gradients are left empty.
        batches: degraded and clean images.
        predict: degraded image to estimate; calls `net`.
        power: 2 for EWC's diagonal Fisher information, 1 for the parameter importance of PIGWM (official history, compute.py).

    Returns:
        A tensor for each named parameter.
    """
    sums = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    count = 0
    for degraded, clean in batches:
        net.zero_grad()
        (predict(degraded) - clean).abs().mean().backward()
        for name, value in net.named_parameters():
            if value.grad is not None:
                sums[name] += value.grad.abs() ** power
        count += 1
    net.zero_grad()
    return {name: total / max(count, 1) for name, total in sums.items()}


def merge_importance(old: Mapping[str, Tensor] | None, new: Mapping[str, Tensor], tasks: int) -> dict[str, Tensor]:
    """Average over tasks: the mean of what `tasks - 1` tasks gave and what the newest gives."""
    if old is None:
        return dict(new)
    return {name: (old[name] * (tasks - 1) + new[name]) / tasks for name in new}


def scaled(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Importances divided by the largest of all."""
    largest = max(float(value.max()) for value in importance.values())
    return {name: value / max(largest, 1e-30) for name, value in importance.items()}


def importance_penalty(
    net: nn.Module, importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
) -> Float[Tensor, ""]:
    """sum of importance * (weight - its value after the last task)^2 (Kirkpatrick et al. 2017, eq. 3, without the half)."""
    parts = [(importance[name] * (value - anchor[name]).square()).sum() for name, value in net.named_parameters()]
    return torch.stack(parts).sum()
