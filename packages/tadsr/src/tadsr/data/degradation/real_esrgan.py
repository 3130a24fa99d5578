"""The second-order degradation of Real-ESRGAN as ResShift, SinSR and TAD-SR train with it, and the milder one of ImageNet-Test.

Each picture draws its own degradation from its seed. (The reference code draws some choices once per batch and keeps a pool of ten batches
to mix them; drawing them per picture needs no pool.)
"""

from dataclasses import dataclass
from math import ceil, log2, pi

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from tadsr.data.datasets import generator_of
from tadsr.data.degradation.jpeg import jpeg_codec
from tadsr.data.degradation.kernels import filter_batch, gaussian_kernel, plateau_kernel, sinc_kernel
from tadsr.data.transforms import to_eight_bits

Image = Float[Tensor, "1 3 _ _"]
Range = tuple[float, float]


@dataclass(frozen=True)
class Blur:
    """How a blur kernel is drawn.

    Attributes:
        sizes: smallest and largest odd side.
        shapes: probabilities of isotropic and anisotropic Gaussian, generalised Gaussian and plateau.
        sigma: standard deviation in pixels.
        beta_gaussian: exponent of the generalised Gaussian.
        beta_plateau: exponent of the plateau.
        sinc: probability of a sinc kernel instead.
    """

    sizes: tuple[int, int]
    shapes: tuple[float, float, float, float, float, float]
    sigma: Range
    beta_gaussian: Range
    beta_plateau: Range
    sinc: float = 0.1


@dataclass(frozen=True)
class Order:
    """Blur, resize and noise.

    Attributes:
        blur: kernels.
        blur_probability: of blurring at all.
        resize: probabilities of enlarging, shrinking and keeping.
        factors: smallest and largest resize factor.
        gaussian: probability of Gaussian rather than Poisson noise.
        sigma: standard deviation of the Gaussian noise, of 255.
        poisson: scale of the Poisson noise.
        gray: probability that the noise has no colour.
    """

    blur: Blur
    blur_probability: float
    resize: tuple[float, float, float]
    factors: Range
    gaussian: float
    sigma: Range
    poisson: Range
    gray: float = 0.4


@dataclass(frozen=True)
class Settings:
    """A whole degradation.

    Attributes:
        first: always applied.
        jpeg: quality after it.
        second: applied with `second_probability`, on top.
        second_probability: see `second`.
        final_sinc: probability of the sinc filter at the end.
        final_jpeg: quality at the end.
    """

    first: Order
    jpeg: tuple[int, int]
    second: Order
    second_probability: float
    final_sinc: float
    final_jpeg: tuple[int, int]


MIXED = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
GAUSSIAN = (0.6, 0.4, 0.0, 0.0, 0.0, 0.0)
SETTINGS = {
    "train": Settings(
        first=Order(
            Blur((3, 19), MIXED, (0.2, 3.0), (0.5, 4.0), (1.0, 2.0)),
            1.0,
            (0.2, 0.7, 0.1),
            (0.15, 1.5),
            0.5,
            (1.0, 30.0),
            (0.05, 3.0),
        ),
        jpeg=(30, 95),
        second=Order(
            Blur((3, 13), MIXED, (0.2, 1.5), (0.5, 4.0), (1.0, 2.0)),
            0.8,
            (0.3, 0.4, 0.3),
            (0.3, 1.2),
            0.5,
            (1.0, 25.0),
            (0.05, 2.5),
        ),
        second_probability=0.5,
        final_sinc=0.8,
        final_jpeg=(30, 95),
    ),
    "imagenet-test": Settings(
        first=Order(
            Blur((3, 11), GAUSSIAN, (0.2, 0.8), (1.0, 1.5), (1.0, 1.2)),
            1.0,
            (0.2, 0.7, 0.1),
            (0.5, 1.5),
            0.5,
            (1.0, 15.0),
            (0.05, 0.3),
        ),
        jpeg=(70, 95),
        second=Order(
            Blur((3, 5), GAUSSIAN, (0.2, 0.5), (1.0, 1.5), (1.0, 1.2)),
            0.0,
            (0.3, 0.4, 0.3),
            (0.3, 1.2),
            0.5,
            (1.0, 25.0),
            (0.05, 2.5),
        ),
        second_probability=0.0,
        final_sinc=0.2,
        final_jpeg=(80, 100),
    ),
}


