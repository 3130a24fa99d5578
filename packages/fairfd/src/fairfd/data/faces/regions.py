"""Regions of a face from its landmarks: the inner face that a swap replaces, and single parts that an edit changes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from fairfd.data.faces.geometry import DegenerateError, hull_mask
from fairfd.data.faces.landmarks import landmark_scheme

# The mean shape's outline is only roughly that of a person: the region stays inside it by this share of the way to the middle.
_JAW_SHRINK = 0.15
_LEAST_AREA = 0.05


class RegionError(ValueError):
    """The landmarks do not outline a usable face region; the message says why."""


@dataclass(frozen=True)
class Ellipse:
    """An upright ellipse around a facial part.

    Attributes:
        x: centre, pixels.
        y: centre, pixels.
        half_width: pixels.
        half_height: pixels.
    """

    x: float
    y: float
    half_width: float
    half_height: float

    def level(self, height: int, width: int) -> Float[np.ndarray, "h w"]:
        """0 at the centre, 1 on the rim, growing outwards."""
        y, x = np.mgrid[:height, :width]
        return np.hypot((x - self.x) / self.half_width, (y - self.y) / self.half_height)


def face_region(landmarks: Float[np.ndarray, "k 2"] | None, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The inner face: hull of brows, eyes, nose, mouth and the outline drawn in a little; of all points where parts are unknown.

    Raises:
        RegionError: no landmarks, points outside the image, a region that touches the border or covers less than 5 %.
    """
    if landmarks is None:
        raise RegionError("no landmarks")
    outline = region_points(landmarks)
    if (outline < 0).any() or (outline > np.array([width - 1, height - 1])).any():
        raise RegionError("landmarks outside the image")
    try:
        region = hull_mask(outline, height, width)
    except DegenerateError as error:
        raise RegionError("landmarks without area") from error
    if region[[0, -1]].any() or region[:, [0, -1]].any():
        raise RegionError("face region touches the border")
    if region.mean() < _LEAST_AREA:
        raise RegionError(f"face region below {_LEAST_AREA:.0%} of the image")
    return region


def region_points(landmarks: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "m 2"]:
    """The points whose hull is the inner face."""
    scheme = landmark_scheme(len(landmarks))
    if scheme is None:
        return landmarks.astype(np.float64)
    inner = landmarks[list(scheme.inner)].astype(np.float64)
    jaw = landmarks[list(scheme.jaw)]
    return np.concatenate([inner, jaw + _JAW_SHRINK * (inner.mean(0) - jaw)])


def eye_distance(landmarks: Float[np.ndarray, "k 2"]) -> float:
    """Pixels between the eye centres; without known parts, the extent of the points over 2.3."""
    scheme = landmark_scheme(len(landmarks))
    if scheme is None:
        return float(np.ptp(landmarks, axis=0).max()) / 2.3
    left, right = (landmarks[list(eye)].mean(0) for eye in scheme.eyes)
    return float(np.hypot(*(right - left)))


def face_parts(landmarks: Float[np.ndarray, "k 2"]) -> dict[str, Ellipse]:
    """Ellipses around eyes, brows, nose and mouth with a margin of skin; empty where the parts are unknown."""
    scheme = landmark_scheme(len(landmarks))
    if scheme is None:
        return {}
    unit = eye_distance(landmarks)
    parts = {
        "left eye": scheme.eyes[0],
        "right eye": scheme.eyes[1],
        "left brow": scheme.brows[0],
        "right brow": scheme.brows[1],
        "nose": scheme.nose,
        "mouth": scheme.mouth,
    }
    return {name: _around(landmarks[list(indices)], unit) for name, indices in parts.items()}


def _around(points: Float[np.ndarray, "k 2"], unit: float) -> Ellipse:
    low, high = points.min(0), points.max(0)
    (x, y), (half_width, half_height) = (low + high) / 2, (high - low) / 2
    margin = 0.16 * unit
    return Ellipse(float(x), float(y), float(half_width + margin), float(half_height + margin))
