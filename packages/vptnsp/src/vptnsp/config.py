"""Configurations of the verbs: plain dataclasses, read without loading torch."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from tenfold import UserError
from tenfold.config import from_dict
from tenfold.options import Count, NonNegative, Positive, Seed, Share, Size, check_fields

IMAGE_SIZE = 32


Precision = Literal["auto", "float32"]
"""auto is bf16 autocast where the hardware has it."""

PROMPTS_LIMIT = 4096
"""Prompts per block: far above any use, far below what fills a memory."""

SEVERAL = Parameter(consume_multiple=True, negative=())
"""`--blocks 0 1` as well as `--blocks 0 --blocks 1`."""


@Parameter(name="*")
@dataclass(frozen=True)
class LearnerConfig:
    """How prompts are learnt, task after task; the paper's values for 10-split CIFAR-100 by default.

    Attributes:
        backbone: A timm VisionTransformer by name, clip:FOLDER-OR-HUB-NAME, or the embedded vptnsp_tiny_patch8_32.
        checkpoint: A file with the backbone's weights, instead of timm's own; a classifier in it is left out.
        image_size: Side of the pictures that a timm backbone takes, its own when 0; position embeddings are resampled.
        revision: Branch, tag or commit of a backbone that comes from the Hugging Face Hub; the commit that is used is printed.
        num_prompts: Prompts per block.
        blocks: Blocks that get prompts, by index; all by default (for CLIP the first four).
        epochs: Passes over each task's data.
        repeats: The data is repeated so often within one pass and shuffled together, as the official code does.
        batch_size: Pictures per step.
        lr: Learning rate of heads, and of prompts unless --prompt-lr says otherwise.
        prompt_lr: Learning rate of prompts.
        weight_decay: Coupled L2 weight decay of Adam.
        schedule: When the rate falls to a tenth: official is one pass before half and before four fifths of the passes, paper at them.
        temperature: Divides the training logits.
        ln_weight: Weight of the LayerNorm distribution loss from the second task on.
        ln_reduction: official averages it over a layer's prompts, sum adds them as the paper writes.
        projection: null-space, equal-norm (as slow, without a direction) or none.
        consistency: Second moment of keys (the paper), or of inputs as gradient-projection methods have it.
        conditions: paper, or exact with LayerNorm's weight and the prompts' spread kept in the conditions.
        eta1: Strength of the affinity projection, from 0 (none) to 1 (strict).
        eta2: Strength of the aggregation projection.
        nullity_mode: How the null space of the features is chosen: adaptive, times, fixed or energy.
        nullity_value: What that mode needs; an offset in adaptive mode.
        prompt_nullity_mode: The same for the prompts.
        prompt_nullity_value: The same for the prompts.
        convention: official counts the knee as null, paper does not.
        normalize: fro divides the projector by its Frobenius norm; none keeps it orthogonal.
        accumulate: How second moments of tasks are joined: sum, or mean weighted by pictures.
        weighting: official sums the means of mini-batches; token weighs every picture the same.
        moment_batch_size: Pictures per batch in the second-moment pass.
        head_init: default, or official where the second head continues from the first one's weights.
        train_prompts: always, or first-task to freeze them afterwards.
        extendable: Collect second moments after the last task too, so that fit-task can go on.
        refine_epochs: Epochs of projection-head refinement after each task (CLIP only).
        precision: auto (bf16 where the hardware has it) or float32; second moments are always in full precision.
        evaluation: stretch to the input size (CIFAR), or crop the centre of a picture 8/7 as large (the others).
        seed: Of prompts, heads, order of classes and pictures.
    """

    backbone: str = "vptnsp_tiny_patch8_32"
    checkpoint: Path | None = None
    image_size: Size = 0
    revision: str | None = None
    num_prompts: Count = 4
    blocks: Annotated[tuple[int, ...], SEVERAL] = ()
    epochs: Count = 10
    repeats: Count = 10
    batch_size: Count = 256
    lr: Positive = 0.01
    prompt_lr: Positive | None = None
    weight_decay: NonNegative = 5e-5
    schedule: Literal["official", "paper"] = "official"
    temperature: Positive = 28.0
    ln_weight: NonNegative = 1.0
    ln_reduction: Literal["official", "sum"] = "official"
    projection: Literal["null-space", "equal-norm", "none"] = "null-space"
    consistency: Literal["keys", "inputs"] = "keys"
    conditions: Literal["paper", "exact"] = "paper"
    eta1: Share = 0.97
    eta2: Share = 0.97
    nullity_mode: Literal["adaptive", "times", "fixed", "energy"] = "adaptive"
    nullity_value: float = 0.0
    prompt_nullity_mode: Literal["adaptive", "times", "fixed", "energy"] = "adaptive"
    prompt_nullity_value: float = 0.0
    convention: Literal["official", "paper"] = "official"
    normalize: Literal["fro", "none"] = "fro"
    accumulate: Literal["sum", "mean"] = "sum"
    weighting: Literal["official", "token"] = "official"
    moment_batch_size: Count = 100
    head_init: Literal["default", "official"] = "default"
    train_prompts: Literal["always", "first-task"] = "always"
    extendable: bool = True
    refine_epochs: Size = 0
    precision: Precision = "auto"
    evaluation: Literal["stretch", "crop"] = "stretch"
    seed: Seed = 2024

    def __post_init__(self) -> None:
        """Refuse values that no run could use, before anything is computed.

        Raises:
            UserError: the option is named.
        """
        check_fields(self)
        if self.num_prompts > PROMPTS_LIMIT:
            raise UserError(f"num_prompts: {self.num_prompts} are more than {PROMPTS_LIMIT}")


def _at_least_two(config: object, name: str) -> None:
    if getattr(config, name) < 2:
        raise UserError(f"{name}: {getattr(config, name)} is too few, at least 2 classes are needed to tell apart")


def to_plain(config: LearnerConfig) -> dict[str, Any]:
    """What JSON can hold of how a learner learns; what belongs to the stream alone is left out."""
    known = {each.name for each in fields(LearnerConfig)}
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
        if value is not None and name in known
    }


def from_plain(values: dict[str, Any], source: str = "configuration") -> LearnerConfig:
    """Back from `to_plain`.

    Raises:
        UserError: unknown or unfit values; `source` is named.
    """
    return from_dict(values, LearnerConfig, source)


MethodName = Literal[
    "nsp2", "exact", "seq", "affinity", "aggregation", "no-ln", "frozen", "slow", "pgp", "joint", "ncm", "ranpac"
]


@Parameter(name="*")
@dataclass(frozen=True)
class TrainConfig(LearnerConfig):
    """A stream of tasks and how it is learnt.

    Attributes:
        method: nsp2, or a rival in the same loop: seq, affinity or aggregation (one condition), no-ln, exact, frozen, slow, pgp, joint, ncm, ranpac.
        dataset: glyphs (procedural), digits (scanned, from scikit-learn), cifar100, or folder.
        root: Where cifar100 or the folder is; a folder has train/CLASS and val/CLASS, or CLASS alone and is split.
        train_list: A list of training pictures below the folder, one relative path a line, or path and label.
        val_list: The same for the test pictures.
        top_classes: Keep only so many classes, those with most pictures; 0 keeps all.
        tasks: Number of tasks; the classes are shuffled by the seed and dealt out evenly.
        task_file: Instead: the class names of each task, separated by tabs, one task a line.
        class_names: A file with one name per class, in the order of the sorted class folders, for CLIP's texts.
        augmentation: none, or autoaugment followed by a random resized crop.
        templates: Sentences for CLIP's texts: cifar, imagenet-r or domainnet.
        workers: Processes that load pictures.
        shift: Strength of the glyphs' domain shift.
        classes_per_task: Classes of each glyph task.
        samples_per_class: Training and test glyphs per class.
    """

    method: MethodName = "nsp2"
    dataset: Literal["glyphs", "digits", "cifar100", "folder"] = "glyphs"
    root: Path | None = None
    train_list: Path | None = None
    val_list: Path | None = None
    top_classes: Size = 0
    tasks: Count = 5
    task_file: Path | None = None
    class_names: Path | None = None
    augmentation: Literal["none", "autoaugment"] = "none"
    templates: Literal["cifar", "imagenet-r", "domainnet"] = "cifar"
    workers: Size = 0
    shift: NonNegative = 0.22
    classes_per_task: Count = 4
    samples_per_class: Count = 40

    def __post_init__(self) -> None:
        """See `LearnerConfig`."""
        super().__post_init__()
        _at_least_two(self, "classes_per_task")


@Parameter(name="*")
@dataclass(frozen=True)
class PretrainConfig:
    """How the embedded backbone is pre-trained.

    Attributes:
        characters: A folder of handwritten characters in Omniglot's layout, ALPHABET/CHARACTER/DRAWING.png.
        alphabets: The alphabets to read from it; all by default.
        photographs: A folder of photographs; each is a class of its own.
        num_photographs: How many of them.
        glyph_classes: Number of procedural classes.
        steps: Training steps.
        batch_size: Pictures per step.
        lr: Peak learning rate of AdamW.
        weight_decay: Of AdamW.
        precision: float32, or auto for bf16 where the hardware has it (at 128 channels a CPU gains nothing by it).
        seed: Of the weights, the procedural classes and the order.
    """

    characters: Path | None = None
    alphabets: Annotated[tuple[str, ...], SEVERAL] = ()
    photographs: Path | None = None
    num_photographs: Count = 128
    glyph_classes: Count = 96
    steps: Count = 2200
    batch_size: Count = 128
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    precision: Precision = "float32"
    seed: Seed = 2024

    def __post_init__(self) -> None:
        """See `LearnerConfig`."""
        check_fields(self)
        _at_least_two(self, "glyph_classes")


Config = TypeVar("Config", bound=LearnerConfig)


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes:
        summary: what it is, in a few words.
        changes: what it changes in the configuration of the full method.
    """

    summary: str
    changes: dict[str, Any] = field(default_factory=dict)


