"""One training step of the distillation: discriminator first, then the student, which meets the updated discriminator."""

from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from tadsr.config import DistillConfig
from tadsr.data.transforms import enlarge
from tadsr.method.losses import (
    gradient_loss,
    hsd_gradient,
    regression_loss,
    sds_gradient,
    sinsr_losses,
    vsd_gradient,
)
from tadsr.models.checkpoints import save_pipeline
from tadsr.models.diffusion import Latent, ResShiftScheduler, Times, one_step_sample, teacher_solve
from tadsr.models.discriminator import MultipleDiscriminator, TimeAwareDiscriminator, hinge_d, hinge_g
from tadsr.models.registry import Autoencoder, Network, in_fast_layout
from tadsr.training.loop import Batch, frozen_copy, update_ema
from tadsr.training.teacher import encode, teacher_loss
from tenfold import UserError

START, TIMES_D, NOISE_D, TIMES_H, NOISE_H, TIMES_F, NOISE_F = range(7)
"""Streams of a step's random numbers."""


class Distiller:
    """A student in training; see `loop.Trainee`.

    Args:
        teacher: frozen; the student starts as its copy.
        vae: frozen.
        scheduler: the teacher's chain.
        config: the recipe.
    """

    def __init__(self, teacher: Network, vae: Autoencoder, scheduler: ResShiftScheduler, config: DistillConfig) -> None:
        self.scheduler, self.config = scheduler, config
        self.vae = vae.eval().requires_grad_(False)
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = frozen_copy(teacher).requires_grad_(True)
        self.ema = frozen_copy(teacher)
        self._optimisers = {"student": self._adamw(self.student, config.learning_rate)}
        self.discriminator = self._create_discriminator() if config.lambda_adv and config.method == "tad-sr" else None
        if self.discriminator:
            self._optimisers["discriminator"] = self._adamw(self.discriminator, config.discriminator_lr)
        self.fake = frozen_copy(teacher).requires_grad_(True) if config.method == "vsd" else None
        if self.fake:
            self._optimisers["fake"] = self._adamw(self.fake, config.learning_rate)
        self._called: nn.Module = self.student
        self._called_d: nn.Module | None = self.discriminator
        self.counts = {"won": 0} if self.discriminator else {}

    @staticmethod
    def _adamw(module: nn.Module, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.0)

    def _create_discriminator(self) -> nn.Module:
        taps, logits = self.teacher.tap_channels, self.config.logits
        if self.config.discriminator == "multiple":
            return MultipleDiscriminator(taps, logits, self.scheduler.last)
        embed = getattr(self.teacher.config, "model_channels", 64)
        return TimeAwareDiscriminator(taps, embed, logits, self.config.discriminator == "time-aware")

    def modules(self) -> dict[str, nn.Module]:
        """Networks with a state to keep."""
        named = {"student": self.student, "discriminator": self.discriminator, "fake": self.fake}
        return {name: module for name, module in named.items() if module is not None}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Those of student, discriminator and fake network."""
        return self._optimisers

    def prepare(self, accelerator: Accelerator) -> None:
        """Wrap what is trained for several processes."""
        device = next(self.student.parameters()).device
        for module in (self.vae, self.teacher, self.ema):
            in_fast_layout(module.to(device))
        self._called = accelerator.prepare(self.student)
        self._called_d = accelerator.prepare(self.discriminator) if self.discriminator else None

    def step(self, batch: Batch, accelerator: Accelerator) -> dict[str, Tensor]:
        """One step of the discriminator (where there is one), then of the student."""
        config, scheduler, lq = self.config, self.scheduler, batch.lr
        z_0, z_y = encode(self.vae, batch.hr), encode(self.vae, enlarge(batch.lr, config.scale))
        start = batch.normal(START, z_y)
        z_S = one_step_sample(self._called, scheduler, z_y, start, lq).float()
        logged: dict[str, Tensor] = {}
        fake, times = None, batch.times(TIMES_D, scheduler.last)
        if self.discriminator:
            noise = self._perturbation(batch, NOISE_D, z_y)
            with torch.no_grad():
                real = self._features(scheduler.add_noise(z_0, z_y, noise, times), times, lq)
            fake = self._features(scheduler.add_noise(z_S, z_y, noise, times), times, lq)
            logged["discriminator"] = self._discriminator_step(real, fake, times, accelerator)
        target = z_0
        if config.target == "teacher":
            target = teacher_solve(self.teacher, scheduler, z_y, start, lq).float()
        loss = self._student_loss(batch, z_S, target, z_0, z_y, start, logged)
        if self.discriminator and fake is not None:
            adversarial = self._adversarial(fake, times)
            logged["adversarial"] = adversarial.detach()
            loss = loss + config.lambda_adv * adversarial
        optimiser = self._optimisers["student"]
        optimiser.zero_grad()
        accelerator.backward(loss)
        optimiser.step()
        update_ema(self.ema, self.student, config.ema)
        if self.fake is not None:
            self._fake_step(batch, z_S.detach(), z_y, accelerator)
        return logged | {"loss": loss.detach()}

    def _student_loss(
        self,
        batch: Batch,
        z_S: Latent,
        target: Latent,
        z_0: Latent,
        z_y: Latent,
        start: Latent,
        logged: dict[str, Tensor],
    ) -> Float[Tensor, ""]:
        """Regression and score distillation, or SinSR's terms."""
        config, scheduler = self.config, self.scheduler
        if config.method == "sinsr":
            z_T = scheduler.prior(z_y, start)
            terms = sinsr_losses(self._called, scheduler, z_S, target, z_0, z_T, batch.lr)
            logged |= {
                name: term.mean().detach()
                for name, term in zip(("regression", "inversion", "consistency"), terms, strict=True)
            }
            return sum(terms, start=torch.zeros_like(terms[0])).mean()
        regression = regression_loss(z_S, target).mean()
        logged["regression"] = regression.detach()
        loss = config.lambda_reg * regression
        if config.lambda_hsd and config.method != "regression":
            gradient = self._score_gradient(batch, z_S, target, z_y)
            # The loss's value says nothing: what is logged is the size of its gradient.
            logged["score"] = gradient.square().mean().sqrt()
            loss = loss + config.lambda_hsd * gradient_loss(gradient, z_S).mean()
        return loss

    def _score_gradient(self, batch: Batch, z_S: Latent, target: Latent, z_y: Latent) -> Latent:
        config, lq = self.config, batch.lr
        noise = self._perturbation(batch, NOISE_H, z_y)
        if config.method == "vsd":
            assert self.fake is not None
            times = batch.times(TIMES_H, self.scheduler.last)
            return vsd_gradient(self.teacher, self.fake, self.scheduler, z_S, z_y, times, noise, lq)
        times = batch.times(TIMES_H, min(config.hsd_t_max, self.scheduler.last))
        if config.method == "sds":
            return sds_gradient(self.teacher, self.scheduler, z_S, z_y, times, noise, lq, config.double_scale)
        return hsd_gradient(self.teacher, self.scheduler, z_S, target, z_y, times, noise, lq, config.double_scale)

    def _perturbation(self, batch: Batch, stream: int, like: Tensor) -> Tensor:
        draw = batch.uniform if self.config.perturbation == "uniform" else batch.normal
        return draw(stream, like)

    def _features(self, z: Latent, times: Times, lq: Tensor) -> list[Tensor]:
        return self.teacher(self.scheduler.scale_model_input(z, times), times, lq, return_features=True)

    def _discriminator_step(
        self, real: list[Tensor], fake: list[Tensor], times: Times, accelerator: Accelerator
    ) -> Tensor:
        assert self._called_d is not None
        self._called_d.train()
        # Real and fake in one call: one power iteration of the spectral norms per step.
        both = [torch.cat([a, b.detach()]) for a, b in zip(real, fake, strict=True)]
        halves = [each.float().chunk(2) for each in self._called_d(both, torch.cat([times, times]))]
        per_tap = self.config.tap_reduction == "taps"
        loss = hinge_d([a for a, _ in halves], [b for _, b in halves], per_tap).mean()
        optimiser = self._optimisers["discriminator"]
        optimiser.zero_grad()
        accelerator.backward(loss)
        optimiser.step()
        self.counts["won"] = self.counts["won"] + 1 if loss.item() < 0.01 else 0
        if self.counts["won"] >= 500:
            raise UserError("the discriminator has won for 500 steps; lower --lambda-adv or --discriminator-lr")
        return loss.detach()

    def _adversarial(self, fake: list[Tensor], times: Times) -> Float[Tensor, ""]:
        """The student's adversarial loss under the discriminator as it is now, which is not trained by it."""
        assert self.discriminator is not None
        self.discriminator.eval().requires_grad_(False)
        logits = [each.float() for each in self.discriminator(fake, times)]
        loss = hinge_g(logits, self.config.tap_reduction == "taps").mean()
        self.discriminator.train().requires_grad_(True)
        return loss

    def _fake_step(self, batch: Batch, z_S: Latent, z_y: Latent, accelerator: Accelerator) -> None:
        """Train the fake network as a teacher of the student's outputs (VSD)."""
        assert self.fake is not None
        times = batch.times(TIMES_F, len(self.scheduler.etas))
        noise = batch.normal(NOISE_F, z_y)
        loss = teacher_loss(self.fake, self.scheduler, z_S, z_y, batch.lr, times, noise).mean()
        optimiser = self._optimisers["fake"]
        optimiser.zero_grad()
        accelerator.backward(loss)
        optimiser.step()

    def export(self, folder: Path) -> None:
        """Write the averaged student as a one-step pipeline."""
        save_pipeline(folder, self.ema, self.vae, self.scheduler, scale=self.config.scale, steps=1)
