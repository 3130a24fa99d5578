"""One task being learnt: the network, its loss (paper eq. 27), and what a checkpoint must hold of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vptnsp.models.clip.heads import ClipHead
from vptnsp.models.heads import TaskHeads
from vptnsp.models.networks import PromptedViT


class PromptClassifier(nn.Module):
    """Prompts and heads in one module, so that one forward is what several processes share.

    Args:
        vit: the prompted backbone.
        head: task heads, or CLIP's classifier.
    """

    def __init__(self, vit: PromptedViT, head: TaskHeads | ClipHead) -> None:
        super().__init__()
        self.vit = vit
        self.head = head

    def forward(self, images: Float[Tensor, "b 3 h w"], task: int | None = None) -> Float[Tensor, "b c"]:
        """Logits of one task's classes, or of all."""
        return self.head(self.vit(images), task)


def task_loss(
    logits: Float[Tensor, "b c"],
    labels: Int[Tensor, " b"],
    temperature: float,
    distribution: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    """CE(logits / tau, y) + lambda L_LN (paper eq. 27; official code).

    Args:
        logits: of the current task's classes alone.
        labels: positions within the task.
        temperature: tau; evaluation uses the raw logits.
        distribution: lambda L_LN, zero in the first task.
    """
    return F.cross_entropy(logits / temperature, labels) + distribution


@dataclass
class TaskTraining:
    """A task being learnt: what a checkpoint must hold beside prompts and heads.

    Attributes:
        task: which, from 0.
        optimizer: fresh for each task.
        reference: P', the prompts at the end of the task before.
        rates: learning rate of each epoch.
        epoch: the next one to run.
    """

    task: int
    optimizer: torch.optim.Optimizer
    network: nn.Module
    reference: Mapping[str, Tensor]
    rates: Sequence[float]
    epoch: int = 0

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's moments and the reference, flat."""
        tensors = {f"reference.{name}": value for name, value in self.reference.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
        return tensors

    def load_state_dict(self, state: Mapping[str, Tensor], epoch: int) -> None:
        """Take up what `state_dict` returned, before epoch `epoch`."""
        device = self.optimizer.param_groups[0]["params"][0].device
        adam: dict[int, dict[str, Tensor]] = {}
        reference = {}
        for name, value in state.items():
            kind, rest = name.split(".", 1)
            if kind == "reference":
                reference[rest] = value.to(device)
            elif kind == "adam":
                index, key = rest.split(".", 1)
                adam.setdefault(int(index), {})[key] = value
        self.reference = reference
        self.optimizer.load_state_dict({"state": adam, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.epoch = epoch


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
