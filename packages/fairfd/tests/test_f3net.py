"""F3-Net's frequency decomposition: golden vectors, band counts, limits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fairfd.models.detectors.f3net import FrequencyDecomposition, band_edges, band_masks, dct_matrix, quarter_copies

FOLDER = Path(__file__).parent / "golden"
GOLDEN = np.load(FOLDER / "f3net_fad.npz")
COUNTS = np.load(FOLDER / "f3net_bands_256_counts.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def test_decomposition_reproduces_the_golden_bands() -> None:
    fad = FrequencyDecomposition(32)
    assert torch.allclose(fad.dct, golden("dct"), atol=1e-5)
    assert torch.equal(fad.base, golden("base"))
    with torch.no_grad():
        fad.learnable.copy_(golden("learnable"))
    assert torch.allclose(fad(golden("x")), golden("y"), atol=1e-4)


def test_dct_matrix_is_orthonormal() -> None:
    matrix = dct_matrix(256)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(256), atol=1e-5)


def test_bands_of_256_pixels_have_the_published_edges_and_counts() -> None:
    assert band_edges(256) == ((0, 90), (90, 128), (128, 512), (0, 512))
    assert np.array_equal(COUNTS["band_edges"], np.array(band_edges(256)))
    assert band_masks(256).sum((1, 2)).long().tolist() == COUNTS["ones_per_band"].tolist()


def test_bands_overlap_on_their_shared_edges_only() -> None:
    low, middle, high, everything = band_masks(256)
    diagonal = torch.arange(256)[:, None] + torch.arange(256)
    overlap = (low + middle + high - everything) != 0
    assert torch.equal(overlap, (diagonal == 90) | (diagonal == 128))


def test_all_band_with_neutral_filters_gives_the_image_back() -> None:
    fad = FrequencyDecomposition(48)
    torch.nn.init.zeros_(fad.learnable)
    x = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(fad(x)[:, 9:], x, atol=1e-4)


def test_decomposition_keeps_float32_under_autocast() -> None:
    fad, x = FrequencyDecomposition(16), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fad(x)
    assert torch.equal(inside, fad(x))


def test_first_convolution_gives_on_equal_bands_what_imagenets_gives_on_the_image() -> None:
    weight, x = torch.randn(8, 3, 3, 3), torch.randn(2, 3, 16, 16)
    assert torch.allclose(F.conv2d(x.repeat(1, 4, 1, 1), quarter_copies(weight)), F.conv2d(x, weight), atol=1e-4)


@pytest.mark.parametrize("size", [16, 33])
def test_filters_learn(size: int) -> None:
    fad = FrequencyDecomposition(size)
    fad(torch.rand(1, 3, size, size)).square().sum().backward()
    assert fad.learnable.grad is not None
    assert fad.learnable.grad.abs().sum() > 0
    assert [name for name, _ in fad.named_parameters()] == ["learnable"]
