"""The learning rate of each pass (paper App. B; official code)."""

import math
from typing import Literal


def learning_rates(
    epochs: int, lr: float, schedule: Literal["official", "paper"], milestones: tuple[int, int] | None = None
) -> list[float]:
    """Rate of each pass over the data: divided by ten at each milestone.

    Args:
        epochs: number of passes (outer epochs of the official code).
        lr: rate of the first.
        schedule: `paper` decays at the milestones; the `official` code's scheduler is one epoch early.
        milestones: after how many passes; by default half and four fifths of them (paper App. B).
    """
    ends = milestones or (math.ceil(0.5 * epochs), math.ceil(0.8 * epochs))
    early = 1 if schedule == "official" else 0
    return [lr * 0.1 ** sum(epoch >= end - early for end in ends) for epoch in range(epochs)]
