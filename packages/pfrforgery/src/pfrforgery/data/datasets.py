"""The images of one client, ready to train on: decoded and resized once, kept as bytes."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from pfrforgery.config import FederationConfig
from pfrforgery.data.layouts import scan
from pfrforgery.data.manifest import LABELS, Row, read_manifest
from pfrforgery.data.partition import read_partition
from pfrforgery.data.synthetic.faces import SIDE, drawn_tints
from pfrforgery.data.synthetic.forgeries import drawn_family, family_of, photo_family
from tenfold import UserError
from tenfold.data import embedded_pictures, to_tensor
from tenfold.images import read_image
from tenfold.options import Count, NonNegative, Seed, Share, Size, check_fields

EMBEDDED = ("drawn:tints", "drawn:families", "photos:families")
TEST_PHOTOGRAPHS = ("coffee", "flower", "rocket")
"""No piece of these is trained on."""


@dataclass(frozen=True)
class ImageSet:
    """Face crops in memory.

    Attributes:
        images: RGB bytes.
        labels: 0 real, 1 fake.
        videos: the video of each; empty where every image stands alone.
    """

    images: UInt8[Tensor, "n 3 s s"]
    labels: Int[Tensor, " n"]
    videos: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Int[Tensor, " m"]) -> "ImageSet":
        """A part of it."""
        videos = tuple(self.videos[i] for i in index.tolist()) if self.videos else ()
        return ImageSet(self.images[index], self.labels[index], videos)


@dataclass(frozen=True)
class ClientData:
    """What one client has.

    Attributes:
        name: of the client.
        train: to learn from.
        held_out: to choose the predicting branch on; empty where nothing is to be chosen.
        test: to be judged on.
    """

    name: str
    train: ImageSet
    held_out: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class DataRequest:
    """Which data; the part of the configuration that decides it, so that it can be kept.

    Attributes:
        data: see `FederationConfig.data`, or a folder that holds one client's images.
        clients: number of clients of an embedded set.
        image_size: side of the crops.
        train_images: of an embedded set.
        test_images: of an embedded set.
        specific: of the drawn tints.
        seed: of an embedded set and of what is held out.
        held_out: share of the training images to hold out.
    """

    data: str
    clients: Count
    image_size: Count
    train_images: Size
    test_images: Size
    specific: NonNegative
    seed: Seed
    held_out: Share

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of(cls, config: FederationConfig, clients: int, data: str | None = None) -> "DataRequest":
        """The request of a configuration; `data` is a node's own place and goes before the run's."""
        return cls(
            data or config.data,
            clients,
            config.image_size,
            config.train_images,
            config.test_images,
            config.specific,
            config.seed,
            config.val_fraction if config.predict == "auto" else 0.0,
        )


def count_clients(data: str, wanted: int) -> int:
    """How many clients there are: those of a partition, or as many of an embedded set as are wanted (5 when 0).

    Raises:
        UserError: more clients wanted than the partition has, or no such data.
    """
    if data in EMBEDDED:
        return wanted or 5
    if Path(data).is_dir():
        raise UserError(f"{data}: is a folder; make clients of it with `pfrforgery partition {data}`")
    there = len(read_partition(Path(data)).clients)
    if wanted > there:
        raise UserError(f"clients {wanted}: {data} has {there}")
    return wanted or there


@functools.lru_cache(maxsize=128)
def client_data(request: DataRequest, client: int) -> ClientData:
    """The images of one client; kept for the next round.

    Args:
        request: which data.
        client: number of the client, from 0.

    Raises:
        UserError: no such data or client, an unreadable image, or fewer than two images to train on.
    """
    if request.data in EMBEDDED:
        name, train, test = _embedded(request, client)
    else:
        path = Path(request.data)
        name, train, test = _from_folder(request, path) if path.is_dir() else _from_partition(request, path, client)
    if len(train) < 2:
        raise UserError(f"client {client} ({name}): has {len(train)} training images; at least 2 are needed")
    if not request.held_out:
        return ClientData(name, train, train.take(torch.arange(0)), test)
    return ClientData(name, *_hold_out(train, request.held_out, request.seed), test)


def pooled_train(request: DataRequest) -> ImageSet:
    """The training images of all clients together, for the centralised reference.

    Raises:
        UserError: the data is one client's own folder.
    """
    if request.data not in EMBEDDED and Path(request.data).is_dir():
        raise UserError(f"{request.data}: holds one client's images; algorithm central needs those of all")
    parts = [client_data(request, client).train for client in range(request.clients)]
    return ImageSet(torch.cat([each.images for each in parts]), torch.cat([each.labels for each in parts]))


def _embedded(request: DataRequest, client: int) -> tuple[str, ImageSet, ImageSet]:
    kind, counts = request.data, (request.train_images, request.test_images)
    family = family_of(client)
    made = []
    for part, count in enumerate(counts):
        rng = np.random.default_rng([request.seed, client, part])
        if kind == "drawn:tints":
            images, labels = drawn_tints(count, client, request.clients, request.specific, rng)
            images = images if request.image_size == SIDE else _resized_bytes(images, request.image_size)
        elif kind == "drawn:families":
            images, labels = drawn_family(count, family, request.image_size, rng)
        else:
            images, labels = photo_family(count, family, request.image_size, rng, _photographs(part == 1))
        made.append(ImageSet(images, labels))
    return (f"tint{client}" if kind == "drawn:tints" else f"{client}-{family}"), made[0], made[1]


@functools.lru_cache(maxsize=2)
def _photographs(testing: bool) -> list[np.ndarray]:
    return [read_image(path) for name, path in embedded_pictures().items() if (name in TEST_PHOTOGRAPHS) == testing]


def _from_partition(request: DataRequest, path: Path, client: int) -> tuple[str, ImageSet, ImageSet]:
    found = read_partition(path)
    if client >= len(found.clients):
        raise UserError(f"client {client}: {path} has clients 0 to {len(found.clients) - 1}")
    rows, mine = read_manifest(found.manifest), found.clients[client]
    root = found.manifest.parent
    sets = [load_images([rows[i] for i in part], root, request.image_size) for part in (mine.train, mine.test)]
    return mine.name, sets[0], sets[1]


def _from_folder(request: DataRequest, root: Path) -> tuple[str, ImageSet, ImageSet]:
    rows = scan(root)
    parts = [[row for row in rows if (row.split == "test") == testing] for testing in (False, True)]
    sets = [load_images(part, root, request.image_size) for part in parts]
    return root.name, sets[0], sets[1]


def load_images(rows: list[Row], root: Path, size: int) -> ImageSet:
    """Decode crops and resize the whole crop to a square (bilinear, antialiased).

    Raises:
        UserError: an image that cannot be read; the message names it.
    """
    images = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    for index, row in enumerate(rows):
        images[index] = (resize_crop(to_tensor(root / row.path), size) * 255).round().to(torch.uint8)
    labels = torch.tensor([LABELS[row.label] for row in rows], dtype=torch.int64)
    return ImageSet(images, labels, tuple(row.video for row in rows))


def resize_crop(image: Float[Tensor, "*n 3 h w"], size: int) -> Float[Tensor, "*n 3 {size} {size}"]:
    """Whole crops as squares of `size` pixels (bilinear, antialiased)."""
    if image.shape[-2:] == (size, size):
        return image
    batch = image if image.ndim == 4 else image[None]
    resized = F.interpolate(batch, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return resized if image.ndim == 4 else resized[0]


def _resized_bytes(images: UInt8[Tensor, "n 3 h w"], size: int) -> UInt8[Tensor, "n 3 s s"]:
    return (resize_crop(images.float() / 255, size) * 255).round().to(torch.uint8)


def _hold_out(train: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Hold out whole videos, about `share` of them, of both labels."""
    rng = np.random.default_rng([seed, 7])
    names = train.videos or tuple(map(str, range(len(train))))
    held: set[str] = set()
    for label in (0, 1):
        videos = list(
            dict.fromkeys(name for name, own in zip(names, train.labels.tolist(), strict=True) if own == label)
        )
        held |= (
            set(rng.permutation(videos)[: max(1, round(share * len(videos)))].tolist()) if len(videos) > 1 else set()
        )
    chosen = torch.tensor([name in held for name in names])
    return train.take((~chosen).nonzero()[:, 0]), train.take(chosen.nonzero()[:, 0])
