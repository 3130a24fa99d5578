"""Compact detectors: one three-layer CNN behind five front ends, and the two MesoNets.

The front ends of the CNN, for demonstrations and quick experiments, are those of the large detectors: RGB, luminance, SPSL's
phase, F3-Net's bands, SRM's residuals. Any input size; 48 pixels in the small experiment.

Meso4 and MesoInception4 (Afchar et al., WIFS 2018, "MesoNet: a compact facial video forgery detection network") are no
detectors of the paper. DeepfakeBench has its own reading of them: the batch norms of several layers are one, convolutions have
no bias, inception branches no ReLU, the image lies in [-1, 1]. Both readings are here, see `MesoVariant`.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.v2.functional import rgb_to_grayscale

from fairfd.models.detectors.detector import Detector, DetectorOutput, in_float32
from fairfd.models.detectors.f3net import FrequencyDecomposition
from fairfd.models.detectors.spsl import with_phase
from fairfd.models.detectors.srm import srm_residuals
from fairfd.models.detectors.xception import pooled
from tenfold import UserError

FrontName = Literal["rgb", "gray", "spsl", "f3net", "srm"]

SRM_GAIN = 8.0
WIDTHS = (12, 24, 48)
STRIDES = (2, 2, 1)


def luminance(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The luminance in all three channels (paper, colour ablation)."""
    return rgb_to_grayscale(x, num_output_channels=3)


def with_residuals(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 6 h w"]:
    """RGB and the SRM residuals of 8x: small images are smooth, and at gain 1 the residuals would hardly leave 0."""
    return torch.cat([x, srm_residuals(SRM_GAIN * x)], dim=1)


def front_end(name: FrontName, in_size: int) -> tuple[Callable[[Tensor], Tensor], int]:
    """A front end and its number of channels."""
    if name == "f3net":
        return FrequencyDecomposition(in_size), 12
    plain: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "rgb": (nn.Identity(), 3),
        "gray": (luminance, 3),
        "spsl": (with_phase, 4),
        "srm": (with_residuals, 6),
    }
    return plain[name]


class SmallDetector(Detector):
    """Three 3x3 convolutions with BN and ReLU (12, 24, 48 channels; strides 2, 2, 1), average pooling, dropout, linear.

    Args:
        in_size: height and width of the input.
        front: what the network sees.
    """

    name = "small"

    def __init__(self, in_size: int = 48, front: FrontName = "rgb") -> None:
        super().__init__(in_size)
        self.front_name = front
        self.front, channels = front_end(front, in_size)
        layers: list[nn.Module] = []
        for width, stride in zip(WIDTHS, STRIDES, strict=True):
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.cnn = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, 2)

    @property
    def full_name(self) -> str:
        """`small-` and the front end."""
        return f"{self.name}-{self.front_name}"

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        features = pooled(self.cnn(self.front(x)))
        return DetectorOutput(in_float32(self.fc, self.dropout(features)), features)


MesoVariant = Literal["deepfakebench", "mesonet"]
"""Whose network a MesoNet is: DeepfakeBench's class, or the authors' own Keras model."""

MESO_STRIDE = 32
KERAS_EPSILON = 1e-3
TORCH_EPSILON = 1e-5


