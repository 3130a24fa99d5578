"""Lean layers: same outputs, same gradients bit for bit, and only the bytes that they promise."""

import math

import pytest
import torch
from torch import Tensor, nn

from cskopt.method.memory_efficient import (
    FrozenConv2d,
    LeanAvgPool2d,
    LeanMaxPool2d,
    LeanReLU,
    LeanReLU6,
    pack_bits,
    unpack_bits,
)


def kept_bytes(module: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """Bytes kept beyond parameters, and the input's gradient for an upstream gradient that depends on the position."""
    skip = {each.untyped_storage().data_ptr() for each in module.parameters()}
    kept: dict[int, int] = {}

    def pack(each: Tensor) -> Tensor:
        if each.untyped_storage().data_ptr() not in skip:
            kept[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        return each

    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each):
        y = module(leaf * 1)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
    return sum(kept.values()), leaf.grad


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_bits_unpack_to_what_was_packed(count: int) -> None:
    mask = torch.rand(count) > 0.5
    packed = pack_bits(mask)
    assert packed.numel() == math.ceil(count / 8)
    assert torch.equal(unpack_bits(packed, mask.shape), mask)


def test_all_byte_values_survive_packing() -> None:
    every = (torch.arange(256)[:, None] >> torch.arange(8) & 1).bool()
    assert torch.equal(pack_bits(every), torch.arange(256, dtype=torch.uint8))
    assert torch.equal(unpack_bits(pack_bits(every), every.shape), every)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("lean", "stock"), [(LeanReLU, nn.ReLU), (LeanReLU6, nn.ReLU6)])
def test_activation_gradient_is_the_stock_gradient_bitwise_from_one_bit(lean: type, stock: type, inplace: bool) -> None:
    x = torch.randn(2, 3, 5, 5) * 6
    x[0, 0, 0, :4] = torch.tensor([0.0, 6.0, -0.0, 12.0])
    kept, ours = kept_bytes(lean(inplace), x)
    _, theirs = kept_bytes(stock(inplace), x)
    assert torch.equal(ours, theirs)
    assert ours[0, 0, 0, 0] == 0
    assert kept == math.ceil(x.numel() / 8)
    assert torch.equal(lean(inplace)(x.clone()), stock(inplace)(x.clone()))
    assert kept_bytes(lean(inplace, "bool"), x)[0] == x.numel()
    assert kept_bytes(lean(inplace, "bool"), x)[1].equal(theirs)


def test_relu6_passes_nothing_at_its_ceiling() -> None:
    x = torch.tensor([6.0, 5.9, 6.1], requires_grad=True)
    LeanReLU6()(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]


def test_activation_of_a_channels_last_map_has_the_stock_gradient() -> None:
    x = torch.randn(2, 3, 5, 4).to(memory_format=torch.channels_last)
    assert torch.equal(kept_bytes(LeanReLU(), x)[1], kept_bytes(nn.ReLU(), x)[1])


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 1, 1, dilation=2),
        nn.MaxPool2d((2, 3), (2, 1), (1, 1)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ],
)
def test_max_pooling_gradient_is_the_stock_gradient_bitwise_from_one_byte(pool: nn.MaxPool2d) -> None:
    # Few distinct values: many ties, which must go to the same element.
    x = torch.randint(0, 3, (2, 3, 9, 10)).float()
    kept, ours = kept_bytes(LeanMaxPool2d(pool), x)
    _, theirs = kept_bytes(pool, x)
    assert torch.equal(ours, theirs)
    assert kept == pool(x).numel()
    assert LeanMaxPool2d(pool).restore()(x).equal(pool(x))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)])
def test_average_pooling_keeps_nothing(pool: nn.AvgPool2d) -> None:
    x = torch.randn(2, 3, 9, 10)
    kept, ours = kept_bytes(LeanAvgPool2d(pool), x)
    assert kept == 0
    assert torch.equal(ours, kept_bytes(pool, x)[1])
    assert LeanAvgPool2d(pool).restore()(x).equal(pool(x))


@pytest.mark.parametrize("groups", [1, 4])
def test_frozen_convolution_keeps_nothing_and_has_the_exact_input_gradient(groups: int) -> None:
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(2, 4, 9, 9)
    _, theirs = kept_bytes(conv, x)
    layer = FrozenConv2d.from_conv(conv)
    kept, ours = kept_bytes(layer, x)
    assert kept == 0
    assert torch.equal(ours, theirs)
    conv.weight.grad = None
    # Only the bias is trained, and its gradient needs no input.
    layer.bias.grad = None
    y = layer(x)
    y.sum().backward()
    assert layer.bias.grad.tolist() == [y[:, 0].numel()] * 8
    assert layer.weight.grad is None
    assert layer.restore().weight is conv.weight
