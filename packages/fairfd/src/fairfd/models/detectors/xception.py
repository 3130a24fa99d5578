"""Xception (Chollet, CVPR 2017; Rössler et al., ICCV 2019): the backbone of most detectors, and the plainest of them.

The network is timm's `legacy_xception`, which gives bit-equal outputs to the official code's Xception with the same
weights. Detectors that interfere half-way call its children in steps: `entry_flow`, `blocks`, and `exit_flow` or, where the
last ReLU does not follow, `exit_maps`.
"""

from collections.abc import Callable

import timm
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.xception import Xception
from torch import Tensor, nn

from fairfd.models.detectors.detector import Detector, DetectorOutput, at_least_float32, in_float32
from tenfold import UserError

FEATURES = 2048


def xception_network(in_chans: int = 3, num_classes: int = 2) -> Xception:
    """A randomly initialised Xception; `num_classes=0` leaves the classifier out."""
    network = timm.create_model("legacy_xception", in_chans=in_chans, num_classes=num_classes)
    if not isinstance(network, Xception):
        raise TypeError(f"timm built a {type(network).__name__} for legacy_xception")
    return network


def entry_flow(net: Xception, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 64 h2 w2"]:
    """The two first convolutions: 256 -> 127 -> 125 pixels."""
    return second_convolution(net, first_convolution(net, x))


def first_convolution(net: Xception, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 32 h2 w2"]:
    """conv1, bn1, act1."""
    return net.act1(net.bn1(net.conv1(x)))


def second_convolution(net: Xception, x: Float[Tensor, "b 32 h w"]) -> Float[Tensor, "b 64 h2 w2"]:
    """conv2, bn2, act2."""
    return net.act2(net.bn2(net.conv2(x)))


def blocks(net: Xception, x: Float[Tensor, "b c h w"], first: int, last: int) -> Float[Tensor, "b c2 h2 w2"]:
    """Blocks `first` to `last`, both included, of the twelve."""
    for number in range(first, last + 1):
        x = net.get_submodule(f"block{number}")(x)
    return x


def exit_maps(net: Xception, x: Float[Tensor, "b 1024 h w"]) -> Float[Tensor, "b 2048 h w"]:
    """The two last separable convolutions up to the batch norm of the second, before its ReLU.

    DeepfakeBench's Xception ends its features here; the ReLU is the first step of its classifier.
    """
    return net.bn4(net.conv4(net.act3(net.bn3(net.conv3(x)))))


def exit_flow(net: Xception, x: Float[Tensor, "b 1024 h w"]) -> Float[Tensor, "b 2048 h w"]:
    """The two last separable convolutions, ending with the ReLU."""
    return net.act4(exit_maps(net, x))


def pooled(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """Global average pooling, in float32 at least."""
    return at_least_float32(maps).mean((2, 3))


Inflation = Callable[[Float[Tensor, "o 3 k k"]], Float[Tensor, "o c k k"]]
"""How ImageNet's three-channel first convolution becomes one of more channels."""


def as_it_is(weight: Float[Tensor, "o 3 k k"]) -> Float[Tensor, "o 3 k k"]:
    """Three channels stay three channels."""
    return weight


def load_xception(net: Xception, state: dict[str, Tensor], inflate: Inflation = as_it_is) -> None:
    """Load everything but the classifier from the weights of an ImageNet Xception.

    Args:
        net: the network.
        state: weights by timm's names, e.g. from `fairfd.detectors.pretrained.read_backbone`.
        inflate: what becomes of the first convolution.

    Raises:
        UserError: the weights are not those of a three-channel Xception.
    """
    weights = {key: value for key, value in state.items() if not key.startswith("fc.")}
    wanted = {key for key in net.state_dict() if not key.startswith("fc.")}
    # Old checkpoints lack the batch counters, which only momentum=None would read.
    missing = {key for key in wanted - weights.keys() if not key.endswith("num_batches_tracked")}
    unknown = weights.keys() - wanted
    if missing or unknown:
        names = ", ".join(sorted(missing | unknown)[:4])
        raise UserError(
            f"pretrained: not the weights of an Xception ({len(missing)} missing, {len(unknown)} unknown: {names} ...)"
        )
    weights["conv1.weight"] = inflate(weights["conv1.weight"])
    for key, value in weights.items():
        expected = net.state_dict()[key].shape
        if value.shape != expected:
            raise UserError(f"pretrained: {key} has shape {tuple(value.shape)}, expected {tuple(expected)}")
    net.load_state_dict(weights, strict=False)


class XceptionDetector(Detector):
    """Xception on the image; cross-entropy. Front ends and attention of other detectors are subclasses.

    Args:
        in_size: height and width of the input.
        in_chans: channels that `front` hands to the network.
        dropout: probability before the classifier.
    """

    name = "xception"
    backbone = "legacy_xception"

    def __init__(self, in_size: int = 256) -> None:
        super().__init__(in_size)
        self.net = xception_network(self.in_chans)
        self.dropout = nn.Dropout(self.drop_rate)

    in_chans = 3
    drop_rate = 0.0

    def front(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """What the network sees of an image in [-1, 1]."""
        return x

    def maps(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048 h2 w2"]:
        """The last feature maps, after the ReLU."""
        return self.net.forward_features(self.front(x))

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        features = pooled(self.maps(x))
        return DetectorOutput(in_float32(self.net.fc, self.dropout(features)), features)

    def inflate(self, weight: Float[Tensor, "o 3 k k"]) -> Float[Tensor, "o c k k"]:
        """The first convolution's start from ImageNet's."""
        return as_it_is(weight)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start from an ImageNet Xception."""
        load_xception(self.net, state, self.inflate)


def unit(features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """L2-normalised features."""
    return F.normalize(features, dim=1)
