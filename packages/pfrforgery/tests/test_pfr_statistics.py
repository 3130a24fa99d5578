"""The statistic operations against golden vectors of SagNet's code, and their invariants."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from pfrforgery.method.feature_statistics import mix_statistics, swap_content
from tenfold import UserError

Golden = Callable[[str], dict[str, np.ndarray]]


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * 2 + torch.randn(*shape[:2], 1, 1, generator=generator)


def test_mixing_reproduces_sagnet(golden: Golden) -> None:
    data = tensors(golden("feature_statistics"))
    z = data["z"].requires_grad_()
    mixed = mix_statistics(z, data["perm_mix"], data["alpha"])
    assert_allclose(mixed.detach(), data["mixed"], rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad((data["cotangent"] * mixed).sum(), z)
    assert_allclose(gradient, data["grad_mixed"], rtol=1e-4, atol=1e-6)


def test_swapping_reproduces_sagnet(golden: Golden) -> None:
    data = tensors(golden("feature_statistics"))
    z = data["z"].requires_grad_()
    swapped = swap_content(z, data["perm_swap"])
    assert_allclose(swapped.detach(), data["swapped"], rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad((data["cotangent"] * swapped).sum(), z)
    assert_allclose(gradient, data["grad_swapped"], rtol=1e-4, atol=1e-6)


def test_mixing_with_itself_changes_nothing() -> None:
    z = maps(5, 3, 4, 6)
    identity = torch.arange(5)
    assert_allclose(mix_statistics(z, identity, torch.rand(5)), z, rtol=1e-5, atol=1e-6)
    assert_allclose(mix_statistics(z, torch.randperm(5), torch.ones(5)), z, rtol=1e-5, atol=1e-6)


def test_mixed_statistics_are_the_mixture() -> None:
    z, perm, weight, eps = maps(6, 4, 5, 5), torch.tensor([3, 1, 0, 5, 2, 4]), torch.rand(6), 1e-5
    mixed = mix_statistics(z, perm, weight)
    w = weight[:, None]
    mean, variance = z.mean((2, 3)), z.var((2, 3))
    assert_allclose(mixed.mean((2, 3)), w * mean + (1 - w) * mean[perm], rtol=1e-5, atol=1e-5)
    target = (w * variance + (1 - w) * variance[perm] + eps) * variance / (variance + eps)
    assert_allclose(mixed.var((2, 3)), target, rtol=1e-4)


def test_swapped_maps_have_own_statistics_and_foreign_content() -> None:
    z, perm, eps = maps(6, 4, 5, 5), torch.tensor([3, 0, 1, 5, 2, 4]), 1e-5
    swapped = swap_content(z, perm)
    variance = z.var((2, 3))
    assert_allclose(swapped.mean((2, 3)), z.mean((2, 3)), rtol=1e-5, atol=1e-5)
    assert_allclose(swapped.var((2, 3)), variance[perm] / (variance[perm] + eps) * (variance + eps), rtol=1e-4)
    for sample in range(6):
        for channel in range(4):
            both = torch.stack([swapped[sample, channel].flatten(), z[perm[sample], channel].flatten()])
            assert torch.corrcoef(both)[0, 1] == pytest.approx(1, abs=1e-5)


def test_a_swap_with_itself_has_other_gradients() -> None:
    z = maps(4, 2, 3, 3).requires_grad_()
    swapped = swap_content(z, torch.arange(4))
    assert_allclose(swapped.detach(), z.detach(), rtol=1e-5, atol=1e-5)
    cotangent = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((cotangent * swapped).sum(), z)
    assert (gradient - cotangent).abs().max() > 0.1


def test_no_gradient_reaches_swapped_content() -> None:
    z = maps(4, 3, 5, 5).double().requires_grad_()
    perm = torch.tensor([1, 2, 3, 0])
    cotangent = torch.randn_like(z)
    # Only sample 0's own statistics may carry gradient of sample 0's output; its content comes from sample 1.
    (gradient,) = torch.autograd.grad((cotangent[0] * swap_content(z, perm)[0]).sum(), z)
    assert torch.equal(gradient[1:], torch.zeros_like(gradient[1:]))
    # A direction without mean that is orthogonal to the content moves neither mean nor variance.
    direction = torch.randn_like(z[0])
    direction -= direction.mean((1, 2), keepdim=True)
    content = (z[0] - z[0].mean((1, 2), keepdim=True)).detach()
    direction -= (direction * content).sum((1, 2), keepdim=True) / content.square().sum((1, 2), keepdim=True) * content
    assert abs(float((gradient[0] * direction).sum())) < 1e-5


def test_the_mixing_gradient_is_the_derivative() -> None:
    z = maps(3, 2, 2, 3).double().requires_grad_()
    perm, weight = torch.tensor([2, 0, 1]), torch.tensor([0.3, 0.9, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: mix_statistics(value, perm, weight), z)


def test_a_single_pixel_is_refused() -> None:
    with pytest.raises(UserError, match="split too deep"):
        mix_statistics(maps(2, 3, 1, 1))
    with pytest.raises(UserError, match="split too deep"):
        swap_content(maps(2, 3, 1, 1))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.integers(0, 99))
def test_any_shape_keeps_its_shape_and_repeats(n: int, c: int, h: int, w: int, seed: int) -> None:
    z = maps(n, c, h, w, seed=seed)
    for operation in (mix_statistics, swap_content):
        first, second = (operation(z, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
        assert first.shape == z.shape
        assert torch.equal(first, second)
        assert first.isfinite().all()
