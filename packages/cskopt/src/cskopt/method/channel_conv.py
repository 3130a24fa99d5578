"""Sparse update: a convolution of which the whole kernel of some input channels is trained (a baseline; tiny-training style).

Keeps the selected channels of its input and nothing else; the gradient is the ordinary weight gradient of those channels.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cskopt.method.center_conv import input_gradient
from cskopt.method.kernel_elements import ConvGeometry
from cskopt.method.partial_conv import PartialConv2d
from tenfold import UserError


class _ChannelConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        trained: Tensor,
        index: Tensor | None,
        geometry: ConvGeometry,
    ) -> Tensor:
        y = F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
        kept = None
        if ctx.needs_input_grad[3]:
            kept = (x if index is None else x.index_select(1, index)).to(y.dtype)
        ctx.save_for_backward(kept, weight if ctx.needs_input_grad[0] else None)
        ctx.geometry, ctx.x_shape, ctx.x_dtype = geometry, x.shape, x.dtype
        ctx.trained_shape, ctx.trained_dtype = trained.shape, trained.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        g = ctx.geometry
        gx = gbias = gtrained = None
        if ctx.needs_input_grad[0]:
            gx = input_gradient(gy, weight.to(gy.dtype), ctx.x_shape, g).to(ctx.x_dtype)
        if ctx.needs_input_grad[2]:
            gbias = gy.sum((0, 2, 3))
        if kept is not None:
            shape_only = gy.new_empty(1).expand(ctx.trained_shape)
            _, gtrained, _ = torch.ops.aten.convolution_backward(
                gy,
                kept,
                shape_only,
                None,
                g.stride,
                g.padding,
                g.dilation,
                False,
                [0, 0],
                g.groups,
                [False, True, False],
            )
            gtrained = gtrained.to(ctx.trained_dtype)
        return gx, None, gbias, gtrained, None, None


class ChannelConv2d(PartialConv2d):
    """A convolution of which all taps of the selected input channels are trained.

    Raises:
        UserError: channels selected in a grouped convolution.
    """

    def _check(self, index: Tensor) -> None:
        if self.geometry.groups > 1:
            raise UserError("channels of a grouped convolution cannot be selected for all taps; train all of them")
        super()._check(index)

    def region(self) -> tuple[Any, ...]:
        """W[:, S]."""
        return (slice(None), slice(None) if self.index is None else self.index)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o ho wo"]:
        """Convolve."""
        self.synchronise()
        return _ChannelConv.apply(x, self.weight, self.bias, self.trained, self.index, self.geometry)
