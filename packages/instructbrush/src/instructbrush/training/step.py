"""Training the embedded model's editor: from noisy target, source and instruction to the clean target (Brooks et al., CVPR 2023)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from instructbrush.data.image_banks import PhotoBank
from instructbrush.data.samplers import EditExample, draw_edit
from instructbrush.method.losses import Scheduler, denoising_loss, diffusion_target, stratified_timesteps
from instructbrush.models.autoencoders import PatchAutoencoder
from tenfold.random import keyed_generator, seed_of
from tenfold.runs import autocast

DROPPED = 0.05
"""Share of rows that lose their text, their picture, or both, so that guidance has something to compare with."""


@dataclass(frozen=True)
class EditorBatch:
    """Rows of one step: inputs of the network and what it should say."""

    noisy: Float[Tensor, "b c h w"]
    source: Float[Tensor, "b c h w"]
    text: Float[Tensor, "b l d"]
    timesteps: Int[Tensor, " b"]
    target: Float[Tensor, "b c h w"]

    def to(self, device: torch.device) -> "EditorBatch":
        """The same on another device."""
        parts = (self.noisy, self.source, self.text, self.timesteps, self.target)
        return EditorBatch(*(each.to(device) for each in parts))


class EditorStep(nn.Module):
    """The network with its loss, as one module that several processes can share.

    Args:
        unet: the network.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, batch: EditorBatch) -> Float[Tensor, ""]:
        """Mean squared error of the prediction."""
        device = batch.noisy.device
        inputs = torch.cat([batch.noisy, batch.source], dim=1).to(memory_format=torch.channels_last)
        with autocast(device):
            prediction = self.unet(inputs, batch.timesteps, encoder_hidden_states=batch.text).sample
        return denoising_loss(prediction, batch.target)


def draw_examples(photos: PhotoBank, step: int, rows: Sequence[int], seed: int) -> list[EditExample]:
    """The edits of some rows of a step; each follows from (seed, step, row) alone."""
    return [draw_edit(random.Random(seed_of(seed, "edit", step, row)), photos) for row in rows]


@torch.no_grad()
def editor_batch(
    examples: Sequence[EditExample],
    vae: PatchAutoencoder,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: Scheduler,
    step: int,
    rows: Sequence[int],
    batch: int,
    seed: int,
) -> EditorBatch:
    """Noise the targets, and drop text or source from some rows.

    Args:
        examples: the edits of `rows`.
        vae: of the model.
        text_encoder: of the model.
        tokenizer: of the model.
        scheduler: of the training.
        step: which.
        rows: numbers of the rows, out of `batch`.
        batch: rows of all processes together.
        seed: of the run.
    """
    draws = keyed_generator(seed, "noise", step)
    timesteps = stratified_timesteps(batch, scheduler.config.num_train_timesteps, draws)[list(rows)]
    fate = torch.rand(batch, generator=draws)[list(rows)]
    clean = vae.latents(torch.stack([each.after for each in examples]) * 2 - 1)
    source = vae.latents(torch.stack([each.before for each in examples]) * 2 - 1)
    noise = torch.randn((batch, *clean.shape[1:]), generator=draws)[list(rows)]
    silent, blind = (
        (fate < DROPPED) | (fate > 1 - DROPPED),
        (fate >= DROPPED) & (fate < 2 * DROPPED) | (fate > 1 - DROPPED),
    )
    words = ["" if quiet else each.instruction for each, quiet in zip(examples, silent, strict=True)]
    tokens = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt")
    return EditorBatch(
        noisy=scheduler.add_noise(clean, noise, timesteps),
        source=source * (~blind)[:, None, None, None],
        text=text_encoder(tokens.input_ids)[0],
        timesteps=timesteps,
        target=diffusion_target(scheduler, clean, noise, timesteps),
    )
