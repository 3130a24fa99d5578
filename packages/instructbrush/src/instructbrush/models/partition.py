"""The time axis in parts, each with its own keys and values (paper §4.1, time-aware instruction)."""

import math

import torch
from jaxtyping import Shaped
from torch import Tensor

from tenfold.errors import UserError


def partition_index(
    t: float | int | Shaped[Tensor, "..."],
    T: int,
    J: int,  # the paper's symbols
) -> int | Shaped[Tensor, "..."]:
    """p(t) = min(floor(t J / T), J - 1): which part of the time axis a step falls in.

    Args:
        t: time steps in 0..T-1; some samplers use fractional ones.
        T: number of training time steps.
        J: number of parts.

    Raises:
        UserError: J outside 1..T.
    """
    if not 1 <= J <= T:
        raise UserError(f"partitions {J}: must be 1 to {T}")
    if not isinstance(t, Tensor):
        return min(math.floor(t * J / T), J - 1)
    if t.is_floating_point():
        return (t.double() * J / T).floor().long().clamp(max=J - 1)
    return torch.div(t * J, T, rounding_mode="floor").clamp(max=J - 1)
