"""From arbitrary photographs to face crops with landmarks, without downloads.

The benchmark's images are face crops (paper: RFW). Faces are found by the LBP cascade that scikit-image ships and the mean
landmark shape is laid on them; better landmarks, where a user has them, go into the manifest.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from scipy import ndimage
from torch import Tensor

from fairfd.data.faces.geometry import sample_at
from fairfd.data.faces.landmarks import CROP_EYE_DISTANCE, CROP_EYE_HEIGHT, landmark_scheme, mean_shape
from fairfd.data.manifest.manifest import Manifest
from fairfd.data.manifest.samples import Sample, few
from tenfold.errors import UserError
from tenfold.files import atomic_path, check_writable
from tenfold.folders import Job, check_jobs, work_on_files
from tenfold.images import list_images, read_image, write_image
from tenfold.runs import track


@dataclass(frozen=True)
class Pose:
    """A face in the picture plane.

    Attributes:
        x: middle between the eyes, pixels.
        y: likewise.
        eye_distance: pixels.
        turn: radians, clockwise in the picture.
    """

    x: float
    y: float
    eye_distance: float
    turn: float = 0.0


# The finder looks at pictures no larger than this: a face of a tenth of the picture is still 64 pixels wide.
_FINDER_SIDE = 640
# Where the eyes are in a box of the cascade, and how far apart, in box widths (averages over portraits).
_BOX_EYE_HEIGHT = 0.375
_BOX_EYE_DISTANCE = 0.40


@dataclass(frozen=True)
class Square:
    """A square part of a picture; it may reach over the border.

    Attributes:
        left: pixels.
        top: pixels.
        side: pixels.
    """

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class CropReport:
    """What became of a folder of photographs.

    Attributes:
        written: the crops.
        without_face: photographs in which no face was found.
        too_small: photographs whose faces are all too small.
        skipped: a line for each photograph that could not be read.
    """

    written: tuple[Path, ...]
    without_face: tuple[Path, ...]
    too_small: tuple[Path, ...]
    skipped: tuple[str, ...] = ()


def find_faces(image: Float[np.ndarray, "h w 3"]) -> list[Pose]:
    """Upright, roughly frontal faces, largest first, with the position, distance and turn of the eyes."""
    height, width = image.shape[:2]
    factor = min(1.0, _FINDER_SIDE / max(height, width))
    grey = torch.from_numpy(image.mean(2, dtype=np.float32))[None, None]
    if factor < 1:
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        grey = F.interpolate(grey, size=size, mode="bilinear", antialias=True, align_corners=False)
    pixels = (grey[0, 0].numpy() * 255).round().astype(np.uint8)
    shorter = min(pixels.shape)
    smallest = max(24, shorter // 12)
    if shorter < smallest:
        return []
    boxes = sorted(_boxes(pixels, smallest, shorter), key=lambda box: -box["width"])
    poses: list[Pose] = []
    for box in boxes:
        side = box["width"] / factor
        x, y = box["c"] / factor + side / 2, box["r"] / factor + _BOX_EYE_HEIGHT * side
        # The cascade often reports one face several times: keep its largest box.
        if all(np.hypot(pose.x - x, pose.y - y) > 1.2 * pose.eye_distance for pose in poses):
            poses.append(Pose(x, y, _BOX_EYE_DISTANCE * side))
    return [align_mean_face(image, pose) for pose in poses]


def _boxes(pixels: Integer[np.ndarray, "h w"], smallest: int, largest: int) -> list[dict[str, int]]:
    """Boxes of the cascade with sides in this range; the sizes are tried more densely where none is found at first."""
    for factor in (1.2, 1.08):
        boxes = _cascade().detect_multi_scale(
            pixels, scale_factor=factor, step_ratio=1.3, min_size=(smallest, smallest), max_size=(largest, largest)
        )
        if boxes:
            return boxes
    return []


@lru_cache(maxsize=1)
def _cascade() -> Any:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def pose_of(landmarks: Float[np.ndarray, "k 2"]) -> Pose:
    """Position, distance and turn of the eyes from landmarks; without known eyes from the extent of the points."""
    scheme = landmark_scheme(len(landmarks))
    if scheme is None:
        low, high = landmarks.min(0), landmarks.max(0)
        x, y = (low + high) / 2
        return Pose(float(x), float(y), float((high - low).max()) / 2.3)
    left, right = (landmarks[list(eye)].mean(0) for eye in scheme.eyes)
    middle, across = (left + right) / 2, right - left
    return Pose(*map(float, middle), float(np.hypot(*across)), float(np.arctan2(across[1], across[0])))


def face_square(pose: Pose) -> Square:
    """The square around a face in which the eyes stand as `template_in_crop` expects them."""
    side = pose.eye_distance / CROP_EYE_DISTANCE
    return Square(round(pose.x - side / 2), round(pose.y - CROP_EYE_HEIGHT * side), max(1, round(side)))


def central_square(height: int, width: int) -> Square:
    """The largest square in the middle of a picture."""
    side = min(height, width)
    return Square((width - side) // 2, (height - side) // 2, side)


def cut(image: Float[np.ndarray, "h w 3"], square: Square, size: int) -> Float[np.ndarray, "s s 3"]:
    """Cut a square out (beyond the border the picture is mirrored) and resize it, bicubic with antialiasing."""
    height, width = image.shape[:2]
    rows = np.arange(square.top, square.top + square.side)
    columns = np.arange(square.left, square.left + square.side)
    patch = image[_mirrored(rows, height)[:, None], _mirrored(columns, width)]
    if square.side == size:
        return patch
    tensor = torch.from_numpy(np.ascontiguousarray(patch)).permute(2, 0, 1)[None]
    resized = F.interpolate(tensor, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).clamp(0, 1).numpy())


def _mirrored(index: np.ndarray, length: int) -> np.ndarray:
    index = np.mod(index, 2 * length)
    return np.where(index < length, index, 2 * length - 1 - index)


def into_square(points: Float[np.ndarray, "k 2"], square: Square, size: int) -> Float[np.ndarray, "k 2"]:
    """Positions in the picture -> positions in the resized square."""
    return (points - np.array([square.left, square.top]) + 0.5) * (size / square.side) - 0.5


def crop_faces(
    folder: Path | str,
    out: Path | str,
    size: int = 256,
    smallest: int = 48,
    faces: Literal["largest", "all"] = "largest",
    overwrite: bool = False,
) -> CropReport:
    """Cut the faces out of photographs.

    Each crop is written as PNG under its photograph's name (with `faces="all"` and several faces: name-1, name-2, ...),
    with the mean landmark shape placed on it as `.npy` beside it.

    Args:
        folder: photographs, searched recursively.
        out: where the crops go, in the same subfolders.
        size: side of the crops, pixels.
        smallest: faces narrower than this (in pixels of the photograph) are passed over.
        faces: only the largest face of each photograph, or all.
        overwrite: write over crops that are there, never over a photograph.

    Raises:
        UserError: no photographs, no face in any of them, or a crop that would take the place of something.
    """
    if not 16 <= size <= 8192 or smallest < 1:
        raise UserError(f"size {size}, smallest {smallest}: crops have 16 to 8192 pixels, faces at least 1")
    folder, out = Path(folder), Path(out)
    photographs = list_images(folder)
    root = folder if folder.is_dir() else folder.parent
    names = {path: path.relative_to(root).with_suffix("").as_posix() for path in photographs}
    if out.is_file():
        raise UserError(f"{out}: is a file; choose a folder for the crops")
    check_writable(out / "crop.png")
    jobs = [Job(path, out / f"{name}.png") for path, name in names.items()]
    # Landmarks that lie beside a photograph are an input too.
    jobs += [Job(path.with_suffix(".npy"), out / f"{name}.npy") for path, name in names.items()]
    check_jobs(jobs, overwrite)
    inputs = {job.source.resolve() for job in jobs}
    written: list[Path] = []
    # Photographs without a large face, and whether they have a small one.
    passed_over: dict[Path, bool] = {}

    def work(path: Path) -> None:
        image = read_image(path)
        found = find_faces(image)
        large = [pose for pose in found if pose.eye_distance / _BOX_EYE_DISTANCE >= smallest]
        if not large:
            passed_over[path] = bool(found)
        chosen = large if faces == "all" else large[:1]
        for number, pose in enumerate(chosen, 1):
            target = out / f"{names[path]}{'' if len(chosen) == 1 else f'-{number}'}.png"
            # Another photograph may have the very name that a second face gets.
            if target in written or target.resolve() in inputs or (target.exists() and not overwrite):
                raise UserError(
                    f"{path}: its face {number} would become {target}, which is there; rename the photograph"
                )
            square = face_square(pose)
            write_image(target, cut(image, square, size))
            write_landmarks(target.with_suffix(".npy"), into_square(place_shape(pose), square, size))
            written.append(target)

    report = work_on_files(track(photographs, "cropping faces"), work, alone=folder.is_file())
    if not written:
        tried = few([path.name for path in photographs])
        raise UserError(
            f"{folder}: no face of {smallest} pixels or more found in {len(photographs)} pictures ({tried})"
        )
    without_face = tuple(path for path, has_face in passed_over.items() if not has_face)
    too_small = tuple(path for path, has_face in passed_over.items() if has_face)
    return CropReport(tuple(written), without_face, too_small, tuple(report.skipped))


def write_landmarks(path: Path, landmarks: Float[np.ndarray, "k 2"]) -> None:
    """Write landmarks as float32 `.npy`, complete or not at all."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, landmarks.astype(np.float32))


