"""Where an interrupted training continues from: tensors, the optimiser's state and the step, in one safetensors file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tenfold.checkpoints import read_metadata, read_tensors, write_tensors
from tenfold.errors import UserError


def save_checkpoint(path: Path, step: int, tensors: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    """Write the place after `step` updates."""
    moments = {
        f"optimiser.{number}.{name}": value if isinstance(value, Tensor) else torch.tensor(float(value))
        for number, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }
    write_tensors(path, {**tensors, **moments}, {"progress": json.dumps({"step": step})})


def load_checkpoint(path: Path, optimiser: torch.optim.Optimizer, steps: int) -> tuple[int, dict[str, Tensor]] | None:
    """The step and the tensors of a checkpoint, the optimiser's state put back; None where there is no file.

    Args:
        path: the file.
        optimiser: takes its state.
        steps: of the whole recipe.

    Raises:
        UserError: a damaged file.
    """
    if not path.exists():
        return None
    whole, metadata = read_tensors(path)
    step = read_metadata(metadata, "progress", path).get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 < step <= steps:
        raise UserError(f"{path}: is of step {step!r}, this run has 1 to {steps}")
    state: dict[int, dict[str, Tensor]] = {}
    for name in [each for each in whole if each.startswith("optimiser.")]:
        number, _, key = name.removeprefix("optimiser.").partition(".")
        state.setdefault(int(number) if number.isdecimal() else -1, {})[key] = whole.pop(name)
    groups = optimiser.state_dict()["param_groups"]
    if state.keys() - set(groups[0]["params"]):
        raise UserError(f"{path}: its optimiser has other parameters")
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    return step, whole


def recent_losses(tensors: Mapping[str, Tensor], path: Path) -> list[float]:
    """The losses since the last line of the log, as a checkpoint keeps them.

    Raises:
        UserError: it does not.
    """
    if "recent" not in tensors:
        raise UserError(f"{path}: is no checkpoint of this training, or damaged")
    return tensors["recent"].tolist()


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of an optimiser this learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(value.isfinite().all()) for value in values)
