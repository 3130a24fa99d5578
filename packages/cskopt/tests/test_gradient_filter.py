"""Paper §3.7: gradients at the resolution of patches."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cskopt.method.center_conv import CenterConv2d
from cskopt.method.gradient_filter import gradient_filtered_conv2d, mean_patches, spread_patches, sum_patches


@pytest.mark.parametrize("name", ["g0", "g1", "g2", "g3"])
def test_filtered_gradients_reproduce_the_golden_case(golden: Callable, name: str) -> None:
    v = {key.removeprefix(f"{name}_"): each for key, each in golden("gradient_filter").items() if key.startswith(name)}
    _, stride, padding, patch = v["meta"].tolist()
    x, w, b = (v[key].requires_grad_() for key in ("x", "w", "b"))
    y = gradient_filtered_conv2d(x, w, b, stride=stride, padding=padding, patch=patch)
    y.backward(v["gy"])
    torch.testing.assert_close(y, v["y"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(w.grad, v["gw"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, v["gx"], atol=1e-5, rtol=1e-5)


def test_patches_of_one_are_the_exact_gradient_of_a_1x1_convolution() -> None:
    conv = nn.Conv2d(3, 4, 1, dtype=torch.float64)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    w = conv.weight.detach().clone().requires_grad_()
    gradient_filtered_conv2d(ours, w, conv.bias.detach(), patch=1).square().sum().backward()
    conv(theirs).square().sum().backward()
    torch.testing.assert_close(w.grad, conv.weight.grad)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("size", "r"), [(4, 2), (5, 2), (7, 3), (5, 4)])
def test_padding_is_in_no_mean_and_spreading_undoes_pooling(size: int, r: int) -> None:
    ones = torch.ones(1, 1, size, size)
    assert torch.equal(mean_patches(ones, r), torch.ones_like(mean_patches(ones, r)))
    assert sum_patches(ones, r).sum() == size * size
    assert torch.equal(spread_patches(mean_patches(ones, r), r, size, size), ones)


def test_the_centre_with_filter_keeps_a_quarter_and_is_exact_with_patches_of_one() -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, dtype=torch.float64)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    exact, one, two = (CenterConv2d.from_conv(conv, grad_filter=r) for r in (None, 1, 2))
    inputs = [x.clone().requires_grad_() for _ in range(3)]
    for layer, source in zip((exact, one, two), inputs, strict=True):
        layer(source).square().sum().backward()
    torch.testing.assert_close(one.trained.grad, exact.trained.grad)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    assert not torch.allclose(two.trained.grad, exact.trained.grad)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.shape) or each, lambda each: each):
        two(x)
    assert torch.Size((2, 3, 2, 2)) in kept


def test_the_filter_of_a_constant_map_is_exact() -> None:
    conv = nn.Conv2d(2, 2, 1, dtype=torch.float64)
    layer = CenterConv2d.from_conv(conv, grad_filter=2)
    x = torch.ones(1, 2, 4, 4, dtype=torch.float64)
    for module in (conv, layer):
        module(x).square().sum().backward()
    torch.testing.assert_close(layer.trained.grad, conv.weight.grad[:, :, 0, 0])
