"""The server's average of what clients send (paper §3; official code: federated averaging over the whole state)."""

from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def weighted_average(states: Sequence[State], weights: Sequence[float]) -> State:
    """Average state dicts: parameters and buffers, BatchNorm's statistics included.

    Sums are taken in 64 bits, so that the average of equal states is that state bit for bit; integer buffers are
    rounded and keep their type.

    Args:
        states: with the same keys and shapes.
        weights: above 0; they need not sum to one.

    Raises:
        ValueError: no state, or weights that do not fit.
    """
    if not states or len(states) != len(weights) or min(weights) <= 0:
        raise ValueError(
            f"need as many positive weights as states, got {len(states)} states and weights {list(weights)}"
        )
    total = float(sum(weights))
    return {name: _average([state[name] for state in states], weights, total) for name in states[0]}


def _average(tensors: list[Tensor], weights: Sequence[float], total: float) -> Tensor:
    mean = torch.stack([each.double() * (weight / total) for each, weight in zip(tensors, weights, strict=True)]).sum(0)
    if not tensors[0].is_floating_point():
        mean = mean.round()
    return mean.to(tensors[0].dtype)
