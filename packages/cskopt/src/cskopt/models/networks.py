"""Networks by name: a compact one for small pictures, the release's ResNet-18, and everything in torchvision and timm (§4)."""

import itertools
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import get_model, list_models, resnet18
from torchvision.models.resnet import BasicBlock

from tenfold import UserError


class CompactResNet(nn.Module):
    """The network of the small experiment: stem 3x3 stride 2, four basic blocks, global average pool.

    Args:
        num_classes: rows of the head `fc`.
        widths: channels of the stem and of each block; blocks that widen have stride 2.
    """

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (16, 16, 32, 64, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(*(_block(i, o) for i, o in itertools.pairwise(widths)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)

    @no_type_check  # a tracer's stand-in for a tensor passes through here
    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        maps = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(maps), 1))


def _block(inputs: int, outputs: int) -> BasicBlock:
    if inputs == outputs:
        return BasicBlock(inputs, outputs)
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, 2, shortcut)


def resnet18_cifar(num_classes: int) -> nn.Module:
    """The backbone of the release: ResNet-18 with a 3x3 stem of stride 1 and no max pooling (official code)."""
    model = resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()  # the release has none
    return model


def build_model(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
    """A network by name.

    Args:
        name: `compact`, `resnet18_cifar`, a torchvision classification network, or `timm:NAME`.
        num_classes: rows of the head.
        pretrained: weights that the libraries have in their cache or can fetch; the head is then new.

    Raises:
        UserError: unknown, or weights that cannot be had.
    """
    if name == "compact":
        return CompactResNet(num_classes)
    if name == "resnet18_cifar":
        return resnet18_cifar(num_classes)
    try:
        if name.startswith("timm:"):
            import timm

            # Names of the registry only: `hf-hub:` and `local-dir:` would let a file decide what is built and fetched.
            if not timm.is_model(name.removeprefix("timm:").split(".")[0]):
                raise UserError(f"--model {name}: timm has no such model")
            return timm.create_model(name.removeprefix("timm:"), pretrained=pretrained, num_classes=num_classes)
        if name in list_models(module=None):
            return _torchvision(name, num_classes, pretrained)
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"--model {name}: {str(error).splitlines()[0]}") from None
    raise UserError(
        f"--model {name}: use compact, resnet18_cifar, a torchvision network such as mobilenet_v2, or timm:NAME"
    )


def _torchvision(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    if not pretrained:
        return get_model(name, num_classes=num_classes)
    from cskopt.models.folding import set_submodule
    from cskopt.models.heads import find_head, head_of

    model = get_model(name, weights="DEFAULT")
    head = find_head(model)
    set_submodule(model, head, nn.Linear(head_of(model, head).in_features, num_classes))
    return model
