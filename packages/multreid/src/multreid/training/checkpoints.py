"""Where a training run stands after an epoch, as safetensors: weights and Adam's moments. Nothing is pickled.

Memories are not kept: each epoch makes them anew from its clusters.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors, write_tensors

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Write weights and optimiser state after `epoch` epochs, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        state = optimizer.state.get(parameter, {})
        tensors |= {f"adam.{index}.{name}": state[name] for name in _MOMENTS if name in state}
    write_tensors(path, tensors, {"epoch": str(epoch)})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Read what `save_checkpoint` wrote into model and optimiser; how many epochs had been done.

    Raises:
        UserError: a damaged file, or one of another model.
    """
    try:
        tensors, metadata = read_tensors(path)
        weights = {name.removeprefix("model."): each for name, each in tensors.items() if name.startswith("model.")}
        load_weights(model, weights, path)
        moments = [_moments(tensors, index, each) for index, each in enumerate(optimizer.param_groups[0]["params"])]
        if not metadata.get("epoch", "").isdecimal() or any(moments) != all(moments):
            raise UserError(f"{path}: lacks the epoch or the moments of some weights")
    except UserError as error:
        raise UserError(f"{error}; not a checkpoint of this run: delete it to start again") from None
    for parameter, state in zip(optimizer.param_groups[0]["params"], moments, strict=True):
        if state:
            optimizer.state[parameter] = {
                name: value if name == "step" else value.to(parameter.device) for name, value in state.items()
            }
    return int(metadata["epoch"])


def _moments(tensors: dict[str, Tensor], index: int, parameter: Tensor) -> dict[str, Tensor]:
    """What Adam kept of a weight; nothing unless all of it is there in the right shapes."""
    found = {name: tensors[f"adam.{index}.{name}"] for name in _MOMENTS if f"adam.{index}.{name}" in tensors}
    shapes = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size()}
    return found if {name: value.shape for name, value in found.items()} == shapes else {}
