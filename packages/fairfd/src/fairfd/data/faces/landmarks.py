"""Facial landmarks: naming their parts, reading them, and the mean shape for aligned crops.

Landmarks are (points, 2) arrays of pixel x, y with pixel centres at integers, in the 68-point order of the iBUG 300-W
annotation, or in the 17-point order of the drawn faces; any other number of points serves for hulls and splines only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fairfd.data.faces.geometry import apply_affine, fit_similarity
from tenfold.errors import UserError
from tenfold.reading import read_array


@dataclass(frozen=True)
class LandmarkScheme:
    """Which points form which part of a face.

    Attributes:
        count: number of points.
        jaw: the outline from ear to ear.
        brows: right and left eyebrow (of the image: left and right).
        eyes: likewise.
        nose: bridge and base.
        mouth: lips.
    """

    count: int
    jaw: tuple[int, ...]
    brows: tuple[tuple[int, ...], tuple[int, ...]]
    eyes: tuple[tuple[int, ...], tuple[int, ...]]
    nose: tuple[int, ...]
    mouth: tuple[int, ...]

    @property
    def inner(self) -> tuple[int, ...]:
        """All points but the outline."""
        return (*self.brows[0], *self.brows[1], *self.eyes[0], *self.eyes[1], *self.nose, *self.mouth)


def _span(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


SCHEME_68 = LandmarkScheme(
    count=68,
    jaw=_span(0, 16),
    brows=(_span(17, 21), _span(22, 26)),
    eyes=(_span(36, 41), _span(42, 47)),
    nose=_span(27, 35),
    mouth=_span(48, 67),
)
"""The iBUG 300-W points."""

SCHEME_17 = LandmarkScheme(
    count=17,
    jaw=_span(0, 4),
    brows=(_span(5, 6), _span(7, 8)),
    eyes=(_span(9, 10), _span(11, 12)),
    nose=(13,),
    mouth=_span(14, 16),
)
"""The points of the drawn faces."""


def landmark_scheme(count: int) -> LandmarkScheme | None:
    """The scheme with this number of points, or None where the parts are not known."""
    return {68: SCHEME_68, 17: SCHEME_17}.get(count)


def read_landmarks(path: Path) -> Float[np.ndarray, "k 2"]:
    """Read a `.npy` of pixel positions (x, y); five points (eyes, nose, mouth corners) are completed to 68.

    Raises:
        UserError: missing, not a (points, 2) array of finite numbers, or fewer than five points.
    """
    points = read_array(path)
    if points.dtype.kind not in "iuf":
        raise UserError(f"{path}: landmarks are numbers, this holds {points.dtype}")
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 5 or not np.isfinite(points).all():
        raise UserError(f"{path}: landmarks of shape {points.shape}; (points, 2) finite numbers, 5 points or more")
    points = points.astype(np.float64)
    return complete_five(points) if len(points) == 5 else points


def mean_shape() -> Float[np.ndarray, "68 2"]:
    """A symmetric mean 68-point face: eye centres at (-0.5, 0) and (0.5, 0), y downwards, unit = eye distance.

    The proportions are those of an average upright face (anthropometric means, rounded); it serves to place masks in
    aligned crops, not to measure faces.
    """
    turn = np.linspace(-1, 1, 17)
    jaw = np.stack([1.15 * np.sin(np.pi / 2 * turn), -0.05 + 2.0 * np.cos(np.pi / 2 * turn).clip(0) ** 0.9], 1)
    along = np.linspace(0, 1, 5)
    brow = np.stack([-1.0 + 0.78 * along, -0.32 - 0.16 * np.sin(np.pi * (0.1 + 0.85 * along))], 1)
    bridge = np.stack([np.zeros(4), np.linspace(0.0, 0.62, 4)], 1)
    side = np.linspace(-1, 1, 5)
    base = np.stack([0.26 * side, 0.74 + 0.06 * np.cos(np.pi / 2 * side)], 1)
    eye = np.array([[-0.73, 0.02], [-0.59, -0.09], [-0.41, -0.09], [-0.27, 0.04], [-0.41, 0.09], [-0.59, 0.09]])
    upper = np.array([[-0.42, 1.20], [-0.26, 1.12], [-0.10, 1.08], [0.0, 1.10]])
    lower = np.array([[0.28, 1.32], [0.12, 1.38], [0.0, 1.39], [-0.12, 1.38], [-0.28, 1.32]])
    inside = np.array(
        [
            [-0.34, 1.20],
            [-0.12, 1.17],
            [0.0, 1.18],
            [0.12, 1.17],
            [0.34, 1.20],
            [0.12, 1.23],
            [0.0, 1.24],
            [-0.12, 1.23],
        ]
    )
    other_side = np.array([-1.0, 1.0])
    outline = np.concatenate([upper, upper[2::-1] * other_side, lower])
    # The other eye starts at its inner corner and also runs clockwise.
    other_eye = eye[[3, 2, 1, 0, 5, 4]] * other_side
    return np.concatenate([jaw, brow, brow[::-1] * other_side, bridge, base, eye, other_eye, outline, inside])


def five_points(points: Float[np.ndarray, "68 2"]) -> Float[np.ndarray, "5 2"]:
    """Eye centres, nose tip and mouth corners of a 68-point face."""
    eyes = [points[list(eye)].mean(0) for eye in SCHEME_68.eyes]
    return np.stack([*eyes, points[30], points[48], points[54]])


def complete_five(points: Float[np.ndarray, "5 2"]) -> Float[np.ndarray, "68 2"]:
    """The mean shape laid over five points (eyes, nose tip, mouth corners) by a similarity."""
    shape = mean_shape()
    return apply_affine(fit_similarity(five_points(shape), points), shape)


CROP_EYE_DISTANCE = 0.27
"""Distance of the eyes in an aligned crop, in crop widths."""
CROP_EYE_HEIGHT = 0.36
"""Height of the eye line in an aligned crop, in crop heights from the top."""


def template_in_crop(height: int, width: int) -> Float[np.ndarray, "68 2"]:
    """The mean shape where an aligned, upright crop has its face: for crops without landmarks of their own."""
    middle = np.array([width / 2 - 0.5, CROP_EYE_HEIGHT * height - 0.5])
    return mean_shape() * (CROP_EYE_DISTANCE * width) + middle


# Points of MediaPipe's 478-point face mesh that lie where the iBUG points do.
_MESH_TO_68 = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87),
)


class MediaPipeLandmarks:
    """68 landmarks of the most prominent face by MediaPipe's face landmarker.

    Args:
        model: the landmarker's `.task` file, which MediaPipe distributes apart from its package.

    Raises:
        UserError: the extra `mediapipe` is not installed, or the model file is missing.
    """

    def __init__(self, model: Path) -> None:
        try:
            import mediapipe  # ty: ignore[import-not-found]  # optional extra
        except ImportError as error:
            raise UserError("landmarks by MediaPipe need the extra: pip install 'fairfd[mediapipe]'") from error
        if not Path(model).is_file():
            raise UserError(f"{model}: no such face landmarker model (a .task file of MediaPipe)")
        self._mediapipe: Any = mediapipe
        tasks = mediapipe.tasks
        options = tasks.vision.FaceLandmarkerOptions(
            base_options=tasks.BaseOptions(model_asset_path=str(model)), num_faces=1
        )
        self._landmarker = tasks.vision.FaceLandmarker.create_from_options(options)

    def __call__(self, image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "68 2"] | None:
        """Landmarks of a picture in [0, 1], or None without a face."""
        height, width = image.shape[:2]
        pixels = np.ascontiguousarray((image * 255).round().astype(np.uint8))
        picture = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=pixels)
        faces = self._landmarker.detect(picture).face_landmarks
        if not faces:
            return None
        mesh = np.array([[point.x * width - 0.5, point.y * height - 0.5] for point in faces[0]])
        return mesh[list(_MESH_TO_68)]
