"""The losses of a client and the proximal terms of the baselines (§9)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

LOG_EPS = 1e-5
"""Inside the logarithm of the adversarial loss, as in SagNet's code: its minimum lies 2e-5 below log 2."""


def adversarial_entropy(logits: Float[Tensor, "n c"], eps: float = LOG_EPS) -> Float[Tensor, ""]:
    """Cross-entropy of a prediction against the uniform distribution, L_adv: least when the branch cannot tell.

    Args:
        logits: of the auxiliary branch.
        eps: inside the logarithm.

    Returns:
        Mean over the batch, at least about log(c).
    """
    return -(logits.softmax(dim=1) + eps).log().mean(dim=1).mean()


def proximal_term(weights: Iterable[Tensor], anchors: Iterable[Tensor], strength: float) -> Float[Tensor, ""]:
    """(strength / 2) times the squared distance of all weights to their anchors: FedProx's mu, Ditto's lambda.

    Flower's FedProx docstring shows the norm without its square; the papers square it.
    """
    pairs = zip(weights, anchors, strict=True)
    return strength / 2 * torch.stack([(weight - anchor).square().sum() for weight, anchor in pairs]).sum()
