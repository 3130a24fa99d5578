"""Before/after pictures: reading them, pairing them, making them square, refusing what cannot be learnt from."""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from instructbrush.config import Fit
from tenfold.data import pair_files
from tenfold.errors import UserError
from tenfold.folders import FolderReport, work_on_files
from tenfold.images import list_images, read_picture

MEMBER = re.compile(r"(.+)_([01])$")


def squared(rgb: Float[np.ndarray, "h w 3"], size: int, fit: Fit) -> Float[Tensor, "3 {size} {size}"]:
    """A square picture: the centre of the longer side, or everything stretched; Lanczos.

    Args:
        rgb: in [0, 1].
        size: side of the result.
        fit: `crop` or `stretch`.
    """
    height, width = rgb.shape[:2]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        rgb = rgb[top : top + side, left : left + side]
    if rgb.shape[:2] == (size, size):
        return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).contiguous()
    eight_bit = Image.fromarray((rgb * 255).round().astype(np.uint8))
    resized = np.asarray(eight_bit.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def rgb_of(image: Image.Image) -> Float[np.ndarray, "h w 3"]:
    """A PIL picture as `read_rgb` would read it.

    Raises:
        UserError: smaller than 8 pixels.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    if min(upright.size) < 8:
        raise UserError(f"{upright.width} x {upright.height} pixels; a picture needs at least 8 a side")
    return np.asarray(upright.convert("RGB"), dtype=np.float32) / 255


def read_rgb(path: Path) -> Float[np.ndarray, "h w 3"]:
    """A picture upright, in colour, transparency over white.

    Raises:
        UserError: unreadable, or smaller than 8 pixels.
    """
    picture = read_picture(path)
    rgb = (
        picture.rgb
        if picture.alpha is None
        else picture.rgb * picture.alpha[..., None] + (1 - picture.alpha[..., None])
    )
    if min(rgb.shape[:2]) < 8:
        raise UserError(f"{path}: {rgb.shape[1]} x {rgb.shape[0]} pixels; a picture needs at least 8 a side")
    return rgb.astype(np.float32)


@dataclass(frozen=True)
class PairSet:
    """Before/after pictures of one edit.

    Attributes:
        ids: a name for each pair.
        before: in [0, 1].
        after: in [0, 1], of the same places.
    """

    ids: tuple[str, ...]
    before: Float[Tensor, "k 3 s s"]
    after: Float[Tensor, "k 3 s s"]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_files(cls, files: Sequence[tuple[Path, Path]], size: int = 512, fit: Fit = "crop") -> "PairSet":
        """Read pairs of files.

        Raises:
            UserError: no pair, an unreadable picture, or two that differ in size; the file is named.
        """
        if not files:
            raise UserError("no pairs of pictures")
        ids, befores, afters = [], [], []
        for first, second in files:
            before, after = read_rgb(first), read_rgb(second)
            if before.shape != after.shape:
                sizes = " and ".join(f"{each.shape[1]} x {each.shape[0]}" for each in (before, after))
                raise UserError(f"{second}: differs in size from {first} ({sizes}); a pair shows the same place")
            ids.append(MEMBER.sub(r"\1", first.stem))
            befores.append(squared(before, size, fit))
            afters.append(squared(after, size, fit))
        return cls(tuple(ids), torch.stack(befores), torch.stack(afters))

    @classmethod
    def from_folder(
        cls, path: str | os.PathLike[str], size: int = 512, fit: Fit = "crop", split: str | None = None
    ) -> "PairSet":
        """Read a folder of pairs: `NAME_0.png` and `NAME_1.png`, or `before/` and `after/`.

        Args:
            path: the folder.
            size: side that pictures are brought to.
            fit: how.
            split: a folder below it, such as `train`.
        """
        return cls.from_files(folder_pairs(Path(path) / split if split else Path(path)), size, fit)

    @classmethod
    def from_lists(
        cls, befores: Sequence[Image.Image], afters: Sequence[Image.Image], size: int = 512, fit: Fit = "crop"
    ) -> "PairSet":
        """Pairs of PIL pictures.

        Raises:
            UserError: the lists differ in length or are empty, or the pictures of a pair differ in size.
        """
        if len(befores) != len(afters) or not befores:
            raise UserError(
                f"{len(befores)} pictures before and {len(afters)} after: need as many of each, at least one"
            )
        arrays = [[rgb_of(each) for each in images] for images in (befores, afters)]
        for index, (before, after) in enumerate(zip(*arrays, strict=True)):
            if before.shape != after.shape:
                raise UserError(f"pair {index}: before and after differ in size; a pair shows the same place")
        sides = [torch.stack([squared(each, size, fit) for each in images]) for images in arrays]
        return cls(tuple(f"{index:02d}" for index in range(len(befores))), *sides)

    def validate(self) -> None:
        """Warn about pairs that are hard to learn from.

        Raises:
            UserError: before and after are the same in all pairs.
        """
        error = (self.before - self.after).square().mean((1, 2, 3))
        same = [name for name, each in zip(self.ids, error.tolist(), strict=True) if each < 1e-7]
        if len(same) == len(self):
            raise UserError("before and after are the same in every pair: there is no edit to learn")
        if same:
            warnings.warn(f"before and after are the same in {', '.join(same[:5])}", stacklevel=2)
        if -10 * float(error.mean().log10()) < 8:
            warnings.warn("before and after differ almost everywhere: are the pairs aligned?", stacklevel=2)
        if len(self) < 3:
            warnings.warn(f"only {len(self)} pairs: fewer tokens (--tokens 4) over-fit less", stacklevel=2)


def folder_pairs(root: Path) -> list[tuple[Path, Path]]:
    """The pairs of a folder in natural order.

    Raises:
        UserError: no pictures, or one without its partner.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    if (root / "before").is_dir() and (root / "after").is_dir():
        return pair_files(root / "before", root / "after")
    if (root / "train").is_dir() and (root / "test").is_dir():
        raise UserError(f"{root}: holds train/ and test/; name one of them")
    members: dict[str, dict[str, Path]] = {}
    for path in list_images(root):
        match = MEMBER.match(path.relative_to(root).with_suffix("").as_posix())
        if match is None:
            raise UserError(f"{path}: pairs are NAME_0 and NAME_1, or folders before/ and after/")
        members.setdefault(match[1], {})[match[2]] = path
    for name, pair in members.items():
        if len(pair) < 2:
            raise UserError(
                f"{root / name}_{'01'[int('0' in pair)]}: the partner of {next(iter(pair.values())).name} is missing"
            )
    return [(pair["0"], pair["1"]) for pair in members.values()]


def named_pairs(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs from what was typed: one folder of pairs, two folders matched by name, or files, first all before and then all after.

    Raises:
        UserError: none of these.
    """
    if len(paths) == 1:
        return folder_pairs(paths[0])
    if len(paths) == 2 and all(each.is_dir() for each in paths):
        return pair_files(paths[0], paths[1])
    if not paths or len(paths) % 2:
        raise UserError(
            f"{len(paths)} pictures: name a folder of pairs, two folders, or as many pictures before as after"
        )
    half = len(paths) // 2
    return list(zip(paths[:half], paths[half:], strict=True))


def readable_pairs(
    files: Sequence[tuple[Path, Path]], size: int, fit: Fit = "crop"
) -> tuple[PairSet, FolderReport[PairSet]]:
    """Those of some pairs that can be read, and a report of those that cannot.

    Args:
        files: first and second picture of each.
        size: side that pictures are brought to.
        fit: how.

    Raises:
        UserError: none can be read.
    """
    seconds = dict(files)
    report = work_on_files(
        seconds, lambda first: PairSet.from_files([(first, seconds[first])], size, fit), alone=len(seconds) == 1
    )
    found = list(report.results.values())
    sides = [torch.cat([getattr(each, side) for each in found]) for side in ("before", "after")]
    return PairSet(tuple(name for each in found for name in each.ids), *sides), report
