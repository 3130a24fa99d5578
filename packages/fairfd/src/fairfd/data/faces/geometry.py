"""Geometry of face forgery: thin-plate splines, convex regions, similarities (graphics-based approaches of the paper's benchmark).

Points are (x, y) in pixels; pixel centres have integer coordinates. A thin-plate spline maps
f(p) = a0 + A p + sum_k w_k U(|p - c_k|) with U(r) = r^2 log r and the side conditions sum w = 0, sum w c = 0.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor


class DegenerateError(ValueError):
    """Points that coincide or lie on one line: no spline, hull or similarity passes through them."""


@dataclass(frozen=True)
class ThinPlate:
    """A batch of thin-plate splines in normalised coordinates (p - centre) / scale.

    Attributes:
        control: the points c_k, normalised.
        weights: w_k.
        affine: rows a0 and the two rows of A.
        centre: of the control points, pixels.
        scale: their spread, pixels.
    """

    control: Float[Tensor, "b k 2"]
    weights: Float[Tensor, "b k 2"]
    affine: Float[Tensor, "b 3 2"]
    centre: Float[Tensor, "b 1 2"]
    scale: Float[Tensor, "b 1 1"]


def fit_thin_plate(source: Float[Tensor, "b k 2"], target: Float[Tensor, "b k 2"]) -> ThinPlate:
    """The thin-plate splines that carry each source point to its target point exactly.

    Solved in float64; the result has the dtype of `source`.

    Raises:
        DegenerateError: fewer than 3 points, coinciding points, or points on a line.
    """
    dtype = source.dtype
    source, target = source.double(), target.double()
    centre = source.mean(1, keepdim=True)
    # The interpolant does not change with this scaling, the condition of the system does.
    scale = (source - centre).norm(dim=2).mean(1)[:, None, None].clamp_min(1e-12)
    control = (source - centre) / scale
    batch, count = control.shape[:2]
    ones = control.new_ones(batch, count, 1)
    polynomial = torch.cat([ones, control], 2)
    system = control.new_zeros(batch, count + 3, count + 3)
    system[:, :count, :count] = _kernel(control, control)
    system[:, :count, count:] = polynomial
    system[:, count:, :count] = polynomial.mT
    right = torch.cat([target, target.new_zeros(batch, 3, 2)], 1)
    solution, info = torch.linalg.solve_ex(system, right)
    error = (system @ solution - right).abs().amax()
    if count < 3 or info.any() or not solution.isfinite().all() or error > 1e-6 * (1 + target.abs().amax()):
        raise DegenerateError("control points coincide or lie on a line")
    return ThinPlate(
        control.to(dtype),
        solution[:, :count].to(dtype),
        solution[:, count:].to(dtype),
        centre.to(dtype),
        scale.to(dtype),
    )


def apply_thin_plate(spline: ThinPlate, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """f(p) for every point."""
    normalised = (points - spline.centre) / spline.scale
    bent = _kernel(normalised, spline.control) @ spline.weights
    return bent + spline.affine[:, :1] + normalised @ spline.affine[:, 1:]


def _kernel(points: Float[Tensor, "b n 2"], control: Float[Tensor, "b k 2"]) -> Float[Tensor, "b n k"]:
    """U(r) = r^2 log r = 1/2 r^2 log r^2, 0 at r = 0."""
    # |p|^2 - 2 p.c + |c|^2 by one matrix product: the grid of an image has many points.
    squared = torch.baddbmm(points.square().sum(2)[:, :, None], points, control.mT, alpha=-2)
    squared = (squared + control.square().sum(2)[:, None]).clamp_min_(1e-30)
    return squared.log().mul_(squared).mul_(0.5)


def image_to_batch(image: Float[np.ndarray, "h w c"]) -> Float[Tensor, "1 c h w"]:
    """One image, channels last, as a torch batch of one, float32."""
    # A copy: torch shares memory otherwise, and refuses arrays that are read-only.
    return torch.from_numpy(np.array(image, np.float32, order="C")).permute(2, 0, 1)[None]


def batch_to_image(batch: Float[Tensor, "1 c h w"]) -> Float[np.ndarray, "h w c"]:
    """The one image of a batch, channels last, clipped to [0, 1], float32."""
    return np.ascontiguousarray(batch[0].permute(1, 2, 0).clamp(0, 1).numpy(), dtype=np.float32)


def pixel_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "n 2"]:
    """(x, y) of every pixel, row by row, with dtype and device of `like`."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=like.dtype, device=like.device),
        torch.arange(width, dtype=like.dtype, device=like.device),
        indexing="ij",
    )
    return torch.stack([x.reshape(-1), y.reshape(-1)], 1)


