"""The latent spaces: the VQ autoencoders of the public checkpoints, and two exactly invertible ones without weights.

All have `encode(x).latents` (before quantisation) and `decode(z).sample`, on images in [-1, 1], as `diffusers.VQModel`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vq_model import VQEncoderOutput, VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class DecoderOutput(BaseOutput):
    """A decoded picture.

    Attributes:
        sample: (b, 3, h, w), about [-1, 1].
    """

    sample: Tensor


class PixelUnshuffleAutoencoder(ModelMixin, ConfigMixin):
    """Space to depth: blocks of factor x factor pixels become channels. Exactly invertible, no weights.

    Args:
        factor: side of a block; latents are that many times smaller.
        scale: multiplies the latent, so that its variance is about 1.
        channels: of the picture.
    """

    config: Any

    @register_to_config
    def __init__(self, factor: int = 4, scale: float = 2.0, channels: int = 3) -> None:  # noqa: ARG002  # kept in the configuration
        super().__init__()
        self.factor, self.scale = factor, scale
        # diffusers asks a model's parameters for device and dtype.
        self.register_buffer("anchor", torch.zeros(()), persistent=True)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.config.channels * self.factor**2

    def encode(self, x: Float[Tensor, "b c _h _w"]) -> VQEncoderOutput:
        """Latent of a picture whose sides are multiples of the factor."""
        return VQEncoderOutput(latents=F.pixel_unshuffle(x, self.factor) * self.scale)

    def decode(self, z: Float[Tensor, "b c _h _w"]) -> DecoderOutput:
        """Picture of a latent."""
        return DecoderOutput(sample=F.pixel_shuffle(z / self.scale, self.factor))


class IdentityAutoencoder(PixelUnshuffleAutoencoder):
    """Latent = picture: diffusion in pixel space, and tests."""

    @register_to_config
    def __init__(self, channels: int = 3) -> None:  # noqa: ARG002  # kept in the configuration
        nn.Module.__init__(self)
        self.factor, self.scale = 1, 1.0
        self.register_buffer("anchor", torch.zeros(()), persistent=True)


def vq_f4() -> VQModel:
    """The f4 autoencoder of the x4 super-resolution checkpoints (55,322,782 parameters), untrained."""
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(128, 256, 512),
        layers_per_block=2,
        latent_channels=3,
        num_vq_embeddings=8192,
        vq_embed_dim=3,
        scaling_factor=1.0,
    )


class FaceVQModel(VQModel):
    """The f8 autoencoder of the face checkpoints: level i of encoder and decoder has i+1 (decoder: i+2) residual blocks.

    Args:
        block_out_channels: channels of the levels.
        depths: residual blocks of the encoder's levels.
        latent_channels: of the latent.
        num_vq_embeddings: codes.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (1, 2, 3, 4),
        latent_channels: int = 8,
        num_vq_embeddings: int = 4096,
        norm_num_groups: int = 32,
        scaling_factor: float = 1.0,  # noqa: ARG002  # kept in the configuration
        lookup_from_codebook: bool = False,  # noqa: ARG002  # kept in the configuration
        force_upcast: bool = False,  # noqa: ARG002  # kept in the configuration
    ) -> None:
        levels = len(block_out_channels)
        VQModel.__init__.__wrapped__(  # `register_to_config` wraps it
            self,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=block_out_channels,
            layers_per_block=max(depths),
            latent_channels=latent_channels,
            num_vq_embeddings=num_vq_embeddings,
            vq_embed_dim=latent_channels,
            norm_num_groups=norm_num_groups,
        )
        for level, depth in enumerate(depths):
            down: Any = self.encoder.down_blocks[level]
            down.resnets = down.resnets[:depth]
            up: Any = self.decoder.up_blocks[levels - 1 - level]
            up.resnets = up.resnets[: depth + 1]
