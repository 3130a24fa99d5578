"""Training crops: which picture, where and how flipped follows from (seed, index) alone.

So a run that is resumed, or shared by several processes, sees the crops of an uninterrupted run of one process.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from tenfold import UserError
from tenfold.files import write_text
from tenfold.images import list_images, read_image
from tenfold.reading import read_json


def training_pictures(folders: Sequence[Path], smallest: int) -> list[Path]:
    """The pictures below some folders whose sides are both at least `smallest`.

    Raises:
        UserError: a folder without pictures, or none that is large enough.
    """
    found = [path for folder in folders for path in list_images(folder)]
    kept, small = [], 0
    for path in found:
        large = min(_sides(path)) >= smallest
        kept += [path] if large else []
        small += not large
    if not kept:
        raise UserError(f"{folders[0]}: no picture has both sides of {smallest} pixels; lower --crop")
    if small:
        warnings.warn(f"{small} pictures are smaller than {smallest} pixels and are left out", stacklevel=2)
    return kept


def _sides(path: Path) -> tuple[int, int]:
    """Width and height, from the header alone where it can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size
    except Exception:  # noqa: BLE001  # whatever a damaged header makes Pillow raise: the reader names it
        height, width, _ = read_image(path).shape
        return width, height


FOLDERS = "training-folders.json"


def remember_folders(run: Path, folders: Sequence[Path]) -> None:
    """Note in a run folder what is trained on, for `refuse_overlap`."""
    write_text(run / FOLDERS, json.dumps([str(folder.resolve()) for folder in folders]) + "\n")


def refuse_overlap(run: Path, testing: Path) -> None:
    """Refuse to test a model on what it was trained on; a folder that is no run is not checked.

    Args:
        run: the run folder of the model.
        testing: the test set.

    Raises:
        UserError: a folder of the training pictures is, holds or lies in the test set.
    """
    if not (run / FOLDERS).is_file():
        return
    test, folders = testing.resolve(), read_json(run / FOLDERS)
    if not isinstance(folders, list) or not all(isinstance(each, str) for each in folders):
        raise UserError(f"{run / FOLDERS}: is damaged, expected a list of folders")
    for train in map(Path, folders):
        if train == test or train in test.parents or test in train.parents:
            raise UserError(f"{testing}: {run} was trained on it; test on other pictures")


def generator_of(*numbers: int) -> torch.Generator:
    """A generator whose stream is its own for each tuple of numbers."""
    mixed = 0
    for number in numbers:
        # The finaliser of splitmix64: neighbouring tuples get unrelated seeds.
        mixed = (mixed ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed >> 1)


class CropDraws(Dataset):
    """Random crops; item i is the i-th draw of an endless sequence.

    Args:
        paths: pictures, each at least `crop` pixels a side.
        crop: side of a crop.
        seed: of the draws.
        keep: keep decoded pictures in memory.
        cropping: `native` pixels, mirrored and turned; or `rescaled`, the largest square at a random place, brought to `crop`
            by averaging and mirrored (ResShift, SinSR, TAD-SR).
    """

    def __init__(
        self, paths: Sequence[Path], crop: int, seed: int, keep: bool, cropping: Literal["native", "rescaled"]
    ) -> None:
        self.paths, self.crop, self.seed, self.cropping = list(paths), crop, seed, cropping
        self.kept: dict[int, UInt8[Tensor, "h w 3"]] | None = {} if keep else None

    def picture(self, index: int) -> UInt8[Tensor, "h w 3"]:
        """Picture `index`, in 8 bits."""
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        decoded = torch.from_numpy((read_image(self.paths[index]) * 255).round().astype("uint8"))
        if self.kept is not None:
            self.kept[index] = decoded
        return decoded

    def __getitem__(self, index: int) -> Float[Tensor, "3 crop crop"]:
        generator = generator_of(self.seed, index)

        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        image = self.picture(below(len(self.paths)))
        height, width, _ = image.shape
        side = self.crop if self.cropping == "native" else min(height, width)
        top, left = below(height - side + 1), below(width - side + 1)
        piece = image[top : top + side, left : left + side]
        if self.cropping == "rescaled":
            square = piece.permute(2, 0, 1)[None].float() / 255
            (small,) = F.interpolate(square, (self.crop, self.crop), mode="area")
            return small.flip(2) if below(2) else small
        piece = piece.rot90(below(4)) if below(2) else piece.rot90(below(4)).flip(1)
        return piece.permute(2, 0, 1).float() / 255
