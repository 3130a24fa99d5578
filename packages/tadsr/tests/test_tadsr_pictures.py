"""Degradation, metrics, tiling, padding: golden vectors and limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tadsr.data.degradation import degrade
from tadsr.data.degradation.jpeg import jpeg_simulated
from tadsr.data.degradation.kernels import filter_batch, gaussian_kernel, plateau_kernel, sinc_kernel
from tadsr.data.transforms import enlarge, matlab_resize
from tadsr.evaluation.metrics import (
    gradient_magnitude_deviation,
    high_frequency_energy_ratio,
    low_resolution_error,
    psnr,
    sliced_wasserstein,
    ssim,
)
from tadsr.method.color_matching import fix_colours
from tadsr.pipeline.tiling import pad_to_multiple, run_tiled, tile_starts


def image(array):
    return torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)[None]


@pytest.mark.parametrize("index", range(3))
def test_kernels(golden, index):
    arrays = golden("degradation")
    size, sigma_x, sigma_y, theta, isotropic, beta, plateau = arrays[f"kpar{index}_f64"].tolist()
    if isotropic:
        sigma_y, theta = sigma_x, 0.0
    have = {
        "gauss": gaussian_kernel(int(size), sigma_x, sigma_y, theta),
        "gen": gaussian_kernel(int(size), sigma_x, sigma_y, theta, beta),
        "plateau": plateau_kernel(int(size), sigma_x, sigma_y, theta, plateau),
    }
    for name, kernel in have.items():
        np.testing.assert_allclose(kernel, arrays[f"{name}{index}"], atol=1e-6)
    cutoff, size, pad_to = arrays[f"sincpar{index}_f64"].tolist()
    np.testing.assert_allclose(sinc_kernel(cutoff, int(size), int(pad_to)), arrays[f"sinc{index}"], atol=1e-6)


def test_filter_and_jpeg(golden):
    arrays = {key: torch.from_numpy(value) for key, value in golden("degradation").items()}
    filtered = filter_batch(arrays["img"], arrays["filter_k"])
    torch.testing.assert_close(filtered, arrays["filtered"], atol=1e-5, rtol=0)
    compressed = jpeg_simulated(arrays["jpeg_in"], arrays["jpeg_q"].float())
    torch.testing.assert_close(compressed, arrays["jpeg_out"], atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["bicubic", "train", "imagenet-test", "faces"])
def test_degradations_are_small_eight_bit_and_repeatable(kind):
    high = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    low = degrade(high, kind, [(0, 1), (0, 2)])
    assert low.shape == ((2, 3, 48, 64) if kind == "faces" else (2, 3, 12, 16))
    torch.testing.assert_close(low * 255, (low * 255).round(), atol=1e-3, rtol=0)
    assert torch.equal(low[1:], degrade(high[1:], kind, [(0, 2)])), "each picture follows from its own seed"


def test_metrics(golden):
    arrays = golden("metrics_tiling")
    a, b = image(arrays["a"]), image(arrays["b"])
    for name, function in (("psnr", psnr), ("ssim", ssim)):
        assert function(a, b).item() == pytest.approx(arrays[f"{name}_y"].item(), abs=1e-4)
        assert function(a, b, border=4).item() == pytest.approx(arrays[f"{name}_y_b4"].item(), abs=1e-4)
        assert function(a, b, channel="rgb").item() == pytest.approx(arrays[f"{name}_rgb"].item(), abs=1e-4)
    assert torch.isinf(psnr(a, a)).all()
    assert ssim(a, a).item() == pytest.approx(1)


def test_resampling(golden):
    arrays = golden("metrics_tiling")
    down = matlab_resize(image(arrays["a"]), 0.25)
    np.testing.assert_allclose(down[0].permute(1, 2, 0), arrays["matlab_down4"], atol=1e-5)
    corner = image(arrays["a"])[..., :12, :10]
    np.testing.assert_allclose(matlab_resize(corner, 4.0)[0].permute(1, 2, 0), arrays["matlab_up4"], atol=1e-5)
    np.testing.assert_allclose(enlarge(corner, 4), arrays["torch_up4"], atol=1e-5)


def test_texture_measures_at_their_ideal():
    truth = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    low = matlab_resize(truth, 0.25)
    assert high_frequency_energy_ratio(truth, truth, low).item() == pytest.approx(1)
    assert sliced_wasserstein(truth, truth, low).item() == 0
    assert gradient_magnitude_deviation(truth, truth).item() == 0
    assert low_resolution_error(truth, low).item() == pytest.approx(0, abs=1e-6)
    blurred = enlarge(low, 4)
    assert high_frequency_energy_ratio(blurred, truth, low).item() == pytest.approx(0, abs=1e-6)
    assert sliced_wasserstein(blurred, truth, low).item() > 0.05


def test_tiles(golden):
    arrays = golden("metrics_tiling")
    for key in arrays:
        if key.startswith("starts_"):
            length, tile, stride = map(int, key.split("_")[1:])
            assert tile_starts(length, tile, stride) == arrays[key].tolist()

    def process(piece, top, left):
        larger = torch.nn.functional.interpolate(piece, scale_factor=2)
        return larger * (1 + 0.01 * 2 * top + 0.001 * 2 * left)

    joined = run_tiled(torch.from_numpy(arrays["tile_in"]).float(), process, 8, 2, 2, blend=False)
    np.testing.assert_allclose(joined, arrays["tile_out"], atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 16), st.integers(0, 3), st.integers(0, 1))
def test_tiles_of_an_identity_give_the_picture_back(height, width, tile, overlap, margin):
    picture = torch.rand(1, 1, height, width)
    joined = run_tiled(picture, lambda piece, _top, _left: piece, tile, overlap, 1, margin=margin if overlap > 2 else 0)
    torch.testing.assert_close(joined, picture, atol=1e-6, rtol=0)


def test_an_overlap_as_large_as_the_tile_is_refused():
    with pytest.raises(ValueError, match="overlap"):
        run_tiled(torch.zeros(1, 1, 9, 9), lambda piece, _top, _left: piece, 4, 4, 1)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 130), st.integers(1, 130))
def test_padding_reaches_the_multiple_and_keeps_the_picture(height, width):
    picture = torch.rand(1, 1, height, width)
    padded = pad_to_multiple(picture, 64)
    assert all(
        side % 64 == 0 and side - original < 64
        for side, original in zip(padded.shape[-2:], (height, width), strict=True)
    )
    assert torch.equal(padded[..., :height, :width], picture)


@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_a_colour_cast_is_removed(method):
    low = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    result = enlarge(low, 4)
    cast = result + torch.tensor([0.1, 0.0, -0.1])[:, None, None]
    fixed = fix_colours(cast, low, method)
    assert (fixed - result).abs().mean() < 0.05 * (cast - result).abs().mean()
    assert torch.equal(fix_colours(cast, low, "none"), cast)
