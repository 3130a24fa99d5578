"""Labelled pictures from folders, list files, arrays and torchvision, all read the same way (paper §5.1; official code's layouts)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from tenfold import UserError
from tenfold.data import class_folder, held_out, to_tensor, torchvision_set
from tenfold.reading import read_text


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures that are read when asked for.

    Attributes:
        read: gives the picture at an index, [3, h, w] in 0 to 255.
        targets: label of each picture.
        class_names: name of each label.
        indices: of a subset, where its pictures stood in the whole.
    """

    read: Callable[[int], UInt8[Tensor, "3 h w"]]
    targets: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    indices: Int[np.ndarray, " n"] | None = None

    def subset(self, keep: Int[np.ndarray, " k"]) -> "LabelledPictures":
        """The pictures at some indices."""
        return replace(self, read=_Picked(self.read, keep), targets=self.targets[keep], indices=keep)


@dataclass(frozen=True)
class _Picked:
    read: Callable[[int], Tensor]
    keep: Int[np.ndarray, " k"]

    def __call__(self, index: int) -> Tensor:
        return self.read(int(self.keep[index]))


@dataclass(frozen=True)
class FromFiles:
    """Reads pictures from files."""

    paths: tuple[Path, ...]

    def __call__(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The picture at an index."""
        return (to_tensor(self.paths[index]) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class FromArray:
    """Reads pictures from memory."""

    pictures: UInt8[Tensor, "n 3 h w"]

    def __call__(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The picture at an index."""
        return self.pictures[index]


def from_tensors(pictures: Tensor, targets: Tensor, class_names: tuple[str, ...]) -> LabelledPictures:
    """Pictures in [0, 1] that are in memory."""
    return LabelledPictures(FromArray((pictures * 255).round().to(torch.uint8)), targets.numpy(), class_names)


def natural(names: set[str]) -> list[str]:
    """Class names sorted as numbers where all are numbers (CIFAR-100's folders 0 to 99), else as text."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def read_folder(root: Path) -> LabelledPictures:
    """One folder per class."""
    found = class_folder(root)
    names = natural(set(found.classes))
    position = {found.class_to_idx[name]: label for label, name in enumerate(names)}
    paths, labels = zip(*found.samples, strict=True)
    return LabelledPictures(
        FromFiles(tuple(Path(path) for path in paths)), np.array([position[each] for each in labels]), tuple(names)
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without the white space around them.

    Raises:
        UserError: unreadable, not text, or without a line.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: holds no line")
    return lines


def read_list(root: Path, list_file: Path) -> LabelledPictures:
    """A split list: one path below `root` a line, or path and label (the official code's files).

    Without a label the picture's folder names its class.

    Raises:
        UserError: an empty list, or a picture that is not there; the line is named.
    """
    lines = read_lines(list_file)
    paths, classes = [], []
    for number, line in enumerate(lines, start=1):
        place, _, label = line.rpartition(" ")
        place, label = (place, label) if place and label.isdecimal() else (line, "")
        path = root / place
        if not path.is_file():
            raise UserError(f"{list_file}, line {number}: no picture {path}")
        paths.append(path)
        classes.append(label or path.parent.name)
    names = natural(set(classes))
    position = {name: label for label, name in enumerate(names)}
    return LabelledPictures(FromFiles(tuple(paths)), np.array([position[each] for each in classes]), tuple(names))


def read_cifar100(root: Path, *, train: bool) -> LabelledPictures:
    """CIFAR-100 in torchvision's layout."""
    found = torchvision_set("cifar100", root, train=train)
    pictures = torch.from_numpy(found.data).permute(0, 3, 1, 2)
    return LabelledPictures(FromArray(pictures), np.array(found.targets), tuple(found.classes))


def read_digits() -> LabelledPictures:
    """1797 scanned handwritten digits that scikit-learn ships, 8 x 8 enlarged to 32 x 32."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] / 16
    large = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    return from_tensors(
        large.clamp(0, 1).expand(-1, 3, -1, -1), torch.from_numpy(found.target), tuple(map(str, range(10)))
    )


def split_by_name(
    pictures: LabelledPictures, root: Path, share: float = 0.8
) -> tuple[LabelledPictures, LabelledPictures]:
    """Part the pictures of a folder, each by its own path below `root`: none changes sides when others come or go.

    Raises:
        UserError: a class with a single picture.
    """
    assert isinstance(pictures.read, FromFiles)
    names = [path.relative_to(root).as_posix() for path in pictures.read.paths]
    held = held_out([pictures.class_names[label] for label in pictures.targets], names, 1 - share)
    return pictures.subset(np.flatnonzero(~held)), pictures.subset(np.flatnonzero(held))


def stratified_split(
    pictures: LabelledPictures, seed: int, share: float = 0.8
) -> tuple[LabelledPictures, LabelledPictures]:
    """Part each class by chance, at least one picture on either side.

    Raises:
        UserError: a class with a single picture.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    first, second = [], []
    for label, name in enumerate(pictures.class_names):
        members = generator.permutation(np.flatnonzero(pictures.targets == label))
        if len(members) < 2:
            raise UserError(f"class {name}: {len(members)} picture; at least two are needed to split off a test set")
        cut = min(max(1, round(share * len(members))), len(members) - 1)
        first.append(members[:cut])
        second.append(members[cut:])
    return tuple(pictures.subset(np.sort(np.concatenate(each))) for each in (first, second))  # ty: ignore[invalid-explicit-return]


def keep_most_frequent(
    train: LabelledPictures, test: LabelledPictures, count: int
) -> tuple[LabelledPictures, LabelledPictures]:
    """Keep the classes with most pictures in both parts together (DomainNet-200), relabelled in the order of their names."""
    sizes = np.bincount(np.concatenate([train.targets, test.targets]), minlength=len(train.class_names))
    kept = np.sort(np.argsort(-sizes, kind="stable")[:count])
    relabel = np.full(len(sizes), -1)
    relabel[kept] = np.arange(len(kept))
    names = tuple(train.class_names[label] for label in kept)

    def only(pictures: LabelledPictures) -> LabelledPictures:
        part = pictures.subset(np.flatnonzero(relabel[pictures.targets] >= 0))
        return LabelledPictures(part.read, relabel[part.targets], names)

    return only(train), only(test)


class TaskPictures(Dataset):
    """The pictures of some classes with their labels in the stream, transformed.

    Args:
        pictures: all pictures.
        labels: for each class of `pictures` that is wanted, its label in the stream.
        transform: from [3, h, w] in 0 to 255 to what the backbone takes.
    """

    def __init__(
        self, pictures: LabelledPictures, labels: dict[int, int], transform: Callable[[Tensor], Tensor]
    ) -> None:
        self.pictures = pictures
        self.indices = np.flatnonzero(np.isin(pictures.targets, list(labels)))
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        place = int(self.indices[index])
        return self.transform(self.pictures.read(place)), self.labels[int(self.pictures.targets[place])]
