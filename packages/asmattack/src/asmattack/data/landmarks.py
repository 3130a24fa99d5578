"""A face parser that needs no weights: ellipses around five landmarks of an aligned face."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from asmattack.data.regions import REGIONS
from tenfold import UserError

TEMPLATE = np.array([(122.5, 141.25), (197.5, 141.25), (160, 178.75), (137.5, 225.25), (182.5, 225.25)]) / 320
"""Left eye, right eye, nose tip, mouth corners of the authors' aligned face, as fractions of the side."""


def _ellipse(u: np.ndarray, v: np.ndarray, u0: float, v0: float, width: float, height: float) -> np.ndarray:
    return ((u - u0) / width) ** 2 + ((v - v0) / height) ** 2 <= 1


def parse_face(landmarks: Float[np.ndarray, "5 2"], height: int, width: int) -> Int64[np.ndarray, "h w"]:
    """Paint the regions around one face's landmarks, later ones over earlier ones.

    Args:
        landmarks: x, y in pixels; left eye, right eye (as seen in the image), nose tip, left and right mouth corner.
        height: of the map.
        width: of the map.

    Raises:
        UserError: the landmarks cannot be an upright list in this order.
    """
    if not np.isfinite(landmarks).all():
        raise UserError("landmarks that are NaN or infinite: five x, y pairs in pixels are needed")
    left, right, nose, *corners = landmarks.astype(float)
    distance = float(np.linalg.norm(right - left))
    if not distance >= 4:
        raise UserError(f"eyes {distance:.1f} pixels apart; are the landmarks five x, y pairs in pixels?")
    across = (right - left) / distance
    down = np.array([-across[1], across[0]])
    origin = (left + right) / 2

    def in_face(point: np.ndarray) -> tuple[float, float]:
        return float((point - origin) @ across) / distance, float((point - origin) @ down) / distance

    nose_u, nose_v = in_face(nose)
    mouth_u, mouth_v = in_face((corners[0] + corners[1]) / 2)
    if mouth_v <= 0:
        raise UserError(
            "the mouth lies above the eyes: landmarks are left eye, right eye, nose, left and right mouth corner"
        )
    half = max(1.15 * float(np.linalg.norm(corners[1] - corners[0])) / (2 * distance), 0.2)
    x, y = np.meshgrid(np.arange(width) + 0.5 - origin[0], np.arange(height) + 0.5 - origin[1])
    u, v = (x * across[0] + y * across[1]) / distance, (x * down[0] + y * down[1]) / distance

    nostrils = 0.10 + 0.16 * np.clip(v / (nose_v + 0.12), 0, 1)
    layers = (
        ("neck", (v > 1.55) & (abs(u) < 0.62)),
        ("cloth", v > 2.25),
        ("hair", _ellipse(u, v, 0.0, 0.30, 1.30, 1.62) & (v < 0.9)),
        ("l_ear", _ellipse(u, v, -1.08, 0.35, 0.16, 0.32)),
        ("r_ear", _ellipse(u, v, 1.08, 0.35, 0.16, 0.32)),
        ("skin", _ellipse(u, v, 0.0, 0.55, 1.05, 1.45)),
        ("l_brow", _ellipse(u, v, -0.5, -0.36, 0.36, 0.10)),
        ("r_brow", _ellipse(u, v, 0.5, -0.36, 0.36, 0.10)),
        ("l_eye", _ellipse(u, v, -0.5, 0.0, 0.27, 0.14)),
        ("r_eye", _ellipse(u, v, 0.5, 0.0, 0.27, 0.14)),
        ("nose", (v >= 0.10) & (v <= nose_v + 0.14) & (abs(u - nose_u) <= nostrils)),
        ("u_lip", _ellipse(u, v, mouth_u, mouth_v, half, 0.20) & (v <= mouth_v)),
        ("l_lip", _ellipse(u, v, mouth_u, mouth_v, half, 0.24) & (v > mouth_v)),
        ("mouth", ((u - mouth_u) / half) ** 2 / 0.72 + ((v - mouth_v) / 0.045) ** 2 <= 1),
    )
    labels = np.zeros((height, width), dtype=np.int64)
    for name, where in layers:
        labels[where] = REGIONS[name]
    return labels


class GeometricParser:
    """Label maps of aligned square faces, or of any face whose five landmarks are known. It cannot notice misalignment."""

    def __call__(
        self,
        images: Float[Tensor, "b 3 h w"],
        landmarks: Float[Tensor, "b 5 2"] | None = None,
        names: Sequence[str] | None = None,  # noqa: ARG002  # not needed
    ) -> Int64[Tensor, "b h w"]:
        """Parse a batch; without `landmarks` the faces must follow the authors' template.

        Raises:
            UserError: images that are not square and have no landmarks.
        """
        height, width = images.shape[-2:]
        if landmarks is None:
            if height != width:
                raise UserError(f"{width}x{height}: without landmarks the geometric parser needs square aligned faces")
            maps = np.broadcast_to(parse_face(TEMPLATE * width, height, width), (len(images), height, width))
        else:
            maps = np.stack([parse_face(points, height, width) for points in landmarks.cpu().numpy()])
        return torch.from_numpy(maps.copy()).to(images.device)
