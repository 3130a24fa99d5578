"""One landmark pass over a manifest, kept as `.npy` files: detectors are slow and every approach needs the same points."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fairfd.data.faces.crops import write_landmarks
from fairfd.data.manifest.manifest import Manifest
from fairfd.data.manifest.samples import Sample
from tenfold.images import read_image
from tenfold.runs import track

LandmarkDetector = Callable[[Float[np.ndarray, "h w 3"]], Float[np.ndarray, "k 2"] | None]
"""Picture in [0, 1] -> landmarks in pixels, or None without a face; e.g. `MediaPipeLandmarks`."""


def fill_landmarks(manifest: Manifest, folder: Path | str, detect: LandmarkDetector) -> Manifest:
    """Detect landmarks for every image that has none and write them below `folder`.

    Images in which nothing is found stay without landmarks. Files that are there already are taken as they are, so that
    an interrupted pass goes on where it stopped.

    Args:
        manifest: images.
        folder: where the `.npy` files go, under the images' own paths.
        detect: the detector.

    Returns:
        The manifest with its `landmarks` filled in.
    """
    root = Path(folder).resolve()

    def filled(sample: Sample) -> Sample:
        if sample.landmarks:
            return sample
        file = (root / sample.image.lstrip("./")).with_suffix(".npy")
        if not file.is_file():
            points = detect(read_image(manifest.path(sample)))
            if points is None:
                return sample
            write_landmarks(file, points)
        return replace(sample, landmarks=file.as_posix())

    samples = tuple(filled(sample) for sample in track(manifest, "finding landmarks", len(manifest)))
    return Manifest(manifest.root, samples)
