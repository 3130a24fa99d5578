"""What results are judged by: PSNR and SSIM as the paper computes them, texture energy, patch distribution, consistency.

LPIPS, CLIPIQA and MUSIQ come from `pyiqa` where that is installed with its weights; nothing here is called by their name.
"""

import importlib.util
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from tadsr.data.transforms import enlarge, matlab_resize, to_eight_bits
from tenfold.metrics import luminance

Image = Float[Tensor, "b 3 _h _w"]
LEARNED = ("lpips", "clipiqa", "musiq")


def _compared(image: Tensor, border: int, channel: str) -> Tensor:
    inner = image[..., border : image.shape[-2] - border, border : image.shape[-1] - border].double()
    # The published numbers are of luminance in 8 bits.
    return to_eight_bits(luminance(inner)) if channel == "y" else inner


def psnr(a: Image, b: Image, border: int = 0, channel: str = "y") -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB, per picture; infinite for equal pictures.

    Args:
        a: in [0, 1].
        b: in [0, 1].
        border: pixels left out at each edge: 0 in the paper's protocol, 4 in the classic one.
        channel: y (BT.601 luminance, studio range) or rgb.
    """
    a, b = _compared(a, border, channel), _compared(b, border, channel)
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def ssim(a: Image, b: Image, border: int = 0, channel: str = "y") -> Float[Tensor, " b"]:
    """Structural similarity (11 x 11 Gaussian window, sigma 1.5, valid region), per picture; arguments as for `psnr`."""
    # In double precision the windows are ten times slower and the result the same to six digits.
    a, b = _compared(a, border, channel).float(), _compared(b, border, channel).float()
    _, full = structural_similarity_index_measure(
        a, b, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    return torch.as_tensor(full)[..., 5:-5, 5:-5].mean((1, 2, 3))


def high_pass(image: Float[Tensor, "b c h w"], low_quality: Float[Tensor, "b c _h _w"]) -> Float[Tensor, "b c h w"]:
    """What a picture has beyond the bicubic enlargement of its low-quality image."""
    return image - enlarge(low_quality, image.shape[-1] // low_quality.shape[-1])


def high_frequency_energy_ratio(result: Tensor, truth: Tensor, low_quality: Tensor) -> Float[Tensor, " b"]:
    """HFER: energy of the result's high-pass over the truth's; 1 is right, below 1 is blurred."""

    def energy(image: Tensor) -> Tensor:
        return high_pass(image, low_quality).square().mean((1, 2, 3))

    return energy(result) / energy(truth)


def sliced_wasserstein(
    result: Tensor, truth: Tensor, low_quality: Tensor, side: int = 8, directions: int = 128, seed: int = 0
) -> Float[Tensor, ""]:
    """SWD: sliced Wasserstein-1 distance between the high-pass patches of results and of truths; 0 is the right distribution.

    Args:
        result: (b, c, h, w).
        truth: the same shape; patches are compared as a set, not one by one.
        low_quality: what `result` was made from.
        side: of the patches, which do not overlap.
        directions: random unit vectors to project on.
        seed: of the directions.
    """

    def patches(image: Tensor) -> Tensor:
        return F.unfold(high_pass(image, low_quality), side, stride=side).movedim(1, 2).flatten(0, 1)

    of_result, of_truth = patches(result), patches(truth)
    vectors = torch.randn(of_truth.shape[1], directions, generator=torch.Generator().manual_seed(seed))
    vectors = F.normalize(vectors.to(of_truth), dim=0)
    return ((of_result @ vectors).sort(0).values - (of_truth @ vectors).sort(0).values).abs().mean()


def gradient_magnitude_deviation(a: Image, b: Image) -> Float[Tensor, " b"]:
    """GMSD (Xue et al. 2014) on luminance: the spread of gradient similarity, 0 for equal pictures.

    A perceptual measure that needs no trained weights. It stands beside LPIPS, it does not replace it.
    """
    prewitt = torch.tensor([[1.0, 0, -1], [1, 0, -1], [1, 0, -1]], dtype=torch.float64) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]

    def magnitude(image: Tensor) -> Tensor:
        half = F.avg_pool2d(luminance(image.double()) * 255, 2)
        return F.conv2d(half, kernels.to(half.device), padding=1).square().sum(1).sqrt()

    first, second, c = magnitude(a), magnitude(b), 170.0
    similarity = (2 * first * second + c) / (first.square() + second.square() + c)
    return similarity.flatten(1).std(1, correction=0)


def low_resolution_error(result: Image, low_quality: Image) -> Float[Tensor, " b"]:
    """LRC: root mean square between the low-quality image and the result brought down again."""
    factor = low_quality.shape[-1] / result.shape[-1]
    return (matlab_resize(result, factor) - low_quality).square().mean((1, 2, 3)).sqrt()


def learned_metric(name: str, device: torch.device | str = "cpu") -> Any:
    """LPIPS, CLIPIQA or MUSIQ from `pyiqa`, or None where it or its weights are not to be had."""
    if importlib.util.find_spec("pyiqa") is None:
        return None
    import pyiqa  # ty: ignore[import-not-found]  # an extra

    try:
        return pyiqa.create_metric(name, device=torch.device(device))
    except (OSError, RuntimeError, ValueError):
        return None
