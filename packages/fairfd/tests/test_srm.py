"""SRM filters, attentions and fusion against golden vectors; the fixed filters stay fixed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fairfd.models.detectors.srm import (
    ChannelAttention,
    DualCrossModalAttention,
    Fusion,
    NoiseGuidedAttention,
    SeparableSrm,
    SrmDetector,
    depthwise_kernels,
    srm_kernels,
    srm_residuals,
)
from tenfold import UserError

GOLDEN = np.load(Path(__file__).parent / "golden" / "srm_modules.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def weights(prefix: str, names: dict[str, str]) -> dict[str, Tensor]:
    """Golden weights under our names; `names` maps a golden prefix to ours, None-like entries are left out."""
    found = {}
    for entry in GOLDEN.files:
        if not entry.startswith(f"{prefix}_w__"):
            continue
        key = entry.removeprefix(f"{prefix}_w__").replace("__", ".")
        for old, new in names.items():
            if key.startswith(old):
                found[new + key.removeprefix(old)] = golden(entry)
    return found


def test_residuals_reproduce_the_golden_ones() -> None:
    assert torch.allclose(golden("simple_kernel"), srm_kernels()[:, None].expand(-1, 3, -1, -1), atol=1e-6)
    assert torch.allclose(srm_residuals(golden("simple_x")), golden("simple_y"), atol=1e-4)


def test_kernels_sum_to_zero_so_that_flat_images_have_no_residual() -> None:
    assert torch.allclose(srm_kernels().sum((1, 2)), torch.zeros(3), atol=1e-6)
    flat = srm_residuals(torch.full((1, 3, 16, 16), 0.7))
    assert flat[..., 2:-2, 2:-2].abs().max() < 1e-5


def test_residuals_are_clipped_at_3() -> None:
    residuals = srm_residuals(100 * torch.randn(1, 3, 32, 32))
    assert residuals.min() == -3
    assert residuals.max() == 3


def test_residuals_keep_float32_under_autocast() -> None:
    x = golden("simple_x")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(srm_residuals(x), golden("simple_y"), atol=1e-4)


def test_separable_srm_reproduces_the_golden_maps() -> None:
    module = SeparableSrm(4, 5).eval()
    module.load_state_dict(weights("sep", {"out_conv.": "project."}))
    assert torch.allclose(module(golden("sep_x")), golden("sep_y"), atol=1e-4)


def test_every_channel_layout_filters_each_channel_with_all_three_kernels() -> None:
    kernels = depthwise_kernels(4, "every_channel").reshape(4, 3, 5, 5)
    assert torch.equal(kernels[2], srm_kernels())
    assert torch.equal(depthwise_kernels(4, "blocks"), golden("sep_w__kernel"))


def test_dual_cross_modal_attention_reproduces_the_golden_maps() -> None:
    module = DualCrossModalAttention(channels=16, tokens=25, ratio=4)
    names = {
        "gamma1": "gamma_x",
        "gamma2": "gamma_y",
        "key_conv1": "key_x",
        "key_conv2": "key_y",
        "key_conv_share": "key_shared",
        "linear1": "energy_x",
        "linear2": "energy_y",
        "value_conv1": "value_x",
        "value_conv2": "value_y",
    }
    module.load_state_dict(weights("dcma", names))
    x, y = module(golden("dcma_x"), golden("dcma_y"))
    assert torch.allclose(x, golden("dcma_out_x"), atol=1e-4)
    assert torch.allclose(y, golden("dcma_out_y"), atol=1e-4)


def test_dual_cross_modal_attention_starts_as_the_identity() -> None:
    x, y = torch.randn(1, 16, 3, 3), torch.randn(1, 16, 3, 3)
    out_x, out_y = DualCrossModalAttention(channels=16, tokens=9, ratio=4)(x, y)
    assert torch.equal(out_x, x)
    assert torch.equal(out_y, y)


def test_noise_guided_attention_reproduces_the_golden_map() -> None:
    module = NoiseGuidedAttention().eval()
    module.load_state_dict(weights("pa", {"conv.": "stem.", "pa.conv": "score"}))
    assert torch.allclose(module(golden("pa_x")), golden("pa_y"), atol=1e-4)


def test_fusion_reproduces_the_golden_map() -> None:
    module = Fusion(16).eval()
    module.load_state_dict(weights("ffm", {"convblk": "project", "ca.sharedMLP": "attention.mlp"}))
    assert torch.allclose(module(golden("ffm_x"), golden("ffm_y")), golden("ffm_out"), atol=1e-4)


def test_channel_attention_lies_between_0_and_1() -> None:
    weight = ChannelAttention(32)(torch.randn(2, 32, 4, 4))
    assert weight.shape == (2, 32, 1, 1)
    assert ((weight > 0) & (weight < 1)).all()


def test_fixed_filters_are_no_parameters() -> None:
    with torch.device("meta"):
        detector = SrmDetector()
    assert not [name for name, _ in detector.named_parameters() if "kernels" in name]
    assert not [name for name in detector.state_dict() if "kernels" in name]


@pytest.mark.parametrize("size", [128, 255, 299])
def test_sizes_other_than_256_are_refused_at_construction(size: int) -> None:
    with pytest.raises(UserError, match="256"):
        SrmDetector(in_size=size)
