"""The losses of an incremental session (paper §3.5) and of the baselines that hold the old model."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def session_loss(
    logits: Float[Tensor, "n k"],
    labels: Int[Tensor, " n"],
    temperature: float = 1.0,
    proto_logits: Float[Tensor, "m k"] | None = None,
    proto_labels: Int[Tensor, " m"] | None = None,
    proto_weight: float = 10.0,
) -> Float[Tensor, ""]:
    """mean CE(h(f(x)) / tau, y) + weight * mean CE(h(mu_c) / tau, c), over all logits seen so far (paper §3.5).

    Args:
        logits: of new pictures.
        labels: their classes.
        temperature: tau; 0.1 in the official code.
        proto_logits: of prototypes of old classes; left out, the second term is too.
        proto_labels: their classes.
        proto_weight: 10 in the official code.
    """
    loss = F.cross_entropy(logits.float() / temperature, labels)
    if proto_logits is None or proto_labels is None or proto_weight == 0:
        return loss
    return loss + proto_weight * F.cross_entropy(proto_logits.float() / temperature, proto_labels)


def distillation_loss(
    logits: Float[Tensor, "n k"], old_logits: Float[Tensor, "n j"], softening: float = 2.0
) -> Float[Tensor, ""]:
    """LwF: cross-entropy of the old classes' softened outputs with those of the old model (Li & Hoiem 2016, eq. 2).

    Args:
        logits: of the model in training, over all classes.
        old_logits: of the model before the session, over the old classes (the first j).
        softening: temperature of both, 2 in that paper.
    """
    target = (old_logits.float() / softening).softmax(1)
    ours = (logits[:, : old_logits.shape[1]].float() / softening).log_softmax(1)
    return -(target * ours).sum(1).mean() * softening**2


def quadratic_penalty(
    parameters: Iterable[Tensor], anchors: Iterable[Tensor], importance: Iterable[Tensor]
) -> Float[Tensor, ""]:
    """EWC: half the sum of F * (theta - theta_old)^2 (Kirkpatrick et al. 2017, eq. 3).

    A parameter that has grown (the head) is compared on its old rows.
    """
    total = torch.zeros(())
    for now, before, weight in zip(parameters, anchors, importance, strict=True):
        total = total.to(now.device) + 0.5 * (weight * (now[: before.shape[0]] - before).square()).sum()
    return total
