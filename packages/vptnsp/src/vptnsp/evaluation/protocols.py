"""Testing a classifier on the tasks it has seen: among all classes, and among its own task's alone."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tenfold import UserError
from tenfold.metrics import average_accuracy
from vptnsp.evaluation.metrics import (
    average_forgetting,
    average_incremental_accuracy,
    final_average_accuracy,
    pooled_accuracy,
)


@runtime_checkable
class Classifier(Protocol):
    """What can be tested: prompts with heads, class means, ridge regression."""

    tasks: list[list[int]]
    """Labels of each task learnt, in the order of the logits' columns."""
    device: torch.device

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """One column per class seen, in task order."""
        ...


class Counts(NamedTuple):
    """Right answers on the test pictures of one task.

    Attributes:
        total: pictures.
        correct: right among all classes seen.
        aware: right among the classes of the pictures' own task, as if the task were known.
    """

    total: int
    correct: int
    aware: int


@torch.no_grad()
def count_correct(classifier: Classifier, loader: Iterable[Any], task: int) -> Counts:
    """Count right answers on one task's test pictures.

    Raises:
        UserError: no pictures, or a label that is not of the task.
    """
    labels_of_task = classifier.tasks[task]
    first = sum(len(each) for each in classifier.tasks[:task])
    position = {label: first + index for index, label in enumerate(labels_of_task)}
    total = correct = aware = 0
    for images, labels in loader:
        unknown = sorted(set(labels.tolist()) - position.keys())
        if unknown:
            raise UserError(f"test labels {unknown[:5]} are not of task {task + 1}, whose labels are {labels_of_task}")
        wanted = torch.tensor([position[label] for label in labels.tolist()], device=classifier.device)
        logits = classifier.logits(images.to(classifier.device))
        own = logits[:, first : first + len(labels_of_task)].argmax(1) + first
        total += len(wanted)
        correct += int((logits.argmax(1) == wanted).sum())
        aware += int((own == wanted).sum())
    if total == 0:
        raise UserError(f"no test pictures of task {task + 1}")
    return Counts(total, correct, aware)


class StreamRecord:
    """The accuracy after each task on each task so far, filled in row by row.

    Attributes:
        accuracy: [after, on], among all classes seen; NaN where nothing has been measured.
        aware: the same among the own task's classes.
        num_samples: test pictures of each task.
    """

    def __init__(self, num_tasks: int) -> None:
        self.accuracy = np.full((num_tasks, num_tasks), np.nan)
        self.aware = np.full((num_tasks, num_tasks), np.nan)
        self.num_samples = np.zeros(num_tasks, dtype=np.int64)

    def add(self, after: int, on: int, counts: Counts) -> None:
        """Note what was counted."""
        self.accuracy[after, on] = counts.correct / counts.total
        self.aware[after, on] = counts.aware / counts.total
        self.num_samples[on] = counts.total

    def summary(self) -> dict[str, Any]:
        """All that is reported, accuracies in [0, 1]; matrices as nested lists, null where nothing was measured."""
        own = np.tril(np.nan_to_num(self.aware))
        return {
            "acc_task_mean": final_average_accuracy(self.accuracy),
            "acc_pooled": float(pooled_accuracy(self.accuracy, self.num_samples)[-1]),
            "acc_incremental": average_incremental_accuracy(self.accuracy, self.num_samples),
            "acc_after_each_task": average_accuracy(torch.from_numpy(self.accuracy)).tolist(),
            "forgetting": average_forgetting(self.accuracy),
            "forgetting_official": average_forgetting(self.accuracy, "official"),
            "task_aware_accuracy": final_average_accuracy(own),
            "task_aware_forgetting": average_forgetting(self.aware),
            "matrix": to_lists(self.accuracy),
            "task_aware_matrix": to_lists(self.aware),
            "num_samples": self.num_samples.tolist(),
        }


def to_lists(matrix: Float[np.ndarray, "t t"]) -> list[list[float | None]]:
    """Nested lists for JSON, which has no NaN."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def to_matrix(rows: Sequence[Sequence[float | None]]) -> Float[np.ndarray, "t t"]:
    """Back from `to_lists`."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
