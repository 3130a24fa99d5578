"""A saved learner at work: naming pictures, testing itself on a folder, learning one task more."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tenfold import UserError
from tenfold.folders import FolderReport, work_on_files
from tenfold.images import list_images
from tenfold.runs import track
from vptnsp.data.datasets import FromFiles, LabelledPictures, TaskPictures, read_folder
from vptnsp.data.transforms import evaluation_transform, training_transform
from vptnsp.evaluation.protocols import count_correct
from vptnsp.models.backbones import CLIP_PREFIX, class_texts
from vptnsp.models.networks import image_size, normalisation
from vptnsp.training.learner import NSPLearner


@dataclass(frozen=True)
class Prediction:
    """What a learner says about a picture.

    Attributes:
        file: the picture.
        name: of the class, among all that were learnt.
        confidence: softmax of the raw logits.
    """

    file: str
    name: str
    confidence: float


def _evaluation(learner: NSPLearner) -> Any:
    return evaluation_transform(image_size(learner.vit), *normalisation(learner.vit), learner.config.evaluation)


@torch.no_grad()
def predict_pictures(learner: NSPLearner, place: Path) -> FolderReport[Prediction]:
    """Name every picture below a folder, or one picture; those of a folder that cannot be read are passed over and noted.

    Raises:
        UserError: no picture there, not one that can be read, or a learner that has learnt nothing.
    """
    if not learner.tasks:
        raise UserError("the learner has learnt nothing yet")
    transform, size = _evaluation(learner), learner.config.moment_batch_size
    named: dict[Path, Prediction] = {}
    waiting: dict[Path, Tensor] = {}

    def name_waiting() -> None:
        if waiting:
            best = learner.logits(torch.stack(list(waiting.values()))).softmax(1).cpu().max(1)
            for path, confidence, column in zip(waiting, best.values.tolist(), best.indices.tolist(), strict=True):
                named[path] = Prediction(str(path), learner.names[learner.labels[column]], confidence)
            waiting.clear()

    def read(path: Path) -> None:
        waiting[path] = transform(FromFiles((path,))(0))
        if len(waiting) == size:
            name_waiting()

    found = work_on_files(track(list_images(place), "pictures"), read, alone=place.is_file())
    name_waiting()
    return FolderReport(named, found.skipped)


def evaluate_folder(learner: NSPLearner, root: Path) -> dict[str, Any]:
    """Accuracy on a folder of classes, task by task; tasks without pictures there are left out.

    Raises:
        UserError: a class that was never learnt.
    """
    pictures = read_folder(root)
    label_of = {name: label for label, name in learner.names.items()}
    unknown = [name for name in pictures.class_names if name not in label_of]
    if unknown:
        raise UserError(f"{root}: {', '.join(unknown[:5])}: never learnt; known are {', '.join(list(label_of)[:8])}")
    transform = _evaluation(learner)
    rows, total, correct = [], 0, 0
    for task, labels in enumerate(learner.tasks):
        here = {
            index: label_of[name] for index, name in enumerate(pictures.class_names) if label_of[name] in set(labels)
        }
        chosen = TaskPictures(pictures, here, transform)
        if len(chosen):
            counts = count_correct(learner, DataLoader(chosen, learner.config.moment_batch_size), task)
            rows.append(
                {
                    "task": task + 1,
                    "pictures": counts.total,
                    "accuracy": counts.correct / counts.total,
                    "task_aware": counts.aware / counts.total,
                }
            )
            total, correct = total + counts.total, correct + counts.correct
    return {"tasks": rows, "pictures": total, "accuracy": correct / total}


def fit_folder(
    learner: NSPLearner,
    root: Path,
    *,
    augmentation: str = "none",
    templates: str = "cifar",
    workers: int = 0,
) -> dict[str, Any]:
    """Learn the classes of a folder as the next task.

    Args:
        learner: saved with its second moments.
        root: one folder per new class.
        augmentation: see `TrainConfig`.
        templates: sentences for CLIP's texts.
        workers: processes that load pictures.

    Raises:
        UserError: classes that were learnt before, or no second moments of the tasks before.
    """
    pictures: LabelledPictures = read_folder(root)
    known = sorted(set(pictures.class_names) & set(learner.names.values()))
    if known:
        raise UserError(f"{root}: {', '.join(known[:5])}: learnt before; a task brings new classes only")
    first = max(learner.labels, default=-1) + 1
    labels = {index: first + index for index in range(len(pictures.class_names))}
    size, (mean, std), config = image_size(learner.vit), normalisation(learner.vit), learner.config
    augmented = training_transform(size, mean, std, config.evaluation, augmentation)  # ty: ignore[invalid-argument-type]
    train = DataLoader(TaskPictures(pictures, labels, augmented), config.batch_size, shuffle=True, num_workers=workers)
    stats = DataLoader(
        TaskPictures(pictures, labels, _evaluation(learner)), config.moment_batch_size, num_workers=workers
    )
    names = {label: pictures.class_names[index] for index, label in labels.items()}
    texts = None
    if config.backbone.startswith(CLIP_PREFIX):
        texts = class_texts(config.backbone, list(pictures.class_names), templates, config.revision)
    losses = learner.fit_task(train, stats, list(names), names=names, texts=texts)
    return {"classes": list(pictures.class_names), "pictures": len(pictures.targets), "loss": losses[-1]}


def changed(learner: NSPLearner, **options: Any) -> NSPLearner:
    """Apply the options that were given (not None) to how the next task is learnt."""
    given = {key: value for key, value in options.items() if value is not None}
    learner.config = replace(learner.config, **given)
    return learner


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write file, class and confidence as CSV, whole or not at all."""
    import csv

    from tenfold.files import atomic_path

    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "class", "confidence"])
        writer.writerows([each.file, each.name, f"{each.confidence:.6f}"] for each in predictions)
