"""Making a paired set on disk from clean photographs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tenfold.errors import UserError
from tenfold.files import check_writable, write_text
from tenfold.folders import FolderReport, Job, check_jobs, work_on_files
from tenfold.images import list_images, read_image, write_image
from tenfold.random import keyed_generator
from tenfold.runs import track
from weatherkr.data.weather import KINDS, degrade
from weatherkr.data.weather.config import SETTINGS, Setting, describe_settings

REFERENCE_SIDE = 320
"""Shorter side, in pixels, that the generators' lengths are given for."""

LARGEST_SCALE = 64
"""Streaks thousands of pixels long: beyond, no picture is large enough."""

PARTS = ("degraded", "clean")


def write_pairs(
    source: Path,
    out: Path,
    kinds: Sequence[str],
    setting: Setting = "standard",
    seed: int = 0,
    scale: float | None = None,
) -> FolderReport[None]:
    """Write `OUT/KIND/degraded/NAME.png` and `OUT/KIND/clean/NAME.png` for each photograph and each kind of weather.

    Args:
        source: a photograph, or a folder of them.
        out: a folder, new or without these kinds.
        kinds: of weather.
        setting: of the generator.
        seed: of the weather; a picture's weather depends on its name and this only.
        scale: of streaks, flakes and drops; None follows the picture's size.

    Returns:
        The photographs that pairs were made of, and those that could not be read.

    Raises:
        UserError: an unknown kind, a folder that holds pairs already, two photographs with one name, a photograph given alone
            that cannot be read, or a folder of which none can.
    """
    kinds = list(dict.fromkeys(kinds))
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kind {kind}: choose {', '.join(KINDS)}")
        if (out / kind).exists():
            raise UserError(f"{out / kind}: exists; choose another --out")
    if scale is not None and not 0 < scale <= LARGEST_SCALE:
        raise UserError(f"--scale {scale:g}: must be above 0 and at most {LARGEST_SCALE}")
    check_writable(out / "README.txt")
    files = list_images(source)
    names = {
        path: (path.relative_to(source) if source.is_dir() else Path(path.name)).with_suffix(".png") for path in files
    }
    check_jobs([Job(path, out / kind / part / names[path]) for path in files for kind in kinds for part in PARTS])

    def put_weather_on(path: Path) -> None:
        pixels = read_image(path)
        clean = torch.from_numpy(pixels).permute(2, 0, 1)
        size = scale if scale is not None else max(min(pixels.shape[:2]) / REFERENCE_SIDE, 0.25)
        for kind in kinds:
            weather = degrade(clean, kind, keyed_generator(seed, kind, path.name), setting, size)
            for part, picture in zip(PARTS, (weather.permute(1, 2, 0).numpy(), pixels), strict=True):
                write_image(out / kind / part / names[path], np.ascontiguousarray(picture))

    report = work_on_files(track(files, "degrade"), put_weather_on, alone=source.is_file())
    for kind in kinds:
        ranges = describe_settings(SETTINGS[kind][setting])
        write_text(out / kind / "README.txt", f"{kind}, setting {setting}, seed {seed}: {ranges}\n")
    return report
