"""Who has which images: clients by forgery source, at random, by skewed shares, or several sites of a source."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pfrforgery.data.manifest import COLUMNS, Row, manifest_sha256, read_manifest
from tenfold import UserError
from tenfold.files import check_writable, write_text
from tenfold.options import Count, Positive, Seed, Size, check_fields
from tenfold.reading import read_json_object, read_rows

By = Literal["source", "iid", "dirichlet", "sites"]


@dataclass(frozen=True)
class ClientRows:
    """The rows of the manifest that one client has.

    Attributes:
        name: of the client.
        train: rows, counted from 0.
        test: rows.
    """

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class Partition:
    """All clients of a manifest.

    Attributes:
        clients: in the order of their numbers.
        manifest: the CSV file.
        seed: of the draws.
    """

    clients: tuple[ClientRows, ...]
    manifest: Path
    seed: int

    def write(self, path: Path) -> None:
        """Write `clients.json`; the manifest is named relative to it where it lies below it."""
        manifest = self.manifest.resolve()
        folder = path.resolve().parent
        content = {
            "clients": {
                str(number): {"name": each.name, "train": list(each.train), "test": list(each.test)}
                for number, each in enumerate(self.clients)
            },
            "manifest": str(manifest.relative_to(folder) if manifest.is_relative_to(folder) else manifest),
            "manifest_sha256": manifest_sha256(manifest),
            "seed": self.seed,
        }
        write_text(path, json.dumps(content, indent=1) + "\n")


def read_partition(path: Path) -> Partition:
    """Read `clients.json`.

    Raises:
        UserError: missing, not such a file, rows out of range, an image at two clients, or a manifest that has changed.
    """
    content = read_json_object(path)
    try:
        manifest = path.parent / content["manifest"]
        clients = tuple(
            ClientRows(str(entry["name"]), _row_numbers(entry["train"]), _row_numbers(entry["test"]))
            for _, entry in sorted(content["clients"].items(), key=lambda item: int(item[0]))
        )
        expected, seed = content["manifest_sha256"], _whole(content["seed"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a partition; make one with `pfrforgery partition`") from None
    rows = read_manifest(manifest)
    if manifest_sha256(manifest) != expected:
        raise UserError(f"{manifest}: has changed since {path} was made; run `pfrforgery partition` again")
    used = [row for each in clients for row in (*each.train, *each.test)]
    if not clients or (used and not 0 <= min(used) <= max(used) < len(rows)):
        raise UserError(f"{path}: names rows that {manifest} does not have")
    if len(set(used)) < len(used):
        raise UserError(f"{path}: an image belongs to two clients or to two splits")
    return Partition(clients, manifest, seed)


def _row_numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError("not a list")
    return tuple(map(_whole, values))


def _whole(value: object) -> int:
    # `int` would cut 1.5 down to 1, and infinity is no ValueError to it.
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("not a whole number")
    return value


def check_replaceable(path: Path, manifest: Path, makes_manifest: bool) -> None:
    """Refuse to write a partition, or the manifest beside it, over anything but an earlier one.

    Args:
        path: where the partition goes.
        manifest: where its manifest is or goes.
        makes_manifest: whether the manifest is written too.

    Raises:
        UserError: a place that cannot be written or that holds something else, such as the manifest that is read.
    """
    check_writable(path)
    if path.resolve() == manifest.resolve():
        raise UserError(f"{path}: is the manifest's place; choose an --out that ends in .json")
    if path.exists() and not path.is_dir():
        with _named_in_the_way(path, "partition"):
            if not {"clients", "manifest"} <= read_json_object(path).keys():
                raise UserError("lists no clients")
    if makes_manifest and manifest.exists():
        with _named_in_the_way(manifest, "manifest"):
            read_rows(manifest, COLUMNS)


@contextmanager
def _named_in_the_way(path: Path, kind: str) -> Generator[None]:
    try:
        yield
    except UserError:
        raise UserError(f"{path}: exists and is no {kind} of this program; choose another --out") from None


@dataclass(frozen=True)
class Shares:
    """How images are divided.

    Attributes:
        by: `source`: one client per source; reals of a set without fakes of their own are divided among its forgeries without overlap.
            `iid`: equal random shares. `dirichlet`: each source shared out by Dir(concentration). `sites`: every source divided among
            `clients` sites.
        clients: number of clients, or of sites per source; unused by `source`.
        concentration: of `dirichlet`; small is more skewed.
        train_images: at most so many training images per client, half real and half fake; 0 keeps all.
        test_images: the same for testing.
        seed: of the draws.
        allow_single_class: accept a client without reals or without fakes.
    """

    by: By = "source"
    clients: Count = 5
    concentration: Positive = 0.5
    train_images: Size = 0
    test_images: Size = 0
    seed: Seed = 0
    allow_single_class: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def partition(manifest: Path, shares: Shares = Shares()) -> Partition:  # frozen
    """Divide the images of a manifest among clients, whole videos at a time.

    Args:
        manifest: the CSV file.
        shares: how.

    Raises:
        UserError: a client that would have fewer than two training images, or images of one label only.
    """
    return Partition(divide(read_manifest(manifest), shares), manifest, shares.seed)


def divide(rows: Sequence[Row], shares: Shares) -> tuple[ClientRows, ...]:
    """Divide rows among clients; see `partition`."""
    if shares.by != "source" and shares.clients > len(rows):
        raise UserError(f"clients {shares.clients}: there are only {len(rows)} images")
    rng = np.random.default_rng(shares.seed)
    if shares.by == "source":
        members_of = _by_source(rows)
    elif shares.by == "sites":
        members_of = _by_sites(rows, shares.clients, shares.seed)
    else:
        members_of = _at_random(rows, shares.clients, shares.concentration if shares.by == "dirichlet" else None, rng)
    made = []
    for name, members in members_of.items():
        train = [index for index in members if rows[index].split != "test"]
        test = [index for index in members if rows[index].split == "test"]
        each = ClientRows(
            name,
            _balanced(rows, train, shares.train_images, rng),
            _balanced(rows, test, shares.test_images, rng),
        )
        _check_client(rows, each, shares.allow_single_class)
        made.append(each)
    return tuple(made)


def _check_client(rows: Sequence[Row], client: ClientRows, allow_single_class: bool) -> None:
    labels = {rows[index].label for index in client.train}
    if len(client.train) < 2:
        raise UserError(f"client {client.name}: has {len(client.train)} training images; at least 2 are needed")
    if len(labels) < 2 and not allow_single_class:
        raise UserError(
            f"client {client.name}: all training images are {labels.pop()}; --allow-single-class accepts that"
        )


def _by_source(rows: Sequence[Row]) -> dict[str, list[int]]:
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[row.source].add(row.label)
    of_set: dict[str, list[str]] = defaultdict(list)
    for source in sorted(labels):
        if labels[source] == {"fake"}:
            of_set[source.split("/")[0]].append(source)
    shares: dict[str, list[int]] = {source: [] for source in sorted(labels)}
    for index, row in enumerate(rows):
        forgeries = of_set[row.source.split("/")[0]]
        if labels[row.source] == {"real"} and forgeries:
            shares[forgeries[_hash(row.video) % len(forgeries)]].append(index)
        else:
            shares[row.source].append(index)
    return {source: members for source, members in shares.items() if members}


def _by_sites(rows: Sequence[Row], sites: int, seed: int) -> dict[str, list[int]]:
    return {
        f"{source}#{site}": [index for index in members if _hash(f"{seed}{rows[index].video}") % sites == site]
        for source, members in _by_source(rows).items()
        for site in range(sites)
    }


def _at_random(
    rows: Sequence[Row], clients: int, concentration: float | None, rng: np.random.Generator
) -> dict[str, list[int]]:
    groups: dict[tuple[str, str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, row in enumerate(rows):
        groups[row.source, row.split, row.label][row.video].append(index)
    proportions: dict[str, np.ndarray] = {}
    shares: dict[str, list[int]] = {f"client{number}": [] for number in range(clients)}
    for (source, _, _), videos in sorted(groups.items()):
        if concentration is None:
            share = np.full(clients, 1 / clients)
        else:
            # Real and fake, train and test of a source are skewed alike.
            share = proportions.setdefault(source, rng.dirichlet(np.full(clients, concentration)))
        ends = np.rint(share.cumsum() * len(videos)).astype(int)
        order = [list(videos.values())[index] for index in rng.permutation(len(videos))]
        for number, (start, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
            shares[f"client{number}"] += [index for members in order[start:end] for index in members]
    return {name: sorted(members) for name, members in shares.items()}


def _balanced(rows: Sequence[Row], members: list[int], most: int, rng: np.random.Generator) -> tuple[int, ...]:
    if not most or len(members) <= most:
        return tuple(members)
    chosen: list[int] = []
    for label in ("real", "fake"):
        found = [index for index in members if rows[index].label == label]
        chosen += rng.permutation(found)[: most // 2].tolist()
    return tuple(sorted(chosen))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
