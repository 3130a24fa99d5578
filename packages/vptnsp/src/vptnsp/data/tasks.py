"""Streams of tasks: which classes come when, and their pictures (paper §5.1; official code)."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tenfold import UserError
from vptnsp.config import TrainConfig
from vptnsp.data.datasets import (
    LabelledPictures,
    TaskPictures,
    from_tensors,
    keep_most_frequent,
    read_cifar100,
    read_digits,
    read_folder,
    read_lines,
    read_list,
    split_by_name,
    stratified_split,
)
from vptnsp.data.synthetic import draw_classes, render_glyphs, shift_domain
from vptnsp.data.transforms import evaluation_transform, training_transform


@dataclass(frozen=True)
class TaskData:
    """One task's pictures.

    Attributes:
        labels: positions in the order of classes.
        train: training pictures, augmented.
        stats: the same with the evaluation transform.
        test: test pictures.
    """

    labels: tuple[int, ...]
    train: Dataset
    stats: Dataset
    test: Dataset


@dataclass(frozen=True)
class Stream:
    """Tasks in order.

    Attributes:
        tasks: the tasks.
        class_names: by label: the position in the order of classes.
        source: where the pictures and their split come from.
    """

    tasks: tuple[TaskData, ...]
    class_names: tuple[str, ...]
    source: str

    def merged(self) -> "Stream":
        """All classes as one task: what joint training sees."""
        joined = TaskData(
            labels=tuple(label for task in self.tasks for label in task.labels),
            train=torch.utils.data.ConcatDataset([task.train for task in self.tasks]),
            stats=torch.utils.data.ConcatDataset([task.stats for task in self.tasks]),
            test=torch.utils.data.ConcatDataset([task.test for task in self.tasks]),
        )
        return replace(self, tasks=(joined,))


def class_order(num_classes: int, num_tasks: int, seed: int) -> Int[np.ndarray, "t k"]:
    """Classes of each task: 0 to C-1 shuffled by PCG64(seed) and cut into equal rows (official code).

    Raises:
        UserError: classes that cannot be dealt out evenly; name the tasks in a file instead.
    """
    if num_tasks < 1 or num_classes % num_tasks:
        raise UserError(
            f"{num_classes} classes cannot be dealt out to {num_tasks} tasks evenly; change --tasks or list them in --task-file"
        )
    order = np.arange(num_classes, dtype=np.int64)
    np.random.Generator(np.random.PCG64(seed)).shuffle(order)
    return order.reshape(num_tasks, -1)


def read_task_file(path: Path, class_names: tuple[str, ...]) -> list[list[int]]:
    """Classes of each task as a person lists them: one task a line, names separated by tabs.

    Raises:
        UserError: an unknown or repeated class; the line is named.
    """
    position = {name: label for label, name in enumerate(class_names)}
    tasks, seen = [], set()
    for number, line in enumerate(read_lines(path), start=1):
        names = [name.strip() for name in line.split("\t") if name.strip()]
        wrong = [name for name in names if name not in position or name in seen] + [
            name for name in set(names) if names.count(name) > 1
        ]
        if wrong:
            raise UserError(f"{path}, line {number}: {', '.join(wrong[:5])}: unknown or named twice")
        seen.update(names)
        tasks.append([position[name] for name in names])
    return tasks


def glyph_pictures(config: TrainConfig) -> tuple[LabelledPictures, LabelledPictures]:
    """New glyph classes in the shifted domain; other seeds than pre-training's make other classes."""
    count = config.tasks * config.classes_per_task
    # Far from the seed of the classes that the backbone was pre-trained on.
    generator = torch.Generator().manual_seed(1_000_000 + config.seed)
    classes = draw_classes(count, generator)
    names = tuple(f"glyph {label}" for label in range(count))
    labels = torch.arange(count).repeat_interleave(config.samples_per_class)
    parts = []
    for _ in range(2):
        pictures = shift_domain(render_glyphs(classes, labels, generator), config.shift, generator)
        parts.append(from_tensors(pictures, labels, names))
    return parts[0], parts[1]


