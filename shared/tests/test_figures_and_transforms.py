"""Grids of images; what happens to pictures on their way."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.figures import image_grid, write_grid
from tenfold.images import read_image
from tenfold.transforms import jpeg_roundtrip, resize_roundtrip


def test_a_grid_places_each_image(tmp_path) -> None:
    black, gray = np.zeros((2, 3, 3), np.float32), torch.full((3, 4, 2), 0.5)
    grid = image_grid([[black, gray], [gray]], margin=1)
    assert grid.shape == (4 + 1 + 4, 3 + 1 + 2, 3)
    assert grid[:2, :3].max() == 0
    assert (grid[:4, 4:] == 0.5).all()
    assert (grid[5:, :2] == 0.5).all()
    assert (grid[2:4, :3] == 1).all(), "what is not filled is white"
    assert image_grid([[black]], enlarge=3).shape == (6, 9, 3)
    named = image_grid([[np.zeros((8, 60, 3), np.float32)]], captions=["input"])
    assert named.shape == (24, 60, 3)
    assert named[:16].min() < 0.5 < named[:16].max(), "the caption is drawn"
    write_grid(tmp_path / "x.png", [[black, gray]], enlarge=2)
    assert read_image(tmp_path / "x.png").shape == (8, 2 * 3 + 4 + 2 * 2, 3)


def test_jpeg_is_the_real_codec() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    both = jpeg_roundtrip(images, [30, 90])
    assert torch.equal(both[:1], jpeg_roundtrip(images[:1], 30))
    stream = io.BytesIO()
    levels = (images[1] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(stream, "JPEG", quality=90)
    expected = np.asarray(Image.open(stream), dtype=np.float32) / 255
    assert np.array_equal(both[1].permute(1, 2, 0).numpy(), expected)
    error = (both - images).square().flatten(1).mean(1)
    assert error[0] > error[1] > 0


def test_resizing_and_back_smooths_and_keeps_flat_areas() -> None:
    flat = torch.full((1, 3, 9, 7), 100 / 255)
    torch.testing.assert_close(resize_roundtrip(flat, 0.5), flat)
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    there = resize_roundtrip(noise, 0.5)
    assert there.shape == noise.shape
    assert there.std() < 0.7 * noise.std()
    assert (there * 255).round().sub(there * 255).abs().max() == pytest.approx(0, abs=1e-4)
