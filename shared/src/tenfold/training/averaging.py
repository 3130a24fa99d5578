"""Averages of weights over the steps of a training."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(model: Module) -> Module:
    """A copy in evaluation mode that takes no gradients."""
    return deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) model, for parameters; buffers are copied."""
    for mine, other in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(other, 1 - decay)
    for mine, other in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(other)
