"""Hidden stripes: pictures whose texture is lost in the low-quality image, so that many answers are right and their mean is blurry.

Each quadrant of a 32-pixel picture carries stripes of one of four orientations and a random phase, above the low-quality image's
resolution. One teacher, then students by each rule, with the same pairs and the same number of steps.
"""

from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from reproduce.claims import Experiment, Measurement, claim, higher, lower

if TYPE_CHECKING:
    from tadsr.models.compact import CompactDenoiser
    from tadsr.models.diffusion import ResShiftScheduler

SIDE, FACTOR = 32, 4


@dataclass(frozen=True)
class Budget:
    """How long everything is trained.

    Attributes:
        train: pictures that the teacher learns from.
        teacher: steps of the teacher.
        student: steps of each student.
        pairs: cached teacher samples that all students learn from.
        test: held-out pictures.
    """

    train: int
    teacher: int
    student: int
    pairs: int
    test: int


BUDGETS = {"small": Budget(4096, 1200, 80, 1024, 256)}


def draw_pictures(count: int, generator: torch.Generator) -> Tensor:
    """(count, 1, 32, 32): a smooth background with stripes of period 3.2 pixels in each quadrant."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    y, x = torch.meshgrid(torch.arange(SIDE) / SIDE, torch.arange(SIDE) / SIDE, indexing="ij")
    background = torch.zeros(count, SIDE, SIDE)
    for _ in range(3):
        fx, fy = ((uniform(count, 1, 1) * 4 - 2) for _ in range(2))
        background += 0.2 * torch.sin(2 * pi * (fx * x + fy * y + uniform(count, 1, 1)))
    angle = torch.randint(4, (count, 2, 2), generator=generator) * pi / 4
    phase = uniform(count, 2, 2)

    def spread(values: Tensor) -> Tensor:
        return values.repeat_interleave(SIDE // 2, 1).repeat_interleave(SIDE // 2, 2)

    along = spread(angle.cos()) * x * SIDE + spread(angle.sin()) * y * SIDE
    stripes = torch.sin(2 * pi * (along / 3.2 + spread(phase)))
    return (background + (0.3 + 0.25 * torch.tanh(4 * background)) * stripes)[:, None]


@dataclass
class Latents:
    """Pictures with their latents.

    Attributes:
        high: (n, 1, 32, 32).
        low: (n, 1, 8, 8), twice the average of 4 x 4 pixels, the networks' condition.
        z_0: latent of `high`.
        z_y: latent of the enlarged low-quality image.
    """

    high: Tensor
    low: Tensor
    z_0: Tensor
    z_y: Tensor

    @classmethod
    def draw(cls, count: int, seed: int) -> "Latents":
        """That many pictures."""
        high = draw_pictures(count, torch.Generator().manual_seed(seed))
        low = F.avg_pool2d(high, FACTOR)
        enlarged = F.interpolate(low, scale_factor=FACTOR, mode="bicubic", align_corners=False)
        return cls(high, 2 * low, 2 * F.pixel_unshuffle(high, FACTOR), 2 * F.pixel_unshuffle(enlarged, FACTOR))


def small_network() -> "CompactDenoiser":
    """0.2 M parameters."""
    from tadsr.models.compact import CompactDenoiser

    # The condition is twice the picture: the skip's scale of 1 makes it the latent of the picture.
    return CompactDenoiser(latent_channels=16, lq_channels=1, channels=48, depth=4, factor=FACTOR, scale=1.0)


def train_teacher(
    data: Latents, steps: int, scheduler: "ResShiftScheduler", generator: torch.Generator
) -> "CompactDenoiser":
    """The averaged network after `steps` steps of 32 pictures."""
    from tadsr.training.loop import frozen_copy, update_ema
    from tadsr.training.teacher import teacher_loss

    network = small_network()
    ema = frozen_copy(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(data.high), (32,), generator=generator)
        t = torch.randint(15, (32,), generator=generator)
        noise = torch.randn(32, 16, 8, 8, generator=generator)
        loss = teacher_loss(network, scheduler, data.z_0[rows], data.z_y[rows], data.low[rows], t, noise).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        update_ema(ema, network, 0.98)
    return ema


@dataclass(frozen=True)
class Rule:
    """What a student is trained by.

    Attributes:
        regression: weight.
        score: weight of the score distillation.
        sds: by SDS instead of HSD.
        times: range of its times.
        adversarial: weight.
        inverse: also SinSR's inversion and its consistency with the ground truth.
    """

    regression: float = 1.0
    score: float = 0.0
    sds: bool = False
    times: tuple[int, int] = (0, 3)
    adversarial: float = 0.0
    inverse: bool = False


RULES = {
    "regression (SinSR distill-only)": Rule(),
    "SinSR": Rule(inverse=True),
    "regression + adversarial .2": Rule(adversarial=0.2),
    "TAD-SR, face weights": Rule(score=0.1, adversarial=0.2),
    "TAD-SR, SR weights": Rule(score=1.0, adversarial=0.02),
    "SDS alone, large times": Rule(regression=0, score=1.0, sds=True, times=(8, 14)),
    "HSD alone, large times": Rule(regression=0, score=1.0, times=(8, 14)),
}


def train_student(
    rule: Rule,
    teacher: "CompactDenoiser",
    scheduler: "ResShiftScheduler",
    data: Latents,
    noise: Tensor,
    target: Tensor,
    steps: int,
    generator: torch.Generator,
) -> "CompactDenoiser":
    """A student after `steps` steps of 32 cached pairs."""
    from tadsr.method.losses import gradient_loss, hsd_gradient, regression_loss, sds_gradient, sinsr_losses
    from tadsr.models.diffusion import one_step_sample
    from tadsr.models.discriminator import TimeAwareDiscriminator, hinge_d, hinge_g
    from tadsr.training.loop import frozen_copy

    student = frozen_copy(teacher).requires_grad_(True)
    optimiser = torch.optim.AdamW(student.parameters(), lr=3e-4, weight_decay=0.0)
    discriminator = TimeAwareDiscriminator(teacher.tap_channels, 64, 16)
    optimiser_d = torch.optim.AdamW(discriminator.parameters(), lr=3e-4, weight_decay=0.0)
    for _ in range(steps):
        rows = torch.randint(len(noise), (32,), generator=generator)
        z_y, low, goal = data.z_y[rows], data.low[rows], target[rows]
        z = one_step_sample(student, scheduler, z_y, noise[rows], low)
        loss = rule.regression * regression_loss(z, goal).mean()
        if rule.inverse:
            z_T = scheduler.prior(z_y, noise[rows])
            _, *others = sinsr_losses(student, scheduler, z, goal, data.z_0[rows], z_T, low)
            loss = loss + sum(term.mean() for term in others)
        if rule.adversarial:
            t = torch.randint(14, (32,), generator=generator)
            eps = torch.randn(z.shape, generator=generator)

            def taps(
                latent: Tensor, t: Tensor = t, eps: Tensor = eps, z_y: Tensor = z_y, low: Tensor = low
            ) -> list[Tensor]:
                perturbed = scheduler.add_noise(latent, z_y, eps, t)
                return teacher(scheduler.scale_model_input(perturbed, t), t, low, return_features=True)

            fake = taps(z)
            with torch.no_grad():
                real = taps(data.z_0[rows])
            loss_d = hinge_d(discriminator(real, t), discriminator([each.detach() for each in fake], t)).mean()
            optimiser_d.zero_grad()
            loss_d.backward()
            optimiser_d.step()
            discriminator.requires_grad_(False)
            loss = loss + rule.adversarial * hinge_g(discriminator(fake, t)).mean()
            discriminator.requires_grad_(True)
        if rule.score:
            t = torch.randint(*rule.times, (32,), generator=generator)
            eps = torch.randn(z.shape, generator=generator)
            if rule.sds:
                g = sds_gradient(teacher, scheduler, z.detach(), z_y, t, eps, low)
            else:
                g = hsd_gradient(teacher, scheduler, z.detach(), goal, z_y, t, eps, low)
            loss = loss + rule.score * gradient_loss(g, z).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return student.eval()


def judge(z: Tensor, data: Latents) -> dict[str, float]:
    """PSNR, texture energy and patch distribution of decoded latents."""
    from tadsr.evaluation.metrics import high_frequency_energy_ratio, sliced_wasserstein

    result, low = F.pixel_shuffle(z / 2, FACTOR), data.low / 2
    return {
        "PSNR": float(-10 * ((result - data.high) / 2).square().mean((1, 2, 3)).log10().mean()),
        "HFER": float(high_frequency_energy_ratio(result, data.high, low).mean()),
        "SWD": float(sliced_wasserstein(result, data.high, low)),
    }


def measure(seed: int, tier: str, place: Path) -> Measurement:
    """Train a teacher and a student by each rule; judge them on held-out pictures."""
    from tadsr.method.losses import hsd_gradient, sds_gradient
    from tadsr.models.diffusion import ResShiftScheduler, one_step_sample, teacher_solve
    from tenfold.images import write_image

    budget, scheduler = BUDGETS[tier], ResShiftScheduler()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    train, test = Latents.draw(budget.train, 1000 + seed), Latents.draw(budget.test, 2000 + seed)
    teacher = train_teacher(train, budget.teacher, scheduler, generator)
    noise = torch.randn(budget.pairs, 16, 8, 8, generator=generator)
    pairs = Latents(*(each[: budget.pairs] for each in (train.high, train.low, train.z_0, train.z_y)))
    target = teacher_solve(teacher, scheduler, pairs.z_y, noise, pairs.low)
    fresh = torch.randn(budget.test, 16, 8, 8, generator=generator)
    results: dict[str, Tensor] = {"bicubic": test.z_y}
    with torch.no_grad():
        results["teacher, 15 steps"] = teacher_solve(teacher, scheduler, test.z_y, fresh, test.low)
        results["teacher called once"] = one_step_sample(teacher, scheduler, test.z_y, fresh, test.low)
    for name, rule in RULES.items():
        draws = torch.Generator().manual_seed(seed)
        student = train_student(rule, teacher, scheduler, pairs, noise, target, budget.student, draws)
        with torch.no_grad():
            results[name] = one_step_sample(student, scheduler, test.z_y, fresh, test.low)
    arms = {name: judge(z, test) for name, z in results.items()}
    t = torch.zeros(len(target), dtype=torch.long) + 1
    eps = torch.randn(target.shape, generator=generator)
    for name, g in {
        "HSD alone, large times": hsd_gradient(teacher, scheduler, target, target, pairs.z_y, t, eps, pairs.low),
        "SDS alone, large times": sds_gradient(teacher, scheduler, target, pairs.z_y, t, eps, pairs.low),
    }.items():
        arms[name]["gradient at the teacher"] = float(g.square().mean().sqrt())
    rows = [F.pixel_shuffle(z[:8] / 2, FACTOR) for z in (test.z_0, *results.values())]
    grid = torch.cat([torch.cat(list(row[:, 0]), 1) for row in rows]) / 2 + 0.5
    write_image(place / "stripes.png", grid[..., None].expand(-1, -1, 3).clamp(0, 1).numpy())
    return arms


WORDS = {
    "bicubic": "bicubic enlargement",
    "teacher, 15 steps": "the teacher in 15 steps",
    "teacher called once": "the teacher called once",
    "regression (SinSR distill-only)": "a student by regression alone",
    "SinSR": "a student by SinSR",
    "regression + adversarial .2": "a student by regression and an adversarial loss",
    "TAD-SR, face weights": "a student by TAD-SR (weights for faces)",
    "TAD-SR, SR weights": "a student by TAD-SR (weights for super-resolution)",
    "SDS alone, large times": "a student by SDS alone at large times",
    "HSD alone, large times": "a student by HSD alone at large times",
}
METRICS = {
    "PSNR": "PSNR (dB)",
    "HFER": "energy of fine texture, relative to the truth's",
    "SWD": "distance of patches from the truth's (sliced Wasserstein)",
    "gradient at the teacher": "length of the gradient at the teacher's own output",
}

EXPERIMENTS = (
    Experiment(
        "stripes",
        "Hidden stripes: one teacher, one-step students by each rule with the same budget.",
        {"small": 5},
        measure,
        WORDS,
        METRICS,
    ),
)
TADSR, ALONE = "TAD-SR, face weights", "regression (SinSR distill-only)"
CLAIMS = (
    claim(
        "tadsr/texture-over-regression",
        "TAD-SR keeps more texture energy than regression alone.",
        higher("HFER", TADSR, than=ALONE),
        experiment="stripes",
        source="paper, Table 1",
    ),
    claim(
        "tadsr/patches-over-regression",
        "TAD-SR's patches are closer to the truth's than regression's.",
        lower("SWD", TADSR, than=ALONE),
        experiment="stripes",
        source="paper, Table 1",
    ),
    claim(
        "tadsr/patches-over-sinsr",
        "TAD-SR's patches are closer to the truth's than those of SinSR (regression, inversion, ground truth).",
        lower("SWD", TADSR, than="SinSR"),
        experiment="stripes",
        source="paper, Table 2",
    ),
    claim(
        "tadsr/sr-weights-over-regression",
        "The same with the published weights for super-resolution (1, .02).",
        lower("SWD", "TAD-SR, SR weights", than=ALONE),
        experiment="stripes",
        source="paper, Table 1",
        remark="In so short a run the score's gradient drowns the adversarial one",
    ),
    claim(
        "tadsr/hsd-adds-to-adversarial",
        "Score distillation improves on regression + adversarial.",
        lower("SWD", TADSR, than="regression + adversarial .2"),
        experiment="stripes",
        source="paper, Table 1",
        remark="The paper has no such row",
    ),
    claim(
        "tadsr/hsd-over-sds",
        "At large times HSD alone is better than SDS alone.",
        lower("SWD", "HSD alone, large times", than="SDS alone, large times"),
        experiment="stripes",
        source="paper, Table 1",
    ),
    claim(
        "tadsr/hsd-unbiased",
        "HSD's gradient vanishes at the teacher's output, SDS's does not.",
        lower("gradient at the teacher", "HSD alone, large times", than="SDS alone, large times"),
        experiment="stripes",
        source="paper, abstract",
    ),
    claim(
        "tadsr/student-over-teacher-once",
        "A student is closer to the truth's patches than the teacher called once.",
        lower("SWD", TADSR, than="teacher called once"),
        experiment="stripes",
        source="paper, introduction",
    ),
)
