"""SPSL (Liu et al., CVPR 2021): Xception on RGB and the image that the phase spectrum alone gives back."""

import torch
from jaxtyping import Float
from torch import Tensor

from fairfd.models.detectors.detector import at_least_float32
from fairfd.models.detectors.xception import XceptionDetector


def phase_image(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Inverse FFT of the phase spectrum with all amplitudes set to 1: Re IFFT(exp(j angle(FFT(mean over channels)))).

    Up-sampling leaves its traces in the phase. The half spectrum of a real image holds all of it. Computed in float32:
    FFTs have no bfloat16 kernels.

    Args:
        x: images of any scale; a positive factor changes nothing.
    """
    grey = at_least_float32(x).mean(1, keepdim=True)
    angle = torch.fft.rfft2(grey).angle()
    return torch.fft.irfft2(torch.polar(torch.ones_like(angle), angle), s=grey.shape[-2:])


def with_phase(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h w"]:
    """RGB and phase image as four channels."""
    return torch.cat([x, phase_image(x).to(x.dtype)], dim=1)


def mean_over_rgb(weight: Float[Tensor, "o 3 k k"]) -> Float[Tensor, "o 4 k k"]:
    """ImageNet's first convolution averaged over RGB and repeated for the four channels (official code)."""
    return weight.mean(1, keepdim=True).repeat(1, 4, 1, 1)


class SpslDetector(XceptionDetector):
    """Xception on RGB and phase image; cross-entropy.

    Args:
        in_size: height and width of the input.
    """

    name = "spsl"
    in_chans = 4

    def front(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h w"]:
        """RGB and phase image."""
        return with_phase(x)

    def inflate(self, weight: Float[Tensor, "o 3 k k"]) -> Float[Tensor, "o 4 k k"]:
        """Mean over RGB, four times."""
        return mean_over_rgb(weight)
