"""Weights that people have, under the names of the network that takes them."""

from pathlib import Path

from torch import nn

from tenfold import checkpoints

PREFIXES = ("module.", "_orig_mod.")
"""What wrappers put before every name."""


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the weights of a file into a network, all of them; prefixes of wrappers that every key has are taken off.

    Args:
        module: takes them.
        path: safetensors, or a torch file of nothing but tensors.

    Raises:
        UserError: the file cannot be read, or holds the weights of another network.
    """
    weights, own = checkpoints.read_state_dict(path), module.state_dict()
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in weights) and not all(key.startswith(prefix) for key in own):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    checkpoints.load_weights(module, weights, path)
