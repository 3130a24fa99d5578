"""Learning rates as functions of the step: each gives a factor of the peak rate, so that they can be multiplied."""

import math

import torch


def linear_warmup(step: int, warmup: int) -> float:
    """From 1 / warmup at the first step to 1 at step `warmup` - 1; then 1."""
    return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0


def cosine_decay(step: int, steps: int) -> float:
    """Half a cosine from 1 at step 0 to 0 at step `steps` (Loshchilov & Hutter 2017, eq. 5, one period)."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))


def warmup_cosine(step: int, steps: int, warmup: int = 0) -> float:
    """Linear warm-up, then half a cosine over what is left."""
    return linear_warmup(step, warmup) if step < warmup else cosine_decay(step - warmup, steps - warmup)


def step_decay(step: int, every: int, factor: float) -> float:
    """A fall by `factor` after every `every` steps."""
    return factor ** (step // every)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameter groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
