"""Poisson image blending, as used by the graphics-based face swaps that the paper's benchmark holds.

For every pixel p of the masked region Omega (which touches no image border), with N4 the four neighbours:

    4 x_p - sum_{q in N4(p), q in Omega} x_q = sum_{q in N4(p)} v_pq + sum_{q in N4(p), q not in Omega} target_q

where v_pq = source_p - source_q, or (mixed gradients) the larger in magnitude of that and target_p - target_q; outside Omega
x is the target. The system is symmetric positive definite: conjugate gradients, batched over images and channels, with
shifts and masks only.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

_NEIGHBOURS = ((-1, 2), (1, 2), (-1, 3), (1, 3))


def poisson_blend(
    source: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b h w"],
    tolerance: float = 1e-6,
) -> Float[Tensor, "b c h w"]:
    """Put the source's gradients into the target's masked region.

    Args:
        source: images that give the gradients.
        target: images that give the surroundings.
        mask: Omega; pixels on the image border are taken out of it.
        tolerance: of the residual, relative to the right-hand side, per channel.

    Returns:
        The blend, not clipped; outside the mask bit-equal to the target.
    """
    return _blend(source, target, mask, _divergence(_differences(source)), tolerance)


def poisson_blend_mixed(
    source: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b h w"],
    tolerance: float = 1e-6,
) -> Float[Tensor, "b c h w"]:
    """Like `poisson_blend`, with the stronger of the source's and the target's gradient on every edge."""
    from_source, from_target = _differences(source), _differences(target)
    stronger = torch.where(from_source.abs() > from_target.abs(), from_source, from_target)
    return _blend(source, target, mask, _divergence(stronger), tolerance)


def membrane(
    target: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"], tolerance: float = 1e-4
) -> Float[Tensor, "b c h w"]:
    """Fill the masked region smoothly from its rim: the Poisson equation without a source (Laplace's equation)."""
    return _blend(target, target, mask, torch.zeros_like(target), tolerance)


def _blend(
    source: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b h w"],
    divergence: Float[Tensor, "b c h w"],
    tolerance: float,
) -> Float[Tensor, "b c h w"]:
    inside = mask.clone()
    inside[:, [0, -1]] = False
    inside[:, :, [0, -1]] = False
    if not inside.any():
        return target.clone()
    # All the work happens inside the box around all masks, one pixel wider.
    rows, columns = inside.any(0).any(1).nonzero()[:, 0], inside.any(0).any(0).nonzero()[:, 0]
    box = (..., slice(int(rows[0]) - 1, int(rows[-1]) + 2), slice(int(columns[0]) - 1, int(columns[-1]) + 2))
    omega = inside[box][:, None].to(target.dtype)
    rim = _neighbour_sum((1 - omega) * target[box])
    right = omega * (divergence[box] + rim)
    start = _start(source[box], target[box], omega)
    solution = conjugate_gradients(right, omega, start, tolerance)
    blended = target.clone()
    blended[box] = torch.where(inside[box][:, None], solution, target[box])
    return blended


def _start(
    source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], omega: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, "b c h w"]:
    """A feathered blend inside Omega, with the source brought to the target's mean there; 0 outside."""
    weight = F.avg_pool2d(omega, 9, stride=1, padding=4, count_include_pad=False)
    area = omega.sum((2, 3), keepdim=True).clamp_min(1)
    shift = ((target - source) * omega).sum((2, 3), keepdim=True) / area
    return omega * (weight * (source + shift) + (1 - weight) * target)


def conjugate_gradients(
    right: Float[Tensor, "b c h w"],
    omega: Float[Tensor, "b 1 h w"],
    start: Float[Tensor, "b c h w"],
    tolerance: float,
) -> Float[Tensor, "b c h w"]:
    """Solve (4 - neighbours inside Omega) x = right on Omega, all images and channels at once.

    Stops when every channel's residual is below `tolerance` times its right-hand side.
    """
    # Omega leaves the first and last row and column free. Rows can therefore be laid end to end: a neighbour beyond
    # the end of a row is the next row's first pixel, which holds 0 like everything outside Omega.
    width = right.shape[-1]
    inner = slice(width, -width)
    right, omega, x = (t.flatten(2) for t in (right, omega, start.clone()))
    residual = right.clone()
    residual[..., inner] -= _laplacian(x, omega, width)
    direction = residual.clone()
    power = _inner(residual, residual)
    goal = tolerance**2 * _inner(right, right)
    smallest = torch.finfo(power.dtype).tiny
    # In exact arithmetic the method ends after as many steps as unknowns; a few times the diameter is plenty.
    for _ in range(10 * sum(start.shape[-2:])):
        active = power > goal
        if not active.any():
            break
        image = _laplacian(direction, omega, width)
        # A channel that has converged stands still while the others go on.
        step = torch.where(active, power / _inner(direction[..., inner], image).clamp_min(smallest), 0)
        x += step * direction
        residual[..., inner] -= step * image
        new_power = _inner(residual, residual)
        direction.mul_(new_power / power.clamp_min(smallest)).add_(residual)
        power = new_power
    return x.reshape(start.shape)


def _inner(a: Float[Tensor, "b c n"], b: Float[Tensor, "b c n"]) -> Float[Tensor, "b c 1"]:
    """Inner product over the pixels of each channel."""
    return (a * b).sum(2, keepdim=True)


def _laplacian(x: Float[Tensor, "b c n"], omega: Float[Tensor, "b 1 n"], width: int) -> Float[Tensor, "b c m"]:
    """4 x_p - sum of the neighbours in Omega, all rows but the first and last, for x that is 0 outside Omega."""
    result = x[..., : -2 * width] + x[..., 2 * width :]
    result += x[..., width - 1 : -width - 1]
    result += x[..., width + 1 : x.shape[2] - width + 1]
    inner = slice(width, -width)
    return result.sub_(x[..., inner], alpha=4).mul_(-omega[..., inner])


def _neighbour_sum(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Sum over the four neighbours; beyond the array 0."""
    total = torch.zeros_like(x)
    total[..., 1:, :] += x[..., :-1, :]
    total[..., :-1, :] += x[..., 1:, :]
    total[..., :, 1:] += x[..., :, :-1]
    total[..., :, :-1] += x[..., :, 1:]
    return total


def _differences(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "4 b c h w"]:
    """x_p - x_q towards each of the four neighbours (wrong on the image border, which Omega never touches)."""
    return torch.stack([x - x.roll(-shift, axis) for shift, axis in _NEIGHBOURS])


def _divergence(differences: Float[Tensor, "4 b c h w"]) -> Float[Tensor, "b c h w"]:
    return differences.sum(0)
