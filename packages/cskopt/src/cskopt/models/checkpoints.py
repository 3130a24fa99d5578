"""A learner in a folder: plain weights, what continual learning adds to them, and a description.

`model.safetensors` has the keys of the architecture with batch normalisation folded; `continual.safetensors` prototypes and covariances;
`cskopt.json` the method, the classes of each session and the architecture. Nothing is pickled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cskopt.config import CsKOConfig, Method, Tap, check_side
from cskopt.models.folding import fold_batch_norm
from cskopt.models.heads import grow_head, head_of
from cskopt.models.networks import build_model
from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors, write_tensors
from tenfold.config import from_dict
from tenfold.files import write_text
from tenfold.options import Count, Positive, Seed, check_fields
from tenfold.reading import read_json_object

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
    size: Count
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]

    def __post_init__(self) -> None:
        check_fields(self)
        check_side("size", self.size)


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
    seed: Seed
    method: Method
    pictures: PictureFormat | None = None

    @property
    def classes_seen(self) -> int:
        """Classes of all sessions."""
        return sum(map(len, self.sessions))


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
        WriteError: the folder cannot be written, or the disk is full.
    """
    continual = {f"{kind}/{name}": each for kind, part in saved.continual.items() for name, each in part.items()}
    write_tensors(folder / WEIGHTS, apart(saved.weights))
    write_tensors(folder / CONTINUAL, apart(continual))
    write_text(folder / DESCRIPTION, json.dumps(asdict(saved.description), indent=2) + "\n")


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory: a file holds tied weights twice, or not at all."""
    return {name: each.detach().cpu().clone() for name, each in tensors.items()}


def read_folder(folder: Path) -> Saved:
    """Read what `write_folder` wrote.

    Raises:
        UserError: not such a folder, or damaged.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder}: not a saved learner ({DESCRIPTION} is missing)")
    described = read_description(read_json_object(path), path)
    continual: dict[str, dict[str, Tensor]] = {}
    for key, each in read_tensors(folder / CONTINUAL)[0].items():
        if not torch.isfinite(each).all():
            raise UserError(f"{folder / CONTINUAL}: {key} holds NaN or infinite values")
        kind, _, name = key.partition("/")
        continual.setdefault(kind, {})[name] = each
    return Saved(described, read_tensors(folder / WEIGHTS)[0], continual)


@dataclass(frozen=True)
class _MethodEntry:
    """`Method` as JSON has it: settings are checked by themselves."""

    summary: str
    config: dict[str, Any]
    penalty: Literal["none", "ewc", "lwf"] = "none"
    trains: bool = True


@dataclass(frozen=True)
class _Entry:
    """`Description` as JSON has it."""

    architecture: str | None
    head: str
    sessions: list[list[int]]
    seed: Seed
    method: dict[str, Any]
    pictures: PictureFormat | None = None


def read_description(values: dict[str, Any], source: Path) -> Description:
    """What the content of `cskopt.json` says, checked.

    Args:
        values: as read.
        source: the file, for errors.

    Raises:
        UserError: a key is missing, unknown, of another type or out of range; class ids that have a gap; too few names.
    """
    entry = from_dict(values, _Entry, str(source))
    method = from_dict(entry.method, _MethodEntry, f"{source}: method")
    described = Description(
        entry.architecture,
        entry.head,
        entry.sessions,
        entry.seed,
        Method(method.summary, _settings(method.config, f"{source}: settings"), method.penalty, method.trains),
        entry.pictures,
    )
    ids = [each for session in described.sessions for each in session]
    if ids != list(range(len(ids))):
        raise UserError(f"{source}: class ids of the sessions must count up from 0 without a gap")
    if described.pictures is not None and len(described.pictures.classes) < len(ids):
        raise UserError(f"{source}: names {len(described.pictures.classes)} classes, but {len(ids)} were learnt")
    return described


_WORDS_OR_LISTS = ("layers", "tap")
"""Settings that take words or lists, which the reader of plain values cannot tell apart."""

_PlainSettings = make_dataclass(
    "_PlainSettings",
    [
        (each.name, each.type, field(default=each.default))
        for each in fields(CsKOConfig)
        if each.name not in _WORDS_OR_LISTS
    ],
    frozen=True,
)


def _settings(values: dict[str, Any], source: str) -> CsKOConfig:
    plain = {key: value for key, value in values.items() if key not in _WORDS_OR_LISTS}
    changes: dict[str, Any] = dict(vars(from_dict(plain, _PlainSettings, source)))
    if "layers" in values:
        changes["layers"] = _layers(values["layers"], source)
    if "tap" in values:
        changes["tap"] = _tap(values["tap"], source)
    try:
        return CsKOConfig(**changes)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _layers(value: Any, source: str) -> str | int | tuple[str, ...]:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise UserError(f"{source}: layers must be a word, a number or a list of names")


def _tap(value: Any, source: str) -> Tap:
    if value in ("center", "all"):
        return value
    if isinstance(value, list) and len(value) == 2 and all(type(each) is int and each >= 0 for each in value):
        return value[0], value[1]
    raise UserError(f"{source}: tap must be center, all, or a row and a column")


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
    if model is None:
        if described.architecture is None:
            raise UserError(f"{folder}: was made from a model without a name; give model=, of the same architecture")
        try:
            model = build_model(described.architecture, described.classes_seen)
        except UserError as error:
            raise UserError(f"{folder / DESCRIPTION}: architecture {described.architecture!r} ({error})") from None
    fold_batch_norm(model.eval())
    if head_of(model, described.head).out_features < described.classes_seen:
        grow_head(model, described.head, described.classes_seen)
    load_network(model, saved.weights, folder / WEIGHTS)
    return model


def load_network(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights that must fit exactly; the counters of batch normalisation, which nothing is computed from, may lack or be left over.

    Raises:
        UserError: names or shapes differ, or values that are not finite; the message names the first.
    """
    for name, each in weights.items():
        if not torch.isfinite(each).all():
            raise UserError(f"{source}: {name} holds NaN or infinite values")
    own = {name: each for name, each in model.state_dict().items() if name.endswith("num_batches_tracked")}
    given = {name: each for name, each in weights.items() if not name.endswith("num_batches_tracked") or name in own}
    load_weights(model, own | given, source)
