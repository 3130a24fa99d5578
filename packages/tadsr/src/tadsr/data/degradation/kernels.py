"""Blur kernels of the Real-ESRGAN degradation: (generalised) Gaussian, plateau-shaped, and sinc."""

from math import cos, pi, sin

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Kernel = Float[Tensor, "k k"]


def mahalanobis(size: int, sigma_x: float, sigma_y: float, theta: float) -> Kernel:
    """x^T Sigma^-1 x on a grid of odd size, Sigma having standard deviations sigma_x, sigma_y turned by theta."""
    turn = torch.tensor([[cos(theta), -sin(theta)], [sin(theta), cos(theta)]], dtype=torch.float64)
    spread = torch.diag(torch.tensor([sigma_x**2, sigma_y**2], dtype=torch.float64))
    inverse = torch.linalg.inv(turn @ spread @ turn.T)
    line = torch.arange(size, dtype=torch.float64) - size // 2
    grid = torch.stack([line.expand(size, size), line[:, None].expand(size, size)], dim=-1)
    return (grid @ inverse * grid).sum(-1)


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float = 1.0) -> Kernel:
    """exp(-q^beta / 2), normalised; beta = 1 is the Gaussian. Give sigma_x = sigma_y for an isotropic kernel."""
    kernel = torch.exp(-0.5 * mahalanobis(size, sigma_x, sigma_y, theta) ** beta)
    return (kernel / kernel.sum()).float()


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> Kernel:
    """1 / (1 + q^beta), normalised."""
    kernel = 1 / (1 + mahalanobis(size, sigma_x, sigma_y, theta) ** beta)
    return (kernel / kernel.sum()).float()


def sinc_kernel(cutoff: float, size: int, pad_to: int = 0) -> Kernel:
    """Ideal circular low-pass filter, cut to `size`, normalised, in a frame of zeros up to `pad_to`: overshoot and ringing.

    Args:
        cutoff: radians per pixel, up to pi.
        size: odd.
        pad_to: side of the result; `size` when smaller.
    """
    line = torch.arange(size, dtype=torch.float64) - (size - 1) // 2
    radius = (line[:, None] ** 2 + line[None, :] ** 2).sqrt()
    safe = radius.clamp_min(1e-12)
    kernel = cutoff * torch.special.bessel_j1(cutoff * safe) / (2 * pi * safe)
    kernel[radius == 0] = cutoff**2 / (4 * pi)
    kernel = kernel / kernel.sum()
    return pad_kernel(kernel.float(), max(size, pad_to))


def pad_kernel(kernel: Kernel, size: int) -> Float[Tensor, "n n"]:
    """Centre a kernel in a frame of zeros."""
    border = (size - kernel.shape[-1]) // 2
    return F.pad(kernel, (border,) * 4)


def filter_batch(images: Float[Tensor, "b c h w"], kernels: Float[Tensor, "b k k"]) -> Float[Tensor, "b c h w"]:
    """Correlate each picture with its own kernel, edges reflected."""
    b, c, h, w = images.shape
    radius = kernels.shape[-1] // 2
    # Reflection reaches less than a side: small pictures take what they can, and repeat the edge beyond.
    inner = [min(radius, side - 1) for side in (w, h)]
    padded = F.pad(images, (inner[0], inner[0], inner[1], inner[1]), mode="reflect")
    rest = [radius - each for each in inner]
    padded = F.pad(padded, (rest[0], rest[0], rest[1], rest[1]), mode="replicate")
    stacked = padded.transpose(0, 1)
    weights = kernels[:, None].to(images)
    return F.conv2d(stacked, weights, groups=b).transpose(0, 1).reshape(b, c, h, w)
