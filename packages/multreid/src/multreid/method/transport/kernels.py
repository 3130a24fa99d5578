"""The kernel exp(f_i + g_j - lambda D_ij) of entropic transport, with its many small entries summed up by groups.

exp(-lambda D) spans orders of magnitude, and most of its entries carry next to no mass. Where the kernel is large enough to
matter it is kept entry by entry. Of the small entries of a row, only their sums over groups of columns are kept, and of those of
a column the sums over groups of rows: products are exact for what is constant within groups. With the clusters of the
instances as groups, labels and scaling factors nearly are. Costs are only ever looked at in blocks of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse

from multreid.method.matrix_products import DenseMatrix, Product, SparseMatrix

SMALL = 2**22
"""Kernels with at most so many entries are kept whole: there is nothing to gain."""
_MOST_SPARSE = 0.25
"""From this share of entries on, a whole kernel is smaller and faster than a sparse one."""
_BLOCK_ENTRIES = 2**19
"""2 MiB: the handful of passes over a block stay in the cache."""
STALE = 0.01
"""By this share a factor may change before its product with the small entries, a thousandth of the mass as a rule, is computed anew."""

ExponentRows = Callable[
    [int, int, Float[np.ndarray, " n"], Float[np.ndarray, " m"]],
    Float[torch.Tensor, "b m"],
]
"""f_i + g_j - lambda D_ij of rows start to stop, given f and g: the whole matrix never has to exist."""


def exponents_of_cost(cost: Float[np.ndarray, "n m"], reg: float) -> ExponentRows:
    """Exponents of the kernel of a given cost."""

    def rows(
        start: int, stop: int, f: Float[np.ndarray, " n"], g: Float[np.ndarray, " m"]
    ) -> Float[torch.Tensor, "b m"]:
        block = torch.from_numpy(np.ascontiguousarray(cost[start:stop], dtype=np.float32)) * -reg
        return block.add_(torch.from_numpy(f[start:stop, None]).float()).add_(torch.from_numpy(g).float())

    return rows


def exponents_of_features(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], reg: float) -> ExponentRows:
    """Exponents of the kernel of the squared Euclidean distance: all but one pass is a product of matrices."""
    first, second = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
    norms_a, norms_b = (np.einsum("nd,nd->n", each, each, dtype=np.float64) for each in (a, b))

    def rows(
        start: int, stop: int, f: Float[np.ndarray, " n"], g: Float[np.ndarray, " m"]
    ) -> Float[torch.Tensor, "b m"]:
        of_rows = torch.from_numpy((f - reg * norms_a)[start:stop, None]).float()
        of_columns = torch.from_numpy(g - reg * norms_b).float()
        return torch.addmm(of_columns, first[start:stop], second.T, alpha=2 * reg).add_(of_rows)

    return rows


@dataclass(frozen=True)
class Groups:
    """Rows and columns in groups, each group in one piece.

    Attributes:
        row_starts: where each group of rows begins.
        column_starts: the same of columns.
    """

    row_starts: Int[np.ndarray, " r"]
    column_starts: Int[np.ndarray, " c"]


ONE_GROUP = Groups(np.zeros(1, np.int64), np.zeros(1, np.int64))


@dataclass(frozen=True)
class Far:
    """What the small entries of a nonnegative n x m matrix sum up to.

    Attributes:
        by_row: sums of each row over each group of columns.
        column_shares: a column's share in the sum of its group, one row per group.
        by_column: sums of each column over each group of rows.
        row_shares: a row's share in the sum of its group, one row per group.
    """

    by_row: Float[np.ndarray, "n c"]
    column_shares: sparse.csr_array
    by_column: Float[np.ndarray, "r m"]
    row_shares: sparse.csr_array

    @cached_property
    def mass(self) -> float:
        """Sum of all of them."""
        return float(self.by_row.sum(dtype=np.float64))

    @cached_property
    def _column_product(self) -> SparseMatrix:
        return SparseMatrix(self.column_shares)

    def times(self, right: Float[np.ndarray, "m *k"]) -> Float[np.ndarray, "n *k"]:
        """The small entries times a vector or matrix, exact where that is constant within groups of columns."""
        return DenseMatrix(self.by_row).times(self._column_product.times(right))

    @cached_property
    def transposed(self) -> "Far":
        """The same of the transposed matrix."""
        return Far(self.by_column.T, self.row_shares, self.by_row.T, self.column_shares)

    def scaled(self, rows: Float[np.ndarray, " n"], columns: Float[np.ndarray, " m"]) -> "Far":
        """diag(rows) times the small entries times diag(columns)."""
        column_sums, row_sums = self.column_shares @ columns, self.row_shares @ rows
        return Far(
            self.by_row * rows[:, None] * column_sums,
            _rescaled(self.column_shares, columns, column_sums),
            self.by_column * row_sums[:, None] * columns,
            _rescaled(self.row_shares, rows, row_sums),
        )

    def reordered(self, rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " m"]) -> "Far":
        """With rows[i] and columns[j] as the new places of row i and column j."""
        by_row, by_column = np.empty_like(self.by_row), np.empty_like(self.by_column)
        by_row[rows], by_column[:, columns] = self.by_row, self.by_column
        return Far(by_row, _moved(self.column_shares, columns), by_column, _moved(self.row_shares, rows))


def _rescaled(
    shares: sparse.csr_array, factors: Float[np.ndarray, " n"], sums: Float[np.ndarray, " g"]
) -> sparse.csr_array:
    data = shares.data * factors[shares.indices] / np.repeat(sums, np.diff(shares.indptr))
    return sparse.csr_array((data, shares.indices, shares.indptr), shape=shares.shape)


def _moved(matrix: sparse.csr_array, columns: Int[np.ndarray, " m"]) -> sparse.csr_array:
    """With columns[j] as the new place of column j."""
    moved = columns.astype(matrix.indices.dtype)[matrix.indices]
    return sparse.csr_array((matrix.data, moved, matrix.indptr), shape=matrix.shape)


@dataclass(frozen=True)
class Kernel:
    """A nonnegative n x m matrix.

    Attributes:
        near: the entries that matter, sparse, or all of them.
        far: the sums of those that are not in `near`; None if there are none.
    """

    near: sparse.csr_array | Float[np.ndarray, "n m"]
    far: Far | None = None

    @cached_property
    def _product(self) -> Product:
        return DenseMatrix(self.near) if isinstance(self.near, np.ndarray) else SparseMatrix(self.near)

    @cached_property
    def transposed(self) -> "Kernel":
        """The transposed matrix."""
        near = self.near.T if isinstance(self.near, np.ndarray) else self.near.T.tocsr()
        return Kernel(near, None if self.far is None else self.far.transposed)

    def times(self, right: Float[np.ndarray, "m *k"]) -> Float[np.ndarray, "n *k"]:
        """The matrix times a vector or matrix."""
        result = self._product.times(right)
        if self.far is not None:
            result += self.far.times(right)
        return result

    def scaling(self) -> Callable[[Float[np.ndarray, " m"]], tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]]:
        """The function v -> K v, K^T (1 / K v), for factors that are called in a row and change little from call to call."""
        if isinstance(self.near, np.ndarray):
            return partial(_sums_of_whole, torch.from_numpy(self.near))
        times, times_transposed = self._following(), self.transposed._following()

        def sums(v: Float[np.ndarray, " m"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
            row_sums = times(v)
            return row_sums, times_transposed(1 / row_sums)

        return sums

    def _following(self) -> Callable[[Float[np.ndarray, " m"]], Float[np.ndarray, " n"]]:
        """`times` that keeps what the small entries add until it is stale."""
        if self.far is None:
            return self.times
        far = self.far
        at, added = np.zeros(self.near.shape[1], np.float32), np.zeros(self.near.shape[0], np.float32)

        def times(right: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
            nonlocal at, added
            if (np.abs(right - at) > STALE * at).any():
                at, added = right, far.times(right)
            return self._product.times(right) + added

        return times

    def scaled(self, rows: Float[np.ndarray, " n"], columns: Float[np.ndarray, " m"]) -> "Kernel":
        """diag(rows) times the matrix times diag(columns); overwrites it where it is whole."""
        if isinstance(self.near, np.ndarray):
            np.multiply(self.near, rows[:, None], out=self.near)
            np.multiply(self.near, columns, out=self.near)
            return Kernel(self.near)
        data = self.near.data * np.repeat(rows, np.diff(self.near.indptr))
        data *= columns[self.near.indices]
        near = sparse.csr_array((data, self.near.indices, self.near.indptr), shape=self.near.shape)
        return Kernel(near, None if self.far is None else self.far.scaled(rows, columns))

    def reordered(self, rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " m"]) -> "Kernel":
        """With rows[i] and columns[j] as the new places of row i and column j."""
        came_from_row, came_from_column = np.argsort(rows), np.argsort(columns)
        if isinstance(self.near, np.ndarray):
            return Kernel(self.near[np.ix_(came_from_row, came_from_column)])
        near = _moved(self.near[came_from_row], columns)
        near.sort_indices()
        return Kernel(near, None if self.far is None else self.far.reordered(rows, columns))


def _sums_of_whole(
    whole: Float[torch.Tensor, "n m"], v: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """K v and K^T (1 / K v); a block of rows is used for both while it is in the cache, of which it may take half."""
    n, m = whole.shape
    factors, row_sums, column_sums = torch.from_numpy(v), torch.empty(n), torch.zeros(m)
    for start, stop in row_blocks(n, 2 * m):
        block, sums = whole[start:stop], row_sums[start:stop]
        torch.mv(block, factors, out=sums)
        column_sums.addmv_(block.T, sums.reciprocal())
    return row_sums.numpy(), column_sums.numpy()


def stabilised_kernel(
    exponents: ExponentRows,
    f: Float[np.ndarray, " n"],
    g: Float[np.ndarray, " m"],
    far: float,
    groups: Groups = ONE_GROUP,
) -> Kernel:
    """exp(f_i + g_j - lambda D_ij), of which the small entries are summed up by groups; whole where few are small.

    Args:
        exponents: f_i + g_j - lambda D_ij by rows.
        f: log a.
        g: log b, such that columns sum to 1 / m.
        far: an entry is small when it is below this share of the mean entry of its row, and of its column.
        groups: over which small entries are summed up.
    """
    n, m = f.size, g.size
    if n * m <= SMALL or far == 0:
        return _whole_kernel(exponents, f, g)
    values, columns, counts = [], [], []
    by_row = np.empty((n, groups.column_starts.size), np.float32)
    by_column = np.zeros((groups.row_starts.size, m), np.float32)
    for start, stop in row_blocks(n, m):
        block = exponents(start, stop, f, g).exp_()
        limit = block.sum(1, keepdim=True).div_(m).clamp_max_(1 / (n * m)).mul_(far)
        where = np.flatnonzero((block >= limit).numpy())
        if start == 0 and where.size > _MOST_SPARSE * block.numel():
            return _whole_kernel(exponents, f, g)
        entries = block.numpy()
        flat = entries.reshape(-1)
        rows, places = np.divmod(where.astype(np.int32), np.int32(m))
        values.append(flat[where])
        columns.append(places)
        counts.append(np.bincount(rows, minlength=stop - start))
        flat[where] = 0
        by_row[start:stop] = np.add.reduceat(entries, groups.column_starts, axis=1)
        first, last = np.searchsorted(groups.row_starts, (start, stop - 1), side="right") - 1
        pieces = np.maximum(groups.row_starts[first : last + 1] - start, 0)
        by_column[first : last + 1] += np.add.reduceat(entries, pieces, axis=0)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    near = sparse.csr_array((np.concatenate(values), np.concatenate(columns), starts), shape=(n, m))
    shares = _shares(by_column.sum(0), groups.column_starts), _shares(by_row.sum(1), groups.row_starts)
    return Kernel(near, Far(by_row, shares[0], by_column, shares[1]))


def _whole_kernel(exponents: ExponentRows, f: Float[np.ndarray, " n"], g: Float[np.ndarray, " m"]) -> Kernel:
    whole = np.empty((f.size, g.size), dtype=np.float32)
    for start, stop in row_blocks(*whole.shape):
        whole[start:stop] = exponents(start, stop, f, g).exp_().numpy()
    return Kernel(whole)


def _shares(sums: Float[np.ndarray, " n"], starts: Int[np.ndarray, " g"]) -> sparse.csr_array:
    """Each element's share in the sum of its group: a row per group."""
    ends = np.append(starts, sums.size)
    totals = np.maximum(np.add.reduceat(sums, starts), np.finfo(np.float32).tiny)
    return sparse.csr_array(
        (sums / np.repeat(totals, np.diff(ends)), np.arange(sums.size, dtype=np.int32), ends.astype(np.int32)),
        shape=(starts.size, sums.size),
    )


def row_blocks(n: int, m: int) -> list[tuple[int, int]]:
    """Cut n rows of m entries into blocks that stay in the cache."""
    rows = max(1, _BLOCK_ENTRIES // m)
    return [(start, min(start + rows, n)) for start in range(0, n, rows)]
