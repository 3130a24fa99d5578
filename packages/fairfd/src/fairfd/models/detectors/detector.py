"""What all detectors share: the input convention, the output, the loss contract, saving and loading (paper, "Experimental setup").

A detector takes float RGB images in [0, 1] and normalises them to [-1, 1] itself, so that nobody can normalise twice or
not at all. Its two logits are (real, fake); softmax(logits)[1] is P(fake).
"""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int
from safetensors.torch import save_model
from torch import Tensor, nn

from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors
from tenfold.files import atomic_path, write_text

BatchLayout = Literal["single", "two_views", "real_fake_pairs"]
"""How the rows of a training batch are ordered.

`single`: one row per image. `two_views`: all first views, then all second views in the same order. `real_fake_pairs`: all
reals, then as many fakes.
"""


@dataclass(frozen=True)
class DetectorOutput:
    """What a detector says about a batch.

    Attributes:
        logits: scores of (real, fake) before the softmax.
        features: the vector that the classifier reads.
        aux: a dataclass of whatever else the method computes (mask, reconstruction), or None.
    """

    logits: Float[Tensor, "b 2"]
    features: Float[Tensor, "b d"]
    aux: Any = None


@dataclass(frozen=True)
class TrainBatch:
    """One training batch; the order of rows is the detector's `batch_layout`.

    Attributes:
        images: RGB in [0, 1].
        labels: 0 real, 1 fake.
        groups: index of the sensitive group.
        approaches: 0 real, 1.. the forgery approach.
        ids: names of the images, for error messages.
        masks: 1 where an image was manipulated, or None when the data has no masks.
    """

    images: Float[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]
    groups: Int[Tensor, " b"]
    approaches: Int[Tensor, " b"]
    ids: tuple[str, ...] = ()
    masks: Float[Tensor, "b 1 h w"] | None = None

    def to(self, device: torch.device) -> "TrainBatch":
        """The same batch with its tensors on `device`."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


def to_signed(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """[0, 1] to [-1, 1]: (x - 0.5) / 0.5 (paper, "Experimental setup")."""
    return images * 2 - 1


def at_least_float32(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The tensor in float32, or as it is where it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_float32(classifier: nn.Module, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
    """Class scores in float32 also under autocast: bfloat16 scores would tie, and ties move rates and AUC."""
    with torch.autocast(features.device.type, enabled=False):
        return classifier(at_least_float32(features))


class Detector(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="fairfd",
    pipeline_tag="image-classification",
    paper_url="https://arxiv.org/abs/2407.14367",
    tags=["face-forgery-detection"],
):
    """Base of all detectors. A subclass sets `name` and writes `detect`; it writes `training_loss` when that is not plain CE.

    Args:
        in_size: height and width of the input.

    Attributes:
        name: registry name; saved with the weights.
        backbone: timm's or torchvision's name of the pretrained backbone, if there is one.
        batch_layout: how `training_loss` wants its rows ordered.
        uses_masks: whether `training_loss` reads the batch's masks.
    """

    name: ClassVar[str] = ""
    backbone: str = ""
    batch_layout: ClassVar[BatchLayout] = "single"
    uses_masks: bool = False

    def __init__(self, in_size: int = 256) -> None:
        super().__init__()
        if not 16 <= in_size <= 8192:
            raise UserError(f"in_size {in_size}: a detector needs images of 16 to 8192 pixels")
        self.in_size = in_size

    @property
    def full_name(self) -> str:
        """The name with which `create_detector` makes this detector."""
        return self.name

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images.

        Args:
            images: float RGB in [0, 1], `in_size` pixels wide and high.

        Raises:
            UserError: images of another size.
        """
        if images.shape[-2:] != (self.in_size, self.in_size):
            height, width = images.shape[-2:]
            raise UserError(f"{self.name}: images are {height}x{width}; resize them to {self.in_size}x{self.in_size}")
        return self.detect(to_signed(images))

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images that are already normalised to [-1, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def predict_proba(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """P(fake) of images in [0, 1], in evaluation mode and without gradient; the mode is put back afterwards."""
        training = self.training
        self.eval()
        try:
            return self(images).logits.float().softmax(1)[:, 1]
        finally:
            self.train(training)

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of one batch and its parts by name, for the log."""
        loss = F.cross_entropy(self(batch.images).logits.float(), batch.labels)
        return loss, {"ce": loss.item()}

    def prepare_for(self, group_counts: Int[Tensor, " g"], num_approaches: int) -> None:
        """Look at the training data before the first batch; refuse what the heads cannot hold.

        Args:
            group_counts: training images of each sensitive group.
            num_approaches: forgery approaches in the data, the real row not counted.

        Raises:
            UserError: more groups or approaches than the detector was built for.
        """

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start from ImageNet weights of the backbone; see `fairfd.detectors.pretrained.read_backbone`.

        Raises:
            UserError: weights of another network, or a detector without a pretrained backbone.
        """
        raise UserError(
            f"{self.name}: has no backbone to initialise; leave pretrained unset ({len(state)} tensors given)"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, each whole or not at all: `save_pretrained` without a model card.

        Args:
            folder: made where it is missing.

        Raises:
            WriteError: it cannot be written.
        """
        config = {"detector": self.name, **(dict(self._hub_mixin_config or {}))}  # ty: ignore[no-matching-overload]  # a plain dict here
        write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        with atomic_path(folder / "model.safetensors") as temporary:
            save_model(self, str(temporary))

    def load(self, weights: Path) -> None:
        """Read the weights that `save` wrote.

        Raises:
            UserError: the file cannot be read, or holds another detector's weights.
        """
        tensors, own = read_tensors(weights)[0], self.state_dict()
        # Of tensors that share their memory one is stored: it stands for the others.
        stored = {each.data_ptr(): tensors[name] for name, each in own.items() if name in tensors}
        shared = {name: stored[each.data_ptr()] for name, each in own.items() if each.data_ptr() in stored}
        load_weights(self, shared | tensors, weights)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **kwargs: Any
    ) -> "Detector":
        folder = Path(model_id)
        if not folder.is_dir():
            return super()._from_pretrained(model_id=model_id, map_location=map_location, strict=strict, **kwargs)
        for option in ("revision", "cache_dir", "force_download", "local_files_only", "token"):
            kwargs.pop(option, None)
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"{folder}: holds no model.safetensors; name a folder made by save_pretrained")
        model = cls(**kwargs)
        model.load(weights)
        return model.to(map_location).eval()
