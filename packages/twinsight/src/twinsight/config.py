"""The configuration of a federation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tenfold import UserError
from tenfold.config import from_dict
from tenfold.federated import Aggregation, Safeguards
from tenfold.options import Count, NonNegative, OpenShare, Positive, Seed, Share, Size, check_fields

Pool = Literal["all", "labelled"]
Consistency = Literal["off", "fixmatch", "freematch", "consistency"]


@dataclass(frozen=True)
class Method:
    """What a method does differently.

    Attributes:
        summary: in a few words.
        kind: which model it trains (`TwinModel`).
        pool: which clients take part in the rounds.
        everyone_labelled: give every client its labels (the upper bound).
        on_unlabelled: what the supervised model learns on clients without labels, whatever the configuration says.
        constraint: whether the neighbourhood-preserving loss is on.
        proximal: whether the FedProx term is on.
    """

    summary: str
    kind: Literal["twins", "shared", "classifier"] = "classifier"
    pool: Pool = "all"
    everyone_labelled: bool = False
    on_unlabelled: Consistency = "off"
    constraint: bool = False
    proximal: bool = False


METHODS = {
    "twin-sight": Method("twin models with the neighbourhood-preserving constraint", "twins", constraint=True),
    "twins-apart": Method("twin models without the constraint", "twins"),
    "one-network": Method("one encoder with both objectives", "shared"),
    "damped": Method("FedAvg; clients without labels take part and return the weights as they came"),
    "lower-bound": Method("FedAvg on the labelled clients", pool="labelled"),
    "upper-bound": Method("FedAvg with every client labelled", everyone_labelled=True),
    "fedprox": Method("FedProx on the labelled clients", pool="labelled", proximal=True),
    "fixmatch": Method("FedAvg, FixMatch where there are no labels", on_unlabelled="fixmatch"),
    "freematch": Method("FedAvg, FreeMatch where there are no labels", on_unlabelled="freematch"),
    "fedprox-fixmatch": Method("FedProx, FixMatch where there are no labels", on_unlabelled="fixmatch", proximal=True),
    "fedprox-freematch": Method(
        "FedProx, FreeMatch where there are no labels", on_unlabelled="freematch", proximal=True
    ),
    "consistency": Method("FedAvg, consistency of two views where there are no labels", on_unlabelled="consistency"),
}
"""By the name that `--method` takes."""


SMALLEST_SIDE, LARGEST_SIDE = 8, 4096
"""Of the pictures that a classifier is trained on: below, nothing is left after its strides; above, one step fills the memory."""

Setting = Literal["partial-client", "partial-data"]
Partition = Literal["dirichlet", "pathological", "iid"]
MethodName = Literal[
    "twin-sight",
    "twins-apart",
    "one-network",
    "damped",
    "lower-bound",
    "upper-bound",
    "fedprox",
    "fixmatch",
    "freematch",
    "fedprox-fixmatch",
    "fedprox-freematch",
    "consistency",
]


@dataclass(frozen=True)
class FederationConfig:
    """Who has what, what is trained and how.

    Attributes:
        data: digits (ships with scikit-learn), cifar10, cifar100, svhn, fashionmnist, or folder.
        root: Where the files of the set are; with folder: train/CLASS and test/CLASS, or CLASS alone.
        download: Fetch torchvision's sets when they are missing.
        image_size: Side that pictures of a folder are resized to.
        clients: Number of clients K.
        labelled: Number of labelled clients M.
        labelled_clients: Which clients are labelled; see labelled-choice when empty.
        labelled_choice: official: the lists of the official code for ten clients of its four sets, else drawn. drawn: by the seed.
        partition: dirichlet (label skew as in the official code), pathological (few classes each) or iid.
        alpha: Concentration of the Dirichlet distribution: the smaller, the more skewed.
        classes_per_client: Of the pathological partition.
        min_client_size: Fewest pictures of a client; as many as there are classes when 0, as in the official code.
        min_labelled_per_class: Draw the partition anew until the labelled clients hold this many pictures of each class.
        setting: partial-client: some clients are labelled, the others not. partial-data: each client has labels for a share.
        labelled_share: The share in the partial-data setting, rounded up at each client.
        clients_per_round: Clients S of each round.
        labelled_per_round: Clients of each round where only labelled ones take part; half of them, rounded up, when 0.
        rounds: Rounds of the federation.
        local_epochs: Passes over a client's data in a round.
        batch_size: Pictures of a step; twice as many views.
        learning_rate: Of SGD.
        momentum: Of SGD.
        weight_decay: Of SGD.
        momentum_across_rounds: Each client keeps its SGD's momentum between its rounds, as the official code does by making the optimizer once; off, it starts from zero in every round.
        method: See `twinsight methods`.
        encoder: resnet18 (the paper's) or small.
        objective: Of the unsupervised twin. In the partial-data setting the official code runs simclr alone.
        temperature: Of SimCLR.
        instance_weight: Weight of the unsupervised objective.
        neighbourhood_weight: Weight of the neighbourhood-preserving constraint.
        normalisation: What the constraint's sum over pairs is divided by. official: B XOR 2, as the official code has it; batches of two are passed over. mean: B x B, at a batch of 64 a 62nd of the official weight.
        np_feature: What the constraint sees of SimSiam's twin. official: the projection. pooled: the pooled feature, as of the others.
        byol_target: official: a frozen random network, another one at each client, which is not BYOL proper. ema: follows the online network.
        neighbourhood_warmup: Share of the rounds over which the constraint's weight rises from 0.
        pseudo_labels: For the supervised twin on clients without labels.
        pseudo_label_direction: Which view teaches a twin on clients without labels. official: the strong one, as the official code has it. weak_to_strong: FixMatch's and FreeMatch's own.
        pseudo_label_weight: Weight of pseudo-labels; 0.5 in the partial-client and 5 in the partial-data setting when negative.
        threshold: FixMatch's.
        proximal_weight: FedProx's mu (without the usual half), where the method has it or the setting is partial-data.
        supervised_views: both: the classifier also sees the strong views, which changes its BatchNorm. weak: it does not.
        views: official: those of the official code, with its normalisation (zero padding; SVHN enlarged and recoloured; FMNIST in one channel). tenfold: reflected borders, every set normalised, three channels. The same for digits.
        strong_view: official (three operations at random strength, then Cutout), randaugment (torchvision's), geometric (rotation, scale, contrast, noise, erasing), weak (a second weak view), or auto by the set.
        randaugment_operations: Operations a picture, of randaugment.
        randaugment_magnitude: Out of 30, of randaugment.
        accuracy: What is reported of a round. top-1: of all test pictures. running-mean: the mean over shuffled batches of the mean so far, which the official code returns; as high on average, with a spread of its own. Both bests are in result.json.
        integer_buffers: How BatchNorm's step counters are averaged. official: each weighted value is cut to a whole number, then they are summed. mean: the mean, rounded.
        target: Accuracy in per cent whose first round is reported.
        seed: Of everything that is drawn.
        precision: auto (bf16 where the hardware has it) or float32.
        aggregation: mean weighs clients by their pictures; median and trimmed-mean count each once and survive a minority that lies.
        trim: Share of the clients that trimmed-mean leaves out at each end, value by value.
        clip_norm: A longer update of a client is shortened to this; 0 leaves it.
        max_update_norm: A client whose update is longer than this is left out; 0 for none.
        max_samples: A client that says it has more pictures is left out.
    """

    data: Literal["digits", "cifar10", "cifar100", "svhn", "fashionmnist", "folder"] = "digits"
    root: Path | None = None
    download: bool = False
    image_size: Count = 32
    clients: Count = 10
    labelled: Count = 4
    labelled_clients: tuple[Size, ...] = ()
    labelled_choice: Literal["official", "drawn"] = "official"
    partition: Partition = "dirichlet"
    alpha: Positive = 0.1
    classes_per_client: Count = 2
    min_client_size: Size = 0
    min_labelled_per_class: Size = 0
    setting: Setting = "partial-client"
    labelled_share: Share = 0.05
    clients_per_round: Count = 5
    labelled_per_round: Size = 0
    rounds: Count = 500
    local_epochs: Count = 1
    batch_size: Count = 64
    learning_rate: Positive = 0.01
    momentum: Share = 0.9
    weight_decay: NonNegative = 1e-4
    momentum_across_rounds: bool = True
    method: MethodName = "twin-sight"
    encoder: Literal["resnet18", "small"] = "resnet18"
    objective: Literal["simclr", "simsiam", "byol"] = "simclr"
    temperature: Positive = 0.07
    instance_weight: NonNegative = 0.5
    neighbourhood_weight: NonNegative = 1.0
    normalisation: Literal["mean", "official"] = "official"
    np_feature: Literal["official", "pooled"] = "official"
    byol_target: Literal["official", "ema"] = "official"
    neighbourhood_warmup: Share = 0.0
    pseudo_labels: Literal["off", "fixmatch", "freematch"] = "off"
    pseudo_label_direction: Literal["official", "weak_to_strong"] = "official"
    pseudo_label_weight: float = -1.0
    threshold: Share = 0.95
    proximal_weight: NonNegative = 0.5
    supervised_views: Literal["both", "weak"] = "both"
    views: Literal["official", "tenfold"] = "official"
    strong_view: Literal["auto", "official", "randaugment", "geometric", "weak"] = "auto"
    randaugment_operations: Count = 3
    randaugment_magnitude: Size = 5
    accuracy: Literal["top-1", "running-mean"] = "top-1"
    integer_buffers: Literal["official", "mean"] = "official"
    target: NonNegative | None = None
    seed: Seed = 0
    precision: Literal["auto", "float32"] = "auto"
    aggregation: Aggregation = "mean"
    trim: OpenShare = 0.2
    clip_norm: NonNegative = 0.0
    max_update_norm: NonNegative = 1e6
    max_samples: Count = 10_000_000

    @property
    def safeguards(self) -> Safeguards:
        """What limits the harm of a bad client."""
        return Safeguards(self.aggregation, self.trim, self.clip_norm, self.max_update_norm, self.max_samples)

    @property
    def sampled(self) -> int:
        """How many clients take part in a round."""
        if METHODS[self.method].pool == "all" or self.setting == "partial-data":
            return self.clients_per_round
        return self.labelled_per_round or -(-self.labelled // 2)

    @property
    def keeps_state(self) -> bool:
        """Whether a client has anything to keep between its rounds."""
        return self.momentum_across_rounds or self.setting == "partial-data"

    @property
    def notes(self) -> list[str]:
        """What must be said beside every number of this configuration."""
        method, notes = METHODS[self.method], []
        if method.constraint and self.normalisation == "mean" and self.batch_size > 2:
            weaker = self.batch_size**2 / (self.batch_size ^ 2)
            notes.append(
                f"--normalisation mean: at a batch of {self.batch_size} the constraint weighs 1/{weaker:.0f} of what it weighs in the official code"
            )
        if method.kind != "classifier" and (self.objective, self.byol_target) == ("byol", "official"):
            notes.append(
                "--byol-target official: each client's target is a frozen random network; this is not BYOL proper, --byol-target ema is"
            )
        return notes

    @property
    def pseudo_weight(self) -> float:
        """The weight of pseudo-labels, after the setting's default."""
        if self.pseudo_label_weight >= 0:
            return self.pseudo_label_weight
        return 5.0 if self.setting == "partial-data" else 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        if not SMALLEST_SIDE <= self.image_size <= LARGEST_SIDE:
            raise UserError(
                f"--image-size must be at least {SMALLEST_SIDE} and at most {LARGEST_SIDE}, got {self.image_size}"
            )
        if self.batch_size < 2 or self.min_client_size == 1:
            raise UserError(
                "--batch-size and --min-client-size must be at least 2: BatchNorm has no statistics of one picture"
            )
        if self.batch_size == 2 and self.normalisation == "official":
            raise UserError("--normalisation official divides by 2 XOR 2 = 0 at --batch-size 2; choose another size")
        if not 0 < self.labelled <= self.clients:
            raise UserError(f"--labelled must be between 1 and --clients ({self.clients}), got {self.labelled}")
        if self.clients_per_round > self.clients:
            raise UserError(f"--clients-per-round {self.clients_per_round} is more than --clients {self.clients}")
        if not 0 <= self.labelled_per_round <= self.labelled:
            raise UserError(
                f"--labelled-per-round must be between 0 and --labelled ({self.labelled}), got {self.labelled_per_round}"
            )
        if self.labelled_clients and (
            len(set(self.labelled_clients)) != self.labelled
            or not set(self.labelled_clients) <= set(range(self.clients))
        ):
            raise UserError(
                f"--labelled-clients must name --labelled ({self.labelled}) different clients from 0 to {self.clients - 1}"
            )
        if self.labelled_share == 0:
            raise UserError("--labelled-share must be above 0: without any label nothing is learnt")
        if self.momentum == 1:
            raise UserError("--momentum must be below 1: SGD would never slow down")
        if self.target is not None and self.target > 100:
            raise UserError(f"--target is in per cent, at most 100, got {self.target:g}")
        if self.setting == "partial-data" and METHODS[self.method].kind == "shared":
            raise UserError("--method one-network is measured in the partial-client setting only")
        if self.data == "folder" and self.root is None:
            raise UserError("--data folder needs --root")
        _ = self.safeguards  # checks its own values


APP_KEYS = frozenset({"out", "resume", "patience", "state-dir"})
"""What the run configuration holds beside the fields of `FederationConfig` and `preset`: the apps read it."""


def from_run_config(values: dict[str, Any]) -> FederationConfig:
    """The configuration that `flwr run` hands over: flat scalars; an empty one is unset, and `preset` says where unset ones come from.

    Raises:
        UserError: an unknown key or a value of another type.
    """
    from tenfold.config import preset_values

    chosen = {key.replace("-", "_"): value for key, value in values.items() if value != "" and key not in APP_KEYS}
    preset = str(chosen.pop("preset", "small"))
    if isinstance(chosen.get("labelled_clients"), str):
        # Flower's values are scalars: a list is written with commas.
        parts = [part.strip() for part in str(chosen["labelled_clients"]).split(",") if part.strip()]
        if not all(part.isdecimal() and len(part) < 10 for part in parts):
            raise UserError(
                f"run configuration: labelled-clients is {chosen['labelled_clients']!r}, not numbers with commas"
            )
        chosen["labelled_clients"] = [int(part) for part in parts]
    return from_dict(preset_values("twinsight", preset, "simulate") | chosen, FederationConfig, "run configuration")
