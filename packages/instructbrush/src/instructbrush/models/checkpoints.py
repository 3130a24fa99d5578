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

from instructbrush.models.autoencoders import PatchAutoencoder
from instructbrush.models.components import network, preparation
from instructbrush.models.networks import assemble, clip_processor
from tenfold.errors import UserError
from tenfold.files import atomic_folder
from tenfold.reading import CONFIG_LIMIT, read_json_object


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
    return config.is_file() and read_json_object(config, CONFIG_LIMIT).get("_class_name") == "PatchAutoencoder"


def save_tiny(folder: Path, model: TinyModel) -> None:
    """Write a model; the one that is there stays until all of it is written."""
    fresh = folder.with_name(f"{folder.name}-next")
    shutil.rmtree(fresh, ignore_errors=True)
    with atomic_folder(fresh) as temporary:
        # Not a whole pipeline: its autoencoder is of no class of diffusers'.
        for name in ("unet", "text_encoder", "clip"):
            copy.deepcopy(getattr(model, name)).half().save_pretrained(temporary / name)
        model.vae.save_pretrained(temporary / "vae")
        model.tokenizer.save_pretrained(temporary / "tokenizer")
        model.pipeline().scheduler.save_pretrained(temporary / "scheduler")
        clip_processor(model.side).save_pretrained(temporary / "clip")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def load_tiny(folder: Path) -> tuple[TinyModel, CLIPImageProcessor]:
    """Read what `save_tiny` wrote, in float32.

    Raises:
        UserError: a part is missing or damaged.
    """
    for part in ("vae", "text_encoder", "tokenizer", "unet", "clip"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder}: not a whole model of this package ({part} is missing)")
    model = TinyModel(
        network(PatchAutoencoder, folder / "vae"),
        network(CLIPTextModel, folder / "text_encoder", dtype=torch.float32),
        preparation(CLIPTokenizer, folder / "tokenizer", "tokenizer_config.json"),
        network(UNet2DConditionModel, folder / "unet", torch_dtype=torch.float32),
        network(CLIPModel, folder / "clip", dtype=torch.float32),
    )
    return model, preparation(CLIPImageProcessor, folder / "clip", "preprocessor_config.json")
