"""The six forgery approaches of the drawn-face experiment, on batches of small images.

They are the ideas of the forgers of the same class (`fairfd.forgers`), written for batches: thousands of 48-pixel images
in seconds.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fairfd.data.faces.geometry import convex_mask, fit_thin_plate, pixel_grid, sample_at, warp
from fairfd.data.faces.landmarks import SCHEME_17
from fairfd.data.faces.poisson_blending import membrane, poisson_blend

APPROACHES = ("swap", "reenact", "self_blend", "upsample_sim", "region_edit", "pca_resynth")
"""Swap and reenact are seen in training, the other four are not."""

COMPONENTS = 40
_TOLERANCE = 1e-4
# Brows left to right, then the outline right to left: the inner face in order.
_RING = (5, 6, 7, 8, 4, 3, 2, 1, 0)


def face_mask(points: Float[Tensor, "n 17 2"], size: int) -> Bool[Tensor, "n s s"]:
    """The inner face: brows and the outline drawn in by 15 % towards the middle."""
    ring = points[:, list(_RING)].clone()
    middle = points.mean(1, keepdim=True)
    ring[:, 4:] += 0.15 * (middle - ring[:, 4:])
    mask = convex_mask(ring, size, size)
    mask[:, [0, -1]] = False
    mask[:, :, [0, -1]] = False
    return mask


def soft_edge(mask: Bool[Tensor, "n s s"], width: int = 5) -> Float[Tensor, "n 1 s s"]:
    """A ramp from 0 at the mask's rim to 1 inside, about `width` pixels wide; 0 outside."""
    blurred = F.avg_pool2d(mask[:, None].float(), 2 * (width // 2) + 1, 1, width // 2)
    return ((2 * blurred - 1).clamp(0, 1)) * mask[:, None]


def swap(
    base: Float[Tensor, "n 3 s s"],
    donor: Float[Tensor, "n 3 s s"],
    base_points: Float[Tensor, "n 17 2"],
    donor_points: Float[Tensor, "n 17 2"],
) -> Float[Tensor, "n 3 s s"]:
    """The donor's inner face by thin-plate warp, matched in colour, Poisson-blended."""
    mask = face_mask(base_points, base.shape[-1])
    warped = warp(donor, fit_thin_plate(base_points, donor_points))
    matched = match_colours(warped, base, mask)
    return poisson_blend(matched, base, mask, _TOLERANCE).clamp(0, 1)


def match_colours(
    images: Float[Tensor, "n 3 s s"], reference: Float[Tensor, "n 3 s s"], mask: Bool[Tensor, "n s s"]
) -> Float[Tensor, "n 3 s s"]:
    """Mean and deviation of each channel inside the mask made those of the reference."""
    weight = mask[:, None].float()
    area = weight.sum((2, 3), keepdim=True).clamp_min(1)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x * weight).sum((2, 3), keepdim=True) / area
        return mean, (((x - mean).square() * weight).sum((2, 3), keepdim=True) / area).sqrt()

    (mean, deviation), (goal, goal_deviation) = moments(images), moments(reference)
    return (images - mean) * (goal_deviation / deviation.clamp_min(1e-3)).clamp(0.5, 2) + goal


def reenact(
    base: Float[Tensor, "n 3 s s"], points: Float[Tensor, "n 17 2"], generator: torch.Generator
) -> Float[Tensor, "n 3 s s"]:
    """Mouth, eyes and brows moved at random by a thin-plate warp, feathered."""
    size = base.shape[-1]
    moving = [i for part in (*SCHEME_17.brows, *SCHEME_17.eyes, SCHEME_17.mouth) for i in part]
    motion = torch.zeros_like(points)
    motion[:, moving] = 0.022 * size * torch.randn(len(points), len(moving), 2, generator=generator).clamp(-2, 2)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) * (size - 1)
    fixed = corners.expand(len(points), -1, -1)
    inverse = fit_thin_plate(torch.cat([points + motion, fixed], 1), torch.cat([points, fixed], 1))
    soft = soft_edge(face_mask(points, size))
    return (base + soft * (warp(base, inverse) - base)).clamp(0, 1)


