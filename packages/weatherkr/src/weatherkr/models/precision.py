"""In which precision the network runs: bfloat16 where the hardware has it, or float32."""

import contextlib
from typing import Any, Literal

import torch

from tenfold.runs import autocast

Precision = Literal["auto", "float32"]


def network_precision(device: torch.device, precision: Precision) -> "contextlib.AbstractContextManager[Any]":
    """The context to run the network in."""
    return autocast(device) if precision == "auto" else contextlib.nullcontext()
