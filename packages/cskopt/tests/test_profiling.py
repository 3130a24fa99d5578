"""Memory and multiply-adds: measured bytes are the formula's, to the byte."""

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from cskopt.benchmark.comparison import SCHEMES, compare_schemes, scheme_model
from cskopt.benchmark.cost_model import layer_costs
from cskopt.benchmark.profiling import count_macs, measure_saved_bytes, peak_allocated, peak_rss, profile_training
from cskopt.config import CsKOConfig
from cskopt.method.wrapping import wrap
from cskopt.models.networks import CompactResNet
from tenfold import UserError


@pytest.fixture(scope="module")
def resnet_batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(8, 3, 96, 96), torch.randint(0, 100, (8,))


def saved(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> int:
    return sum(measure_saved_bytes(model, *batch, nn.functional.cross_entropy).values())


def test_resnet18_keeps_the_bytes_of_the_specification(resnet_batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = resnet18(num_classes=100)
    assert saved(scheme_model(model, "centre"), resnet_batch) == 323_780
    assert saved(scheme_model(model, "csko"), resnet_batch) == 250_052
    stock = wrap(model.eval(), CsKOConfig(tap="all", channel_ratio=1.0, lean_activations="off"))
    assert saved(stock, resnet_batch) == pytest.approx(462_020, rel=0.02)


def test_where_the_bytes_are_is_known_by_layer(resnet_batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    by_layer = measure_saved_bytes(
        scheme_model(resnet18(num_classes=100), "centre"), *resnet_batch, nn.functional.cross_entropy
    )
    assert by_layer == {
        "layer4.1.conv1": 147_456,
        "layer4.1.relu": 2 * 4_608,
        "layer4.1.conv2": 147_456,
        "fc": 16_384,
        "": 3_200 + 68,
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("make", [lambda: CompactResNet(10), lambda: mobilenet_v2(num_classes=10, width_mult=0.25)])
def test_measured_bytes_and_multiply_adds_are_those_of_the_formula(make: object, scheme: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 32, 32), torch.randint(0, 10, (2,))
    if callable(make):
        model = scheme_model(make(), scheme)
    costs = layer_costs(model, x)
    measured = saved(model, (x, y))
    predicted = sum(each.kept_bytes for each in costs)
    assert predicted == pytest.approx(measured, rel=0.01)
    assert measured <= 1.1 * predicted
    forward, backward = count_macs(model, x, y, nn.functional.cross_entropy)
    assert forward == sum(each.forward_macs for each in costs)
    if scheme != "csko-filtered":  # the filter computes on pooled maps
        assert backward == pytest.approx(sum(each.backward_macs for each in costs), rel=0.01)


def test_a_profile_reports_all_five_kinds_of_memory_and_time() -> None:
    model = scheme_model(CompactResNet(10), "csko")
    x, y = torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))
    report = profile_training(model, (x, y), repeats=2, continual_state=17)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert report.trained == trained
    assert report.grads == 4 * trained
    assert report.optim_state == pytest.approx(8 * trained, abs=100)  # and a step count for each tensor
    assert report.continual_state == 17
    assert report.peak_inference <= report.peak_allocated <= 1.1 * report.predicted_peak
    assert report.step_ms > 0
    assert '"saved_by_layer"' in report.to_json()


def test_the_allocation_peak_is_exact_and_resident_memory_is_measured_where_linux_allows() -> None:
    def allocate() -> None:
        first = torch.ones(1000)
        second = torch.ones(500)
        del first
        torch.ones(250)
        del second

    assert peak_allocated(allocate, torch.device("cpu")) == (4 * 1500, None)
    # 48 MB: glibc maps blocks above 32 MiB anew, so that they are never served from pages that the process kept.
    kept = peak_rss(lambda: torch.ones(12_000_000).sum().item() and None)
    assert kept is None or kept > 20_000_000


def test_what_cannot_be_profiled_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to train"):
        profile_training(CompactResNet(2).requires_grad_(False), (torch.zeros(1, 3, 8, 8), torch.tensor([0])))
    with pytest.raises(UserError, match="--schemes best"):
        compare_schemes("compact", ["best"], 16, 2)
    with pytest.raises(UserError, match="--image-size 1"):
        compare_schemes("compact", ["full"], 1, 1)  # nothing to normalise a batch of one value by
