"""What is minimised: the base model's own denoising loss, with only the instruction free (paper §4.1, figure 2)."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Latents = Float[Tensor, "b c h w"]
Times = Int[Tensor, " b"]


@runtime_checkable
class Scheduler(Protocol):
    """What is needed of a diffusers scheduler (built as `DDPMScheduler`)."""

    config: Any

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy latents."""
        ...

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of v-prediction."""
        ...


def diffusion_target(scheduler: Scheduler, clean: Latents, noise: Latents, timesteps: Times) -> Latents:
    """What the network should say: the noise, the velocity or the clean latents, by the scheduler's `prediction_type`.

    Raises:
        ValueError: another prediction type.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)
    if kind == "sample":
        return clean
    raise ValueError(f"prediction_type {kind!r}: expected epsilon, v_prediction or sample")


def denoising_loss(prediction: Latents, target: Latents) -> Float[Tensor, ""]:
    """Mean squared error over everything, in float32."""
    return F.mse_loss(prediction.float(), target.float())


def stratified_timesteps(count: int, total: int, generator: torch.Generator) -> Int[Tensor, " {count}"]:
    """One time step in each of `count` equal parts of 0..total-1, in random order."""
    places = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return (places * total / count).long().clamp(max=total - 1)


def combine_guidance(
    e_text: Float[Tensor, "*s"],
    e_image: Float[Tensor, "*s"],
    e_uncond: Float[Tensor, "*s"],
    s_text: float,
    s_image: float,
) -> Float[Tensor, "*s"]:
    """e_uncond + s_image (e_image - e_uncond) + s_text (e_text - e_image).

    The coefficients sum to one, so noise, velocity and clean predictions are all combined rightly.

    Args:
        e_text: prediction with instruction and picture.
        e_image: prediction with the empty instruction and the picture.
        e_uncond: prediction with neither.
        s_text: instruction scale.
        s_image: picture scale.
    """
    return e_uncond + s_text * (e_text - e_image) + s_image * (e_image - e_uncond)
