"""What a report was made of: hashes of the detectors' weights and of the faces."""

import hashlib

import torch
from torch import Tensor, nn

from asmattack.data.layouts import FaceSet

LENGTH = 16
"""Hexadecimal digits that are kept of a SHA-256."""


def weights_hash(module: nn.Module) -> str:
    """Of all parameters and buffers, by name, type, shape and bytes; the same on every device."""
    return _hash(sorted(module.state_dict().items()))


def data_hash(faces: FaceSet) -> str:
    """Of pixels and labels, in their order."""
    return _hash([("images", faces.images), ("labels", faces.labels)])


def _hash(tensors: list[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:LENGTH]
