"""The embedded base model on disk: a diffusers folder, with its CLIP beside it, in half precision."""

import copy
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from instructbrush.tiny.models import assemble, clip_processor
from instructbrush.tiny.patches import PatchAutoencoder
from tenfold.errors import UserError


@dataclass
class TinyModel:
    """Everything that is trained.

    Attributes:
        vae: patch autoencoder.
        text_encoder: text tower of `clip`.
        tokenizer: of the small vocabulary.
        unet: the editor, a `UNet2DConditionModel`.
        clip: for the initialisation and the metrics.
    """

    vae: PatchAutoencoder
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: Any
    clip: CLIPModel

    @property
    def side(self) -> int:
        """Of its pictures."""
        config: Any = self.clip.config
        return config.vision_config.image_size

    def pipeline(self) -> Any:
        """The editing pipeline."""
        return assemble(self.vae, self.text_encoder, self.tokenizer, self.unet)


def shipped_model() -> Path:
    """The folder of the model in the wheel."""
    return Path(str(resources.files("instructbrush") / "weights" / "tiny"))


def is_tiny(folder: Path) -> bool:
    """Whether a folder holds a model of this kind."""
    config = folder / "vae" / "config.json"
    return config.is_file() and "PatchAutoencoder" in config.read_text(encoding="utf-8", errors="replace")


def save_tiny(folder: Path, model: TinyModel) -> None:
    """Write a model; the folder appears when all of it is written."""
    temporary = folder.with_name(f".{folder.name}-writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot write here ({error.strerror})") from error
    # A pipeline without its own class of autoencoder: diffusers' loader knows only its own and transformers'.
    for name in ("unet", "text_encoder", "clip"):
        copy.deepcopy(getattr(model, name)).half().save_pretrained(temporary / name)
    model.vae.save_pretrained(temporary / "vae")
    model.tokenizer.save_pretrained(temporary / "tokenizer")
    model.pipeline().scheduler.save_pretrained(temporary / "scheduler")
    clip_processor(model.side).save_pretrained(temporary / "clip")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def load_tiny(folder: Path) -> tuple[TinyModel, CLIPImageProcessor]:
    """Read what `save_tiny` wrote, in float32.

    Raises:
        UserError: a part is missing or damaged.
    """
    for part in ("vae", "text_encoder", "tokenizer", "unet", "clip"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder}: not a whole model of this package ({part} is missing)")
    try:
        model = TinyModel(
            PatchAutoencoder.from_pretrained(folder / "vae"),
            CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32),
            CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32),
        )
        processor = CLIPImageProcessor.from_pretrained(folder / "clip")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: not a whole model of this package ({str(error).splitlines()[0]})") from None
    for part in (model.vae, model.text_encoder, model.unet, model.clip):
        part.eval().requires_grad_(False)
    return model, processor
