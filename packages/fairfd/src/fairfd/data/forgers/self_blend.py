"""Self-blended image: a face blended with a slightly changed copy of itself (blending artefacts without a donor).

Two copies differ in colour and sharpness, one of them also in position and size; the mask is the face's hull, bent and
softened. Numbers as in the published recipe of self-blended images.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from fairfd.data.faces.regions import RegionError, face_region
from fairfd.data.forgers.registry import ForgeResult, SkippedFaceError, register_forger

_BLEND_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
_REFERENCE_SIDE = 256


@register_forger("self_blend")
@dataclass(frozen=True)
class SelfBlend:
    """Blend of two jittered copies of one image.

    Attributes:
        shift_x: largest horizontal shift, in image widths.
        shift_y: largest vertical shift, in image heights.
        least_scale: size change between this and its inverse.
        elastic_strength: of the mask's bending (alpha), pixels at 256.
        elastic_width: smoothness of the bending (sigma), pixels at 256.
    """

    needs_landmarks: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    version: ClassVar[str] = "1"

    shift_x: float = 0.03
    shift_y: float = 0.015
    least_scale: float = 0.95
    elastic_strength: float = 50.0
    elastic_width: float = 7.0

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],  # noqa: ARG002  # a self-blend has no donor
        base_lm: Float[np.ndarray, "k 2"] | None,
        driving_lm: Float[np.ndarray, "k2 2"] | None,  # noqa: ARG002
        rng: np.random.Generator,
    ) -> ForgeResult:
        """See `Forger`."""
        height, width = base.shape[:2]
        try:
            region = face_region(base_lm, height, width)
        except RegionError as error:
            raise SkippedFaceError(str(error)) from error
        unit = min(height, width) / _REFERENCE_SIDE
        mask = soften(elastic(region, self.elastic_strength * unit, self.elastic_width * unit, rng), unit, rng)
        # Either of the two copies is the changed one: artefacts must not be tied to the face's inside.
        changed, plain = jitter(base, rng), base
        if rng.random() < 0.5:
            changed, plain = plain, changed
        shift = (rng.uniform(-self.shift_y, self.shift_y) * height, rng.uniform(-self.shift_x, self.shift_x) * width)
        scale = rng.uniform(self.least_scale, 1 / self.least_scale)
        ratio = float(rng.choice(_BLEND_RATIOS))
        weight = mask * ratio
        image = plain + weight[..., None] * (move(changed, shift, scale) - plain)
        meta = {"ratio": ratio, "scale": round(scale, 4), "shift": [round(float(s), 3) for s in shift]}
        return ForgeResult(image.clip(0, 1).astype(np.float32), weight, meta)


def jitter(image: Float[np.ndarray, "h w 3"], rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """Colour shift, saturation, brightness and contrast, each with probability 1/2, then sharpening or softening."""
    changed = image
    if rng.random() < 0.5:
        changed = changed + rng.uniform(-20, 20, 3) / 255
    if rng.random() < 0.5:
        grey = changed.mean(2, keepdims=True)
        changed = grey + rng.uniform(0.7, 1.3) * (changed - grey)
    if rng.random() < 0.5:
        middle = changed.mean()
        changed = (changed - middle) * rng.uniform(0.9, 1.1) + middle + rng.uniform(-0.1, 0.1)
    blurred = ndimage.gaussian_filter(changed, (1, 1, 0))
    # Positive amounts sharpen, negative ones soften.
    amount = rng.uniform(0.2, 0.5) if rng.random() < 0.5 else -rng.uniform(0.4, 0.9)
    return (changed + amount * (changed - blurred)).clip(0, 1).astype(np.float32)


def move(image: Float[np.ndarray, "h w 3"], shift: tuple[float, float], scale: float) -> Float[np.ndarray, "h w 3"]:
    """Scale an image about its centre, then shift it by (rows, columns); beyond the border it is mirrored."""
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset = centre - (centre + np.array(shift)) / scale
    channels = [
        ndimage.affine_transform(image[..., c], np.full(2, 1 / scale), offset, order=1, mode="mirror") for c in range(3)
    ]
    return np.stack(channels, 2)


def elastic(
    mask: Bool[np.ndarray, "h w"], strength: float, smoothness: float, rng: np.random.Generator
) -> Bool[np.ndarray, "h w"]:
    """Bend a mask by a smooth random field: Gaussian-filtered noise in [-1, 1] times the strength."""
    height, width = mask.shape
    fields = [ndimage.gaussian_filter(rng.uniform(-1, 1, mask.shape), smoothness) * strength for _ in range(2)]
    rows, columns = np.mgrid[:height, :width]
    return ndimage.map_coordinates(mask.astype(np.float32), [rows + fields[0], columns + fields[1]], order=1) > 0.5


def soften(mask: Bool[np.ndarray, "h w"], unit: float, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Two Gaussian blurs with odd kernels of 5 to 25 pixels (at 256); between them the mask is cut back to its full part.

    The second ramp therefore lies inside the mask. The result is scaled to a maximum of 1.
    """
    first, second = (_sigma(int(rng.integers(2, 13)) * 2 + 1) * unit for _ in range(2))
    core = ndimage.gaussian_filter(mask.astype(np.float32), first) > 0.99
    if not core.any():
        core = mask
    ramp = ndimage.gaussian_filter(core.astype(np.float32), second)
    return (ramp / max(float(ramp.max()), 1e-6)).astype(np.float32)


def _sigma(kernel: int) -> float:
    """The usual standard deviation for a Gaussian kernel of this many pixels."""
    return 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
