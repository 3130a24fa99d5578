"""Entropic optimal transport between the instances of two modalities (section 3.3, heterogeneous affinities).

P = diag(a) exp(-lambda D) diag(b) with uniform marginals, found by Sinkhorn's alternating scaling. exp(-lambda D) spans more
orders of magnitude than float32 has. So the logarithms f = log a, g = log b are kept, and the iteration runs on the stabilised
kernel K = exp(f + g - lambda D) with corrections u, v near one (Schmitzer, SIAM J. Sci. Comput. 2019). K is the plan so far; its
many small entries are summed up (see `kernel`). When corrections have settled, or one has grown beyond a factor, K is computed anew.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from multreid.method.transport.kernels import (
    ONE_GROUP,
    ExponentRows,
    Groups,
    Kernel,
    exponents_of_cost,
    exponents_of_features,
    row_blocks,
    stabilised_kernel,
)
from multreid.method.validation import check_pair
from tenfold import UserError

OFFICIAL_TOLERANCE = 0.1
OFFICIAL_PERIOD = 10
DRIFT = 2.0
"""Corrections beyond this factor: the kernel is computed anew."""
GROUPED_DRIFT = 30.0
"""The same with groups: sums over groups stay true where corrections differ between groups."""
WHOLE_DRIFT = 1e3
"""The same of a kernel without sums, which only loses entries that lie far below all others."""
SETTLED, AGAIN = 30, 500
"""A kernel with sums is computed anew at this iteration and from there after so many: what early ones get wrong is forgotten, and
by then corrections change little."""

Stopping = Literal["official"] | float
"""`official`: sum over columns of |b / b' - 1| at most 0.1, looked at in iterations 0, 10, 20, ...
A number: until no row sum is wrong by more than that share."""


@dataclass(frozen=True)
class TransportPlan:
    """A transport plan and how it was reached.

    Attributes:
        kernel: the plan, n x m. Columns sum to 1 / m, rows to about 1 / n.
        iterations: how many were made.
        converged: whether the stopping rule was met before the cap.
        change: sum over columns of |b / b' - 1| in the last iteration.
        row_error: largest share by which a row sum is wrong.
        far_mass: share of the mass that lies on entries which were summed up; 0 if none were.
    """

    kernel: Kernel
    iterations: int
    converged: bool
    change: float
    row_error: float
    far_mass: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.kernel.near.shape

    def dense(self) -> Float[np.ndarray, "n m"]:
        """The plan as an array."""
        near, far = self.kernel.near, self.kernel.far
        whole = near.toarray() if isinstance(near, sparse.csr_array) else near
        return whole if far is None else whole + far.by_row @ far.column_shares

    def row_argmax(self) -> Int[np.ndarray, " n"]:
        """The column that receives most of each row's mass."""
        return np.asarray(self.kernel.near.argmax(axis=1)).ravel()


def sinkhorn(
    cost: Float[np.ndarray, "n m"],
    reg: float = 25.0,
    *,
    stopping: Stopping = "official",
    max_iterations: int = 500,
    far: float = 0.001,
) -> TransportPlan:
    """Entropic transport between uniform marginals for a given cost matrix (section 3.3).

    Args:
        cost: n x m, finite.
        reg: lambda, the factor before the cost: larger is closer to unregularised transport.
        stopping: `official`, or the largest relative error that a row sum may have.
        max_iterations: the cap.
        far: entries below this share of the mean entry of their row and of their column are summed up (see the module);
            0 keeps each of them. Small problems keep each of them in any case.

    Raises:
        UserError: an empty cost, one that is not finite, or a regularisation that is not positive.
    """
    if 0 in cost.shape or not np.isfinite(cost).all():
        raise UserError(
            f"cost: expected finite numbers and no empty side, got shape {cost.shape} or NaN or infinite entries"
        )
    return _solve(exponents_of_cost(cost, reg), cost.shape, reg, stopping, max_iterations, far, ONE_GROUP)


