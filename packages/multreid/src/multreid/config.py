"""Options of the verbs, as frozen dataclasses; no torch here, so that `--help` is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from tenfold import UserError
from tenfold.options import Count, NonNegative, OpenShare, Positive, Seed, Share, Size, check_fields

Dataset = Literal["folders", "sysu", "regdb", "llcm"]

Trial = Annotated[int, Parameter(validator=Number(gte=1, lte=10))]
"""Which of RegDB's ten splits."""

LARGEST_SIDE = 4096
"""Pixels of a crop's side: beyond, a slip of the finger would fill the memory."""


def check_sides(height: int, width: int) -> None:
    """Refuse sizes that no crop has.

    Raises:
        UserError: names both and what they may be.
    """
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise UserError(f"height {height}, width {width}: need 1 to {LARGEST_SIDE} pixels each")


@Parameter(name="*")
@dataclass(frozen=True)
class TrainConfig:
    """What a training run depends on (defaults: section 5).

    Attributes:
        dataset: Layout of the training pictures: folders, sysu, regdb or llcm.
        root: The data set's folder, for sysu, regdb and llcm.
        visible: A folder of visible crops, for folders.
        infrared: A folder of infrared crops, for folders.
        trial: Which of RegDB's ten splits.
        architecture: resnet50 or small.
        weights: A local file of torchvision's ImageNet weights for resnet50; random ones without it.
        initial: A model folder to start from, such as one trained on another set.
        height: Of the crops, in pixels.
        width: Of the crops, in pixels.
        pad: Random shift in each direction, in pixels.
        epochs: How many altogether.
        stage_two: The epoch from which labels are transferred between the modalities.
        steps: Batches per epoch in stage one.
        steps_two: Batches per epoch in stage two.
        identities: Pseudo-identities per modality and batch.
        instances: Pictures of each.
        learning_rate: Of Adam, before the schedule.
        weight_decay: Of Adam.
        milestones: Epochs at which the learning rate falls to a tenth.
        k1: Neighbours of the Jaccard distance.
        k2: Neighbours over which it is averaged.
        eps: Of DBSCAN: 0.6 for SYSU-MM01, 0.3 for RegDB.
        min_samples: Of DBSCAN.
        alpha: Weight of the starting labels in the transfer.
        beta: Share of the hard label in the training targets.
        temperature: Of the memories.
        momentum: Share of the old vector that a memory keeps.
        association: How stage two gets cross labels: mult (the method) or ot (plain optimal transport, for comparison).
        start: Where the transfer's cross labels start: ot or matching.
        refinement: Weight of the cross-memory label refinement (OCLR) in stage two; 0 leaves it out.
        detach_target: Let no gradient through the target of the refinement loss.
        evaluate_every: Also score the test part every so many epochs; 0 scores the last epoch only.
        workers: Processes that read pictures; 0 reads them in the main one.
        seed: Of everything random.
    """

    dataset: Dataset = "folders"
    root: Path | None = None
    visible: Path | None = None
    infrared: Path | None = None
    trial: Trial = 1
    architecture: Literal["resnet50", "small"] = "resnet50"
    weights: Path | None = None
    initial: Path | None = None
    height: Count = 288
    width: Count = 144
    pad: Size = 10
    epochs: Count = 90
    stage_two: Size = 40
    steps: Count = 300
    steps_two: Count = 200
    identities: Count = 12
    instances: Count = 12
    learning_rate: Positive = 3.5e-4
    weight_decay: NonNegative = 5e-4
    milestones: tuple[Size, ...] = (20, 60, 80)
    k1: Count = 30
    k2: Count = 6
    eps: OpenShare = 0.6
    min_samples: Count = 4
    alpha: Share = 0.2
    beta: Share = 0.7
    temperature: Positive = 0.05
    momentum: Share = 0.1
    association: Literal["mult", "ot"] = "mult"
    start: Literal["ot", "matching"] = "ot"
    refinement: NonNegative = 1.0
    detach_target: bool = False
    evaluate_every: Size = 0
    workers: Size = 0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_sides(self.height, self.width)
        if self.pad > LARGEST_SIDE:
            raise UserError(f"pad is {self.pad}; it must be at most {LARGEST_SIDE}")


@Parameter(name="*")
@dataclass(frozen=True)
class AssociateConfig:
    """What an association depends on (section 3).

    Attributes:
        eps: Largest Jaccard distance between neighbours in DBSCAN.
        min_samples: Neighbours that make an instance the core of a cluster.
        k1: Neighbours of the Jaccard distance.
        k2: Neighbours over which it is averaged.
        alpha: Weight of the starting labels.
        start: Where cross labels start: ot (the paper's) or matching (better where clusters are pure and signals weak).
        method: mult (the method), or a rival: ot, pgm, bccm, hungarian, nearest.
        tolerance: Iterate the transport until no row sum is wrong by more than this share; the official rule without it.
    """

    eps: OpenShare = 0.6
    min_samples: Count = 4
    k1: Count = 30
    k2: Count = 6
    alpha: Share = 0.2
    start: Literal["ot", "matching"] = "ot"
    method: Literal["mult", "ot", "pgm", "bccm", "hungarian", "nearest"] = "mult"
    tolerance: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@Parameter(name="*")
@dataclass(frozen=True)
class EvalConfig:
    """Pictures to score a model on.

    Attributes:
        dataset: Layout of the test pictures: folders, sysu, regdb or llcm.
        root: The data set's folder, for sysu, regdb and llcm.
        visible: A folder of visible crops in folders named by identity, for folders.
        infrared: The same of infrared crops.
        mode: SYSU-MM01's all-search or indoor search.
        query: The modality of the queries, for folders, regdb and llcm.
        trials: How many of the benchmark's ten trials are averaged; for regdb a model is trained and scored on one, see --trial.
        trial: Which of RegDB's ten splits.
    """

    dataset: Dataset = "folders"
    root: Path | None = None
    visible: Path | None = None
    infrared: Path | None = None
    mode: Literal["all", "indoor"] = "all"
    query: Literal["visible", "infrared"] = "infrared"
    trials: Count = 10
    trial: Trial = 1

    def __post_init__(self) -> None:
        check_fields(self)
