"""What can be configured; light to import, so that `--help` is fast.

`CsKOConfig` is the method (paper §3); `TrainConfig` a run through a sequence of classes.
"""

from dataclasses import dataclass, replace
from typing import Literal

from cyclopts import Parameter

from tenfold import UserError
from tenfold.options import Count, NonNegative, Positive, Seed, Share, Size, check_fields

SIDE_LIMIT = 2**14
"""Pixels of a side: beyond, one picture alone fills a memory."""

Tap = Literal["center", "all"] | tuple[int, int]


def check_side(name: str, pixels: int) -> None:
    """Refuse pictures that no memory holds.

    Raises:
        UserError: more than `SIDE_LIMIT`.
    """
    if pixels > SIDE_LIMIT:
        raise UserError(f"{name}: {pixels} pixels are more than {SIDE_LIMIT}")


@dataclass(frozen=True)
class CsKOConfig:
    """The method of the paper and what it is compared with.

    Attributes:
        layers: Which convolutions are trained: last_block, all, none, a number (the last n), a comma-separated list of names, or a regular expression.
        channel_ratio: Share of the input channels kept and trained, in (0, 1]; the count is rounded down.
        selection: How channels are chosen: gradient (the paper's), random, magnitude, lowest (smallest gradient), all.
        tap: Which kernel element is trained: center, all, or a row and a column such as (0, 0).
        input_grad: Gradient sent to earlier layers: full (exact) or centre (through the 1x1 branch only).
        fold_bn: Fold batch normalisation into the convolutions; off, it is frozen as it is.
        lean_activations: What ReLU keeps for the backward pass: bits, bool, or off (stock layers).
        train_bias: Train the biases of all convolutions too.
        grad_filter: Patch size of gradient filtering on the 1x1 branch; unset, the gradient is exact.
        rule: Which directions an update may use: nscl_floor, nscl (literal), energy, gpm, none.
        thres: For nscl rules, directions are kept up to this multiple of the smallest eigenvalue.
        energy: For energy and gpm, the share of the old features' energy that is protected.
        normalize: Scale of the projector: none, or fro (divided by its Frobenius norm, as in the official code).
        covariance: Feature statistics from batch means (official) or every sample (protects exactly): batch_mean, per_sample.
        proto_weight: Weight of the prototype loss; 0 switches prototypes off.
        temperature: Logits are divided by this in every cross-entropy; the base model must share it.
    """

    layers: str | int | tuple[str, ...] = "last_block"
    channel_ratio: float = 0.75
    selection: Literal["gradient", "random", "magnitude", "lowest", "all"] = "gradient"
    tap: Tap = "center"
    input_grad: Literal["full", "centre"] = "full"
    fold_bn: bool = True
    lean_activations: Literal["bits", "bool", "off"] = "bits"
    train_bias: bool = False
    grad_filter: Count | None = None
    rule: Literal["nscl_floor", "nscl", "energy", "gpm", "none"] = "nscl_floor"
    thres: Positive = 100.0
    energy: float = 0.99
    normalize: Literal["none", "fro"] = "none"
    covariance: Literal["batch_mean", "per_sample"] = "batch_mean"
    proto_weight: NonNegative = 10.0
    temperature: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("channel_ratio", "energy"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}: {getattr(self, name)} is not above 0 and at most 1")
        if self.rule == "gpm" and self.channel_ratio < 1:
            raise UserError("rule gpm protects whole layers; use it with channel_ratio = 1")

    @classmethod
    def official(cls) -> "CsKOConfig":
        """The settings of the authors' release: temperature 0.1, threshold 5, literal rule, Frobenius norm, filter 2."""
        return cls(temperature=0.1, thres=5.0, rule="nscl", normalize="fro", grad_filter=2)


@dataclass(frozen=True)
class Method:
    """A way to learn new classes: the paper's, or one that it is compared with.

    Attributes:
        summary: in a line.
        config: what is trained and how updates are projected.
        penalty: a term that holds the old model: none, ewc (quadratic, on trained weights), lwf (distillation of old logits).
        trains: off for the nearest class mean, which only stores prototypes.
    """

    summary: str
    config: CsKOConfig
    penalty: Literal["none", "ewc", "lwf"] = "none"
    trains: bool = True


