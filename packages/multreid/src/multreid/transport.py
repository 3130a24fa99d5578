"""Entropic optimal transport between the instances of two modalities (section 3.3, heterogeneous affinities).

P = diag(a) exp(-lambda D) diag(b) with uniform marginals, found by Sinkhorn's alternating scaling. exp(-lambda D) spans more
orders of magnitude than float32 has, and most of its entries carry next to no mass. Both are answered by keeping the
logarithms f = log a, g = log b and iterating on the stabilised kernel K = exp(f + g - lambda D) with corrections u, v near one
(Schmitzer, SIAM J. Sci. Comput. 2019). K is the plan so far: where it is large enough to matter it is kept entry by entry, and
the many small entries are replaced by the one matrix of rank one that has their row sums and their column sums. When a
correction has grown beyond a factor of `DRIFT`, K is computed anew. The costs are only ever looked at in blocks of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from multreid.neighbours import squared_distances
from multreid.vectors import check_pair
from tenfold import UserError

OFFICIAL_TOLERANCE = 0.1
OFFICIAL_PERIOD = 10
DRIFT = 2.0
SMALL = 2**22
"""Kernels with at most so many entries are kept whole: there is nothing to gain."""
_MOST_SPARSE = 0.25
"""From this share of entries on, a whole kernel is smaller and faster than a sparse one."""
_BLOCK_ENTRIES = 2**19
"""2 MiB: the handful of passes over a block stay in the cache."""

CostRows = Callable[[int, int], Float[np.ndarray, "b m"]]
"""Costs of rows start to stop: the whole matrix never has to exist."""
Stopping = Literal["official"] | float
"""`official`: sum over columns of |b / b' - 1| at most 0.1, looked at in iterations 0, 10, 20, ...
A number: until no row sum is wrong by more than that share."""


@dataclass(frozen=True)
class Kernel:
    """A nonnegative n x m matrix: near + far_rows far_columns^T.

    Attributes:
        near: the entries that matter, sparse, or all of them.
        far_rows: row sums of the entries that are not in `near`.
        far_columns: their column sums, divided by their total.
    """

    near: sparse.csr_array | Float[np.ndarray, "n m"]
    far_rows: Float[np.ndarray, " n"]
    far_columns: Float[np.ndarray, " m"]

    def times(self, right: Float[np.ndarray, "m *k"]) -> Float[np.ndarray, "n *k"]:
        """The matrix times a vector or matrix."""
        return self.near @ right + _outer(self.far_rows, self.far_columns @ right)

    def transposed_times(self, right: Float[np.ndarray, "n *k"]) -> Float[np.ndarray, "m *k"]:
        """The transposed matrix times a vector or matrix."""
        return self.near.T @ right + _outer(self.far_columns, self.far_rows @ right)

    def scale(self, rows: Float[np.ndarray, " n"], columns: Float[np.ndarray, " m"]) -> "Kernel":
        """diag(rows) times the matrix times diag(columns), overwriting it."""
        if isinstance(self.near, np.ndarray):
            np.multiply(self.near, rows[:, None], out=self.near)
            np.multiply(self.near, columns, out=self.near)
        else:
            self.near.data *= np.repeat(rows, np.diff(self.near.indptr))
            self.near.data *= columns[self.near.indices]
        return Kernel(self.near, self.far_rows * rows, self.far_columns * columns)


def _outer(left: Float[np.ndarray, " n"], right: Float[np.ndarray, "*k"] | np.floating) -> Float[np.ndarray, "n *k"]:
    return left * right if np.ndim(right) == 0 else left[:, None] * right


@dataclass(frozen=True)
class TransportPlan:
    """A transport plan and how it was reached.

    Attributes:
        kernel: the plan, n x m. Columns sum to 1 / m, rows to about 1 / n.
        iterations: how many were made.
        converged: whether the stopping rule was met before the cap.
        change: sum over columns of |b / b' - 1| in the last iteration.
        row_error: largest share by which a row sum is wrong.
        far_mass: share of the mass that lies on entries which were replaced by a matrix of rank one; 0 if none were.
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
        return self.kernel.far_rows.size, self.kernel.far_columns.size

    def dense(self) -> Float[np.ndarray, "n m"]:
        """The plan as an array."""
        near = self.kernel.near
        whole = near.toarray() if isinstance(near, sparse.csr_array) else near
        return whole + np.outer(self.kernel.far_rows, self.kernel.far_columns)

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
    return _solve(lambda start, stop: cost[start:stop], cost.shape, reg, stopping, max_iterations, far)


def sinkhorn_features(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m e"],
    reg: float = 25.0,
    *,
    stopping: Stopping = "official",
    max_iterations: int = 500,
    far: float = 0.001,
) -> TransportPlan:
    """`sinkhorn` with the squared Euclidean distance between two sets of features as cost, never held as a whole."""
    check_pair(a, b, ("features_a", "features_b"))
    return _solve(
        lambda start, stop: squared_distances(a[start:stop], b), (len(a), len(b)), reg, stopping, max_iterations, far
    )


