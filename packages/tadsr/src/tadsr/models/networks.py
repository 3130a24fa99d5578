"""ResShift's Swin UNet, the network of teacher and student, under the parameter names of the public checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tadsr.models.attention import GroupNorm32, Maps, SwinLayer
from tadsr.models.diffusion import Times


@dataclass
class UNetOutput(BaseOutput):
    """What a denoiser returns.

    Attributes:
        sample: the prediction, of the latent's shape.
    """

    sample: Tensor


class ResBlock(nn.Module):
    """Residual block with FiLM time conditioning: GN, SiLU, Conv; GN (1 + scale) + shift, SiLU, Conv (zero-initialised)."""

    def __init__(self, channels: int, out: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        last = nn.Conv2d(out, out, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # ty: ignore[invalid-argument-type]  # it has one
        self.out_layers = nn.Sequential(GroupNorm32(out), nn.SiLU(), nn.Dropout(dropout), last)
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Maps, emb: Float[Tensor, "b e"]) -> Maps:
        """Maps with `out` channels."""
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        hidden = norm(self.in_layers(x)) * (1 + scale) + shift
        for layer in rest:
            hidden = layer(hidden)
        return self.skip_connection(x) + hidden


class Downsample(nn.Module):
    """Half the sides by a strided convolution."""

    def __init__(self, channels: int, out: int | None = None) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, out or channels, 3, stride=2, padding=1)

    def forward(self, x: Maps) -> Maps:
        """Maps of half the sides."""
        return self.op(x)


class Upsample(nn.Module):
    """Twice the sides: nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Maps) -> Maps:
        """Maps of twice the sides."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.Sequential):
    """Layers in a row, of which residual blocks also take the time embedding."""

    def forward(self, x: Maps, emb: Float[Tensor, "b e"]) -> Maps:  # ty: ignore[incompatible-method-override]
        """Maps after the last layer."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def condition_extractor(halvings: int, channels: int = 16) -> nn.Sequential:
    """Brings a larger low-quality image to the latent's size: per halving Conv to c, SiLU, strided Conv to 2c."""
    layers: list[nn.Module] = []
    width = 3
    for level in range(halvings):
        inner = channels * 2**level
        layers += [nn.Conv2d(width, inner, 3, padding=1), nn.SiLU(), Downsample(inner, 2 * inner)]
        width = 2 * inner
    return nn.Sequential(*layers)


class ResShiftUNet(ModelMixin, ConfigMixin):
    """The Swin UNet (118,593,583 parameters as configured by default, for x4 super-resolution).

    Args:
        image_size: side of the latent that the levels are configured for; other sizes work (see `multiple`).
        in_channels: of the latent.
        out_channels: of the prediction.
        model_channels: width of the first level.
        channel_mult: width of each level over the first's.
        num_res_blocks: residual blocks of each level of the encoder.
        swin_depth: Swin blocks in a row.
        swin_embed_dim: width of the attention.
        num_head_channels: width of a head.
        window_size: side of an attention window.
        mlp_ratio: of the Swin blocks.
        dropout: in the residual blocks.
        lq_size: side of the low-quality image for a latent of `image_size`; larger ones are brought down by convolutions.
        lq_channels: of the low-quality image.
        shift_mask: what shifted windows are masked by: `published`, a slip that the public checkpoints were trained with
            (see `swin.published_mask`), or `swin`, as Swin transformers mean it.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 160,
        channel_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: Sequence[int] = (2, 2, 2, 2),
        swin_depth: int = 2,
        swin_embed_dim: int = 192,
        num_head_channels: int = 32,
        window_size: int = 8,
        mlp_ratio: float | int = 4,
        dropout: float | int = 0.0,
        lq_size: int = 64,
        lq_channels: int = 3,
        shift_mask: Literal["published", "swin"] = "published",
    ) -> None:
        super().__init__()
        embedding = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        mlp_ratio, dropout = float(mlp_ratio), float(dropout)
        halvings = (lq_size // image_size).bit_length() - 1
        if halvings:
            self.feature_extractor = condition_extractor(halvings)
            lq_channels = 16 * 2**halvings

        def swin(channels: int, level: int) -> SwinLayer:
            resolution = image_size // 2**level
            return SwinLayer(
                channels, resolution, swin_embed_dim, swin_depth, num_head_channels, window_size, mlp_ratio, shift_mask
            )

        width = model_channels * channel_mult[0]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(in_channels + lq_channels, width, 3, padding=1))])
        skips = [width]
        for level, (mult, depth) in enumerate(zip(channel_mult, num_res_blocks, strict=True)):
            for index in range(depth):
                block = ResBlock(width, model_channels * mult, embedding, dropout)
                width = model_channels * mult
                self.input_blocks.append(Stage(block, swin(width, level)) if index == 0 else Stage(block))
                skips.append(width)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(Stage(Downsample(width)))
                skips.append(width)
        bottom = len(channel_mult) - 1
        self.middle_block = Stage(
            ResBlock(width, width, embedding, dropout), swin(width, bottom), ResBlock(width, width, embedding, dropout)
        )
        self.output_blocks = nn.ModuleList()
        for level in range(bottom, -1, -1):
            for index in range(num_res_blocks[level] + 1):
                out = model_channels * channel_mult[level]
                layers: list[nn.Module] = [ResBlock(width + skips.pop(), out, embedding, dropout)]
                width = out
                if index == 0:
                    layers.append(swin(width, level))
                if level and index == num_res_blocks[level]:
                    layers.append(Upsample(width))
                self.output_blocks.append(Stage(*layers))
        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    @property
    def taps(self) -> list[int]:
        """Input blocks whose output the discriminator sees: every downsampling layer and the last block (TAD-SR)."""
        stages: Any = self.input_blocks
        down = [index for index, stage in enumerate(stages) if isinstance(stage[0], Downsample)]
        return [*down, len(self.input_blocks) - 1]

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """Channels of the taps; the last is the middle block's."""
        mult, channels = self.config.channel_mult, self.config.model_channels
        return tuple(channels * m for m in (*mult[:-1], mult[-1], mult[-1]))

    @property
    def multiple(self) -> int:
        """What the latent's sides must be multiples of: a window at the lowest level."""
        levels = len(self.config.channel_mult)
        window = min(self.config.window_size, ceil(self.config.image_size / 2 ** (levels - 1)))
        return max(window * 2 ** (levels - 1), self.config.window_size)

    def forward(
        self, sample: Maps, timestep: Times | int, lq: Maps | None = None, return_features: bool = False
    ) -> UNetOutput | list[Tensor]:
        """Predict z_0.

        Args:
            sample: latent, already scaled by the scheduler.
            timestep: step index, one per sample or one for all.
            lq: low-quality image in [-1, 1].
            return_features: run encoder and middle block only and return the taps.
        """
        times = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        sinusoid = get_timestep_embedding(
            times, self.config.model_channels, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        emb = self.time_embed(sinusoid.to(sample.dtype))
        if lq is not None:
            condition = self.feature_extractor(lq) if hasattr(self, "feature_extractor") else lq
            sample = torch.cat([sample, condition.to(sample.dtype)], dim=1)
        hidden, passed = sample, []
        for stage in self.input_blocks:
            hidden = stage(hidden, emb)
            passed.append(hidden)
        middle = self.middle_block(hidden, emb)
        if return_features:
            return [*(passed[index] for index in self.taps), middle]
        hidden = middle
        for stage in self.output_blocks:
            hidden = stage(torch.cat([hidden, passed.pop()], dim=1), emb)
        return UNetOutput(sample=self.out(hidden))
