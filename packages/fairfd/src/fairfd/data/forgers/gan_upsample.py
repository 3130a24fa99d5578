"""A *simulation* of the traces that a generator's upsampling leaves: lost fine detail and a checkerboard. No GAN is run."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float

from fairfd.data.faces.geometry import batch_to_image, feather, image_to_batch
from fairfd.data.faces.regions import Ellipse, RegionError, eye_distance, face_region
from fairfd.data.forgers.registry import ForgeResult, register_forger


@register_forger("gan_upsample_sim")
@dataclass(frozen=True)
class GanUpsampleSim:
    """Decimate by two, upsample, and multiply by a checkerboard, inside the face (without landmarks: a central ellipse).

    Attributes:
        least_gain: amplitude of the checkerboard, relative.
        most_gain: the amplitude is drawn between the two.
        softness: width of the feathered edge in eye distances.
    """

    needs_landmarks: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    version: ClassVar[str] = "1"

    least_gain: float = 0.01
    most_gain: float = 0.03
    softness: float = 0.3

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],  # noqa: ARG002  # a resynthesis has no donor
        base_lm: Float[np.ndarray, "k 2"] | None,
        driving_lm: Float[np.ndarray, "k2 2"] | None,  # noqa: ARG002
        rng: np.random.Generator,
    ) -> ForgeResult:
        """See `Forger`."""
        height, width = base.shape[:2]
        try:
            region, unit = face_region(base_lm, height, width), eye_distance(base_lm) if base_lm is not None else 0.0
        except RegionError:
            centre = Ellipse((width - 1) / 2, (height - 1) / 2, 0.36 * width, 0.42 * height)
            region, unit = centre.level(height, width) < 1, 0.27 * width
        gain = float(rng.uniform(self.least_gain, self.most_gain))
        batch = image_to_batch(base)
        small = F.avg_pool2d(batch, 2, ceil_mode=True, count_include_pad=False)
        image = batch_to_image(F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False))
        row, column = np.indices((height, width))
        checkerboard = 1 + gain * (1 - 2 * ((row + column) % 2))
        resynthesised = (image * checkerboard[..., None]).clip(0, 1)
        soft = feather(region, self.softness * unit)
        forged = base + soft[..., None] * (resynthesised - base)
        return ForgeResult(forged.astype(np.float32), soft, {"gain": round(gain, 4)})
