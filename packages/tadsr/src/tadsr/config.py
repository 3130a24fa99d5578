"""What can be chosen: every number of the papers' recipes, and how pictures are enlarged. Nothing here loads torch."""

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter

from tenfold import UserError
from tenfold.options import Count, NonNegative, OpenShare, Positive, Seed, Share, Size, check_fields

Layout = Literal["auto", "hr", "imagenet-test", "realsr", "realset65", "celeba-test"]
Sampler = Literal["auto", "one_step", "ddim", "ancestral"]
ColourFix = Literal["none", "wavelet", "adain"]
Degradation = Literal["bicubic", "train", "imagenet-test", "faces"]
Family = Literal["realsrx4", "realsrx4-s4", "bicsrx4", "faceir"]
"""Families of public checkpoints."""


def scale_of(degradation: Degradation) -> int:
    """How many times smaller low-quality images are: 1 for faces, which are restored at their size, else 4."""
    return 1 if degradation == "faces" else 4


LONGEST_CHAIN = 10_000
"""Steps that a chain may have."""


@Parameter(name="*")
@dataclass(frozen=True)
class UpscaleOptions:
    """How pictures are enlarged.

    Attributes:
        steps: Network calls; the model's own number by default, 0 for its whole chain.
        sampler: auto, one_step, ddim or ancestral.
        tile: Side of the tiles in input pixels; 0 for the whole picture at once.
        overlap: Of neighbouring tiles, in input pixels.
        colour_fix: none, wavelet or adain.
        seed: Of the noise.
    """

    steps: Size | None = None
    sampler: Sampler = "auto"
    tile: Size = 512
    overlap: Size = 64
    colour_fix: ColourFix = "none"
    seed: Seed = 12345

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and an overlap that leaves a tile nothing of its own."""
        check_fields(self)
        if self.tile and self.overlap >= self.tile:
            raise UserError(f"--tile {self.tile} --overlap {self.overlap}: the overlap must be smaller than the tile")


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

    steps: Count = 30_000
    batch_size: Count = 64
    crop: Count = 256
    cropping: Literal["rescaled", "native"] = "rescaled"
    learning_rate: Positive = 5e-5
    warmup: Size = 5_000
    decay: Literal["constant", "cosine"] = "constant"
    ema: Share = 0.999
    degradation: Degradation = "train"
    precision: Literal["auto", "float32"] = "auto"
    seed: Seed = 123456
    save_every: Count = 500
    workers: Size = 0

    @property
    def scale(self) -> int:
        """See `scale_of`."""
        return scale_of(self.degradation)

    def __post_init__(self) -> None:
        """Refuse numbers that no training could use."""
        check_fields(self)
        if self.ema == 1:
            raise UserError("--ema 1: the average would never move; it must be below 1")
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
    timesteps: Count = 15
    min_noise_level: OpenShare = 0.04

    def __post_init__(self) -> None:
        """Refuse chains that are none, and networks for another scale."""
        super().__post_init__()
        if not 2 <= self.timesteps <= LONGEST_CHAIN:
            raise UserError(f"--timesteps {self.timesteps}: a chain has 2 to {LONGEST_CHAIN} steps")
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
    lambda_reg: NonNegative = 1.0
    lambda_hsd: NonNegative = 1.0
    lambda_adv: NonNegative = 0.02
    hsd_t_max: Count = 3
    discriminator: Literal["time-aware", "vanilla", "multiple"] = "time-aware"
    logits: Count = 64
    discriminator_lr: Positive = 5e-5
    perturbation: Literal["normal", "uniform"] = "normal"
    double_scale: bool = False
    tap_reduction: Literal["all", "taps"] = "all"
