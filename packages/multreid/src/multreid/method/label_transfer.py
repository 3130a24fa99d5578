"""Modality-unified label transfer (sections 3.3 and 3.4): the method itself.

Every instance of two modalities gets a soft label in both label spaces: on the clusters of its own modality and on those of
the other. Labels pass between modalities along the transport plan (heterogeneous step) and within a modality along the
Jaccard similarity (homogeneous step), pulled back to where they started with weight alpha. Read as alternating minimisation,
the steps reduce sum_ij A_ij |y_i - y_j|^2 within and across the modalities together with alpha times the distance from the start.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from scipy import sparse

from multreid.method.jaccard import jaccard_similarity
from multreid.method.matching import match_centres
from multreid.method.matrix_products import RowStochastic, SparseMatrix
from multreid.method.transport.kernels import Kernel
from multreid.method.transport.sinkhorn import Stopping, TransportPlan, sinkhorn_features
from multreid.method.validation import check_features, check_pair, unit_rows
from tenfold import UserError

Start = Literal["ot", "matching"]
_PANEL = 64
"""Columns of labels that are propagated at once."""


@dataclass(frozen=True)
class Affinities:
    """Who is how close to whom, row-stochastic in each direction.

    Attributes:
        within_a: A^vv, n x n.
        within_b: A^rr, m x m.
        to_a: A^vr, n x m: what instances of a receive from those of b.
        to_b: A^rv, m x n.
    """

    within_a: RowStochastic
    within_b: RowStochastic
    to_a: RowStochastic
    to_b: RowStochastic

    def swapped(self) -> "Affinities":
        """The same with the two modalities exchanged."""
        return Affinities(self.within_b, self.within_a, self.to_b, self.to_a)


def affinities(similarity_a: sparse.csr_array, similarity_b: sparse.csr_array, plan: Kernel) -> Affinities:
    """Affinities from similarities within the modalities and a transport plan between them (section 3.3)."""
    n, m = plan.near.shape
    return Affinities(
        row_stochastic(similarity_a),
        row_stochastic(similarity_b),
        RowStochastic(plan, m),
        RowStochastic(plan.transposed, n),
    )


@dataclass(frozen=True)
class Propagation:
    """Soft labels in one label space.

    Attributes:
        own: labels of the instances whose clusters span the space, rows sum to one.
        cross: labels of the other modality's instances.
        iterations: how many were made.
        converged: whether the relative change fell to the tolerance before the cap.
        change: the larger of the two relative L1 changes in the last iteration.
    """

    own: Float[np.ndarray, "n k"]
    cross: Float[np.ndarray, "m k"]
    iterations: int
    converged: bool
    change: float


@dataclass(frozen=True)
class Association:
    """Labels of all instances of two modalities in both label spaces.

    Attributes:
        labels_a: instances of a on clusters of a (hard).
        labels_b: instances of b on clusters of b.
        cross_a: instances of a on clusters of b.
        cross_b: instances of b on clusters of a.
        soft_a: the same, soft: rows that sum to one.
        soft_b: see `soft_a`.
        soft_cross_a: see `soft_a`.
        soft_cross_b: see `soft_a`.
        transport: how the instance-to-instance transport ended; None for labels that no transfer made.
        space_a: how the propagation in a's label space ended.
        space_b: the same in b's.
    """

    labels_a: Int[np.ndarray, " n"]
    labels_b: Int[np.ndarray, " m"]
    cross_a: Int[np.ndarray, " n"]
    cross_b: Int[np.ndarray, " m"]
    soft_a: Float[np.ndarray, "n ka"]
    soft_b: Float[np.ndarray, "m kb"]
    soft_cross_a: Float[np.ndarray, "n kb"]
    soft_cross_b: Float[np.ndarray, "m ka"]
    transport: "Report | None" = None
    space_a: "Report | None" = None
    space_b: "Report | None" = None

    def mixed(self, beta: float = 0.7) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Training targets: beta onehot(argmax) + (1 - beta) soft, for a, b, cross a, cross b (section 3.4)."""
        softs = (self.soft_a, self.soft_b, self.soft_cross_a, self.soft_cross_b)
        first, second, third, fourth = (mixed_targets(soft, beta) for soft in softs)
        return first, second, third, fourth


