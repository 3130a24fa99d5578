"""How a detector is trained (paper, "Experimental setup"). Imports no network: the command line reads it for its options."""

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter

from tenfold.errors import UserError

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

    epochs: int = 10
    batch_size: int = 32
    pairs_per_batch: int = 16
    learning_rate: float = 2e-4
    weight_decay: float = 5e-4
    augment: Augmentation = "paper"
    balance: Balance = "none"
    seed: int = 1024
    precision: Literal["auto", "float32"] = "auto"
    cache: Literal["none", "memory", "disk"] = "none"
    workers: int = 4
    eval_batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "pairs_per_batch", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.learning_rate > 0 or self.weight_decay < 0 or self.workers < 0 or self.seed < 0:
            raise UserError("learning_rate must be positive; weight_decay, workers and seed must not be negative")