def self_blend(
    base: Float[Tensor, "n 3 s s"], points: Float[Tensor, "n 17 2"], generator: torch.Generator
) -> Float[Tensor, "n 3 s s"]:
    """A jittered, slightly moved copy blended into the image through a softened mask."""
    count, _, size, _ = base.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    jittered = base * uniform(0.9, 1.1, 3, 1, 1) + uniform(-0.05, 0.05, 3, 1, 1)
    blurred = F.avg_pool2d(F.pad(jittered, (1, 1, 1, 1), mode="replicate"), 3, 1)
    jittered = jittered + uniform(-0.6, 0.4, 1, 1, 1) * (jittered - blurred)
    middle = (size - 1) / 2
    scale = uniform(0.95, 1 / 0.95, 1, 1)
    shift = uniform(-1.0, 1.0, 1, 2) * size * torch.tensor([0.03, 0.015])
    grid = pixel_grid(size, size, base)[None]
    origin = (grid - middle - shift) / scale + middle
    moved = sample_at(jittered, origin.reshape(count, size, size, 2))
    ratios = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    ratio = ratios[torch.randint(len(ratios), (count,), generator=generator)][:, None, None, None]
    weight = ratio * soft_edge(face_mask(points, size), 7)
    return (base + weight * (moved - base)).clamp(0, 1)


def upsample_sim(
    base: Float[Tensor, "n 3 s s"], points: Float[Tensor, "n 17 2"], generator: torch.Generator
) -> Float[Tensor, "n 3 s s"]:
    """Simulated upsampling traces: decimated by two, enlarged, with a checkerboard gain, inside the face."""
    count, _, size, _ = base.shape
    small = F.avg_pool2d(base, 2)
    large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    gain = 0.01 + 0.02 * torch.rand(count, 1, 1, 1, generator=generator)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    traced = large * (1 + gain * (1 - 2 * ((row + column) % 2)))
    return (base + soft_edge(face_mask(points, size)) * (traced - base)).clamp(0, 1)


def region_edit(
    base: Float[Tensor, "n 3 s s"], points: Float[Tensor, "n 17 2"], generator: torch.Generator
) -> Float[Tensor, "n 3 s s"]:
    """One part (an eye, the nose or the mouth) cut out, filled with skin, and put back larger or smaller."""
    count, _, size, _ = base.shape
    parts = (SCHEME_17.eyes[0], SCHEME_17.eyes[1], SCHEME_17.nose, SCHEME_17.mouth)
    boxes = torch.stack([_box(points[:, list(part)]) for part in parts], 1)
    chosen = boxes[torch.arange(count), torch.randint(len(parts), (count,), generator=generator)]
    centre, half = chosen[:, None, None, :2], chosen[:, None, None, 2:] + 0.09 * size
    factor = 1.25 + 0.35 * torch.rand(count, 1, 1, 1, generator=generator)
    factor = torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.5, factor, 1 / factor)
    grid = pixel_grid(size, size, base).reshape(1, size, size, 2)
    offset = grid - centre
    # The edit stays on the face and its rim: beyond lie hair and backdrop.
    skin = F.max_pool2d(face_mask(points, size)[:, None].float(), 5, 1, 2)[:, 0] > 0
    before = ((offset / half).square().sum(3) < 1) & skin
    after = ((offset / (half * factor)).square().sum(3) < 1) & skin
    filled = membrane(base, before, _TOLERANCE)
    resized = sample_at(base, centre + offset / factor)
    return poisson_blend(resized, filled, after, _TOLERANCE).clamp(0, 1)


def _box(points: Float[Tensor, "n k 2"]) -> Float[Tensor, "n 4"]:
    """Centre and half extent."""
    low, high = points.amin(1), points.amax(1)
    return torch.cat([(low + high) / 2, (high - low) / 2], 1)


def principal_components(images: Float[Tensor, "n 3 s s"]) -> tuple[Float[Tensor, " p"], Float[Tensor, "p k"]]:
    """Mean and the 40 leading principal components of images (fewer where there are not that many images)."""
    flat = images.flatten(1)
    mean = flat.mean(0)
    centred = flat - mean
    # There are fewer images than pixels: the small Gram matrix has the same leading directions.
    _, vectors = torch.linalg.eigh(centred @ centred.T)
    # Centred, n images span n - 1 directions.
    leading = centred.T @ vectors[:, -min(COMPONENTS, len(images) - 1) :]
    return mean, F.normalize(leading, dim=0)


def pca_resynth(
    base: Float[Tensor, "n 3 s s"],
    points: Float[Tensor, "n 17 2"],
    mean: Float[Tensor, " p"],
    components: Float[Tensor, "p k"],
) -> Float[Tensor, "n 3 s s"]:
    """The inner face replaced by its projection on principal components of pristine training images."""
    flat = base.flatten(1) - mean
    projected = (mean + flat @ components @ components.T).reshape(base.shape)
    return (base + soft_edge(face_mask(points, base.shape[-1])) * (projected - base)).clamp(0, 1)
