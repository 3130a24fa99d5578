"""Placing the mean landmark shape on a found face: the similarity under which the picture looks most like a mean face.

The mean face is that of the 100 small LFW faces that scikit-image ships; both sides are freed of lighting by local
normalisation, and the similarity (shift, scale, turn) with the highest weighted correlation wins.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from fairfd.data.faces.geometry import sample_at
from fairfd.data.faces.landmarks import mean_shape

_SIDE = 25
# Where the eyes of the mean of these faces are, in its pixels: read off the picture.
_EYES_X = (6.06, 15.12)
_EYES_Y = 7.75
_EYE_DISTANCE = _EYES_X[1] - _EYES_X[0]
# Pictures are brought to this many pixels between the eyes before they are compared.
_WORKING_DISTANCE = 1.5 * _EYE_DISTANCE
_STEPS = (1.0, 0.4, 0.16)
_LEAST_LIKENESS = 0.35


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
