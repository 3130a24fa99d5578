"""Convolutions of which only a part of the kernel is trained: what the centre-only and the sparse-update layers share.

The layer holds the trained part as the parameter `trained` and the rest in the buffer `frozen`, which has the shape of the whole
kernel. `trained` is written into its place there at every use, in the forward and in the backward pass: what a forward pass
computes depends on parameters alone, however they were changed.
"""

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cskopt.method.kernel_elements import ConvGeometry, StockConvolution, geometry_of, is_transformed
from tenfold import UserError

Layer = TypeVar("Layer", bound="PartialConv2d")


def whole_kernel(
    frozen: Float[Tensor, "o i kh kw"], trained: Float[Tensor, "..."], region: tuple[Any, ...], beside: Tensor
) -> Float[Tensor, "o i kh kw"]:
    """W: the frozen kernel with the trained elements in their places (paper §3.2: the two branches added up).

    Args:
        frozen: Wf. It is overwritten in the region and returned, so that no second kernel is held; a new tensor is made where
            writing is not allowed: in `torch.compile` and in the transforms of `torch.func`.
        trained: the elements there.
        region: an index into W that gives the shape of `trained`.
        beside: the tensor that W is used with, which tells whether a transform runs.
    """
    if is_transformed(trained) or is_transformed(beside):
        places = torch.arange(frozen.numel(), device=frozen.device).view(frozen.shape)[region].flatten()
        return frozen.flatten().scatter(0, places, trained.flatten().to(frozen.dtype)).view(frozen.shape)
    # Through `data` no version counter moves: W is not what a graph keeps, `trained` is, and its counter does.
    frozen.data[region] = trained.detach().to(frozen.dtype)
    return frozen


class PartialConv2d(StockConvolution):
    """A convolution with a frozen kernel, a part of which is a parameter.

    Attributes:
        frozen: the frozen part of the kernel, a buffer; what it holds in the place of `trained` is not read.
        bias: parameter or None.
        trained: the trained part of the kernel, the only kernel elements that have a gradient and optimiser state.
        index: trained input channels in ascending order, or None for all.
        geometry: kernel size, stride, padding, dilation, groups.
    """

    frozen: Tensor
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
        self.register_buffer("frozen", weight.detach().clone())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone(), False))
        self.register_buffer("index", None)
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
        return self.frozen.shape[1] * self.geometry.groups

    @property
    def out_channels(self) -> int:
        """O."""
        return self.frozen.shape[0]

    @property
    def weight(self) -> Float[Tensor, "o i kh kw"]:
        """The whole kernel W as it is now."""
        return whole_kernel(self.frozen, self.trained, self.region(), self.frozen)

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
        whole = self.weight if hasattr(self, "trained") else self.frozen
        self.index = None if index is None else index.sort().values.to(whole.device)
        self.trained = nn.Parameter(whole[self.region()].clone())

    def elements(self) -> Float[Tensor, "..."]:
        """A copy of all elements that could be trained, those of every channel: what `rewind` needs."""
        index, self.index = self.index, None
        region, self.index = self.region(), index
        return self.weight[region].clone()

    @torch.no_grad()
    def rewind(self, index: Int[Tensor, " s"] | None, elements: Float[Tensor, "..."]) -> None:
        """Go back to an earlier choice of channels and the `elements` of then. `trained` becomes a new parameter."""
        self.select(None)
        self.trained.copy_(elements)
        self.select(index)

    def _check(self, index: Tensor) -> None:
        groups, channels = self.geometry.groups, self.in_channels
        if groups not in (1, channels):
            raise UserError(f"channels of a convolution with {groups} groups cannot be selected; train all of them")
        if index.numel() == 0 or index.unique().numel() != index.numel():
            raise UserError("selected channels must be distinct and at least one")
        if int(index.min()) < 0 or int(index.max()) >= channels:
            raise UserError(f"selected channels must lie in 0..{channels - 1}")

    def restore(self) -> nn.Conv2d:
        """An ordinary convolution with the trained part merged into the kernel (paper §3.2: the branch is added back)."""
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

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        _ = self.weight  # what is saved does not depend on when the layer was last used
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        """Kernel, channels and how much of them is trained."""
        kept = self.trained.numel()
        return f"{self.in_channels}, {self.out_channels}, {self.geometry}, trained {kept} of {self.frozen.numel()}"