def sinkhorn_features(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m e"],
    reg: float = 25.0,
    *,
    stopping: Stopping = "official",
    max_iterations: int = 500,
    far: float = 0.001,
    groups: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]] | None = None,
) -> TransportPlan:
    """`sinkhorn` with the squared Euclidean distance between two sets of features as cost, never held as a whole.

    Args:
        a: one row per instance.
        b: the same of the other side.
        reg: see `sinkhorn`.
        stopping: see `sinkhorn`.
        max_iterations: see `sinkhorn`.
        far: see `sinkhorn`; with groups, ten times as much gives the same accuracy in half of the time.
        groups: a number for each row of a and of b, such as its cluster: small entries are summed up within groups.
    """
    check_pair(a, b, ("features_a", "features_b"))
    shape = (len(a), len(b))
    if groups is None:
        return _solve(exponents_of_features(a, b, reg), shape, reg, stopping, max_iterations, far, ONE_GROUP)
    rows, columns = (np.argsort(each, kind="stable") for each in groups)
    starts = (np.unique(each[order], return_index=True)[1] for each, order in zip(groups, (rows, columns), strict=True))
    exponents = exponents_of_features(a[rows], b[columns], reg)
    plan = _solve(exponents, shape, reg, stopping, max_iterations, far, Groups(*starts))
    return replace(plan, kernel=plan.kernel.reordered(rows, columns))


def _solve(
    exponents: ExponentRows,
    shape: tuple[int, int],
    reg: float,
    stopping: Stopping,
    max_iterations: int,
    far: float,
    groups: Groups,
) -> TransportPlan:
    if reg <= 0 or max_iterations < 1 or far < 0:
        raise UserError(
            f"reg {reg}, max_iterations {max_iterations}, far {far}: need reg > 0, max_iterations >= 1, far >= 0"
        )
    n, m = shape
    f, g, change = _first_iteration(exponents, shape)
    done, converged = 1, stopping == "official" and change <= OFFICIAL_TOLERANCE
    kernel = stabilised_kernel(exponents, f, g, far, groups)
    sums = kernel.scaling()
    u, v = np.ones(n, np.float32), np.ones(m, np.float32)
    while not converged and done < max_iterations:
        row_sums, column_sums = sums(v)
        if stopping != "official" and np.abs(n * (u * row_sums) - 1).max() <= stopping:
            break
        u = 1 / (n * row_sums)
        previous, v = v, n / (m * column_sums)
        change = float(np.abs(previous / v - 1).sum())
        if stopping == "official" and done % OFFICIAL_PERIOD == 0:
            converged = change <= OFFICIAL_TOLERANCE
        done += 1
        anew = kernel.far is not None and done % AGAIN == SETTLED
        if anew or max(_spread(u), _spread(v)) > _most_drift(kernel, groups):
            f, g = f + np.log(u, dtype=np.float64), g + np.log(v, dtype=np.float64)
            # The old kernel makes room for the new one.
            del kernel, sums
            kernel = stabilised_kernel(exponents, f, g, far, groups)
            sums = kernel.scaling()
            u, v = np.ones_like(u), np.ones_like(v)
    kernel = kernel.scaled(u, v)
    row_error = float(np.abs(n * kernel.times(np.ones(m, np.float32)) - 1).max())
    if stopping != "official":
        converged = row_error <= stopping
    far_mass = 0.0 if kernel.far is None else kernel.far.mass
    return TransportPlan(kernel, done, bool(converged), change, row_error, far_mass)


def _first_iteration(
    exponents: ExponentRows, shape: tuple[int, int]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"], float]:
    """f and g after one iteration from a uniform b, in logarithms throughout, in one pass over the costs; and the change of b."""
    n, m = shape
    nothing = np.zeros(n), np.zeros(m)
    f = torch.empty(n, dtype=torch.float64)
    highest, total = torch.full((m,), -torch.inf), torch.zeros(m, dtype=torch.float64)
    for start, stop in row_blocks(n, m):
        exponent = exponents(start, stop, *nothing)
        top = exponent.amax(1, keepdim=True)
        # a_i = (1/n) / sum_j exp(-reg D_ij) / m
        f[start:stop] = np.log(m / n) - top[:, 0].double() - (exponent - top).exp_().sum(1).double().log()
        exponent += f[start:stop, None].float()
        # Column sums as a running log-sum-exp over blocks of rows.
        higher = torch.maximum(highest, exponent.amax(0))
        total = total * (highest - higher).double().exp() + exponent.sub_(higher).exp_().sum(0)
        highest = higher
    g = -np.log(m) - highest.double() - total.log()
    return f.numpy(), g.numpy(), float((torch.exp(-np.log(m) - g) - 1).abs().sum())


def _most_drift(kernel: Kernel, groups: Groups) -> float:
    """By how much corrections may grow before the kernel is computed anew."""
    if kernel.far is None:
        return WHOLE_DRIFT
    return DRIFT if groups is ONE_GROUP else GROUPED_DRIFT


def _spread(correction: Float[np.ndarray, " n"]) -> float:
    return max(float(correction.max()), 1 / float(correction.min()))
