"""Layers that keep nothing for the backward pass but what it needs (paper §3.2; the other layers of a low-memory network).

PyTorch keeps the input of a convolution even when its weight is frozen, the output of a ReLU in full precision, and the
input of a max pooling with 64-bit indices. Next to such layers a centre-only convolution saves almost nothing. These
replacements compute the same outputs and the same gradients, bit for bit, from a reference to the weight, one bit, and one
byte per output. Each has `restore()`, which gives the stock layer back.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cskopt.method.center_conv import input_gradient
from cskopt.method.kernel_elements import ConvGeometry, Pair, StockConvolution, geometry_of, is_transformed

MaskStorage = Literal["bits", "bool"]

# Multiplying eight bytes of 0 or 1 by this gathers them as the bits of the top byte.
_GATHER = 0x0102040810204080
# Eight copies of a byte, then bit i of copy i.
_COPIES, _DIAGONAL = 0x0101010101010101, 0x8040201008040201 - 2**64


def pack_bits(mask: Bool[Tensor, "..."]) -> UInt8[Tensor, " b"]:
    """Eight truth values in a byte, ceil(n/8) bytes in all."""
    flat = mask.reshape(-1)
    rest = -flat.numel() % 8
    if rest:
        flat = F.pad(flat, (0, rest))
    words = flat.view(torch.int64) * _GATHER
    return (words >> 56).to(torch.uint8)


def unpack_bits(packed: UInt8[Tensor, " b"], shape: torch.Size) -> Bool[Tensor, "..."]:
    """The inverse of `pack_bits`."""
    words = packed.long() * _COPIES & _DIAGONAL
    return (words.view(torch.uint8) != 0)[: math.prod(shape)].view(shape)


class _FrozenConv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
        return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004  # the name of the base class
        x, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None)
        ctx.x_shape, ctx.x_dtype = x.shape, x.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        gx = gbias = None
        if ctx.needs_input_grad[0]:
            gx = input_gradient(gy, weight.to(gy.dtype), ctx.x_shape, ctx.geometry).to(ctx.x_dtype)
        if ctx.needs_input_grad[2]:
            gbias = gy.sum((0, 2, 3))
        return gx, None, gbias, None


class FrozenConv2d(StockConvolution):
    """A convolution whose kernel is frozen: keeps nothing but a reference to its weight. Its bias may be trained.

    Args:
        conv: the convolution it stands for; weight and bias are shared with it, not copied.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.geometry = geometry_of(conv)
        self.weight = conv.weight
        self.bias = conv.bias
        self.weight.requires_grad_(False)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> "FrozenConv2d":
        """Build from an ordinary convolution."""
        return cls(conv)

    @property
    def in_channels(self) -> int:
        """C."""
        return self.weight.shape[1] * self.geometry.groups

    @property
    def out_channels(self) -> int:
        """O."""
        return self.weight.shape[0]

    def forward(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n o ho wo"]:
        """Convolve a batch or one map."""
        if x.ndim == 3:
            return self(x[None])[0]
        return _FrozenConv.apply(x, self.weight, self.bias, self.geometry)

    def restore(self) -> nn.Conv2d:
        """The stock convolution."""
        g = self.geometry
        conv = nn.Conv2d(
            self.weight.shape[1] * g.groups,
            self.weight.shape[0],
            g.kernel,
            stride=g.stride,
            padding=g.padding,
            dilation=g.dilation,
            groups=g.groups,
            bias=self.bias is not None,
            device="meta",
        )
        conv.weight = self.weight
        conv.bias = self.bias
        return conv.train(self.training)


class _MaskedActivation(torch.autograd.Function):
    """An activation whose derivative is 0 or 1: only that mask is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, ceiling: float, storage: MaskStorage, in_place: bool) -> tuple[Tensor, Tensor]:
        y = _clamp(x, ceiling, in_place)
        passes = y > 0
        if math.isfinite(ceiling):
            passes &= y < ceiling
        passes = passes.contiguous()
        return y, pack_bits(passes) if storage == "bits" else passes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, _, ctx.storage, in_place = inputs
        y, kept = output
        if in_place:
            ctx.mark_dirty(x)
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)
        ctx.shape = y.shape
        ctx.save_for_backward(kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        if gy is None:
            return (None,) * 4
        passes = unpack_bits(kept, ctx.shape) if ctx.storage == "bits" else kept
        # Not a product: where nothing passes, the gradient is 0 even if gy is infinite there, as in the stock layer.
        return torch.where(passes, gy, torch.zeros((), dtype=gy.dtype, device=gy.device)), None, None, None


def _clamp(x: Tensor, ceiling: float, in_place: bool) -> Tensor:
    if math.isfinite(ceiling):
        return F.hardtanh(x, 0.0, ceiling, inplace=in_place)
    return F.relu(x, inplace=in_place)


class LeanReLU(nn.Module):
    """ReLU that keeps a bit (or a bool) per element instead of its output.

    Args:
        inplace: overwrite the input, as the stock layer does when asked.
        storage: `bits` packs eight to a byte; `bool` keeps one byte each and packs nothing.
    """

    ceiling = math.inf

    def __init__(self, inplace: bool = False, storage: MaskStorage = "bits") -> None:
        super().__init__()
        self.inplace = inplace
        self.storage: MaskStorage = storage

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """max(x, 0), and for ReLU6 min(max(x, 0), 6)."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return _clamp(x, self.ceiling, self.inplace)
        # A leaf may not be overwritten, and neither may a view: the copy is what the stock layer would refuse to do.
        in_place = self.inplace and not is_transformed(x) and not x.is_leaf and not x._is_view()
        return _MaskedActivation.apply(x, self.ceiling, self.storage, in_place)[0]

    def restore(self) -> nn.Module:
        """The stock activation."""
        return (nn.ReLU if self.ceiling == math.inf else nn.ReLU6)(inplace=self.inplace).train(self.training)


class LeanReLU6(LeanReLU):
    """ReLU6 that keeps a bit (or a bool) per element instead of its input."""

    ceiling = 6.0


class _MaxPool(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil: bool
    ) -> tuple[Tensor, Tensor]:
        y, flat = F.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil)
        rows, columns = flat // x.shape[3], flat % x.shape[3]
        first_row, first_column = _window_origins(y.shape, stride, padding, x.device)
        u = (rows - first_row).div(dilation[0], rounding_mode="floor")
        v = (columns - first_column).div(dilation[1], rounding_mode="floor")
        return y, (u * kernel[1] + v).to(torch.uint8)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, *ctx.arguments = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])
        ctx.x_shape = x.shape

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        (local,) = ctx.saved_tensors
        kernel, stride, padding, dilation, ceil = ctx.arguments
        if gy is None:
            return (None,) * 6
        first_row, first_column = _window_origins(local.shape, stride, padding, gy.device)
        local = local.long()
        flat = (first_row + local // kernel[1] * dilation[0]) * ctx.x_shape[3]
        flat += first_column + local % kernel[1] * dilation[1]
        stand_in = gy.new_empty(1).expand(ctx.x_shape)  # only its size is read
        gx = torch.ops.aten.max_pool2d_with_indices_backward(
            gy.contiguous(), stand_in, kernel, stride, padding, dilation, ceil, flat
        )
        return gx, None, None, None, None, None


def _window_origins(shape: torch.Size, stride: Pair, padding: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = torch.arange(shape[2], device=device) * stride[0] - padding[0]
    columns = torch.arange(shape[3], device=device) * stride[1] - padding[1]
    return rows[:, None], columns[None, :]


def _both(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class LeanMaxPool2d(nn.Module):
    """Max pooling that keeps one byte per output: where in its window the maximum was. Windows of up to 255 elements.

    Args:
        pool: the stock layer it stands for.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel_size, self.stride = _both(pool.kernel_size), _both(pool.stride)
        self.padding, self.dilation, self.ceil_mode = _both(pool.padding), _both(pool.dilation), pool.ceil_mode

    def forward(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c ho wo"]:
        """The maximum of each window, of a batch or of one map."""
        arguments = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        if not (torch.is_grad_enabled() and x.requires_grad):
            return F.max_pool2d(x, *arguments)
        if x.ndim == 3:
            return self(x[None])[0]
        return _MaxPool.apply(x, *arguments)[0]

    def restore(self) -> nn.MaxPool2d:
        """The stock layer."""
        arguments = self.kernel_size, self.stride, self.padding, self.dilation
        return nn.MaxPool2d(*arguments, ceil_mode=self.ceil_mode).train(self.training)


class _AvgPool(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        return F.avg_pool2d(x, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004  # the name of the base class
        x, ctx.arguments = inputs
        ctx.x_shape = x.shape

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        stand_in = gy.new_empty(1).expand(ctx.x_shape)  # only its size is read
        return torch.ops.aten.avg_pool2d_backward(gy.contiguous(), stand_in, *ctx.arguments), None


class LeanAvgPool2d(nn.Module):
    """Average pooling that keeps nothing (the stock layer keeps its input, of which only the size is ever read).

    Args:
        pool: the stock layer it stands for.
    """

    def __init__(self, pool: nn.AvgPool2d) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = _both(pool.kernel_size), _both(pool.stride), _both(pool.padding)
        self.ceil_mode, self.count_include_pad = pool.ceil_mode, pool.count_include_pad
        self.divisor_override = pool.divisor_override

    def _arguments(self) -> tuple[Any, ...]:
        window = self.kernel_size, self.stride, self.padding
        return *window, self.ceil_mode, self.count_include_pad, self.divisor_override

    def forward(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c ho wo"]:
        """The mean of each window, of a batch or of one map."""
        return _AvgPool.apply(x, self._arguments())

    def restore(self) -> nn.AvgPool2d:
        """The stock layer."""
        return nn.AvgPool2d(*self._arguments()).train(self.training)
