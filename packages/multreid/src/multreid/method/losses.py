"""The training objectives of both stages (sections 3.1 and 3.5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from multreid.method.memory import ClusterMemory

SHARPENING = 0.2


def oclr_loss(
    logits: Float[Tensor, "b k"], target: Float[Tensor, "b k"], *, detach_target: bool = False
) -> Float[Tensor, ""]:
    """Online cross-memory label refinement (section 3.5): mean_b sum_k -log softmax(p)_k softmax(t / 0.2)_k.

    Args:
        logits: p, already divided by the temperature.
        target: t, the same from another memory or view.
        detach_target: let no gradient through t. Official code lets it through both.
    """
    target = target.detach() if detach_target else target
    return -(F.log_softmax(logits, dim=1) * F.softmax(target / SHARPENING, dim=1)).sum(1).mean()


@dataclass(frozen=True)
class Views:
    """Features of one batch.

    Attributes:
        visible: f_v.
        augmented: f_va, of the channel-augmented copies of the same visible pictures.
        infrared: f_r.
    """

    visible: Float[Tensor, "b d"]
    augmented: Float[Tensor, "b d"]
    infrared: Float[Tensor, "c d"]


def stage_one_loss(
    views: Views,
    visible_memory: ClusterMemory,
    infrared_memory: ClusterMemory,
    visible_labels: Int[Tensor, " b"],
    infrared_labels: Int[Tensor, " c"],
) -> Float[Tensor, ""]:
    """CE(m_v(f_v), y_v) + CE(m_v(f_va), y_v) + CE(m_r(f_r), y_r) (section 3.1)."""
    return (
        F.cross_entropy(visible_memory(views.visible, visible_labels), visible_labels)
        + F.cross_entropy(visible_memory(views.augmented, visible_labels), visible_labels)
        + F.cross_entropy(infrared_memory(views.infrared, infrared_labels), infrared_labels)
    )


@dataclass(frozen=True)
class Memories:
    """The six memories of stage two, named as in section 3.5.

    Attributes:
        v: m_v, visible clusters, updated by visible instances.
        r: m_r, infrared clusters, updated by infrared instances.
        va: m_va, visible clusters, shared: updated by both modalities.
        ra: m_ra, infrared clusters, shared.
        rcm: m_rcm, visible clusters, updated by infrared instances.
        vcm: m_vcm, infrared clusters, updated by visible instances.
    """

    v: ClusterMemory
    r: ClusterMemory
    va: ClusterMemory
    ra: ClusterMemory
    rcm: ClusterMemory
    vcm: ClusterMemory

    @classmethod
    def starting_from(
        cls, visible: Float[Tensor, "kv d"], infrared: Float[Tensor, "kr d"], temperature: float, momentum: float
    ) -> "Memories":
        """All six, from the cluster centres of the two modalities."""
        v, va, rcm = (ClusterMemory(visible, temperature, momentum) for _ in range(3))
        r, ra, vcm = (ClusterMemory(infrared, temperature, momentum) for _ in range(3))
        return cls(v, r, va, ra, rcm, vcm)


@dataclass(frozen=True)
class Targets:
    """Soft mixed training targets of one batch (section 3.4).

    Attributes:
        visible: y^v, visible instances on visible clusters.
        infrared: y^r.
        visible_cross: y^{v->r}, visible instances on infrared clusters.
        infrared_cross: y^{r->v}.
    """

    visible: Float[Tensor, "b kv"]
    infrared: Float[Tensor, "c kr"]
    visible_cross: Float[Tensor, "b kr"]
    infrared_cross: Float[Tensor, "c kv"]


def memory_cross_entropy(
    memory: ClusterMemory, features: Float[Tensor, "b d"], targets: Float[Tensor, "b k"]
) -> Float[Tensor, ""]:
    """CE(m(f), y) with soft targets; the memory's rows of the hard labels are updated."""
    return F.cross_entropy(memory(features, targets.argmax(1)), targets)


def visible_space_loss(
    views: Views, memories: Memories, targets: Targets, *, detach_target: bool = False, refinement: float = 1.0
) -> Float[Tensor, ""]:
    """Stage two, even epochs: the visible label space (section 3.5).

    Args:
        views: features of a batch.
        memories: all six; those that take part are updated in the backward pass.
        targets: of the batch.
        detach_target: see `oclr_loss`.
        refinement: weight of the six refinement terms, 1 in the official code.
    """
    specific = _own_terms(views, memories, targets) + memory_cross_entropy(
        memories.rcm, views.infrared, targets.infrared_cross
    )
    shared = (
        memory_cross_entropy(memories.va, views.visible, targets.visible)
        + memory_cross_entropy(memories.va, views.augmented, targets.visible)
        + memory_cross_entropy(memories.va, views.infrared, targets.infrared_cross)
    )
    others = memories.v, memories.rcm
    return specific + shared + refinement * _refinement(views, memories.va, others, detach_target)


def infrared_space_loss(
    views: Views, memories: Memories, targets: Targets, *, detach_target: bool = False, refinement: float = 1.0
) -> Float[Tensor, ""]:
    """Stage two, odd epochs: the infrared label space, roles exchanged (section 3.5); see `visible_space_loss`."""
    specific = (
        _own_terms(views, memories, targets)
        + memory_cross_entropy(memories.vcm, views.visible, targets.visible_cross)
        + memory_cross_entropy(memories.vcm, views.augmented, targets.visible_cross)
    )
    shared = (
        memory_cross_entropy(memories.ra, views.infrared, targets.infrared)
        + memory_cross_entropy(memories.ra, views.visible, targets.visible_cross)
        + memory_cross_entropy(memories.ra, views.augmented, targets.visible_cross)
    )
    others = memories.r, memories.vcm
    return specific + shared + refinement * _refinement(views, memories.ra, others, detach_target)


def _own_terms(views: Views, memories: Memories, targets: Targets) -> Float[Tensor, ""]:
    return (
        memory_cross_entropy(memories.v, views.visible, targets.visible)
        + memory_cross_entropy(memories.v, views.augmented, targets.visible)
        + memory_cross_entropy(memories.r, views.infrared, targets.infrared)
    )


def _refinement(
    views: Views, shared: ClusterMemory, others: Sequence[ClusterMemory], detach_target: bool
) -> Float[Tensor, ""]:
    """The six OCLR terms of a label space: each view on the shared memory, refined by its partner on both other memories.

    The partner of a visible view is the other visible view; the partner of the infrared view is itself.
    """
    pairs = (
        (views.visible, views.augmented),
        (views.augmented, views.visible),
        (views.infrared, views.infrared),
    )
    terms = [
        oclr_loss(shared.similarities(view), memory.similarities(partner), detach_target=detach_target)
        for memory in others
        for view, partner in pairs
    ]
    return torch.stack(terms).sum()
