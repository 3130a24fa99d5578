"""Crops on disk: SYSU-MM01, RegDB and LLCM as they are distributed, and any pair of folders (section 6)."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from tenfold import UserError
from tenfold.images import list_images
from tenfold.reading import read_text

Modality = Literal["visible", "infrared"]
SysuMode = Literal["all", "indoor"]
SYSU_INFRARED = (3, 6)
SYSU_VISIBLE: dict[SysuMode, tuple[int, ...]] = {"all": (1, 2, 4, 5), "indoor": (1, 2)}


@dataclass(frozen=True)
class Crops:
    """Pictures of one modality.

    Attributes:
        paths: the files.
        identities: who is on each; -1 where nobody knows.
        cameras: which camera took each; 0 where nobody knows.
        modality: visible or infrared.
    """

    paths: tuple[Path, ...]
    identities: Int[np.ndarray, " n"]
    cameras: Int[np.ndarray, " n"]
    modality: Modality

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_identities(self) -> bool:
        """Whether every picture's identity is known."""
        return bool((self.identities >= 0).all())


def _crops(rows: Sequence[tuple[Path, int, int]], modality: Modality, origin: str) -> Crops:
    if not rows:
        raise UserError(f"{origin}: no {modality} pictures found; check the folder's layout")
    paths, identities, cameras = zip(*rows, strict=True)
    try:
        return Crops(paths, np.array(identities, np.int64), np.array(cameras, np.int64), modality)
    except OverflowError:
        raise UserError(f"{origin}: the number of an identity or camera is too large") from None


def folder_crops(root: Path, modality: Modality) -> Crops:
    """All pictures below a folder. Sub-folders named by number, if there are any, are identities: `root/0007/a.jpg` is of 7.

    A camera is read from names such as `c2_001.jpg` or `0001_c2_f3.jpg`, else it is 0.

    Raises:
        UserError: no such folder, or no pictures in it.
    """
    if root.is_file():
        raise UserError(f"{root}: expected a folder of pictures")
    rows = []
    for path in list_images(root):
        parent = path.parent.name
        identity = int(parent) if path.parent != root and parent.isdecimal() else -1
        camera = re.search(r"(?:^|_)c(\d+)", path.stem)
        rows.append((path, identity, int(camera[1]) if camera else 0))
    return _crops(rows, modality, str(root))


