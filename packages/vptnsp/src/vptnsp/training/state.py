"""A learner as a folder: model.safetensors, moments.safetensors, learner.json."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors, write_tensors
from tenfold.config import from_dict
from tenfold.files import write_text
from tenfold.reading import read_json_object
from vptnsp.config import LearnerConfig, to_plain
from vptnsp.method.second_moments import SecondMoments
from vptnsp.models.backbones import fingerprint
from vptnsp.models.clip.heads import ClassGaussians, ClipHead
from vptnsp.models.compact import finite
from vptnsp.models.networks import PromptedViT, image_size, normalisation

FORMAT = 1
DESCRIPTION, WEIGHTS, MOMENTS = "learner.json", "model.safetensors", "moments.safetensors"


@dataclass(frozen=True)
class BackboneEntry:
    """What learner.json says of the backbone.

    Attributes:
        name: as a configuration names it.
        fingerprint: of its weights.
        image_size: side of its pictures.
        mean: of the channels.
        std: of the channels.
        dim: width of the features.
        blocks: those with prompts.
        num_prompts: per block.
    """

    name: str
    fingerprint: str
    image_size: int
    mean: list[float]
    std: list[float]
    dim: int
    blocks: list[str]
    num_prompts: int


@dataclass(frozen=True)
class LearnerEntry:
    """What learner.json says.

    Attributes:
        format: of the file.
        vptnsp: the version that wrote it.
        backbone: what the prompts were learnt on.
        tasks: labels of each task.
        class_names: of all labels, in that order.
        config: how it learns.
    """

    format: int
    vptnsp: str
    backbone: BackboneEntry
    tasks: list[list[int]]
    class_names: list[str]
    config: dict[str, Any]


@runtime_checkable
class Learner(Protocol):
    """What a folder holds of an `NSPLearner`; see its attributes."""

    vit: PromptedViT
    network: Any
    moments: SecondMoments | None
    gaussians: ClassGaussians | None
    tasks: list[list[int]]
    names: dict[int, str]
    config: LearnerConfig
    device: torch.device

    @property
    def head(self) -> Any:
        """Of all tasks."""
        ...

    @property
    def labels(self) -> list[int]:
        """Of all tasks, in order."""
        ...


def learner_tensors(learner: Learner) -> dict[str, Tensor]:
    """Prompts, heads and CLIP's scale, by name; the backbone stays where it came from."""
    tensors = {f"prompts.{name}": value for name, value in learner.vit.prompt_state_dict().items()}
    tensors |= {f"head.{name}": value.detach() for name, value in learner.head.state_dict().items()}
    return {name: value.contiguous().cpu() for name, value in tensors.items()}


def moment_tensors(learner: Learner) -> dict[str, Tensor]:
    """Second moments of all tasks so far, and CLIP's class statistics; empty where there are none."""
    tensors: dict[str, Tensor] = {}
    if learner.moments is not None:
        tensors |= learner.moments.state_dict()
    if learner.gaussians is not None:
        tensors |= {
            "gaussian.means": learner.gaussians.means,
            "gaussian.covariances": learner.gaussians.covariances,
        }
    return {name: value.contiguous().cpu() for name, value in tensors.items()}


def description(learner: Learner) -> LearnerEntry:
    """What learner.json says."""
    mean, std = normalisation(learner.vit)
    return LearnerEntry(
        format=FORMAT,
        vptnsp=importlib.metadata.version("vptnsp"),
        backbone=BackboneEntry(
            name=learner.vit.name,
            fingerprint=fingerprint(learner.vit),
            image_size=image_size(learner.vit),
            mean=list(mean),
            std=list(std),
            dim=learner.vit.dim,
            blocks=list(learner.vit.prompts()),
            num_prompts=learner.vit.num_prompts,
        ),
        tasks=learner.tasks,
        class_names=[learner.names[label] for label in learner.labels],
        config=to_plain(learner.config),
    )


def save_learner(learner: Learner, folder: Path) -> None:
    """Write the folder; learner.json comes last, so that a folder without it is no learner."""
    write_tensors(folder / WEIGHTS, learner_tensors(learner))
    moments = moment_tensors(learner)
    if moments:
        write_tensors(folder / MOMENTS, moments)
    write_text(folder / DESCRIPTION, json.dumps(asdict(description(learner)), indent=2) + "\n")


