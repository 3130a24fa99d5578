"""Reading the weights of a network from the files that people have."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tenfold import UserError

NESTS = ("state_dict", "model_state_dict", "model", "net", "params")
PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dictionary from safetensors, or from a pickled file read with `weights_only`.

    Nesting (`state_dict`, `model`, ...) is taken off.

    Raises:
        UserError: missing, or neither of the two.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError):
        raise UserError(f"{path}: neither safetensors nor a plain state dictionary of weights") from None
    while isinstance(found, Mapping) and any(isinstance(found.get(nest), Mapping) for nest in NESTS):
        found = next(found[nest] for nest in NESTS if isinstance(found.get(nest), Mapping))
    if not isinstance(found, Mapping) or not found or not all(isinstance(each, Tensor) for each in found.values()):
        raise UserError(f"{path}: holds no state dictionary of weights")
    return dict(found)


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the weights of a file into a network, all of them; prefixes of wrappers that every key has are taken off.

    Raises:
        UserError: they are another network's.
    """
    weights, own = read_weights(path), module.state_dict()
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in weights) and not all(key.startswith(prefix) for key in own):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if missing or extra or shapes:
        faults = [
            f"{len(each)} {what} ({each[0]}, ...)"
            for what, each in (("missing", missing), ("unknown", extra), ("of another shape", sorted(shapes)))
            if each
        ]
        raise UserError(f"{path}: weights of another network: {'; '.join(faults)}")
    module.load_state_dict(weights)
