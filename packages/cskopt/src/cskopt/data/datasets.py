"""Class-incremental data: where pictures come from, and in which order classes arrive."""

import io
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from cskopt.config import TrainConfig
from cskopt.data.synthetic import shape_pictures
from tenfold import UserError
from tenfold.archives import open_zip
from tenfold.data import class_folder, held_out, torchvision_set
from tenfold.images import read_image

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
SHAPES = ((0.5, 0.5, 0.5), (0.35, 0.35, 0.35))
MEMORY_LIMIT = 2 * 2**30
"""Bytes of pictures that are decoded once and kept; above, each is read when it is needed."""


class Pictures:
    """Pictures of one size with labels, in memory or read when needed.

    Args:
        labels: of each picture.
        take: gives the pictures at some positions, 8-bit, (n, 3, side, side).
    """

    def __init__(
        self, labels: Int[Tensor, " n"], take: Callable[[Int[Tensor, " k"]], UInt8[Tensor, "k 3 h w"]]
    ) -> None:
        self.labels = labels
        self.take = take

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of_tensor(cls, pictures: UInt8[Tensor, "n 3 h w"], labels: Int[Tensor, " n"]) -> "Pictures":
        """Pictures in memory."""
        return cls(labels, pictures.__getitem__)

    @classmethod
    def of_files(cls, samples: Sequence[tuple[str, int]], side: int) -> "Pictures":
        """Pictures from files, (path, label) each, decoded once where they fit in `MEMORY_LIMIT`.

        Raises:
            UserError: a picture that cannot be read.
        """
        labels = torch.tensor([label for _, label in samples])
        paths = [path for path, _ in samples]

        def read(positions: Tensor) -> Tensor:
            return torch.cat([read_square(paths[int(i)], side) for i in positions])

        if len(paths) * 3 * side * side <= MEMORY_LIMIT:
            return cls.of_tensor(read(torch.arange(len(paths))), labels)
        return cls(labels, read)


@dataclass(frozen=True)
class Corpus:
    """A training part and a test part with the same classes.

    Attributes:
        name: for reports.
        classes: names, by label.
        train: what is learnt from.
        test: what is measured on.
        mean: of the three channels, in [0, 1].
        std: of the three channels.
    """

    name: str
    classes: tuple[str, ...]
    train: Pictures
    test: Pictures
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class ClassOrder:
    """Which classes arrive when.

    Attributes:
        order: labels of the corpus in order of arrival; position is the id that a learner uses.
        sessions: ids of each session, the base first.
    """

    order: tuple[int, ...]
    sessions: tuple[range, ...]

    def labels_of(self, session: int) -> Int[Tensor, " k"]:
        """Labels of the corpus that arrive in a session."""
        return torch.tensor([self.order[each] for each in self.sessions[session]])


def class_order(classes: int, config: TrainConfig) -> ClassOrder:
    """The order of classes and their sessions: a base, then `increment` classes at a time.

    Raises:
        UserError: fewer classes than the base needs, or a last session that would be smaller.
    """
    base, step = config.base_classes, config.increment
    if classes < base:
        raise UserError(f"base_classes is {base}, but the data has {classes} classes")
    step = step or classes - base
    if step and (classes - base) % step:
        raise UserError(
            f"{classes - base} classes after the base do not divide into sessions of {step}; set --increment"
        )
    order = np.arange(classes)
    if config.order == "shuffled":
        # The generator of the protocol: a permutation that other papers use too (Tiny-ImageNet, seed 1993).
        order = np.random.RandomState(config.class_seed).permutation(classes)  # see above
    starts = [0, *range(base, classes, step or 1)]
    ends = [*starts[1:], classes]
    return ClassOrder(tuple(order.tolist()), tuple(range(a, b) for a, b in zip(starts, ends, strict=True)))


