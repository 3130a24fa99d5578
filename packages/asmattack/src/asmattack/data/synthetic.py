"""The embedded forged-face set: aligned faces drawn by formula, forged in one part."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from asmattack.data.landmarks import TEMPLATE, parse_face
from asmattack.data.layouts import FaceSet
from asmattack.data.regions import REGIONS, region_mask

KINDS = {"eyes": (4, 5, 6, 7), "mouth": (10, 11, 12), "swap": (2, 4, 5, 6, 7, 10, 11, 12)}
"""What a forgery replaces."""

EYE_DISTANCE, ANCHOR, PLACE, JITTER = 18.0, (160.0, 183.0), (24.0, 25.44), 0.6
"""On a side of 48 pixels: eye distance; the template's point (of 320) and where it lies; deviation of each landmark."""


def drawn_landmarks(count: int, size: int, generator: torch.Generator) -> Float[Tensor, "n 5 2"]:
    """Landmarks of `count` faces, in pixels."""
    template = torch.from_numpy(TEMPLATE * 320).float()
    placed = (template - torch.tensor(ANCHOR)) * (EYE_DISTANCE / 75) + torch.tensor(PLACE)
    return (placed + JITTER * torch.randn((count, 5, 2), generator=generator)) * (size / 48)


def box_blur(pixels: Float[Tensor, "n c h w"], width: int) -> Float[Tensor, "n c h w"]:
    """Mean over a square of odd side, edges repeated."""
    return F.avg_pool2d(F.pad(pixels, (width // 2,) * 4, mode="replicate"), width, stride=1)


def paint(labels: Int64[Tensor, "n h w"], generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Each face's regions in its own colours: tone of the skin, hair, background; lips and brows follow the skin."""
    count = len(labels)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((count, *shape), generator=generator)

    skin = draw(0.35, 0.85, 1) * torch.tensor([1.0, 0.78, 0.65]) + draw(-0.04, 0.04, 3)
    hair, background, cloth = draw(0.05, 0.5, 3), draw(0.2, 0.9, 3), draw(0.1, 0.9, 3)
    colours = skin[:, None].repeat(1, 19, 1)
    for name, colour in (
        ("background", background),
        ("hair", hair),
        ("cloth", cloth),
        ("neck", skin * 0.85),
        ("nose", skin * 0.95),
        ("l_brow", skin * 0.45),
        ("r_brow", skin * 0.45),
        ("l_eye", torch.full((count, 3), 0.92)),
        ("r_eye", torch.full((count, 3), 0.92)),
        ("u_lip", skin * torch.tensor([0.95, 0.62, 0.62])),
        ("l_lip", skin * torch.tensor([1.0, 0.66, 0.66])),
        ("mouth", skin * torch.tensor([0.45, 0.25, 0.25])),
    ):
        colours[:, REGIONS[name]] = colour
    flat = colours.gather(1, labels.flatten(1)[:, :, None].expand(-1, -1, 3))
    return flat.transpose(1, 2).reshape(count, 3, *labels.shape[1:])


def paint_eyes(
    faces: Float[Tensor, "n 3 h w"],
    labels: Int64[Tensor, "n h w"],
    landmarks: Float[Tensor, "n 5 2"],
    generator: torch.Generator,
) -> Float[Tensor, "n 3 h w"]:
    """An iris with pupil and highlight in each eye, both looking the same way."""
    count, _, height, width = faces.shape
    unit = (landmarks[:, 1] - landmarks[:, 0]).norm(dim=1).view(-1, 1, 1)
    gaze = (torch.rand((count, 2), generator=generator) - 0.5) * torch.tensor([0.14, 0.05]) * unit[:, 0]
    iris = 0.1 + 0.5 * torch.rand((count, 3, 1, 1), generator=generator)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    for side, region in ((0, REGIONS["l_eye"]), (1, REGIONS["r_eye"])):
        centre = landmarks[:, side] + gaze
        away = ((x - centre[:, 0].view(-1, 1, 1)) ** 2 + (y - centre[:, 1].view(-1, 1, 1)) ** 2).sqrt() / unit
        shine = (
            (x - centre[:, 0].view(-1, 1, 1) + 0.04 * unit) ** 2 + (y - centre[:, 1].view(-1, 1, 1) + 0.04 * unit) ** 2
        ).sqrt()
        inside = labels == region
        for where, colour in (
            (away < 0.13, iris),
            (away < 0.06, torch.full_like(iris, 0.04)),
            (shine / unit < 0.03, torch.full_like(iris, 0.97)),
        ):
            faces = torch.where((where & inside)[:, None], colour, faces)
    return faces


def photograph(faces: Float[Tensor, "n 3 h w"], generator: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Linear shading, a 3x3 blur, luminance grain of high and low frequency."""
    count, _, height, width = faces.shape
    slope = (torch.rand((count, 2, 1, 1, 1), generator=generator) - 0.5) * 0.4
    across = torch.linspace(-1, 1, width).view(1, 1, 1, -1)
    down = torch.linspace(-1, 1, height).view(1, 1, -1, 1)
    shaded = box_blur(faces * (1 + slope[:, 0] * across + slope[:, 1] * down), 3)
    white = torch.randn((count, 1, height, width), generator=generator)
    low = box_blur(white, 5)
    return shaded + 0.015 * (white - low) + 0.02 * low / low.flatten(1).std(1).view(-1, 1, 1, 1)


def forge(
    faces: Float[Tensor, "n 3 h w"], region: Float[Tensor, "n 1 h w"], generator: torch.Generator
) -> Float[Tensor, "n 3 h w"]:
    """What a generator leaves behind, softly blended into the region: blur, a 2x upsampled grid, its pattern, a colour shift."""
    count, _, height, width = faces.shape
    coarse = box_blur(faces, 3)[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pattern = torch.sin(2 * math.pi * x / 4 + 0.4) * torch.sin(2 * math.pi * y / 4 + 0.4)
    shift = 0.04 * torch.randn((count, 3, 1, 1), generator=generator)
    soft = (1.6 * box_blur(region, 5)).clamp(0, 1)
    return faces + soft * (coarse + 0.045 * 1.4 * pattern + shift - faces)


def drawn_set(count: int, size: int = 48, seed: int = 0) -> FaceSet:
    """`count` faces, first the real half (label 0), then the forged (1), of different people.

    The name of a face tells its kind: real, or what was forged (eyes, mouth, swap).
    """
    generator = torch.Generator().manual_seed(seed)
    landmarks = drawn_landmarks(count, size, generator)
    label_maps = torch.from_numpy(np.stack([parse_face(points, size, size) for points in landmarks.numpy()]))
    faces = photograph(paint_eyes(paint(label_maps, generator), label_maps, landmarks, generator), generator)
    labels = (torch.arange(count) >= count // 2).long()
    drawn = torch.randint(len(KINDS), (count,), generator=generator).tolist()
    kinds = [list(KINDS)[kind] if fake else "real" for kind, fake in zip(drawn, labels.tolist(), strict=True)]
    region = torch.cat(
        [region_mask(label_maps[i : i + 1], KINDS.get(kind, ())) for i, kind in enumerate(kinds)]
    ).float()
    faces = torch.where((labels == 1)[:, None, None, None], forge(faces, region, generator), faces)
    faces = faces + 0.008 * torch.randn(faces.shape, generator=generator)
    names = tuple(f"{kind}-{index}.png" for index, kind in enumerate(kinds))
    pixels = (faces.clamp(0, 1) * 255).round().byte()
    return FaceSet(pixels, labels, names, tuple(str(i) for i in range(count)), landmarks, label_maps)