def _solve(
    cost_rows: CostRows, shape: tuple[int, int], reg: float, stopping: Stopping, max_iterations: int, far: float
) -> TransportPlan:
    if reg <= 0 or max_iterations < 1 or far < 0:
        raise UserError(
            f"reg {reg}, max_iterations {max_iterations}, far {far}: need reg > 0, max_iterations >= 1, far >= 0"
        )
    n, m = shape
    f, g, change = _first_iteration(cost_rows, shape, reg)
    done, converged = 1, stopping == "official" and change <= OFFICIAL_TOLERANCE
    kernel = stabilised_kernel(cost_rows, f, g, reg, far)
    u, v = np.ones(n, np.float32), np.ones(m, np.float32)
    while not converged and done < max_iterations:
        row_sums = kernel.times(v)
        if stopping != "official" and np.abs(n * (u * row_sums) - 1).max() <= stopping:
            break
        u = 1 / (n * row_sums)
        previous, v = v, 1 / (m * kernel.transposed_times(u))
        change = float(np.abs(previous / v - 1).sum(dtype=np.float64))
        if stopping == "official" and done % OFFICIAL_PERIOD == 0:
            converged = change <= OFFICIAL_TOLERANCE
        done += 1
        if max(_spread(u), _spread(v)) > DRIFT:
            f, g = f + np.log(u, dtype=np.float64), g + np.log(v, dtype=np.float64)
            kernel = stabilised_kernel(cost_rows, f, g, reg, far)
            u, v = np.ones_like(u), np.ones_like(v)
    kernel = kernel.scale(u, v)
    row_error = float(np.abs(n * kernel.times(np.ones(m, np.float32)) - 1).max())
    if stopping != "official":
        converged = row_error <= stopping
    far_mass = float(kernel.far_rows.sum(dtype=np.float64) * kernel.far_columns.sum(dtype=np.float64))
    return TransportPlan(kernel, done, bool(converged), change, row_error, far_mass)


def _first_iteration(
    cost_rows: CostRows, shape: tuple[int, int], reg: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"], float]:
    """f and g after one iteration from a uniform b, in logarithms throughout, in one pass over the costs; and the change of b."""
    n, m = shape
    f = torch.empty(n, dtype=torch.float64)
    highest, total = torch.full((m,), -torch.inf), torch.zeros(m, dtype=torch.float64)
    for start, stop in _row_blocks(n, m):
        exponent = _exponents(cost_rows, start, stop, reg)
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


def _exponents(cost_rows: CostRows, start: int, stop: int, reg: float) -> Float[torch.Tensor, "b m"]:
    return torch.from_numpy(np.ascontiguousarray(cost_rows(start, stop), dtype=np.float32)) * -reg


def stabilised_kernel(
    cost_rows: CostRows, f: Float[np.ndarray, " n"], g: Float[np.ndarray, " m"], reg: float, far: float
) -> Kernel:
    """exp(f_i + g_j - reg D_ij), of which the small entries are summed up; whole where few are small.

    Args:
        cost_rows: D by rows.
        f: log a.
        g: log b, such that columns sum to 1 / m.
        reg: lambda.
        far: an entry is small when it is below this share of the mean entry of its row, and of its column.
    """
    n, m = f.size, g.size
    row_logs, column_logs = torch.from_numpy(f).float()[:, None], torch.from_numpy(g).float()
    if n * m <= SMALL:
        far = 0.0
    whole = np.empty((n, m), dtype=np.float32) if far == 0 else None
    values, columns, counts = [], [], []
    far_rows, far_columns = torch.zeros(n), torch.zeros(m, dtype=torch.float64)
    for start, stop in _row_blocks(n, m):
        block = _exponents(cost_rows, start, stop, reg).add_(row_logs[start:stop]).add_(column_logs).exp_()
        if whole is not None:
            whole[start:stop] = block.numpy()
            continue
        limit = block.sum(1, keepdim=True).div_(m).clamp_max_(1 / (n * m)).mul_(far)
        near = block >= limit
        where = near.nonzero()[:, 1]
        values.append(block[near].numpy())
        columns.append(where.int().numpy())
        counts.append(near.sum(1).numpy())
        block.masked_fill_(near, 0)
        far_rows[start:stop] = block.sum(1)
        far_columns += block.sum(0)
        if start == 0 and where.numel() > _MOST_SPARSE * block.numel():
            return stabilised_kernel(cost_rows, f, g, reg, 0.0)
    if whole is not None:
        return Kernel(whole, np.zeros(n, np.float32), np.zeros(m, np.float32))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    near = sparse.csr_array((np.concatenate(values), np.concatenate(columns), starts), shape=(n, m))
    total = far_columns.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return Kernel(near, far_rows.numpy(), (far_columns / total).float().numpy())


def _row_blocks(n: int, m: int) -> list[tuple[int, int]]:
    rows = max(1, _BLOCK_ENTRIES // m)
    return [(start, min(start + rows, n)) for start in range(0, n, rows)]


def _spread(correction: Float[np.ndarray, " n"]) -> float:
    return max(float(correction.max()), 1 / float(correction.min()))
