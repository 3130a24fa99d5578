"""What an attack maximises: one loss per image, larger when the detector is further from the label."""

from collections.abc import Callable
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from asmattack.config import Objective
from asmattack.models.detector import Detector
from tenfold import UserError

Loss = Callable[[Tensor], Tensor]


def cross_entropy(logits: Float[Tensor, "b 2"], y: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """J_i = -log softmax(f)_y."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Float[Tensor, "b 2"], y: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """J_i = logit of the other class minus logit of y: does not saturate."""
    rows = torch.arange(len(y), device=y.device)
    return logits[rows, 1 - y] - logits[rows, y]


def class_activation_features(
    features: Float[Tensor, "b k i j"], weight: Float[Tensor, "b k"]
) -> Float[Tensor, "b k i j"]:
    """A = max(0, F * W[c]) scaled to [0, 1] per image (CAFA; the authors scale over the whole batch)."""
    maps = (features * weight[:, :, None, None]).relu()
    maps = maps - maps.amin((1, 2, 3), keepdim=True)
    return maps / maps.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)


def class_activation_features_of_batch(
    features: Float[Tensor, "b k i j"], weight: Float[Tensor, "b k"]
) -> Float[Tensor, "b k i j"]:
    """The same as the authors' code has it: minimum and maximum over the whole batch."""
    maps = (features * weight[:, :, None, None]).relu()
    maps = maps - maps.min()
    return maps / maps.max().clamp(min=1e-12)


def cafa(
    detector: Detector,
    x: Float[Tensor, "b 3 h w"],
    scale: Callable[[Tensor, Tensor], Tensor] = class_activation_features,
    size: int | None = 32,
) -> Loss:
    """J(z) = mean of (U(z) - U(x))^2 over each image, U the scaled maps of the class predicted for that very input.

    Loss and gradient are zero at z = x, so an attack with it must start at random.

    Args:
        detector: its last convolution must feed its linear head, channel by channel.
        x: clean pixels.
        scale: over each image, or as the authors do over the batch.
        size: side to which the maps are resized; None compares them as they are, which is cheaper.

    Raises:
        UserError: no such pair of convolution and head.
    """
    weight = detector.head_weight().detach()

    def resized(z: Tensor) -> Tensor:
        logits, features = detector.with_last_convolution(z)
        if features.shape[1] != weight.shape[1]:
            raise UserError(
                f"{detector.name}: the last convolution ({detector.last_convolution()[0]}) has {features.shape[1]} channels,"
                f" the linear head takes {weight.shape[1]}: cafa cannot be used, ce and margin can"
            )
        maps = scale(features, weight[logits.argmax(1)])
        if size is None:
            return maps
        return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)

    with torch.no_grad():
        clean = resized(x)
    return lambda z: (resized(z) - clean).square().mean((1, 2, 3))


def objective_loss(name: Objective, detector: Detector, x: Tensor, y: Tensor) -> Loss:
    """The loss of inputs z near the clean `x` with labels `y`.

    Raises:
        ValueError: an unknown name.
    """
    if name == "ce":
        return lambda z: cross_entropy(detector(z), y)
    if name == "margin":
        return lambda z: margin(detector(z), y)
    if name == "cafa":
        return cafa(detector, x)
    if name == "cafa_batch":
        return cafa(detector, x, class_activation_features_of_batch)
    raise ValueError(f"objective {name!r} is none of {', '.join(get_args(Objective))}")
