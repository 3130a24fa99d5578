"""Labelled pictures in memory: scikit-learn's digits, torchvision's sets, folders."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from tenfold import UserError
from tenfold.data import class_folder, to_tensor, torchvision_set
from tenfold.images import list_images
from twinsight.config import FederationConfig
from twinsight.data.transforms import Padding, StrongView, ViewMaker, WeakView


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with labels.

    Attributes:
        images: RGB.
        labels: in 0..C-1; -1 where unknown.
        classes: their names.
    """

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int[Tensor, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Int[Tensor, " k"]) -> "Pictures":
        """The pictures at `indices`."""
        return Pictures(self.images[indices], self.labels[indices], self.classes)


@dataclass(frozen=True)
class Description:
    """What a set needs to be trained on.

    Attributes:
        mean: per channel, of pictures in [0, 1].
        std: likewise.
        pad: how far weak views may move.
        flip: whether a mirrored picture is the same class.
        strong: the strong view that `auto` stands for.
        weak: the weak view.
        padding: what is around a picture that moves.
        channels: of the networks' input.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    pad: int = 4
    flip: bool = True
    strong: StrongView = "randaugment"
    weak: WeakView = "shift"
    padding: Padding = "reflect"
    channels: int = 3


ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
OURS = {
    "digits": Description((0.3, 0.3, 0.3), (0.35, 0.35, 0.35), pad=1, flip=False, strong="geometric"),
    "cifar10": Description((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Description((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Description((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), strong="weak"),
    "fashionmnist": Description((0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530), strong="weak"),
    "folder": Description(),
}
OFFICIAL = OURS | {
    name: replace(OURS[name], strong="official", padding="zero") for name in ("cifar10", "cifar100", "folder")
}
OFFICIAL |= {
    "svhn": Description(ZERO, ONE, strong="weak", weak="resized-crop"),
    "fashionmnist": Description(ZERO, ONE, strong="weak", padding="zero", channels=1),
}
"""The views and normalisations of the official code (loader.py). It knows no digits, and no folders: they get CIFAR's views."""


def description(config: FederationConfig) -> Description:
    """What the set of a configuration needs to be trained on."""
    return (OFFICIAL if config.views == "official" else OURS)[config.data]


def view_maker(config: FederationConfig) -> ViewMaker:
    """How a configuration makes its two views."""
    about = description(config)
    strong = about.strong if config.strong_view == "auto" else config.strong_view
    operations, magnitude = config.randaugment_operations, config.randaugment_magnitude
    return ViewMaker(about.pad, about.flip, strong, operations, magnitude, about.weak, about.padding)


@lru_cache(maxsize=4)
def load(config: FederationConfig) -> tuple[Pictures, Pictures]:
    """The training and the test pictures of a configuration.

    Raises:
        UserError: files that are missing or damaged, classes that differ between the two.
    """
    if config.data == "digits":
        return _digits()
    if config.data == "folder":
        assert config.root is not None
        return _folders(config.root, config.image_size)
    if config.root is None:
        raise UserError(f"--data {config.data} needs --root, where torchvision's files are")
    return _torchvision(config, True), _torchvision(config, False)


def _digits() -> tuple[Pictures, Pictures]:
    """scikit-learn's 1,797 digits enlarged to 16 x 16; the last 400 are for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]
    large = F.interpolate(grey, size=(16, 16), mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels, names = torch.from_numpy(digits.target), tuple(str(digit) for digit in range(10))
    return Pictures(images[:-400], labels[:-400], names), Pictures(images[-400:], labels[-400:], names)


def _torchvision(config: FederationConfig, train: bool) -> Pictures:
    assert config.root is not None
    source = torchvision_set(config.data, config.root, train=train, download=config.download)
    pixels = torch.as_tensor(np.asarray(source.data))
    if pixels.ndim == 3:
        pixels = pixels[:, None].expand(-1, 3, -1, -1)
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.shape[-1] != 32:
        pixels = (
            F.interpolate(pixels.float(), size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
        )
    labels = torch.as_tensor(np.asarray(source.labels if hasattr(source, "labels") else source.targets)).long()
    names = tuple(getattr(source, "classes", [str(index) for index in range(int(labels.max()) + 1)]))
    return Pictures(pixels.contiguous(), labels, names)


def read_pictures(paths: list[Path], size: int) -> UInt8[Tensor, "n 3 h w"]:
    """Read pictures of any kind and bring them to one size."""
    from tenfold.runs import track

    return torch.stack([_read(path, size) for path in track(paths, "read")])


def _read(path: Path, size: int) -> UInt8[Tensor, "3 h w"]:
    image = to_tensor(path)[None]
    resized = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return (resized.clamp(0, 1) * 255).round().to(torch.uint8)


def labelled_folder(root: Path, size: int) -> Pictures:
    """Pictures of a folder with one folder per class."""
    folder = class_folder(root)
    paths = [Path(path) for path, _ in folder.samples]
    return Pictures(read_pictures(paths, size), torch.tensor(folder.targets), tuple(folder.classes))


def unlabelled_folder(root: Path, size: int, classes: tuple[str, ...]) -> Pictures:
    """Pictures below a folder, of unknown class."""
    paths = list_images(root)
    return Pictures(read_pictures(paths, size), torch.full((len(paths),), -1), classes)


def _folders(root: Path, size: int) -> tuple[Pictures, Pictures]:
    if (root / "train").is_dir() and (root / "test").is_dir():
        train, test = labelled_folder(root / "train", size), labelled_folder(root / "test", size)
        if train.classes != test.classes:
            raise UserError(f"{root}: train/ and test/ hold different classes")
        return train, test
    whole = labelled_folder(root, size)
    held_out = torch.arange(len(whole)) % 5 == 0
    return whole.subset((~held_out).nonzero()[:, 0]), whole.subset(held_out.nonzero()[:, 0])