class Draws:
    """Random choices from one generator.

    Args:
        generator: where they come from.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float | int, high: float | int) -> float:
        """A number in [low, high)."""
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0, 1) < probability

    def choice(self, weights: tuple[float, ...]) -> int:
        """An index with these probabilities."""
        return int(torch.multinomial(torch.tensor(weights), 1, generator=self.generator))

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both possible."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))


def draw_kernel(blur: Blur, draws: Draws) -> Float[Tensor, "k k"]:
    """A random blur kernel."""
    size = 2 * draws.whole(blur.sizes[0] // 2, blur.sizes[1] // 2) + 1
    if draws.chance(blur.sinc):
        return sinc_kernel(draws.uniform(pi / 3 if size < 13 else pi / 5, pi), size)
    shape = draws.choice(blur.shapes)
    sigma_x = draws.uniform(*blur.sigma)
    # Odd shapes are anisotropic.
    sigma_y = draws.uniform(*blur.sigma) if shape % 2 else sigma_x
    theta = draws.uniform(-pi, pi) if shape % 2 else 0.0
    if shape < 2:
        return gaussian_kernel(size, sigma_x, sigma_y, theta)
    low, high = blur.beta_gaussian if shape < 4 else blur.beta_plateau
    beta = draws.uniform(low, 1) if draws.chance(0.5) else draws.uniform(1, high)
    maker = gaussian_kernel if shape < 4 else plateau_kernel
    return maker(size, sigma_x, sigma_y, theta, beta)


def resized(image: Image, height: int, width: int, draws: Draws) -> Image:
    """Resize with one of three filters, equally likely."""
    mode = ("area", "bilinear", "bicubic")[draws.whole(0, 2)]
    corners = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(image, (max(1, height), max(1, width)), mode=mode, **corners)


def gaussian_noise(image: Image, sigma: float | int, gray: bool, generator: torch.Generator) -> Image:
    """Add normal noise of that standard deviation (of 255)."""
    shape = (1, 1 if gray else 3, *image.shape[-2:])
    return image + torch.randn(shape, generator=generator).to(image) * sigma / 255


def poisson_noise(image: Image, scale: float, gray: bool, generator: torch.Generator) -> Image:
    """Add shot noise: (poisson(v x) / v - x) scale, v being the power of two at or above the number of grey levels in the picture."""
    source = image.mul(image.new_tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True) if gray else image
    source = to_eight_bits(source)
    levels = 2 ** ceil(log2(max(2, source.unique().numel())))
    noise = torch.poisson(source.cpu() * levels, generator=generator).to(image) / levels - source
    return image + noise * scale


def apply_order(image: Image, order: Order, height: int, width: int, draws: Draws) -> Image:
    """Blur, resize to a random multiple of (height, width), add noise."""
    if draws.chance(order.blur_probability):
        image = filter_batch(image, draw_kernel(order.blur, draws)[None])
    low, high = order.factors
    factor = (draws.uniform(1, high), draws.uniform(low, 1), 1.0)[draws.choice(order.resize)]
    image = resized(image, int(height * factor), int(width * factor), draws)
    gray = draws.chance(order.gray)
    if draws.chance(order.gaussian):
        noisy = gaussian_noise(image, draws.uniform(*order.sigma), gray, draws.generator)
    else:
        noisy = poisson_noise(image, draws.uniform(*order.poisson), gray, draws.generator)
    return noisy.clamp(0, 1)


def degrade_one(image: Image, settings: Settings, seed: tuple[int, ...], scale: int) -> Image:
    """Degrade one picture in [0, 1]; the result is `scale` times smaller and holds 8-bit levels.

    Args:
        image: high resolution, sides multiples of `scale`.
        settings: the degradation.
        seed: what its choices follow from.
        scale: of the super-resolution.
    """
    draws = Draws(generator_of(*seed, 0x5EED))
    height, width = image.shape[-2:]
    low = (height // scale, width // scale)
    image = apply_order(image, settings.first, height, width, draws)
    image = jpeg_codec(image, [draws.whole(*settings.jpeg)])
    if draws.chance(settings.second_probability):
        image = apply_order(image, settings.second, *low, draws)
    size = 2 * draws.whole(1, 6) + 1
    sinc = sinc_kernel(draws.uniform(pi / 3, pi), size)[None] if draws.chance(settings.final_sinc) else None

    def shrink(x: Tensor) -> Tensor:
        x = resized(x, *low, draws)
        return filter_batch(x, sinc) if sinc is not None else x

    quality = [draws.whole(*settings.final_jpeg)]
    image = jpeg_codec(shrink(image), quality) if draws.chance(0.5) else shrink(jpeg_codec(image, quality))
    return to_eight_bits(image)