@dataclass(frozen=True)
class Report:
    """How an iteration ended.

    Attributes:
        iterations: how many were made.
        converged: whether its stopping rule was met before the cap.
        change: what the rule looks at, in the last iteration.
        row_error: largest share by which a row sum of the plan is wrong; 0 for a propagation.
        far_mass: share of the plan's mass that was summed up rather than kept by entry; 0 for a propagation.
    """

    iterations: int
    converged: bool
    change: float
    row_error: float = 0.0
    far_mass: float = 0.0


def transfer_labels(
    features_a: Float[np.ndarray, "n d"],
    features_b: Float[np.ndarray, "m e"],
    labels_a: Int[np.ndarray, " k"],
    labels_b: Int[np.ndarray, " l"],
    *,
    alpha: float = 0.2,
    k1: int = 30,
    k2: int = 6,
    reg: float = 25.0,
    temperature: float = 0.05,
    start: Start = "ot",
    stopping: Stopping = "official",
    far: float = 0.01,
    max_iterations: int = 20,
    tolerance: float = 0.01,
    similarity_a: sparse.csr_array | None = None,
    similarity_b: sparse.csr_array | None = None,
) -> Association:
    """Associate the clusters of two modalities instance by instance (sections 3.3 and 3.4).

    Args:
        features_a: one row per instance of the first modality; taken as unit rows.
        features_b: the same of the second modality, from the same encoder.
        labels_a: cluster of each instance within its modality, 0 to K - 1; -1 for none: such rows take part in all but
            the centres.
        labels_b: see `labels_a`.
        alpha: weight of the starting labels, 0 to 1.
        k1: of the Jaccard distance.
        k2: of the Jaccard distance.
        reg: lambda of the transport.
        temperature: of the starting labels' softmax.
        start: where cross labels start: transport between instances and centres (the paper's), or one-to-one matching of
            centres, which is better where clusters are pure and signals weak, and worse where one modality merges identities.
        stopping: of the transport, see `sinkhorn`.
        far: entries of a large transport plan below this share of the mean are summed up within clusters, see `sinkhorn`; 0
            keeps each of them.
        max_iterations: of the propagation.
        tolerance: relative L1 change at which the propagation ends.
        similarity_a: 1 - Jaccard distance of `features_a` if it is at hand from the clustering; else it is computed.
        similarity_b: see `similarity_a`.

    Raises:
        UserError: features or labels that cannot be used; the message says which.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha = {alpha}: must lie between 0 and 1")
    a, b = (
        unit_rows(check_features(each, name)) for each, name in ((features_a, "features_a"), (features_b, "features_b"))
    )
    check_pair(a, b, ("features_a", "features_b"))
    centres_a, centres_b = cluster_centres(a, labels_a, "labels_a"), cluster_centres(b, labels_b, "labels_b")
    plan = sinkhorn_features(a, b, reg, stopping=stopping, far=far, groups=(labels_a, labels_b))
    closeness = affinities(
        jaccard_similarity(a, k1, k2) if similarity_a is None else similarity_a,
        jaccard_similarity(b, k1, k2) if similarity_b is None else similarity_b,
        plan.kernel,
    )
    cross = start_from_transport if start == "ot" else start_from_matching
    in_a = propagate(
        closeness,
        start_labels(a, centres_a, temperature),
        cross(b, centres_a, centres_b, labels_b, reg, stopping),
        alpha,
        max_iterations,
        tolerance,
    )
    in_b = propagate(
        closeness.swapped(),
        start_labels(b, centres_b, temperature),
        cross(a, centres_b, centres_a, labels_a, reg, stopping),
        alpha,
        max_iterations,
        tolerance,
    )
    return Association(
        labels_a=in_a.own.argmax(1),
        labels_b=in_b.own.argmax(1),
        cross_a=in_b.cross.argmax(1),
        cross_b=in_a.cross.argmax(1),
        soft_a=in_a.own,
        soft_b=in_b.own,
        soft_cross_a=in_b.cross,
        soft_cross_b=in_a.cross,
        transport=report_of_plan(plan),
        space_a=Report(in_a.iterations, in_a.converged, in_a.change),
        space_b=Report(in_b.iterations, in_b.converged, in_b.change),
    )


def report_of_plan(plan: TransportPlan) -> Report:
    """What a transport plan reports of its making, without the plan."""
    return Report(plan.iterations, plan.converged, plan.change, plan.row_error, plan.far_mass)


def cluster_centres(
    features: Float[np.ndarray, "n d"], labels: Shaped[np.ndarray, "..."], name: str = "labels"
) -> Float[np.ndarray, "k d"]:
    """Mean of the features of each cluster, not normalised; rows labelled -1 are left out.

    Raises:
        UserError: labels that do not fit the features, skip a number, or name no cluster at all.
    """
    if labels.shape != (len(features),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{name}: expected {len(features)} whole numbers, got {labels.dtype} of shape {labels.shape}")
    if labels.min() < -1:
        raise UserError(f"{name}: {labels.min()} is not a cluster; use 0, 1, ... and -1 for none")
    inside = labels >= 0
    if not inside.any():
        raise UserError(f"{name}: no cluster at all (every instance is -1); a larger eps finds more")
    sizes = np.bincount(labels[inside])
    if (sizes == 0).any():
        raise UserError(f"{name}: cluster {int(sizes.argmin())} has no instance; number clusters 0 to K - 1")
    indicator = sparse.csr_array(
        (np.ones(inside.sum(), np.float32), (labels[inside], np.flatnonzero(inside))), shape=(sizes.size, len(features))
    )
    return np.asarray(indicator @ features / sizes[:, None].astype(np.float32), dtype=np.float32)


def start_labels(
    features: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "k d"], temperature: float
) -> Float[np.ndarray, "n k"]:
    """Y_0 = softmax(f C^T / temperature) over the clusters of the instances' own modality (section 3.3)."""
    logits = features @ centres.T / np.float32(temperature)
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


