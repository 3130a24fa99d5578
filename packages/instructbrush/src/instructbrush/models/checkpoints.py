"""The embedded base model on disk: a diffusers folder, with its CLIP beside it, in half precision."""

import copy
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from instructbrush.models.autoencoders import PatchAutoencoder
from instructbrush.models.networks import assemble, clip_processor
from tenfold.errors import UserError
from tenfold.files import atomic_folder
from tenfold.reading import CONFIG_LIMIT, read_json_object

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "clip")
KINDS = ("*.json", "*.txt", "diffusion_pytorch_model.safetensors", "model.safetensors")
FILES = ("model_index.json", *(f"{part}/{kind}" for part in PARTS for kind in KINDS))
"""What an editor consists of on the Hub; other files of its repository stay there."""


def network(cls: Any, folder: Path, **options: Any) -> Any:
    """A network with its weights, for evaluation.

    Args:
        cls: its class, of diffusers or transformers or with their interface.
        folder: holds `config.json` and safetensors.
        options: for its `from_pretrained`, such as the number format.

    Raises:
        UserError: damaged, of another kind, or without some of its weights.
    """
    read_json_object(folder / "config.json", CONFIG_LIMIT)
    found, info = _loaded(cls, folder, output_loading_info=True, use_safetensors=True, **options)
    absent = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
    if absent:
        raise UserError(f"{folder}: its weights do not fit {cls.__name__} ({absent[0]} is missing or of another shape)")
    if not all(value.isfinite().all() for value in found.state_dict().values()):
        raise UserError(f"{folder}: its weights are not all finite numbers")
    return found.eval().requires_grad_(False)


def preparation(cls: Any, folder: Path, config: str) -> Any:
    """What prepares inputs, or a scheduler: a part without weights.

    Args:
        cls: its class.
        folder: where it is.
        config: name of its configuration.

    Raises:
        UserError: missing or damaged.
    """
    read_json_object(folder / config, CONFIG_LIMIT)
    return _loaded(cls, folder)


def scheduler(folder: Path) -> Any:
    """The scheduler of an editor: one of diffusers' own.

    Raises:
        UserError: missing, damaged, or of a class that diffusers does not have.
    """
    path = folder / "scheduler_config.json"
    name = read_json_object(path, CONFIG_LIMIT).get("_class_name")
    if not isinstance(name, str) or not name.endswith("Scheduler") or not hasattr(diffusers, name):
        raise UserError(f"{path}: describes a {name!r}, expected a scheduler of diffusers")
    return preparation(getattr(diffusers, name), folder, path.name)


def _loaded(cls: Any, folder: Path, **options: Any) -> Any:
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # noqa: BLE001  # whatever a stranger's files make other people's loaders raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder}: cannot be read as a {cls.__name__} ({reason})") from None


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
        _unused(model.tokenizer).save_pretrained(temporary / "tokenizer")
        model.pipeline().scheduler.save_pretrained(temporary / "scheduler")
        clip_processor(model.side).save_pretrained(temporary / "clip")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def _unused(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """A copy as it was before its first call: a tokenizer writes down the padding of the last one, which no call needs."""
    fresh = copy.deepcopy(tokenizer)
    fresh.backend_tokenizer.no_truncation()
    fresh.backend_tokenizer.no_padding()
    return fresh


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
