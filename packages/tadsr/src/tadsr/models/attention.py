"""Window attention inside the UNet: Swin blocks with group normalisation, under ResShift's parameter names."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

Maps = Float[Tensor, "b _c _h _w"]


class GroupNorm32(nn.GroupNorm):
    """Group normalisation with 32 groups, computed in float32 whatever comes in."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(self, x: Tensor) -> Tensor:  # ty: ignore[lost-keyword-for-regular-parameter]  # the other layers' name
        """Normalise (b, c, ...)."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def to_windows(x: Maps, side: int) -> Float[Tensor, "n p c"]:
    """Cut maps into windows of side x side positions, row by row."""
    b, c, h, w = x.shape
    cut = x.reshape(b, c, h // side, side, w // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, c)


def from_windows(windows: Float[Tensor, "n p c"], side: int, height: int, width: int) -> Maps:
    """Undo `to_windows`."""
    c = windows.shape[-1]
    cut = windows.reshape(-1, height // side, width // side, side, side, c)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(-1, c, height, width)


def _separate(groups: Float[Tensor, "n p"]) -> Float[Tensor, "n p p"]:
    """-100 between positions of different groups of one window, 0 elsewhere."""
    return torch.where(groups[:, None, :] == groups[:, :, None], 0.0, -100.0)


def shift_mask(height: int, width: int, side: int, shift: int) -> Float[Tensor, "n p p"]:
    """Separates the positions that a cyclic shift has brought into one window from different places (Swin)."""

    def regions(length: int) -> Tensor:
        position = torch.arange(length)
        return (position >= length - side).long() + (position >= length - shift).long()

    label = regions(height)[:, None] * 3 + regions(width)[None, :]
    return _separate(to_windows(label[None, None].float(), side).squeeze(-1))


def published_mask(height: int, width: int, side: int, shift: int) -> Float[Tensor, "n p p"]:
    """The mask of ResShift's code: only the last row of windows is masked, between its left and right positions.

    The code writes its labels along the wrong axes of a (1, 1, height, width) map and transposes the windows afterwards.
    Public checkpoints of ResShift, SinSR and TAD-SR were trained with it, so they need it.
    """
    column = torch.arange(side * side) % side
    groups = torch.zeros(height // side, width // side, side * side)
    groups[-1] = (column >= side - shift).float()
    return _separate(groups.flatten(0, 1))


MASKS = {"published": published_mask, "swin": shift_mask}


class Mlp(nn.Module):
    """Two 1x1 convolutions with an exact GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Maps) -> Maps:
        """Maps of the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """x + attention(GN(x)) in (shifted) windows, then x + mlp(GN(x)).

    Args:
        channels: width.
        heads: of the attention.
        window: side of a window.
        shift: cyclic shift before cutting, 0 for none.
        mlp_ratio: hidden width of the MLP over `channels`.
        mask_of: (height, width, window, shift) -> the mask of a shifted block.
    """

    def __init__(
        self, channels: int, heads: int, window: int, shift: int, mlp_ratio: float, mask_of: Callable[..., Tensor]
    ) -> None:
        super().__init__()
        self.window, self.shift, self.mask_of = window, shift, mask_of
        self.norm1 = GroupNorm32(channels)
        self.attn = WindowAttention(channels, heads, window_size=window)
        # Attention in one kernel; timm leaves it off by default.
        self.attn.fused_attn = True  # ty: ignore[invalid-assignment]  # final for TorchScript only
        self.norm2 = GroupNorm32(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self._masks: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def mask(self, height: int, width: int, like: Tensor) -> Tensor | None:
        """The shift's mask, made once per size, device and dtype."""
        if not self.shift:
            return None
        key = (height, width, like.device, like.dtype)
        if key not in self._masks:
            self._masks[key] = self.mask_of(height, width, self.window, self.shift).to(like.device, like.dtype)
        return self._masks[key]

    def attention(self, x: Maps) -> Maps:
        """Attention within windows of the shifted maps."""
        height, width = x.shape[-2:]
        shifted = x.roll((-self.shift, -self.shift), (2, 3)) if self.shift else x
        windows = to_windows(shifted, self.window)
        mixed = self.attn(windows, mask=self.mask(height, width, windows))
        back = from_windows(mixed, self.window, height, width)
        return back.roll((self.shift, self.shift), (2, 3)) if self.shift else back

    def forward(self, x: Maps) -> Maps:
        """Maps of the same shape; sides are multiples of the window."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Projection(nn.Module):
    """A 1x1 convolution under the name `proj` (ResShift's patch embedding with patches of one pixel)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out, 1)

    def forward(self, x: Maps) -> Maps:
        """Project the channels."""
        return self.proj(x)


class SwinLayer(nn.Module):
    """1x1 convolution to the attention's width, blocks of which every second is shifted, 1x1 convolution back; no skip around it.

    Args:
        channels: of the UNet at this place.
        resolution: the configured side of the maps; a level no larger than the window is never shifted, at any actual size.
        width: of the attention.
        depth: number of blocks.
        head_channels: width of a head.
        window: side of a window.
        mlp_ratio: see `SwinBlock`.
        mask: name of the mask of shifted blocks, see `MASKS`.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        width: int,
        depth: int,
        head_channels: int,
        window: int,
        mlp_ratio: float,
        mask: str,
    ) -> None:
        super().__init__()
        side = min(window, resolution)
        shift = 0 if resolution <= window else window // 2
        self.patch_embed = Projection(channels, width)
        self.patch_unembed = Projection(width, channels)
        self.blocks = nn.ModuleList(
            SwinBlock(width, width // head_channels, side, shift if index % 2 else 0, mlp_ratio, MASKS[mask])
            for index in range(depth)
        )

    def forward(self, x: Maps) -> Maps:
        """Maps of the same shape."""
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.patch_unembed(x)
