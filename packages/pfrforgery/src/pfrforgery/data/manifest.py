"""The list of images that clients are made from: one CSV row an image, `path,label,source,split,video`."""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenfold import UserError
from tenfold.files import atomic_path
from tenfold.reading import read_rows

COLUMNS = ("path", "label", "source", "split", "video")
SPLITS = ("train", "val", "test")
LABELS = {"real": 0, "fake": 1}


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes:
        path: of the image; relative paths start at the manifest's folder.
        label: `real` or `fake`.
        source: the data set or forgery it comes from, `SET` or `SET/FORGERY`.
        split: `train`, `val` or `test`.
        video: frames of one video share it; they must be in one split.
    """

    path: str
    label: str
    source: str
    split: str
    video: str


def read_manifest(path: Path) -> list[Row]:
    """Read a manifest and check it.

    Raises:
        UserError: missing or undecodable file, missing columns, a label that is neither `real` nor `fake`, an unknown split,
            an image twice, a video in two splits or with two labels.
    """
    rows = [Row(*(line[name] for name in COLUMNS)) for line in read_rows(path, COLUMNS)]
    check_rows(rows, str(path))
    return rows


def check_rows(rows: Sequence[Row], name: str) -> None:
    """Refuse what would make a measurement wrong; see `read_manifest` for what that is."""
    if not rows:
        raise UserError(f"{name}: lists no image")
    for number, row in enumerate(rows, start=2):
        if row.label not in LABELS:
            raise UserError(f"{name}: row {number} has label {row.label!r}; write real or fake, never numbers")
        if row.split not in SPLITS:
            raise UserError(f"{name}: row {number} has split {row.split!r}; use {', '.join(SPLITS)}")
    twice = [path for path, count in Counter(row.path for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"{name}: {len(twice)} images are listed twice: {', '.join(twice[:5])}")
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        places[row.video].add((row.split, row.label))
    torn = [video for video, found in places.items() if len(found) > 1]
    if torn:
        raise UserError(f"{name}: {len(torn)} videos are in two splits or have two labels: {', '.join(torn[:5])}")


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write a manifest, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, name) for name in COLUMNS] for row in rows)


def manifest_sha256(path: Path) -> str:
    """The hash by which a partition recognises its manifest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashed_split(video: str, train_share: float = 0.7) -> str:
    """A split that depends on the video's name alone: the same on every machine, all frames together."""
    number = int.from_bytes(hashlib.sha256(video.encode()).digest()[:8])
    return "train" if number / 2**64 < train_share else "test"