def open_pictures(config: TrainConfig) -> tuple[LabelledPictures, LabelledPictures, str]:
    """Training pictures, test pictures, and a sentence on where they come from.

    Raises:
        UserError: something that is not there; the option is named.
    """
    if config.dataset == "glyphs":
        return *glyph_pictures(config), f"procedural glyphs, shift {config.shift:g}, seed {config.seed}"
    if config.dataset == "digits":
        train, test = stratified_split(read_digits(), config.seed)
        return train, test, f"scikit-learn's digits, split 80/20 by seed {config.seed}"
    if config.root is None:
        raise UserError(f"--dataset {config.dataset}: --root is needed")
    if config.dataset == "cifar100":
        return read_cifar100(config.root, train=True), read_cifar100(config.root, train=False), "CIFAR-100"
    train, test, source = _folder_pictures(config, config.root)
    if config.top_classes:
        train, test = keep_most_frequent(train, test, config.top_classes)
    return train, test, source


def _folder_pictures(config: TrainConfig, root: Path) -> tuple[LabelledPictures, LabelledPictures, str]:
    if (config.train_list is None) != (config.val_list is None):
        raise UserError("--train-list and --val-list go together")
    if config.train_list is not None and config.val_list is not None:
        train, test = read_list(root, config.train_list), read_list(root, config.val_list)
        source = f"{root}, {config.train_list.name} and {config.val_list.name}"
    elif (root / "train").is_dir():
        part = next((name for name in ("val", "test") if (root / name).is_dir()), None)
        if part is None:
            raise UserError(f"{root}: has train/ but neither val/ nor test/")
        train, test, source = read_folder(root / "train"), read_folder(root / part), f"{root}, train and {part}"
    else:
        train, test = split_by_name(read_folder(root), root)
        source = f"{root}, split about 80/20 by the names of the files"
    if train.class_names != test.class_names:
        lonely = sorted(set(train.class_names) ^ set(test.class_names))
        raise UserError(f"{root}: classes {', '.join(lonely[:5])} are not in both training and test pictures")
    return train, test, source


def open_stream(config: TrainConfig, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Stream:
    """The stream that a configuration describes, for a backbone's input size and normalisation."""
    train, test, source = open_pictures(config)
    if config.task_file is not None:
        tasks = read_task_file(config.task_file, train.class_names)
    else:
        tasks = class_order(len(train.class_names), config.tasks, config.seed).tolist()
    evaluation = evaluation_transform(size, mean, std, config.evaluation)
    augmented = training_transform(size, mean, std, config.evaluation, config.augmentation)
    made, first = [], 0
    for task in tasks:
        labels = {original: first + index for index, original in enumerate(task)}
        first += len(task)
        made.append(
            TaskData(
                tuple(labels.values()),
                TaskPictures(train, labels, augmented),
                TaskPictures(train, labels, evaluation),
                TaskPictures(test, labels, evaluation),
            )
        )
    return Stream(tuple(made), tuple(train.class_names[original] for task in tasks for original in task), source)


def training_loader(pictures: Dataset, config: TrainConfig) -> DataLoader:
    """Shuffled batches; with `repeats` the list is repeated and shuffled as one, as the official code does."""
    count = len(pictures)  # ty: ignore[invalid-argument-type]  # map-style
    if count == 0:
        raise UserError("a task has no training pictures")
    if config.repeats > 1:
        pictures = torch.utils.data.ConcatDataset([pictures] * config.repeats)
    return DataLoader(
        pictures,
        config.batch_size,
        sampler=RandomSampler(pictures),  # ty: ignore[invalid-argument-type]  # map-style
        num_workers=config.workers,
        persistent_workers=False,
    )


def plain_loader(pictures: Dataset, config: TrainConfig) -> DataLoader:
    """Batches in order, of the size of the second-moment pass."""
    return DataLoader(pictures, config.moment_batch_size, num_workers=config.workers)
