"""Who has what: partitions over clients, and which clients have labels (paper §5.1, the usual label-skew split)."""

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tenfold import UserError
from twinsight.config import METHODS, FederationConfig
from twinsight.data.datasets import Pictures, load, view_maker
from twinsight.data.transforms import ViewMaker

ATTEMPTS = 1000
"""How many partitions are drawn before giving up on the sizes that were asked for."""

OFFICIAL_UNLABELLED = {
    "cifar10": ((0, 7, 4, 9), (0, 7, 5, 4, 9, 2, 1, 3, 6)),
    "cifar100": ((2, 6, 3, 4), (2, 6, 9, 3, 4, 5, 1, 0, 8)),
    "fashionmnist": ((4, 8, 0, 7), (4, 8, 6, 0, 7, 2, 3, 1, 9)),
    "svhn": ((8, 6, 5, 3), (8, 6, 7, 5, 3, 0, 2, 1, 4)),
}
"""Which of ten clients the official code leaves unlabelled: four of them; and the list of which five, six, ... nine are the first ones."""


@dataclass(frozen=True)
class Partition:
    """An assignment of pictures to clients.

    Attributes:
        indices: for each client, where its pictures are.
        labelled: which clients have labels (partial-client setting).
    """

    indices: tuple[Int[np.ndarray, " _"], ...]
    labelled: tuple[int, ...]

    def counts(self, labels: Int[np.ndarray, " n"], num_classes: int) -> Int[np.ndarray, "k c"]:
        """Pictures of each class at each client."""
        return np.stack([np.bincount(labels[each], minlength=num_classes) for each in self.indices])


def draw_partition(labels: Int[np.ndarray, " n"], config: FederationConfig) -> Partition:
    """Split pictures over clients and draw the labelled ones; the same for the same seed.

    Args:
        labels: of all training pictures.
        config: its fields from `clients` to `min_labelled_per_class` are read.

    Raises:
        UserError: no partition meets the sizes that were asked for.
    """
    if config.clients > len(labels):
        raise UserError(f"--clients {config.clients} is more than the {len(labels)} training pictures")
    num_classes = int(labels.max()) + 1
    for attempt in range(ATTEMPTS):
        seed = config.seed + 10_000 * attempt
        indices = _split(labels, config, seed)
        # A pathological draw may leave a class to nobody.
        whole = indices is not None and sum(map(len, indices)) == len(labels)
        if indices is None or not whole or min(map(len, indices)) < (config.min_client_size or num_classes):
            continue
        chosen = labelled_clients(config, seed)
        partition = Partition(tuple(indices), chosen)
        held = partition.counts(labels, num_classes)[list(chosen)].sum(0)
        if held.min() >= config.min_labelled_per_class:
            return partition
    raise UserError(
        f"no {config.partition} partition of {len(labels)} pictures gives each of {config.clients} clients "
        f"{config.min_client_size or num_classes} pictures and the labelled ones {config.min_labelled_per_class} of each class; "
        "raise --alpha or lower --clients, --min-client-size or --min-labelled-per-class"
    )


def labelled_clients(config: FederationConfig, seed: int) -> tuple[int, ...]:
    """Which clients are labelled: those that are named, else the official code's where it has a list for such a federation, else drawn."""
    everyone, unlabelled = range(config.clients), config.clients - config.labelled
    four, more = OFFICIAL_UNLABELLED.get(config.data, ((), ()))
    if config.labelled_clients:
        return config.labelled_clients
    if config.labelled_choice == "official" and more and config.clients == 10 and unlabelled >= 4:
        without = set(four if unlabelled == 4 else more[:unlabelled])
        return tuple(sorted(set(everyone) - without))
    drawn = np.random.default_rng([seed, 1]).permutation(config.clients)[: config.labelled]
    return tuple(sorted(drawn.tolist()))


