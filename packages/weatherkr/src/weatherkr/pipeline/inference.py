"""Restoring pictures: files, folders, arrays, with the model that ships or one's own."""

import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tenfold.errors import UserError
from tenfold.folders import FolderReport, Job, check_jobs, plan_outputs, work_on_files
from tenfold.images import write_image
from tenfold.runs import pick_device, track
from tenfold.training.precision import Precision
from weatherkr.data.files import WRITABLE, check_format, read_original, write_like
from weatherkr.models.networks import WeatherNet
from weatherkr.pipeline.tiling import Gates, restore_tensor
from weatherkr.training.state import load_network, newest_state

TileChoice = int | Literal["auto", "off"]


@lru_cache(maxsize=1)
def _compact() -> WeatherNet:
    with resources.as_file(resources.files("weatherkr") / "weights" / "compact") as folder:
        return load_network(Path(folder))


def load_model(source: str | Path = "compact", device: str = "auto") -> WeatherNet:
    """A trained network, ready to restore.

    Args:
        source: `compact` for the model that ships; a run folder, a state, or a folder of `save_pretrained`.
        device: `auto`, `cpu`, `cuda`, ...

    Raises:
        UserError: no model there, or one of another kind.
    """
    where = pick_device(device)
    if str(source) == "compact":
        net = _compact()
    else:
        path = Path(source)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; name a run, a folder of save_pretrained, or compact")
        net = load_network(path if (path / "config.json").is_file() else newest_state(path) or path)
    return net.to(where).to(memory_format=torch.channels_last).eval()


def restore_array(
    net: WeatherNet,
    rgb: Float[np.ndarray, "h w 3"],
    tile: TileChoice = "auto",
    gates: Gates = "global",
    precision: Precision = "auto",
) -> Float[np.ndarray, "h w 3"]:
    """Restore a float RGB array in [0, 1]."""
    image = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None]
    return restore_tensor(net, image, tile, gates, precision)[0].permute(1, 2, 0).numpy()


def restore_image(
    net: WeatherNet,
    image: Any,
    tile: TileChoice = "auto",
    gates: Gates = "global",
    precision: Precision = "auto",
) -> Any:
    """Restore one picture; what comes in comes out.

    Args:
        net: the network, see `load_model`.
        image: a path (gives a PIL image), a PIL image, an array (h, w, 3) of uint8, uint16 or float in [0, 1], or a tensor
            (3, h, w) or (b, 3, h, w) in [0, 1].
        tile: side of the tiles, `auto`, or `off`.
        gates: `global` or `local`, see `weatherkr.tiling`.
        precision: `auto`: bfloat16 where the hardware has it; or `float32`.

    Returns:
        A picture of the same type, size and value range.

    Raises:
        UserError: NaN, float values up to 255, another shape, or a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        original = read_original(image)
        return Image.fromarray(np.rint(restore_array(net, original.rgb, tile, gates, precision) * 255).astype(np.uint8))
    if isinstance(image, Tensor):
        return _restore_tensors(net, image, tile, gates, precision)
    if isinstance(image, Image.Image):
        rgb = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        restored = Image.fromarray(np.rint(restore_array(net, rgb, tile, gates, precision) * 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA"):
            restored.putalpha(image.getchannel("A"))
        return restored.convert("L") if image.mode == "L" else restored
    if isinstance(image, np.ndarray):
        return _restore_numbers(net, image, tile, gates, precision)
    raise UserError(f"cannot restore a {type(image).__name__}; give a path, a PIL image, an array or a tensor")


def _restore_tensors(net: WeatherNet, image: Tensor, tile: TileChoice, gates: Gates, precision: Precision) -> Tensor:
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise UserError(f"a tensor of shape {tuple(image.shape)}: expected (3, h, w) or (b, 3, h, w)")
    checked = _checked_range(image.float())
    if checked.ndim == 3:
        return restore_tensor(net, checked[None], tile, gates, precision)[0].to(image.dtype)
    return torch.cat([restore_tensor(net, each[None], tile, gates, precision) for each in checked]).to(image.dtype)


def _restore_numbers(
    net: WeatherNet, image: np.ndarray, tile: TileChoice, gates: Gates, precision: Precision
) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"an array of shape {image.shape}: expected (h, w, 3)")
    top = {"uint8": 255.0, "uint16": 65535.0}.get(image.dtype.name)
    if top is None and not np.issubdtype(image.dtype, np.floating):
        raise UserError(f"an array of {image.dtype}: expected uint8, uint16, or floats in [0, 1]")
    rgb = torch.from_numpy(image.astype(np.float32) / (top or 1.0))
    restored = restore_array(net, _checked_range(rgb).numpy(), tile, gates, precision)
    return restored.astype(image.dtype) if top is None else np.rint(restored * top).astype(image.dtype)


def _checked_range(values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise UserError("the picture holds NaN or infinite values")
    low, high = values.min().item(), values.max().item()
    if high > 2:
        raise UserError(f"values up to {high:g}: divide by 255 or pass uint8")
    if low < 0 or high > 1:
        warnings.warn(f"values from {low:.3g} to {high:.3g} are clamped to [0, 1]", stacklevel=4)
    return values.clamp(0, 1)


@dataclass(frozen=True)
class Restored:
    """A picture that was restored.

    Attributes:
        target: the file made.
        pixels: how many it has.
    """

    target: Path
    pixels: int


def restore_files(
    net: WeatherNet,
    source: Path,
    out: Path,
    *,
    tile: TileChoice = "auto",
    gates: Gates = "global",
    precision: Precision = "auto",
    suffix: str = "",
    quality: int = 95,
    overwrite: bool = False,
    compare: bool = False,
) -> FolderReport[Restored]:
    """Restore a file or every picture below a folder, keeping orientation, EXIF, profile, alpha and bit depth.

    Args:
        net: the network.
        source: a file or a folder.
        out: for a file: a file or a folder; for a folder: a folder, in which subfolders are kept.
        tile: see `restore_image`.
        gates: see `restore_image`.
        precision: see `restore_image`.
        suffix: put before the ending of each new name.
        quality: of JPEG and WebP, 1 to 100.
        overwrite: allow an output that exists; an input is never overwritten.
        compare: also write each picture beside its restoration, as `NAME_compare.png`.

    Returns:
        By picture what became of it, and those that could not be read.

    Raises:
        UserError: nothing to restore, an output that exists or is an input, a picture given alone that cannot be read, or a
            folder of which none can.
    """
    jobs = plan_outputs(source, out, suffix=suffix, endings=WRITABLE, overwrite=overwrite)
    targets = {job.source: job.target for job in jobs}
    if compare:
        check_jobs([*jobs, *(Job(job.source, _beside(job.target)) for job in jobs)], overwrite)

    def restore(path: Path) -> Restored:
        original, target = read_original(path), targets[path]
        check_format(target, original)
        for note in original.notes:
            warnings.warn(f"{path}: {note}", stacklevel=2)
        restored = restore_array(net, original.rgb, tile, gates, precision)
        write_like(target, restored, original, quality)
        if compare:
            write_image(_beside(target), np.concatenate([original.rgb, restored], axis=1))
        return Restored(target, original.rgb.shape[0] * original.rgb.shape[1])

    return work_on_files(track(list(targets), "restore"), restore, alone=source.is_file())


def _beside(target: Path) -> Path:
    """Where a picture goes that shows another before and after."""
    return target.with_name(f"{target.stem}_compare.png")
