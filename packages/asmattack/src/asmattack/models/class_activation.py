"""Where a detector looks: class-activation maps per image, in [0, 1]."""

import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from asmattack.data.regions import CANDIDATES, region_mask
from asmattack.models.detector import Detector, NoSpatialOutputError, as_map

Method = Literal["gradcam", "cam", "layercam", "saliency", "occlusion"]


def normalise(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """(C - min) / (max - min + 1e-12) per image."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-12)


def weighted_map(
    activation: Float[Tensor, "b k i j"], weight: Float[Tensor, "b k"], size: tuple[int, int]
) -> Float[Tensor, "b h w"]:
    """max(0, sum_k w_k a_k), resized bilinearly with half-pixel centres, then scaled per image."""
    low = torch.einsum("bk,bkij->bij", weight, activation).relu()
    return normalise(F.interpolate(low[:, None], size, mode="bilinear", align_corners=False)[:, 0])


def layer_map(
    activation: Float[Tensor, "b k i j"], gradient: Float[Tensor, "b k i j"], size: tuple[int, int]
) -> Float[Tensor, "b h w"]:
    """max(0, sum_k max(0, g_k) a_k), place by place, resized and scaled as `weighted_map` does (LayerCAM, eq. 5 to 7)."""
    low = (gradient.relu() * activation).sum(1).relu()
    return normalise(F.interpolate(low[:, None], size, mode="bilinear", align_corners=False)[:, 0])


def activation_map(
    detector: Detector,
    images: Float[Tensor, "b 3 h w"],
    target: int = 1,
    method: Method = "saliency",
    labels: Int64[Tensor, "b h w"] | None = None,
    candidates: Sequence[int] = CANDIDATES,
) -> Float[Tensor, "b h w"]:
    """The map of class `target` (1 = fake), whatever the image is.

    Args:
        detector: in any mode; it is evaluated and put back.
        images: pixels in [0, 1].
        target: the class whose evidence is mapped.
        method: gradcam weights channels by mean gradients, cam by the linear head, layercam each place of a channel by its
            own positive gradient; saliency is the absolute input
            gradient of the logit difference, the only one that tells an eye from a brow on small feature maps; occlusion
            paints each region with what the logit difference loses when the region takes the image's mean colour.
        labels: label maps, for occlusion.
        candidates: the classes that occlusion paints over, one at a time.

    Raises:
        ValueError: occlusion without label maps, or an unknown method.
    """
    if method not in get_args(Method):
        raise ValueError(f"activation map {method!r} is none of {', '.join(get_args(Method))}")
    training = detector.training
    detector.eval()
    try:
        if method == "occlusion":
            if labels is None:
                raise ValueError("occlusion needs the label maps")
            return normalise(occlusion(detector, images, labels, target, candidates))
        if method == "saliency":
            return saliency(detector, images, target)
        try:
            return class_activation(detector, images, target, method)
        except NoSpatialOutputError as reason:
            warnings.warn(f"{reason}; saliency is used", stacklevel=2)
            return saliency(detector, images, target)
    finally:
        detector.train(training)


@torch.enable_grad()
def saliency(detector: Detector, images: Float[Tensor, "b 3 h w"], target: int) -> Float[Tensor, "b h w"]:
    """Sum over channels of |d (logit_target - logit_other) / dx|, scaled per image."""
    x = images.detach().clone().requires_grad_()
    logits = detector(x)
    (gradient,) = torch.autograd.grad((logits[:, target] - logits[:, 1 - target]).sum(), x)
    return normalise(gradient.abs().sum(1))


@torch.enable_grad()
def class_activation(
    detector: Detector, images: Float[Tensor, "b 3 h w"], target: int, method: Literal["gradcam", "cam", "layercam"]
) -> Float[Tensor, "b h w"]:
    """Grad-CAM (Selvaraju et al. 2017), CAM (Zhou et al. 2016) or LayerCAM (Jiang et al. 2021) on the target layer."""
    logits, activation = detector.with_activation(images.detach().clone().requires_grad_())
    size = (images.shape[-2], images.shape[-1])
    if method == "cam":
        weight = detector.head_weight()[target].expand(len(images), -1)
        return weighted_map(as_map(activation.detach()), weight.detach(), size)
    gradient = as_map(torch.autograd.grad(logits[:, target].sum(), activation)[0])
    maps = as_map(activation.detach())
    if method == "layercam":
        return layer_map(maps, gradient, size)
    return weighted_map(maps, gradient.mean((2, 3)), size)


@torch.no_grad()
def occlusion(
    detector: Detector,
    images: Float[Tensor, "b 3 h w"],
    labels: Int64[Tensor, "b h w"],
    target: int,
    candidates: Sequence[int] = CANDIDATES,
) -> Float[Tensor, "b h w"]:
    """Each candidate region painted with the drop of logit_target - logit_other when it is painted over; 0 elsewhere."""

    def evidence(pixels: Tensor) -> Tensor:
        logits = detector(pixels)
        return logits[:, target] - logits[:, 1 - target]

    before, colour = evidence(images), images.mean((2, 3), keepdim=True)
    drops = torch.zeros(labels.shape, dtype=images.dtype, device=images.device)
    for each in candidates:
        region = region_mask(labels, (each,))
        drop = before - evidence(torch.where(region, colour, images))
        drops = torch.where(region[:, 0], drop[:, None, None], drops)
    return drops
