"""How a detector is trained (paper, "Experimental setup") and a score file is read: what the command line offers as options."""

from dataclasses import dataclass
from pathlib import Path
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


@Parameter(name="*")
@dataclass(frozen=True)
class IntakeOptions:
    """How a score file is read.

    Attributes:
        columns: What the file calls our columns where it does so otherwise: score=pred_prob,label=y_true.
        real: The approach, or the label, of genuine images.
        group_by: The column that holds the group, or several joined by a comma: race,gender.
        people: A second file with what the scores lack: group, identity, approach, label.
        on: The column that both files have, by which their rows are joined.
        drop_missing: Leave out rows in which a needed column is blank, and say how many.
        min_group: Leave out groups with fewer people.
        min_identities: Warn of groups with fewer people.
        video: A column whose frames are averaged first, where the file has it.
        logits: The scores are logits: apply the sigmoid.
        allow_duplicates: Accept the same image under the same approach twice.
    """

    columns: str = ""
    real: str = "real"
    group_by: str = "group"
    people: Path | None = None
    on: str = "image"
    drop_missing: bool = False
    min_group: Size = 0
    min_identities: Size = 20
    video: str | None = "video"
    logits: bool = False
    allow_duplicates: bool = False

    def renamed(self) -> dict[str, str]:
        """`columns` as a mapping.

        Raises:
            UserError: a part that is not OURS=THEIRS.
        """
        pairs = [part.partition("=") for part in self.columns.split(",") if part.strip()]
        for ours, equals, theirs in pairs:
            if not (ours.strip() and equals and theirs.strip()):
                raise UserError(f"--columns {ours}{equals}{theirs}: is not OURS=THEIRS, such as score=pred_prob")
        return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
