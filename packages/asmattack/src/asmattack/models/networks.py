"""Small detectors for trying the bench, one in the spirit of each of the paper's four: 4 to 23 thousand weights.

Two strides of two, batch norm, global average pooling, a linear layer; pixels are scaled to [-1, 1] inside.
"""

from collections.abc import Callable

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from asmattack.models.detector import Detector
from tenfold import UserError


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        # Before the body, so that the last convolution in module order is the one that feeds the head.
        self.shortcut = conv_norm(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()
        self.body = nn.Sequential(conv_norm(inputs, outputs, 3, stride), nn.ReLU(), conv_norm(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Body plus shortcut."""
        return torch.relu(self.shortcut(x) + self.body(x))


class SqueezeExcite(nn.Module):
    """Channel attention from the spatial mean."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.SiLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scaled channels."""
        return x * self.gate(x)


def _separable_block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(inputs, inputs, 3, stride, inputs), conv_norm(inputs, outputs, 1), nn.ReLU())


def _inverted_block(inputs: int, outputs: int, stride: int, expand: int = 3) -> nn.Sequential:
    inner = inputs * expand
    return nn.Sequential(
        conv_norm(inputs, inner, 1),
        nn.SiLU(),
        conv_norm(inner, inner, 3, stride, inner),
        nn.SiLU(),
        SqueezeExcite(inner, inner // 8),
        conv_norm(inner, outputs, 1),
    )


BODIES: dict[str, Callable[[], tuple[list[nn.Module], int]]] = {
    "plain": lambda: ([conv_norm(16, 24, stride=2), nn.ReLU(), conv_norm(24, 32), nn.ReLU()], 32),
    "residual": lambda: ([Residual(16, 24, 2), Residual(24, 24, 1)], 24),
    "separable": lambda: ([_separable_block(16, 32, 2), _separable_block(32, 48, 1), _separable_block(48, 48, 1)], 48),
    "inverted": lambda: (
        [_inverted_block(16, 24, 2), _inverted_block(24, 24, 1), conv_norm(24, 48, 1), nn.SiLU()],
        48,
    ),
}
"""Layers between the stem (16 channels) and the pooling, and how many channels come out."""


class Surrogate(Detector, PyTorchModelHubMixin):
    """A detector that this package trains: load with `Surrogate.from_pretrained(folder)`.

    Args:
        architecture: plain, residual, separable, inverted, or timm:NAME.
        name: for tables; the architecture by default.

    Raises:
        UserError: an unknown architecture.
    """

    architecture: str

    def __init__(self, architecture: str = "plain", name: str | None = None) -> None:
        if architecture.startswith("timm:"):
            made = Detector.from_timm(architecture.removeprefix("timm:"))
            mean, std = made.mean.flatten().tolist(), made.std.flatten().tolist()
            size = made.input_size
            super().__init__(made.network, mean=mean, std=std, fake_index=1, input_size=size, name=name or made.name)
            self.architecture = architecture
            return
        if architecture not in BODIES:
            raise UserError(f"no surrogate {architecture!r}; there are {', '.join(BODIES)} and timm:NAME")
        body, channels = BODIES[architecture]()
        network = nn.Sequential(
            conv_norm(3, 16, stride=2),
            nn.ReLU(),
            *body,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 2),
        )
        super().__init__(network, mean=(0.5,) * 3, std=(0.5,) * 3, fake_index=1, name=name or architecture)
        self.architecture = architecture


def surrogate(architecture: str, seed: int = 0) -> Surrogate:
    """An untrained surrogate with repeatable weights; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Surrogate(architecture)
