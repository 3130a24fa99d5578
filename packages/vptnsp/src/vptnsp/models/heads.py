"""One linear classifier per task, concatenated at test time (paper §3; official code)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenfold import UserError

HeadInit = Literal["default", "official"]


class TaskHeads(nn.Module):
    """The bank of heads. Training sees the current task's alone; prediction concatenates all, in task order.

    Args:
        in_features: D, width of the backbone's features.
        init: `default` starts every head as `nn.Linear` does; `official` reproduces the official code, whose second head
            continues from the first one's weights when both have the same number of classes.
    """

    def __init__(self, in_features: int, init: HeadInit = "default") -> None:
        super().__init__()
        self.in_features = in_features
        self.init = init
        self.heads = nn.ModuleList()

    @property
    def sizes(self) -> list[int]:
        """Number of classes of each task."""
        return [head.out_features for head in self.heads]  # ty: ignore[invalid-explicit-return]  # all are Linear

    def add_task(self, num_classes: int) -> nn.Linear:
        """Freeze the heads so far and append one for `num_classes` new classes."""
        if num_classes < 1:
            raise UserError(f"a task needs classes, got {num_classes}")
        head = nn.Linear(self.in_features, num_classes)
        if self.init == "official":
            self._official_start(head)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        if self.heads:
            head = head.to(next(self.parameters()).device)
        self.heads.append(head)
        return head

    @torch.no_grad()
    def _official_start(self, head: nn.Linear) -> None:
        if not self.heads:
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        elif len(self.heads) == 1 and self.sizes[0] == head.out_features:
            head.load_state_dict(self.heads[0].state_dict())

    def forward(self, features: Float[Tensor, "b d"], task: int | None = None) -> Float[Tensor, "b c"]:
        """Logits of one task, or of all tasks so far when `task` is None."""
        if task is not None:
            return self.heads[task](features)
        return torch.cat([head(features) for head in self.heads], dim=1)
