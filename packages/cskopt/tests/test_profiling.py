"""Memory and multiply-adds: measured bytes are the formula's, to the byte."""

import pytest
import timm
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18
from torchvision.ops import FrozenBatchNorm2d

from cskopt.benchmark.comparison import SCHEMES, compare_schemes, scheme_model
from cskopt.benchmark.cost_model import layer_costs
from cskopt.benchmark.profiling import count_macs, measure_saved_bytes, peak_allocated, peak_rss, profile_training
from cskopt.config import CsKOConfig
from cskopt.method.wrapping import report_of, unwrap, wrap
from cskopt.models.networks import CompactResNet
from tenfold import UserError


@pytest.fixture(scope="module")
def resnet_batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(8, 3, 96, 96), torch.randint(0, 100, (8,))


def settle(model: nn.Module) -> nn.Module:
    """Give batch normalisation statistics that are not 0 and 1, and scales that let a gradient through (some begin at 0)."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


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


MOBILE = (
    "tf_efficientnet_lite0",
    "efficientnet_lite0",
    "tf_mobilenetv3_small_minimal_100",
    "mobilenetv1_100",
    "mobilenetv2_050",
    "mobilenetv4_conv_small",
    "mnasnet_small",
    "semnasnet_050",
    "spnasnet_100",
    "fbnetc_100",
    "regnetx_002",
    "resnet10t",
    "resnet18d",
)


@pytest.mark.parametrize("name", MOBILE)
def test_networks_of_timm_are_folded_whole_trained_exact_and_keep_the_bytes_of_the_formula(name: str) -> None:
    # In 64 bits rounding is far below the bound, however a machine sums.
    original = settle(timm.create_model(name, num_classes=3)).double()
    x, y = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 2])
    wrapped = wrap(original, example_input=x)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(x), original(x), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(each, nn.BatchNorm2d | FrozenBatchNorm2d) for each in wrapped.modules())
    assert saved(wrapped, (x, y)) == sum(each.kept_bytes for each in layer_costs(wrapped, x))
    before = {key: each.clone() for key, each in unwrap(wrapped).state_dict().items()}
    optimizer = torch.optim.Adam([each for each in wrapped.parameters() if each.requires_grad], 1e-3)
    nn.functional.cross_entropy(wrapped(x), y).backward()
    optimizer.step()
    plain, report = unwrap(wrapped).eval(), report_of(wrapped)
    changed = {key for key, each in plain.state_dict().items() if not torch.equal(each, before[key])}
    assert changed == {f"{each}.weight" for each in (*report.targets, report.head)} | {f"{report.head}.bias"}
    with torch.no_grad():
        torch.testing.assert_close(wrapped.train()(x), plain(x), atol=1e-5, rtol=1e-5)