METHODS: dict[MethodName, Method] = {
    "nsp2": Method("both conditions and the LayerNorm constraint (the paper)"),
    "exact": Method("conditions with LayerNorm's weight and the prompts' spread kept", {"conditions": "exact"}),
    "seq": Method("prompts tuned one task after the other", {"projection": "none", "ln_weight": 0.0}),
    "affinity": Method("the first condition alone", {"eta2": 0.0}),
    "aggregation": Method("the second condition alone", {"eta1": 0.0}),
    "no-ln": Method("without the LayerNorm constraint", {"ln_weight": 0.0}),
    "frozen": Method("prompts frozen after the first task", {"train_prompts": "first-task", "projection": "none"}),
    "slow": Method("the same Frobenius norm, no direction", {"projection": "equal-norm"}),
    "pgp": Method(
        "gradient projection on the layer's inputs", {"consistency": "inputs", "eta2": 0.0, "ln_weight": 0.0}
    ),
    "joint": Method("all classes at once (upper bound)", {"projection": "none", "ln_weight": 0.0}),
    "ncm": Method("nearest class mean on frozen features"),
    "ranpac": Method("ridge regression on random features of frozen features"),
}
"""By name. `joint`, `ncm` and `ranpac` differ in the loop as well: see `vptnsp.training`."""

CLOSED_FORM: frozenset[str] = frozenset({"ncm", "ranpac"})
"""Methods that train no prompts."""


def for_method(config: Config) -> Config:
    """The configuration with the changes that its method makes."""
    if not isinstance(config, TrainConfig):
        return config
    return replace(config, **METHODS[config.method].changes)
