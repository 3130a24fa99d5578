"""The place of an interrupted task: weights, best weights, optimiser, progress, in one safetensors file."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from tenfold.checkpoints import read_metadata, read_tensors, write_tensors
from tenfold.errors import UserError
from weatherkr.models.networks import WeatherNet
from weatherkr.training.state import fill

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What Adam keeps of each weight."""


@dataclass(frozen=True)
class Progress:
    """How far a task is.

    Attributes:
        number: of the task, from 0.
        step: updates done.
        best_step: updates that the best weights had; 0 before any evaluation.
        best_psnr: their mean validation PSNR over the tasks.
        best_ssim: their mean validation SSIM.
    """

    number: int
    step: int = 0
    best_step: int = 0
    best_psnr: float = -math.inf
    best_ssim: float = -math.inf


def save_checkpoint(
    path: Path, net: WeatherNet, optimiser: torch.optim.Optimizer, best: dict[str, Tensor] | None, progress: Progress
) -> None:
    """Write weights, best weights, optimiser state and progress into one safetensors file, whole or not at all."""
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in (best or {}).items()}
    for index, entries in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in entries.items()}
    write_tensors(path, tensors, {"progress": json.dumps(asdict(progress))})


def read_progress(path: Path) -> Progress | None:
    """How far a checkpoint is; None where there is none.

    Raises:
        UserError: a damaged file.
    """
    return _progress(read_tensors(path)[1], path) if path.is_file() else None


def _progress(metadata: Mapping[str, str], path: Path) -> Progress:
    found = read_metadata(metadata, "progress", path)
    # Scores may be infinite, as they are before any evaluation.
    kinds = {each.name: float if each.name in ("best_psnr", "best_ssim") else int for each in fields(Progress)}
    if {name: type(value) for name, value in found.items()} != kinds:
        raise _damaged(path)
    return Progress(**found)


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: is no checkpoint of this run, or damaged; delete it to learn the task anew")


def load_checkpoint(
    path: Path, number: int, net: WeatherNet, optimiser: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor] | None] | None:
    """Read what `save_checkpoint` wrote into the network and the optimiser.

    Args:
        path: the file; it need not exist.
        number: of the task that is being learnt.
        net: receives the weights.
        optimiser: receives its state.

    Returns:
        Progress and best weights; None where there is no checkpoint of this task.

    Raises:
        UserError: a damaged checkpoint, or one of another network.
    """
    if not path.is_file():
        return None
    tensors, metadata = read_tensors(path)
    progress = _progress(metadata, path)
    if progress.number != number:
        return None
    fill(net, _part(tensors, "net"), path)
    best = _part(tensors, "best")
    parameters = optimiser.param_groups[0]["params"]
    state = {
        index: {
            name: tensors[f"optimiser.{index}.{name}"] for name in _MOMENTS if f"optimiser.{index}.{name}" in tensors
        }
        for index in range(len(parameters))
    }
    own = net.state_dict()
    if best and {name: value.shape for name, value in best.items()} != {name: each.shape for name, each in own.items()}:
        raise _damaged(path)
    for index, parameter in enumerate(parameters):
        shapes = (parameter.shape, parameter.shape, torch.Size())
        # Before its first step Adam keeps nothing.
        if state[index] and [state[index].get(name, parameter.new_empty(0)).shape for name in _MOMENTS] != [*shapes]:
            raise _damaged(path)
    optimiser.load_state_dict(
        {
            "state": {index: kept for index, kept in state.items() if kept},
            "param_groups": optimiser.state_dict()["param_groups"],
        }
    )
    return progress, best or None


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
