"""Backbones cut in two at the split: what the clients share below, a classifying branch above.

Library networks are taken apart, not written again: every child keeps its name, so that public weights load by name.
"""

import re
from collections import OrderedDict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenfold import UserError
from tenfold.checkpoints import read_state_dict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DRAWN_MEAN, DRAWN_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
BACKBONES = ("tiny", "resnet18", "resnet34", "resnet50")
"""Of torchvision; `timm:NAME` takes any ResNet of timm with the stages layer1 to layer4."""


class Normalise(nn.Module):
    """Subtract a mean and divide by a deviation per colour, so that networks take pictures in [0, 1].

    Args:
        mean: per colour.
        std: per colour.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Normalise RGB in [0, 1]."""
        return (x - self.mean) / self.std


def cut_backbone(name: str, split: int, num_classes: int, dropout: float) -> tuple[nn.Sequential, nn.Sequential]:
    """The extractor below the split and one branch above it.

    Args:
        name: one of `BACKBONES` or `timm:NAME`.
        split: the branch begins with stage `layer{split}`; 1 to 4. The tiny network has one place to split.
        num_classes: outputs of a branch.
        dropout: before the last linear layer.

    Raises:
        UserError: an unknown name, a network without those stages, or a split that is none.
    """
    if not 1 <= split <= 4:
        raise UserError(f"split {split}: a branch begins at stage 1, 2, 3 or 4")
    if name == "tiny":
        return _tiny(num_classes, dropout)
    children = OrderedDict(_library_network(name).named_children())
    stages = [f"layer{stage}" for stage in range(1, 5)]
    if not {"conv1", "bn1", "maxpool", *stages} <= children.keys():
        raise UserError(f"backbone {name}: has no stages layer1 to layer4; use a ResNet")
    below = ["conv1", "bn1", "relu" if "relu" in children else "act1", "maxpool", *stages[: split - 1]]
    extractor = OrderedDict(normalise=Normalise(IMAGENET_MEAN, IMAGENET_STD)) | {key: children[key] for key in below}
    return nn.Sequential(extractor), _branch({key: children[key] for key in stages[split - 1 :]}, num_classes, dropout)


def _library_network(name: str) -> nn.Module:
    if name.startswith("timm:"):
        import timm

        # Names with a colon or a slash would read folders or fetch from the Hub, at no commit that anyone said.
        if not re.fullmatch(r"timm:[\w.]+", name):
            raise UserError(f"backbone {name}: timm has no such model")
        try:
            return timm.create_model(name.removeprefix("timm:"), pretrained=False)
        except RuntimeError:
            raise UserError(f"backbone {name}: timm has no such model") from None
    if name not in BACKBONES:
        raise UserError(f"backbone {name}: use {', '.join(BACKBONES)} or timm:NAME")
    from torchvision.models import get_model

    return get_model(name, weights=None)


def _branch(stages: dict[str, nn.Module], num_classes: int, dropout: float) -> nn.Sequential:
    channels = [each.out_channels for each in list(stages.values())[-1].modules() if isinstance(each, nn.Conv2d)]
    # The widest convolution of the last stage gives its output: the others are the narrow inside of bottlenecks.
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "dropout": nn.Dropout(dropout)}
    return nn.Sequential(OrderedDict(stages | head | {"fc": nn.Linear(max(channels), num_classes)}))


def _tiny(num_classes: int, dropout: float) -> tuple[nn.Sequential, nn.Sequential]:
    """The network of the small experiment: 32-pixel images, 23,000 parameters in two branches."""

    def block(inside: int, outside: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
        )

    extractor: OrderedDict[str, nn.Module] = OrderedDict(
        normalise=Normalise(DRAWN_MEAN, DRAWN_STD), block1=block(3, 8, 1), block2=block(8, 16, 2)
    )
    return nn.Sequential(extractor), _branch(
        {"block3": block(16, 32, 2), "block4": block(32, 32, 2)}, num_classes, dropout
    )


def backbone_weights(name: str, source: str) -> dict[str, Tensor]:
    """Weights of a plain backbone, to start the extractor and both branches from.

    Args:
        name: the backbone.
        source: `imagenet` (from the library's own place, or its cache), or a .safetensors or .pth file of the library's state dict.

    Raises:
        UserError: no such file, not a state dict, or no weights to be had.
    """
    if source == "imagenet":
        return _imagenet_weights(name)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"pretrained {source}: no such file; give imagenet or a .safetensors or .pth file")
    return {re.sub(r"^module\.", "", key): value for key, value in read_state_dict(path).items()}


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    try:
        if name.startswith("timm:"):
            import timm

            return timm.create_model(name.removeprefix("timm:"), pretrained=True).state_dict()
        from torchvision.models import get_model

        return get_model(name, weights="DEFAULT").state_dict()
    except Exception as error:  # noqa: BLE001  # no network, no such weights: each library has its own errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"pretrained imagenet: cannot fetch weights of {name} ({reason}); give a file") from None
