"""The networks: a classifier, its unsupervised twin, and the two in one body (paper §3; official code: models)."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors
from tenfold.config import from_dict
from tenfold.hub import model_folder
from tenfold.options import Count, Positive, check_fields
from tenfold.reading import CONFIG_LIMIT, read_json_object
from twinsight.config import LARGEST_SIDE, METHODS

Encoder = Literal["resnet18", "small"]
Objective = Literal["simclr", "simsiam", "byol"]
Target = Literal["official", "ema"]
Kind = Literal["twins", "shared", "classifier"]

BYOL_MOMENTUM = 0.99

FILES = ("config.json", "model.safetensors")
"""What a saved model consists of."""


class SmallResNet(nn.Module):
    """A residual network for pictures of 8 to 32 pixels: stem of stride 2, two blocks of 16 and 32 channels, average pool.

    Args:
        channels: of the pictures.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(StridedBlock(8, 16), StridedBlock(16, 32))
        self.num_features = 32

    def forward(self, images: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b 32"]:
        """Pooled features."""
        return self.blocks(self.stem(images)).mean((2, 3))


class StridedBlock(nn.Module):
    """torchvision's basic block with stride 2, under the same names.

    Not torchvision's own: importing that loads torch's compiler, three seconds in every fresh process, and a deployed client answers
    every message in one.

    Args:
        before: channels that come in.
        after: channels that go out.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
        self.conv1 = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = shortcut

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Half the side, rounded up."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(out + self.downsample(x), inplace=True)


def build_encoder(name: Encoder, channels: int = 3) -> nn.Module:
    """An encoder without its classifier; `num_features` says how wide its pooled features are.

    Args:
        name: `resnet18`, the paper's: 3x3 stem of stride 1, no max-pool, 64-128-256-512 channels. `small`: `SmallResNet`.
        channels: of the pictures.
    """
    if name == "small":
        return SmallResNet(channels)
    from torchvision.models import resnet18

    network = resnet18()
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network.num_features = network.fc.in_features
    network.fc = nn.Identity()
    return network


def projector(features: int, hidden: int, out: int) -> nn.Sequential:
    """SimCLR's and BYOL's projector, and BYOL's predictor: Linear, BatchNorm, ReLU, Linear."""
    return nn.Sequential(
        nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
    )


def simsiam_projector(features: int, out: int) -> nn.Sequential:
    """SimSiam's projector: three layers, BatchNorm after each, the last without ReLU."""
    layers: list[nn.Module] = []
    for before in (features, out, out):
        layers += [nn.Linear(before, out), nn.BatchNorm1d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def projection_sizes(features: int) -> tuple[int, int]:
    """Hidden and output width of the projector: 4096 and 2048 for the paper's 512 features, 128 and 64 for 32."""
    return (4096, 2048) if features == 512 else (4 * features, 2 * features)


class InstanceDiscriminator(nn.Module):
    """An encoder with the head of an unsupervised objective (f_u of the paper).

    Args:
        encoder: makes the pooled features.
        objective: `simclr`, `simsiam` or `byol`.
        temperature: of SimCLR's loss.
        byol_target: `ema` makes BYOL's target follow the online network; `official` has none here: see `borrow`.
    """

    def __init__(
        self, encoder: nn.Module, objective: Objective, temperature: float, byol_target: Target = "official"
    ) -> None:
        super().__init__()
        features = int(encoder.num_features)  # ty: ignore[invalid-argument-type]
        hidden, out = projection_sizes(features)
        self.encoder, self.objective, self.temperature = encoder, objective, temperature
        if objective == "simsiam":
            self.projector = simsiam_projector(features, features)
            self.predictor = projector(features, features // 2, features)
        else:
            self.projector = projector(features, hidden, out)
        if objective == "byol":
            self.predictor = projector(out, hidden, out)
        self.own_target = None
        if objective == "byol" and byol_target == "ema":
            self.own_target = nn.Sequential(copy.deepcopy(encoder), copy.deepcopy(self.projector)).requires_grad_(False)
        self._borrowed: list[nn.Module] = []

    def borrow(self, target: nn.Module) -> None:
        """Use a target that is not part of this model: the frozen network of a client, which is neither trained nor sent nor averaged."""
        self._borrowed = [target]  # in a list, where torch does not look for parts

    def target(self, views: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b p"]:
        """What BYOL's prediction of the other view is compared with.

        Raises:
            ValueError: neither a target of its own nor a borrowed one.
        """
        network = self.own_target if self.own_target is not None else next(iter(self._borrowed), None)
        if network is None:
            raise ValueError("BYOL without a target: borrow one, or make the model with byol_target='ema'")
        return network(views)

    @torch.no_grad()
    def follow(self) -> None:
        """Move a target of its own towards the online network; else nothing. Call it after each step."""
        if self.own_target is not None:
            online = nn.Sequential(self.encoder, self.projector)
            for target, source in zip(self.own_target.parameters(), online.parameters(), strict=True):
                target.lerp_(source, 1 - BYOL_MOMENTUM)


def frozen_target(config: Any, seed: int, channels: int = 3) -> nn.Module:
    """BYOL's target in the official code: the random start of a client's own online network, never updated, BatchNorm in training mode.

    Args:
        config: its `encoder` is read.
        seed: of the client.
        channels: of the pictures.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(config.encoder, channels)
        head = projector(*[int(encoder.num_features), *projection_sizes(int(encoder.num_features))])  # ty: ignore[invalid-argument-type]
    return nn.Sequential(encoder, head).requires_grad_(False).train()


@dataclass(frozen=True)
class ModelDescription:
    """What `config.json` beside a model's weights may say; see `TwinModel`.

    Attributes:
        num_classes: see there.
        encoder: see there.
        objective: see there.
        temperature: see there.
        kind: see there.
        classes: see there.
        mean: see there.
        std: see there.
        image_size: see there.
        channels: see there.
        byol_target: see there.
    """

    num_classes: Count
    encoder: Encoder = "resnet18"
    objective: Objective = "simclr"
    temperature: Positive = 0.07
    kind: Kind = "twins"
    classes: tuple[str, ...] = ()
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    image_size: Count = 32
    channels: Literal[1, 3] = 3
    byol_target: Target = "official"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_classes < 2:
            raise UserError(f"a classifier needs at least two classes, got {self.num_classes}")
        if self.classes and len(self.classes) != self.num_classes:
            raise UserError(f"{len(self.classes)} names for {self.num_classes} classes")
        if self.image_size > LARGEST_SIDE:
            raise UserError(f"image_size must be at most {LARGEST_SIDE}, got {self.image_size}")


class TwinModel(nn.Module, PyTorchModelHubMixin, library_name="twinsight", license="apache-2.0"):
    """A classifier with its unsupervised twin; calling it classifies with the supervised model alone.

    Args:
        num_classes: C.
        encoder: see `build_encoder`; both twins have one of their own.
        objective: of the unsupervised twin.
        temperature: of SimCLR's loss.
        kind: `twins`; `shared`: both objectives on one encoder (the ablation in which their gradients meet);
            `classifier`: the supervised model alone, as the baselines have it.
        classes: names of the classes.
        mean: what pictures in [0, 1] are normalised with.
        std: likewise.
        image_size: side of the pictures that it was trained on.
        channels: that its encoders take; 1 makes pictures grey first.
        byol_target: see `InstanceDiscriminator`.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: Encoder = "resnet18",
        objective: Objective = "simclr",
        temperature: float = 0.07,
        kind: Kind = "twins",
        classes: tuple[str, ...] | list[str] = (),
        mean: tuple[float, ...] | list[float] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] | list[float] = (0.5, 0.5, 0.5),
        image_size: int = 32,
        channels: Literal[1, 3] = 3,
        byol_target: Target = "official",
    ) -> None:
        super().__init__()
        about = ModelDescription(
            num_classes,
            encoder,
            objective,
            temperature,
            kind,
            tuple(classes),
            _channels(mean),
            _channels(std),
            image_size,
            channels,
            byol_target,
        )
        self.num_classes, self.kind, self.image_size = num_classes, kind, image_size
        self.classes = tuple(classes) or tuple(str(index) for index in range(num_classes))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(about.mean)[:channels, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(about.std)[:channels, None, None], persistent=False)
        self.encoder = build_encoder(encoder, channels)
        self.classifier = nn.Linear(int(self.encoder.num_features), num_classes)  # ty: ignore[invalid-argument-type]
        self.twin = None
        if kind == "twins":
            self.twin = InstanceDiscriminator(build_encoder(encoder, channels), objective, temperature, byol_target)
        elif kind == "shared":
            self.twin = InstanceDiscriminator(self.encoder, objective, temperature, byol_target)

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]  # fewer options: the mixin reads any weights, with any left out
        cls, model: str | Path, *, revision: str | None = None
    ) -> "TwinModel":
        """Read a model that `save_pretrained` wrote, ready to predict.

        Args:
            model: its folder, or its name on the Hub.
            revision: branch, tag or commit of the Hub.

        Raises:
            UserError: no such model, a damaged one, one of another kind, or weights that are not exactly its own.
        """
        return cls.from_folder(model_folder(model, revision, FILES))

    @classmethod
    def from_folder(cls, folder: Path) -> "TwinModel":
        """Read a model's two files; see `from_pretrained`."""
        config, weights = (folder / name for name in FILES)
        try:
            about = from_dict(read_json_object(config, CONFIG_LIMIT), ModelDescription, str(config))
            tensors, _ = read_tensors(weights)
            # Before anything of that size is made.
            if "classifier.weight" not in tensors or tensors["classifier.weight"].shape[:1] != (about.num_classes,):
                raise UserError(f"{weights}: holds no classifier of {about.num_classes} classes")
            model = cls(**asdict(about))
            model.load(tensors, weights)
        except UserError as error:
            raise UserError(f"{error}; not a model of twinsight") from None
        return model.eval()

    def load(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Take over weights that were stored, with those under several names stored once (`one-network` has one encoder).

        Raises:
            UserError: other weights than this model's, or some that are not finite.
        """
        own, whole, stored = self.state_dict(), dict(tensors), {}
        for name in filter(whole.__contains__, own):
            this = whole[name]
            first = stored.setdefault(own[name].data_ptr(), this)
            if first is not this and (first.dtype != this.dtype or not torch.equal(first, this)):
                raise UserError(
                    f"{source}: {name} has another name here, with other numbers: of a model of two encoders"
                )
        whole |= {name: stored[each.data_ptr()] for name, each in own.items() if each.data_ptr() in stored}
        load_weights(self, whole, source)
        damaged = [name for name, each in self.state_dict().items() if not each.isfinite().all()]
        if damaged:
            raise UserError(f"{source}: {damaged[0]} holds numbers that are not finite")

    def normalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ch h w"]:
        """Pictures in [0, 1] as the encoders want them."""
        if len(self.mean) == 1:
            images = images.mean(1, keepdim=True)
        return (images - self.mean) / self.std

    def forward(self, images: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b c"]:
        """Logits of normalised pictures, from the supervised model alone."""
        return self.classifier(self.encoder(images))

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Probabilities of pictures in [0, 1] of any size: resized, normalised, classified in eval mode."""
        self.eval()
        size = [self.image_size, self.image_size]
        resized = (
            nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
            if list(images.shape[2:]) != size
            else images
        )
        return self(self.normalise(resized)).softmax(1)


def _channels(values: tuple[float, ...] | list[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise UserError(f"pictures have 3 channels, got {len(values)} numbers for them")
    red, green, blue = values
    return red, green, blue


def build_model(config: Any, num_classes: int, **description: Any) -> TwinModel:
    """The untrained model of a configuration (`FederationConfig`), the same for the same seed.

    Args:
        config: its `encoder`, `objective`, `temperature`, `byol_target`, `method` and `seed` are read.
        num_classes: C.
        description: `classes`, `mean`, `std`, `image_size`, `channels` of `TwinModel`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return TwinModel(
            num_classes,
            config.encoder,
            config.objective,
            config.temperature,
            METHODS[config.method].kind,
            byol_target=config.byol_target,
            **description,
        )
