"""Which instances make a batch (section 3.5): so many pseudo-identities, so many instances of each."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from tenfold import UserError


@dataclass(frozen=True)
class Batch:
    """Row numbers of one batch, visible and infrared."""

    visible: Int[np.ndarray, " b"]
    infrared: Int[np.ndarray, " c"]


def sample_instances(
    labels: Int[np.ndarray, " n"], chosen: Int[np.ndarray, " p"], instances: int, generator: np.random.Generator
) -> Int[np.ndarray, " b"]:
    """Rows of `instances` random members of each chosen label; members repeat where a label has fewer.

    Args:
        labels: of all rows; every chosen label must occur.
        chosen: labels.
        instances: of each.
        generator: source of chance.
    """
    order = np.lexsort((generator.random(labels.size), labels))
    starts = np.searchsorted(labels[order], chosen)
    sizes = np.searchsorted(labels[order], chosen, side="right") - starts
    # A random order within each label, walked round and round.
    return order[starts[:, None] + np.arange(instances) % sizes[:, None]].ravel()


def _choose(labels: Int[np.ndarray, " k"], count: int, generator: np.random.Generator) -> Int[np.ndarray, " p"]:
    return generator.choice(labels, min(count, labels.size), replace=False)


def stage_one_batches(
    visible_labels: Int[np.ndarray, " n"],
    infrared_labels: Int[np.ndarray, " m"],
    *,
    identities: int,
    instances: int,
    steps: int,
    generator: np.random.Generator,
) -> list[Batch]:
    """Batches of stage one: clusters of each modality drawn on their own; outliers (-1) take no part.

    Where a modality has fewer clusters than `identities`, all of them are taken.
    """
    kinds = [(labels, np.unique(labels[labels >= 0])) for labels in (visible_labels, infrared_labels)]
    return [
        Batch(
            *(
                sample_instances(labels, _choose(found, identities, generator), instances, generator)
                for labels, found in kinds
            )
        )
        for _ in range(steps)
    ]


def stage_two_batches(
    visible_own: Int[np.ndarray, " n"],
    infrared_cross: Int[np.ndarray, " m"],
    infrared_own: Int[np.ndarray, " m"],
    visible_cross: Int[np.ndarray, " n"],
    *,
    identities: int,
    instances: int,
    steps: int,
    generator: np.random.Generator,
) -> list[Batch]:
    """Batches of stage two: half of the identities from the visible label space, half from the infrared one.

    In the visible space an identity is a visible cluster that instances of both modalities carry: visible ones as own
    label, infrared ones as cross label. Where fewer such clusters remain than asked for, the batch is smaller.

    Raises:
        UserError: in one of the spaces no label is carried by both modalities.
    """
    half = max(1, identities // 2)
    spaces = [(visible_own, infrared_cross), (visible_cross, infrared_own)]
    shared = [np.intersect1d(own, cross) for own, cross in spaces]
    if any(each.size == 0 for each in shared):
        raise UserError(
            "no label is carried by both modalities: the association has collapsed; lower alpha or raise eps"
        )
    batches = []
    for _ in range(steps):
        parts = []
        for (visible, infrared), labels in zip(spaces, shared, strict=True):
            chosen = _choose(labels, half, generator)
            parts.append([sample_instances(each, chosen, instances, generator) for each in (visible, infrared)])
        batches.append(Batch(np.concatenate([parts[0][0], parts[1][0]]), np.concatenate([parts[0][1], parts[1][1]])))
    return batches
