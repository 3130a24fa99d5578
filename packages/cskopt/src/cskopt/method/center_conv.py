"""The convolution of which only the centre element of each kernel is trained (paper §3.2: CsKS and CdM).

conv(a, W) = conv(a, Wf) + conv1x1(a_c, Wc): the gradient of the centre Wc is that of a 1x1 convolution and needs nothing of
the forward pass but a_c, the input as the centre tap sees it. One convolution is computed, not two: the centre stays inside W.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cskopt.method.gradient_filter import mean_patches, spread_patches, sum_patches
from cskopt.method.kernel_elements import ConvGeometry, Pair, centre_tap, tap_input
from cskopt.method.partial_conv import PartialConv2d, whole_kernel
from tenfold import UserError

InputGrad = Literal["full", "centre"]


def input_gradient(
    gy: Float[Tensor, "n o ho wo"],
    weight: Float[Tensor, "o i kh kw"],
    shape: tuple[int, ...],
    geometry: ConvGeometry,
) -> Float[Tensor, "n c h w"]:
    """dL/da of a convolution, from the upstream gradient and the weight alone.

    Args:
        gy: dL/dy.
        weight: W.
        shape: of the input a, of which only the size is needed.
        geometry: of the convolution.
    """
    gradient, _, _ = torch.ops.aten.convolution_backward(
        gy,
        gy.new_empty(1).expand(shape),
        weight,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0, 0],
        geometry.groups,
        [True, False, False],
    )
    return gradient


def centre_gradient(
    gy: Float[Tensor, "n o ho wo"], seen: Float[Tensor, "n k ho wo"], groups: int
) -> Float[Tensor, "o i"]:
    """dL/dWc[o, c] = sum over n, i, j of gy[n, o, i, j] * a_c[n, c, i, j], per group (paper §3.2).

    Args:
        gy: dL/dy of the outputs that the centres belong to.
        seen: a_c, see `tap_input`.
        groups: channel groups.
    """
    shape = (gy.shape[1], seen.shape[1] // groups, 1, 1)
    # The fastest of the ways to write a 1x1 weight gradient; the weight itself is not needed, only its shape.
    _, gradient, _ = torch.ops.aten.convolution_backward(
        gy,
        seen,
        gy.new_empty(1).expand(shape),
        None,
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        groups,
        [False, True, False],
    )
    return gradient[:, :, 0, 0]


class _Options(NamedTuple):
    """How the centre is trained; see `center_conv2d`."""

    tap: Pair
    input_grad: InputGrad
    grad_filter: int | None
    trains: bool


class _CentreConv(torch.autograd.Function):
    """Forward of the whole kernel, backward of its centre. Keeps a_c of the trained channels and references to weights, no more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        center: Tensor,
        index: Tensor | None,
        geometry: ConvGeometry,
        options: _Options,
    ) -> tuple[Tensor, Tensor | None]:
        whole = whole_kernel(weight, center, centre_region(weight.shape, index, geometry, options.tap), x)
        y = F.conv2d(x, whole, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
        if not options.trains:
            return y, None
        # In the dtype of y: under autocast that is half the memory, and what the stock convolution keeps.
        seen = tap_input(x, geometry, options.tap, index).to(y.dtype)
        if options.grad_filter is not None:
            seen = sum_patches(seen, options.grad_filter)
        return y, None if seen is x else seen

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        x, weight, _, center, index, ctx.geometry, ctx.options = inputs
        seen = output[1]
        if seen is not None:
            ctx.mark_non_differentiable(seen)
        ctx.set_materialize_grads(False)
        kernel = (weight, center) if ctx.needs_input_grad[0] else (None, None)
        # Where the centre sees exactly the input, that is what is kept.
        kept = (x if seen is None else seen) if ctx.options.trains else None
        ctx.save_for_backward(kept, *kernel, index)
        ctx.x_shape, ctx.x_dtype, ctx.center_dtype = x.shape, x.dtype, center.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        seen, weight, center, index = ctx.saved_tensors
        geometry, r = ctx.geometry, ctx.options.grad_filter
        gx = gbias = gcenter = None
        if gy is None:
            return (None,) * 7
        pooled = gy if r is None else mean_patches(gy, r)
        if ctx.needs_input_grad[0]:
            region = centre_region(weight.shape, index, geometry, ctx.options.tap)
            gx = _input_gradient(ctx, gy, pooled, whole_kernel(weight, center, region, gy).to(gy.dtype)).to(ctx.x_dtype)
        if ctx.needs_input_grad[2]:
            gbias = gy.sum((0, 2, 3))
        if seen is not None and ctx.needs_input_grad[3]:
            depthwise = index is not None and geometry.groups > 1
            of_center = (
                pooled.index_select(1, _outputs_of(index, gy.shape[1] // geometry.groups)) if depthwise else pooled
            )
            gcenter = centre_gradient(of_center, seen, seen.shape[1] if depthwise else geometry.groups)
            gcenter = gcenter.to(ctx.center_dtype)
        return gx, None, gbias, gcenter, None, None, None


def _input_gradient(ctx: Any, gy: Tensor, pooled: Tensor, weight: Tensor) -> Tensor:
    """dL/da: through the whole kernel, or through the 1x1 branch alone, exact or filtered (paper §3.2 and §3.7)."""
    geometry, (u, v), r = ctx.geometry, ctx.options.tap, ctx.options.grad_filter
    centre = weight[:, :, u : u + 1, v : v + 1]
    # The branch sees the input as a 1x1 convolution whose padding is the tap's offset, negative where the tap looks inwards.
    oh, ow = geometry.offset(ctx.options.tap)
    if r is None and ctx.options.input_grad == "full":
        return input_gradient(gy, weight, ctx.x_shape, geometry)
    gy_branch = gy if r is None else spread_patches(pooled, r, gy.shape[2], gy.shape[3])
    branch = _scatter_to_input(
        F.conv_transpose2d(gy_branch, centre, groups=geometry.groups), ctx.x_shape, geometry.stride, (oh, ow)
    )
    if ctx.options.input_grad == "centre":
        return branch
    frozen = weight.clone()
    frozen[:, :, u, v] = 0
    return input_gradient(gy, frozen, ctx.x_shape, geometry) + branch


def _scatter_to_input(seen: Tensor, shape: tuple[int, ...], stride: Pair, offset: Pair) -> Tensor:
    """The transpose of `tap_input`: put what belongs to each output position back where the tap saw it."""
    rows, columns = (
        torch.arange(seen.shape[2 + axis], device=seen.device) * stride[axis] + offset[axis] for axis in (0, 1)
    )
    inside = [(each >= 0) & (each < size) for each, size in zip((rows, columns), shape[2:], strict=True)]
    full = seen.new_zeros(shape)
    full[:, :, rows[inside[0]][:, None], columns[inside[1]][None, :]] = seen[:, :, inside[0]][:, :, :, inside[1]]
    return full


def _outputs_of(channels: Int[Tensor, " s"], multiplier: int) -> Int[Tensor, " t"]:
    """The output channels that a depthwise convolution makes of the given input channels."""
    if multiplier == 1:
        return channels
    return (channels[:, None] * multiplier + torch.arange(multiplier, device=channels.device)).flatten()


def centre_region(
    shape: tuple[int, ...], index: Int[Tensor, " s"] | None, geometry: ConvGeometry, tap: Pair
) -> tuple[Any, ...]:
    """Where the trained elements lie in a kernel of `shape`: W[:, S, uc, vc], or W[rows of S, :, uc, vc] for depthwise."""
    u, v = tap
    if index is None:
        return slice(None), slice(None), u, v
    if geometry.groups > 1:
        return _outputs_of(index, shape[0] // (shape[1] * geometry.groups)), slice(None), u, v
    return slice(None), index, u, v


def center_conv2d(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "o i kh kw"],
    bias: Float[Tensor, " o"] | None,
    center: Float[Tensor, "t k"],
    index: Int[Tensor, " s"] | None,
    geometry: ConvGeometry,
    *,
    tap: Pair | None = None,
    input_grad: InputGrad = "full",
    grad_filter: int | None = None,
) -> Float[Tensor, "n o ho wo"]:
    """Convolve with the whole kernel; in the backward pass compute the gradient of its centre elements only.

    Args:
        x: input a.
        weight: W; `center` is written into the place of its trained elements.
        bias: b.
        center: the trained centre elements, (O, |S|), (O, C/g) for groups, (|S| * O/C, 1) for depthwise. Receives the gradient.
        index: S, trained input channels in ascending order; all when None.
        geometry: stride, padding, dilation, groups.
        tap: the trained element; the centre when None.
        input_grad: `full` sends the exact gradient through the whole kernel to `x`; `centre` only what passes through the
            1x1 branch, which is K*K times cheaper and an approximation (paper §3.2).
        grad_filter: patch size of gradient filtering on the 1x1 branch (official code); exact when None.

    Returns:
        y.
    """
    tap = centre_tap(geometry.kernel) if tap is None else tap
    trains = center.requires_grad and torch.is_grad_enabled()
    options = _Options(tap, input_grad, grad_filter, trains)
    return _CentreConv.apply(x, weight, bias, center, index, geometry, options)[0]


class CenterConv2d(PartialConv2d):
    """A convolution whose kernel is frozen but for its centre element (paper §3.2).

    Args:
        weight: W.
        bias: b or None.
        geometry: kernel size, stride, padding, dilation, groups.
        index: input channels to train; all when None.
        tap: the element to train; the centre when None.
        input_grad: see `center_conv2d`.
        grad_filter: see `center_conv2d`.

    Raises:
        UserError: a kernel of even size without `tap`, a tap outside the kernel, bad channels.
    """

    def __init__(
        self,
        weight: Float[Tensor, "o i kh kw"],
        bias: Float[Tensor, " o"] | None,
        geometry: ConvGeometry,
        index: Int[Tensor, " s"] | None = None,
        *,
        tap: Pair | None = None,
        input_grad: InputGrad = "full",
        grad_filter: int | None = None,
    ) -> None:
        self.tap = centre_tap(geometry.kernel) if tap is None else tap
        if not (0 <= self.tap[0] < geometry.kernel[0] and 0 <= self.tap[1] < geometry.kernel[1]):
            raise UserError(f"tap {self.tap} lies outside a {geometry.kernel[0]}x{geometry.kernel[1]} kernel")
        if grad_filter is not None and grad_filter < 1:
            raise UserError(f"grad_filter must be at least 1, got {grad_filter}")
        self.input_grad: InputGrad = input_grad
        self.grad_filter = grad_filter
        super().__init__(weight, bias, geometry, index)

    def region(self) -> tuple[Any, ...]:
        """See `centre_region`."""
        return centre_region(self.frozen.shape, self.index, self.geometry, self.tap)

    def forward(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n o ho wo"]:
        """Convolve a batch or one map (see `center_conv2d`)."""
        if x.ndim == 3:
            return self(x[None])[0]
        return center_conv2d(
            x,
            self.frozen,
            self.bias,
            self.trained,
            self.index,
            self.geometry,
            tap=self.tap,
            input_grad=self.input_grad,
            grad_filter=self.grad_filter,
        )
