"""Pairs as latents, encoded once: the target scaled, the picture condition not (InstructPix2Pix's convention)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from instructbrush.models.instruction import Pipeline
from tenfold.errors import UserError


@dataclass(frozen=True)
class LatentPairs:
    """Latents of pairs.

    Attributes:
        before: z_x = E(x), the mode, not scaled.
        after: z_y = sc E(y).
        flipped: the same of the mirrored pictures, where that augmentation is wanted.
    """

    before: Float[Tensor, "k c h w"]
    after: Float[Tensor, "k c h w"]
    flipped: "LatentPairs | None" = None

    def __len__(self) -> int:
        return len(self.before)


@torch.no_grad()
def encode_pairs(
    pipe: Pipeline, before: Float[Tensor, "k 3 h w"], after: Float[Tensor, "k 3 h w"], flip: bool = False
) -> LatentPairs:
    """Encode pictures in [0, 1], one at a time.

    Raises:
        UserError: sides that are no multiples of the autoencoder's reduction.
    """
    factor = pipe.vae_scale_factor
    if any(side % factor for side in before.shape[-2:]):
        raise UserError(f"pictures of {before.shape[-1]} x {before.shape[-2]}: sides must be multiples of {factor}")
    device, dtype = pipe._execution_device, pipe.vae.dtype

    def encoded(images: Tensor) -> Tensor:
        parts = [pipe.vae.encode((each[None] * 2 - 1).to(device, dtype)).latent_dist.mode() for each in images]
        return torch.cat(parts).float()

    mirrored = encode_pairs(pipe, before.flip(-1), after.flip(-1)) if flip else None
    return LatentPairs(encoded(before), encoded(after) * pipe.vae.config.scaling_factor, mirrored)
