"""Pairs as public sets lay them on disk: RESIDE OTS and SOTS, Rain100H/L, Rain1400, Snow100K, CSD, raindrops, two folders, a CSV."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tenfold.data import pair_files
from tenfold.errors import UserError
from tenfold.images import list_images
from tenfold.reading import read_rows

Files = list[tuple[Path, Path]]


@dataclass(frozen=True)
class Layout:
    """How a set's folders are named and its files paired.

    Attributes:
        summary: which set this is, and how it lies on disk.
        degraded: names that the folder of degraded pictures may have.
        clean: names that the folder of clean ones may have.
        key: the stem of a degraded picture to what it shares with its clean one.
        clean_key: the same for the clean picture's stem.
        fit_crop: clean pictures may be larger; their middle is taken.
    """

    summary: str
    degraded: tuple[str, ...]
    clean: tuple[str, ...]
    key: Callable[[str], str]
    clean_key: Callable[[str], str]
    fit_crop: bool = False


def same(stem: str) -> str:
    """Equal names."""
    return stem


def prefix(stem: str) -> str:
    """What stands before the first underscore: `0001_0.8_0.04` belongs to `0001`."""
    return stem.split("_")[0]


def number(stem: str) -> str:
    """The picture's number, whatever stands around it: `norain-7x2`, `rain-7`, `norain-007` and `7` are one picture."""
    digits = re.search(r"\d+", stem)
    return str(int(digits.group())) if digits else stem


LAYOUTS: Mapping[str, Layout] = {
    "reside": Layout(
        "RESIDE OTS and SOTS: hazy/0001_0.8_0.04.jpg, clear/0001.jpg (or gt/)", ("hazy",), ("clear", "gt", "GT"),
        prefix, prefix, fit_crop=True,
    ),
    "rain100": Layout(
        "Rain100H, Rain100L: rain/norain-1x2.png, norain/norain-1.png (or rainy/, input/, target/)",
        ("rain", "rainy", "input"), ("norain", "target", "gt"), number, number,
    ),
    "rain1400": Layout(
        "Rain1400 (DDN): rainy_image/901_1.jpg, ground_truth/901.jpg", ("rainy_image", "rainy"), ("ground_truth", "gt"),
        prefix, prefix,
    ),
    "snow100k": Layout("Snow100K: synthetic/NAME.jpg, gt/NAME.jpg", ("synthetic",), ("gt",), same, same),
    "csd": Layout("CSD: Snow/1.tif, Gt/1.tif", ("Snow", "snow"), ("Gt", "gt", "GT"), same, same),
    "raindrop": Layout("raindrops of Qian et al.: data/0_rain.png, gt/0_clean.png", ("data",), ("gt",), prefix, prefix),
}  # fmt: skip


def _folder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root}: has no folder {' or '.join(names)}")


def match(degraded: Path, clean: Path, key: Callable[[str], str], clean_key: Callable[[str], str]) -> Files:
    """Pair every degraded picture with the clean one of its key; several may share one. Never by order.

    Raises:
        UserError: degraded pictures without a clean one (up to ten are named), or two clean ones with one key.
    """
    targets: dict[str, Path] = {}
    for path in list_images(clean):
        if (twin := targets.setdefault(clean_key(path.stem), path)) != path:
            raise UserError(f"{path} and {twin}: both are the clean picture {clean_key(path.stem)!r}")
    sources = list_images(degraded)
    lonely = [path.name for path in sources if key(path.stem) not in targets]
    if lonely:
        raise UserError(
            f"{degraded} and {clean}: {len(lonely)} degraded pictures have no clean one by the rule "
            f"{(key.__doc__ or '').rstrip('.')!r}: {', '.join(lonely[:10])}"
        )
    return [(path, targets[key(path.stem)]) for path in sources]


def layout_files(layout: str, root: Path) -> Files:
    """The pairs of a public set.

    Args:
        layout: a key of `LAYOUTS`.
        root: the folder that holds the folders of degraded and clean pictures.
    """
    known = LAYOUTS[layout]
    return match(_folder(root, known.degraded), _folder(root, known.clean), known.key, known.clean_key)


def csv_files(table: Path) -> Files:
    """Pairs named by a CSV with the columns input and target; relative paths start at the CSV's folder."""
    rows = read_rows(table, ("input", "target"))
    if not rows:
        raise UserError(f"{table}: needs at least one row below its header")
    files = [(table.parent / row["input"], table.parent / row["target"]) for row in rows]
    missing = [str(path) for pair in files for path in pair if not path.is_file()]
    if missing:
        raise UserError(f"{table}: {len(missing)} files are missing: {', '.join(missing[:10])}")
    return files


def folder_files(degraded: Path, clean: Path) -> Files:
    """Pairs of two folders by equal names, suffix aside; both folders must hold the same names."""
    return pair_files(degraded, clean)
