"""What a federated run is told: one flat record that travels as Flower's run configuration."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cyclopts import Parameter

from tenfold import UserError
from tenfold.config import from_dict
from tenfold.federated import Aggregation, Safeguards
from tenfold.options import Count, NonNegative, OpenShare, Positive, Seed, Share, Size, check_fields

Routing = Literal["shared_main", "personal_main", "plain"]


@dataclass(frozen=True)
class LossWeights:
    """L = alpha * L_adv + beta * L_p + gamma * L_s.

    Attributes:
        alpha: of the adversarial loss.
        beta: of the personal branch's cross-entropy.
        gamma: of the shared branch's cross-entropy.
        adv_clip: largest joint norm of the adversarial gradient.
    """

    alpha: NonNegative = 0.1
    beta: NonNegative = 1.0
    gamma: NonNegative = 1.0
    adv_clip: NonNegative = 0.1

    def __post_init__(self) -> None:
        check_fields(self)


def check_weights(weights: LossWeights, routing: Routing) -> None:
    """Refuse weights that mean nothing.

    Raises:
        UserError: an adversarial loss in the routing that has none.
    """
    if routing == "plain" and weights.alpha:
        raise UserError(f"alpha {weights.alpha}: routing plain has no adversarial loss; set alpha to 0")


AlgorithmName = Literal[
    "fedpr",
    "fedavg",
    "fedavg-ft",
    "fedprox",
    "fedbn",
    "fedper",
    "fedrep",
    "lg-fedavg",
    "ditto",
    "fedrod",
    "local",
    "central",
]
PredictOption = Literal["default", "fused", "shared", "personal", "auto"]


@Parameter(name="*")
@dataclass(frozen=True)
class FederationConfig:
    """How the clients learn together.

    Attributes:
        algorithm: fedpr is the paper's; local and central are no federation; the others are baselines.
        data: drawn:tints (every client sees its own tint), drawn:families and photos:families (every client sees its own kind of forgery), or a clients.json made by `partition`.
        clients: Number of clients; 0 takes all there are.
        rounds: Rounds of training and averaging.
        fraction: Share of the clients that train in a round.
        local_steps: Optimiser steps of a client in a round; 0 counts epochs.
        local_epochs: Epochs of a client in a round where local-steps is 0.
        batch_size: Images in a batch; a last incomplete batch is kept if it has two.
        learning_rate: Of SGD, in the first round.
        schedule: Of the learning rate over the rounds.
        momentum: Of SGD; its state is made anew every round.
        weight_decay: Of SGD.
        flip: Mirror half of the training images.
        routing: Which branch trains the extractor. plain has no statistic operations.
        alpha: Weight of the adversarial loss.
        beta: Weight of the personal branch's loss.
        gamma: Weight of the shared branch's loss.
        adv_clip: Largest norm of the adversarial gradient.
        mu: Proximal strength of fedprox.
        ditto_lambda: Proximal strength of ditto.
        predict: Which branch decides: default is the algorithm's own; auto picks the best on images that each client holds out.
        val_fraction: Share of a client's training images that is held out where predict is auto.
        backbone: tiny, resnet18, resnet34, resnet50 or timm:NAME.
        split: Stage with which the branches begin, 1 to 4.
        dropout: Before the last linear layers.
        pretrained: imagenet, or a file of the backbone's weights; empty starts at random.
        image_size: Side to which face crops are resized.
        train_images: Training images of a client of the embedded sets.
        test_images: Test images of a client of the embedded sets.
        specific: Strength of the client-specific clue of drawn:tints; 0 is the control.
        seed: Of weights, batches and embedded images.
        evaluate_every: Rounds between evaluations; the last round is always evaluated.
        timeout: Seconds that a round waits for its clients.
        upload_dtype: Precision of what is sent.
        precision: auto computes in bfloat16 where the hardware has it.
        on_bad_client: What a client that fails, is late or sends what it should not does to the run: skip leaves it out of the round and reports it.
        allow_state_reset: Let a client that has lost its personal state start from the initial one.
        aggregation: mean weighs clients by their images; median and trimmed-mean count each once and survive a minority that lies.
        trim: Share of the clients that trimmed-mean leaves out at each end, value by value.
        clip_norm: A longer update of a client is shortened to this; 0 leaves it.
        max_update_norm: A client whose update is longer than this is left out; 0 for none.
        max_samples: A client that says it has more images is left out.
    """

    algorithm: AlgorithmName = "fedpr"
    data: str = "drawn:tints"
    clients: Size = 0
    rounds: Count = 20
    fraction: Share = 1.0
    local_steps: Size = 8
    local_epochs: Count = 1
    batch_size: Count = 32
    learning_rate: Positive = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: Share = 0.9
    weight_decay: NonNegative = 5e-4
    flip: bool = True
    routing: Routing = "shared_main"
    alpha: NonNegative = 0.1
    beta: NonNegative = 1.0
    gamma: NonNegative = 1.0
    adv_clip: NonNegative = 0.1
    mu: NonNegative = 0.01
    ditto_lambda: NonNegative = 0.1
    predict: PredictOption = "default"
    val_fraction: OpenShare = 0.2
    backbone: str = "tiny"
    split: Count = 3
    dropout: Share = 0.0
    pretrained: str = ""
    image_size: Count = 32
    train_images: Count = 100
    test_images: Count = 300
    specific: NonNegative = 0.8
    seed: Seed = 0
    evaluate_every: Count = 1
    timeout: Positive = 3600.0
    upload_dtype: Literal["float32", "float16"] = "float32"
    precision: Literal["auto", "float32"] = "float32"
    on_bad_client: Literal["skip", "raise"] = "skip"
    allow_state_reset: bool = False
    aggregation: Aggregation = "mean"
    trim: OpenShare = 0.2
    clip_norm: NonNegative = 0.0
    max_update_norm: NonNegative = 1e6
    max_samples: Count = 10_000_000

    def __post_init__(self) -> None:
        check_fields(self)
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "the statistics need at least 2 images")
        _require(self.fraction > 0, "fraction", self.fraction, "some client must train; use a share above 0")
        _require(self.momentum < 1, "momentum", self.momentum, "must be below 1")
        _require(self.dropout < 1, "dropout", self.dropout, "must be below 1")
        _require(self.split <= 4, "split", self.split, "a branch begins at stage 1, 2, 3 or 4")
        check_weights(self.loss_weights, self.routing)
        _ = self.safeguards  # checks its own values

    @property
    def loss_weights(self) -> LossWeights:
        """The weights of FedPR's losses."""
        return LossWeights(self.alpha, self.beta, self.gamma, self.adv_clip)

    @property
    def safeguards(self) -> Safeguards:
        """What limits the harm of a bad client."""
        return Safeguards(self.aggregation, self.trim, self.clip_norm, self.max_update_norm, self.max_samples)


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise UserError(f"{name.replace('_', '-')} {value}: {rule}")


def to_run_config(config: FederationConfig) -> dict[str, Any]:
    """The configuration under Flower's names: `local_steps` is `local-steps`."""
    return {name.replace("_", "-"): value for name, value in dataclasses.asdict(config).items()}


def from_run_config(values: Mapping[str, Any]) -> FederationConfig:
    """The configuration that a ServerApp or ClientApp finds in its context; keys of other things are passed over.

    Raises:
        UserError: a value of the wrong kind or range.
    """
    known = {each.name for each in dataclasses.fields(FederationConfig)}
    plain = {name.replace("-", "_"): value for name, value in values.items()}
    return from_dict(
        {name: value for name, value in plain.items() if name in known}, FederationConfig, "run configuration"
    )


def fingerprint(config: FederationConfig) -> str:
    """A hash of the configuration, kept with every file of a run."""
    return hashlib.sha256(json.dumps(to_run_config(config), sort_keys=True).encode()).hexdigest()[:16]


def round_rate(config: FederationConfig, round_number: int) -> float:
    """The learning rate of a round, counted from 1: the server decides it and sends it."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (round_number - 1) / config.rounds))
