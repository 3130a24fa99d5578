"""Restoring pictures of any size in tiles.

The receptive radius of the convolutions is `WeatherNet.halo`, but channel attention averages over the whole input: a tile by itself
gets other gates than the whole picture. With `gates="global"` one pass over the picture (reduced, where it is large) finds the
gates, and the tiles use them: then tiles with that halo equal the whole picture, up to rounding, where the gates are exact.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import UserError
from tenfold.training.precision import Precision, precision_context
from weatherkr.models.networks import WeatherNet, normalize

Gates = Literal["global", "local"]

WHOLE_PIXELS = 1 << 20
"""Pictures up to this many pixels find their gates at full size, larger ones on a copy reduced to it."""

_SMALLEST_TILE = 128


@dataclass(frozen=True)
class Tile:
    """A rectangle to restore and the larger one that it is seen with.

    Attributes:
        top: first row kept.
        left: first column kept.
        bottom: row after the last kept.
        right: column after the last kept.
        window: top, left, bottom, right of what the network sees.
    """

    top: int
    left: int
    bottom: int
    right: int
    window: tuple[int, int, int, int]


def tiles(height: int, width: int, side: int, halo: int, multiple: int) -> Iterator[Tile]:
    """Cover a picture with squares, each seen with a halo; windows start at multiples of the network's pixel shuffle.

    Args:
        height: of the picture.
        width: of the picture.
        side: of the squares.
        halo: pixels around a square that may act on it.
        multiple: the network's `shuffle`.
    """
    side = max(side // multiple, 1) * multiple
    margin = math.ceil(halo / multiple) * multiple
    for top in range(0, height, side):
        for left in range(0, width, side):
            bottom, right = min(top + side, height), min(left + side, width)
            window = (
                max(top - margin, 0),
                max(left - margin, 0),
                min(bottom + margin, height),
                min(right + margin, width),
            )
            yield Tile(top, left, bottom, right, window)


def choose_side(net: WeatherNet, device: torch.device, height: int, width: int) -> int:
    """A tile side for this device: what fits 60 % of a GPU's free memory, 512 on a CPU; at most the picture."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # About six maps of d channels and the concatenation of three, at the network's resolution, in float32.
        per_pixel = 9 * net.dim * 4 / net.shuffle**2
        side = max(int(math.sqrt(0.6 * free / per_pixel)) - 2 * net.halo, _SMALLEST_TILE) // 64 * 64
    else:
        side = 512
    return min(side, max(height, width))


@torch.inference_mode()
def global_gates(net: WeatherNet, image: Float[Tensor, "1 3 h w"], precision: Precision = "auto") -> list[Tensor]:
    """Channel gates of the whole picture: exact up to `WHOLE_PIXELS`, from a copy reduced to that size (area average) beyond."""
    height, width = image.shape[-2:]
    if height * width > WHOLE_PIXELS:
        scale = math.sqrt(WHOLE_PIXELS / (height * width))
        image = F.interpolate(image, (max(int(height * scale), 1), max(int(width * scale), 1)), mode="area")
    _run(net, image, precision)
    return net.latest_gates()


@torch.inference_mode()
def restore_tensor(
    net: WeatherNet,
    image: Float[Tensor, "1 3 h w"],
    tile: int | Literal["auto", "off"] = "auto",
    gates: Gates = "global",
    precision: Precision = "auto",
) -> Float[Tensor, "1 3 h w"]:
    """Restore one picture in [0, 1].

    Args:
        net: the network, on the device to use.
        image: on any device; the result is there too.
        tile: side of the tiles; `auto` chooses, and halves it when the memory runs out; `off` takes the picture whole.
        gates: `global`: all tiles share the gates of the whole picture; `local`: each tile has its own, overlaps are blended.
        precision: of the network.

    Raises:
        UserError: not enough memory even for the smallest tile, or a tile that is no positive number.
    """
    device = next(net.parameters()).device
    net.eval()
    height, width = image.shape[-2:]
    if tile == "off":
        return _run(net, image.to(device), precision).to(image.device)
    side = choose_side(net, device, height, width) if tile == "auto" else tile
    if side < 1:
        raise UserError(f"tile {tile}: give a positive number, auto or off")
    while True:
        try:
            if side >= max(height, width):
                return _run(net, image.to(device), precision).to(image.device)
            if gates == "local":
                return _blended(net, image, side, device, precision)
            return _centres(net, image, side, device, precision)
        except torch.OutOfMemoryError:
            if side <= _SMALLEST_TILE or tile != "auto":
                raise UserError(
                    f"not enough memory for tiles of {side} pixels with a halo of {net.halo}; use a smaller --tile or another --device"
                ) from None
            side = max(side // 2, _SMALLEST_TILE)


def _run(net: WeatherNet, image: Tensor, precision: Precision) -> Tensor:
    device = image.device
    with precision_context(precision, device):
        estimate = net(normalize(image).contiguous(memory_format=torch.channels_last))
    return estimate.float().clamp(0, 1)


def _centres(net: WeatherNet, image: Tensor, side: int, device: torch.device, precision: Precision) -> Tensor:
    """Global gates: the centre of each tile is what the whole picture gives there; nothing needs blending."""
    restored = torch.empty_like(image)
    with net.fixed_gates(global_gates(net, image.to(device), precision)):
        for tile in tiles(*image.shape[-2:], side, net.halo, net.shuffle):
            top, left, bottom, right = tile.window
            seen = _run(net, image[..., top:bottom, left:right].to(device), precision)
            kept = seen[..., tile.top - top : tile.bottom - top, tile.left - left : tile.right - left]
            restored[..., tile.top : tile.bottom, tile.left : tile.right] = kept.to(image.device)
    return restored


def _blended(net: WeatherNet, image: Tensor, side: int, device: torch.device, precision: Precision) -> Tensor:
    """Local gates: tiles differ where they meet, so each window's weight falls linearly towards its inner edges."""
    total, weight = torch.zeros_like(image), torch.zeros_like(image[:, :1])
    height, width = image.shape[-2:]
    for tile in tiles(height, width, side, net.halo, net.shuffle):
        top, left, bottom, right = tile.window
        seen = _run(net, image[..., top:bottom, left:right].to(device), precision).to(image.device)
        ramp = _ramp(bottom - top, top > 0, bottom < height, net.halo)[:, None]
        ramp = ramp * _ramp(right - left, left > 0, right < width, net.halo)[None, :]
        total[..., top:bottom, left:right] += seen * ramp.to(seen)
        weight[..., top:bottom, left:right] += ramp.to(seen)
    return total / weight


def _ramp(length: int, rises: bool, falls: bool, halo: int) -> Float[Tensor, " n"]:
    places = torch.arange(length, dtype=torch.float32)
    ramp = torch.ones(length)
    # Two windows overlap by two halos: their ramps add up to one there.
    if rises:
        ramp = torch.minimum(ramp, (places + 0.5) / (2 * halo))
    if falls:
        ramp = torch.minimum(ramp, (length - places - 0.5) / (2 * halo))
    return ramp.clamp(1e-3, 1)


def seam_error(
    net: WeatherNet,
    image: Float[Tensor, "1 3 h w"],
    tile: int,
    gates: Gates = "global",
    precision: Precision = "auto",
) -> float:
    """Largest difference, in [0, 1], between a picture restored in tiles and whole."""
    whole = restore_tensor(net, image, "off", precision=precision)
    return (restore_tensor(net, image, tile, gates, precision) - whole).abs().max().item()
