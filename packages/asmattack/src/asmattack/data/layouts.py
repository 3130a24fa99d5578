"""Face crops with labels: folders, manifests, and the DFDC frame layout of the authors."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from asmattack.data.parsers import read_label_map, resized_labels
from tenfold import UserError
from tenfold.data import to_tensor
from tenfold.images import ImageError, list_images
from tenfold.reading import numbered_rows
from tenfold.runs import track

LABELS = {"real": 0, "fake": 1, "0": 0, "1": 1}
SMALLEST = 32
"""Pixels of a side below which a crop holds no regions."""
MOST_FRAMES = 1_000_000
"""Of a video: nine hours of it."""


@dataclass(frozen=True)
class FaceSet:
    """Face crops of one size.

    Attributes:
        images: 8-bit pixels (10,000 crops of 224 pixels take 1.5 GB).
        labels: 0 real, 1 fake.
        names: of the files, below the folder or manifest they came from.
        groups: video or identity of each; splits never cut through one.
        landmarks: five points (x, y) of each face in pixels, where known.
        label_maps: face parsing of each face, where known.
        unreadable: files that were passed over, with the reason.
        files: where the faces were read from; empty for drawn ones.
    """

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    names: tuple[str, ...]
    groups: tuple[str, ...] = ()
    landmarks: Float[Tensor, "n 5 2"] | None = None
    label_maps: Int64[Tensor, "n h w"] | None = None
    unreadable: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Int64[Tensor, " m"]) -> "FaceSet":
        """Some of the faces."""
        listed = rows.tolist()
        return FaceSet(
            self.images[rows],
            self.labels[rows],
            tuple(self.names[row] for row in listed),
            tuple(self.groups[row] for row in listed) if self.groups else (),
            None if self.landmarks is None else self.landmarks[rows],
            None if self.label_maps is None else self.label_maps[rows],
            files=tuple(self.files[row] for row in listed) if self.files else (),
        )

    def batches(self, size: int) -> Iterator["FaceSet"]:
        """The faces in order, `size` at a time."""
        for rows in torch.arange(len(self)).split(size):
            yield self.subset(rows)

    def pixels(self, device: torch.device | str = "cpu") -> Float[Tensor, "n 3 h w"]:
        """Pixels in [0, 1]."""
        return self.images.to(device).float() / 255

    def of_parser(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """What a `MaskMaker` takes beside the pixels."""
        return {
            "labels": None if self.label_maps is None else self.label_maps.to(device),
            "landmarks": None if self.landmarks is None else self.landmarks.to(device),
            "names": self.names,
        }


@dataclass(frozen=True)
class _Entry:
    path: Path
    label: int
    group: str = ""
    landmarks: tuple[float, ...] | None = None
    mask: Path | None = None


def read_faces(source: Path, *, size: int | None = None) -> FaceSet:
    """Faces from a folder with `real/` and `fake/` below it, or from a CSV manifest.

    A manifest has the columns path, label (real, fake, 0, 1) and where known group, landmarks (ten numbers) and mask (a file
    of label maps); paths start from the manifest's folder. A picture that cannot be read is passed over and listed.

    Args:
        source: folder or manifest.
        size: side to which square crops are resized; by default all must be of one size.

    Raises:
        UserError: nothing there, no picture that can be read, crops of different sizes, or too small to hold regions.
    """
    if source.is_dir():
        return _load(source, _from_folder(source), size)
    if source.suffix.lower() == ".csv":
        return _load(source, _from_manifest(source), size)
    raise UserError(f"{source}: no folder with real/ and fake/, and no .csv manifest")


def _from_folder(root: Path) -> Iterator[_Entry]:
    for label, name in enumerate(("real", "fake")):
        if not (root / name).is_dir():
            raise UserError(f"{root}: needs the folders real and fake")
        for path in list_images(root / name):
            yield _Entry(path, label, path.parent.relative_to(root).as_posix())


def _from_manifest(path: Path) -> Iterator[_Entry]:
    for number, row in numbered_rows(path, ("path", "label")):
        label = LABELS.get(row["label"].strip().lower())
        if label is None:
            raise UserError(f"{path}:{number}: label {row['label']!r} is none of {', '.join(LABELS)}")
        try:
            points = tuple(float(each) for each in (row.get("landmarks") or "").replace(",", " ").split())
        except ValueError:
            points = (0.0,)
        if points and (len(points) != 10 or not all(map(math.isfinite, points))):
            raise UserError(f"{path}:{number}: landmarks are ten numbers, x y of five points, all finite")
        mask = path.parent / row["mask"] if row.get("mask") else None
        yield _Entry(path.parent / row["path"], label, row.get("group") or "", points or None, mask)


def dfdc_frames(table: Path, root: Path, split: str, *, size: int | None = None, seed: int = 0) -> FaceSet:
    """The authors' DFDC layout: `name,is_fake,n_frame,set_name`, faces at ROOT/frames/VIDEO/%03d.jpg.

    A quarter of a real video's frames and a twentieth of a fake one's are taken, evenly spaced, at random in the split train.

    Raises:
        UserError: the table or every frame is missing, or the split is empty.
    """
    draw = random.Random(seed)
    entries = []
    for number, row in numbered_rows(table, ("name", "is_fake", "n_frame", "set_name")):
        if row["set_name"] != split:
            continue
        try:
            fake, frames = float(row["is_fake"]), int(row["n_frame"])
        except ValueError:
            fake, frames = math.nan, -1
        if fake not in (0, 1) or not 0 <= frames <= MOST_FRAMES:
            raise UserError(f"{table}:{number}: is_fake is 0 or 1, n_frame a whole number from 0 to {MOST_FRAMES}")
        count = round(frames * (0.05 if fake else 0.25))
        spaced = [frames * index // count for index in range(count)]
        chosen = sorted(draw.sample(range(frames), count)) if split == "train" else spaced
        video = Path(row["name"]).stem
        entries += [_Entry(root / "frames" / video / f"{index:03d}.jpg", int(fake), video) for index in chosen]
    if not entries:
        raise UserError(f"{table}: no frame in the split {split!r}")
    return _load(root, entries, size)


def _load(source: Path, entries: Iterable[_Entry], size: int | None) -> FaceSet:
    if size is not None and size < SMALLEST:
        raise UserError(f"--size {size}: faces need at least {SMALLEST} pixels")
    pictures: list[Tensor] = []
    kept: list[_Entry] = []
    points: list[Tensor] = []
    faults: list[str] = []
    for entry in track(list(entries), "reading"):
        try:
            picture = to_tensor(entry.path)
        except ImageError as error:
            faults.append(str(error))
            continue
        height, width = picture.shape[1:]
        if min(height, width) < SMALLEST:
            raise UserError(f"{entry.path}: {width}x{height}; faces need at least {SMALLEST} pixels")
        if size is not None:
            if height != width:
                raise UserError(f"{entry.path}: {width}x{height}; only square crops are resized")
            picture = F.interpolate(picture[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[
                0
            ]
        if pictures and picture.shape != pictures[0].shape:
            raise UserError(
                f"{entry.path}: {width}x{height}, others are of another size; --size N resizes square crops"
            )
        pictures.append((picture * 255).round().byte())
        points.append(torch.tensor(entry.landmarks or (float("nan"),) * 10).view(5, 2) * (picture.shape[1] / height))
        kept.append(entry)
    if not pictures:
        reason = f"; {len(faults)} cannot be read: {faults[0]}" if faults else ""
        raise UserError(f"{source}: no pictures of faces{reason}")
    landmarks = torch.stack(points)
    known = bool(landmarks.isfinite().all())
    if not known and any(entry.landmarks for entry in kept):
        raise UserError(f"{source}: some faces have landmarks and others do not")
    return FaceSet(
        torch.stack(pictures),
        torch.tensor([entry.label for entry in kept]),
        tuple(_name_below(source if source.is_dir() else source.parent, entry.path) for entry in kept),
        tuple(entry.group for entry in kept),
        landmarks if known else None,
        _label_maps(source, kept, (pictures[0].shape[1], pictures[0].shape[2])),
        tuple(faults),
        tuple(entry.path for entry in kept),
    )


def _name_below(root: Path, path: Path) -> str:
    """The path below a folder; the bare name of a file that lies elsewhere."""
    below = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return path.name if ".." in below.parts else below.as_posix()


def _label_maps(source: Path, entries: Sequence[_Entry], size: tuple[int, int]) -> Tensor | None:
    with_maps = [entry.mask for entry in entries if entry.mask is not None]
    if not with_maps:
        return None
    if len(with_maps) < len(entries):
        raise UserError(f"{source}: some faces have a mask and others do not")
    return torch.stack([resized_labels(read_label_map(path), size) for path in with_maps])