_SIDE = 25
# Where the eyes of the mean of these faces are, in its pixels: read off the picture.
_EYES_X = (6.06, 15.12)
_EYES_Y = 7.75
_EYE_DISTANCE = _EYES_X[1] - _EYES_X[0]
# Pictures are brought to this many pixels between the eyes before they are compared.
_WORKING_DISTANCE = 1.5 * _EYE_DISTANCE
_STEPS = (1.0, 0.4, 0.16)
_LEAST_LIKENESS = 0.35


def place_shape(pose: Pose) -> Float[np.ndarray, "68 2"]:
    """The mean 68-point shape in this pose."""
    cosine, sine = np.cos(pose.turn), np.sin(pose.turn)
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    return mean_shape() @ rotation.T * pose.eye_distance + np.array([pose.x, pose.y])


def align_mean_face(image: Float[np.ndarray, "h w 3"], guess: Pose) -> Pose:
    """Refine a rough pose, e.g. from a face box; the guess stays where nothing looks like a face."""
    grey = torch.from_numpy(image.mean(2, dtype=np.float32))[None, None]
    factor = _WORKING_DISTANCE / guess.eye_distance
    size = [max(8, round(side * factor)) for side in grey.shape[-2:]]
    small = F.interpolate(grey, size=size, mode="bilinear", antialias=True, align_corners=False)
    normalised = _local_normalise(small)
    pose = Pose((guess.x + 0.5) * factor - 0.5, (guess.y + 0.5) * factor - 0.5, _WORKING_DISTANCE)
    likeness = 0.0
    for step in _STEPS:
        pose, likeness = _best_of(_around(pose, step), normalised)
    if likeness < _LEAST_LIKENESS:
        return guess
    return Pose((pose.x + 0.5) / factor - 0.5, (pose.y + 0.5) / factor - 0.5, pose.eye_distance / factor, pose.turn)