def sample_at(
    images: Float[Tensor, "b c h w"],
    points: Float[Tensor, "b m n 2"],
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Float[Tensor, "b c m n"]:
    """Colours of the images at pixel positions; outside, the border's colour."""
    height, width = images.shape[-2:]
    extent = points.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    grid = (points / extent * 2 - 1).to(images.dtype)
    return F.grid_sample(images, grid, mode=interpolation, padding_mode="border", align_corners=True)


def warp(
    images: Float[Tensor, "b c h w"],
    inverse: ThinPlate,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Float[Tensor, "b c h w"]:
    """Warp images by splines that carry each *output* position to the position in the input."""
    height, width = images.shape[-2:]
    grid = pixel_grid(height, width, images).expand(len(images), -1, -1)
    points = apply_thin_plate(inverse, grid)
    return sample_at(images, points.reshape(len(images), height, width, 2), interpolation)


def warp_inside(
    image: Float[np.ndarray, "h w c"], inverse: ThinPlate, region: Bool[np.ndarray, "h2 w2"]
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n 2"]]:
    """Warp an image for the pixels of a region only (bicubic).

    Args:
        image: where colours are taken from.
        inverse: one spline, from output positions to positions in the image.
        region: the n output pixels that are wanted.

    Returns:
        Their colours, row by row, clipped to [0, 1], and the positions in the image that these come from.
    """
    rows, columns = np.nonzero(region)
    pixels = torch.from_numpy(np.stack([columns, rows], 1).astype(np.float32))[None]
    origin = apply_thin_plate(inverse, pixels)[0].numpy()
    return colours_at(image, origin), origin


def colours_at(image: Float[np.ndarray, "h w c"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n c"]:
    """Colours at pixel positions by bicubic interpolation, clipped to [0, 1]; outside, the border's colour."""
    at = torch.from_numpy(points.astype(np.float32))[None, None]
    colours = sample_at(image_to_batch(image), at, "bicubic")[0, :, 0].clamp(0, 1)
    return np.ascontiguousarray(colours.T.numpy())


def convex_mask(vertices: Float[Tensor, "b k 2"], height: int, width: int) -> Bool[Tensor, "b h w"]:
    """Pixels whose centre lies in each convex polygon, given by its corners in order.

    A row of pixels meets a convex polygon between its leftmost and its rightmost crossing with the edges.
    """
    x, y = vertices.unbind(2)
    x_next, y_next = x.roll(-1, 1), y.roll(-1, 1)
    rows = torch.arange(height, dtype=vertices.dtype, device=vertices.device)
    columns = torch.arange(width, dtype=vertices.dtype, device=vertices.device)
    spans = (y[..., None] <= rows) != (y_next[..., None] <= rows)
    # Where an edge is level it spans no row: its slope is never used.
    slope = (x_next - x) / torch.where(y_next == y, torch.ones_like(y), y_next - y)
    crossing = x[..., None] + (rows - y[..., None]) * slope[..., None]
    first = torch.where(spans, crossing, torch.inf).amin(1)
    last = torch.where(spans, crossing, -torch.inf).amax(1)
    return (columns >= first[..., None]) & (columns <= last[..., None])


def hull_polygon(points: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "v 2"]:
    """Corners of the convex hull, in order.

    Raises:
        DegenerateError: the points have no area.
    """
    try:
        return points[ConvexHull(points).vertices]
    except (QhullError, ValueError) as error:
        raise DegenerateError("the points have no convex hull") from error


def hull_mask(points: Float[np.ndarray, "k 2"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels inside the convex hull of the points."""
    polygon = torch.from_numpy(np.ascontiguousarray(hull_polygon(points)))
    return convex_mask(polygon[None], height, width)[0].numpy()


def feather(mask: Bool[np.ndarray, "h w"], width: float) -> Float[np.ndarray, "h w"]:
    """A ramp from 0 outside the mask to 1 at `width` pixels inside it, float32."""
    return np.clip(ndimage.distance_transform_edt(mask) / max(width, 1.0), 0, 1).astype(np.float32)


def fit_similarity(source: Float[np.ndarray, "k 2"], target: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "2 3"]:
    """Rotation, scale and shift that carry `source` to `target` best in least squares.

    With points as complex numbers z the map is a z + b with a = <z - mean, t - mean> / |z - mean|^2.

    Raises:
        DegenerateError: all source points coincide.
    """
    z, t = (points.astype(np.float64) @ np.array([1, 1j]) for points in (source, target))
    centred = z - z.mean()
    power = np.vdot(centred, centred).real
    if not power > 0:
        raise DegenerateError("the points coincide")
    a = np.vdot(centred, t - t.mean()) / power
    b = t.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def apply_affine(matrix: Float[np.ndarray, "2 3"], points: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "k 2"]:
    """A p + b for every point."""
    return points @ matrix[:, :2].T + matrix[:, 2]
