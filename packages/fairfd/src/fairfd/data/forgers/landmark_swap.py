"""Graphics-based face swap: the donor's inner face laid on the base's landmarks (the class of FaceSwap in the paper's list)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from fairfd.data.faces.geometry import (
    DegenerateError,
    batch_to_image,
    feather,
    fit_thin_plate,
    image_to_batch,
    warp_inside,
)
from fairfd.data.faces.poisson_blending import poisson_blend
from fairfd.data.faces.regions import RegionError, eye_distance, face_region
from fairfd.data.forgers.registry import ForgeResult, SkippedFaceError, register_forger
from tenfold.errors import UserError

_MOST_OUTSIDE = 0.02


@register_forger("landmark_swap")
@dataclass(frozen=True)
class LandmarkSwap:
    """Thin-plate warp of the donor to the base's landmarks, colour transfer, and a Poisson or feathered blend.

    Attributes:
        blend: "poisson" (gradients of the donor) or "feather" (a soft edge).
        colour_transfer: bring the donor's mean and deviation per channel to the base's inside the face.
        softness: width of the feathered edge in eye distances.
    """

    needs_landmarks: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    version: ClassVar[str] = "1"

    blend: str = "poisson"
    colour_transfer: bool = True
    softness: float = 0.2

    def __post_init__(self) -> None:
        if self.blend not in ("poisson", "feather"):
            raise UserError(f"landmark_swap: blend {self.blend!r} is not poisson or feather")

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],
        base_lm: Float[np.ndarray, "k 2"] | None,
        driving_lm: Float[np.ndarray, "k2 2"] | None,
        rng: np.random.Generator,  # noqa: ARG002  # every forger takes one; a swap draws nothing
    ) -> ForgeResult:
        """See `Forger`."""
        height, width = base.shape[:2]
        try:
            region = face_region(base_lm, height, width)
            face_region(driving_lm, height, width)
        except RegionError as error:
            raise SkippedFaceError(str(error)) from error
        assert base_lm is not None
        assert driving_lm is not None
        donor = lay_on(base, driving, driving_lm, base_lm, region)
        if self.colour_transfer:
            donor = match_colours(donor, base, region)
        soft = feather(region, self.softness * eye_distance(base_lm))
        if self.blend == "feather":
            image = base + soft[..., None] * (donor - base)
            return ForgeResult(image.clip(0, 1).astype(np.float32), soft)
        blended = poisson_blend(image_to_batch(donor), image_to_batch(base), torch.from_numpy(region)[None])
        return ForgeResult(batch_to_image(blended), region.astype(np.float32))


def lay_on(
    base: Float[np.ndarray, "h w 3"],
    driving: Float[np.ndarray, "h w 3"],
    landmarks: Float[np.ndarray, "k2 2"],
    target: Float[np.ndarray, "k 2"],
    region: Bool[np.ndarray, "h w"],
) -> Float[np.ndarray, "h w 3"]:
    """The base with the region, and one pixel around it, taken from the driving image warped landmark to landmark.

    Raises:
        SkippedFaceError: different numbers of landmarks, degenerate ones, or more than 2 % of the region would come
            from outside the driving image.
    """
    if len(landmarks) != len(target):
        raise SkippedFaceError(f"{len(landmarks)} and {len(target)} landmarks")
    try:
        inverse = fit_thin_plate(*(torch.from_numpy(np.asarray(p, np.float32))[None] for p in (target, landmarks)))
    except DegenerateError as error:
        raise SkippedFaceError("degenerate landmarks") from error
    # The Poisson equation needs the donor's colour on the rim too.
    grown = ndimage.binary_dilation(region)
    colours, origin = warp_inside(driving, inverse, grown)
    limit = np.array([driving.shape[1] - 1, driving.shape[0] - 1])
    if ((origin < 0) | (origin > limit)).any(1).mean() > _MOST_OUTSIDE:
        raise SkippedFaceError("the donor's face is cut off")
    donor = base.copy()
    donor[grown] = colours
    return donor


def match_colours(
    image: Float[np.ndarray, "h w 3"], reference: Float[np.ndarray, "h w 3"], region: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """Shift and scale each channel so that its mean and deviation inside the region are the reference's."""
    ours, theirs = image[region], reference[region]
    gain = theirs.std(0) / np.maximum(ours.std(0), 1e-3)
    # A nearly flat donor would be stretched to noise.
    return ((image - ours.mean(0)) * gain.clip(0.7, 1.4) + theirs.mean(0)).astype(np.float32)
