"""Nearest neighbours by squared Euclidean distance, exact, without ever holding the whole distance matrix."""

import numpy as np
import torch
from jaxtyping import Float, Int

_BLOCK_ENTRIES = 2**21
"""Distances held at once: at most 8 MiB of float32."""
_BLOCK_ROWS = 128
"""More rows at once would not make their product faster."""
_STRIPES = 16
"""Each row of distances is folded into so many stripes, of which the smallest entries are looked at first."""


def nearest(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "g d"], k: int
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """The k nearest gallery rows of each query, nearest first.

    Args:
        queries: float32 rows.
        gallery: float32 rows; may be memory-mapped, as it is read in blocks.
        k: how many, at most the number of gallery rows.

    Returns:
        Row numbers and squared distances.
    """
    if len(gallery) * len(queries) > _BLOCK_ENTRIES and len(queries) < 512 and len(gallery) > 65536:
        return _nearest_over_gallery_blocks(queries, gallery, k)
    rows = min(_BLOCK_ROWS, max(1, _BLOCK_ENTRIES // len(gallery)))
    # |g|^2 rides along as one more column, against a column of ones: the product does all the work. |q|^2 is the same for
    # every gallery row and is added after the selection.
    widened = torch.empty(gallery.shape[0], gallery.shape[1] + 1)
    widened.numpy()[:, :-1] = gallery
    widened[:, -1] = widened[:, :-1].square().sum(1)
    target = widened.T.contiguous()
    indices, distances = torch.empty((len(queries), k), dtype=torch.long), torch.empty((len(queries), k))
    buffer = torch.empty((min(rows, len(queries)), len(gallery)))
    for start in range(0, len(queries), rows):
        block = torch.from_numpy(np.ascontiguousarray(queries[start : start + rows]))
        partial = torch.mm(torch.cat([-2 * block, torch.ones(len(block), 1)], 1), target, out=buffer[: len(block)])
        values, found = _smallest(partial, k)
        indices[start : start + rows] = found
        distances[start : start + rows] = (values + block.square().sum(1, keepdim=True)).clamp_min_(0)
    return indices.numpy(), distances.numpy()


def _smallest(rows: Float[torch.Tensor, "q g"], k: int) -> tuple[Float[torch.Tensor, "q k"], Int[torch.Tensor, "q k"]]:
    """The k smallest entries of each row, in order, and their places.

    They lie in the k columns of the folded row whose smallest entries are smallest: a quarter of what a plain `topk` takes.
    """
    width = rows.shape[1] // _STRIPES
    if width < 4 * k:
        return rows.topk(k, largest=False)
    folded = rows[:, : width * _STRIPES].unflatten(1, (_STRIPES, width)).amin(1)
    chosen = folded.topk(k, largest=False, sorted=False).indices
    places = (chosen[:, None] + torch.arange(0, width * _STRIPES, width)[:, None]).flatten(1)
    rest = torch.arange(width * _STRIPES, rows.shape[1]).expand(len(rows), -1)
    places = torch.cat([places, rest], 1)
    values, order = rows.gather(1, places).topk(k, largest=False)
    return values, places.gather(1, order)


def _nearest_over_gallery_blocks(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "g d"], k: int
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """Few queries, a gallery that may not fit in memory: keep the best k while passing over it once."""
    source = torch.from_numpy(np.ascontiguousarray(queries))
    best = torch.full((len(queries), k), torch.inf)
    best_index = torch.zeros((len(queries), k), dtype=torch.long)
    rows = max(k, _BLOCK_ENTRIES // len(queries))
    for start in range(0, len(gallery), rows):
        block = torch.from_numpy(np.array(gallery[start : start + rows], dtype=np.float32))
        partial = torch.addmm(block.square().sum(1), source, block.T, alpha=-2)
        values, found = partial.topk(min(k, len(block)), largest=False)
        best, order = torch.cat([best, values], 1).topk(k, largest=False)
        best_index = torch.cat([best_index, found + start], 1).gather(1, order)
    return best_index.numpy(), (best + source.square().sum(1, keepdim=True)).clamp_min(0).numpy()


def squared_distances(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Squared Euclidean distances between all rows of two matrices, not negative."""
    first, second = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
    product = torch.addmm(second.square().sum(1), first, second.T, alpha=-2)
    return product.add_(first.square().sum(1, keepdim=True)).clamp_min_(0).numpy()
