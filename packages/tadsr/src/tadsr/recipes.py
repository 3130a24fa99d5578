"""Configurations of the two trainings: every number of the papers' recipes, and the presets' place."""

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter

from tenfold import UserError

Degradation = Literal["bicubic", "train", "imagenet-test", "faces"]
Family = Literal["realsrx4", "realsrx4-s4", "bicsrx4", "faceir"]
"""Families of public checkpoints."""


def scale_of(degradation: Degradation) -> int:
    """How many times smaller low-quality images are: 1 for faces, which are restored at their size, else 4."""
    return 1 if degradation == "faces" else 4


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class TrainConfig:
    """What both trainings share.

    Attributes:
        steps: Optimiser steps.
        batch_size: Pictures per step, over all processes.
        crop: Side of the high-resolution crops in pixels.
        cropping: Squares of the picture's short side brought to that size and mirrored (published), or native pixels, mirrored and turned.
        learning_rate: Peak of AdamW's.
        warmup: Steps of linear warm-up, from the first step on.
        decay: Learning rate after the warm-up: constant, or a cosine to zero.
        ema: Decay of the averaged weights that are kept.
        degradation: How low-quality images are made: bicubic, second-order Real-ESRGAN as for training or as for ImageNet-Test, or faces (same size).
        precision: auto (bf16 where the hardware has it) or float32.
        seed: Of crops, flips, times and noises.
        save_every: Steps between checkpoints.
        workers: Processes that decode pictures; 0 keeps decoded pictures in memory.
    """

    steps: int = 30_000
    batch_size: int = 64
    crop: int = 256
    cropping: Literal["rescaled", "native"] = "rescaled"
    learning_rate: float = 5e-5
    warmup: int = 5_000
    decay: Literal["constant", "cosine"] = "constant"
    ema: float = 0.999
    degradation: Degradation = "train"
    precision: Literal["auto", "float32"] = "auto"
    seed: int = 123456
    save_every: int = 500
    workers: int = 0

    @property
    def scale(self) -> int:
        """See `scale_of`."""
        return scale_of(self.degradation)

    def __post_init__(self) -> None:
        """Refuse numbers that no training could use."""
        for name in ("steps", "batch_size", "crop", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{_option(name)} {getattr(self, name)}: must be at least 1")
        for name in ("warmup", "workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{_option(name)} {getattr(self, name)}: must not be negative")
        if not self.learning_rate > 0:
            raise UserError(f"--learning-rate {self.learning_rate}: must be positive")
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema {self.ema}: must be at least 0 and below 1")
        if self.crop % 4:
            raise UserError(f"--crop {self.crop}: not a multiple of 4")


@Parameter(name="*")
@dataclass(frozen=True)
class TeacherConfig(TrainConfig):
    """Training a ResShift teacher.

    Attributes:
        network: tiny and compact (convolutions on pixel-unshuffled latents), swin (the Swin UNet on them), paper and paper-faces (the published Swin UNets on their autoencoders' latents).
        timesteps: Steps of the chain; 15 or 4.
        min_noise_level: Noise level of the first step; 0.04 goes with 15 steps, 0.2 with 4.
    """

    network: Literal["tiny", "compact", "swin", "paper", "paper-faces"] = "paper"
    timesteps: int = 15
    min_noise_level: float = 0.04

    def __post_init__(self) -> None:
        """Refuse chains that are none, and networks for another scale."""
        super().__post_init__()
        if self.timesteps < 2:
            raise UserError(f"--timesteps {self.timesteps}: a chain has at least 2 steps")
        if not 0 < self.min_noise_level < 1:
            raise UserError(f"--min-noise-level {self.min_noise_level}: must be between 0 and 1")
        if (self.network == "paper-faces") != (self.degradation == "faces"):
            raise UserError(
                f"--network {self.network} does not fit --degradation {self.degradation}: faces need paper-faces, and only they"
            )


@Parameter(name="*")
@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """Distilling a teacher into one step.

    Attributes:
        method: tad-sr, or the baselines: sinsr (regression, inversion, ground truth), regression, sds, vsd.
        target: What the regression aims at: the teacher's sample, or the ground truth (the fidelity preset).
        lambda_reg: Weight of the regression.
        lambda_hsd: Weight of the score distillation.
        lambda_adv: Weight of the adversarial loss; 0 trains no discriminator.
        hsd_t_max: Score distillation draws times below this (HSD: small times).
        discriminator: With time, without, or one set of heads per time.
        logits: Logits per position of the discriminator.
        discriminator_lr: Learning rate of the discriminator, constant.
        perturbation: Noise of score distillation and discriminator: normal, or uniform as the published code draws it.
        double_scale: Scale the network input twice in score distillation, as the published code does.
        tap_reduction: Mean over all logits (published), or mean of the taps' means.
    """

    method: Literal["tad-sr", "sinsr", "regression", "sds", "vsd"] = "tad-sr"
    target: Literal["teacher", "ground-truth"] = "teacher"
    lambda_reg: float = 1.0
    lambda_hsd: float = 1.0
    lambda_adv: float = 0.02
    hsd_t_max: int = 3
    discriminator: Literal["time-aware", "vanilla", "multiple"] = "time-aware"
    logits: int = 64
    discriminator_lr: float = 5e-5
    perturbation: Literal["normal", "uniform"] = "normal"
    double_scale: bool = False
    tap_reduction: Literal["all", "taps"] = "all"

    def __post_init__(self) -> None:
        """Refuse weights and sizes without meaning."""
        super().__post_init__()
        for name in ("lambda_reg", "lambda_hsd", "lambda_adv"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{_option(name)} {getattr(self, name)}: must not be negative")
        for name in ("hsd_t_max", "logits"):
            if getattr(self, name) < 1:
                raise UserError(f"{_option(name)} {getattr(self, name)}: must be at least 1")
        if not self.discriminator_lr > 0:
            raise UserError(f"--discriminator-lr {self.discriminator_lr}: must be positive")
