"""Where a training stands: weights, optimizers and progress in one safetensors file, whole or not at all.

Nothing is pickled. A run that goes on from it gives the same bits as one that never stopped.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.checkpoints import load_weights, read_metadata, read_tensors, write_tensors
from tenfold.errors import UserError

State = nn.Module | Mapping[str, Tensor]


def save_checkpoint(
    path: str | os.PathLike[str],
    states: Mapping[str, State],
    optimizers: Mapping[str, torch.optim.Optimizer],
    progress: Mapping[str, Any],
) -> None:
    """Write everything that decides the rest of a training.

    Args:
        path: the file.
        states: modules, or tensors by name, under a name each.
        optimizers: under a name each; learning rates are the schedule's affair and are not kept.
        progress: numbers, words and lists that JSON holds: steps, losses so far.

    Raises:
        WriteError: the disk is full or the place cannot be written; the checkpoint before it is kept.
    """
    tensors: dict[str, Tensor] = {}
    for name, state in states.items():
        entries = state.state_dict() if isinstance(state, nn.Module) else state
        tensors |= {f"{name}/{key}": value for key, value in entries.items()}
    for name, optimizer in optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            # SGD without momentum keeps None.
            tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in entries.items() if value is not None}
    # Modules may share weights, which one file may not: each is copied.
    copies = {key: torch.as_tensor(value).detach().cpu().clone() for key, value in tensors.items()}
    write_tensors(path, copies, {"progress": json.dumps(dict(progress))})


class Checkpoint:
    """A checkpoint that has been read; `restore` what it holds, one after another.

    Attributes:
        progress: what `save_checkpoint` was given.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._tensors, metadata = read_tensors(path)
        self.progress = read_metadata(metadata, "progress", path)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What was kept under a name; empty when nothing was."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self._tensors.items() if key.startswith(prefix)}

    def restore_module(self, name: str, module: nn.Module) -> None:
        """Copy the weights kept under a name into a module.

        Raises:
            UserError: they are of another one.
        """
        load_weights(module, self.tensors(name), self._path)

    def restore_optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer its moments back.

        Raises:
            UserError: they are of another one.
        """
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in self.tensors(f"optimizer/{name}").items():
            index, entry = key.split("/", 1)
            state.setdefault(int(index), {})[entry] = value
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        for index, entries in state.items():
            fits = index < len(parameters) and all(
                value.ndim == 0 or value.shape == parameters[index].shape for value in entries.values()
            )
            if not fits:
                raise UserError(f"{self._path}: holds the state of another optimizer (parameter {index})")
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
