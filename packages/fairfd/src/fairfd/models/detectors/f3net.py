"""F3-Net, frequency-aware decomposition (Qian et al., ECCV 2020, "FAD"), as the benchmark uses it.

The image is cut into frequency bands of its whole-image DCT by fixed masks plus learned ones, and Xception sees the four
bands stacked. The paper's second branch (LFS) and the MixBlock are absent from the official code, and so from here.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fairfd.models.detectors.detector import at_least_float32
from fairfd.models.detectors.xception import XceptionDetector

BANDS = 4


def dct_matrix(n: int) -> Float[Tensor, "n n"]:
    """The orthonormal DCT-II matrix D: D x is the transform of a column x, D^T its inverse."""
    frequency = torch.arange(n, dtype=torch.float64)[:, None]
    position = torch.arange(n, dtype=torch.float64)[None, :]
    matrix = torch.cos(math.pi * frequency * (position + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def band_edges(n: int) -> tuple[tuple[int, int], ...]:
    """Lowest and highest i + j of the low, middle, high and all band, both included (official code: N // 2.82)."""
    low = int(n // 2.82)
    return (0, low), (low, n // 2), (n // 2, 2 * n), (0, 2 * n)


def band_masks(n: int) -> Float[Tensor, "4 n n"]:
    """1 where the diagonal index i + j of a DCT coefficient lies in the band."""
    diagonal = torch.arange(n)[:, None] + torch.arange(n)[None, :]
    return torch.stack([((low <= diagonal) & (diagonal <= high)).float() for low, high in band_edges(n)])


class FrequencyDecomposition(nn.Module):
    """FAD: x -> [D^T (D x D^T * filter_b) D for each band b], filter_b = base_b + 2 sigmoid(theta_b) - 1.

    Args:
        n: height and width of the images.

    Attributes:
        learnable: theta, the learned part of the filters; starts as N(0, 0.1^2).
    """

    dct: Tensor
    base: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("dct", dct_matrix(n), persistent=False)
        self.register_buffer("base", band_masks(n), persistent=False)
        self.learnable = nn.Parameter(torch.randn(BANDS, n, n) * 0.1)

    def forward(self, x: Float[Tensor, "b 3 n n"]) -> Float[Tensor, "b 12 n n"]:
        """Decompose images into bands, band by band and channel by channel inside a band.

        All bands go through the inverse transform in one product. Computed in float32: the transform sums over whole
        rows, where bfloat16 would leave noise above the high band's signal.
        """
        with torch.autocast(x.device.type, enabled=False):
            spectrum = self.dct @ at_least_float32(x) @ self.dct.mT
            filters = self.base + 2 * self.learnable.sigmoid() - 1
            bands = self.dct.mT @ (spectrum[:, None] * filters[:, None]) @ self.dct
        return bands.flatten(1, 2)


def quarter_copies(weight: Float[Tensor, "o 3 k k"]) -> Float[Tensor, "o 12 k k"]:
    """ImageNet's first convolution once per band, divided by their number (official code).

    On a stack of four equal images it gives what the original gives on one.
    """
    return weight.repeat(1, BANDS, 1, 1) / BANDS


class F3NetDetector(XceptionDetector):
    """Xception on the four frequency bands; cross-entropy.

    Args:
        in_size: height and width of the input.
    """

    name = "f3net"
    in_chans = 3 * BANDS
    drop_rate = 0.5

    def __init__(self, in_size: int = 256) -> None:
        super().__init__(in_size)
        self.fad = FrequencyDecomposition(in_size)

    def front(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 12 h w"]:
        """The four bands of each colour."""
        return self.fad(x)

    def inflate(self, weight: Float[Tensor, "o 3 k k"]) -> Float[Tensor, "o 12 k k"]:
        """A quarter for each band."""
        return quarter_copies(weight)
