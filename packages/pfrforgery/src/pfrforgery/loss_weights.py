"""The weights of FedPR's losses and the routing of their gradients, as the configuration spells them (specification §3.2, §3.3).

Apart from `routing`, which computes with them, so that a command line reads its configuration without loading torch.
"""

from dataclasses import dataclass
from typing import Literal

from tenfold import UserError

Routing = Literal["shared_main", "personal_main", "plain"]


@dataclass(frozen=True)
class LossWeights:
    """L = alpha * L_adv + beta * L_p + gamma * L_s.

    Attributes:
        alpha: of the adversarial loss.
        beta: of the personal branch's cross-entropy.
        gamma: of the shared branch's cross-entropy.
        adv_clip: largest joint norm of the adversarial gradient.
    """

    alpha: float = 0.1
    beta: float = 1.0
    gamma: float = 1.0
    adv_clip: float = 0.1


def check_weights(weights: LossWeights, routing: Routing) -> None:
    """Refuse weights that mean nothing.

    Raises:
        UserError: a negative weight, or an adversarial loss in the routing that has none.
    """
    for name in ("alpha", "beta", "gamma", "adv_clip"):
        if not getattr(weights, name) >= 0:
            raise UserError(f"{name} {getattr(weights, name)}: must be at least 0")
    if routing == "plain" and weights.alpha:
        raise UserError(f"alpha {weights.alpha}: routing plain has no adversarial loss; set alpha to 0")
