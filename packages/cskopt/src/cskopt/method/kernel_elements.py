"""Kernel taps: which input values an element of a kernel sees (paper §3.1 and §3.2).

A convolution with an odd kernel is a sum of 1x1 convolutions, one for each element ("tap") of the kernel. Tap (u, v) of a
convolution with stride s, padding p and dilation d sees, at output position (i, j), the input at
(i*s + u*d - p, j*s + v*d - p), or zero where that lies outside.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenfold import UserError

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """The shape of a 2-d convolution without its weights.

    Attributes:
        kernel: (Kh, Kw).
        stride: (sh, sw).
        padding: zeros added at both sides, (ph, pw).
        dilation: (dh, dw).
        groups: channel groups g.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def output_size(self, height: int, width: int) -> Pair:
        """(Ho, Wo) for an input of (H, W)."""
        sizes = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                (height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        rows, columns = sizes
        return rows, columns

    def offset(self, tap: Pair) -> Pair:
        """Where `tap` looks at output position (0, 0): (u*dh - ph, v*dw - pw); paper §3.2."""
        return (
            tap[0] * self.dilation[0] - self.padding[0],
            tap[1] * self.dilation[1] - self.padding[1],
        )


def centre_tap(kernel: Pair) -> Pair:
    """The centre element ((Kh-1)/2, (Kw-1)/2) of a kernel of odd size (paper §3.2).

    Raises:
        UserError: a kernel of even size has no centre.
    """
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise UserError(f"a {kernel[0]}x{kernel[1]} kernel has no centre element; give tap=(u, v)")
    return (kernel[0] - 1) // 2, (kernel[1] - 1) // 2


def geometry_of(conv: nn.Conv2d) -> ConvGeometry:
    """The geometry of a convolution, with string padding resolved to numbers.

    Raises:
        UserError: padding that is not zeros, or `same` padding that would differ between two sides.
    """
    if conv.padding_mode != "zeros":
        raise UserError(f"padding_mode {conv.padding_mode!r}: only zeros can be decomposed into taps")
    kernel, dilation = _pair(conv.kernel_size), _pair(conv.dilation)
    if isinstance(conv.padding, str):
        total = [d * (k - 1) if conv.padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        if any(each % 2 for each in total):
            raise UserError(f"padding {conv.padding!r} of a {kernel[0]}x{kernel[1]} kernel differs between two sides")
        padding = (total[0] // 2, total[1] // 2)
    else:
        padding = _pair(conv.padding)
    return ConvGeometry(kernel, _pair(conv.stride), padding, dilation, conv.groups)


class StockConvolution(nn.Module):
    """What others read from an ordinary convolution, for the layers that stand in its place.

    Attributes:
        geometry: kernel size, stride, padding, dilation, groups.
    """

    geometry: ConvGeometry
    padding_mode = "zeros"
    transposed = False
    output_padding = (0, 0)

    @property
    def kernel_size(self) -> Pair:
        """(Kh, Kw)."""
        return self.geometry.kernel

    @property
    def stride(self) -> Pair:
        """(sh, sw)."""
        return self.geometry.stride

    @property
    def padding(self) -> Pair:
        """(ph, pw)."""
        return self.geometry.padding

    @property
    def dilation(self) -> Pair:
        """(dh, dw)."""
        return self.geometry.dilation

    @property
    def groups(self) -> int:
        """Channel groups g."""
        return self.geometry.groups


def _pair(value: tuple[int, ...] | int) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _valid_range(size: int, outputs: int, stride: int, offset: int) -> Pair:
    """Output positions [first, end) for which `i * stride + offset` lies in [0, size)."""
    first = max(0, -(offset // stride))
    end = min(outputs, (size - 1 - offset) // stride + 1)
    return min(first, outputs), max(first, end)


def tap_counts(geometry: ConvGeometry, height: int, width: int) -> Int[Tensor, "kh kw"]:
    """n[u, v]: at how many output positions each tap falls inside an image of (height, width) (paper §3.1)."""
    sizes = (height, width)
    outputs = geometry.output_size(height, width)
    along = []
    for axis in (0, 1):
        offsets = [u * geometry.dilation[axis] - geometry.padding[axis] for u in range(geometry.kernel[axis])]
        ranges = [_valid_range(sizes[axis], outputs[axis], geometry.stride[axis], each) for each in offsets]
        along.append(torch.tensor([max(0, end - first) for first, end in ranges]))
    return along[0][:, None] * along[1][None, :]


def tap_input(
    x: Float[Tensor, "n c h w"], geometry: ConvGeometry, tap: Pair, channels: Int[Tensor, " s"] | None = None
) -> Float[Tensor, "n k ho wo"]:
    """a_c: the input as one tap sees it, zero where the tap falls into the padding (paper §3.2).

    The result never pins more memory than its own size: it is `x` itself where the tap sees exactly `x`, otherwise a compact
    copy (a strided view would keep the whole input alive until the backward pass).

    Args:
        x: input of the convolution.
        geometry: of the convolution.
        tap: (u, v).
        channels: input channels to keep; all when None.
    """
    outputs = geometry.output_size(x.shape[2], x.shape[3])
    offset = geometry.offset(tap)
    rows, columns = (
        _valid_range(x.shape[2 + axis], outputs[axis], geometry.stride[axis], offset[axis]) for axis in (0, 1)
    )
    sees_every_output = rows == (0, outputs[0]) and columns == (0, outputs[1])
    seen = x[
        :,
        :,
        _input_slice(rows, geometry.stride[0], offset[0]),
        _input_slice(columns, geometry.stride[1], offset[1]),
    ]
    if channels is not None:
        seen = seen.index_select(1, channels)
    if sees_every_output:
        return seen if _owns_its_storage(seen) else seen.clone(memory_format=torch.contiguous_format)
    padded = seen.new_zeros((seen.shape[0], seen.shape[1], *outputs))
    padded[:, :, rows[0] : rows[1], columns[0] : columns[1]] = seen
    return padded


def _input_slice(outputs: Pair, stride: int, offset: int) -> slice:
    first, end = outputs
    if end <= first:
        return slice(0, 0)
    return slice(first * stride + offset, (end - 1) * stride + offset + 1, stride)


def is_transformed(x: Tensor) -> bool:
    """Whether a tensor stands for others in `torch.compile` or a transform of `torch.func`: captured tensors are fixed then."""
    return torch.compiler.is_compiling() or torch.func.debug_unwrap(x, recurse=False) is not x


def _owns_its_storage(x: Tensor) -> bool:
    return not is_transformed(x) and x.untyped_storage().nbytes() <= x.numel() * x.element_size()
