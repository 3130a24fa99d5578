"""One step of the masked sign iteration and its parts: projection, momentum, blur, input diversity, rounding."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def project_linf(
    x: Float[Tensor, "b 3 h w"], delta: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"], eps: float
) -> Float[Tensor, "b 3 h w"]:
    """P(delta) = clip(x + clip(delta, -eps M, eps M), 0, 1) - x."""
    limit = eps * mask
    return (x + delta.clamp(-limit, limit)).clamp(0, 1) - x


def project_l2(
    x: Float[Tensor, "b 3 h w"], delta: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"], eps: float
) -> Float[Tensor, "b 3 h w"]:
    """Inside the mask, on the L2 ball of radius eps of each image, then on the box (which only shortens)."""
    inside = delta * mask
    norm = inside.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    return (x + inside * (eps / norm).clamp(max=1)).clamp(0, 1) - x


def accumulate(
    velocity: Float[Tensor, "b 3 h w"], gradient: Float[Tensor, "b 3 h w"], mu: float
) -> Float[Tensor, "b 3 h w"]:
    """Momentum: v <- mu v + g / mean|g| per image."""
    mean = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return mu * velocity + gradient / mean


def gaussian_kernel(length: int = 15, reach: float = 3.0) -> Float[Tensor, "n n"]:
    """Standard normal density at `length` points of [-reach, reach], outer product, sum 1 (translation invariance)."""
    density = torch.exp(-torch.linspace(-reach, reach, length, dtype=torch.float64).square() / 2)
    kernel = density[:, None] * density
    return (kernel / kernel.sum()).float()


def blur(gradient: Float[Tensor, "b 3 h w"], kernel: Float[Tensor, "n n"]) -> Float[Tensor, "b 3 h w"]:
    """Depthwise convolution with zero padding, same size."""
    weight = kernel.to(gradient).expand(3, 1, -1, -1)
    return F.conv2d(gradient, weight, padding="same", groups=3)


def diversify(
    z: Float[Tensor, "b 3 h w"], probability: float, generator: torch.Generator, smallest: float = 0.9
) -> Float[Tensor, "b 3 h w"]:
    """Input diversity: with `probability`, each image is shrunk to between `smallest` and 1 of its side and put down at random.

    One draw per image. The pixels around are zero.
    """
    count, _, height, width = z.shape
    draws = torch.rand((count, 4), generator=generator)
    scale = torch.where(draws[:, 0] < probability, smallest + (1 - smallest) * draws[:, 1], torch.ones(count))
    shift = (draws[:, 2:] * 2 - 1) * (1 - scale)[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = -shift / scale[:, None]
    grid = F.affine_grid(theta.to(z), [count, 3, height, width], align_corners=False)
    moved = F.grid_sample(z, grid, padding_mode="zeros", align_corners=False)
    return torch.where((scale < 1).to(z.device)[:, None, None, None], moved, z)


def quantise(
    x: Float[Tensor, "b 3 h w"],
    delta: Float[Tensor, "b 3 h w"],
    limit: Float[Tensor, "b 1 h w"] | None,
) -> Float[Tensor, "b 3 h w"]:
    """x + delta in whole levels of an 8-bit image, still inside the budget; a pixel that was not touched stays bitwise.

    Args:
        x: 8-bit content, multiples of 1/255.
        delta: feasible perturbation.
        limit: eps M for an L-inf budget: rounded to nearest, at most floor(255 limit) levels; None for L2: rounded towards
            zero, which cannot lengthen it.
    """
    if limit is None:
        levels = (255 * delta + 1e-4 * delta.sign()).trunc()
    else:
        most = (255 * limit + 1e-3).floor()
        levels = (255 * delta).round().clamp(-most, most)
    rounded = ((255 * x).round() + levels).clamp(0, 255) / 255
    return torch.where(levels == 0, x, rounded)
