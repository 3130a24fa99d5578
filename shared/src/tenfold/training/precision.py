"""Mixed precision, and kernels that give the same numbers each time."""

import contextlib
import math
from collections.abc import Generator
from typing import Any, Literal

import torch

from tenfold.errors import UserError
from tenfold.runs import has_fast_bf16

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type that forward passes compute in; None for float32.

    Args:
        precision: `auto` takes bfloat16 where the hardware has it.
        device: where it is computed.
    """
    if precision == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else None
    return _DTYPES.get(precision)


def precision_context(precision: Precision, device: torch.device) -> "contextlib.AbstractContextManager[Any]":
    """autocast to `autocast_dtype`, or nothing for float32."""
    dtype = autocast_dtype(precision, device)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextlib.contextmanager
def deterministic() -> Generator[None]:
    """Deterministic kernels where there are any, and the caller's random state back afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def check_finite(loss: float, where: str) -> float:
    """The loss, if training can go on from it.

    Args:
        loss: its value.
        where: the epoch, step or task, for the error.

    Raises:
        UserError: it is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} in {where}; lower the learning rate; --resume goes on from the last checkpoint"
        )
    return loss
