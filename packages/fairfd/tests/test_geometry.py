"""Splines, convex regions and similarities of face forgery."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from fairfd.data.faces.geometry import (
    DegenerateError,
    apply_affine,
    apply_thin_plate,
    batch_to_image,
    colours_at,
    convex_mask,
    feather,
    fit_similarity,
    fit_thin_plate,
    hull_mask,
    hull_polygon,
    image_to_batch,
    warp,
    warp_inside,
)


def random_points(seed: int, count: int = 12, batch: int = 2, scale: float = 50.0) -> torch.Tensor:
    return scale * torch.rand(batch, count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_thin_plate_spline_equals_the_reference(golden):
    data = {name: torch.from_numpy(value) for name, value in golden("forgery_ops").items()}
    spline = fit_thin_plate(data["tps_src_points"][None], data["tps_dst_points"][None])
    mapped = apply_thin_plate(spline, data["tps_query"][None])[0]
    assert (mapped - data["tps_mapped"]).abs().max() < 1e-5 * data["tps_mapped"].abs().max()


def test_control_points_map_exactly_to_their_targets():
    source, target = random_points(0), random_points(1)
    mapped = apply_thin_plate(fit_thin_plate(source, target), source)
    assert (mapped - target).abs().max() < 1e-9
    single = apply_thin_plate(fit_thin_plate(source.float(), target.float()), source.float())
    assert (single - target).abs().max() < 2e-3


@given(seed=st.integers(0, 1000), count=st.integers(4, 20))
@settings(max_examples=25, deadline=None)
def test_affine_maps_are_reproduced_everywhere(seed, count):
    source, query = random_points(seed, count), random_points(seed + 1, 30)
    matrix = torch.tensor([[1.2, -0.3], [0.4, 0.8]], dtype=torch.float64)
    move = torch.tensor([5.0, -7.0], dtype=torch.float64)
    try:
        spline = fit_thin_plate(source, source @ matrix.T + move)
    except DegenerateError:
        return
    assert (apply_thin_plate(spline, query) - (query @ matrix.T + move)).abs().max() < 1e-5


def test_degenerate_control_points_are_refused():
    line = torch.stack([torch.arange(6.0), 2 * torch.arange(6.0)], 1)[None]
    same = torch.ones(1, 5, 2)
    for points in (line, same, random_points(0)[:1, :2].float()):
        with pytest.raises(DegenerateError, match="coincide or lie on a line"):
            fit_thin_plate(points, points + 1)


def test_warping_by_the_identity_keeps_the_image():
    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    points = random_points(3, 8, 2, 20).float()
    warped = warp(images, fit_thin_plate(points, points))
    assert (warped - images).abs().max() < 1e-4


def test_warping_by_a_shift_moves_the_image():
    image = np.random.default_rng(0).random((16, 20, 3)).astype(np.float32)
    points = random_points(3, 6, 1, 15).float()
    spline = fit_thin_plate(points, points + torch.tensor([2.0, 1.0]))
    region = np.zeros((16, 20), bool)
    region[4:10, 5:12] = True
    colours, origin = warp_inside(image, spline, region)
    expected = image[5:11, 7:14].reshape(-1, 3)
    assert np.abs(colours - expected).max() < 1e-3
    assert np.allclose(origin[0], [7, 5], atol=1e-4)
    full = warp(image_to_batch(image), spline, "bicubic")
    assert np.abs(batch_to_image(full)[region] - colours).max() < 1e-5


def test_colours_outside_are_those_of_the_border():
    image = np.random.default_rng(0).random((6, 7, 3)).astype(np.float32)
    assert np.allclose(colours_at(image, np.array([[-5.0, 2.0], [9.0, 9.0]])), image[[2, 5], [0, 6]], atol=1e-6)


@given(seed=st.integers(0, 1000), count=st.integers(3, 20))
@settings(max_examples=25, deadline=None)
def test_hull_mask_equals_a_triangulation(seed, count):
    points = np.random.default_rng(seed).uniform(-2, 30, (count, 2))
    try:
        mask = hull_mask(points, 24, 28)
    except DegenerateError:
        return
    y, x = np.mgrid[:24, :28]
    inside = Delaunay(points).find_simplex(np.stack([x, y], 2).reshape(-1, 2)) >= 0
    assert (mask.reshape(-1) != inside).sum() == 0


def test_convex_masks_are_batched_and_points_without_area_are_refused():
    square = torch.tensor([[2.0, 2.0], [8.0, 2.0], [8.0, 6.0], [2.0, 6.0]])
    masks = convex_mask(torch.stack([square, square + 1]), 12, 12)
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[2:6, 2:9] = True
    assert torch.equal(masks[0], expected)
    assert torch.equal(masks[1, 1:, 1:], expected[:-1, :-1])
    for points in (np.zeros((5, 2)), np.stack([np.arange(5.0)] * 2, 1), np.zeros((2, 2))):
        with pytest.raises(DegenerateError, match="no convex hull"):
            hull_polygon(points)


def test_feather_rises_from_the_rim_inwards():
    mask = np.zeros((21, 21), bool)
    mask[3:18, 3:18] = True
    soft = feather(mask, 4.0)
    assert (soft[~mask] == 0).all()
    assert (soft[mask] > 0).all()
    assert soft[10, 10] == 1
    assert soft[10, 3] < soft[10, 4] < soft[10, 5]


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_similarity_recovers_rotation_scale_and_shift(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-10, 10, (7, 2))
    turn, scale, shift = rng.uniform(-3, 3), rng.uniform(0.2, 4), rng.uniform(-9, 9, 2)
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = fit_similarity(points, points @ rotation.T + shift)
    assert np.allclose(matrix[:, :2], rotation, atol=1e-9)
    assert np.allclose(apply_affine(matrix, points), points @ rotation.T + shift, atol=1e-8)


def test_similarity_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    matrix = fit_similarity(source, target)

    def error(a: float, b: float, x: float, y: float) -> float:
        return float(((apply_affine(np.array([[a, -b, x], [b, a, y]]), source) - target) ** 2).sum())

    best = (matrix[0, 0], matrix[1, 0], matrix[0, 2], matrix[1, 2])
    for i in range(4):
        for step in (-1e-3, 1e-3):
            assert error(*(v + step * (i == j) for j, v in enumerate(best))) > error(*best)
    with pytest.raises(DegenerateError, match="coincide"):
        fit_similarity(np.ones((4, 2)), target[:4])
