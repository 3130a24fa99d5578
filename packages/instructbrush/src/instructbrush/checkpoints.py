"""Where an interrupted training continues from: tensors, the optimiser's state and the step, in one safetensors file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import atomic_path


def save_checkpoint(path: Path, step: int, tensors: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    """Write the place after `step` updates."""
    moments = {
        f"optimiser.{number}.{name}": value if isinstance(value, Tensor) else torch.tensor(float(value))
        for number, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in {**tensors, **moments}.items()}
    with atomic_path(path) as temporary:
        save_file(whole, temporary, metadata={"step": str(step)})


def load_checkpoint(path: Path, optimiser: torch.optim.Optimizer) -> tuple[int, dict[str, Tensor]] | None:
    """The step and the tensors of a checkpoint, the optimiser's state put back; None where there is no file.

    Raises:
        UserError: a damaged file.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
            whole = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({error}); delete it to start again") from None
    state: dict[int, dict[str, Tensor]] = {}
    for name in [each for each in whole if each.startswith("optimiser.")]:
        _, number, key = name.split(".")
        state.setdefault(int(number), {})[key] = whole.pop(name)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step, whole


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of an optimiser this learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(value.isfinite().all()) for value in values)
