"""SPSL's phase image: golden vectors and invariants."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairfd.models.detectors.spsl import mean_over_rgb, phase_image, with_phase

GOLDEN = np.load(Path(__file__).parent / "golden" / "spsl_phase.npz")


def picture(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_phase_image_reproduces_the_golden_one() -> None:
    expected = torch.from_numpy(GOLDEN["y"])
    assert torch.allclose(phase_image(torch.from_numpy(GOLDEN["x"])), expected, atol=1e-4)


def test_phase_image_has_unit_amplitude_in_every_bin() -> None:
    for size in ((24, 20), (17, 19)):
        amplitude = torch.fft.fft2(phase_image(picture(*size))).abs()
        assert torch.allclose(amplitude, torch.ones_like(amplitude), atol=1e-3)


def test_phase_image_ignores_positive_scaling() -> None:
    x = picture(24, 20)
    assert torch.allclose(phase_image(x), phase_image(7.5 * x), atol=1e-4)


def test_phase_image_of_half_precision_images_is_computed_in_float32() -> None:
    x = picture(16, 16).bfloat16()
    assert phase_image(x).dtype == torch.float32
    assert with_phase(x).dtype == torch.bfloat16


def test_first_convolution_starts_as_the_rgb_mean_four_times() -> None:
    weight = torch.randn(5, 3, 3, 3)
    inflated = mean_over_rgb(weight)
    assert inflated.shape == (5, 4, 3, 3)
    assert torch.equal(inflated[:, 3], weight.mean(1))
