"""A small convolutional denoiser for pixel-unshuffled latents: what ships in the wheel, and what the experiments train.

It has the interface of `ResShiftUNet` (scaled latent, time, low-quality image -> z_0; taps of features for the
discriminator) and works at the low-quality image's resolution throughout. It has no normalisation and no attention, so
that its field of view is finite: tiles that overlap by `radius` give the same pixels as the whole picture.
"""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tadsr.models.diffusion import Times
from tadsr.models.networks import UNetOutput


class FilmBlock(nn.Module):
    """x + Conv(SiLU(Conv(x) (1 + scale(t)) + shift(t))), the second convolution starting at zero."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # ty: ignore[invalid-argument-type]  # it has one

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        """Features of the same shape."""
        scale, shift = self.film(emb)[..., None, None].chunk(2, dim=1)
        return x + self.conv2(F.silu(self.conv1(x) * (1 + scale) + shift))


class CompactDenoiser(ModelMixin, ConfigMixin):
    """Predicts z_0 = z_y + a(t) z_t + b(t) z_y + body(z_t, lq, t), z_y being the bicubic enlargement of lq.

    Args:
        latent_channels: of z: picture channels times factor squared.
        lq_channels: of the low-quality image.
        channels: width of the body.
        depth: residual blocks, at least 4.
        factor: of the pixel-unshuffle autoencoder.
        scale: of the pixel-unshuffle autoencoder.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        lq_channels: int = 3,
        channels: int = 96,
        depth: int = 8,
        factor: int = 4,  # noqa: ARG002  # kept in the configuration
        scale: float = 2.0,  # noqa: ARG002  # kept in the configuration
    ) -> None:
        super().__init__()
        if depth < 4:
            raise ValueError(f"depth must be at least 4 for three taps, got {depth}")
        embedding = 64
        self.time_embed = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.conv_in = nn.Conv2d(latent_channels + lq_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(FilmBlock(channels, embedding) for _ in range(depth))
        self.conv_out = nn.Conv2d(channels, latent_channels, 3, padding=1)
        self.skip = nn.Linear(embedding, 2 * latent_channels)
        for layer in (self.conv_out, self.skip):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # ty: ignore[invalid-argument-type]  # both have one

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """Channels of the taps that `return_features` gives."""
        return (self.config.channels,) * 3

    @property
    def multiple(self) -> int:
        """What the latent's sides must be multiples of."""
        return 1

    @property
    def radius(self) -> int:
        """How far, in latent pixels, an input can influence an output: one per convolution, two for bicubic interpolation."""
        return 2 * self.config.depth + 2

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Times | int,
        lq: Float[Tensor, "b k h w"],
        return_features: bool = False,
    ) -> UNetOutput | list[Tensor]:
        """Predict z_0.

        Args:
            sample: latent, already scaled by the scheduler.
            timestep: step index, one per sample or one for all.
            lq: low-quality image in [-1, 1], of the latent's size.
            return_features: return the outputs of the blocks at a quarter, half and three quarters of the depth instead.
        """
        times = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        sinusoid = get_timestep_embedding(times, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
        emb = F.silu(self.time_embed(sinusoid.to(self.conv_in.weight.dtype)))
        hidden = self.conv_in(torch.cat([sample, lq], dim=1))
        depth = len(self.blocks)
        wanted = [depth // 4 - 1, depth // 2 - 1, 3 * depth // 4 - 1]
        taps = []
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, emb)
            if return_features and index in wanted:
                taps.append(hidden)
                if len(taps) == len(wanted):
                    return taps
        enlarged = F.interpolate(lq.float(), scale_factor=self.config.factor, mode="bicubic", align_corners=False)
        z_y = F.pixel_unshuffle(enlarged, self.config.factor) * self.config.scale
        of_sample, of_condition = self.skip(emb).float()[..., None, None].chunk(2, dim=1)
        body = self.conv_out(hidden).float()
        return UNetOutput(sample=(z_y * (1 + of_condition) + sample.float() * of_sample + body).to(sample.dtype))