_CSKO = CsKOConfig()
_UNPROJECTED = replace(_CSKO, rule="none")
_HEAD = replace(_UNPROJECTED, layers="none", channel_ratio=1.0, selection="all")
_ALL_TAPS = replace(_HEAD, layers="last_block", tap="all")

METHODS: dict[str, Method] = {
    "csko": Method("centres of 75 % of the channels, projected, with prototypes (the paper's)", _CSKO),
    "csko-official": Method("the same with the literal rule of the official code", CsKOConfig.official()),
    "csko-literal": Method(
        "csko, literal threshold 5 and Frobenius norm", replace(_CSKO, rule="nscl", thres=5.0, normalize="fro")
    ),
    "csko-unprojected": Method("csko without projection", _UNPROJECTED),
    "csko-no-prototypes": Method("csko without prototypes", replace(_CSKO, proto_weight=0.0)),
    "csko-all-channels": Method("csko without channel selection", replace(_CSKO, channel_ratio=1.0, selection="all")),
    "csko-random": Method("csko, channels at random", replace(_CSKO, selection="random")),
    "csko-lowest": Method("csko, channels of the lowest gradient", replace(_CSKO, selection="lowest")),
    "csko-magnitude": Method("csko, channels of the largest weights", replace(_CSKO, selection="magnitude")),
    "csko-corner": Method("csko on the corner element", replace(_CSKO, tap=(0, 0))),
    "csko-25": Method("csko with 25 % of the channels", replace(_CSKO, channel_ratio=0.25)),
    "csko-energy": Method("csko, energy rule on every sample", replace(_CSKO, rule="energy", covariance="per_sample")),
    "centre": Method(
        "all centres and prototypes, no projection", replace(_UNPROJECTED, channel_ratio=1.0, selection="all")
    ),
    "corner": Method(
        "all corner elements and prototypes, no projection",
        replace(_UNPROJECTED, channel_ratio=1.0, selection="all", tap=(0, 0)),
    ),
    "edge": Method(
        "all edge elements and prototypes, no projection",
        replace(_UNPROJECTED, channel_ratio=1.0, selection="all", tap=(0, 1)),
    ),
    "centre-no-prototypes": Method(
        "all centres, nothing against forgetting",
        replace(_UNPROJECTED, channel_ratio=1.0, selection="all", proto_weight=0.0),
    ),
    "head-prototypes": Method("last layer with prototypes (ties with the paper's method)", _HEAD),
    "head": Method("last layer only", replace(_HEAD, proto_weight=0.0)),
    "ncm": Method("nearest class mean of frozen features, no training", _HEAD, trains=False),
    "bias": Method(
        "biases and last layer (TinyTL without the lite residual)", replace(_HEAD, train_bias=True, proto_weight=0.0)
    ),
    "bias-prototypes": Method("biases, last layer, prototypes", replace(_HEAD, train_bias=True)),
    "sparse-update": Method(
        "all taps of half the channels by weight, biases, last layer (tiny-training style)",
        replace(_ALL_TAPS, channel_ratio=0.5, selection="magnitude", train_bias=True, proto_weight=0.0),
    ),
    "all-taps": Method(
        "whole kernels of the last block, nothing against forgetting", replace(_ALL_TAPS, proto_weight=0.0)
    ),
    "all-taps-prototypes": Method("whole kernels of the last block, prototypes", _ALL_TAPS),
    "full": Method(
        "every weight (batch normalisation folded)", replace(_ALL_TAPS, layers="all", train_bias=True, proto_weight=0.0)
    ),
    "full-prototypes": Method("every weight, prototypes", replace(_ALL_TAPS, layers="all", train_bias=True)),
    "nscl": Method("Adam-NSCL: whole kernels, full covariance, prototypes", replace(_ALL_TAPS, rule="nscl_floor")),
    "gpm": Method(
        "GPM: whole kernels, energy of every sample, prototypes",
        replace(_ALL_TAPS, rule="gpm", covariance="per_sample"),
    ),
    "ewc": Method("whole kernels of the last block, EWC", replace(_ALL_TAPS, proto_weight=0.0), penalty="ewc"),
    "lwf": Method("whole kernels of the last block, LwF", replace(_ALL_TAPS, proto_weight=0.0), penalty="lwf"),
}
"""Every method by name: the paper's, its ablations, and the baselines."""


