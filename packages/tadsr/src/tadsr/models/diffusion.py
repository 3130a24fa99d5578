"""The residual-shifting process: schedule, marginals, posterior, deterministic step (ResShift; SinSR for the last).

A chain runs from a clean latent z_0 to the low-quality latent z_y plus noise. Time is 0-based: t = 0 is almost clean, t = T-1
the noisiest. Every coefficient is a function of eta_t; `ResShiftScheduler` keeps the table and looks it up for a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from jaxtyping import Float, Int
from torch import Tensor

Latent = Float[Tensor, "b c h w"]
Times = Int[Tensor, " b"]
Denoiser = Callable[..., Any]
"""(scaled latent, times, low-quality image) -> prediction of z_0, as a tensor or as an output with `.sample`."""

PredictionType = Literal["sample", "epsilon", "epsilon_scale", "residual"]


def sqrt_eta_schedule(
    steps: int,
    min_noise_level: float = 0.04,
    kappa: float = 2.0,
    power: float = 0.3,
    sqrt_eta_end: float = 0.99,
    start_clamp: float | None = None,
) -> Float[Tensor, " t"]:
    """sqrt(eta_t), growing geometrically in (t / (T-1))^power (ResShift, "exponential" schedule).

    Args:
        steps: T, at least 2.
        min_noise_level: noise level of the first step; sqrt(eta_0) = min(this / kappa, this).
        kappa: noise scale of the chain.
        power: shape of the growth.
        sqrt_eta_end: the last value of sqrt(eta), not of eta.
        start_clamp: SinSR's and TAD-SR's code bound sqrt(eta_0) by sqrt(0.001); None, as ResShift, does not.

    Raises:
        ValueError: fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f"a schedule needs at least 2 steps, got {steps}")
    start = min(min_noise_level / kappa, min_noise_level)
    if start_clamp is not None:
        start = min(start, start_clamp)
    progress = (torch.arange(steps, dtype=torch.float64) / (steps - 1)) ** power
    return start * (sqrt_eta_end / start) ** progress


def kept_steps(total: int, count: int) -> list[int]:
    """Which of `total` steps a chain respaced to `count` keeps: int(total / count * i). The noisiest is dropped, as published.

    Raises:
        ValueError: count is not in 1..total.
    """
    if not 1 <= count <= total:
        raise ValueError(f"steps must be between 1 and {total}, got {count}")
    return [int(total / count * index) for index in range(count)]


