"""The networks: a classifier, its unsupervised twin, and the two in one body (paper §3; official code: models)."""

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from tenfold import UserError

Encoder = Literal["resnet18", "small"]
Objective = Literal["simclr", "simsiam", "byol"]
Kind = Literal["twins", "shared", "classifier"]

BYOL_MOMENTUM = 0.99


class SmallResNet(nn.Module):
    """A residual network for pictures of 8 to 32 pixels: stem of stride 2, two blocks of 16 and 32 channels, average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(StridedBlock(8, 16), StridedBlock(16, 32))
        self.num_features = 32

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 32"]:
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


def build_encoder(name: Encoder) -> nn.Module:
    """An encoder without its classifier; `num_features` says how wide its pooled features are.

    Args:
        name: `resnet18`, the paper's: 3x3 stem of stride 1, no max-pool, 64-128-256-512 channels. `small`: `SmallResNet`.
    """
    if name == "small":
        return SmallResNet()
    from torchvision.models import resnet18

    network = resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
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
    """

    def __init__(self, encoder: nn.Module, objective: Objective, temperature: float) -> None:
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
            self.target = nn.Sequential(copy.deepcopy(encoder), copy.deepcopy(self.projector)).requires_grad_(False)

    @torch.no_grad()
    def follow(self) -> None:
        """Move BYOL's target towards the online network; nothing for the other objectives. Call it after each step."""
        if self.objective == "byol":
            online = nn.Sequential(self.encoder, self.projector)
            for target, source in zip(self.target.parameters(), online.parameters(), strict=True):
                target.lerp_(source, 1 - BYOL_MOMENTUM)


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
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"a classifier needs at least two classes, got {num_classes}")
        self.num_classes, self.kind, self.image_size = num_classes, kind, image_size
        self.classes = tuple(classes) or tuple(str(index) for index in range(num_classes))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.encoder = build_encoder(encoder)
        self.classifier = nn.Linear(int(self.encoder.num_features), num_classes)  # ty: ignore[invalid-argument-type]
        self.twin = None
        if kind == "twins":
            self.twin = InstanceDiscriminator(build_encoder(encoder), objective, temperature)
        elif kind == "shared":
            self.twin = InstanceDiscriminator(self.encoder, objective, temperature)

    def normalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1] as the encoders want them."""
        return (images - self.mean) / self.std

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
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


def build_model(config: Any, num_classes: int, **description: Any) -> TwinModel:
    """The untrained model of a configuration (`FederationConfig`), the same for the same seed.

    Args:
        config: its `encoder`, `objective`, `temperature`, `method` and `seed` are read.
        num_classes: C.
        description: `classes`, `mean`, `std`, `image_size` of `TwinModel`.
    """
    from twinsight.config import METHODS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return TwinModel(
            num_classes,
            config.encoder,
            config.objective,
            config.temperature,
            METHODS[config.method].kind,
            **description,
        )
