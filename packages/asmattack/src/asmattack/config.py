"""How detectors, hardened detectors and mask generators are trained. Imports no network: the command line reads it for its options."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from tenfold.errors import UserError
from tenfold.options import Count, NonNegative, OpenShare, Positive, Seed, Share, check_fields

Objective = Literal["ce", "margin", "cafa", "cafa_batch"]
"""`cafa_batch` scales the maps over the whole batch as the authors' code does: an image's loss then depends on its neighbours."""


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


@dataclass(frozen=True)
class AttackConfig:
    """Settings of the iteration.

    Attributes:
        eps: Budget: largest change of a pixel in [0, 1] for linf, length of the whole change for l2.
        alpha: Step; eps / 4 when absent.
        steps: Iterations.
        objective: ce, margin, cafa or cafa_batch.
        norm: linf or l2.
        momentum: Decay mu of the velocity; 0 is plain.
        nesterov: Look ahead along the velocity before taking the gradient.
        ti_length: Side of the Gaussian that blurs the gradient; 0 is none.
        di_probability: Chance that an image is shrunk and moved before the gradient.
        start: zero, or inside mask and budget uniform noise or random signs (with no steps: the noise control).
        compose: inloop, or paste: attack the whole image and keep what lies in the mask (the authors' way).
        quantised: Give the result in 8-bit levels.
        eot: Gradients averaged at each step, for detectors that answer at random.
        precision: float32, or auto: bfloat16 in the detector where the hardware has it.
        stop_early: Let an image go as soon as it is fooled, also as it would be given out (rounded); the others go on.
            Faster, and a smaller change, but no measure of what all steps can do.
        allow_zero_start: Let cafa start where its gradient is zero (nothing will move).
        seed: Of the start and the input diversity.
    """

    eps: float = 8 / 255
    alpha: float | None = None
    steps: int = 10
    objective: Objective = "ce"
    norm: Literal["linf", "l2"] = "linf"
    momentum: float = 0.0
    nesterov: bool = False
    ti_length: int = 0
    di_probability: float = 0.0
    start: Literal["zero", "uniform", "signs"] = "zero"
    compose: Literal["inloop", "paste"] = "inloop"
    quantised: bool = True
    eot: int = 1
    precision: Literal["float32", "auto"] = "float32"
    stop_early: bool = False
    allow_zero_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        alpha = 1.0 if self.alpha is None else self.alpha
        if not 0 <= self.eps < math.inf or self.steps < 0 or not 0 < alpha < math.inf:
            raise UserError("eps and steps cannot be negative, alpha must be positive, both finite")
        if self.eot < 1 or not 0 <= self.di_probability <= 1 or not self.momentum >= 0 or self.ti_length < 0:
            raise UserError("eot is at least 1, di_probability lies in [0, 1], momentum and ti_length are not negative")
        if self.objective.startswith("cafa") and self.start == "zero" and self.steps and not self.allow_zero_start:
            raise UserError("the gradient of cafa is zero at the clean image: use start='uniform'")
        if self.stop_early and self.objective == "cafa_batch":
            raise UserError("cafa_batch ties each image to its neighbours: none can be let go early")

    @property
    def step(self) -> float:
        """Alpha, or its default."""
        return self.eps / 4 if self.alpha is None else self.alpha


PRESETS = {
    "fgsm": AttackConfig(steps=1),
    "bim": AttackConfig(),
    "pgd": AttackConfig(),
    "pgd_uniform": AttackConfig(start="uniform"),
    "pgd_l2": AttackConfig(eps=2.0, norm="l2"),
    "mifgsm": AttackConfig(momentum=1.0),
    "nifgsm": AttackConfig(momentum=1.0, nesterov=True),
    "tifgsm": AttackConfig(momentum=1.0, ti_length=15),
    "difgsm": AttackConfig(momentum=1.0, di_probability=0.5),
    "margin": AttackConfig(objective="margin"),
    "cafa": AttackConfig(objective="cafa", start="uniform"),
    "noise": AttackConfig(steps=0, start="signs"),
    "asma_official": AttackConfig(
        eps=0.2, alpha=0.015, steps=20, objective="cafa_batch", start="uniform", compose="paste"
    ),
}
"""`asma_official` has the budget of the authors' code, 51/255, and their objective; `pgd_l2` a length; every other starts from
8/255. `noise` is a control: random signs, no gradient."""

PUBLISHED_POLICY = {"asma_official": "fixed"}
"""Attacks that come with regions of their own."""


def preset(name: str, eps: float | None = None, seed: int = 0) -> AttackConfig:
    """The settings of a named attack, at another budget if wanted.

    Raises:
        UserError: an unknown name, a negative budget.
    """
    if name not in PRESETS:
        raise UserError(f"no attack {name!r}; there are {', '.join(PRESETS)}")
    config = replace(PRESETS[name], seed=seed)
    config = config if eps is None else replace(config, eps=eps)
    return replace(config, alpha=config.eps) if name == "fgsm" and config.eps > 0 else config