def dirichlet_split(
    labels: Int[np.ndarray, " n"], clients: int, alpha: float, generator: np.random.Generator
) -> list[Int[np.ndarray, " _"]] | None:
    """Split each class by shares p ~ Dir(alpha), none for clients that already hold n / K pictures (official code: partition_data).

    Not flwr-datasets' partitioner, which differs in who counts as full and is hundreds of times slower on 50,000 pictures.

    Args:
        labels: of all pictures.
        clients: K.
        alpha: concentration.
        generator: where the draws come from.

    Returns:
        Ascending indices of each client; None where the shares of those that are not full are all too small to be numbers.
    """
    parts: list[list[Int[np.ndarray, " _"]]] = [[] for _ in range(clients)]
    held = np.zeros(clients, dtype=np.int64)
    for label in np.unique(labels):
        indices = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(clients, alpha)) * (held < len(labels) / clients)
        if not shares.sum() > 0:
            return None
        cuts = np.cumsum(shares / shares.sum()) * len(indices)
        for client, part in enumerate(np.split(indices, cuts.astype(np.int64)[:-1])):
            parts[client].append(part)
            held[client] += len(part)
    return [np.sort(np.concatenate(each)) for each in parts]


def _split(labels: Int[np.ndarray, " n"], config: FederationConfig, seed: int) -> list[Int[np.ndarray, " _"]] | None:
    """The indices of each client; None where no partition was found."""
    if config.partition == "dirichlet":
        return dirichlet_split(labels, config.clients, config.alpha, np.random.default_rng([seed, 0]))
    from datasets import Dataset
    from flwr_datasets.partitioner import IidPartitioner, PathologicalPartitioner

    if config.partition == "iid":
        partitioner = IidPartitioner(config.clients)
    else:
        partitioner = PathologicalPartitioner(config.clients, "label", config.classes_per_client, seed=seed)
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    partitioner.dataset = Dataset.from_dict({"label": labels[order], "index": order})
    with warnings.catch_warnings():
        # Drawing again is expected at small alpha, and bounded by ATTEMPTS.
        warnings.simplefilter("ignore")
        try:
            # `[:]` reads the whole column at once; without it the library makes a Python object of every row.
            return [np.sort(np.asarray(partitioner.load_partition(k)[:]["index"])) for k in range(config.clients)]
        except ValueError:
            return None


@dataclass(frozen=True, eq=False)
class ClientData:
    """What a client holds.

    Attributes:
        labelled: pictures with labels; may be empty.
        unlabelled: pictures whose labels are never read; may be empty.
        views: how their two views are made.
    """

    labelled: Pictures
    unlabelled: Pictures
    views: ViewMaker

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)


def split_labels(pictures: Pictures, labelled: Int[Tensor, " k"], views: ViewMaker) -> ClientData:
    """A client that knows the labels of some of its pictures; the other labels are erased, not only ignored."""
    known = torch.zeros(len(pictures), dtype=torch.bool)
    known[labelled] = True
    rest = pictures.subset((~known).nonzero()[:, 0])
    erased = Pictures(rest.images, torch.full_like(rest.labels, -1), rest.classes)
    return ClientData(pictures.subset(known.nonzero()[:, 0]), erased, views)


@lru_cache(maxsize=4)
def partition_of(config: FederationConfig) -> Partition:
    """The partition of a configuration's training pictures, with a warning about classes that nobody has labels of."""
    train, _ = load(config)
    labels = train.labels.numpy()
    partition = draw_partition(labels, config)
    if config.setting == "partial-client" and not METHODS[config.method].everyone_labelled:
        held = partition.counts(labels, len(train.classes))[list(partition.labelled)].sum(0)
        absent = [train.classes[index] for index in np.flatnonzero(held == 0)]
        if absent:
            warnings.warn(f"no labelled client has {', '.join(absent)}: these classes cannot be learnt", stacklevel=2)
    return partition


def client_data(config: FederationConfig, client: int) -> ClientData:
    """What client `client` of a simulated federation holds."""
    train, _ = load(config)
    partition = partition_of(config)
    pictures = train.subset(torch.from_numpy(partition.indices[client]))
    if METHODS[config.method].everyone_labelled:
        share = len(pictures)
    elif config.setting == "partial-data":
        share = math.ceil(config.labelled_share * len(pictures))
    else:
        share = len(pictures) if client in partition.labelled else 0
    order = np.random.default_rng([config.seed, client, 2]).permutation(len(pictures))
    return split_labels(pictures, torch.from_numpy(order[:share]), view_maker(config))
