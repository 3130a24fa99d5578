"""CMC, mAP and mINP with the conventions of the visible-infrared benchmarks (section 6), vectorised.

sysu: gallery pictures of camera 2 do not count for queries of camera 3 (the two see the same place), and the CMC counts
    identities: a ranked list is reduced to the first picture of each identity. mAP and mINP use the whole list.
regdb: nothing is left out, the CMC counts pictures.
llcm: pictures of the query's own identity taken by the query's own camera do not count, and the CMC counts identities.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from tenfold import UserError

Convention = Literal["sysu", "regdb", "llcm"]
CONVENTIONS: tuple[Convention, ...] = ("sysu", "regdb", "llcm")
_BLOCK_ENTRIES = 2**22


class ReIDScores(NamedTuple):
    """What is reported of a retrieval run, over the queries that have a match in the gallery.

    Attributes:
        cmc: share of queries whose first match is at rank k or better, k = 1, 2, ...; as long as asked for.
        rank1: the first entry of `cmc`.
        mean_ap: mAP, the mean over queries of the average precision.
        mean_inp: mINP, the mean over queries of (number of matches) / (rank of the last match).
        queries: number of queries that counted.
    """

    cmc: Float[Tensor, " r"]
    rank1: float
    mean_ap: float
    mean_inp: float
    queries: int


def left_out(
    convention: Convention,
    query_ids: Int[Tensor, " q"],
    gallery_ids: Int[Tensor, " g"],
    query_cameras: Int[Tensor, " q"],
    gallery_cameras: Int[Tensor, " g"],
) -> Bool[Tensor, "q g"]:
    """Which gallery pictures do not count for which queries."""
    if convention == "sysu":
        return (query_cameras[:, None] == 3) & (gallery_cameras[None] == 2)
    if convention == "llcm":
        return (query_ids[:, None] == gallery_ids[None]) & (query_cameras[:, None] == gallery_cameras[None])
    return torch.zeros(query_ids.numel(), gallery_ids.numel(), dtype=torch.bool, device=query_ids.device)


def rank_queries(
    distances: Float[Tensor, "q g"],
    query_ids: Int[Tensor, " q"],
    gallery_ids: Int[Tensor, " g"],
    query_cameras: Int[Tensor, " q"],
    gallery_cameras: Int[Tensor, " g"],
    convention: Convention = "sysu",
) -> Float[Tensor, "m 3"]:
    """Rank of the first match (from 0), average precision and inverse negative penalty of each query that has a match.

    Args:
        distances: smaller is more alike.
        query_ids: identities of the queries.
        gallery_ids: identities of the gallery.
        query_cameras: cameras of the queries.
        gallery_cameras: cameras of the gallery.
        convention: which rules apply.
    """
    order = distances.argsort(dim=1, stable=True)
    counts = ~left_out(convention, query_ids, gallery_ids, query_cameras, gallery_cameras).gather(1, order)
    match = (gallery_ids[order] == query_ids[:, None]) & counts
    has_match = match.any(1)
    if not has_match.any():
        return torch.empty(0, 3, dtype=torch.float64, device=distances.device)
    order, counts, match = order[has_match], counts[has_match], match[has_match]
    position = counts.cumsum(1)
    hits = match.cumsum(1)
    relevant = hits[:, -1]
    precision = (torch.where(match, hits / position.clamp_min(1), 0.0)).sum(1) / relevant
    last = torch.where(match, position, 0).amax(1)
    first_match = torch.where(match, position, torch.iinfo(position.dtype).max).amin(1) - 1
    if convention != "regdb":
        first_match = _identities_before(gallery_ids[order], counts, position, first_match + 1)
    return torch.stack([first_match.double(), precision.double(), relevant.double() / last.double()], dim=1)


def _identities_before(
    ids: Int[Tensor, "q g"], counts: Bool[Tensor, "q g"], position: Int[Tensor, "q g"], first: Int[Tensor, " q"]
) -> Int[Tensor, " q"]:
    """How many identities have a picture before the first match (which is at `first`, from 1)."""
    _, dense = ids.unique(return_inverse=True)
    none = torch.iinfo(position.dtype).max
    earliest = torch.full((ids.shape[0], int(dense.max()) + 1), none, device=ids.device)
    earliest.scatter_reduce_(1, dense, torch.where(counts, position, none), "amin")
    return (earliest < first[:, None]).sum(1)


def reid_scores(
    distances: Float[Tensor, "q g"],
    query_ids: Int[Tensor, " q"],
    gallery_ids: Int[Tensor, " g"],
    query_cameras: Int[Tensor, " q"] | None = None,
    gallery_cameras: Int[Tensor, " g"] | None = None,
    convention: Convention = "sysu",
    ranks: int = 20,
) -> ReIDScores:
    """CMC, mAP and mINP of a distance matrix.

    Args:
        distances: smaller is more alike; finite.
        query_ids: identities of the queries.
        gallery_ids: identities of the gallery.
        query_cameras: cameras of the queries; needed by `sysu` and `llcm`.
        gallery_cameras: cameras of the gallery.
        convention: `sysu`, `regdb` or `llcm`.
        ranks: length of the CMC.

    Raises:
        UserError: an unknown convention, missing cameras, distances that are NaN, or no query with a match.
    """
    if convention not in CONVENTIONS:
        raise UserError(f"convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")
    if query_cameras is None or gallery_cameras is None:
        if convention != "regdb":
            raise UserError(f"convention {convention!r} needs the cameras of queries and gallery")
        query_cameras, gallery_cameras = torch.zeros_like(query_ids), torch.zeros_like(gallery_ids)
    if distances.isnan().any():
        raise UserError("distances: NaN cannot be ranked")
    rows = max(1, _BLOCK_ENTRIES // max(1, distances.shape[1]))
    ranked = torch.cat(
        [
            rank_queries(
                distances[start : start + rows],
                query_ids[start : start + rows],
                gallery_ids,
                query_cameras[start : start + rows],
                gallery_cameras,
                convention,
            )
            for start in range(0, distances.shape[0], rows)
        ]
        or [torch.empty(0, 3, dtype=torch.float64)]
    )
    if ranked.shape[0] == 0:
        raise UserError("no query has a match in the gallery: identities of the two do not overlap")
    first, precision, penalty = ranked.unbind(1)
    cmc = (first[:, None] <= torch.arange(ranks, device=first.device)).double().mean(0)
    return ReIDScores(cmc, cmc[0].item(), precision.mean().item(), penalty.mean().item(), ranked.shape[0])


class VisibleInfraredReID(Metric):
    """CMC, mAP and mINP over batches and processes: features go in, squared Euclidean distances are ranked at the end.

    Args:
        convention: `sysu`, `regdb` or `llcm`.
        ranks: length of the CMC.

    Example:
        >>> metric = VisibleInfraredReID("regdb")  # doctest: +SKIP
        >>> metric.update(features, identities, cameras, is_query)  # doctest: +SKIP
        >>> metric.compute().rank1  # doctest: +SKIP
    """

    full_state_update = False
    higher_is_better = True
    features: list[Tensor]
    identities: list[Tensor]
    cameras: list[Tensor]
    queries: list[Tensor]

    def __init__(self, convention: Convention = "sysu", ranks: int = 20, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if convention not in CONVENTIONS:
            raise UserError(f"convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")
        self.convention: Convention = convention
        self.ranks = ranks
        for name in ("features", "identities", "cameras", "queries"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        features: Float[Tensor, "b d"],
        identities: Int[Tensor, " b"],
        cameras: Int[Tensor, " b"],
        is_query: Bool[Tensor, " b"],
    ) -> None:
        """Add a batch: unit features, identities, cameras, and which of them are queries (the others are gallery)."""
        self.features.append(features.float())
        self.identities.append(identities)
        self.cameras.append(cameras)
        self.queries.append(is_query)

    def compute(self) -> ReIDScores:
        """Rank the gallery for every query."""
        if not self.features:
            raise UserError("nothing to evaluate: no batch was added")
        features, identities, cameras, query = (
            torch.cat(each) if isinstance(each, list) else each
            for each in (self.features, self.identities, self.cameras, self.queries)
        )
        gallery = ~query
        if not query.any() or not gallery.any():
            raise UserError(f"{int(query.sum())} queries and {int(gallery.sum())} gallery pictures: both are needed")
        a, b = features[query], features[gallery]
        distances = (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
        return reid_scores(
            distances,
            identities[query],
            identities[gallery],
            cameras[query],
            cameras[gallery],
            self.convention,
            self.ranks,
        )


class PairScores(NamedTuple):
    """Over all pairs of one instance of each modality.

    Attributes:
        precision: true pairs among the pairs given one label.
        recall: pairs given one label among the true pairs.
        f1: harmonic mean of the two.
    """

    precision: float
    recall: float
    f1: float


def pair_scores(
    labels_a: Int[np.ndarray, " n"],
    labels_b: Int[np.ndarray, " m"],
    identities_a: Int[np.ndarray, " i"],
    identities_b: Int[np.ndarray, " j"],
) -> PairScores:
    """Pair precision and recall of labels in one label space.

    Args:
        labels_a: of the first modality's instances, in that space.
        labels_b: of the second's, in the same space.
        identities_a: true identities.
        identities_b: true identities, numbered alike.

    Raises:
        UserError: no true pair at all, or lengths that differ.
    """
    if labels_a.shape != identities_a.shape or labels_b.shape != identities_b.shape:
        raise UserError(
            f"labels ({labels_a.size}, {labels_b.size}) and identities ({identities_a.size}, {identities_b.size}) differ in number"
        )
    _, label = np.unique(np.concatenate([labels_a, labels_b]), return_inverse=True)
    _, identity = np.unique(np.concatenate([identities_a, identities_b]), return_inverse=True)
    cell = label * (identity.max() + 1) + identity
    n = labels_a.size
    given, true, both = _pairs(label, n), _pairs(identity, n), _pairs(cell, n)
    if true == 0:
        raise UserError("no identity occurs in both modalities: there is no true pair to find")
    precision, recall = both / given if given else 0.0, both / true
    return PairScores(precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0)


def _pairs(groups: Int[np.ndarray, " n"], first: int) -> float:
    """Pairs of one of the `first` entries and one of the rest in the same group."""
    size = int(groups.max()) + 1
    return float(np.bincount(groups[:first], minlength=size) @ np.bincount(groups[first:], minlength=size))
