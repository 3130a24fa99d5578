"""The time-aware latent discriminator: small heads on the frozen teacher's features, modulated by the time (TAD-SR)."""

from collections.abc import Sequence
from math import gcd, sqrt
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from tadsr.models.diffusion import Times

Sequence1d = Float[Tensor, "b c l"]


def spectral_conv(channels: int, out: int, kernel: int) -> nn.Module:
    """1-D convolution along the flattened map, its ends joined, under spectral normalisation."""
    conv = nn.Conv1d(channels, out, kernel, padding=kernel // 2, padding_mode="circular")
    return spectral_norm(conv)


def spectral_block(channels: int, kernel: int) -> nn.Sequential:
    """Spectrally normalised convolution, group normalisation with 4 groups, leaky ReLU."""
    return nn.Sequential(spectral_conv(channels, channels, kernel), nn.GroupNorm(4, channels), nn.LeakyReLU(0.2))


class ScaledResidual(nn.Module):
    """(fn(x) + x) / sqrt(2)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Sequence1d) -> Sequence1d:
        """Features of the same shape."""
        return (self.fn(x) + x) / sqrt(2)


class Head(nn.Module):
    """Logits for each position of a flattened map.

    Args:
        channels: of the features.
        logits: per position.
    """

    def __init__(self, channels: int, logits: int) -> None:
        super().__init__()
        self.main = nn.Sequential(spectral_block(channels, 1), ScaledResidual(spectral_block(channels, 9)))
        self.cls = spectral_conv(channels, logits, 1)

    def forward(self, x: Sequence1d) -> Float[Tensor, "b n"]:
        """Logits, those of one channel together."""
        return self.cls(self.main(x)).flatten(1)


class TimeAwareDiscriminator(ModelMixin, ConfigMixin):
    """For each tap: GN(features) (1 + a(t)) + b(t), SiLU, a convolution that starts at zero, then a head.

    The zero convolution makes the first logits blind to the features and the first adversarial gradient exactly zero.

    Args:
        tap_channels: channels of the taps.
        embed_dim: width of the time's sinusoid.
        logits: per position.
        time_aware: without it, features are normalised only (the paper's "vanilla" ablation).
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        tap_channels: Sequence[int] = (160, 320, 320, 640, 640),
        embed_dim: int = 160,
        logits: int = 64,
        time_aware: bool = True,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(channels, logits) for channels in tap_channels)
        self.emb_layers = nn.ModuleList()
        self.out_layers = nn.ModuleList()
        for channels in tap_channels:
            if time_aware:
                self.emb_layers.append(nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 2 * channels)))
            conv = nn.Conv2d(channels, channels, 3, padding=1)
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)  # ty: ignore[invalid-argument-type]  # it has one
            norm = nn.GroupNorm(gcd(32, channels), channels)
            self.out_layers.append(nn.Sequential(norm, nn.SiLU(), nn.Identity(), conv))

    def forward(self, features: list[Tensor], t: Times) -> list[Float[Tensor, "b _n"]]:
        """Logits of every tap.

        Args:
            features: (b, c, h, w) each.
            t: the time the features are of.
        """
        if self.config.time_aware:
            sinusoid = get_timestep_embedding(t, self.config.embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        logits = []
        for index, (tap, head) in enumerate(zip(features, self.heads, strict=True)):
            layers: Any = self.out_layers[index]
            norm, activation, _, conv = layers
            hidden = norm(tap)
            if self.config.time_aware:
                a, b = self.emb_layers[index](sinusoid.to(tap.dtype))[..., None, None].chunk(2, dim=1)
                hidden = hidden * (1 + a) + b
            logits.append(head(conv(activation(hidden)).flatten(2)))
        return logits


class MultipleDiscriminator(ModelMixin, ConfigMixin):
    """One discriminator without time for each time (the paper's "multiple" ablation, as we read it).

    Args:
        tap_channels: channels of the taps.
        logits: per position.
        times: how many times there are.
    """

    @register_to_config
    def __init__(self, tap_channels: Sequence[int], logits: int, times: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            TimeAwareDiscriminator(tap_channels, logits=logits, time_aware=False) for _ in range(times)
        )

    def forward(self, features: list[Tensor], t: Times) -> list[Float[Tensor, "b _n"]]:
        """Logits of every tap, each sample by the discriminator of its time."""
        rows = [
            self.each[int(time)]([tap[index : index + 1] for tap in features], t[index : index + 1])
            for index, time in enumerate(t)
        ]
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]


def mean_logit(logits: list[Float[Tensor, "b _n"]], per_tap: bool = False) -> Float[Tensor, " b"]:
    """One number per sample.

    Args:
        logits: of every tap.
        per_tap: mean of the taps' means, instead of over all logits, where large maps weigh more (published).
    """
    if per_tap:
        return torch.stack([each.mean(1) for each in logits]).mean(0)
    return torch.cat(logits, 1).mean(1)


def hinge_d(
    real: list[Float[Tensor, "b _n"]], fake: list[Float[Tensor, "b _n"]], per_tap: bool = False
) -> Float[Tensor, " b"]:
    """mean relu(1 - l_real) + mean relu(1 + l_fake), per sample: the discriminator's loss."""
    return mean_logit([F.relu(1 - each) for each in real], per_tap) + mean_logit(
        [F.relu(1 + each) for each in fake], per_tap
    )


def hinge_g(fake: list[Float[Tensor, "b _n"]], per_tap: bool = False) -> Float[Tensor, " b"]:
    """-mean l_fake, per sample: the student's adversarial loss."""
    return -mean_logit(fake, per_tap)
