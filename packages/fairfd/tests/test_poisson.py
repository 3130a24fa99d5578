"""Poisson blending: the exact equation, its invariants and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairfd.data.faces.poisson_blending import membrane, poisson_blend, poisson_blend_mixed


def pictures(
    seed: int, batch: int = 1, height: int = 17, width: int = 20
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source, target = (torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(batch, height, width, generator=generator) < 0.6
    mask[:, [0, -1]] = False
    mask[:, :, [0, -1]] = False
    return source, target, mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("blend", "name"), [(poisson_blend, "poisson_normal"), (poisson_blend_mixed, "poisson_mixed")])
def test_blends_equal_a_direct_sparse_solution(golden, blend, name, dtype):
    data = {key: torch.from_numpy(value) for key, value in golden("forgery_ops").items()}
    source, target = (data[key].permute(2, 0, 1)[None].to(dtype) for key in ("source", "target"))
    result = blend(source, target, data["mask"][None])[0].permute(1, 2, 0)
    assert (result - data[name]).abs().max() < 1e-5


@given(seed=st.integers(0, 500), height=st.integers(3, 16), width=st.integers(3, 16))
@settings(max_examples=20, deadline=None)
def test_the_solution_satisfies_the_equation_at_every_masked_pixel(seed, height, width):
    source, target, mask = pictures(seed, 1, height, width)
    x = poisson_blend(source, target, mask, 1e-10)

    def four_minus_neighbours(image: torch.Tensor) -> torch.Tensor:
        shifted = sum(image.roll(step, axis) for axis in (2, 3) for step in (-1, 1))
        return 4 * image - shifted

    # With x = target outside, both sides of the equation are the plain Laplacian of x and of the source.
    residual = (four_minus_neighbours(x) - four_minus_neighbours(source)).abs() * mask[:, None]
    assert residual.max() < 1e-6


def test_source_equal_to_target_gives_the_target():
    _, target, mask = pictures(0)
    for blend in (poisson_blend, poisson_blend_mixed):
        assert (blend(target, target, mask) - target).abs().max() < 1e-5


def test_adding_a_constant_to_the_source_changes_nothing():
    source, target, mask = pictures(1)
    for blend in (poisson_blend, poisson_blend_mixed):
        first, second = (blend(s, target, mask, 1e-9) for s in (source, source + 0.7))
        assert (first - second).abs().max() < 1e-6


def test_outside_the_mask_the_result_is_bit_equal_to_the_target():
    source, target, mask = pictures(2, 3)
    outside = ~mask[:, None].expand_as(target)
    for blend in (poisson_blend, poisson_blend_mixed):
        assert torch.equal(blend(source, target, mask)[outside], target[outside])


def test_a_mask_on_the_border_is_taken_off_it_and_border_values_are_kept():
    source, target, _ = pictures(3)
    everything = torch.ones(1, *target.shape[-2:], dtype=torch.bool)
    interior = torch.zeros_like(everything)
    interior[:, 1:-1, 1:-1] = True
    result = poisson_blend(source, target, everything)
    assert torch.equal(result, poisson_blend(source, target, interior))
    for border in ((..., 0, slice(None)), (..., -1, slice(None)), (..., 0), (..., -1)):
        assert torch.equal(result[border], target[border])
    assert (result - target)[..., 1:-1, 1:-1].abs().amin((1, 2, 3)) > 0


def test_an_empty_mask_gives_the_target():
    source, target, mask = pictures(4)
    assert torch.equal(poisson_blend(source, target, torch.zeros_like(mask)), target)


def test_a_batch_gives_what_single_images_give():
    source, target, mask = pictures(5, 4)
    together = poisson_blend(source, target, mask, 1e-9)
    alone = torch.cat([poisson_blend(source[i : i + 1], target[i : i + 1], mask[i : i + 1], 1e-9) for i in range(4)])
    assert (together - alone).abs().max() < 1e-6


def test_mixed_gradients_keep_the_stronger_edge():
    target = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    target[..., 6:] = 1
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[:, 2:-2, 2:-2] = True
    flat = torch.full_like(target, 0.5)
    kept, lost = poisson_blend_mixed(flat, target, mask), poisson_blend(flat, target, mask)
    assert (kept - target).abs().max() < 1e-5
    assert (lost - target).abs().max() > 0.2


def test_a_membrane_continues_a_linear_ramp():
    ramp = torch.linspace(0, 1, 15, dtype=torch.float64).expand(1, 2, 11, 15).contiguous()
    mask = torch.zeros(1, 11, 15, dtype=torch.bool)
    mask[:, 3:8, 4:11] = True
    holed = torch.where(mask[:, None], torch.rand_like(ramp), ramp)
    assert (membrane(holed, mask, 1e-9) - ramp).abs().max() < 1e-6
