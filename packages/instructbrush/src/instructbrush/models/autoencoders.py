"""A linear patch autoencoder with the interface of diffusers' `AutoencoderKL`: principal components of small patches.

It stands in for a learned VAE in the embedded base model: fitted in seconds, and its error is only what the dropped components held.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Deterministic:
    """A posterior of no width."""

    mean: Float[Tensor, "b c h w"]

    def mode(self) -> Float[Tensor, "b c h w"]:
        """The latent."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c h w"]:  # noqa: ARG002  # AutoencoderKL's
        """The latent."""
        return self.mean


@dataclass
class Encoded:
    """What `encode` returns."""

    latent_dist: Deterministic


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Patches of `patch` pixels a side on their first principal components, each divided by the root of its deviation.

    The root keeps the small components, where the fine detail is, from drowning in the noise of the diffusion.

    Args:
        patch: side of a patch.
        latent_channels: components kept.
        scaling_factor: as in AutoencoderKL: target latents are multiplied by it, image conditions are not.
        block_out_channels: only its length counts: pipelines take 2^(length - 1) for the reduction, which must be `patch`.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        patch: int = 4,
        latent_channels: int = 24,
        scaling_factor: float = 1.0,  # noqa: ARG002  # kept in the configuration
        block_out_channels: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        if 2 ** (len(block_out_channels) - 1) != patch:
            raise ValueError(f"block_out_channels of length {len(block_out_channels)} do not say a patch of {patch}")
        self.patch = patch
        numbers = 3 * patch * patch
        self.mean = nn.Parameter(torch.zeros(numbers), requires_grad=False)
        self.basis = nn.Parameter(torch.eye(latent_channels, numbers), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(latent_channels), requires_grad=False)

    def latents(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c _ _"]:
        """Latents of pictures in [-1, 1] whose sides are multiples of the patch."""
        patches = F.pixel_unshuffle(x, self.patch) - self.mean[:, None, None]
        return torch.einsum("kn,bnhw->bkhw", self.basis, patches) / self.scale[:, None, None]

    def encode(self, x: Float[Tensor, "b 3 h w"], return_dict: bool = True) -> Encoded | tuple[Deterministic]:
        """The latents as AutoencoderKL hands them out."""
        found = Deterministic(self.latents(x))
        return Encoded(found) if return_dict else (found,)

    def decode(self, z: Float[Tensor, "b c h w"], return_dict: bool = True, generator: object = None) -> tuple[Tensor]:  # noqa: ARG002  # AutoencoderKL's
        """Pictures in [-1, 1] from latents; always a tuple of one."""
        patches = torch.einsum("kn,bkhw->bnhw", self.basis, z * self.scale[:, None, None])
        return (F.pixel_shuffle(patches + self.mean[:, None, None], self.patch),)

    @torch.no_grad()
    def fit(self, images: Float[Tensor, "b 3 h w"]) -> "PatchAutoencoder":
        """Take the components from the patches of pictures in [-1, 1]."""
        patches = F.pixel_unshuffle(images, self.patch).movedim(1, -1).flatten(0, 2).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        kept = self.basis.shape[0]
        leading, variances = vectors.flip(-1)[:, :kept].T, values.flip(-1)[:kept].clamp(min=1e-12)
        # An eigenvector's sign is arbitrary: the largest entry is made positive, so that fits agree between machines.
        signs = leading.gather(1, leading.abs().argmax(1, keepdim=True)).sign()
        self.mean.copy_(mean)
        self.basis.copy_(leading * signs)
        roots = variances.sqrt().sqrt()
        overall = (variances / roots.square()).mean().sqrt()
        self.scale.copy_(roots * overall)
        return self