def _around(pose: Pose, step: float) -> Float[Tensor, "n 4"]:
    """Candidates x, y, eye distance, turn on a grid around the pose."""
    shift = torch.linspace(-0.15, 0.15, 7) * step * pose.eye_distance
    scale = pose.eye_distance * (torch.linspace(-0.15, 0.15, 5) * step).exp()
    turn = pose.turn + torch.linspace(-0.3, 0.3, 7) * step
    return torch.cartesian_prod(pose.x + shift, pose.y + shift, scale, turn)


def _best_of(candidates: Float[Tensor, "n 4"], image: Float[Tensor, "1 1 h w"]) -> tuple[Pose, float]:
    """The candidate under which the picture correlates best with the mean face, and the correlation."""
    x, y, scale, turn = candidates.unbind(1)
    cosine, sine = scale * turn.cos(), scale * turn.sin()
    rotation = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    face, weight, grid = _mean_face()
    points = torch.einsum("nij,pj->npi", rotation, grid) + torch.stack([x, y], 1)[:, None]
    patches = sample_at(image, points[None])[0, 0]
    patches = patches - patches @ weight[:, None]
    correlation = patches @ (weight * face) / ((patches.square() @ weight) * (weight @ face.square())).sqrt()
    best = int(correlation.argmax())
    return Pose(*candidates[best].tolist()), float(correlation[best])


@lru_cache(maxsize=1)
def _mean_face() -> tuple[Float[Tensor, " p"], Float[Tensor, " p"], Float[Tensor, "p 2"]]:
    """The mean face (weighted mean 0), its weights (sum 1) and its pixel positions in eye distances from between the eyes."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    faces = np.load(Path(spec.origin).parent / "data" / "lfw_subset.npy", allow_pickle=False)[:100]
    mean = torch.from_numpy(faces.mean(0).astype(np.float32))[None, None]
    large = F.interpolate(mean, scale_factor=1.5, mode="bicubic", align_corners=False)
    face = F.interpolate(_local_normalise(large), size=(_SIDE, _SIDE), mode="bilinear", align_corners=False).reshape(-1)
    y, x = torch.meshgrid(torch.arange(_SIDE), torch.arange(_SIDE), indexing="ij")
    middle = torch.tensor([sum(_EYES_X) / 2, _EYES_Y])
    grid = (torch.stack([x.reshape(-1), y.reshape(-1)], 1) - middle) / _EYE_DISTANCE
    # Eyes, nose and mouth count; hair and background do not.
    weight = torch.exp(-((grid[:, 0] / 1.1) ** 4) - ((grid[:, 1] - 0.55) / 1.25) ** 4)
    weight = weight / weight.sum()
    return face - weight @ face, weight, grid


def _local_normalise(image: Float[Tensor, "1 1 h w"]) -> Float[Tensor, "1 1 h w"]:
    """Subtract the local mean and divide by the local deviation: takes the lighting out."""
    grey = image[0, 0].numpy()
    centred = grey - ndimage.gaussian_filter(grey, 3.0, truncate=2)
    deviation = np.sqrt(ndimage.gaussian_filter(centred**2, 4.5, truncate=1.5) + 1e-4)
    return torch.from_numpy(centred / deviation)[None, None]


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
