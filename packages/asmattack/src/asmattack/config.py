"""How detectors, hardened detectors and mask generators are trained. Imports no network: the command line reads it for its options."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from tenfold.errors import UserError
from tenfold.options import Count, NonNegative, OpenShare, Positive, Seed, Share, check_fields


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What every training has.

    Attributes:
        data: Folder with real/ and fake/, or a manifest; drawn faces when absent.
        images: Size of the drawn set, half of it forged.
        size: Side to which crops are resized; drawn faces have 48 unless told otherwise.
        holdout: Share of the groups (videos, identities) kept for validation.
        epochs: Passes over the training faces.
        batch_size: Faces at a time, over all processes.
        learning_rate: Peak of one_cycle, start of step and constant.
        weight_decay: Of the optimiser.
        optimiser: adamw, or sgd with momentum 0.9.
        schedule: one_cycle, step or constant.
        step_epochs: Epochs between the falls of step.
        step_factor: What the rate is multiplied with at each fall.
        flip: Mirror half of the faces.
        jpeg: Chance that a face is compressed, at a quality from 60 to 100.
        precision: auto is bfloat16 where the hardware has it.
        seed: Of weights, faces, order and augmentation.
    """

    data: Path | None = None
    images: Count = 1000
    size: Count | None = None
    holdout: OpenShare = 0.2
    epochs: Count = 8
    batch_size: Count = 32
    learning_rate: Positive = 4e-3
    weight_decay: NonNegative = 1e-2
    optimiser: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["one_cycle", "step", "constant"] = "one_cycle"
    step_epochs: Count = 2
    step_factor: Positive = 0.2
    flip: bool = True
    jpeg: Share = 0.0
    precision: Literal["auto", "float32"] = "auto"
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        check_fields(self)
        if self.images < 8:
            raise UserError(f"images is {self.images}; at least 8 faces are needed")
        check_drawn(self.images, self.size)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig):
    """How a detector is trained.

    Attributes:
        model: plain, residual, separable, inverted, or timm:NAME.
    """

    model: str = "plain"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HardenConfig(FitConfig):
    """How a detector is fine-tuned on its own attacked faces.

    Attributes:
        attack: Name of the attack in training.
        eps: Its budget in levels of 255.
        steps: Its iterations.
        policy: Its regions: all_inner, full, fixed, random, budget, topk, threshold or worst.
        clean_share: Weight of the clean faces in the loss; the attacked ones have the rest.
    """

    attack: str = "pgd"
    eps: NonNegative = 8.0
    steps: Count = 4
    policy: Literal["all_inner", "full", "fixed", "random", "budget", "topk", "threshold", "worst"] = "all_inner"
    clean_share: Share = 0.5
    learning_rate: Positive = 1e-3

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        check_levels(self.eps)
        if self.clean_share == 1:
            raise UserError("clean_share is 1; it is below 1, or nothing would be hardened")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(FitConfig):
    """How a mask generator is trained.

    Attributes:
        width: Channels at full resolution, a multiple of 4.
        method: The activation map that it learns.
    """

    width: Count = 16
    method: Literal["saliency", "gradcam", "cam", "occlusion"] = "saliency"
    learning_rate: Positive = 2e-3

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        super().__post_init__()
        if self.width % 4:
            raise UserError(f"width is {self.width}; it must be a multiple of 4")
        if self.size is not None and self.size % 4:
            raise UserError(f"size is {self.size}; it must be a multiple of 4")


MOST_PIXELS = 2**28
"""Of a drawn set: a gigabyte for each channel while it is drawn, 116,000 faces of 48 pixels."""


def check_drawn(images: int, size: int | None) -> None:
    """Refuse a set that no memory holds before it is drawn.

    Raises:
        UserError: too many pixels.
    """
    side = size or 48
    if images * side**2 > MOST_PIXELS:
        raise UserError(
            f"{images} drawn faces of {side} pixels are too many to draw; take fewer or smaller ones (images, size)"
        )


def check_levels(eps: float) -> float:
    """A budget in levels of 255 as a fraction.

    Raises:
        UserError: a fraction was meant as levels, or it is negative.
    """
    if not eps >= 0:
        raise UserError(f"--eps {eps}: a budget cannot be negative")
    if not math.isfinite(eps):
        raise UserError(f"--eps {eps}: a budget is a finite number of levels")
    if 0 < eps < 1:
        raise UserError(f"--eps {eps:g} is below one level; it is counted in 1/255: say 8 for 8/255")
    return eps / 255