@dataclass
class ResShiftStep(BaseOutput):
    """One step of a sampler.

    Attributes:
        prev_sample: z_{t-1}.
        pred_original_sample: the prediction of z_0 that it rests on.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class ResShiftScheduler(SchedulerMixin, ConfigMixin):
    """The residual-shifting chain as a diffusers scheduler.

    Args:
        num_train_timesteps: T.
        min_noise_level: see `sqrt_eta_schedule`; 0.04 for T = 15, 0.2 for T = 4.
        kappa: noise scale.
        power: see `sqrt_eta_schedule`.
        sqrt_eta_end: see `sqrt_eta_schedule`.
        start_clamp: see `sqrt_eta_schedule`.
        prediction_type: what the network predicts: z_0 (`sample`), the noise, the scaled noise, or z_y - z_0 (`residual`).
        latent_scaling: scale network inputs to unit variance; off for diffusion in pixel space.
        clip_sample: clip predictions of z_0 to [-1, 1] (pixel space only).
    """

    order = 1
    config: Any

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 15,
        min_noise_level: float = 0.04,
        kappa: float = 2.0,
        power: float = 0.3,
        sqrt_eta_end: float = 0.99,
        start_clamp: float | None = None,
        prediction_type: PredictionType = "sample",  # noqa: ARG002  # kept in the configuration
        latent_scaling: bool = True,  # noqa: ARG002  # kept in the configuration
        clip_sample: bool = False,  # noqa: ARG002  # kept in the configuration
    ) -> None:
        self.sqrt_etas = sqrt_eta_schedule(
            num_train_timesteps, min_noise_level, kappa, power, sqrt_eta_end, start_clamp
        )
        self.etas = self.sqrt_etas.square()
        self.kappa = kappa
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Keep that many steps of the chain (`kept_steps`); networks still receive the original indices."""
        kept = kept_steps(len(self.etas), num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(kept[::-1], device=device)
        self.etas_prev = torch.full_like(self.etas, torch.nan)
        self.etas_prev[kept] = torch.cat([self.etas.new_zeros(1), self.etas[kept[:-1]]])
        self._second = kept[min(1, len(kept) - 1)]

    @property
    def last(self) -> int:
        """T-1, the step that a one-step student is called at."""
        return len(self.etas) - 1

    def at(self, table: Float[Tensor, " t"], t: Times | int, like: Tensor) -> Float[Tensor, "..."]:
        """Entries of a (T,) table for a batch of times, in the dtype of `like`, ready to broadcast over (c, h, w)."""
        picked = table[torch.as_tensor(t).to(table.device)].to(like.device, like.dtype)
        return picked.reshape(-1, 1, 1, 1)

    def scale_model_input(self, sample: Latent, t: Times | int) -> Latent:
        """c_in(t) z_t with c_in = 1 / sqrt(1 + kappa^2 eta_t); in pixel space 1 / (1 + 3 kappa sqrt(eta_t))."""
        if self.config.latent_scaling:
            return sample * self.at((1 + self.kappa**2 * self.etas).rsqrt(), t, sample)
        return sample / self.at(1 + 3 * self.kappa * self.sqrt_etas, t, sample)

    def add_noise(self, original: Latent, condition: Latent, noise: Latent, t: Times | int) -> Latent:
        """Draw z_t: (1 - eta_t) z_0 + eta_t z_y + kappa sqrt(eta_t) eps.

        Args:
            original: z_0.
            condition: z_y.
            noise: eps, standard normal.
            t: one time per sample, or one for all.
        """
        eta = self.at(self.etas, t, original)
        return (1 - eta) * original + eta * condition + self.noise_scale(t, original) * noise

    def noise_scale(self, t: Times | int, like: Tensor) -> Float[Tensor, "..."]:
        """kappa sqrt(eta_t), the standard deviation of the noise in z_t."""
        return self.at(self.kappa * self.sqrt_etas, t, like)

    def prior(self, condition: Latent, noise: Latent) -> Latent:
        """Where sampling starts: z_y + kappa sqrt(eta_{T-1}) eps, with mean z_y and not the exact marginal's."""
        return condition + self.noise_scale(int(self.timesteps[0]), condition) * noise

    def predict_noise(self, sample: Latent, x0: Latent, t: Times | int, condition: Latent) -> Latent:
        """The noise that z_t holds if z_0 is `x0`."""
        eta = self.at(self.etas, t, sample)
        return (sample - (1 - eta) * x0 - eta * condition) / self.noise_scale(t, sample)

    def predict_x0(self, model_output: Latent, sample: Latent, t: Times | int, condition: Latent) -> Latent:
        """z_0 from what the network returns, according to `prediction_type`."""
        eta = self.at(self.etas, t, sample)
        match self.config.prediction_type:
            case "sample":
                x0 = model_output
            case "epsilon":
                x0 = (sample - self.noise_scale(t, sample) * model_output - eta * condition) / (1 - eta)
            case "epsilon_scale":
                x0 = (sample - model_output - eta * condition) / (1 - eta)
            case "residual":
                x0 = condition - model_output
            case other:
                raise ValueError(f"prediction_type {other}: use sample, epsilon, epsilon_scale or residual")
        return x0.clamp(-1, 1) if self.config.clip_sample else x0

    def posterior(
        self, x0: Latent, sample: Latent, t: Times | int
    ) -> tuple[Latent, Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Mean, variance and clipped log-variance of q(z_{t-1} | z_t, z_0).

        The variance is 0 at t = 0; its logarithm is replaced there by that of the next step.
        """
        variance = self.kappa**2 * self.etas_prev * (self.etas - self.etas_prev) / self.etas
        clipped = variance.clone()
        clipped[0] = variance[self._second]
        mean = self.at(self.etas_prev / self.etas, t, sample) * sample
        mean = mean + self.at(1 - self.etas_prev / self.etas, t, sample) * x0
        return mean, self.at(variance, t, sample), self.at(clipped.log(), t, sample)

    def deterministic_coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """(k, m, j) with z_{t-1} = k z_0 + m z_t + j z_y, for every t; they add up to 1 (SinSR)."""
        m = (self.etas_prev / self.etas).sqrt()
        j = self.etas_prev - (self.etas_prev * self.etas).sqrt()
        return 1 - m - j, m, j

    def step(
        self,
        model_output: Latent,
        t: Times | int,
        sample: Latent,
        condition: Latent,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        noise: Latent | None = None,
    ) -> ResShiftStep:
        """One step down the chain.

        Args:
            model_output: what the network returned for the scaled `sample` at `t`.
            t: the time of `sample`.
            sample: z_t.
            condition: z_y.
            eta: 0 keeps the implied noise (SinSR's deterministic step), 1 draws from the posterior (ResShift's ancestral step).
            generator: of the ancestral noise.
            noise: the ancestral noise itself, instead of drawing it.

        Raises:
            ValueError: eta is neither 0 nor 1.
        """
        x0 = self.predict_x0(model_output, sample, t, condition)
        if eta == 0:
            k, m, j = (self.at(table, t, sample) for table in self.deterministic_coefficients())
            return ResShiftStep(prev_sample=k * x0 + m * sample + j * condition, pred_original_sample=x0)
        if eta != 1:
            raise ValueError(f"eta is 0 (deterministic) or 1 (ancestral), got {eta}")
        mean, variance, _ = self.posterior(x0, sample, t)
        if noise is None:
            noise = torch.randn(sample.shape, generator=generator, dtype=sample.dtype).to(sample.device)
        return ResShiftStep(prev_sample=mean + variance.sqrt() * noise, pred_original_sample=x0)

    def invert_step(self, x0: Latent, t: Times | int, sample: Latent, condition: Latent) -> Latent:
        """z_t from z_{t-1} (`sample`) along the deterministic chain, for t >= 1 (SinSR's inversion)."""
        k, m, j = (self.at(table, t, sample) for table in self.deterministic_coefficients())
        return (sample - k * x0 - j * condition) / m


def predict(denoiser: Denoiser, scheduler: ResShiftScheduler, sample: Latent, t: Times | int, lq: Tensor) -> Latent:
    """What a network returns for z_t: the input is scaled here, once, and the output unwrapped."""
    times = torch.as_tensor(t, device=sample.device).expand(sample.shape[0])
    output = denoiser(scheduler.scale_model_input(sample, times), times, lq)
    return getattr(output, "sample", output)


@torch.no_grad()
def teacher_solve(
    teacher: Denoiser, scheduler: ResShiftScheduler, z_y: Latent, noise: Latent, lq: Tensor, steps: int | None = None
) -> Latent:
    """The teacher's sample from (z_y, eps) by the deterministic chain: the target of distillation (SinSR, TAD-SR).

    Args:
        teacher: the network.
        scheduler: its chain.
        z_y: low-quality latent.
        noise: eps of the start.
        lq: low-quality image, the network's condition.
        steps: respace the chain to fewer steps; all of them by default.
    """
    return _sample(teacher, scheduler, z_y, noise, lq, steps, 0.0, None)


@torch.no_grad()
def ancestral_sample(
    teacher: Denoiser,
    scheduler: ResShiftScheduler,
    z_y: Latent,
    noise: Latent,
    lq: Tensor,
    steps: int | None = None,
    step_noise: Callable[[], Latent] | None = None,
) -> Latent:
    """The teacher's sample by the stochastic chain (ResShift's own sampler).

    Args:
        teacher: the network.
        scheduler: its chain.
        z_y: low-quality latent.
        noise: eps of the start.
        lq: low-quality image.
        steps: respace the chain to fewer steps.
        step_noise: draws the noise of a step, called from the noisiest down; torch's global generator by default.
    """
    return _sample(teacher, scheduler, z_y, noise, lq, steps, 1.0, step_noise or (lambda: torch.randn_like(z_y)))


def _sample(
    teacher: Denoiser,
    scheduler: ResShiftScheduler,
    z_y: Latent,
    noise: Latent,
    lq: Tensor,
    steps: int | None,
    eta: float,
    step_noise: Callable[[], Latent] | None,
) -> Latent:
    scheduler.set_timesteps(steps or len(scheduler.etas))
    try:
        sample = scheduler.prior(z_y, noise)
        for t in scheduler.timesteps.tolist():
            output = predict(teacher, scheduler, sample, t, lq)
            drawn = step_noise() if step_noise else None
            sample = scheduler.step(output, t, sample, z_y, eta, noise=drawn).prev_sample
        return sample
    finally:
        scheduler.set_timesteps(len(scheduler.etas))


def one_step_sample(student: Denoiser, scheduler: ResShiftScheduler, z_y: Latent, noise: Latent, lq: Tensor) -> Latent:
    """The student's sample: one call at the fixed time T-1 on z_y + kappa sqrt(eta_{T-1}) eps. Gradients flow."""
    start = scheduler.prior(z_y, noise)
    output = predict(student, scheduler, start, scheduler.last, lq)
    return scheduler.predict_x0(output, start, scheduler.last, z_y)
