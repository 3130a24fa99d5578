"""Pipelines on disk. A stranger's is read with classes from a fixed list, arguments by type, weights by name and shape.

diffusers' own loader imports whatever module `model_index.json` names and fills up missing weights at random; this one does neither.
"""

import inspect
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import diffusers
from accelerate import init_empty_weights
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn

from tadsr.config import LONGEST_CHAIN
from tadsr.models.autoencoders import FaceVQModel, IdentityAutoencoder, PixelUnshuffleAutoencoder
from tadsr.models.compact import CompactDenoiser
from tadsr.models.diffusion import ResShiftScheduler
from tadsr.models.networks import ResShiftUNet
from tadsr.models.registry import Autoencoder, Network, latent_factor
from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors
from tenfold.files import write_text
from tenfold.reading import CONFIG_LIMIT, read_json_object

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = (
    INDEX,
    "scheduler/*.json",
    *(f"{part}/{name}" for part in ("unet", "vae") for name in ("config.json", WEIGHTS)),
)
"""What a pipeline consists of on disk and on the Hub."""
NETWORKS: dict[str, Any] = {each.__name__: each for each in (CompactDenoiser, ResShiftUNet)}
AUTOENCODERS: dict[str, Any] = {
    each.__name__: each for each in (PixelUnshuffleAutoencoder, IdentityAutoencoder, FaceVQModel, VQModel)
}
SCHEDULERS: dict[str, Any] = {ResShiftScheduler.__name__: ResShiftScheduler}
Module = TypeVar("Module", bound=nn.Module)
LARGEST = 2**16
"""No size, scale or count in a configuration is above this."""


@runtime_checkable
class PipelineParts(Protocol):
    """What training takes from a pipeline: its parts, and its configuration with the scale."""

    unet: Network
    vae: Autoencoder
    scheduler: ResShiftScheduler
    config: Any


def save_pipeline(
    folder: Path, unet: Network, vae: Autoencoder, scheduler: ResShiftScheduler, scale: int, steps: int
) -> None:
    """Write the parts of a pipeline as `TADSRPipeline.load` and diffusers read them.

    Args:
        folder: made where it is not there.
        unet: the network.
        vae: the autoencoder.
        scheduler: the chain.
        scale: how many times larger results are.
        steps: network calls by default; 0 is the whole chain.
    """
    parts = {"scheduler": scheduler, "unet": unet, "vae": vae}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    write_index(folder, parts, scale, steps)


def write_index(folder: Path, parts: Mapping[str, Any], scale: int, steps: int) -> None:
    """Name the parts by class and package: a module within the package may move, a saved model must not notice."""
    places = {name: [type(part).__module__.split(".")[0], type(part).__name__] for name, part in parts.items()}
    index = {"_class_name": "TADSRPipeline", "_diffusers_version": diffusers.__version__, **places}
    write_text(folder / INDEX, json.dumps(index | {"scale": scale, "steps": steps}, indent=2) + "\n")


def read_pipeline(folder: Path) -> dict[str, Any]:
    """The arguments of `TADSRPipeline` from a folder of `save_pretrained`.

    Raises:
        UserError: a part is missing, damaged, of an unknown class, has arguments of other types, or weights that do not fit.
    """
    index = read_json_object(folder / INDEX, CONFIG_LIMIT)
    if index.get("_class_name") != "TADSRPipeline":
        raise UserError(f"{folder / INDEX}: describes no tadsr model")
    numbers = {}
    for name, least, most in (("scale", 1, 16), ("steps", 0, LONGEST_CHAIN)):
        value = index.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"{folder / INDEX}: {name} is {value!r}, expected a whole number from {least} to {most}")
        numbers[name] = value
    scheduler = _build(folder / "scheduler" / "scheduler_config.json", SCHEDULERS)
    if numbers["steps"] > scheduler.last + 1:
        raise UserError(f"{folder / INDEX}: steps is {numbers['steps']}, its chain has {scheduler.last + 1}")
    unet: Network = _with_weights(folder / "unet", NETWORKS)
    vae: Autoencoder = _with_weights(folder / "vae", AUTOENCODERS)
    _check_fit(folder, unet.config, vae, numbers["scale"])
    return {"unet": unet, "vae": vae, "scheduler": scheduler, **numbers}


def _check_fit(folder: Path, unet: Any, vae: Autoencoder, scale: int) -> None:
    """Refuse a network that cannot work on an autoencoder's latents, or not at this scale."""
    latents = getattr(vae, "latent_channels", None) or vae.config["latent_channels"]
    wanted = unet.get("latent_channels", unet.get("in_channels"))
    shrunk = max(1, unet.get("lq_size", 1) // unet.get("image_size", 1))
    factor, colours = (
        latent_factor(vae),
        {unet["lq_channels"], vae.config.get("channels", 3), vae.config.get("in_channels", 3)},
    )
    if latents != wanted or factor != scale * shrunk or factor != unet.get("factor", factor) or colours != {3}:
        raise UserError(
            f"{folder}: its network, its autoencoder and a scale of {scale} do not go together "
            f"({wanted} and {latents} channels, latents {factor} times smaller)"
        )


def _with_weights(folder: Path, known: dict[str, Any]) -> Any:
    """A network of a list, with the weights beside its configuration."""
    tensors, _ = read_tensors(folder / WEIGHTS)
    if not all(value.isfinite().all() for value in tensors.values()):
        raise UserError(f"{folder / WEIGHTS}: holds numbers that are NaN or infinite")
    return filled(lambda: _build(folder / "config.json", known), tensors, folder / WEIGHTS)


def filled(build: Callable[[], Module], tensors: Mapping[str, Tensor], source: str | Path) -> Module:
    """A network with given weights, in float32 and for evaluation.

    It is built without storage, so that one of absurd sizes costs nothing, and the tensors become its weights.

    Args:
        build: makes the network.
        tensors: by name.
        source: the file, for errors.

    Raises:
        UserError: names or shapes are not exactly the network's.
    """
    with init_empty_weights(include_buffers=False):
        module = build()
    tensors = {name: value.float() for name, value in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no-op.*")  # nothing is copied here: names and shapes are compared
        load_weights(module, tensors, source)
    module.load_state_dict(tensors, assign=True)
    return module.eval()


def _build(path: Path, known: dict[str, Any]) -> Any:
    """An object of a list from its configuration."""
    config = read_json_object(path, CONFIG_LIMIT)
    name = config.get("_class_name")
    cls = known.get(name) if isinstance(name, str) else None
    if cls is None:
        raise UserError(f"{path}: describes a {name!r}, expected one of {', '.join(known)}")
    parameters = inspect.signature(cls.__init__).parameters
    for key, value in config.items():
        if key in parameters and not _is_like(value, parameters[key].default):
            raise UserError(f"{path}: {key} is {value!r}, expected something like {parameters[key].default!r}")
    try:
        return cls.from_config(config)
    except Exception as error:  # noqa: BLE001  # whatever sizes that do not go together make a constructor raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: describes no {name} that can be built ({reason})") from None


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value of a configuration is of its default's kind, and no absurd number."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, tuple | list):
        return isinstance(value, list) and len(value) <= 64 and all(_is_like(each, default[0]) for each in value)
    if default is None or isinstance(default, int | float):
        absent = value is None and default is None
        least = 0 if default == 0 else math.ulp(0.0)  # a size that is positive by default is positive
        return absent or (isinstance(value, int | float) and math.isfinite(value) and least <= value <= LARGEST)
    return isinstance(value, str) and isinstance(default, str)
