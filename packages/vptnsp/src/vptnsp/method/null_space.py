"""Approximate null spaces and the projections onto them (paper §4.2-4.3, Alg. 2, eq. 28-29).

Where the paper and its official code differ, the default is the code's, which made the numbers; `convention="paper"` is the paper's.
"""

import math
import warnings
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from tenfold import UserError

NullityMode = Literal["adaptive", "times", "fixed", "energy"]
Convention = Literal["official", "paper"]
Normalisation = Literal["fro", "none"]

SMOOTH_FROM = 128
"""Spectra of at least this many values are smoothed before the knee is sought (official code)."""


class Spectrum(NamedTuple):
    """Singular values and vectors of a second-moment matrix, largest first.

    Attributes:
        values: s, not negative.
        vectors: U, one vector a column.
    """

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n n"]


def spectrum(moment: Float[Tensor, "n n"]) -> Spectrum:
    """Decompose a symmetric positive semi-definite matrix, in 64 bits.

    Raises:
        UserError: entries that are NaN or infinite.
    """
    if not torch.isfinite(moment).all():
        raise UserError("a second-moment matrix holds NaN or infinite entries; nothing was decomposed")
    # Apple's MPS has no 64-bit floats.
    exact = moment.cpu() if moment.device.type == "mps" else moment
    values, vectors = torch.linalg.eigh(exact.double())
    return Spectrum(values.flip(0).clamp(min=0), vectors.flip(1))


def second_differences(svals: Float[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """f[i] - 2 f[i+1] + f[i+2] of the spectrum f, smoothed with sigma 10 where it is long (official code)."""
    smooth = svals
    if len(svals) >= SMOOTH_FROM:
        smooth = gaussian_filter1d(svals.astype(np.float64), sigma=10, mode="reflect", truncate=4.0)
        smooth = smooth.astype(svals.dtype)
    return smooth[:-2] - 2 * smooth[1:-1] + smooth[2:]


def knee(svals: Float[np.ndarray, " n"]) -> int:
    """Index at the largest second difference; of a long spectrum 1.5 % at each end are passed over (official code)."""
    curvature = second_differences(svals)
    drop = int(len(svals) * 0.03 / 2) if len(svals) >= SMOOTH_FROM else 0
    inner = curvature[drop : len(curvature) - drop]
    return int(np.argmax(inner)) + 1 + drop


def null_space_index(
    svals: Float[np.ndarray, " n"],
    *,
    mode: NullityMode = "adaptive",
    value: float = 0.0,
    convention: Convention = "official",
) -> int:
    """Where the null space begins in a descending spectrum; every index from there on belongs to it.

    Args:
        svals: singular values, largest first.
        mode: `adaptive`, the knee rule (paper eq. 28); `times`, values up to int(value) times the smallest (Adam-NSCL);
            `fixed`, the `value` last; `energy`, the longest tail holding at most the share `value` of the sum.
        value: what `mode` needs; of `adaptive` an offset, a share of the tail below 1 and a count from 1 on.
        convention: the official code counts the knee's vector as null, the paper does not.

    Returns:
        i*, so that the nullity is n - i*.

    Raises:
        UserError: a spectrum too short for the knee rule, or a value the mode cannot use.
    """
    count = len(svals)
    # The comparison below is on 32-bit values in the official code; ties depend on it.
    values = svals.astype(np.float32)
    if values[0] <= 0:
        warnings.warn("a second-moment matrix is zero: every direction counts as null", stacklevel=2)
        return 0
    if mode == "adaptive":
        if count < 3:
            raise UserError(
                f"the adaptive nullity needs 3 singular values, got {count}; use more prompts or mode='fixed'"
            )
        index = int(np.flatnonzero(values >= values[knee(values)])[-1])
        index = _offset(index, count, value)
    elif mode == "times":
        if value < 1:
            raise UserError(f"mode='times' needs a value of at least 1, got {value:g}")
        index = int(np.argmax(values <= int(value) * values[-1]))
    elif mode == "fixed":
        if not 1 <= int(value) <= count:
            raise UserError(f"a fixed nullity must be 1 to {count}, got {value:g}")
        index = count - int(value)
    else:
        if not 0 <= value < 1:
            raise UserError(f"mode='energy' needs a share in [0, 1), got {value:g}")
        tail = np.cumsum(svals[::-1].astype(np.float64))[::-1]
        index = min(int(np.sum(tail > value * tail[0])), count - 1)
    return index + (convention == "paper")


def _offset(index: int, count: int, offset: float) -> int:
    if 0 <= offset < 1:
        return min(index + int(offset * (count - index)), count - 1)
    return min(max(index + int(offset), 0), count - 1)


def nullity(
    moment: Float[Tensor, "n n"],
    *,
    mode: NullityMode = "adaptive",
    value: float = 0.0,
    convention: Convention = "official",
) -> int:
    """R, the dimension of the approximate null space (paper eq. 28); options as in `null_space_index`."""
    return null_space_basis(moment, mode=mode, value=value, convention=convention).shape[1]


def null_space_basis(
    moment: Float[Tensor, "n n"],
    *,
    mode: NullityMode = "adaptive",
    value: float = 0.0,
    convention: Convention = "official",
) -> Float[Tensor, "n r"]:
    """U_0: an orthonormal basis of the approximate null space (paper Alg. 2); options as in `null_space_index`."""
    values, vectors = spectrum(moment)
    first = null_space_index(values.float().cpu().numpy(), mode=mode, value=value, convention=convention)
    return vectors[:, first:]


def projection_from_basis(
    basis: Float[Tensor, "n r"], eta: float, normalize: Normalisation = "fro"
) -> Float[Tensor, "n n"]:
    """eta B + (1 - eta) I with B = U_0 U_0^T / ||U_0 U_0^T||_F (paper eq. 29).

    The norm is sqrt(R): B is not idempotent, its gain in the null space is 1 / sqrt(R). Much of the method's stability is
    that gain. `normalize="none"` leaves a true orthogonal projector.
    """
    projector = basis @ basis.T
    if normalize == "fro" and basis.shape[1] > 0:
        projector = projector / math.sqrt(basis.shape[1])
    return eta * projector + (1 - eta) * torch.eye(len(basis), dtype=basis.dtype, device=basis.device)


def null_space_projection(
    moment: Float[Tensor, "n n"],
    eta: float,
    *,
    mode: NullityMode = "adaptive",
    value: float = 0.0,
    convention: Convention = "official",
    normalize: Normalisation = "fro",
) -> tuple[Float[Tensor, "n n"], int]:
    """The projection for one side of the prompts' update (paper Alg. 2).

    Args:
        moment: C, the second moment of what must not be disturbed.
        eta: 1 projects strictly, 0 not at all.
        mode: see `null_space_index`.
        value: see `null_space_index`.
        convention: see `null_space_index`.
        normalize: see `projection_from_basis`.

    Returns:
        The matrix, in 64 bits, and the nullity.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta must be in [0, 1], got {eta:g}")
    basis = null_space_basis(moment, mode=mode, value=value, convention=convention)
    return projection_from_basis(basis, eta, normalize), basis.shape[1]


def equal_norm_slowdown(projection: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The scaled identity with the Frobenius norm of `projection`: as slow, without a direction (this package's control)."""
    gain = torch.linalg.matrix_norm(projection) / math.sqrt(len(projection))
    return gain * torch.eye(len(projection), dtype=projection.dtype, device=projection.device)