class SessionPictures(Dataset):
    """Pictures of some classes as normalised tensors, with ids in order of arrival.

    Args:
        pictures: all classes.
        order: which label becomes which id.
        labels: of the corpus, to keep.
        corpus: for mean and standard deviation.
        augment: crop after padding by 4, flip, brightness, each picture by itself.
        first: id of the first class in the order.
    """

    def __init__(
        self,
        pictures: Pictures,
        order: ClassOrder,
        labels: Int[Tensor, " k"],
        corpus: Corpus,
        augment: bool = False,
        first: int = 0,
    ) -> None:
        self._pictures = pictures
        self._positions = torch.isin(pictures.labels, labels).nonzero().flatten()
        self._ids = torch.tensor(order.order).argsort() + first
        self._mean = torch.tensor(corpus.mean)[:, None, None]
        self._std = torch.tensor(corpus.std)[:, None, None]
        self._augment = augment

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pictures, labels = self.__getitems__([index])
        return pictures[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Float[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        """A batch at once, as the loader asks for it."""
        positions = self._positions[torch.as_tensor(indices)]
        pictures = self._pictures.take(positions).float() / 255
        if self._augment:
            pictures = augment(pictures)
        return (pictures - self._mean) / self._std, self._ids[self._pictures.labels[positions]]


def augment(pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Random crop after padding by 4, horizontal flip, brightness by up to 63/255 (official code), for each picture."""
    count, _, height, width = pictures.shape
    padded = F.pad(pictures, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (count, 1, 1)), torch.randint(0, 9, (count, 1, 1))
    columns = torch.arange(width)[None, None, :].expand(count, 1, width)
    columns = torch.where(torch.rand(count, 1, 1) < 0.5, columns.flip(2), columns)
    rows = torch.arange(height)[None, :, None] + top
    cropped = padded[torch.arange(count)[:, None, None], :, rows, columns + left].permute(0, 3, 1, 2)
    brightness = torch.empty(count, 1, 1, 1).uniform_(1 - 63 / 255, 1 + 63 / 255)
    return (cropped * brightness).clamp(0, 1)


def as_loader(dataset: Dataset, batch_size: int, order: torch.Generator | None = None, workers: int = 0) -> DataLoader:
    """A loader of whole batches; shuffled by `order`, in sequence without it."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=order is not None,
        generator=order,
        num_workers=workers,
        collate_fn=_as_is,
        persistent_workers=workers > 0,
    )


def _as_is(batch: Any) -> Any:
    return batch


def load_corpus(data: str, image_size: int, seed: int = 0, root: Path = Path("data")) -> Corpus:
    """A corpus by name or path.

    Args:
        data: `shapes` (generated), `digits` (scikit-learn's), `cifar100`, `cifar10` (torchvision's files below `root`), a
            folder with train/ and test/ (or val/) of one folder per class, a folder of class folders (about a fifth of
            the pictures is held out, each by its own name), or a zip of train/CLASS/ and test/CLASS/.
        image_size: side that pictures are resized to.
        seed: of generated data.
        root: where torchvision's files are.

    Raises:
        UserError: nothing there, or no pictures in it.
    """
    if data == "shapes":
        return shapes_corpus(20, 120, 50, seed, image_size)
    if data == "digits":
        return digits_corpus(image_size)
    if data in ("cifar100", "cifar10"):
        return _torchvision_corpus(data, root, image_size)
    path = Path(data)
    if path.suffix == ".zip":
        return zip_corpus(path, image_size)
    return _folder_corpus(path, image_size)


def resized(pictures: UInt8[Tensor, "n 3 _ _"], side: int) -> UInt8[Tensor, "n 3 h w"]:
    """Pictures at another size, antialiased."""
    if pictures.shape[2:] == (side, side):
        return pictures
    floats = F.interpolate(pictures.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return floats.round().clamp(0, 255).to(torch.uint8)


def shapes_corpus(classes: int, train: int, test: int, seed: int, image_size: int = 28) -> Corpus:
    """Textured shapes."""
    parts = []
    for name, count in (("train", train), ("test", test)):
        pictures, labels = shape_pictures(classes, count, seed, name)
        parts.append(Pictures.of_tensor(resized(pictures, image_size), labels))
    return Corpus("shapes", tuple(f"shape {i}" for i in range(classes)), *parts, *SHAPES)


def digits_corpus(image_size: int) -> Corpus:
    """Handwritten digits that scikit-learn ships: 1797 pictures of 8 x 8; every fifth is a test picture."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    pictures = resized(grey[:, None].expand(-1, 3, -1, -1), image_size)
    labels = torch.from_numpy(digits.target).long()
    held = torch.arange(len(labels)) % 5 == 0
    parts = [Pictures.of_tensor(pictures[keep], labels[keep]) for keep in (~held, held)]
    return Corpus("digits", tuple(map(str, range(10))), *parts, *SHAPES)


def _torchvision_corpus(name: str, root: Path, image_size: int) -> Corpus:
    parts = []
    classes: tuple[str, ...] = ()
    for train in (True, False):
        found = torchvision_set(name, root, train=train)
        pictures = resized(torch.from_numpy(found.data).permute(0, 3, 1, 2), image_size)
        parts.append(Pictures.of_tensor(pictures.contiguous(), torch.tensor(found.targets)))
        classes = tuple(found.classes)
    return Corpus(name, classes, *parts, *CIFAR100)


def _folder_corpus(root: Path, image_size: int) -> Corpus:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, and not a known set (shapes, digits, cifar100, cifar10)")
    train_root = root / "train"
    test_root = next((root / each for each in ("test", "val") if (root / each).is_dir()), None)
    if train_root.is_dir() and test_root is not None:
        train, test = class_folder(train_root), class_folder(test_root)
        if train.classes != test.classes:
            odd = sorted(set(train.classes) ^ set(test.classes))
            raise UserError(f"{root}: train and {test_root.name} have different classes ({', '.join(odd[:5])})")
        parts = [Pictures.of_files(each.samples, image_size) for each in (train, test)]
        return Corpus(root.name, tuple(train.classes), *parts, *IMAGENET)
    found = class_folder(root)
    names = [Path(path).relative_to(root).as_posix() for path, _ in found.samples]
    is_held = held_out([found.classes[label] for _, label in found.samples], names, 0.2)
    parts = [[sample for sample, held in zip(found.samples, is_held, strict=True) if held == side] for side in (0, 1)]
    return Corpus(root.name, tuple(found.classes), *(Pictures.of_files(each, image_size) for each in parts), *IMAGENET)


def read_square(path: str, side: int) -> UInt8[Tensor, "1 3 h w"]:
    """A picture of any format as 8-bit RGB of side x side.

    Raises:
        UserError: it cannot be read.
    """
    rgb = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None]
    return resized((rgb * 255).round().to(torch.uint8), side)


def zip_corpus(path: Path, image_size: int, per_class: int | None = None) -> Corpus:
    """A zip of train/CLASS/PICTURE and test/CLASS/PICTURE.

    Args:
        path: the zip.
        image_size: side that pictures are resized to.
        per_class: take so many training pictures of each class and a fifth as many test pictures; all when None.

    Raises:
        UserError: not a zip, without that layout, or with pictures that cannot be read.
    """
    with open_zip(path) as archive:
        members = _members_by_class(archive.names)
        classes = sorted({name for part, name in members if part == "train"})
        if not classes:
            raise UserError(f"{path}: holds no train/CLASS/PICTURE")
        parts = []
        for part, share in (("train", 1), ("test", 5)):
            limit = None if per_class is None else max(1, per_class // share)
            missing = [name for name in classes if (part, name) not in members]
            if missing:
                raise UserError(f"{path}: has no {part}/{missing[0]}")
            chosen = [(each, label) for label, name in enumerate(classes) for each in members[part, name][:limit]]
            pictures = [resized(_decode(archive.read(each), f"{path}: {each}"), image_size) for each, _ in chosen]
            parts.append(Pictures.of_tensor(torch.cat(pictures), torch.tensor([label for _, label in chosen])))
    return Corpus(path.stem, tuple(classes), *parts, *CIFAR100)


def _members_by_class(names: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Names of pictures by part (train or test) and class, in order."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in names:
        *_, part, name, _ = ("", "", *PurePosixPath(each).parts)
        if part:
            found.setdefault((part, name), []).append(each)
    return found


def _decode(content: bytes, name: str) -> UInt8[Tensor, "1 3 h w"]:
    """A picture in memory.

    Raises:
        UserError: cannot be read, or has more pixels than a picture should have.
    """
    try:
        with warnings.catch_warnings():
            # As for pictures from files: a large scan is no attack, and Pillow still refuses twice its limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                rgb = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{name}: not a picture, or of a format that Pillow does not know") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more pixels than a picture should have") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError) as error:
        # Pillow's decoders meet a damaged file with any of these.
        raise UserError(f"{name}: damaged or truncated ({error})") from None
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None]
