"""A compact detector for demonstrations and quick experiments: one three-layer CNN behind five front ends.

The front ends are those of the large detectors: RGB, luminance, SPSL's phase, F3-Net's bands, SRM's residuals. Any input
size; 48 pixels in the small experiment.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.v2.functional import rgb_to_grayscale

from fairfd.models.detectors.detector import Detector, DetectorOutput, in_float32
from fairfd.models.detectors.f3net import FrequencyDecomposition
from fairfd.models.detectors.spsl import with_phase
from fairfd.models.detectors.srm import srm_residuals
from fairfd.models.detectors.xception import pooled

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
