"""Augmentation of whole batches (section 5): shift, flip, channel exchange, channel random erasing.

Random numbers are drawn for the whole batch at once from one generator, as small tensors of choices, and then applied
without a loop over pictures: a batch split over processes is augmented exactly as it would be in one.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Subtract ImageNet's mean and divide by its standard deviation, of pictures in [0, 1]."""
    mean, std = (torch.tensor(each, device=pictures.device).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (pictures - mean) / std


def shift_and_flip(
    pictures: Float[Tensor, "b 3 h w"], offsets: Int[Tensor, "b 2"], flipped: Bool[Tensor, " b"], pad: int
) -> Float[Tensor, "b 3 h w"]:
    """Pad with black, crop back to the size at an offset, mirror some (section 5: pad 10, random crop, flip).

    Args:
        pictures: in [0, 1].
        offsets: row and column of the crop, 0 to 2 pad.
        flipped: which to mirror.
        pad: pixels added at each edge.
    """
    b, _, h, w = pictures.shape
    padded = F.pad(pictures, (pad, pad, pad, pad))
    rows = offsets[:, :1] + torch.arange(h, device=pictures.device)
    columns = torch.arange(w, device=pictures.device).expand(b, w)
    columns = offsets[:, 1:] + torch.where(flipped[:, None], w - 1 - columns, columns)
    picture = torch.arange(b, device=pictures.device)
    return padded[picture[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def colour_jitter(
    pictures: Float[Tensor, "b 3 h w"],
    brightness: Float[Tensor, " b"],
    contrast: Float[Tensor, " b"],
    saturation: Float[Tensor, " b"],
) -> Float[Tensor, "b 3 h w"]:
    """Scale brightness, then contrast about the mean grey, then saturation, as torchvision defines them; clipped to [0, 1]."""
    grey_weights = pictures.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    pictures = (pictures * brightness.view(-1, 1, 1, 1)).clamp(0, 1)
    mean = (pictures * grey_weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pictures = (mean + (pictures - mean) * contrast.view(-1, 1, 1, 1)).clamp(0, 1)
    grey = (pictures * grey_weights).sum(1, keepdim=True)
    return (grey + (pictures - grey) * saturation.view(-1, 1, 1, 1)).clamp(0, 1)


def exchange_channel(pictures: Float[Tensor, "b 3 h w"], channel: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Copy one channel to the other two: what a visible picture has in common with an infrared one (Ye et al., ICCV 2021)."""
    chosen = channel.view(-1, 1, 1, 1).expand(-1, 1, *pictures.shape[2:])
    return pictures.gather(1, chosen).expand(-1, 3, -1, -1)


def erase(
    pictures: Float[Tensor, "b 3 h w"],
    corner: Float[Tensor, "b 2"],
    size: Float[Tensor, "b 2"],
    erased: Bool[Tensor, " b"],
) -> Float[Tensor, "b 3 h w"]:
    """Fill a rectangle with ImageNet's mean colour, channel by channel.

    Args:
        pictures: in [0, 1].
        corner: top and left edge as a share of the free height and width.
        size: height and width as a share of the picture's.
        erased: which pictures are touched.
    """
    h, w = pictures.shape[2:]
    top, left = corner[:, 0] * (1 - size[:, 0]), corner[:, 1] * (1 - size[:, 1])
    rows = (torch.arange(h, device=pictures.device) + 0.5) / h
    columns = (torch.arange(w, device=pictures.device) + 0.5) / w
    in_rows = (rows >= top[:, None]) & (rows < (top + size[:, 0])[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + size[:, 1])[:, None])
    inside = in_rows[:, :, None] & in_columns[:, None, :] & erased[:, None, None]
    mean = pictures.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    return torch.where(inside[:, None], mean, pictures)


def augment(
    pictures: Float[Tensor, "b 3 h w"], generator: torch.Generator, pad: int, part: slice
) -> Float[Tensor, "b 3 h w"]:
    """The plain training view of either modality: shift and flip, normalised.

    Args:
        pictures: those of the batch that this process holds, in [0, 1].
        generator: on the CPU; drawn from for the whole batch.
        pad: pixels of shift in each direction.
        part: where in the whole batch these pictures lie; its step is the size of the whole batch.
    """
    whole = part.step
    offsets = torch.randint(0, 2 * pad + 1, (whole, 2), generator=generator)
    flipped = torch.rand(whole, generator=generator) < 0.5
    rows, device = slice(part.start, part.stop), pictures.device
    return normalise(shift_and_flip(pictures, offsets[rows].to(device), flipped[rows].to(device), pad))


def augment_channels(
    pictures: Float[Tensor, "b 3 h w"], generator: torch.Generator, pad: int, part: slice, strength: float = 0.5
) -> Float[Tensor, "b 3 h w"]:
    """The channel-augmented view of visible pictures: jitter, one channel for all three, shift and flip, erasing, normalised.

    Args:
        pictures: see `augment`.
        generator: see `augment`.
        pad: see `augment`.
        part: see `augment`.
        strength: of the colour jitter; pictures are also erased with probability one half.
    """
    whole = part.step
    factors = 1 + strength * (2 * torch.rand(3, whole, generator=generator) - 1)
    channel = torch.randint(0, 3, (whole,), generator=generator)
    offsets = torch.randint(0, 2 * pad + 1, (whole, 2), generator=generator)
    flipped, erased = (torch.rand(whole, generator=generator) < 0.5 for _ in range(2))
    corner = torch.rand(whole, 2, generator=generator)
    # Random erasing (Zhong et al., AAAI 2020): 2 to 40 % of the area, aspect ratio 0.3 to 1 / 0.3.
    area = 0.02 + 0.38 * torch.rand(whole, generator=generator)
    ratio = torch.exp(math.log(0.3) * (2 * torch.rand(whole, generator=generator) - 1))
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp_max(1)
    rows, device = slice(part.start, part.stop), pictures.device
    jittered = colour_jitter(pictures, *(each[rows].to(device) for each in factors))
    shifted = shift_and_flip(
        exchange_channel(jittered, channel[rows].to(device)), offsets[rows].to(device), flipped[rows].to(device), pad
    )
    return normalise(erase(shifted, corner[rows].to(device), size[rows].to(device), erased[rows].to(device)))