def method_named(name: str) -> Method:
    """Look a method up.

    Raises:
        UserError: unknown; the message lists the ones there are.
    """
    if name not in METHODS:
        raise UserError(f"--method {name}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


@Parameter(name="*")
@dataclass(frozen=True)
class TrainConfig:
    """A run through a sequence of classes.

    Attributes:
        method: The paper's csko, an ablation, or a baseline; `cskopt methods` lists them.
        model: compact, resnet18_cifar, any torchvision classification network, or timm: and a name.
        weights: A safetensors file to start from instead of training the base session; unset, the base is trained.
        image_size: Side in pixels that pictures are resized to.
        order: Order in which classes arrive: natural, or shuffled by class_seed.
        class_seed: Seed of the class order.
        base_classes: Classes of the base session.
        increment: Classes of each later session; 0 puts all that remain into one.
        base_epochs: Passes over the base session.
        epochs: Passes over each later session.
        batch_size: Pictures in a step, over all processes together.
        base_optimizer: Of the base session: sgd (momentum 0.9, cosine) or adam (one cycle).
        base_lr: Largest learning rate of the base session.
        lr: Learning rate of kernels in later sessions (Adam).
        head_lr: Learning rate of the last layer in later sessions.
        lr_drop: Share of a session after which learning rates fall to a tenth.
        weight_decay: L2 penalty added to the gradient.
        augment: Crop, flip and colour jitter as in the official code; off, frozen layers are computed once and kept.
        penalty_weight: Weight of the EWC or LwF term.
        seed: Seed of everything but the class order.
        workers: Processes that load pictures.
        precision: bf16 autocast where the hardware has it (auto), or fp32.
        layers: Overrides the method's layers.
        channel_ratio: Overrides the method's share of channels.
        rule: Overrides the method's projection rule.
        thres: Overrides the method's threshold.
        temperature: Overrides the method's temperature, in the base session too.
        proto_weight: Overrides the method's weight of prototypes.
        grad_filter: Overrides the method's gradient filter.
    """

    method: str = "csko"
    model: str = "compact"
    weights: str | None = None
    image_size: Count = 32
    order: Literal["natural", "shuffled"] = "natural"
    class_seed: Seed = 1993
    base_classes: Count = 50
    increment: Size = 5
    base_epochs: Count = 100
    epochs: Count = 60
    batch_size: Count = 128
    base_optimizer: Literal["sgd", "adam"] = "sgd"
    base_lr: Positive = 0.1
    lr: Positive = 1e-4
    head_lr: Positive = 1e-4
    lr_drop: Share = 0.75
    weight_decay: NonNegative = 5e-4
    augment: bool = True
    penalty_weight: NonNegative = 1.0
    seed: Seed = 0
    workers: Size = 0
    precision: Literal["auto", "fp32"] = "auto"
    layers: str | None = None
    channel_ratio: float | None = None
    rule: Literal["nscl_floor", "nscl", "energy", "gpm", "none"] | None = None
    thres: Positive | None = None
    temperature: Positive | None = None
    proto_weight: NonNegative | None = None
    grad_filter: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_side("image_size", self.image_size)
        self.resolved_method()

    def resolved_method(self) -> Method:
        """The method with this run's overrides."""
        method = method_named(self.method)
        names = ("layers", "channel_ratio", "rule", "thres", "temperature", "proto_weight", "grad_filter")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(method, config=replace(method.config, **changes))
