"""What is reported of a run through a sequence of sessions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenfold.metrics import forgetting as forgetting_from_best


@dataclass(frozen=True)
class IncrementalScores:
    """Accuracies are fractions in [0, 1].

    Attributes:
        seen: after each session, accuracy over the test pictures of all classes seen so far.
        average: mean of `seen` over all sessions, the base included ("average incremental accuracy").
        last: `seen` after the last session.
        forgetting: mean over sessions but the last of accuracy right after it minus accuracy at the end (official code).
        forgetting_best: the same from the best accuracy ever reached.
        bwt: backward transfer, minus `forgetting`.
        new: mean over later sessions of the accuracy on a session's classes right after it (plasticity).
    """

    seen: tuple[float, ...]
    average: float
    last: float
    forgetting: float
    forgetting_best: float
    bwt: float
    new: float


def incremental_scores(accuracy: Float[Tensor, "t t"], pictures: Int[Tensor, " t"]) -> IncrementalScores:
    """Scores from the matrix of accuracies.

    Args:
        accuracy: [t, j] = accuracy on the classes of session j after session t; lower triangular.
        pictures: test pictures of each session's classes.
    """
    accuracy = accuracy.double().nan_to_num().tril()
    weights = pictures.double() * torch.ones_like(accuracy).tril()
    seen = (accuracy * weights).sum(1) / weights.sum(1)
    first = accuracy.diagonal()
    sessions = accuracy.shape[0]
    lost = float((first - accuracy[-1])[:-1].mean()) if sessions > 1 else 0.0
    return IncrementalScores(
        seen=tuple(seen.tolist()),
        average=float(seen.mean()),
        last=float(seen[-1]),
        forgetting=lost,
        forgetting_best=float(forgetting_from_best(accuracy)),
        bwt=-lost,
        new=float(first[1:].mean()) if sessions > 1 else float("nan"),
    )
