"""How a detector is trained (paper, "Experimental setup"). Imports no network: the command line reads it for its options."""

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter

from tenfold.errors import UserError
from tenfold.options import Count, NonNegative, Positive, Seed, Size, check_fields

MOST_WORKERS = 1024
"""Processes that read or forge: more would only fill the process table."""

Augmentation = Literal["none", "flip", "paper"]
"""`none`; `flip`: mirrored with probability .5; `paper`: flip, rotation, blur, colour and JPEG, see `fairfd.augment`."""

Balance = Literal["none", "labels"]
"""`none`: each image once an epoch. `labels`: images of the rarer label are repeated until both are equally many."""


@Parameter(name="*")
@dataclass(frozen=True)
class TrainConfig:
    """How a detector is trained; the defaults are the paper's recipe. The optimiser is Adam with a constant step size.

    Attributes:
        epochs: passes over the training data.
        batch_size: training rows at a time, over all processes. A row is an image, or its two views (CORE).
        pairs_per_batch: pairs of a real and a fake image at a time, for detectors that train on pairs (UCF).
        learning_rate: of Adam.
        weight_decay: L2, added to the gradient.
        augment: `none`, `flip`, or `paper`: flip, rotation, blur, colour, JPEG, each with probability 0.5.
        balance: `none`, or `labels`: images of the rarer label are repeated until both are equally many.
        seed: of order, augmentation, dropout.
        precision: `auto`: bfloat16 where the hardware has it; or `float32`.
        cache: `none`: decode images each time; `memory`: once; `disk`: once, into a mapped file in the run folder.
        workers: processes that read and augment.
        eval_batch_size: images at a time in validation.
    """

    epochs: Count = 10
    batch_size: Count = 32
    pairs_per_batch: Count = 16
    learning_rate: Positive = 2e-4
    weight_decay: NonNegative = 5e-4
    augment: Augmentation = "paper"
    balance: Balance = "none"
    seed: Seed = 1024
    precision: Literal["auto", "float32"] = "auto"
    cache: Literal["none", "memory", "disk"] = "none"
    workers: Size = 4
    eval_batch_size: Count = 64

    def __post_init__(self) -> None:
        check_fields(self)
        if self.workers > MOST_WORKERS:
            raise UserError(f"workers is {self.workers}; give at most {MOST_WORKERS}")
