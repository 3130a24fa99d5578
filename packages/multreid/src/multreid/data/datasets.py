"""Crops as tensors of one size."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from multreid.data.layouts import Crops
from tenfold import UserError
from tenfold.images import read_image

_CACHE_BYTES = 2**31


def read_crop(path: Path, height: int, width: int) -> UInt8[Tensor, "3 h w"]:
    """Read a picture and resize it (bilinear, anti-aliased), as 8-bit levels.

    Raises:
        ImageError: a file that is no picture.
    """
    levels = np.rint(read_image(path) * 255).astype(np.uint8)
    resized = Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


class CropSet(Dataset):
    """The pictures of one modality, resized; kept in memory once read where all of them fit in 2 GiB.

    Args:
        crops: which pictures.
        height: in pixels.
        width: in pixels.
    """

    def __init__(self, crops: Crops, height: int, width: int) -> None:
        self.crops, self.height, self.width = crops, height, width
        fits = len(crops) * 3 * height * width <= _CACHE_BYTES
        self._kept: dict[int, Tensor] | None = {} if fits else None

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> Tensor:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        picture = read_crop(self.crops.paths[index], self.height, self.width)
        if self._kept is not None:
            self._kept[index] = picture
        return picture

    def batch(self, rows: Int[np.ndarray, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """The pictures of some rows, stacked."""
        return torch.stack([self[int(row)] for row in rows])


def duplicated(crops: Crops) -> list[tuple[Path, Path]]:
    """Pairs of files with the same bytes, the first of each group and its copy: they make neighbours that mean nothing."""
    by_size: dict[int, list[Path]] = {}
    try:
        for path in crops.paths:
            by_size.setdefault(path.stat().st_size, []).append(path)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    pairs, seen = [], {}
    for path in (path for group in by_size.values() if len(group) > 1 for path in group):
        mark = hashlib.sha256(path.read_bytes()).digest()
        if mark in seen:
            pairs.append((seen[mark], path))
        seen.setdefault(mark, path)
    return pairs
