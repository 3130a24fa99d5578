"""What is reported of a stream of tasks (paper §5.1; official code).

`accuracy[j, i]` is the accuracy on the test pictures of task i after task j, among the classes of all tasks seen; entries
above the diagonal do not count.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int


def final_average_accuracy(accuracy: Float[np.ndarray, "t t"]) -> float:
    """A: mean over tasks of the accuracy after the last (paper §5.1)."""
    return float(accuracy[-1].mean())


def pooled_accuracy(accuracy: Float[np.ndarray, "t t"], num_samples: Int[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    """After each task, accuracy on all test pictures of the tasks so far (official code).

    Args:
        accuracy: see the module.
        num_samples: test pictures of each task.
    """
    seen = np.tril(np.ones_like(accuracy)) * num_samples
    return (np.nan_to_num(accuracy) * seen).sum(1) / seen.sum(1)


def average_incremental_accuracy(accuracy: Float[np.ndarray, "t t"], num_samples: Int[np.ndarray, " t"]) -> float:
    """Mean over the tasks of the pooled accuracy after each: what the PILOT toolbox reports."""
    return float(pooled_accuracy(accuracy, num_samples).mean())


def average_forgetting(
    accuracy: Float[np.ndarray, "t t"],
    convention: Literal["paper", "official"] = "paper",
    after: int | None = None,
) -> float:
    """F: mean over all earlier tasks of (best accuracy - accuracy now); 0 after the first task.

    Args:
        accuracy: see the module.
        convention: the paper's best is over the rows before, so F may be negative; the official code's is over all rows
            of the matrix, zeros above the diagonal included, so it never is.
        after: which task was learnt last, from 0; the matrix's last by default.
    """
    now = len(accuracy) - 1 if after is None else after
    if now == 0:
        return 0.0
    if convention == "official":
        best = np.tril(np.nan_to_num(accuracy))[:, :now].max(0)
    else:
        best = np.where(np.tri(now, dtype=bool), accuracy[:now, :now], -np.inf).max(0)
    return float((best - accuracy[now, :now]).mean())
