"""Metrics that no library has, as `torchmetrics.Metric`s: they accumulate over batches and processes.

Continual learning: the matrix of accuracies after each task, its average and its forgetting.
Restoration: PSNR and SSIM on the luminance channel, averaged over pictures, as the super-resolution and weather-removal
literature reports them.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from tenfold.errors import UserError


def average_accuracy(accuracy: Float[Tensor, "t t"]) -> Float[Tensor, " t"]:
    """Mean accuracy over the tasks seen so far, after each task: entry i is the mean of `accuracy[i, :i+1]`."""
    seen = torch.ones_like(accuracy).tril()
    return (accuracy.nan_to_num() * seen).sum(1) / seen.sum(1)


def forgetting(accuracy: Float[Tensor, "t t"]) -> Float[Tensor, ""]:
    """Mean over all tasks but the last of (best accuracy ever reached before the end minus accuracy at the end).

    The measure of Chaudhry et al. (ECCV 2018), after the last task; 0 when there is one task only. It may be negative.
    """
    tasks = accuracy.shape[0]
    if tasks == 1:
        return accuracy.new_zeros(())
    learnt = accuracy[:-1, :-1].masked_fill(torch.ones(tasks - 1, tasks - 1).triu(1).bool(), -torch.inf)
    return (learnt.amax(0) - accuracy[-1, :-1]).mean()


class ContinualScores(NamedTuple):
    """What is reported of one run through a sequence of tasks.

    Attributes:
        matrix: accuracy on task k after learning task i, at [i, k]; NaN where k has not been met yet.
        final: mean accuracy over all tasks after the last, in [0, 1].
        average: mean over tasks of the average accuracy after each ("average incremental accuracy").
        forgetting: see `forgetting`.
    """

    matrix: Float[Tensor, "t t"]
    final: float
    average: float
    forgetting: float


class ContinualAccuracy(Metric):
    """Accuracy after each task on each task seen so far.

    Args:
        num_tasks: length of the sequence.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    total: Tensor

    def __init__(self, num_tasks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_tasks < 1:
            raise UserError(f"num_tasks must be at least 1, got {num_tasks}")
        self.add_state("correct", torch.zeros(num_tasks, num_tasks, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_tasks, num_tasks, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Int[Tensor, " n"], target: Int[Tensor, " n"], *, learnt: int, task: int) -> None:
        """Count a batch of test samples of `task`, predicted after learning task `learnt` (both from 0)."""
        tasks = self.correct.shape[0]
        if not 0 <= task <= learnt < tasks:
            raise UserError(f"task {task} after task {learnt}: need 0 <= task <= learnt < {tasks}")
        self.correct[learnt, task] += (preds == target).sum()
        self.total[learnt, task] += target.numel()

    def compute(self) -> ContinualScores:
        """Average, final accuracy and forgetting; every cell of the lower triangle must have been counted."""
        tasks = self.correct.shape[0]
        lower = torch.ones(tasks, tasks, device=self.total.device).tril().bool()
        if (self.total[lower] == 0).any():
            missing = (lower & (self.total == 0)).nonzero()[0].tolist()
            raise UserError(f"no test samples of task {missing[1]} after task {missing[0]}")
        matrix = (self.correct.double() / self.total).masked_fill(~lower, torch.nan)
        per_step = average_accuracy(matrix)
        return ContinualScores(matrix, per_step[-1].item(), per_step.mean().item(), forgetting(matrix).item())


def luminance(rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Y of ITU-R BT.601 in studio range, scaled to [16/255, 235/255]: the Y channel of MATLAB's `rgb2ycbcr`."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=rgb.dtype, device=rgb.device) / 255
    return (rgb * weights[:, None, None]).sum(1, keepdim=True) + 16 / 255


def _luminance_pair(preds: Tensor, target: Tensor, border: int) -> tuple[Tensor, Tensor]:
    if preds.shape != target.shape:
        raise UserError(f"pictures differ in size: {tuple(preds.shape)} and {tuple(target.shape)}")
    if min(preds.shape[-2:]) <= 2 * border:
        raise UserError(f"a border of {border} leaves nothing of a {preds.shape[-1]} x {preds.shape[-2]} picture")
    crop = slice(border, -border or None)
    # 64 bits: the difference of near-equal pictures is what is measured.
    return luminance(preds.double())[..., crop, crop], luminance(target.double())[..., crop, crop]


class _PerPicture(Metric):
    """Mean over pictures of a number computed for each."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, border: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.border = border
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def _accumulate(self, values: Float[Tensor, " b"]) -> None:
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Float[Tensor, ""]:
        """The mean so far."""
        return self.total / self.count


class LuminancePSNR(_PerPicture):
    """PSNR in dB on the Y channel, averaged over pictures (not over pixels).

    Args:
        border: pixels left out at each edge; by convention the scale factor in super-resolution, 0 in restoration.
    """

    def update(self, preds: Float[Tensor, "b 3 _ _"], target: Float[Tensor, "b 3 _ _"]) -> None:
        """Add a batch of pictures in [0, 1]."""
        first, second = _luminance_pair(preds, target, self.border)
        self._accumulate(-10 * (first - second).square().mean((1, 2, 3)).log10())


class LuminanceSSIM(_PerPicture):
    """SSIM on the Y channel (11 x 11 Gaussian window of sigma 1.5, valid region), averaged over pictures.

    Args:
        border: pixels left out at each edge.
    """

    def update(self, preds: Float[Tensor, "b 3 _ _"], target: Float[Tensor, "b 3 _ _"]) -> None:
        """Add a batch of pictures in [0, 1] of at least 11 pixels a side."""
        first, second = _luminance_pair(preds, target, self.border)
        if min(first.shape[-2:]) < 11:
            raise UserError(f"SSIM needs at least 11 pixels a side, got {first.shape[-1]} x {first.shape[-2]}")
        _, similarity = structural_similarity_index_measure(
            first, second, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
        )
        # torchmetrics averages over the reflected margin too; the published numbers are of the valid region.
        self._accumulate(torch.as_tensor(similarity)[..., 5:-5, 5:-5].mean((1, 2, 3)))
