"""The work on one image: prepare a pristine image, forge it by every approach, encode all in the same way.

Reals and fakes pass the same decode, crop, resize and encode steps: if only fakes were re-encoded, detectors would learn
the codec. These functions run in worker processes; everything they need travels in a job.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float

from fairfd.data.assembly.matching import seeded
from fairfd.data.faces.crops import (
    Square,
    central_square,
    cut,
    face_square,
    find_faces,
    into_square,
    place_shape,
    pose_of,
    write_landmarks,
)
from fairfd.data.faces.landmarks import complete_five, read_landmarks, template_in_crop
from fairfd.data.forgers.external import FinishedFolder
from fairfd.data.forgers.registry import Forger, ForgeResult, SkippedFaceError
from fairfd.data.manifest.manifest import file_sha256
from tenfold.errors import UserError
from tenfold.images import ImageError, read_image, write_image

_MOST_ASPECT = 1.5

NOTHING = Square(0, 0, 0)
"""The part that is used of a picture that cannot be used."""

LandmarkSource = Literal["file", "five points", "face finder", "template"]


@dataclass(frozen=True)
class Encoding:
    """How every image of a benchmark is written.

    Attributes:
        size: side in pixels.
        format: "png" or "jpg".
        quality: of JPEG.
    """

    size: int = 256
    format: Literal["png", "jpg"] = "png"
    quality: int = 95


@dataclass(frozen=True)
class PrepareJob:
    """Prepare one pristine image.

    Attributes:
        image: its name in the manifest.
        path: its file.
        landmarks: `.npy` in the picture's pixels, or None.
        five_points: x1 y1 ... x5 y5 in the picture's pixels, or None.
        crop: cut the face out first.
        encoding: how to write it.
        out: where the prepared image goes; the landmarks beside it under `out_landmarks`.
        out_landmarks: see `out`.
    """

    image: str
    path: Path
    landmarks: Path | None
    five_points: tuple[float, ...] | None
    crop: bool
    encoding: Encoding
    out: Path
    out_landmarks: Path


@dataclass(frozen=True)
class Prepared:
    """A prepared pristine image, or why there is none.

    Attributes:
        image: its name in the manifest.
        square: the part of the picture that is used.
        picture: height and width of the picture.
        landmarks_from: where the landmarks come from.
        sha256: of the written file.
        skipped: the reason, where it could not be prepared.
        unreadable: whether the reason is a damaged file.
    """

    image: str
    square: Square = NOTHING
    picture: tuple[int, int] = (0, 0)
    landmarks_from: LandmarkSource = "template"
    sha256: str = ""
    skipped: str = ""
    unreadable: bool = False


@dataclass(frozen=True)
class Face:
    """A prepared face as forgers need it.

    Attributes:
        path: the original picture.
        square: the part that is used.
        landmarks: `.npy` in pixels of the resized square.
    """

    path: Path
    square: Square
    landmarks: Path


@dataclass(frozen=True)
class ForgeJob:
    """Forge one pristine image by some approaches.

    Attributes:
        image: its name in the manifest.
        base: the face to forge.
        driving: the partner's face.
        picture: height and width of the base's picture.
        landmarks_from: where the base's landmarks come from, for the record.
        seed: of the benchmark.
        encoding: how to write.
        forgers: approach -> forger.
        out: approach -> file of the forgery.
        out_masks: approach -> file of the mask.
    """

    image: str
    base: Face
    driving: Face
    picture: tuple[int, int]
    landmarks_from: LandmarkSource
    seed: int
    encoding: Encoding
    forgers: dict[str, Forger]
    out: dict[str, Path]
    out_masks: dict[str, Path]


@dataclass(frozen=True)
class Forged:
    """A written forgery, or why there is none.

    Attributes:
        image: the base's name in the manifest.
        approach: its label in the benchmark.
        sha256: of the written file.
        has_mask: whether a mask was written.
        meta: provenance, JSON.
        skipped: the reason, where the face could not be forged.
    """

    image: str
    approach: str
    sha256: str = ""
    has_mask: bool = False
    meta: str = ""
    skipped: str = ""


Result = TypeVar("Result", Prepared, Forged)


def from_record(kind: type[Result], record: dict[str, Any], source: Path) -> Result:
    """A result from a dictionary as `dataclasses.asdict` and JSON leave it.

    Args:
        kind: what it is.
        record: its fields.
        source: the journal, for errors.

    Raises:
        UserError: the record is damaged.
    """
    fields: dict[str, Any] = dict(record)
    try:
        if kind is Prepared:
            fields["square"] = Square(**record["square"])
            fields["picture"] = tuple(record["picture"])
        return kind(**fields)
    except (TypeError, KeyError) as error:
        raise UserError(f"{source}: is damaged ({error}); delete it, and all images are made again") from None


def prepare(job: PrepareJob) -> Prepared:
    """Decode, find or read landmarks, crop, resize and encode one pristine image."""
    try:
        picture = read_image(job.path)
        points, source = _picture_landmarks(picture, job)
    except ImageError as error:
        return Prepared(job.image, skipped=str(error), unreadable=True)
    height, width = picture.shape[:2]
    if job.crop:
        if points is None:
            return Prepared(job.image, skipped="no face found")
        square = face_square(pose_of(points))
    elif max(height, width) > _MOST_ASPECT * min(height, width):
        return Prepared(job.image, skipped=f"{width}x{height} is no face crop (crop the faces)")
    else:
        square = central_square(height, width)
    size = job.encoding.size
    placed = template_in_crop(size, size) if points is None else into_square(points, square, size)
    write_image(job.out, cut(picture, square, size), quality=job.encoding.quality)
    write_landmarks(job.out_landmarks, placed)
    return Prepared(job.image, square, (height, width), source, file_sha256(job.out))


def _picture_landmarks(
    picture: Float[np.ndarray, "h w 3"], job: PrepareJob
) -> tuple[Float[np.ndarray, "k 2"] | None, LandmarkSource]:
    """Landmarks in pixels of the picture, from the best source there is; None: the picture is taken as an aligned crop."""
    if job.landmarks is not None:
        return read_landmarks(job.landmarks), "file"
    if job.five_points is not None:
        return complete_five(np.array(job.five_points, np.float64).reshape(5, 2)), "five points"
    poses = find_faces(picture)
    return (place_shape(poses[0]), "face finder") if poses else (None, "template")


def forge(job: ForgeJob) -> list[Forged]:
    """Forge one base by each approach and write the results."""
    base, driving = (_read_face(face, job.encoding.size) for face in (job.base, job.driving))
    return [_forge_one(job, approach, base, driving) for approach in job.forgers]


@dataclass(frozen=True)
class _FacePixels:
    image: Float[np.ndarray, "s s 3"]
    landmarks: Float[np.ndarray, "k 2"]


@lru_cache(maxsize=32)
def _read_face(face: Face, size: int) -> _FacePixels:
    image = cut(read_image(face.path), face.square, size)
    image.flags.writeable = False
    return _FacePixels(image, read_landmarks(face.landmarks))


def _forge_one(job: ForgeJob, approach: str, base: _FacePixels, driving: _FacePixels) -> Forged:
    forger = job.forgers[approach]
    size = job.encoding.size
    try:
        if isinstance(forger, FinishedFolder):
            result = forger.take(job.image, job.base.square, job.picture, size)
        else:
            rng = seeded(job.seed, job.image, approach)
            result = forger(base.image, driving.image, base.landmarks, driving.landmarks, rng)
    except SkippedFaceError as reason:
        return Forged(job.image, approach, skipped=str(reason))
    _check_result(forger, result, size)
    # Free text of a PNG: whoever meets the file alone can tell what it is.
    text = {"synthetic": f"forged face, approach {forger.name}"} if job.encoding.format == "png" else None
    write_image(job.out[approach], result.image, quality=job.encoding.quality, text=text)
    if result.mask is not None:
        write_image(job.out_masks[approach], np.repeat(result.mask[..., None], 3, axis=2))
    meta = json.dumps({"landmarks": job.landmarks_from, **result.meta}, ensure_ascii=False)
    return Forged(job.image, approach, file_sha256(job.out[approach]), result.mask is not None, meta)


def _check_result(forger: Forger, result: ForgeResult, size: int) -> None:
    """A user's forger may return anything: say what is wrong with it."""
    image = result.image
    if not isinstance(image, np.ndarray) or image.shape != (size, size, 3) or image.dtype != np.float32:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"forger {forger.name!r} returned {found}; a float32 array ({size}, {size}, 3) is needed")