def start_from_transport(
    features: Float[np.ndarray, "m d"],
    centres: Float[np.ndarray, "k d"],
    own_centres: Float[np.ndarray, "l d"],  # noqa: ARG001  # the other way to start needs them: one signature
    own_labels: Int[np.ndarray, " m"],  # noqa: ARG001  # as above
    reg: float,
    stopping: Stopping,
) -> Float[np.ndarray, "m k"]:
    """Cross starting labels: one-hot argmax of the transport plan between instances and the other modality's centres."""
    # The instances that the centres were made of are the other modality: the plan has instances as rows.
    plan = sinkhorn_features(features, centres, reg, stopping=stopping)
    return _one_hot(plan.row_argmax(), len(centres))


def start_from_matching(
    features: Float[np.ndarray, "m d"],
    centres: Float[np.ndarray, "k d"],
    own_centres: Float[np.ndarray, "l d"],
    own_labels: Int[np.ndarray, " m"],
    reg: float,  # noqa: ARG001  # one signature with the transport start
    stopping: Stopping,  # noqa: ARG001  # as above
) -> Float[np.ndarray, "m k"]:
    """Cross starting labels: what progressive graph matching gives each instance's cluster; nearest own centre for -1."""
    nearest_own = (features @ unit_rows(own_centres).T).argmax(axis=1)
    own = np.where(own_labels >= 0, own_labels, nearest_own)
    return _one_hot(match_centres(own_centres, centres)[own], len(centres))


def _one_hot(labels: Int[np.ndarray, " n"], classes: int) -> Float[np.ndarray, "n k"]:
    return np.eye(classes, dtype=np.float32)[labels]


