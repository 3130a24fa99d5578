"""Products of sparse and dense matrices with vectors and label matrices: through MKL where torch has it, else scipy."""

import warnings
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse


@runtime_checkable
class Product(Protocol):
    """A matrix that is only multiplied with."""

    def times(self, right: Float[np.ndarray, "m *k"]) -> Float[np.ndarray, "n *k"]:
        """The matrix times a vector or matrix."""
        ...


class SparseMatrix:
    """A sparse float32 matrix; MKL takes half of scipy's time."""

    def __init__(self, matrix: sparse.csr_array) -> None:
        self.csr = matrix
        self._mkl = _as_torch(matrix) if torch.backends.mkl.is_available() and matrix.nnz else None

    def times(self, right: Float[np.ndarray, "m *k"]) -> Float[np.ndarray, "n *k"]:
        """The matrix times a vector or matrix."""
        if self._mkl is None:
            return self.csr @ right
        source = torch.from_numpy(np.ascontiguousarray(right))
        return (torch.mv if source.ndim == 1 else torch.mm)(self._mkl, source).numpy()


def _as_torch(matrix: sparse.csr_array) -> torch.Tensor:
    parts = (torch.from_numpy(each) for each in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        # torch says once that its sparse matrices are in beta, and that it does not check them.
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(*parts, size=matrix.shape)


class DenseMatrix:
    """A whole float32 matrix, or the transposed of one."""

    def __init__(self, matrix: Float[np.ndarray, "n m"]) -> None:
        self._matrix = torch.from_numpy(matrix)

    def times(self, right: Float[np.ndarray, "m *k"]) -> Float[np.ndarray, "n *k"]:
        """The matrix times a vector or matrix."""
        return torch.matmul(self._matrix, torch.from_numpy(np.ascontiguousarray(right))).numpy()


class RowStochastic:
    """A nonnegative matrix with each row divided by its sum; the sums are kept apart, the matrix is not copied."""

    def __init__(self, matrix: Product, columns: int) -> None:
        self._matrix = matrix
        self._shares = (1 / matrix.times(np.ones(columns, np.float32)))[:, None]

    def times(self, labels: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "n k"]:
        """Each row's mean of the label rows, weighted by the matrix."""
        result = self._matrix.times(labels)
        result *= self._shares
        return result
