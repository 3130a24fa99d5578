"""The place of an interrupted task: weights, best weights, optimiser, progress, in one safetensors file."""

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tenfold.files import atomic_path
from weatherkr.network import WeatherNet
from weatherkr.state import fill, read_tensors


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
    with atomic_path(path) as temporary:
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(contiguous, temporary, metadata={"progress": json.dumps(asdict(progress))})


def read_progress(path: Path) -> Progress | None:
    """How far a checkpoint is; None where there is none."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return Progress(**json.loads(file.metadata()["progress"]))


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
        UserError: a checkpoint of another network.
    """
    progress = read_progress(path)
    if progress is None or progress.number != number:
        return None
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in read_tensors(path).items():
        part, rest = name.split(".", 1)
        parts[part][rest] = value
    fill(net, parts["net"], path)
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in parts["optimiser"].items():
        index, entry = name.split(".")
        state[int(index)][entry] = value
    optimiser.load_state_dict({"state": dict(state), "param_groups": optimiser.state_dict()["param_groups"]})
    return progress, dict(parts["best"]) or None
