"""Editing of one facial part: it is cut out, the gap filled with skin, and put back larger, smaller or trimmed.

A classical stand-in for the class of mask-guided attribute editing in the paper's list.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from fairfd.data.faces.geometry import batch_to_image, colours_at, image_to_batch
from fairfd.data.faces.poisson_blending import membrane, poisson_blend
from fairfd.data.faces.regions import Ellipse, RegionError, eye_distance, face_parts, face_region
from fairfd.data.forgers.registry import ForgeResult, SkippedFaceError, register_forger

_GROUPS = (("left eye", "right eye"), ("left brow", "right brow"), ("nose",), ("mouth",))
_MARGIN = 0.2


@register_forger("region_edit")
@dataclass(frozen=True)
class RegionEdit:
    """Scale a random facial part about its centre; pairs are edited together, within the face.

    Attributes:
        least_change: the part's scale is at least this factor away from 1.
        most_change: and at most this factor.
    """

    needs_landmarks: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    version: ClassVar[str] = "1"

    least_change: float = 1.15
    most_change: float = 1.4

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],  # noqa: ARG002  # an edit has no donor
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
        assert base_lm is not None
        parts = face_parts(base_lm.astype(np.float64))
        if not parts:
            raise SkippedFaceError(f"the parts of {len(base_lm)} landmarks are not known")
        names = _GROUPS[int(rng.integers(len(_GROUPS)))]
        factor = float(rng.uniform(self.least_change, self.most_change)) ** float(rng.choice([-1, 1]))
        # Brows lie on the region's rim: some forehead belongs to the edit, hair and background do not.
        skin = ndimage.distance_transform_edt(~region) < _MARGIN * eye_distance(base_lm.astype(np.float64))
        image, mask = base, np.zeros((height, width), np.float32)
        for name in names:
            image, changed = rescale_part(image, parts[name], factor, skin)
            mask = np.maximum(mask, changed)
        return ForgeResult(image, mask, {"part": " and ".join(names), "scale": round(factor, 3)})


def rescale_part(
    image: Float[np.ndarray, "h w 3"], part: Ellipse, factor: float, skin: Bool[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """Fill the part's place with skin and put the part back at another size, both on `skin`; returns the image and the changed region."""
    height, width = image.shape[:2]
    before = (part.level(height, width) < 1) & skin
    scaled = replace(part, half_width=part.half_width * factor, half_height=part.half_height * factor)
    after = (scaled.level(height, width) < 1) & skin
    filled = image if factor > 1 else fill_with_skin(image, before)
    # The Poisson equation needs the part's colours on the rim too.
    grown = ndimage.binary_dilation(after)
    rows, columns = np.nonzero(grown)
    centre = np.array([part.x, part.y])
    resized = filled.copy()
    resized[grown] = colours_at(image, centre + (np.stack([columns, rows], 1) - centre) / factor)
    blended = poisson_blend(image_to_batch(resized), image_to_batch(filled), torch.from_numpy(after)[None])
    return batch_to_image(blended), (before | after).astype(np.float32)


def fill_with_skin(image: Float[np.ndarray, "h w 3"], region: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Replace a region by the smooth continuation of its surroundings."""
    return batch_to_image(membrane(image_to_batch(image), torch.from_numpy(region)[None]))
