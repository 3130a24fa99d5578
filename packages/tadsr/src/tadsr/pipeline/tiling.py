"""Large pictures in pieces: padding, tile starts, and tiles blended where they overlap."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Image = Float[Tensor, "b _c _h _w"]


def pad_to_multiple(image: Image, multiple: int) -> Image:
    """Extend the right and lower edge by reflection until both sides are multiples; a side of 1 is repeated.

    Reflection reaches less than a side: small pictures are reflected again and again.
    """
    height, width = image.shape[-2:]
    rows, columns = -height % multiple, -width % multiple
    while rows or columns:
        down, right = min(rows, image.shape[-2] - 1), min(columns, image.shape[-1] - 1)
        if (rows and not down) or (columns and not right):
            image = F.pad(image, (0, columns if not right else 0, 0, rows if not down else 0), mode="replicate")
            rows, columns = rows if down else 0, columns if right else 0
            continue
        image = F.pad(image, (0, right, 0, down), mode="reflect")
        rows, columns = rows - down, columns - right
    return image


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles of side `tile` start on a line of `length`: every `stride`, the last flush with the end."""
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile, stride))
    return [*starts, length - tile]


def tiles_of(height: int, width: int, tile: int, stride: int) -> Iterator[tuple[int, int]]:
    """Upper left corners of the tiles, row by row."""
    for top in tile_starts(height, tile, stride):
        for left in tile_starts(width, tile, stride):
            yield top, left


def ramp(length: int, overlap: int, at_start: bool, at_end: bool) -> Float[Tensor, " length"]:
    """Weights that rise over `overlap` samples at an inner start, fall at an inner end, and are 1 elsewhere."""
    weight = torch.ones(length)
    rise = (torch.arange(overlap) + 1.0) / (overlap + 1)
    if not at_start:
        weight[:overlap] = torch.minimum(weight[:overlap], rise[:length])
    if not at_end:
        weight[-overlap:] = torch.minimum(weight[-overlap:], rise.flip(0)[-length:])
    return weight


def run_tiled(
    image: Image,
    process: Callable[[Image, int, int], Image],
    tile: int,
    overlap: int,
    scale: int,
    blend: bool = True,
    margin: int = 0,
) -> Image:
    """Process a picture tile by tile and join the results.

    Args:
        image: the input.
        process: (tile, its top, its left) -> the tile, `scale` times larger.
        tile: side of a tile in input pixels.
        overlap: of neighbouring tiles, in input pixels.
        scale: of `process`.
        blend: cross-fade over the overlaps; otherwise average uniformly, as the published code does.
        margin: input pixels at inner tile edges whose output is left out; a network of that field of view leaves no seam.

    Raises:
        ValueError: the overlap is not smaller than the tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"the overlap must be at least 0 and below the tile's {tile} pixels, got {overlap}")
    height, width = image.shape[-2:]
    total: Tensor | None = None
    weights: Tensor | None = None
    for top, left in tiles_of(height, width, tile, tile - overlap):
        bottom, right = min(top + tile, height), min(left + tile, width)
        piece = process(image[..., top:bottom, left:right], top, left).float()
        if total is None or weights is None:
            total = piece.new_zeros(*piece.shape[:2], height * scale, width * scale)
            weights = piece.new_zeros(1, 1, height * scale, width * scale)
        if blend and overlap > 2 * margin:
            fade = (overlap - 2 * margin) * scale
            rows = _faded((bottom - top) * scale, fade, margin * scale, top == 0, bottom == height)
            columns = _faded((right - left) * scale, fade, margin * scale, left == 0, right == width)
            weight = (rows[:, None] * columns[None, :]).to(piece)
        else:
            weight = torch.ones(piece.shape[-2:]).to(piece)
        rows_out = slice(top * scale, bottom * scale)
        columns_out = slice(left * scale, right * scale)
        total[..., rows_out, columns_out] += piece * weight
        weights[..., rows_out, columns_out] += weight
    assert total is not None
    assert weights is not None
    return total.div_(weights)


def _faded(length: int, fade: int, margin: int, at_start: bool, at_end: bool) -> Float[Tensor, " length"]:
    """A ramp that leaves `margin` samples out at inner edges."""
    start, end = 0 if at_start else margin, 0 if at_end else margin
    weight = torch.zeros(length)
    weight[start : length - end] = ramp(length - start - end, fade, at_start, at_end)
    return weight
