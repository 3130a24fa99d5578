"""The views of the official code, drawn for a whole batch at once on 8-bit pictures (data_preprocessing: loader.py, randaugment.py).

The arithmetic is Pillow's, which the official code calls picture by picture. Not torchvision's functions: they take one strength for a whole
batch, and importing them loads torch's compiler, seconds in every fresh process, and a deployed client answers every message in one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Bytes = UInt8[Tensor, "b 3 h w"]
Strength = Float[Tensor, " b"]


def uniform(count: int, low: int | float, high: int | float, generator: torch.Generator) -> Strength:
    """Numbers from `low` to `high`."""
    return low + (high - low) * torch.rand(count, generator=generator)


def blend(degenerate: Bytes, images: Bytes, factor: Strength) -> Bytes:
    """From `degenerate` (factor 0) over the picture (1) to beyond it, cut to whole levels like Pillow's `blend`."""
    start = degenerate.float()
    mixed = start + factor[:, None, None, None] * (images.float() - start)
    return mixed.clamp(0, 255).to(torch.uint8)


def grey(images: Bytes) -> Bytes:
    """Luma by ITU-R 601 in Pillow's whole numbers, on three channels."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)[:, None, None]
    luma = (images.int() * weights).sum(1, keepdim=True) + 0x8000 >> 16
    return luma.to(torch.uint8).expand_as(images)


def brightness(images: Bytes, factor: Strength) -> Bytes:
    """Towards black."""
    return blend(torch.zeros_like(images), images, factor)


def color(images: Bytes, factor: Strength) -> Bytes:
    """Towards its grey picture."""
    return blend(grey(images), images, factor)


def contrast(images: Bytes, factor: Strength) -> Bytes:
    """Towards the mean grey of the picture."""
    mean = (grey(images)[:, :1].double().mean((2, 3), keepdim=True) + 0.5).to(torch.uint8)
    return blend(mean.expand_as(images), images, factor)


def sharpness(images: Bytes, factor: Strength) -> Bytes:
    """Towards the picture smoothed over 3 x 3 pixels with 5/13 in the middle; the border stays."""
    h, w = images.shape[2:]
    whole = images.int()
    total = 4 * whole[:, :, 1:-1, 1:-1]
    for top in range(3):
        for left in range(3):
            total = total + whole[:, :, top : top + h - 2, left : left + w - 2]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)
    return blend(smooth, images, factor)


def posterize(images: Bytes, strength: Strength) -> Bytes:
    """Keep the upper bits, as many as the whole part of the strength says."""
    return images & (0xFF << (8 - strength.int()) & 0xFF).to(torch.uint8)[:, None, None, None]


def solarize(images: Bytes, threshold: Strength) -> Bytes:
    """Turn over what is as bright as the threshold or brighter."""
    return torch.where(images < threshold[:, None, None, None], images, 255 - images)


def auto_contrast(images: Bytes, _: Strength) -> Bytes:
    """Stretch each channel from its darkest and brightest pixel to the whole range."""
    values = images.double()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    # Not `255 / tensor`: torch multiplies by the reciprocal there, and the brightest pixel may end at 254.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    stretched = (values * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def equalize(images: Bytes, _: Strength) -> Bytes:
    """Spread each channel's levels so that their shares are even (Pillow's `equalize`)."""
    levels = images.flatten(2).long()
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long).scatter_add_(2, levels, torch.ones_like(levels))
    last = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256))
    return table.gather(2, levels).to(torch.uint8).reshape(images.shape)


def identity(images: Bytes, _: Strength) -> Bytes:
    """The picture."""
    return images


def transform(images: Bytes, matrices: Float[Tensor, "b 2 3"]) -> Bytes:
    """Take each pixel from where its matrix sends it, nearest neighbour, black outside.

    Args:
        images: to transform.
        matrices: from the middles of the new pixels to places in the old picture, in pixels, x first.
    """
    b, _, h, w = images.shape
    x, y = torch.arange(w) + 0.5, torch.arange(h)[:, None] + 0.5
    rows = matrices[:, :, :, None, None]
    places = (rows[:, :, 0] * x + rows[:, :, 1] * y + rows[:, :, 2]).floor().long()
    column, row = places[:, 0], places[:, 1]
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    flat = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).reshape(b, 1, -1).expand(-1, 3, -1)
    return images.flatten(2).gather(2, flat).reshape(images.shape) * inside[:, None]


def _matrices(strength: Strength, row: int, column: int, scale: int = 1) -> Float[Tensor, "b 2 3"]:
    """The identity with a strength at one place."""
    found = torch.eye(2, 3).repeat(len(strength), 1, 1)
    found[:, row, column] = strength * scale
    return found


def rotate(images: Bytes, degrees: Strength) -> Bytes:
    """Turn about the middle."""
    h, w = images.shape[2:]
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    middle = torch.tensor([w / 2, h / 2])
    return transform(images, torch.cat([turn, (middle - turn @ middle)[:, :, None]], 2))


def shear_x(images: Bytes, strength: Strength) -> Bytes:
    """Move each row by its height times the strength."""
    return transform(images, _matrices(strength, 0, 1))


def shear_y(images: Bytes, strength: Strength) -> Bytes:
    """Move each column by its place times the strength."""
    return transform(images, _matrices(strength, 1, 0))


def translate_x(images: Bytes, strength: Strength) -> Bytes:
    """Move sideways by a share of the width."""
    return transform(images, _matrices(strength, 0, 2, images.shape[3]))


def translate_y(images: Bytes, strength: Strength) -> Bytes:
    """Move up or down by a share of the height."""
    return transform(images, _matrices(strength, 1, 2, images.shape[2]))


class Operation(NamedTuple):
    """An operation of RandAugment and the range of its uniform strength.

    Attributes:
        apply: changes a batch, each picture with its own strength.
        low: of the strength.
        high: of the strength.
    """

    apply: Callable[[Bytes, Strength], Bytes]
    low: float = 0.0
    high: float = 1.0


OPERATIONS = {
    "AutoContrast": Operation(auto_contrast),
    "Brightness": Operation(brightness, 0.05, 0.95),
    "Color": Operation(color, 0.05, 0.95),
    "Contrast": Operation(contrast, 0.05, 0.95),
    "Equalize": Operation(equalize),
    "Identity": Operation(identity),
    "Posterize": Operation(posterize, 4, 8),
    "Rotate": Operation(rotate, -30, 30),
    "Sharpness": Operation(sharpness, 0.05, 0.95),
    "ShearX": Operation(shear_x, -0.3, 0.3),
    "ShearY": Operation(shear_y, -0.3, 0.3),
    "Solarize": Operation(solarize, 0, 256),
    "TranslateX": Operation(translate_x, -0.3, 0.3),
    "TranslateY": Operation(translate_y, -0.3, 0.3),
}
"""Of the official RandAugment. Its enhancements only darken, grey, flatten and blur."""


def three_operations(images: Bytes, generator: torch.Generator) -> Bytes:
    """Three operations a picture, drawn with replacement, each at uniform strength: the official code takes a magnitude and never reads it."""
    operations = list(OPERATIONS.values())
    images = images.clone()
    for chosen in torch.randint(len(operations), (3, len(images)), generator=generator):
        for index, operation in enumerate(operations):
            here = (chosen == index).nonzero()[:, 0]
            strength = uniform(len(here), operation.low, operation.high, generator)
            if len(here):
                images[here] = operation.apply(images[here], strength)
    return images


CUTOUT_COLOR = (125, 123, 114)


def _band(size: int, side: Strength, generator: torch.Generator) -> Bool[Tensor, "b n"]:
    """The pixels along one axis that Cutout fills: from its first one to its last, both included."""
    # numpy's `uniform(size)` draws from (1, size], not from [0, size): the anchor never lies in the first pixel.
    anchor = uniform(len(side), size, 1, generator)
    first = (anchor - side / 2).clamp(min=0).floor()
    last = (first + side).clamp(max=size).floor()
    pixels = torch.arange(size)
    return (pixels >= first[:, None]) & (pixels <= last[:, None])


def cutout(images: Bytes, generator: torch.Generator) -> Bytes:
    """A grey square of up to half the width and one pixel more, cut off at the right and lower border only."""
    b, _, h, w = images.shape
    side = w * uniform(b, 0, 0.5, generator)
    columns, rows = _band(w, side, generator), _band(h, side, generator)
    square = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(square, torch.tensor(CUTOUT_COLOR, dtype=torch.uint8)[:, None, None], images)


def _interpolation(first: Int[Tensor, " b"], length: Int[Tensor, " b"], size: int) -> Float[Tensor, "b n n"]:
    """Matrices that stretch `length` pixels from `first` on over the whole side, bilinearly; nothing outside the crop is seen."""
    centre = (torch.arange(size) + 0.5) * length[:, None] / size - 0.5
    place = centre.clamp(min=0).minimum(length[:, None] - 1.0)
    low = place.floor()
    fraction = place - low
    high = torch.minimum(low + 1, length[:, None] - 1.0)
    one_hot = [F.one_hot((each + first[:, None]).long(), size).float() for each in (low, high)]
    return one_hot[0] * (1 - fraction)[:, :, None] + one_hot[1] * fraction[:, :, None]


def random_resized_crop(images: Bytes, generator: torch.Generator) -> Bytes:
    """A crop of 8 to 100 % of the area and of 3/4 to 4/3 in ratio, enlarged to the whole (torchvision's `RandomResizedCrop`)."""
    b, _, h, w = images.shape
    tries = (b, 10)
    area = h * w * (0.08 + 0.92 * torch.rand(tries, generator=generator))
    ratio = torch.exp(math.log(3 / 4) + math.log(16 / 9) * torch.rand(tries, generator=generator))
    width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (width > 0) & (width <= w) & (height > 0) & (height <= h)
    # The first of ten tries that fits, else the whole picture.
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    width = torch.where(found, width.gather(1, first)[:, 0], w)
    height = torch.where(found, height.gather(1, first)[:, 0], h)
    left = (torch.rand(b, generator=generator) * (w - width + 1)).long()
    top = (torch.rand(b, generator=generator) * (h - height + 1)).long()
    wide = torch.einsum("bchw,bvw->bchv", images.float(), _interpolation(left, width, w)).round()
    return torch.einsum("bchw,buh->bcuw", wide, _interpolation(top, height, h)).round().to(torch.uint8)


def turn_hue(images: Bytes, turn: Strength) -> Bytes:
    """Move each colour around the hue circle, at its value and saturation.

    Args:
        images: to change.
        turn: share of the circle.
    """
    rgb = images.float() / 255
    value, index = rgb.max(1)
    chroma = value - rgb.amin(1)
    red, green, blue = rgb.unbind(1)
    safe = chroma.clamp(min=1e-6)
    sector = torch.stack([(green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4], 1)
    hue = sector.gather(1, index[:, None])[:, 0] + 6 * turn[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = (hue + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return (255 * torch.stack(channels, 1)).round().clamp(0, 255).to(torch.uint8)


JITTERS = {
    "brightness": Operation(brightness, 0.2, 1.8),
    "contrast": Operation(contrast, 0.2, 1.8),
    "saturation": Operation(color, 0.2, 1.8),
    "hue": Operation(turn_hue, -0.2, 0.2),
}


def color_jitter(images: Bytes, generator: torch.Generator) -> Bytes:
    """Brightness, contrast, saturation and hue in an order of each picture's own (torchvision's `ColorJitter(.8, .8, .8, .2)`)."""
    images = images.clone()
    jitters = list(JITTERS.values())
    strengths = [uniform(len(images), each.low, each.high, generator) for each in jitters]
    order = torch.rand(len(images), len(jitters), generator=generator).argsort(1)
    for place in range(len(jitters)):
        for index, jitter in enumerate(jitters):
            here = (order[:, place] == index).nonzero()[:, 0]
            if len(here):
                images[here] = jitter.apply(images[here], strengths[index][here])
    return images


def with_probability(
    share: float, change: Callable[[Bytes], Bytes], images: Bytes, generator: torch.Generator
) -> Bytes:
    """Each picture changed with a probability."""
    chosen = torch.rand(len(images), generator=generator) < share
    return torch.where(chosen[:, None, None, None], change(images), images)
