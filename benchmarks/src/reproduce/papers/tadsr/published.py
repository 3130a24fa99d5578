"""The Swin UNet with window attention arranged as ResShift's code has it, for comparing speeds.

Every block, shifted or not, builds its mask anew in each call, and attention is written out: scores, bias, mask, softmax, product.
"""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tadsr.models.networks import ResShiftUNet


def written_out_attention(attn: Any, windows: Tensor, mask: Tensor) -> Tensor:
    """Window attention step by step."""
    count, positions, channels = windows.shape
    heads = attn.num_heads
    q, k, v = attn.qkv(windows).reshape(count, positions, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    index = attn.relative_position_index.flatten()
    bias = attn.relative_position_bias_table[index].reshape(positions, positions, -1).permute(2, 0, 1)
    scores = scores + bias[None]
    scores = scores.reshape(count // len(mask), len(mask), heads, positions, positions) + mask[:, None][None]
    weights = scores.reshape(-1, heads, positions, positions).softmax(-1)
    return attn.proj((weights @ v).transpose(1, 2).reshape(count, positions, channels))


def published_unet(unet: "ResShiftUNet") -> "ResShiftUNet":
    """A copy with the published arrangement."""
    from tadsr.models.attention import SwinBlock, from_windows, published_mask, to_windows

    class PublishedBlock(SwinBlock):
        """A block whose mask is built in every call."""

        def attention(self, x: Tensor) -> Tensor:
            """Attention within windows of the shifted maps."""
            height, width = x.shape[-2:]
            shifted = x.roll((-self.shift, -self.shift), (2, 3)) if self.shift else x
            if self.shift:
                mask = published_mask(height, width, self.window, self.shift).to(x)
            else:
                mask = torch.zeros(height * width // self.window**2, self.window**2, self.window**2).to(x)
            mixed = written_out_attention(self.attn, to_windows(shifted, self.window), mask)
            back = from_windows(mixed, self.window, height, width)
            return back.roll((self.shift, self.shift), (2, 3)) if self.shift else back

    copy = deepcopy(unet)
    for module in copy.modules():
        if isinstance(module, SwinBlock):
            module.__class__ = PublishedBlock
    return copy
