"""Images of a manifest as torch data sets (paper, "Evaluations": faces are resized to 256x256, bicubic, and not cropped).

Pixels stay 8-bit until they are on the device. A data set can be decoded once into memory or into a file that is mapped.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from fairfd.config import Augmentation
from fairfd.data.manifest.manifest import REAL, Manifest, Sample
from fairfd.data.transforms import augment_one, flip_where, paper_transform
from tenfold import UserError
from tenfold.files import atomic_path
from tenfold.images import read_image
from tenfold.reading import read_array
from tenfold.runs import track


def decode(path: Path, size: int) -> UInt8[Tensor, "3 size size"]:
    """Read a picture and resize it to a square.

    Args:
        path: the file.
        size: wanted height and width.

    Raises:
        ImageError: it cannot be read.
    """
    levels = np.rint(read_image(path) * 255).astype(np.uint8)
    return resize(torch.from_numpy(levels).permute(2, 0, 1), size)


def resize(levels: UInt8[Tensor, "c h w"], size: int) -> UInt8[Tensor, "c size size"]:
    """Bicubic without antialiasing, as OpenCV's INTER_CUBIC does (official code); the aspect ratio is not kept."""
    if levels.shape[-2:] == (size, size):
        return levels.contiguous()
    resized = F.interpolate(levels[None].float(), (size, size), mode="bicubic", align_corners=False, antialias=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


class FaceDataset(Dataset[UInt8[Tensor, "3 size size"]]):
    """Samples and their pixels; see `ManifestDataset` and `ArrayDataset`.

    Args:
        samples: one row per image.
        size: height and width of the images.

    Attributes:
        group_names: groups in the order of their indices.
        approach_names: approaches in the order of their indices, "real" first.
        labels: 0 real, 1 fake.
        groups: index of each sample's group.
        approaches: index of each sample's approach; 0 is real.
    """

    def __init__(self, samples: Sequence[Sample], size: int) -> None:
        if not samples:
            raise UserError("no image to work on: the manifest is empty")
        self.samples, self.size = tuple(samples), size
        self.group_names = tuple(sorted({sample.group for sample in samples}))
        fakes = sorted({sample.approach for sample in samples} - {REAL})
        self.approach_names = (REAL, *fakes)
        self.labels = torch.tensor([sample.label for sample in samples])
        self.groups = _indices((sample.group for sample in samples), self.group_names)
        self.approaches = _indices((sample.approach for sample in samples), self.approach_names)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 size size"]:
        return self.pixels([index])[0]

    def pixels(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 size size"]:
        """The images of some rows."""
        raise NotImplementedError

    def masks(self, rows: Sequence[int]) -> UInt8[Tensor, "b 1 size size"] | None:
        """255 where the images of some rows were manipulated, or None when the data has no masks."""
        del rows
        return None


def _indices(values: Iterable[str], names: Sequence[str]) -> Int[Tensor, " n"]:
    index = {name: number for number, name in enumerate(names)}
    return torch.tensor([index[value] for value in values])


class ManifestDataset(FaceDataset):
    """The images of a manifest, decoded when they are asked for.

    Args:
        manifest: the samples and their folder.
        size: height and width to which images are resized.
        augment: augmentation of `dataset[index]`, drawn from torch's generator. Training draws its own, by epoch and row.
    """

    def __init__(self, manifest: Manifest, size: int, augment: Augmentation = "none") -> None:
        super().__init__(manifest.samples, size)
        self.manifest, self.augment = manifest, augment

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 size size"]:
        image = self.pixels([index])
        if self.augment == "none":
            return image[0]
        seed = torch.randint(2**62, (1,))
        return augmented(image, None, seed, self.augment)[0][0]

    def pixels(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 size size"]:
        """Decode the images of some rows.

        Raises:
            ImageError: one cannot be read.
        """
        return torch.stack([decode(self.manifest.path(self.samples[row]), self.size) for row in rows])

    def masks(self, rows: Sequence[int]) -> UInt8[Tensor, "b 1 size size"] | None:
        """Decode the masks of some rows: an image without mask has none (real) or, if it is fake, makes the answer None."""
        found = []
        for row in rows:
            sample = self.samples[row]
            if not sample.mask and sample.label:
                return None
            if not sample.mask:
                found.append(torch.zeros(1, self.size, self.size, dtype=torch.uint8))
            else:
                found.append(decode(self.manifest.root / sample.mask, self.size)[:1])
        return torch.stack(found)

    def decoded(self, folder: Path | None = None, threads: int | None = None) -> "ArrayDataset":
        """The same data set with all images decoded once.

        Args:
            folder: where to keep them in a file that is mapped, and found again by a later run; None keeps them in memory.
            threads: that decode; None lets Python choose.

        Raises:
            ImageError: one cannot be read.
        """
        shape = (len(self), 3, self.size, self.size)
        if folder is None:
            images = np.empty(shape, np.uint8)
            self._decode_into(images, threads)
        else:
            path = folder / f"{self._fingerprint()}-{self.size}.npy"
            if not path.is_file():
                with atomic_path(path) as temporary:
                    file = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                    self._decode_into(file, threads)
                    file.flush()
            images = read_array(path, map_to_disk=True)
        masks = self.masks(range(len(self))) if any(sample.mask for sample in self.samples) else None
        return ArrayDataset(images, self.samples, masks)

    def _decode_into(self, images: UInt8[np.ndarray, "n 3 size size"], threads: int | None) -> None:
        def fill(row: int) -> None:
            images[row] = decode(self.manifest.path(self.samples[row]), self.size).numpy()

        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            for _ in track(pool.map(fill, range(len(self))), "decoding", total=len(self)):
                pass

    def _fingerprint(self) -> str:
        """Changes with the manifest, and with any file's size or time of change."""
        digest = hashlib.sha256(self.manifest.digest().encode())
        for sample in self.samples:
            path = self.manifest.path(sample)
            stat = path.stat() if path.is_file() else None
            digest.update(f"{stat.st_size}-{stat.st_mtime_ns}".encode() if stat else b"missing")
        return digest.hexdigest()[:16]


class ArrayDataset(FaceDataset):
    """Images that are in memory already, or in a mapped file.

    Args:
        images: RGB levels.
        samples: one for each image.
        masks: 255 where an image was manipulated, if known.
    """

    def __init__(
        self,
        images: UInt8[np.ndarray, "n 3 size size"] | UInt8[Tensor, "n 3 size size"],
        samples: Sequence[Sample],
        masks: UInt8[Tensor, "n 1 size size"] | None = None,
    ) -> None:
        if len(images) != len(samples):
            raise UserError(f"{len(images)} images for {len(samples)} samples; give one each")
        super().__init__(samples, images.shape[-1])
        self.images, self._masks = images, masks

    def pixels(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 size size"]:
        """The images of some rows."""
        chosen = self.images[list(rows)]
        # Advanced indexing copies: a mapped file is read here and nowhere else.
        return chosen if isinstance(chosen, Tensor) else torch.from_numpy(chosen)

    def masks(self, rows: Sequence[int]) -> UInt8[Tensor, "b 1 size size"] | None:
        """The masks of some rows."""
        return None if self._masks is None else self._masks[list(rows)]


def as_dataset(data: Manifest | FaceDataset, size: int) -> FaceDataset:
    """A manifest's images at `size` pixels; a data set as it is.

    Raises:
        UserError: a data set of another size.
    """
    if isinstance(data, Manifest):
        return ManifestDataset(data, size)
    if data.size != size:
        raise UserError(f"the images are {data.size}x{data.size}, the detector takes {size}x{size}")
    return data


def augmented(
    images: UInt8[Tensor, "b 3 size size"],
    masks: UInt8[Tensor, "b 1 size size"] | None,
    seeds: Int[Tensor, " b"],
    augment: Augmentation,
) -> tuple[UInt8[Tensor, "b 3 size size"], UInt8[Tensor, "b 1 size size"] | None]:
    """Augment a batch, each image by its own seed."""
    if augment == "none":
        return images, masks
    if augment == "flip":
        chosen = seeds % 2 == 1
        return flip_where(images, chosen), None if masks is None else flip_where(masks, chosen)
    transform = paper_transform()
    pairs = [
        augment_one(transform, images[row], None if masks is None else masks[row], seed)
        for row, seed in enumerate(seeds.tolist())
    ]
    if masks is None:
        return torch.stack([image for image, _ in pairs]), None
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs if mask is not None])
