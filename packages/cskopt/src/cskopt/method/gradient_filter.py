"""Gradient filtering: gradients at the resolution of r x r patches (paper §3.7; an option of the official code).

Written from the formulas: the forward pass is exact; the backward pass keeps the input summed over patches and spreads one
mean gradient over each patch. Saves a further r^2 of activation memory at the price of an approximate gradient.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def _margins(height: int, width: int, r: int) -> tuple[int, int]:
    """Zeros at each side so that the map divides into patches: ceil((P*r - h) / 2)."""
    return tuple(-(-(-(-size // r) * r - size) // 2) for size in (height, width))  # ty: ignore[invalid-explicit-return]  # two of two


def sum_patches(x: Float[Tensor, "n c h w"], r: int) -> Float[Tensor, "n c p q"]:
    """Sum over r x r patches, zero-padded symmetrically where the map does not divide."""
    if r == 1:
        return x
    top, left = _margins(x.shape[2], x.shape[3], r)
    # Explicit zeros: average pooling divides clipped windows at the border by their clipped size.
    rows, columns = -(-(x.shape[2] + top) // r) * r, -(-(x.shape[3] + left) // r) * r
    padded = F.pad(x, (left, columns - x.shape[3] - left, top, rows - x.shape[2] - top))
    return F.avg_pool2d(padded, r, divisor_override=1)


def mean_patches(gy: Float[Tensor, "n c h w"], r: int) -> Float[Tensor, "n c p q"]:
    """Mean over r x r patches; padding is not counted."""
    if r == 1:
        return gy
    ones = gy.new_ones((1, 1, gy.shape[2], gy.shape[3]))
    return sum_patches(gy, r) / sum_patches(ones, r)


def spread_patches(pooled: Float[Tensor, "n c p q"], r: int, height: int, width: int) -> Float[Tensor, "n c h w"]:
    """Copy the value of each patch to all its positions, without the padding."""
    if r == 1:
        return pooled
    top, left = _margins(height, width, r)
    full = pooled.repeat_interleave(r, 2).repeat_interleave(r, 3)
    return full[:, :, top : top + height, left : left + width]


class _FilteredConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, r: int) -> Tensor:
        y = F.conv2d(x, weight, bias, stride, padding)
        ctx.save_for_backward(sum_patches(x, r * stride), weight)
        ctx.stride, ctx.r, ctx.x_shape = stride, r, x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        sums, weight = ctx.saved_tensors
        pooled = mean_patches(gy, ctx.r)
        height, width = ctx.x_shape[2:]
        gx = torch.einsum("noij,oc->ncij", pooled, weight.sum((2, 3)))
        gx = spread_patches(gx, ctx.r * ctx.stride, height, width)
        # Every tap of the kernel gets the same gradient: within a patch the filter cannot tell them apart.
        gw = torch.einsum("noij,ncij->oc", pooled, sums)[:, :, None, None].expand_as(weight)
        return gx, gw.contiguous(), gy.sum((0, 2, 3)), None, None, None


def gradient_filtered_conv2d(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "o c k k"],
    bias: Float[Tensor, " o"] | None,
    *,
    stride: int = 1,
    padding: int = 0,
    patch: int = 2,
) -> Float[Tensor, "n o ho wo"]:
    """A convolution with exact output and gradients filtered over patches of the output (paper §3.7).

    Args:
        x: input.
        weight: kernel of any size.
        bias: or None.
        stride: s.
        padding: zeros at each side.
        patch: r, in output positions.
    """
    return _FilteredConv.apply(x, weight, bias, stride, padding, patch)
