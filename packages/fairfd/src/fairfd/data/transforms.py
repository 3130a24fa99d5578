"""Training augmentation (paper, "Experimental setup": compression, flip, rotation; the official code's full list).

FancyPCA, one of the official code's three colour changes, is dropped: torchvision has none, and the other two remain.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Image, Mask


class JpegCompression(v2.Transform):
    """Encode and decode as JPEG with a quality drawn evenly from a range.

    Args:
        lowest: quality, 1 to 100.
        highest: quality, included.
    """

    _transformed_types = (Image,)

    def __init__(self, lowest: int, highest: int) -> None:
        super().__init__()
        self.lowest, self.highest = lowest, highest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the quality."""
        del flat_inputs
        return {"quality": int(torch.randint(self.lowest, self.highest + 1, ()))}

    def transform(self, inpt: Image, params: dict[str, Any]) -> Image:
        """Compress one image."""
        stream = io.BytesIO()
        PIL.Image.fromarray(inpt.permute(1, 2, 0).numpy()).save(stream, "jpeg", quality=params["quality"])
        return Image(torch.from_numpy(np.array(PIL.Image.open(stream))).permute(2, 0, 1))


def paper_transform() -> v2.Transform:
    """Flip, rotation up to 10 degrees, blur of 3 to 7 pixels, a colour change, JPEG of quality 40 to 100; each with p = .5.

    The colour change is one of brightness and contrast (10 %), or hue, saturation and value.
    """
    blur = v2.RandomChoice([v2.GaussianBlur(kernel) for kernel in (3, 5, 7)])
    colour = v2.RandomChoice(
        [v2.ColorJitter(brightness=0.1, contrast=0.1), v2.ColorJitter(brightness=0.08, saturation=0.12, hue=0.1)]
    )
    rotation = v2.RandomRotation([-10, 10], interpolation=v2.InterpolationMode.BILINEAR)
    steps = [rotation, blur, colour, JpegCompression(40, 100)]
    return v2.Compose([v2.RandomHorizontalFlip(0.5), *(v2.RandomApply([step], 0.5) for step in steps)])


def augment_one(
    transform: Callable[..., Any],
    image: UInt8[Tensor, "3 h w"],
    mask: UInt8[Tensor, "1 h w"] | None,
    seed: int,
) -> tuple[UInt8[Tensor, "3 h w"], UInt8[Tensor, "1 h w"] | None]:
    """Apply a transform with random numbers that depend on `seed` alone.

    The result is the same in every worker and process, and a resumed run sees what an uninterrupted one would. The global
    generator is left as it was.

    Args:
        transform: of torchvision's v2; geometric steps move the mask as well.
        image: RGB levels.
        mask: manipulated region, if there is one.
        seed: any number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if mask is None:
            return transform(Image(image)).as_subclass(Tensor), None
        image, mask = transform(Image(image), Mask(mask))
    return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def flip_where(images: UInt8[Tensor, "b c h w"], chosen: Bool[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
    """Mirror the chosen images."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)
