"""Feature extractors for the contrast loss: VGG-19 after relu1_1 .. relu5_1, from a local file, or a fixed random network."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.checkpoints import load_weights, read_state_dict
from tenfold.errors import UserError

TAPS = (1, 6, 11, 20, 29)
"""Layers of torchvision's `vgg19().features` whose outputs are compared."""

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512)
"""Output channels of the convolutions of VGG-19 up to relu5_1; 0 is a pooling."""

VGG_FILE = "vgg19-dcbb9e9d.pth"


class TappedVGG(nn.Module):
    """VGG-19 up to relu5_1, its weights fixed; returns the five tapped maps. Images enter without ImageNet normalisation.

    Args:
        divisor: of the channel widths; 1 is VGG-19, 8 a narrow one for tests and small experiments.
    """

    def __init__(self, divisor: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _WIDTHS:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width // divisor, 3, padding=1), nn.ReLU()]
                channels = width // divisor
        self.layers = nn.Sequential(*layers)
        self.requires_grad_(False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Sequence[Tensor]:
        """The maps after relu1_1, relu2_1, relu3_1, relu4_1, relu5_1; sides of at least 16 pixels."""
        if min(image.shape[-2:]) < 16:
            raise UserError(f"the contrast loss needs 16 pixels a side, got {image.shape[-1]} x {image.shape[-2]}")
        maps = []
        for index, layer in enumerate(self.layers):
            image = layer(image)
            if index in TAPS:
                maps.append(image)
        return maps


def random_extractor(seed: int = 0, divisor: int = 8) -> TappedVGG:
    """A narrow VGG with fixed random weights, the same for the same seed: an explicit stand-in, for tests and small experiments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extractor = TappedVGG(divisor)
    # Library initialisation lets activations fade with depth; this keeps every level's distances of one size.
    for layer in extractor.layers:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data *= 6**0.5
            nn.init.zeros_(layer.bias)  # ty: ignore[invalid-argument-type]  # made with a bias
    return extractor


def vgg19_extractor(weights: Path | None = None) -> TappedVGG:
    """VGG-19 with ImageNet weights from a local file; nothing is ever downloaded.

    Args:
        weights: torchvision's `vgg19-dcbb9e9d.pth` (575 MB); None looks in torch hub's cache.

    Raises:
        UserError: the file is not there or holds other tensors.
    """
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
    if not path.is_file():
        raise UserError(
            f"{path}: no VGG-19 weights; point --vgg-weights at torchvision's {VGG_FILE} (575 MB), "
            "or choose --contrast off or --contrast random"
        )
    state = read_state_dict(path)
    extractor = TappedVGG()
    ours = {name: state.get(f"features.{name.removeprefix('layers.')}") for name in extractor.state_dict()}
    try:
        load_weights(extractor, {name: value for name, value in ours.items() if value is not None}, path)
    except UserError as error:
        raise UserError(f"{error}; not torchvision's VGG-19 weights") from None
    return extractor
