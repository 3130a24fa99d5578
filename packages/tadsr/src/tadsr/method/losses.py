"""The losses of TAD-SR and of its baselines. A teacher is anything that maps (scaled latent, times, lq) to z_0.

Score distillation is used through its gradient: `gradient_loss(g, z)` has gradient g / numel and a value without meaning.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tadsr.models.diffusion import Denoiser, Latent, ResShiftScheduler, Times, predict


def score_weight(scheduler: ResShiftScheduler, t: Times, like: Tensor) -> Float[Tensor, "b 1 1 1"]:
    """w_t = (1 - eta_t) / (kappa sqrt(eta_t)): how an error of z_0 shows in the implied noise."""
    return scheduler.at((1 - scheduler.etas) / (scheduler.kappa * scheduler.sqrt_etas), t, like)


def _perturbed_x0(
    teacher: Denoiser,
    scheduler: ResShiftScheduler,
    z: Latent,
    z_y: Latent,
    t: Times,
    noise: Latent,
    lq: Tensor,
    double_scale: bool,
) -> tuple[Latent, Latent]:
    perturbed = scheduler.add_noise(z, z_y, noise, t)
    # The published code hands an already scaled latent to a routine that scales it.
    shown = scheduler.scale_model_input(perturbed, t) if double_scale else perturbed
    output = predict(teacher, scheduler, shown, t, lq)
    return perturbed, scheduler.predict_x0(output, perturbed, t, z_y).to(z.dtype)


@torch.no_grad()
def hsd_gradient(
    teacher: Denoiser,
    scheduler: ResShiftScheduler,
    z_student: Latent,
    z_ref: Latent,
    z_y: Latent,
    t: Times,
    noise: Latent,
    lq: Tensor,
    double_scale: bool = False,
) -> Latent:
    """High-frequency score distillation: eps_hat(student's output perturbed) - eps_hat(reference perturbed alike).

    Computed through the identity g = w_t [(z_S - z_R) - (x0(a_S) - x0(a_R))], with one call of the teacher for both.

    Args:
        teacher: frozen.
        scheduler: its chain.
        z_student: output of the student.
        z_ref: the teacher's own output, or the ground truth.
        z_y: low-quality latent.
        t: small times, one per sample.
        noise: shared by both branches.
        lq: low-quality image.
        double_scale: scale the teacher's input twice, as the published code does.
    """

    def twice(x: Tensor) -> Tensor:
        return torch.cat([x, x])

    both = torch.cat([z_student, z_ref])
    _, x0 = _perturbed_x0(teacher, scheduler, both, twice(z_y), twice(t), twice(noise), twice(lq), double_scale)
    of_student, of_ref = x0.chunk(2)
    return score_weight(scheduler, t, z_student) * ((z_student - z_ref) - (of_student - of_ref))


@torch.no_grad()
def sds_gradient(
    teacher: Denoiser,
    scheduler: ResShiftScheduler,
    z_student: Latent,
    z_y: Latent,
    t: Times,
    noise: Latent,
    lq: Tensor,
    double_scale: bool = False,
) -> Latent:
    """Score distillation sampling: eps_hat(student's output perturbed) - the noise that perturbed it. Biased where HSD is not."""
    perturbed, x0 = _perturbed_x0(teacher, scheduler, z_student, z_y, t, noise, lq, double_scale)
    return scheduler.predict_noise(perturbed, x0, t, z_y) - noise


@torch.no_grad()
def vsd_gradient(
    teacher: Denoiser,
    fake: Denoiser,
    scheduler: ResShiftScheduler,
    z_student: Latent,
    z_y: Latent,
    t: Times,
    noise: Latent,
    lq: Tensor,
) -> Latent:
    """Variational score distillation: the teacher's implied noise minus that of `fake`, a network trained on student outputs."""
    perturbed, of_teacher = _perturbed_x0(teacher, scheduler, z_student, z_y, t, noise, lq, double_scale=False)
    _, of_fake = _perturbed_x0(fake, scheduler, z_student, z_y, t, noise, lq, double_scale=False)
    return scheduler.predict_noise(perturbed, of_teacher, t, z_y) - scheduler.predict_noise(perturbed, of_fake, t, z_y)


def gradient_loss(gradient: Latent, z: Latent) -> Float[Tensor, " b"]:
    """mean(g z) per sample: its mean over the batch has gradient g / numel with respect to z."""
    return (gradient * z).mean((1, 2, 3))


def regression_loss(z_student: Latent, z_target: Latent) -> Float[Tensor, " b"]:
    """mean (z_S - z_target)^2 per sample."""
    return (z_student - z_target).square().mean((1, 2, 3))


def sinsr_losses(
    student: Denoiser,
    scheduler: ResShiftScheduler,
    z_student: Latent,
    z_teacher: Latent,
    z_0: Latent,
    z_T: Latent,
    lq: Tensor,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """SinSR's three terms per sample: regression, inverse mapping, consistency with the ground truth.

    The student called at t = 0 inverts; all inputs are scaled for T-1.

    Args:
        student: called at 0 and at T-1.
        scheduler: the chain.
        z_student: its output.
        z_teacher: the teacher's sample from `z_T`.
        z_0: latent of the ground truth.
        z_T: the noisy start.
        lq: low-quality image.
    """
    last, batch = scheduler.last, z_0.shape[0]

    def call(z: Latent, time: int) -> Latent:
        times = torch.full((batch,), time, device=z.device)
        output = student(scheduler.scale_model_input(z, last), times, lq)
        return getattr(output, "sample", output)

    inversion = regression_loss(call(z_teacher, 0), z_T)
    with torch.no_grad():
        start = call(z_0, 0)
    return regression_loss(z_student, z_teacher), inversion, regression_loss(call(start, last), z_0)
