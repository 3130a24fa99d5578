"""Configurations of the two trainings: every number of the papers' recipes, and the presets' place."""

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter

Degradation = Literal["bicubic", "train", "imagenet-test"]
Preset = Literal["realsrx4", "realsrx4-s4", "bicsrx4", "faceir"]
"""Families of public checkpoints."""


@dataclass(frozen=True)
class TrainConfig:
    """What both trainings share.

    Attributes:
        steps: Optimiser steps.
        batch_size: Pictures per step, over all processes.
        crop: Side of the high-resolution crops in pixels, a multiple of 4.
        learning_rate: Peak of AdamW's.
        warmup: Steps of linear warm-up, from the first step on.
        decay: Learning rate after the warm-up: constant, or a cosine to zero.
        ema: Decay of the averaged weights that are kept.
        degradation: How low-quality images are made: bicubic, or second-order Real-ESRGAN as for training or as for ImageNet-Test.
        precision: auto (bf16 where the hardware has it) or float32.
        seed: Of crops, flips, times and noises.
        save_every: Steps between checkpoints.
        workers: Processes that decode pictures; 0 keeps decoded pictures in memory.
    """

    steps: int = 30_000
    batch_size: int = 64
    crop: int = 256
    learning_rate: float = 5e-5
    warmup: int = 5_000
    decay: Literal["constant", "cosine"] = "constant"
    ema: float = 0.999
    degradation: Degradation = "train"
    precision: Literal["auto", "float32"] = "auto"
    seed: int = 123456
    save_every: int = 500
    workers: int = 0


@Parameter(name="*")
@dataclass(frozen=True)
class TeacherConfig(TrainConfig):
    """Training a ResShift teacher.

    Attributes:
        network: tiny and compact (convolutions on pixel-unshuffled latents), swin (the Swin UNet on them), paper (the Swin UNet on the f4 autoencoder's).
        timesteps: Steps of the chain; 15 or 4.
        min_noise_level: Noise level of the first step; 0.04 goes with 15 steps, 0.2 with 4.
    """

    network: Literal["tiny", "compact", "swin", "paper"] = "paper"
    timesteps: int = 15
    min_noise_level: float = 0.04


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
