"""Convolutions of which only a part of the kernel is trained: what the centre-only and the sparse-update layers share.

The layer keeps the whole kernel W as a buffer and the trained part as the parameter `trained`. The two are brought together
lazily: `trained` is copied into W at the next forward pass after it changed.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cskopt.method.kernel_elements import ConvGeometry, geometry_of
from tenfold import UserError

Layer = TypeVar("Layer", bound="PartialConv2d")


class PartialConv2d(nn.Module):
    """A convolution with a frozen kernel, a part of which is a parameter.

    Attributes:
        weight: the whole kernel, a buffer; its trained part may be one step behind `trained`.
        bias: parameter or None.
        trained: the trained part of the kernel, the only kernel elements that have a gradient and optimiser state.
        index: trained input channels in ascending order, or None for all.
        geometry: kernel size, stride, padding, dilation, groups.
    """

    weight: Tensor
    bias: nn.Parameter | None
    trained: nn.Parameter
    index: Tensor | None

    def __init__(
        self,
        weight: Float[Tensor, "o i kh kw"],
        bias: Float[Tensor, " o"] | None,
        geometry: ConvGeometry,
        index: Int[Tensor, " s"] | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.register_buffer("weight", weight.detach().clone())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone(), False))
        self.register_buffer("index", None)
        self._synchronised: int | None = None
        self.select(index)

    @classmethod
    def from_conv(cls: type[Layer], conv: nn.Conv2d, index: Int[Tensor, " s"] | None = None, **options: Any) -> Layer:
        """Build from an ordinary convolution, which is left as it is.

        Args:
            conv: 2-d convolution with zero padding.
            index: input channels to train; all when None.
            options: of the class.

        Raises:
            UserError: a convolution that cannot be decomposed (see `geometry_of`), or channels that do not exist.
        """
        return cls(conv.weight, conv.bias, geometry_of(conv), index=index, **options)

    @property
    def in_channels(self) -> int:
        """C."""
        return self.weight.shape[1] * self.geometry.groups

    @property
    def out_channels(self) -> int:
        """O."""
        return self.weight.shape[0]

    @abstractmethod
    def region(self) -> tuple[Any, ...]:
        """Which elements of W are trained, as an index into W that gives the shape of `trained`."""

    def select(self, index: Int[Tensor, " s"] | None) -> None:
        """Choose the trained input channels anew. `trained` becomes a new parameter: build the optimiser afterwards.

        Raises:
            UserError: channels out of range or repeated, none, or a grouped convolution that is not depthwise.
        """
        if index is not None:
            self._check(index)
        if hasattr(self, "trained"):
            self.synchronise()
        self.index = None if index is None else index.sort().values.to(self.weight.device)
        self.trained = nn.Parameter(self.weight[self.region()].clone())
        self._synchronised = self.trained._version

    def _check(self, index: Tensor) -> None:
        groups, channels = self.geometry.groups, self.in_channels
        if groups not in (1, channels):
            raise UserError(f"channels of a convolution with {groups} groups cannot be selected; train all of them")
        if index.numel() == 0 or index.unique().numel() != index.numel():
            raise UserError("selected channels must be distinct and at least one")
        if int(index.min()) < 0 or int(index.max()) >= channels:
            raise UserError(f"selected channels must lie in 0..{channels - 1}")

    @torch.no_grad()
    def synchronise(self) -> None:
        """Copy `trained` into W if it changed since the last time.

        W's version counter moves, so that a backward pass through a graph older than the change raises instead of using
        the new weights.
        """
        if self._synchronised != self.trained._version:
            self.weight[self.region()] = self.trained.to(self.weight.dtype)
            self._synchronised = self.trained._version

    def restore(self) -> nn.Conv2d:
        """An ordinary convolution with the trained part merged into the kernel (paper §3.2: the branch is added back)."""
        self.synchronise()
        g = self.geometry
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            g.kernel,
            stride=g.stride,
            padding=g.padding,
            dilation=g.dilation,
            groups=g.groups,
            bias=self.bias is not None,
            device="meta",
        )
        conv.weight = nn.Parameter(self.weight.clone())
        conv.bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone())
        return conv.train(self.training)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copied parameter starts counting its versions anew.
        self._synchronised = None

    def _apply(self: Layer, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Layer:
        self._synchronised = None
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Kernel, channels and how much of them is trained."""
        kept = self.trained.numel()
        return f"{self.in_channels}, {self.out_channels}, {self.geometry}, trained {kept} of {self.weight.numel()}"