def row_stochastic(matrix: sparse.csr_array) -> RowStochastic:
    """Divide each row by its sum, without a copy."""
    return RowStochastic(SparseMatrix(matrix), matrix.shape[1])


def propagate(
    affinities: Affinities,
    own_start: Float[np.ndarray, "n k"],
    cross_start: Float[np.ndarray, "m k"],
    alpha: float,
    max_iterations: int = 20,
    tolerance: float = 0.01,
) -> Propagation:
    """Alternate heterogeneous and homogeneous steps in one label space until labels settle (section 3.4).

    Args:
        affinities: with the modality whose clusters span the space first.
        own_start: Y^v_0.
        cross_start: Y^{r->v}_0.
        alpha: weight of the starting labels.
        max_iterations: the cap.
        tolerance: of the relative L1 change of both matrices.
    """
    # Columns do not meet, and a panel of them stays in the cache.
    starts = [
        (own_start[:, first : first + _PANEL], cross_start[:, first : first + _PANEL])
        for first in range(0, own_start.shape[1], _PANEL)
    ]
    panels = [(np.ascontiguousarray(own), np.ascontiguousarray(cross)) for own, cross in starts]
    iteration, change = 0, np.inf
    while iteration < max_iterations and change > tolerance:
        changed, mass = np.zeros(2), np.zeros(2)
        for place, ((own, cross), (own_0, cross_0)) in enumerate(zip(panels, starts, strict=True)):
            received_own = heterogeneous_step(affinities.to_a.times(cross), own_0, alpha)
            received_cross = heterogeneous_step(affinities.to_b.times(received_own), cross_0, alpha)
            panels[place] = (
                homogeneous_step(affinities.within_a, received_own),
                homogeneous_step(affinities.within_b, received_cross),
            )
            changed += [_l1(new, old) for new, old in zip(panels[place], (own, cross), strict=True)]
            mass += [_l1(own), _l1(cross)]
        iteration, change = iteration + 1, float((changed / mass).max())
    own, cross = (np.concatenate(parts, axis=1) for parts in zip(*panels, strict=True))
    return Propagation(own, cross, iteration, change <= tolerance, change)


def heterogeneous_step(
    received: Float[np.ndarray, "n k"], start: Float[np.ndarray, "n k"], alpha: float
) -> Float[np.ndarray, "n k"]:
    """Y <- (1 - alpha) A Y' + alpha Y_0, where A Y' are the labels received from the other modality (section 3.4, steps 1, 2).

    Overwrites the labels received.
    """
    torch.from_numpy(received).mul_(1 - alpha).add_(torch.from_numpy(start), alpha=alpha)
    return received


def homogeneous_step(affinity: RowStochastic, labels: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Y <- (A Y + Y) / 2 (section 3.4, steps 3, 4)."""
    result = affinity.times(labels)
    result += labels
    result *= np.float32(0.5)
    return result


def _l1(labels: Float[np.ndarray, "n k"], other: Float[np.ndarray, "n k"] | float = 0.0) -> float:
    difference = torch.from_numpy(labels) - torch.as_tensor(other)
    return float(difference.abs_().sum())


def mixed_targets(soft: Float[np.ndarray, "n k"], beta: float = 0.7) -> Float[np.ndarray, "n k"]:
    """beta onehot(argmax) + (1 - beta) soft (section 3.4)."""
    return np.float32(beta) * _one_hot(soft.argmax(axis=1), soft.shape[1]) + np.float32(1 - beta) * soft


@dataclass(frozen=True)
class HardLabels:
    """Labels of all instances in both label spaces, without the soft ones.

    Attributes:
        labels_a: instances of a on clusters of a.
        labels_b: instances of b on clusters of b.
        cross_a: instances of a on clusters of b.
        cross_b: instances of b on clusters of a.
    """

    labels_a: Int[np.ndarray, " n"]
    labels_b: Int[np.ndarray, " m"]
    cross_a: Int[np.ndarray, " n"]
    cross_b: Int[np.ndarray, " m"]
