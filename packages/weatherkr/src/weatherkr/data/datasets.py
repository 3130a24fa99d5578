"""Pairs of a degraded and a clean picture: from folders, or made on the fly from clean photographs. Whole, or cut into patches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from tenfold.data import to_tensor
from tenfold.errors import UserError
from tenfold.random import keyed_generator
from weatherkr.data.transforms import to_bytes
from weatherkr.data.weather import degrade
from weatherkr.data.weather.config import Setting

SMALLEST = 16
"""Pictures with a shorter side cannot be learnt from: the contrast loss's network halves them four times."""

Pair = tuple[Tensor, Tensor]


@runtime_checkable
class PairSet(Protocol):
    """Where a task's pictures come from."""

    def __len__(self) -> int:
        """How many pairs."""
        ...

    def pair(self, index: int) -> Pair:
        """A whole pair (degraded, clean), each (3, h, w) in [0, 1]; the same each time."""
        ...

    def patch(self, index: int, size: int, random: Generator, flip: bool) -> Pair:
        """A random patch of a pair."""
        ...

    def first(self, count: int) -> "PairSet":
        """The set reduced to at most `count` pairs, spread evenly over it."""
        ...


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices, spread evenly over `total`."""
    return [index * total // min(count, total) for index in range(min(count, total))]


def reflect_to(image: Float[Tensor, "c h w"], size: int) -> Float[Tensor, "c h2 w2"]:
    """Grow a picture to at least `size` a side by reflection, again and again where one does not reach."""
    while min(image.shape[-2:]) < size:
        height, width = image.shape[-2:]
        right, bottom = min(max(size - width, 0), width - 1), min(max(size - height, 0), height - 1)
        image = F.pad(image[None], (0, right, 0, bottom), mode="reflect")[0]
    return image


def random_patch(stacked: Float[Tensor, "c h w"], size: int, random: Generator, flip: bool) -> Float[Tensor, "c s s"]:
    """The same random window of all channels, mirrored left to right half of the time where `flip` says so."""
    stacked = reflect_to(stacked, size)
    height, width = stacked.shape[-2:]
    top = int(torch.randint(height - size + 1, (), generator=random))
    left = int(torch.randint(width - size + 1, (), generator=random))
    mirrored = bool(torch.rand((), generator=random) < 0.5)
    window = stacked[:, top : top + size, left : left + size]
    return window.flip(2) if flip and mirrored else window


def _checked(image: Tensor, path: Path) -> Tensor:
    if min(image.shape[-2:]) < SMALLEST:
        raise UserError(f"{path}: {image.shape[-1]} x {image.shape[-2]} pixels; at least {SMALLEST} a side are needed")
    return image


class _Decoded:
    """Decoded pictures, kept as bytes after the first reading."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.kept: dict[Path, Tensor] = {}

    def __call__(self, path: Path) -> Float[Tensor, "3 h w"]:
        if path in self.kept:
            return self.kept[path].float() / 255
        image = _checked(to_tensor(path), path)
        if self.keep:
            self.kept[path] = to_bytes(image)
            return self.kept[path].float() / 255
        return image


def centre_crop(image: Float[Tensor, "c h w"], height: int, width: int) -> Float[Tensor, "c h2 w2"]:
    """The middle of a picture; the clean RESIDE pictures are a little larger than the hazy ones."""
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width]


class FolderPairs:
    """Pairs of files.

    Args:
        files: degraded and clean.
        fit: `crop`: where one is larger, its middle is taken; `exact`: that is an error.
        keep: keep decoded pictures in memory.
    """

    def __init__(
        self, files: Sequence[tuple[Path, Path]], fit: Literal["exact", "crop"] = "exact", keep: bool = False
    ) -> None:
        if not files:
            raise UserError("a task needs at least one pair of pictures")
        self.files, self.fit = list(files), fit
        self.read = _Decoded(keep)

    def __len__(self) -> int:
        return len(self.files)

    def pair(self, index: int) -> Pair:
        """The whole pair."""
        source, target = self.files[index]
        degraded, clean = self.read(source), self.read(target)
        if degraded.shape != clean.shape:
            if self.fit == "exact":
                sizes = " and ".join(f"{each.shape[-1]} x {each.shape[-2]}" for each in (degraded, clean))
                raise UserError(
                    f"{source} and {target}: differ in size ({sizes}); --fit-crop takes the middle of the larger"
                )
            height, width = (min(a, b) for a, b in zip(degraded.shape[-2:], clean.shape[-2:], strict=True))
            degraded, clean = centre_crop(degraded, height, width), centre_crop(clean, height, width)
        return degraded, clean

    def patch(self, index: int, size: int, random: Generator, flip: bool) -> Pair:
        """The same window of both."""
        window = random_patch(torch.cat(self.pair(index)), size, random, flip)
        return window[:3], window[3:]

    def first(self, count: int) -> "FolderPairs":
        """At most `count` pairs."""
        reduced = FolderPairs([self.files[index] for index in spread(len(self), count)], self.fit)
        reduced.read = self.read
        return reduced