def read_description(folder: Path) -> LearnerEntry:
    """Read learner.json.

    Raises:
        UserError: no learner there, or a damaged one.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder}: no learner there ({DESCRIPTION} is missing)")
    found = read_json_object(path)
    if found.get("format") != FORMAT:
        raise UserError(f"{path}: format {found.get('format')}, this version reads {FORMAT}")
    entry = from_dict(found, LearnerEntry, str(path))
    labels = [label for task in entry.tasks for label in task]
    if len(set(labels)) < len(labels) or min(labels, default=0) < 0 or not all(entry.tasks):
        raise UserError(f"{path}: a label of the tasks is negative or named twice, or a task has none")
    if len(entry.class_names) != len(labels):
        raise UserError(f"{path}: {len(entry.class_names)} class names for {len(labels)} classes")
    return entry


def restore_from(folder: Path, found: LearnerEntry, learner: Learner) -> None:
    """Put what a folder holds into a fresh learner that was made with its configuration.

    Args:
        folder: written by `save_learner`.
        found: what its learner.json says.
        learner: takes it.

    Raises:
        UserError: files missing, damaged, or of another backbone.
    """
    _check_backbone(folder, found.backbone, description(learner).backbone)
    restore(learner, read_tensors(folder / WEIGHTS)[0], found.tasks, found.class_names, folder / WEIGHTS)
    if (folder / MOMENTS).is_file():
        restore_moments(learner, read_tensors(folder / MOMENTS)[0], folder / MOMENTS)


def _check_backbone(folder: Path, saved: BackboneEntry, here: BackboneEntry) -> None:
    for key in ("name", "dim", "blocks", "num_prompts", "fingerprint"):
        before, now = getattr(saved, key), getattr(here, key)
        if before != now:
            raise UserError(f"{folder}: made for a backbone whose {key} is {before}, this one's is {now}")


def restore(
    learner: Learner,
    tensors: Mapping[str, Tensor],
    tasks: list[list[int]],
    class_names: list[str],
    source: Path,
) -> None:
    """Put prompts and heads into a fresh learner.

    Args:
        learner: takes them.
        tensors: prompts and heads by name.
        tasks: labels of each task.
        class_names: of the labels.
        source: the file, for errors.

    Raises:
        UserError: tensors that do not fit.
    """
    prompts = {name.removeprefix("prompts."): value for name, value in tensors.items() if name.startswith("prompts.")}
    head = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
    try:
        learner.vit.load_prompt_state_dict(prompts)
        for task, texts in zip(tasks, texts_of(head, [len(task) for task in tasks]), strict=True):
            if isinstance(learner.head, ClipHead):
                learner.head.add_task(texts)
            else:
                learner.head.add_task(len(task))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    load_weights(learner.head, finite(head, source), source)
    learner.tasks = [list(task) for task in tasks]
    learner.names = dict(zip(learner.labels, class_names, strict=True))
    learner.network.to(learner.device)


def texts_of(head: Mapping[str, Tensor], sizes: list[int]) -> list[Tensor]:
    """Text features of each task's classes, from a saved CLIP head; without rows where the head is no CLIP head.

    Raises:
        UserError: another number of texts than of classes.
    """
    texts = head.get("texts")
    if texts is None:
        return [torch.empty(0, 0) for _ in sizes]
    if texts.ndim != 2 or len(texts) != sum(sizes):
        raise UserError(f"texts are {tuple(texts.shape)}, expected those of {sum(sizes)} classes")
    return list(texts.split(sizes))


def restore_moments(learner: Learner, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put second moments and class statistics into a learner.

    Raises:
        UserError: they do not fit it.
    """
    place = torch.device("cpu") if learner.device.type == "mps" else learner.device
    moved = {name: value.to(place) for name, value in finite(tensors, source).items()}
    if "num_samples" in moved:
        learner.moments = _fitting_moments(
            learner, {name: value for name, value in moved.items() if not name.startswith("gaussian.")}, source
        )
    if "gaussian.means" in moved:
        learner.gaussians = _fitting_gaussians(learner, moved, source)


def _fitting_moments(learner: Learner, tensors: Mapping[str, Tensor], source: Path) -> SecondMoments:
    try:
        moments = SecondMoments.from_state_dict(tensors)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    for name, prompt in learner.vit.prompts().items():
        count, width = prompt.shape
        for kind, side in (("C1", width), ("C2", count)):
            found = getattr(moments, kind).get(name)
            if found is None or found.shape != (side, side):
                shape = "missing" if found is None else tuple(found.shape)
                raise UserError(f"{source}: {kind}.{name} is {shape}, expected {(side, side)}")
    if moments.C1.keys() | moments.C2.keys() != learner.vit.prompts().keys():
        raise UserError(f"{source}: has second moments of blocks without prompts")
    return moments


def _fitting_gaussians(learner: Learner, tensors: Mapping[str, Tensor], source: Path) -> ClassGaussians:
    means, covariances = tensors["gaussian.means"], tensors.get("gaussian.covariances")
    classes, width = len(learner.labels), learner.vit.dim
    if covariances is None or means.shape != (classes, width) or covariances.shape != (classes, width, width):
        raise UserError(f"{source}: class statistics do not fit {classes} classes of {width} features")
    if torch.linalg.cholesky_ex(covariances).info.any():
        raise UserError(f"{source}: a class's covariance is not positive definite")
    return ClassGaussians(means, covariances)
