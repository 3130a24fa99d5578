"""A learner as a folder: model.safetensors, moments.safetensors, learner.json."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tenfold import UserError
from tenfold.files import atomic_path, write_text
from vptnsp.backbones import fingerprint
from vptnsp.clip_head import ClassGaussians, ClipHead
from vptnsp.config import from_plain, to_plain
from vptnsp.moments import SecondMoments
from vptnsp.prompted_vit import PromptedViT, image_size, normalisation

if TYPE_CHECKING:
    from vptnsp.learner import NSPLearner

FORMAT = 1


def learner_tensors(learner: "NSPLearner") -> dict[str, Tensor]:
    """Prompts, heads and CLIP's scale, by name; the backbone stays where it came from."""
    tensors = {f"prompts.{name}": value for name, value in learner.vit.prompt_state_dict().items()}
    tensors |= {f"head.{name}": value.detach() for name, value in learner.head.state_dict().items()}
    return {name: value.contiguous().cpu() for name, value in tensors.items()}


def moment_tensors(learner: "NSPLearner") -> dict[str, Tensor]:
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


def description(learner: "NSPLearner") -> dict[str, Any]:
    """What learner.json says."""
    mean, std = normalisation(learner.vit)
    return {
        "format": FORMAT,
        "vptnsp": importlib.metadata.version("vptnsp"),
        "backbone": {
            "name": learner.vit.name,
            "fingerprint": fingerprint(learner.vit),
            "image_size": image_size(learner.vit),
            "mean": list(mean),
            "std": list(std),
            "dim": learner.vit.dim,
            "blocks": list(learner.vit.prompts()),
            "num_prompts": learner.vit.num_prompts,
        },
        "tasks": learner.tasks,
        "class_names": [learner.names[label] for label in learner.labels],
        "config": to_plain(learner.config),
    }


def save_learner(learner: "NSPLearner", folder: Path) -> None:
    """Write the folder; learner.json comes last, so that a folder without it is no learner."""
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(learner_tensors(learner), temporary)
    moments = moment_tensors(learner)
    if moments:
        with atomic_path(folder / "moments.safetensors") as temporary:
            save_file(moments, temporary)
    write_text(folder / "learner.json", json.dumps(description(learner), indent=2) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """Read learner.json.

    Raises:
        UserError: no learner there, or a damaged one.
    """
    path = folder / "learner.json"
    if not path.is_file():
        raise UserError(f"{folder}: no learner there (learner.json is missing)")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise UserError(f"{path}: format {found['format']}, this version reads {FORMAT}")
        found["backbone"]["fingerprint"], found["tasks"], found["class_names"], found["config"]  # are they there
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    return found


def load_learner(folder: Path, vit: PromptedViT | None, accelerator: Accelerator | None) -> "NSPLearner":
    """Read a learner's folder; see `NSPLearner.load`."""
    from vptnsp.learner import NSPLearner

    found = read_description(folder)
    config = from_plain(found["config"], str(folder / "learner.json"))
    learner = NSPLearner(vit, config, accelerator)
    _check_backbone(folder, found["backbone"], description(learner)["backbone"])
    restore(learner, read_tensors(folder / "model.safetensors"), found["tasks"], found["class_names"])
    if (folder / "moments.safetensors").is_file():
        restore_moments(learner, read_tensors(folder / "moments.safetensors"))
    return learner


def _check_backbone(folder: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key in ("name", "dim", "blocks", "num_prompts", "fingerprint"):
        if saved.get(key) != here[key]:
            raise UserError(f"{folder}: made for a backbone whose {key} is {saved.get(key)}, this one's is {here[key]}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors, turning a missing or damaged file into one line."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot read ({str(error).splitlines()[0]})") from None


def restore(
    learner: "NSPLearner", tensors: Mapping[str, Tensor], tasks: list[list[int]], class_names: list[str]
) -> None:
    """Put prompts and heads into a fresh learner.

    Raises:
        UserError: tensors that do not fit.
    """
    prompts = {name.removeprefix("prompts."): value for name, value in tensors.items() if name.startswith("prompts.")}
    head = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
    learner.vit.load_prompt_state_dict(prompts)
    first = 0
    for task in tasks:
        if isinstance(learner.head, ClipHead):
            learner.head.add_task(head["texts"][first : first + len(task)])
        else:
            learner.head.add_task(len(task))
        first += len(task)
    try:
        learner.head.load_state_dict(head)
    except RuntimeError as error:
        raise UserError(f"the heads do not fit the tasks ({str(error).splitlines()[0]})") from None
    learner.tasks = [list(task) for task in tasks]
    if len(class_names) != len(learner.labels):
        raise UserError(f"{len(class_names)} class names for {len(learner.labels)} classes")
    learner.names = dict(zip(learner.labels, class_names, strict=True))
    learner.network.to(learner.device)


def restore_moments(learner: "NSPLearner", tensors: Mapping[str, Tensor]) -> None:
    """Put second moments and class statistics into a learner."""
    place = torch.device("cpu") if learner.device.type == "mps" else learner.device
    moved = {name: value.to(place) for name, value in tensors.items()}
    if "num_samples" in moved:
        learner.moments = SecondMoments.from_state_dict(
            {name: value for name, value in moved.items() if not name.startswith("gaussian.")}
        )
    if "gaussian.means" in moved:
        learner.gaussians = ClassGaussians(moved["gaussian.means"], moved["gaussian.covariances"])
