"""Face parsing: what a parser is, and the two that need files: a SegFormer, and label maps computed elsewhere."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from asmattack.data.regions import BISENET_TO_CANONICAL
from tenfold import UserError
from tenfold.hub import model_folder
from tenfold.images import read_picture
from tenfold.reading import read_array


@runtime_checkable
class Parser(Protocol):
    """From faces to label maps of the nineteen canonical classes."""

    def __call__(
        self,
        images: Float[Tensor, "b 3 h w"],
        landmarks: Float[Tensor, "b 5 2"] | None = None,
        names: Sequence[str] | None = None,
    ) -> Int64[Tensor, "b h w"]:
        """Label maps at the size of the images.

        Args:
            images: pixels in [0, 1].
            landmarks: left eye, right eye, nose tip, left and right mouth corner (x, y in pixels).
            names: of the image files.
        """
        ...


def check_label_maps(labels: Tensor, images: Tensor) -> Int64[Tensor, "b h w"]:
    """The label maps of a parser, if that is what they are.

    Raises:
        UserError: another shape than the images', or classes outside 0 to 18.
    """
    if labels.shape != (len(images), *images.shape[-2:]):
        raise UserError(f"label maps {tuple(labels.shape)} do not fit images {tuple(images.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 18:
        raise UserError(f"label maps hold classes from {low} to {high}; face parsing has 0 to 18")
    if low == high:
        warnings.warn(
            f"the parser sees nothing but class {low}: is the face aligned? The geometric parser expects aligned square crops",
            stacklevel=2,
        )
    return labels


class SegformerParser:
    """Nineteen-class parsing with `SegformerForSemanticSegmentation`; classes are taken by index.

    The names in the configuration are never used: copies from before January 2024 carry wrong ones, with a `.png` suffix.

    Args:
        model: hub id or local folder.
        revision: branch, tag or commit of the hub model; the commit that is used is printed.

    Raises:
        UserError: transformers is missing, or there is no such model in the cache, on disk or on the hub.
    """

    def __init__(self, model: str | Path = "jonathandinu/face-parsing", revision: str | None = None) -> None:
        try:
            from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor
        except ImportError:
            raise UserError("SegformerParser needs transformers: pip install 'asmattack[hub]'") from None
        try:
            folder = str(model_folder(model, revision))
            network: Any = SegformerForSemanticSegmentation.from_pretrained(
                folder, use_safetensors=True, local_files_only=True
            )
            processor: Any = SegformerImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # noqa: BLE001  # whatever a stranger's configuration makes transformers raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise UserError(
                f"no SegFormer at {model} ({reason}): the geometric parser needs no weights, masks:FOLDER reads label maps"
                " that you have"
            ) from None
        self.network: Any = network.eval()
        if self.network.config.num_labels != 19:
            raise UserError(f"{model} has {self.network.config.num_labels} classes, face parsing has 19")
        names: dict[int, str] = self.network.config.id2label
        if any(str(name).endswith(".png") for name in names.values()):
            warnings.warn(
                f"{model}: its label names are the wrong ones of an old copy; classes are taken by index", stacklevel=2
            )
        self.size = (processor.size["height"], processor.size["width"])
        self.mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
        self.std = torch.tensor(processor.image_std).view(1, 3, 1, 1)

    @torch.no_grad()
    def __call__(
        self,
        images: Float[Tensor, "b 3 h w"],
        landmarks: Float[Tensor, "b 5 2"] | None = None,  # noqa: ARG002  # not needed
        names: Sequence[str] | None = None,  # noqa: ARG002
    ) -> Int64[Tensor, "b h w"]:
        """Label maps at the size of the images (pixels in [0, 1])."""
        resized = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        self.network.to(images.device)
        logits = self.network((resized - self.mean.to(images)) / self.std.to(images)).logits
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


Order = Literal["canonical", "bisenet", "celebamask"]
"""Of the classes in label files. `celebamask` is the order of the CelebAMask-HQ dictionary, which is the canonical one."""


class PrecomputedParser:
    """Label maps from files: one 8-bit PNG with values 0 to 18, or .npy, for each image, matched by the name without suffix.

    Args:
        folder: where they are.
        order: of their classes.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, folder: str | Path, order: Order = "canonical") -> None:
        self.folder, self.order = Path(folder), order
        if not self.folder.is_dir():
            raise UserError(f"{folder}: no such folder of label maps")

    def __call__(
        self,
        images: Float[Tensor, "b 3 h w"],
        landmarks: Float[Tensor, "b 5 2"] | None = None,  # noqa: ARG002  # not needed
        names: Sequence[str] | None = None,
    ) -> Int64[Tensor, "b h w"]:
        """Read and resize (nearest) the map of each name.

        Raises:
            UserError: no names, or a name without a map.
        """
        if names is None:
            raise UserError("label maps are found by the names of the images, and none were given")
        return torch.stack([self._of(name, (images.shape[-2], images.shape[-1])) for name in names]).to(images.device)

    def _of(self, name: str, size: tuple[int, int]) -> Tensor:
        below, stem = Path(name).with_suffix(""), Path(name).stem
        for place in (below, Path(stem)):
            for suffix in (".png", ".npy"):
                if (path := self.folder / f"{place}{suffix}").is_file():
                    return resized_labels(reorder(read_label_map(path), self.order), size)
        raise UserError(f"{self.folder}: no label map {below}.png or {stem}.png (or .npy)")


def read_label_map(path: Path) -> Int64[Tensor, "h w"]:
    """A label map as it is in the file.

    Raises:
        UserError: damaged, not single-channel, or classes outside 0 to 18.
    """
    values = read_array(path) if path.suffix == ".npy" else _read_levels(path)
    if values.ndim != 2 or values.size == 0 or not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{path}: a label map has one channel of whole numbers, this is {values.shape} {values.dtype}")
    if values.min() < 0 or values.max() > 18:
        raise UserError(f"{path}: classes from {values.min()} to {values.max()}; face parsing has 0 to 18")
    return torch.from_numpy(values.astype(np.int64))


def _read_levels(path: Path) -> np.ndarray:
    """The levels of a picture as they are stored: of a palette the indices.

    Raises:
        ImageError: not a picture, or damaged.
    """
    read_picture(path)  # refuses what is damaged or enormous
    with Image.open(path) as image:
        return np.asarray(image)


def reorder(labels: Int64[Tensor, "h w"], order: Order) -> Int64[Tensor, "h w"]:
    """Classes of another order as canonical ones."""
    return torch.tensor(BISENET_TO_CANONICAL)[labels] if order == "bisenet" else labels


def resized_labels(labels: Int64[Tensor, "h w"], size: tuple[int, int]) -> Int64[Tensor, "i j"]:
    """Nearest-neighbour resize."""
    if tuple(labels.shape) == size:
        return labels
    return F.interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0].long()
