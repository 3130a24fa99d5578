"""Making a paired set on disk from clean photographs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tenfold.errors import UserError
from tenfold.files import write_text
from tenfold.images import list_images, read_image, write_image
from tenfold.runs import track
from weatherkr.randomness import generator
from weatherkr.weather import KINDS, degrade
from weatherkr.weather.settings import SETTINGS, Setting, describe_settings

REFERENCE_SIDE = 320
"""Shorter side, in pixels, that the generators' lengths are given for."""


def write_pairs(
    source: Path,
    out: Path,
    kinds: Sequence[str],
    setting: Setting = "standard",
    seed: int = 0,
    scale: float | None = None,
) -> int:
    """Write `OUT/KIND/degraded/NAME.png` and `OUT/KIND/clean/NAME.png` for each photograph and each kind of weather.

    Args:
        source: a photograph, or a folder of them.
        out: a folder, new or without these kinds.
        kinds: of weather.
        setting: of the generator.
        seed: of the weather; a picture's weather depends on its name and this only.
        scale: of streaks, flakes and drops; None follows the picture's size.

    Returns:
        Number of pairs.

    Raises:
        UserError: an unknown kind, a folder that holds pairs already, an unreadable photograph.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kind {kind}: choose {', '.join(KINDS)}")
        if (out / kind).exists():
            raise UserError(f"{out / kind}: exists; choose another --out")
    files = list_images(source)
    for path in track(files, "degrade"):
        pixels = read_image(path)
        clean = torch.from_numpy(pixels).permute(2, 0, 1)
        relative = (path.relative_to(source) if source.is_dir() else Path(path.name)).with_suffix(".png")
        for kind in kinds:
            size = scale if scale is not None else max(min(pixels.shape[:2]) / REFERENCE_SIDE, 0.25)
            weather = degrade(clean, kind, generator(seed, kind, path.name), setting, size)
            write_image(out / kind / "degraded" / relative, weather.permute(1, 2, 0).numpy())
            write_image(out / kind / "clean" / relative, np.ascontiguousarray(pixels))
    for kind in kinds:
        ranges = describe_settings(SETTINGS[kind][setting])
        write_text(out / kind / "README.txt", f"{kind}, setting {setting}, seed {seed}: {ranges}\n")
    return len(files) * len(kinds)