def _read_ids(path: Path) -> list[int]:
    """One line of comma-separated identities."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; is this the folder that holds it?")
    words = [each.strip() for each in read_text(path).partition("\n")[0].split(",") if each.strip()]
    wrong = next((each for each in words if not _is_number(each)), None)
    if wrong is not None or not words:
        raise UserError(f"{path}: expected one line of comma-separated identities, found {(wrong or 'none')[:40]!r}")
    return sorted(map(int, words))


def _is_number(word: str) -> bool:
    """Whether a word is the number of somebody, of at most 18 digits: they are kept in 64 bits."""
    return word.isdecimal() and len(word) <= 18


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def sysu_training(root: Path) -> tuple[Crops, Crops]:
    """SYSU-MM01's training part (train and val identities): visible and infrared.

    Args:
        root: holds `cam1` to `cam6` with `PPPP/NNNN.jpg` and `exp/{train,val,test}_id.txt`.
    """
    ids = _read_ids(root / "exp" / "train_id.txt") + _read_ids(root / "exp" / "val_id.txt")
    return (
        _crops(_sysu_rows(root, ids, SYSU_VISIBLE["all"]), "visible", str(root)),
        _crops(_sysu_rows(root, ids, SYSU_INFRARED), "infrared", str(root)),
    )


def _sysu_rows(root: Path, ids: list[int], cameras: Sequence[int]) -> list[tuple[Path, int, int]]:
    return [
        (path, identity, camera)
        for identity in sorted(ids)
        for camera in cameras
        for path in _pictures_in(root / f"cam{camera}" / f"{identity:04d}")
    ]


def sysu_test(root: Path, mode: SysuMode = "all", trial: int = 0) -> tuple[Crops, Crops]:
    """SYSU-MM01's test part: all infrared pictures as queries; one random visible one per identity and camera as gallery.

    Args:
        root: see `sysu_training`.
        mode: `all` (cameras 1, 2, 4, 5) or `indoor` (1, 2).
        trial: seeds the choice, 0 to 9, as the benchmark does.
    """
    ids = _read_ids(root / "exp" / "test_id.txt")
    queries = _crops(_sysu_rows(root, ids, SYSU_INFRARED), "infrared", str(root))
    chance = random.Random(trial)
    rows = [
        (chance.choice(files), identity, camera)
        for identity in ids
        for camera in SYSU_VISIBLE[mode]
        if (files := _pictures_in(root / f"cam{camera}" / f"{identity:04d}"))
    ]
    return queries, _crops(rows, "visible", str(root))


def _listed(root: Path, index: Path, cameras: bool) -> list[tuple[Path, int, int]]:
    """Lines `relative/path.bmp identity`; the camera is in the path where the set has cameras (`cam3`, `_c03_`)."""
    if not (root / index).is_file():
        raise UserError(f"{root / index}: no such file; is {root} the folder that holds it?")
    lines = read_text(root / index).splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, identity = line.strip().rpartition(" ")
        if not name or "\0" in name or not _is_number(identity):
            raise UserError(f"{root / index}, line {number}: expected a path and an identity")
        camera = re.search(r"cam(\d+)|_c(\d+)", name) if cameras else None
        rows.append((root / name, int(identity), int(camera[1] or camera[2]) if camera else 0))
    return rows


def regdb_part(root: Path, part: Literal["train", "test"], trial: int = 1) -> tuple[Crops, Crops]:
    """RegDB, visible and thermal pictures of one of the ten splits.

    Args:
        root: holds `idx/{train,test}_{visible,thermal}_T.txt` with paths below it.
        part: train or test.
        trial: T, 1 to 10.
    """
    if not 1 <= trial <= 10:
        raise UserError(f"trial {trial}: RegDB has trials 1 to 10")
    visible, infrared = (
        _crops(_listed(root, Path("idx") / f"{part}_{name}_{trial}.txt", cameras=False), modality, str(root))
        for name, modality in (("visible", "visible"), ("thermal", "infrared"))
    )
    return visible, infrared


def llcm_training(root: Path) -> tuple[Crops, Crops]:
    """LLCM's training part: `idx/train_vis.txt` and `idx/train_nir.txt`, lines of a path and an identity."""
    visible, infrared = (
        _crops(_listed(root, Path("idx") / f"train_{name}.txt", cameras=True), modality, str(root))
        for name, modality in (("vis", "visible"), ("nir", "infrared"))
    )
    return visible, infrared


def llcm_test(root: Path, query: Modality = "infrared", trial: int = 0) -> tuple[Crops, Crops]:
    """LLCM's test part: all pictures of one modality as queries; of the other, one random per identity and camera as gallery.

    Args:
        root: holds `test_vis/camC/PPPP/*.jpg`, `test_nir/...` and `idx/test_id.txt`.
        query: the modality of the queries.
        trial: seeds the choice.
    """
    ids = _read_ids(root / "idx" / "test_id.txt")
    gallery: Modality = "visible" if query == "infrared" else "infrared"
    chance = random.Random(trial)
    asked = [row for rows in _llcm_rows(root, ids, query) for row in rows]
    chosen = [chance.choice(rows) for rows in _llcm_rows(root, ids, gallery)]
    return _crops(asked, query, str(root)), _crops(chosen, gallery, str(root))


def _llcm_rows(root: Path, ids: list[int], modality: Modality) -> list[list[tuple[Path, int, int]]]:
    """Pictures of each identity and camera that has any."""
    folder = root / ("test_vis" if modality == "visible" else "test_nir")
    return [
        [(path, identity, camera) for path in files]
        for identity in ids
        for camera in range(1, 10)
        if (files := _pictures_in(folder / f"cam{camera}" / f"{identity:04d}"))
    ]
