"""Pictures and sets to learn from: embedded ones, folders, pairs of folders, torchvision's."""

import hashlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from tenfold.errors import UserError
from tenfold.images import IMAGE_SUFFIXES, list_images, read_image

_EMBEDDED = {
    "skimage/data": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "ihc.png",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}


def embedded_pictures() -> dict[str, Path]:
    """Colour photographs that scikit-image and scikit-learn ship in their wheels, by name: no network, no download.

    Returns:
        Name to file, in alphabetical order: astronaut, chelsea, china, coffee, flower, ihc, motorcycle_left, retina, rocket.
    """
    found = {}
    for folder, names in _EMBEDDED.items():
        package, *rest = folder.split("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(f"{package} is not installed; it carries the embedded pictures")
        root = Path(spec.origin).parent.joinpath(*rest)
        found |= {name.split(".")[0]: root / name for name in names}
    return dict(sorted(found.items()))


def to_tensor(path: str | os.PathLike[str]) -> Float[Tensor, "3 h w"]:
    """Read a picture as a float32 tensor in [0, 1], channels first."""
    return torch.from_numpy(read_image(path)).permute(2, 0, 1).contiguous()


class PictureFolder(Dataset):
    """The pictures below a folder, without labels.

    Args:
        root: a folder (or one picture).
        transform: applied to each (3, h, w) tensor in [0, 1].
    """

    def __init__(self, root: str | os.PathLike[str], transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.paths = list_images(root)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = to_tensor(self.paths[index])
        return self.transform(image) if self.transform else image


def pair_files(inputs: str | os.PathLike[str], targets: str | os.PathLike[str]) -> list[tuple[Path, Path]]:
    """Match the pictures of two folders by their path below it, suffix aside.

    Raises:
        UserError: a picture without its partner, or two with one name; the message names the first few.
    """
    by_name = [_by_stem(Path(inputs)), _by_stem(Path(targets))]
    lonely = sorted(by_name[0].keys() ^ by_name[1].keys())
    if lonely:
        raise UserError(
            f"{inputs} and {targets}: {len(lonely)} pictures have no partner of the same name: {', '.join(lonely[:5])}"
        )
    return [(path, by_name[1][name]) for name, path in by_name[0].items()]


def _by_stem(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(root):
        name = path.relative_to(root).with_suffix("").as_posix() if root.is_dir() else path.stem
        if name in found:
            raise UserError(f"{path}: same name as {found[name]}; pairs are matched by name")
        found[name] = path
    return found


class PairedFolder(Dataset):
    """Two folders whose pictures belong together by name: degraded and clean, before and after.

    Args:
        inputs: the first folder.
        targets: the second folder.
        transform: applied to both tensors of a pair at once.
    """

    def __init__(
        self,
        inputs: str | os.PathLike[str],
        targets: str | os.PathLike[str],
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.pairs = pair_files(inputs, targets)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        source, target = (to_tensor(path) for path in self.pairs[index])
        return self.transform(source, target) if self.transform else (source, target)


def class_folder(root: str | os.PathLike[str], transform: Callable[[Tensor], Any] | None = None) -> Any:
    """A `torchvision.datasets.ImageFolder` (one folder per class) that reads with `tenfold.images`, every format that it reads.

    Raises:
        UserError: no such folder, or no class folder with pictures in it.
    """
    from torchvision.datasets import ImageFolder

    if not Path(root).is_dir():
        raise UserError(f"{root}: no such folder")
    try:
        return ImageFolder(str(root), transform=transform, loader=to_tensor, is_valid_file=_is_picture)
    except FileNotFoundError as error:
        raise UserError(
            f"{root}: expected one folder per class with pictures in each ({str(error).splitlines()[0]})"
        ) from None


def _is_picture(path: str) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES and not Path(path).name.startswith(".")


def held_out(classes: Sequence[str], names: Sequence[str], share: float) -> Bool[np.ndarray, " n"]:
    """Which pictures are kept for testing, each decided by its own name: the same on every machine, whatever else is in the folder.

    A picture that is added or taken away moves no other one across, but for a class that would be left without a picture on one
    side: there the picture nearest to the other side moves.

    Args:
        classes: of each picture.
        names: of each picture, such as its path below the folder; equal ones fall on the same side.
        share: of the pictures that are kept, about; in (0, 1).

    Raises:
        UserError: a class with a single picture.
    """
    labels, keys = np.asarray(classes), np.array([_fraction(name) for name in names])
    held = keys < share
    for each in dict.fromkeys(classes):
        mine = np.flatnonzero(labels == each)
        if len(np.unique(keys[mine])) < 2:
            raise UserError(f"class {each}: {len(mine)} picture; at least two are needed to keep one for testing")
        if not held[mine].any():
            held[mine] = keys[mine] == keys[mine].min()
        if held[mine].all():
            held[mine] = keys[mine] < keys[mine].max()
    return held


def _fraction(name: str) -> float:
    """A number in [0, 1) that the name alone decides."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) / 2**64


def torchvision_set(
    name: str, root: str | os.PathLike[str], *, train: bool, download: bool = False, **options: Any
) -> Any:
    """One of torchvision's data sets by name, from disk unless a download is asked for.

    Args:
        name: as torchvision spells it, any case: `cifar100`, `svhn`, `fashionmnist`.
        root: where its files are.
        train: the training part or the test part (sets that call their parts `split` get `train` or `test`).
        download: fetch the files when they are missing.
        options: handed to torchvision, such as `transform`.

    Raises:
        UserError: an unknown name, or files that are not there.
    """
    from torchvision import datasets

    known = {each.lower(): getattr(datasets, each) for each in datasets.__all__}
    if name.lower() not in known:
        raise UserError(f"{name}: torchvision has no such set; it has {', '.join(sorted(known))}")
    maker = known[name.lower()]
    parameters = inspect.signature(maker).parameters
    if "train" in parameters:
        options["train"] = train
    elif "split" in parameters:
        options.setdefault("split", "train" if train else "test")
    if "download" in parameters:
        options["download"] = download
    try:
        return maker(root=str(root), **options)
    except (RuntimeError, FileNotFoundError) as error:
        raise UserError(f"{root}: {maker.__name__} is not there ({str(error).splitlines()[0]})") from None
