"""JPEG artefacts: the real codec, and the tensor simulator of the reference code."""

import math
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)
"""ITU-T T.81, table K.1, row by row."""

CHROMINANCE = "17 18 24 47 18 21 26 66 24 26 56 99 47 66 99 99"
"""ITU-T T.81, table K.2: its upper left quarter; the rest is 99."""

FROM_RGB = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
TO_RGB = torch.tensor([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])


def jpeg_codec(images: Float[Tensor, "b 3 h w"], qualities: list[int]) -> Float[Tensor, "b 3 h w"]:
    """Encode and decode each picture in [0, 1] with libjpeg."""

    def one(image: UInt8[Tensor, "3 h w"], quality: int) -> Tensor:
        decoded: Any = decode_jpeg(encode_jpeg(image.cpu(), quality), ImageReadMode.RGB)
        return decoded

    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return torch.stack([one(*each) for each in zip(levels, qualities, strict=True)]).to(images) / 255


def quantisation_tables() -> tuple[Float[Tensor, "8 8"], Float[Tensor, "8 8"]]:
    """Luminance and chrominance tables, transposed as the reference code has the former."""
    luminance = torch.tensor([float(value) for value in LUMINANCE.split()]).reshape(8, 8).T
    chrominance = torch.full((8, 8), 99.0)
    chrominance[:4, :4] = torch.tensor([float(value) for value in CHROMINANCE.split()]).reshape(4, 4).T
    return luminance, chrominance


def cosine_basis() -> Float[Tensor, "8 8"]:
    """Rows of the orthonormal 8-point discrete cosine transform."""
    frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    basis = torch.cos((2 * place + 1) * frequency * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _quantised(plane: Float[Tensor, "b h w"], table: Float[Tensor, "b 8 8"]) -> Float[Tensor, "b h w"]:
    """Transform blocks of 8 x 8, round to multiples of the table, transform back."""
    b, h, w = plane.shape
    basis = cosine_basis().to(plane)
    blocks = plane.reshape(b, h // 8, 8, w // 8, 8).transpose(2, 3) - 128
    step = table[:, None, None]
    coefficients = (basis @ blocks @ basis.T / step).round() * step
    return (basis.T @ coefficients @ basis + 128).transpose(2, 3).reshape(b, h, w)


def jpeg_simulated(images: Float[Tensor, "b 3 h w"], qualities: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """JPEG in tensor arithmetic, on any device: colour transform, chroma halved, blocks quantised. For pictures in [0, 1]."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % 16, 0, -height % 16)) * 255
    ycc = torch.einsum("ij,bjhw->bihw", FROM_RGB.to(images), padded)
    ycc[:, 1:] += 128
    factor = torch.where(qualities < 50, 5000 / qualities, 200 - 2 * qualities)[:, None, None] / 100
    luminance, chrominance = (table.to(images) * factor.to(images) for table in quantisation_tables())
    y = _quantised(ycc[:, 0], luminance)
    half = F.avg_pool2d(ycc[:, 1:], 2)
    chroma = [_quantised(half[:, index], chrominance) for index in range(2)]
    full = [F.interpolate(each[:, None], scale_factor=2, mode="nearest")[:, 0] - 128 for each in chroma]
    rgb = torch.einsum("ij,bjhw->bihw", TO_RGB.to(images), torch.stack([y, *full], 1))
    return (rgb.clamp(0, 255) / 255)[..., :height, :width]
