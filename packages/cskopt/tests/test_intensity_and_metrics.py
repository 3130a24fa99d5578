"""Paper §3.1 (knowledge intensity) and the scores of a run."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cskopt.evaluation.metrics import incremental_scores
from cskopt.method.kernel_elements import ConvGeometry, tap_counts
from cskopt.method.kernel_intensity import count_normalised, kernel_intensity, kernel_intensity_maps, tap_intensity
from cskopt.models.networks import CompactResNet
from tenfold import UserError


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels)


@pytest.mark.parametrize("name", ["t0", "t1", "t2", "t3"])
def test_intensity_reproduces_the_golden_case(golden: Callable, name: str) -> None:
    v = {key.removeprefix(f"{name}_"): each for key, each in golden("tap_intensity").items() if key.startswith(name)}
    k, stride, padding, dilation = v["meta"].tolist()
    geometry = ConvGeometry((k, k), (stride, stride), (padding, padding), (dilation, dilation))
    counts = tap_counts(geometry, *v["x"].shape[2:])
    assert torch.equal(counts, v["valid_counts"])
    shape = (v["gy"].shape[1], v["x"].shape[1], k, k)
    gradient = nn.grad.conv2d_weight(v["x"], shape, v["gy"], stride, padding, dilation)
    torch.testing.assert_close(tap_intensity(gradient), v["intensity"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        count_normalised(gradient, counts), v["intensity_count_normalised"], atol=1e-6, rtol=1e-5
    )


def test_maps_of_a_model_sum_to_one_and_leave_no_trace() -> None:
    model = CompactResNet(3, (4, 4, 8)).train()
    model.conv1.weight.requires_grad_(False)
    data = [(torch.randn(n, 3, 16, 16), torch.randint(0, 3, (n,))) for n in (4, 2)]
    maps = kernel_intensity_maps(model, data, loss)
    assert list(maps) == ["conv1", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"]
    for each in maps.values():
        assert each.raw.sum().item() == pytest.approx(1)
        assert each.per_use.sum().item() == pytest.approx(1)
    assert torch.equal(kernel_intensity(model, data, loss)["conv1"], maps["conv1"].raw)
    assert torch.equal(kernel_intensity(model, data, loss, normalize_counts=True)["conv1"], maps["conv1"].per_use)
    assert model.training
    assert not model.conv1.weight.requires_grad
    assert all(each.grad is None for each in model.parameters())


def test_constant_inputs_and_gradients_give_exactly_the_counts() -> None:
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1))
    gradient = nn.grad.conv2d_weight(torch.ones(1, 2, 4, 4), (3, 2, 3, 3), torch.ones(1, 3, 4, 4), padding=1)
    counts = tap_counts(geometry, 4, 4)
    torch.testing.assert_close(tap_intensity(gradient), counts / counts.sum())
    torch.testing.assert_close(count_normalised(gradient, counts), torch.full((3, 3), 1 / 9))
    torch.testing.assert_close(tap_intensity(torch.zeros(2, 2, 3, 3)), torch.full((3, 3), 1 / 9))


def test_models_without_kernels_and_bad_data_are_refused() -> None:
    with pytest.raises(UserError, match="no plain convolution"):
        kernel_intensity(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 2)), [], loss)
    with pytest.raises(UserError, match="received no gradient"):
        kernel_intensity(CompactResNet(2), [], loss)
    with pytest.raises(FloatingPointError, match="conv1"):
        kernel_intensity(CompactResNet(2), [(torch.full((2, 3, 8, 8), float("nan")), torch.tensor([0, 1]))], loss)


def test_scores_reproduce_the_golden_case(golden: Callable) -> None:
    v = golden("metrics")
    scores = incremental_scores(v["acc_matrix"], v["n_test"])
    torch.testing.assert_close(torch.tensor(scores.seen, dtype=torch.float64), v["seen_acc"], atol=1e-6, rtol=0)
    assert scores.average == pytest.approx(v["avg_incremental"].item(), abs=1e-6)
    assert scores.last == pytest.approx(v["last"].item(), abs=1e-6)
    assert scores.forgetting == pytest.approx(v["forgetting_vs_first"].item(), abs=1e-6)
    assert scores.forgetting_best == pytest.approx(v["forgetting_vs_best"].item(), abs=1e-6)
    assert scores.bwt == pytest.approx(v["bwt"].item(), abs=1e-6)


def test_one_session_forgets_nothing() -> None:
    scores = incremental_scores(torch.tensor([[0.5]]), torch.tensor([10]))
    assert (scores.average, scores.forgetting) == (0.5, 0)
