"""The server's average of what clients send (paper §3; official code: federated averaging over the whole state)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold.federated import weighted_mean

State = dict[str, Tensor]


def weighted_average(states: Sequence[State], weights: Sequence[float]) -> State:
    """Average state dicts: parameters and buffers, BatchNorm's statistics included.

    Sums are taken in 64 bits, so that the average of equal states is that state bit for bit; integer buffers are
    rounded and keep their type.

    Args:
        states: with the same keys and shapes, on the CPU.
        weights: above 0; they need not sum to one.

    Raises:
        ValueError: no state, or weights that do not fit.
    """
    mean = weighted_mean([{name: each.numpy() for name, each in state.items()} for state in states], weights)
    return {name: torch.from_numpy(each) for name, each in mean.items()}
