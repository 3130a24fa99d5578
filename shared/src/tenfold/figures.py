"""Pictures of results: grids of images with captions. Plots of numbers stay with what they plot."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tenfold.images import write_image

Pixels = Float[np.ndarray, "_ _ 3"]
_CAPTION = 16


def image_grid(
    rows: Sequence[Sequence[Pixels | Float[Tensor, "3 _ _"]]],
    *,
    captions: Sequence[str] = (),
    enlarge: int = 1,
    margin: int = 4,
) -> Pixels:
    """Images in rows, white between them.

    Args:
        rows: of images in [0, 1], arrays (h, w, 3) or tensors (3, h, w), of any sizes.
        captions: one for each column, written above the first row.
        enlarge: whole factor, for small images.
        margin: white pixels between images.

    Returns:
        float32 RGB in [0, 1]. Each column is as wide as its widest image, each row as high as its highest.
    """
    cells = [[_to_array(image).repeat(enlarge, 0).repeat(enlarge, 1) for image in row] for row in rows]
    columns = max(len(row) for row in cells)
    widths = [max((row[i].shape[1] for row in cells if i < len(row)), default=0) for i in range(columns)]
    heights = [max(cell.shape[0] for cell in row) for row in cells]
    top = _CAPTION if captions else 0
    grid = np.ones(
        (top + sum(heights) + margin * (len(cells) - 1), sum(widths) + margin * (columns - 1), 3), np.float32
    )
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            y, x = top + sum(heights[:r]) + margin * r, sum(widths[:c]) + margin * c
            grid[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    for c, text in enumerate(captions):
        x = sum(widths[:c]) + margin * c
        grid[:top, x : x + widths[c]] = _caption(text, widths[c])
    return grid


def write_grid(
    path: str | os.PathLike[str] | Path, rows: Sequence[Sequence[Pixels | Tensor]], **options: object
) -> None:
    """Write an `image_grid`."""
    write_image(path, image_grid(rows, **options))  # ty: ignore[invalid-argument-type]  # the options of `image_grid`


def _to_array(image: Pixels | Tensor) -> Pixels:
    array = image.detach().float().cpu().permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else image
    return array.astype(np.float32).clip(0, 1)


def _caption(text: str, width: int) -> Pixels:
    strip = Image.new("RGB", (width, _CAPTION), "white")
    ImageDraw.Draw(strip).text((2, 2), text, fill="black", font=ImageFont.load_default(11))
    return np.asarray(strip, dtype=np.float32) / 255
