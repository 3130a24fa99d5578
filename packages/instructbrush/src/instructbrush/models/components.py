"""Parts of a model folder that a stranger made, each by a class that is named here: nothing is imported that a file names.

Configurations must be JSON objects, and weights safetensors that fill their network: a loader that makes up what is missing would
edit with noise.
"""

from pathlib import Path
from typing import Any

import diffusers

from tenfold.errors import UserError
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
