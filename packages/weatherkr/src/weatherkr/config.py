"""What is learnt and how (official code, main.py and option.py). Imports no network: the command line reads it for its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cyclopts import Parameter

from tenfold.errors import UserError
from tenfold.options import Count, NonNegative, Positive, Seed, Size, check_fields

MethodName = Literal["kr", "kd", "er", "finetune", "lwf", "pod", "ewc", "pigwm"]


@dataclass(frozen=True)
class Method:
    """What a method adds to the loss on the new task from the second task on.

    Attributes:
        summary: in a line.
        replay: what the stored patches are pulled to: the old network's outputs, their true labels, or nothing (no memory).
        projection: keep the projected features of the stored patches (the paper's PCP).
        pooled: keep the row and column profiles of all features of the stored patches (POD).
        on_new: the old network's outputs on the *new* inputs are a second target (LwF).
        importance: penalise changes of weights that mattered: mean squared gradients (EWC) or mean absolute ones (PIGWM).
    """

    summary: str
    replay: Literal["teacher", "labels"] | None = None
    projection: bool = False
    pooled: bool = False
    on_new: bool = False
    importance: Literal["squared", "absolute"] | None = None

    @property
    def needs_teacher(self) -> bool:
        """Whether the old network is run."""
        return self.replay == "teacher" or self.on_new or self.pooled or self.projection


METHODS: dict[str, Method] = {
    "kr": Method(
        "knowledge replay: teacher outputs and projected features of stored patches", "teacher", projection=True
    ),
    "kd": Method("kr without the projection", "teacher"),
    "er": Method("plain replay: stored patches with their true labels", "labels"),
    "finetune": Method("the new task alone: no memory, no teacher"),
    "lwf": Method("no memory: the old network's outputs on the new inputs", on_new=True),
    "pod": Method("kd and pooled outputs of all feature maps", "teacher", pooled=True),
    "ewc": Method("no memory: quadratic penalty by squared gradients", importance="squared"),
    "pigwm": Method("no memory: quadratic penalty by absolute gradients", importance="absolute"),
}


SMALLEST_CROP, LARGEST_CROP = 16, 8192
"""Pixels of a side: the contrast loss's network halves patches four times, and a batch must fit in memory."""

LARGEST_DIM, LARGEST_BLOCKS, LARGEST_SHUFFLE = 4096, 1024, 64
"""Far above any network that was ever trained; beyond, a slip of the finger would fill the memory."""


def check_sizes(dim: int, blocks: int, shuffle: int) -> None:
    """Refuse sizes that no network has.

    Raises:
        UserError: names all three and what they may be.
    """
    if not (8 <= dim <= LARGEST_DIM and 1 <= blocks <= LARGEST_BLOCKS and 1 <= shuffle <= LARGEST_SHUFFLE):
        raise UserError(
            f"dim {dim}, blocks {blocks}, shuffle {shuffle}: need 8 to {LARGEST_DIM}, 1 to {LARGEST_BLOCKS} and 1 to {LARGEST_SHUFFLE}"
        )


@Parameter(name="*")
@dataclass(frozen=True)
class TrainConfig:
    """What is learnt and how; the defaults are the official code's newest recipe.

    Attributes:
        dim: Channels of the network.
        blocks: Blocks in each of its three groups.
        shuffle: 1, or s: the network works on s x s pixels gathered into channels, about s squared times cheaper.
        residual: normalized: add the normalised input to the output, as the paper's network; image: add the image, better for short training; affine: and scale it smoothly.
        method: kr (the paper's), kd, er, finetune, lwf, pod, ewc, pigwm; see `weatherkr compare --help`.
        steps: Updates for each task.
        batch_size: New patches in a step, over all processes; as many stored ones.
        crop: Side of the patches in pixels.
        learning_rate: Of Adam at the start of each task; cosine to 0 at its end.
        alpha: Weight of the replay loss.
        beta_new: Weight of the contrast loss on new patches.
        beta_old: Weight of the contrast loss on stored patches.
        projection_weight: Weight lambda of the projected features.
        contrast: vgg19 (needs its weights), random (a fixed random network), or off.
        contrast_negative: The degraded image as the network sees it (normalized, official) or in [0, 1] (image).
        vgg_weights: torchvision's vgg19-dcbb9e9d.pth; torch hub's cache by default.
        memory: Patches kept, of all learnt tasks together.
        memory_policy: official: ceil(memory / tasks) each, which may exceed it by a few; exact: never above.
        projector: attention (official) or pca.
        rank: Channels that the projector keeps.
        projector_update: After each task retrain the projector, continue its training, or freeze_first (what the official code does).
        projector_epochs: Passes over the memory to train an attention projector.
        projector_learning_rate: Of that training; the official code really uses 1e-4.
        pod_weight: Weight of pooled outputs (pod).
        importance_weight: Weight of the quadratic penalty (ewc, pigwm); importances are scaled to a maximum of 1.
        importance_batches: Batches that importances are averaged over.
        augment: flip: new patches are mirrored at random; none, as the official code.
        cache_teacher: Compute the old network's outputs of the stored patches once a task; the same numbers, fewer passes.
        eval_every: Steps between evaluations on the validation pictures; the best weights are kept.
        eval_images: Validation pictures of each task, at most.
        save_every: Steps between checkpoints that --resume continues from.
        seed: Of weights, patches, weather, memory.
        precision: auto: bfloat16 where the hardware has it; or float32.
        workers: Processes that prepare patches; the result does not depend on them.
    """

    dim: Count = 64
    blocks: Count = 20
    shuffle: Count = 1
    residual: Literal["normalized", "image", "affine"] = "normalized"
    method: MethodName = "kr"
    steps: Count = 500_000
    batch_size: Count = 1
    crop: Count = 240
    learning_rate: Positive = 1e-4
    alpha: NonNegative = 1.0
    beta_new: NonNegative = 0.2
    beta_old: NonNegative = 0.8
    projection_weight: NonNegative = 0.3
    contrast: Literal["vgg19", "random", "off"] = "vgg19"
    contrast_negative: Literal["normalized", "image"] = "normalized"
    vgg_weights: Path | None = None
    memory: Count = 500
    memory_policy: Literal["official", "exact"] = "official"
    projector: Literal["attention", "pca"] = "attention"
    rank: Count = 16
    projector_update: Literal["retrain", "continue", "freeze_first"] = "retrain"
    projector_epochs: Count = 50
    projector_learning_rate: Positive = 1e-4
    pod_weight: NonNegative = 1.0
    importance_weight: NonNegative = 200.0
    importance_batches: Count = 50
    augment: Literal["flip", "none"] = "flip"
    cache_teacher: bool = True
    eval_every: Count = 10_000
    eval_images: Count = 64
    save_every: Count = 1_000
    seed: Seed = 0
    precision: Literal["auto", "float32"] = "auto"
    workers: Size = 2

    def __post_init__(self) -> None:
        check_fields(self)
        if not SMALLEST_CROP <= self.crop <= LARGEST_CROP:
            raise UserError(f"crop is {self.crop}; it must be from {SMALLEST_CROP} to {LARGEST_CROP}")
        check_sizes(self.dim, self.blocks, self.shuffle)
        if self.method not in get_args(MethodName):
            raise UserError(f"method {self.method}: choose {', '.join(get_args(MethodName))}")
