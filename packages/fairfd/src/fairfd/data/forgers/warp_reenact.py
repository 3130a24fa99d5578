"""Geometric reenactment: the driving face's expression put on the base by moving its landmarks (no network is involved)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float

from fairfd.data.faces.geometry import (
    DegenerateError,
    apply_affine,
    feather,
    fit_similarity,
    fit_thin_plate,
    hull_polygon,
    warp_inside,
)
from fairfd.data.faces.landmarks import LandmarkScheme, landmark_scheme
from fairfd.data.faces.regions import RegionError, eye_distance, face_region
from fairfd.data.forgers.registry import ForgeResult, SkippedFaceError, register_forger

_RING = 24
_LEAST_MOTION = 0.02


@register_forger("warp_reenact")
@dataclass(frozen=True)
class WarpReenact:
    """Thin-plate warp of mouth, eyes and brows towards the driving expression, feathered into the base.

    Where the two faces' landmarks hardly differ (or are the same mean shape) an expression is drawn at random instead.

    Attributes:
        strength: share of the way to the driving expression.
        most_motion: landmarks move no further than this, in eye distances.
        softness: width of the feathered edge in eye distances.
    """

    needs_landmarks: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    version: ClassVar[str] = "1"

    strength: float = 1.0
    most_motion: float = 0.2
    softness: float = 0.2

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],  # noqa: ARG002  # only its landmarks drive
        base_lm: Float[np.ndarray, "k 2"] | None,
        driving_lm: Float[np.ndarray, "k2 2"] | None,
        rng: np.random.Generator,
    ) -> ForgeResult:
        """See `Forger`."""
        height, width = base.shape[:2]
        try:
            region = face_region(base_lm, height, width)
        except RegionError as error:
            raise SkippedFaceError(str(error)) from error
        assert base_lm is not None
        points = base_lm.astype(np.float64)
        scheme = landmark_scheme(len(points))
        if scheme is None:
            raise SkippedFaceError(f"the parts of {len(points)} landmarks are not known")
        unit = eye_distance(points)
        motion = np.zeros_like(points)
        if driving_lm is not None and len(driving_lm) == len(points):
            motion = self.strength * expression_difference(points, driving_lm.astype(np.float64), scheme)
        source = "driving landmarks"
        if np.abs(motion).max() < _LEAST_MOTION * unit:
            motion, source = random_expression(points, scheme, rng), "random"
        motion = limit(motion, self.most_motion * unit)
        ring = anchors(points, region.shape)
        before = np.concatenate([points, ring])
        after = np.concatenate([points + motion, ring])
        try:
            inverse = fit_thin_plate(*(torch.from_numpy(p.astype(np.float32))[None] for p in (after, before)))
        except DegenerateError as error:
            raise SkippedFaceError("degenerate landmarks") from error
        soft = feather(region, self.softness * unit)
        image = base.copy()
        moved, _ = warp_inside(base, inverse, region)
        image[region] += soft[region][:, None] * (moved - base[region])
        meta = {"expression": source, "largest_motion": round(float(np.abs(motion).max()), 2)}
        return ForgeResult(image, soft, meta)


def expression_difference(
    base: Float[np.ndarray, "k 2"], driving: Float[np.ndarray, "k 2"], scheme: LandmarkScheme
) -> Float[np.ndarray, "k 2"]:
    """How each landmark would move for the driving expression, pose taken out by a similarity over outline and nose.

    Parts are compared about their own centres, so that the persons' different proportions do not count as expression.
    """
    still = [*scheme.jaw, *scheme.nose]
    aligned = apply_affine(fit_similarity(driving[still], base[still]), driving)
    motion = np.zeros_like(base)
    for part in (*scheme.eyes, *scheme.brows, scheme.mouth):
        indices = list(part)
        motion[indices] = (aligned[indices] - aligned[indices].mean(0)) - (base[indices] - base[indices].mean(0))
    return motion


def random_expression(
    points: Float[np.ndarray, "k 2"], scheme: LandmarkScheme, rng: np.random.Generator
) -> Float[np.ndarray, "k 2"]:
    """A drawn expression: mouth opened or closed and widened or narrowed, eyes opened or closed, brows raised or lowered."""
    unit = eye_distance(points)
    motion = np.zeros_like(points)
    mouth = list(scheme.mouth)
    about = points[mouth] - points[mouth].mean(0)
    if rng.random() < 0.5:
        # Opened: the lower lip goes down, the upper one a little up; corners (at middle height) stay.
        side = np.sign(np.round(about[:, 1] / unit, 2))
        vertical = unit * rng.uniform(0.05, 0.15) * np.where(side > 0, 1.0, 0.25 * side)
    else:
        vertical = about[:, 1] * rng.uniform(-0.4, -0.15)
    motion[mouth] = np.stack([about[:, 0] * rng.uniform(-0.25, 0.25), vertical], 1)
    opening = rng.uniform(-0.5, 0.5)
    raised = rng.choice([-1, 1]) * rng.uniform(0.04, 0.12) * unit
    for eye, brow in zip(scheme.eyes, scheme.brows, strict=True):
        indices = list(eye)
        motion[indices, 1] = (points[indices, 1] - points[indices, 1].mean()) * opening
        motion[list(brow), 1] = -raised
    return motion


def limit(motion: Float[np.ndarray, "k 2"], most: float) -> Float[np.ndarray, "k 2"]:
    """Shorten motions that are longer than `most`."""
    length = np.linalg.norm(motion, axis=1, keepdims=True)
    return motion * np.minimum(1, most / np.maximum(length, 1e-9))


def anchors(points: Float[np.ndarray, "k 2"], shape: tuple[int, ...]) -> Float[np.ndarray, "n 2"]:
    """Fixed points: a ring a little outside the landmarks' hull, and the corners of the image."""
    polygon = hull_polygon(points)
    closed = np.concatenate([polygon, polygon[:1]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.linspace(0, along[-1], _RING, endpoint=False)
    ring = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], 1)
    ring += 0.15 * (ring - polygon.mean(0))
    bottom, right = shape[0] - 1.0, shape[1] - 1.0
    corners = np.array([[0, 0], [right, 0], [0, bottom], [right, bottom]])
    return np.concatenate([ring, corners])
