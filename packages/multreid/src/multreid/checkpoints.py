"""Where a training run stands after an epoch, as safetensors: weights and Adam's moments. Nothing is pickled.

Memories are not kept: each epoch makes them anew from its clusters.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tenfold import UserError
from tenfold.files import atomic_path

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Write weights and optimiser state after `epoch` epochs, whole or not at all."""
    tensors = {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        state = optimizer.state.get(parameter, {})
        tensors |= {
            f"adam.{index}.{name}": state[name].detach().cpu().contiguous() for name in _MOMENTS if name in state
        }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"epoch": str(epoch)})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Read what `save_checkpoint` wrote into model and optimiser; how many epochs had been done.

    Raises:
        UserError: a damaged file, or one of another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            epoch = int(file.metadata()["epoch"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
        model.load_state_dict(
            {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        )
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a checkpoint of this run ({str(error).splitlines()[0]}); delete it to start again"
        ) from None
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        moments = {name: tensors[f"adam.{index}.{name}"] for name in _MOMENTS if f"adam.{index}.{name}" in tensors}
        if moments:
            optimizer.state[parameter] = {
                name: value if name == "step" else value.to(parameter.device) for name, value in moments.items()
            }
    return epoch
