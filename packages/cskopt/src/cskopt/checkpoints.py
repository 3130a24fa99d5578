"""A learner in a folder: plain weights, what continual learning adds to them, and a description.

`model.safetensors` has the keys of the architecture with batch normalisation folded; `continual.safetensors` prototypes and covariances;
`cskopt.json` the method, the classes of each session and the architecture. Nothing is pickled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cskopt.configuration import CsKOConfig, Method
from cskopt.folding import fold_batch_norm
from cskopt.heads import grow_head, head_of
from cskopt.networks import build_model
from tenfold import UserError
from tenfold.files import atomic_path, write_text

WEIGHTS, CONTINUAL, DESCRIPTION = "model.safetensors", "continual.safetensors", "cskopt.json"


@dataclass(frozen=True)
class PictureFormat:
    """What a learner was trained on, so that it can be given pictures from files.

    Attributes:
        classes: names by class id; may name classes that have not been learnt yet.
        size: side in pixels that pictures are resized to.
        mean: subtracted from each channel, in [0, 1].
        std: each channel is divided by.
    """

    classes: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Description:
    """What `cskopt.json` holds.

    Attributes:
        architecture: a name for `build_model`, or None where the model was given as a module.
        head: name of the last layer.
        sessions: class ids of each session.
        seed: of the learner.
        method: the method and its settings.
        pictures: names, size and normalisation, where known.
    """

    architecture: str | None
    head: str
    sessions: list[list[int]]
    seed: int
    method: Method
    pictures: PictureFormat | None = None


@dataclass(frozen=True)
class Saved:
    """What is in a learner's folder.

    Attributes:
        description: see `Description`.
        weights: of the plain model.
        continual: tensors of each kind (prototypes, covariance, ...) by name.
    """

    description: Description
    weights: dict[str, Tensor]
    continual: dict[str, dict[str, Tensor]]


def write_folder(folder: Path, saved: Saved) -> None:
    """Write the three files, each whole or not at all, the description last.

    Raises:
        UserError: the folder cannot be written.
    """
    continual = {f"{kind}/{name}": each for kind, part in saved.continual.items() for name, each in part.items()}
    write_tensors(folder / WEIGHTS, saved.weights)
    write_tensors(folder / CONTINUAL, continual)
    write_text(folder / DESCRIPTION, json.dumps(asdict(saved.description), indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    with atomic_path(path) as temporary:
        # Clones: tensors that share memory cannot be written as they are.
        save_file({key: each.detach().cpu().contiguous().clone() for key, each in tensors.items()}, temporary)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: missing, or not such a file.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise UserError(f"{path}: cannot read ({reason})") from None


def read_folder(folder: Path) -> Saved:
    """Read what `write_folder` wrote.

    Raises:
        UserError: not such a folder, or damaged.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        method = _method_from(description.pop("method"))
        pictures = _picture_format(description.pop("pictures", None))
        described = Description(**description, method=method, pictures=pictures)
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{folder}: not a saved learner ({DESCRIPTION} cannot be read)") from None
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / DESCRIPTION}: damaged ({error})") from None
    continual: dict[str, dict[str, Tensor]] = {}
    for key, each in read_tensors(folder / CONTINUAL).items():
        kind, _, name = key.partition("/")
        continual.setdefault(kind, {})[name] = each
    return Saved(described, read_tensors(folder / WEIGHTS), continual)


def _picture_format(values: dict[str, Any] | None) -> PictureFormat | None:
    if values is None:
        return None
    mean, std = (tuple(map(float, values[key])) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise TypeError("mean and std must have three numbers")
    return PictureFormat(tuple(values["classes"]), int(values["size"]), mean, std)


def _method_from(values: dict[str, Any]) -> Method:
    config = values.pop("config")
    unknown = config.keys() - {each.name for each in fields(CsKOConfig)}
    if unknown:
        raise TypeError(f"unknown settings {', '.join(sorted(unknown))}")
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
    }
    return Method(config=CsKOConfig(**settings), **values)


def rebuild(saved: Saved, folder: Path, model: nn.Module | None = None) -> nn.Module:
    """The plain model of a saved learner.

    Args:
        saved: what was read.
        folder: for messages.
        model: of the architecture, unless it has a name; changed in place.

    Raises:
        UserError: no architecture, or weights of another one.
    """
    described = saved.description
    classes = sum(map(len, described.sessions))
    if model is None:
        if described.architecture is None:
            raise UserError(f"{folder}: was made from a model without a name; give model=, of the same architecture")
        model = build_model(described.architecture, classes)
    fold_batch_norm(model.eval())
    if head_of(model, described.head).out_features < classes:
        grow_head(model, described.head, classes)
    load_weights(model, saved.weights, folder / WEIGHTS)
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights that must fit exactly.

    Raises:
        UserError: keys or shapes differ; the message names the first.
    """
    own = model.state_dict()
    odd = sorted(key for key in own.keys() ^ weights.keys() if not key.endswith("num_batches_tracked"))
    odd += [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if odd:
        raise UserError(f"{source}: weights of another model ({len(odd)} tensors differ, first {odd[0]})")
    model.load_state_dict(dict(weights), strict=False)
