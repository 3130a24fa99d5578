"""PSNR and SSIM under three protocols that must never share a column: `official`, `rgb8`, `y8`."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import UserError

Protocol = Literal["official", "rgb8", "y8"]
"""`official`: float RGB, SSIM with a zero-padded window, PSNR 100 for equal images (official code, utils/metrics.py).
`rgb8`: rounded to 8 bits, RGB, SSIM over the valid window. `y8`: the same on BT.601 studio luma, as most of the literature."""

PROTOCOLS: tuple[Protocol, ...] = ("official", "rgb8", "y8")
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def _prepared(image: Tensor, protocol: str) -> Tensor:
    image = image.clamp(0, 1)
    if protocol == "official":
        return image
    # 64 bits: the differences of 8-bit levels are exact.
    rounded = (image.double() * 255).round() / 255
    if protocol == "rgb8":
        return rounded
    # Here, because torchmetrics takes seconds to load and only this protocol needs it.
    from tenfold.metrics import luminance

    return luminance(rounded)


def _check(estimate: Tensor, target: Tensor, protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol}: choose {', '.join(PROTOCOLS)}")
    if estimate.shape != target.shape:
        raise UserError(f"pictures differ in size: {tuple(estimate.shape)} and {tuple(target.shape)}")


def psnr(
    estimate: Float[Tensor, "b c _ _"], target: Float[Tensor, "b c _ _"], protocol: str = "official"
) -> Float[Tensor, " b"]:
    """PSNR of each image in dB, after clamping to [0, 1].

    Args:
        estimate: restored images.
        target: clean ones.
        protocol: see `Protocol`. Equal images have 100 under `official` and infinity under the others.

    Raises:
        UserError: sizes that differ, or an unknown protocol.
    """
    _check(estimate, target, protocol)
    first, second = _prepared(estimate, protocol), _prepared(target, protocol)
    error = (first - second).square().mean((1, 2, 3))
    decibels = -10 * error.log10()
    return torch.where(error == 0, 100.0, decibels) if protocol == "official" else decibels


def _blur(images: Float[Tensor, "b c h w"], padding: int) -> Float[Tensor, "b c h2 w2"]:
    """Gaussian window of 11 x 11 and sigma 1.5, as two passes."""
    steps = torch.arange(_WINDOW, dtype=images.dtype, device=images.device) - _WINDOW // 2
    line = torch.exp(-steps.square() / (2 * _SIGMA**2))
    line = (line / line.sum()).expand(images.shape[1], 1, 1, _WINDOW)
    rows = F.conv2d(images, line, padding=(0, padding), groups=images.shape[1])
    return F.conv2d(rows, line.transpose(2, 3), padding=(padding, 0), groups=images.shape[1])


def ssim(
    estimate: Float[Tensor, "b c _ _"], target: Float[Tensor, "b c _ _"], protocol: str = "official"
) -> Float[Tensor, " b"]:
    """SSIM of each image, mean over the map and the channels, after clamping to [0, 1].

    Args:
        estimate: restored images.
        target: clean ones.
        protocol: see `Protocol`. The zero padding of `official` inflates small images' values.

    Raises:
        UserError: sizes that differ, or fewer than 11 pixels a side where the window must be valid.
    """
    _check(estimate, target, protocol)
    if protocol != "official" and min(target.shape[-2:]) < _WINDOW:
        raise UserError(f"SSIM needs at least {_WINDOW} pixels a side, got {target.shape[-1]} x {target.shape[-2]}")
    first, second = _prepared(estimate, protocol), _prepared(target, protocol)
    padding = _WINDOW // 2 if protocol == "official" else 0
    channels = first.shape[1]
    stacked = torch.cat([first, second, first * first, second * second, first * second], 1)
    mean_a, mean_b, square_a, square_b, product = _blur(stacked, padding).split(channels, 1)
    variance_a, variance_b = square_a - mean_a.square(), square_b - mean_b.square()
    covariance = product - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)) / (
        (mean_a.square() + mean_b.square() + _C1) * (variance_a + variance_b + _C2)
    )
    return similarity.mean((1, 2, 3))
