"""Continual learning and luminance metrics against their definitions."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from tenfold.errors import UserError
from tenfold.metrics import ContinualAccuracy, LuminancePSNR, LuminanceSSIM, average_accuracy, forgetting, luminance

NAN = float("nan")


def test_forgetting_is_the_fall_from_the_best_accuracy_before_the_end() -> None:
    matrix = torch.tensor([[0.9, NAN, NAN], [0.95, 0.8, NAN], [0.5, 0.7, 0.6]])
    assert forgetting(matrix).item() == pytest.approx(((0.95 - 0.5) + (0.8 - 0.7)) / 2)
    assert average_accuracy(matrix).tolist() == pytest.approx([0.9, 0.875, 0.6])
    assert forgetting(torch.tensor([[0.3]])).item() == 0


def test_accuracy_learnt_late_counts_as_negative_forgetting() -> None:
    assert forgetting(torch.tensor([[0.4, NAN], [0.6, 0.5]])).item() == pytest.approx(-0.2)


def test_continual_accuracy_counts_over_batches_and_merges() -> None:
    whole, parts = ContinualAccuracy(2), [ContinualAccuracy(2), ContinualAccuracy(2)]
    batches = [((1, 0, 1), (1, 1, 1), 0, 0), ((0, 0), (0, 1), 1, 0), ((1,), (1,), 1, 1), ((0, 1), (0, 0), 1, 1)]
    for index, (preds, target, learnt, task) in enumerate(batches):
        for metric in (whole, parts[index % 2]):
            metric.update(torch.tensor(preds), torch.tensor(target), learnt=learnt, task=task)
    scores = whole.compute()
    assert scores.matrix[1].tolist() == pytest.approx([0.5, 2 / 3])
    assert scores.final == pytest.approx((0.5 + 2 / 3) / 2)
    assert scores.average == pytest.approx((2 / 3 + scores.final) / 2)
    assert scores.forgetting == pytest.approx(2 / 3 - 0.5)
    parts[0].correct += parts[1].correct
    parts[0].total += parts[1].total
    assert parts[0].compute().final == scores.final


def test_missing_cells_and_wrong_tasks_are_named() -> None:
    metric = ContinualAccuracy(2)
    metric.update(torch.tensor([0]), torch.tensor([0]), learnt=0, task=0)
    with pytest.raises(UserError, match="no test samples of task 0 after task 1"):
        metric.compute()
    with pytest.raises(UserError, match="task 1 after task 0"):
        metric.update(torch.tensor([0]), torch.tensor([0]), learnt=0, task=1)


def test_luminance_is_matlabs_studio_range() -> None:
    colours = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).float().T.reshape(1, 3, 5, 1)
    expected = torch.tensor([16, 235, 81.481, 144.553, 40.966]) / 255
    assert torch.allclose(luminance(colours).flatten(), expected, atol=1e-6)


def test_psnr_is_averaged_over_pictures_inside_the_border() -> None:
    target = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 0.5
    preds = target.clone()
    preds[0] += 0.1
    preds[1] += 0.01
    preds[:, :, :2] = 1
    metric = LuminancePSNR(border=2)
    metric.update(preds[:1], target[:1])
    metric.update(preds[1:], target[1:])
    step = 219 / 255
    expected = [-20 * np.log10(step * 0.1), -20 * np.log10(step * 0.01)]
    assert metric.compute().item() == pytest.approx(np.mean(expected), abs=1e-3)


def test_ssim_is_the_classic_one() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 32, 40, generator=generator)
    preds = (target + 0.1 * torch.randn(1, 3, 32, 40, generator=generator)).clamp(0, 1)
    metric = LuminanceSSIM()
    metric.update(preds, target)
    first, second = (luminance(each.double())[0, 0].numpy() for each in (preds, target))
    reference, full = structural_similarity(
        first, second, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
    )
    # scikit-image cuts its window at 3.5 sigma, which is 11 pixels, and averages over the valid region.
    assert metric.compute().item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)
    assert metric.compute().item() == pytest.approx(reference, abs=1e-6)


def test_pictures_too_small_or_of_other_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="differ in size"):
        LuminancePSNR().update(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9))
    with pytest.raises(UserError, match="leaves nothing"):
        LuminancePSNR(border=4).update(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    with pytest.raises(UserError, match="at least 11"):
        LuminanceSSIM().update(torch.rand(1, 3, 10, 30), torch.rand(1, 3, 10, 30))