class SyntheticPairs:
    """Clean photographs with weather made on the fly: new weather in every patch, always the same on a whole picture.

    Args:
        files: clean photographs.
        kind: of weather.
        setting: of the generator.
        seed: of the weather on whole pictures.
        keep: keep decoded pictures in memory.
    """

    def __init__(
        self, files: Sequence[Path], kind: str, setting: Setting = "standard", seed: int = 0, keep: bool = True
    ) -> None:
        if not files:
            raise UserError("a task needs at least one picture")
        self.files, self.kind, self.setting, self.seed = list(files), kind, setting, seed
        self.read = _Decoded(keep)

    def __len__(self) -> int:
        return len(self.files)

    def pair(self, index: int) -> Pair:
        """A whole picture with its weather."""
        clean = self.read(self.files[index])
        # Keyed by the file's name: a picture keeps its weather in whatever selection it appears.
        return degrade(
            clean, self.kind, keyed_generator(self.seed, self.kind, self.files[index].name), self.setting
        ), clean

    def patch(self, index: int, size: int, random: Generator, flip: bool) -> Pair:
        """A window of the picture with weather of its own."""
        clean = random_patch(self.read(self.files[index]), size, random, flip)
        return degrade(clean, self.kind, random, self.setting), clean

    def first(self, count: int) -> "SyntheticPairs":
        """At most `count` pictures."""
        chosen = [self.files[index] for index in spread(len(self), count)]
        reduced = SyntheticPairs(chosen, self.kind, self.setting, self.seed)
        reduced.read = self.read
        return reduced


class TensorPairs:
    """Pairs that are in memory already.

    Args:
        degraded: in [0, 1].
        clean: in [0, 1].
    """

    def __init__(self, degraded: Float[Tensor, "n 3 h w"], clean: Float[Tensor, "n 3 h w"]) -> None:
        if degraded.shape != clean.shape or not len(degraded):
            raise UserError(f"degraded {tuple(degraded.shape)} and clean {tuple(clean.shape)} are not pairs")
        self.degraded, self.clean = degraded, clean

    def __len__(self) -> int:
        return len(self.clean)

    def pair(self, index: int) -> Pair:
        """The whole pair."""
        return self.degraded[index], self.clean[index]

    def patch(self, index: int, size: int, random: Generator, flip: bool) -> Pair:
        """The same window of both."""
        window = random_patch(torch.cat(self.pair(index)), size, random, flip)
        return window[:3], window[3:]

    def first(self, count: int) -> "TensorPairs":
        """At most `count` pairs."""
        chosen = spread(len(self), count)
        return TensorPairs(self.degraded[chosen], self.clean[chosen])


class MixedPairs:
    """Several sets as one, each with an equal share: what joint training learns from.

    Args:
        sets: of one task each.
    """

    def __init__(self, sets: Sequence[PairSet]) -> None:
        self.sets = list(sets)

    def __len__(self) -> int:
        return len(self.sets) * max(len(each) for each in self.sets)

    def _find(self, index: int) -> tuple[PairSet, int]:
        chosen = self.sets[index % len(self.sets)]
        return chosen, index // len(self.sets) % len(chosen)

    def pair(self, index: int) -> Pair:
        """The whole pair."""
        chosen, place = self._find(index)
        return chosen.pair(place)

    def patch(self, index: int, size: int, random: Generator, flip: bool) -> Pair:
        """A patch of the pair."""
        chosen, place = self._find(index)
        return chosen.patch(place, size, random, flip)

    def first(self, count: int) -> "MixedPairs":
        """At most about `count` pairs, as many of each set."""
        return MixedPairs([each.first(max(count // len(self.sets), 1)) for each in self.sets])