class MesoStage(nn.Module):
    """What both MesoNets and both variants share of a layer: how its convolutions are made, and its batch norm.

    Args:
        variant: whose network.
    """

    def __init__(self, variant: MesoVariant) -> None:
        super().__init__()
        self.original = variant == "mesonet"

    def convolution(self, channels: int, out: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
        """A convolution that keeps the size."""
        padding = dilation * (kernel // 2)
        return nn.Conv2d(channels, out, kernel, padding=padding, dilation=dilation, bias=self.original)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        """Batch norm with the epsilon of its framework."""
        return nn.BatchNorm2d(channels, eps=KERAS_EPSILON if self.original else TORCH_EPSILON)


class MesoLayers(MesoStage):
    """Layers of convolution, ReLU, batch norm and max-pooling by 2, the last by 4.

    Args:
        channels: of the input.
        widths: channels of each layer.
        kernels: size of each layer's convolution.
        variant: `deepfakebench` uses one batch norm for each run of equal widths, `mesonet` one for each layer.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], kernels: tuple[int, ...], variant: MesoVariant) -> None:
        super().__init__(variant)
        self.convolutions = nn.ModuleList()
        for width, kernel in zip(widths, kernels, strict=True):
            self.convolutions.append(self.convolution(channels, width, kernel))
            channels = width
        kept = widths if self.original else tuple(dict.fromkeys(widths))
        self.norms = nn.ModuleList(self.norm(width) for width in kept)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Feature maps."""
        last = len(self.convolutions) - 1
        for place, convolution in enumerate(self.convolutions):
            norm = self.norms[place * len(self.norms) // len(self.convolutions)]
            x = F.max_pool2d(norm(convolution(x).relu()), 4 if place == last else 2)
        return x


class MesoInception(MesoStage):
    """Four branches side by side: 1x1, and 1x1 then 3x3 with dilation 1, 2, 3; batch norm, max-pooling by 2.

    Args:
        channels: of the input.
        widths: channels of the branches.
        variant: the branches of `mesonet` have ReLUs.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int, int], variant: MesoVariant) -> None:
        super().__init__(variant)
        self.branches = nn.ModuleList([nn.ModuleList([self.convolution(channels, widths[0], 1)])])
        for dilation, width in enumerate(widths[1:], start=1):
            pair = [self.convolution(channels, width, 1), self.convolution(width, width, 3, dilation)]
            self.branches.append(nn.ModuleList(pair))
        self.bn = self.norm(sum(widths))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Feature maps at half the size."""
        found = []
        for branch in self.branches:
            h = x
            for convolution in branch.children():
                h = convolution(h).relu() if self.original else convolution(h)
            found.append(h)
        return F.max_pool2d(self.bn(torch.cat(found, dim=1)), 2)


class Meso4Detector(Detector):
    """Meso4: four convolutions, two linear layers; cross-entropy.

    Args:
        in_size: height and width of the input, at least 32.
        variant: whose network, see `MesoVariant`.
    """

    name = "meso4"
    width: ClassVar[int] = 16

    def __init__(self, in_size: int = 256, variant: MesoVariant = "deepfakebench") -> None:
        super().__init__(in_size)
        if in_size < MESO_STRIDE:
            raise UserError(f"{self.name}: in_size {in_size} leaves no map; use at least {MESO_STRIDE}")
        self.variant = variant
        self.layers = self.feature_layers(variant)
        self.fc1 = nn.Linear(self.width * (in_size // MESO_STRIDE) ** 2, self.width)
        self.fc2 = nn.Linear(self.width, 1 if variant == "mesonet" else 2)
        self.dropout = nn.Dropout(0.5)

    def feature_layers(self, variant: MesoVariant) -> nn.Module:
        """From the image to 16 maps of a 32nd of its size."""
        return MesoLayers(3, (8, 8, 16, 16), (3, 5, 5, 5), variant)

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        maps = self.layers((x + 1) / 2 if self.variant == "mesonet" else x)
        features = F.leaky_relu(self.fc1(self.dropout(maps.flatten(1))), 0.1)
        logits = in_float32(self.fc2, self.dropout(features))
        if self.variant == "mesonet":
            # The authors' one logit is that of the class "real".
            logits = torch.cat([logits, torch.zeros_like(logits)], dim=1)
        return DetectorOutput(logits, features)


class MesoInception4Detector(Meso4Detector):
    """MesoInception4: Meso4 whose first two layers are inception layers.

    Args:
        in_size: height and width of the input, at least 32.
        variant: whose network, see `MesoVariant`.
    """

    name = "mesoinception4"

    def __init__(self, in_size: int = 256, variant: MesoVariant = "deepfakebench") -> None:
        super().__init__(in_size, variant)

    def feature_layers(self, variant: MesoVariant) -> nn.Module:
        """From the image to 16 maps of a 32nd of its size."""
        inception1 = MesoInception(3, (1, 4, 4, 2), variant)
        inception2 = MesoInception(11, (2, 4, 4, 2), variant)
        return nn.Sequential(inception1, inception2, MesoLayers(12, (16, 16), (5, 5), variant))
