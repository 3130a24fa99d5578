"""FedPR and the baselines: what is uploaded, what a client trains, which branch decides.

An algorithm is a record; the same ServerApp and ClientApp run all of them. A client trains in phases: which parameters move, by which gradients,
on which of the round's batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pfrforgery.config import FederationConfig
from pfrforgery.method.gradient_routing import StepLosses, draw, routed_gradients
from pfrforgery.method.losses import proximal_term
from pfrforgery.models.backbones import backbone_weights
from pfrforgery.models.networks import (
    COUNTER,
    PersonalModelDetector,
    Predict,
    TwoBranchDetector,
    batchnorm_names,
)

Gradients = Callable[[Float[Tensor, "n 3 h w"], Int[Tensor, " n"], torch.Generator], StepLosses]
"""Images, labels and a source of randomness: sets `.grad` and returns the losses."""


@dataclass(frozen=True)
class Phase:
    """A stretch of a client's local training.

    Attributes:
        parameters: that move.
        gradients: how a batch sets their gradients.
        part: which of the round's batches: all, or one half of them.
    """

    parameters: Sequence[nn.Parameter]
    gradients: Gradients
    part: Literal["all", "first half", "second half"] = "all"


@dataclass(frozen=True)
class Algorithm:
    """A way of learning together.

    Attributes:
        name: as the configuration spells it.
        network: one branch, two branches, or a second network beside the first.
        uploads: for a detector, the state entries that travel; the others stay with the client.
        phases: for a detector as it was received, a client's local training.
        predict: which branch decides by default.
        fine_tunes: whether a client adapts what it received before it is used.
        is_pooled: one participant trains on the images of all, as many steps as all clients together.
    """

    name: str
    network: Literal["one branch", "two branches", "two networks"]
    uploads: Callable[[TwoBranchDetector], list[str]]
    phases: Callable[[TwoBranchDetector, FederationConfig], list[Phase]]
    predict: Predict = "shared"
    fine_tunes: bool = False
    is_pooled: bool = False


def create_detector(config: FederationConfig) -> TwoBranchDetector:
    """The detector that every client and the server start from, drawn from the configuration's seed.

    Raises:
        UserError: an unknown backbone or weights that cannot be had.
    """
    network = ALGORITHMS[config.algorithm].network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if network == "two networks":
            model = PersonalModelDetector(config.backbone, config.split, dropout=config.dropout)
        else:
            model = TwoBranchDetector(
                config.backbone, config.split, dropout=config.dropout, personal=network == "two branches"
            )
    if config.pretrained:
        model.load_backbone(backbone_weights(config.backbone, config.pretrained), f"pretrained {config.pretrained}")
    return model


def kept_names(model: TwoBranchDetector, algorithm: Algorithm) -> list[str]:
    """The state entries that stay with the client."""
    travelling = set(algorithm.uploads(model))
    return [name for name in model.state_dict() if name not in travelling and not name.endswith(COUNTER)]


# --------------------------------------------------------------------------------------------------------------- uploads


def everything_shared(model: TwoBranchDetector) -> list[str]:
    """Extractor and shared branch: FedPR and FedAvg alike."""
    return list(model.shared_state())


def all_but_batchnorm(model: TwoBranchDetector) -> list[str]:
    """FedBN: normalisation stays at home."""
    local = batchnorm_names(model)
    return [name for name in model.shared_state() if name not in local]


def all_but_head(model: TwoBranchDetector) -> list[str]:
    """FedPer, FedRep: the last linear layer stays at home."""
    return [name for name in model.shared_state() if not name.startswith("shared.fc.")]


def branch_only(model: TwoBranchDetector) -> list[str]:
    """LG-FedAvg: the representation stays at home."""
    return [name for name in model.shared_state() if name.startswith("shared.")]


def nothing(_: TwoBranchDetector) -> list[str]:
    """Every client alone."""
    return []


# ------------------------------------------------------------------------------------------------------------- gradients


def cross_entropy_gradients(
    forward: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    anchors: Sequence[Tensor] = (),
    strength: float = 0.0,
) -> Gradients:
    """Cross-entropy of one network, with a proximal term towards `anchors` where there are any (FedProx, Ditto).

    Args:
        forward: from images to logits.
        parameters: whose gradients are set.
        anchors: one for each parameter.
        strength: of the proximal term.
    """

    def gradients(x: Tensor, y: Tensor, _: torch.Generator) -> StepLosses:
        loss = F.cross_entropy(forward(x).float(), y)
        total = loss + proximal_term(parameters, anchors, strength) if anchors else loss
        for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
            parameter.grad = gradient
        return StepLosses(loss.item())

    return gradients


def _shared_logits(model: TwoBranchDetector) -> Callable[[Tensor], Tensor]:
    return lambda x: model.shared(model.extractor(x))


def _shared_parameters(model: TwoBranchDetector) -> list[nn.Parameter]:
    return [*model.extractor.parameters(), *model.shared.parameters()]


def joint_phases(model: TwoBranchDetector, _: FederationConfig) -> list[Phase]:
    """Extractor and branch together: FedAvg and all that differ from it in what they upload only."""
    parameters = _shared_parameters(model)
    return [Phase(parameters, cross_entropy_gradients(_shared_logits(model), parameters))]


def fedprox_phases(model: TwoBranchDetector, config: FederationConfig) -> list[Phase]:
    """FedProx: (mu / 2) * ||w - w_r||^2 holds a client near the model it received."""
    parameters = _shared_parameters(model)
    anchors = [parameter.detach().clone() for parameter in parameters]
    return [Phase(parameters, cross_entropy_gradients(_shared_logits(model), parameters, anchors, config.mu))]


def fedrep_phases(model: TwoBranchDetector, _: FederationConfig) -> list[Phase]:
    """FedRep: the head alone on the first half of the batches, then the body alone."""
    head = list(model.shared.get_submodule("fc").parameters())
    known = set(map(id, head))
    body = [parameter for parameter in _shared_parameters(model) if id(parameter) not in known]
    forward = _shared_logits(model)
    return [
        Phase(head, cross_entropy_gradients(forward, head), "first half"),
        Phase(body, cross_entropy_gradients(forward, body), "second half"),
    ]


def ditto_phases(model: TwoBranchDetector, config: FederationConfig) -> list[Phase]:
    """Ditto: FedAvg, and beside it a personal network held near the model that was *received*, on the same batches."""
    assert model.personal is not None
    received = [parameter.detach().clone() for parameter in _shared_parameters(model)]
    personal = list(model.personal.parameters())
    gradients = cross_entropy_gradients(model.personal, personal, received, config.ditto_lambda)
    return [*joint_phases(model, config), Phase(personal, gradients)]


def fedrod_phases(model: TwoBranchDetector, _: FederationConfig) -> list[Phase]:
    """FedRoD: the personal branch learns what the shared one gets wrong, on features that it cannot change."""
    assert model.personal is not None
    personal = model.personal
    parameters = list(model.parameters())

    def gradients(x: Tensor, y: Tensor, _: torch.Generator) -> StepLosses:
        z = model.extractor(x)
        logits = model.shared(z).float()
        loss_shared = F.cross_entropy(logits, y)
        loss_personal = F.cross_entropy(personal(z.detach()).float() + logits.detach(), y)
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss_shared + loss_personal, parameters), strict=True
        ):
            parameter.grad = gradient
        return StepLosses(loss_shared.item(), loss_personal.item())

    return [Phase(parameters, gradients)]


def fedpr_phases(model: TwoBranchDetector, config: FederationConfig) -> list[Phase]:
    """FedPR: the routed step on all parameters."""

    def gradients(x: Tensor, y: Tensor, generator: torch.Generator) -> StepLosses:
        return routed_gradients(model, x, y, draw(len(y), generator), config.routing, config.loss_weights)

    return [Phase(list(model.parameters()), gradients)]


ALGORITHMS: dict[str, Algorithm] = {
    each.name: each
    for each in (
        Algorithm("fedpr", "two branches", everything_shared, fedpr_phases, "fused"),
        Algorithm("fedavg", "one branch", everything_shared, joint_phases),
        Algorithm("fedavg-ft", "one branch", everything_shared, joint_phases, fine_tunes=True),
        Algorithm("fedprox", "one branch", everything_shared, fedprox_phases),
        Algorithm("fedbn", "one branch", all_but_batchnorm, joint_phases),
        Algorithm("fedper", "one branch", all_but_head, joint_phases),
        Algorithm("fedrep", "one branch", all_but_head, fedrep_phases),
        Algorithm("lg-fedavg", "one branch", branch_only, joint_phases),
        Algorithm("ditto", "two networks", everything_shared, ditto_phases, "personal"),
        Algorithm("fedrod", "two branches", everything_shared, fedrod_phases, "summed"),
        Algorithm("local", "one branch", nothing, joint_phases),
        Algorithm("central", "one branch", everything_shared, joint_phases, is_pooled=True),
    )
}


def predict_of(algorithm: Algorithm, config: FederationConfig) -> Predict:
    """The branch that decides; for `auto`, the one before a client has chosen.

    The routing personal_main trains the extractor for the personal branch, which then decides alone.
    """
    if config.predict not in ("default", "auto"):
        return config.predict
    if algorithm.name == "fedpr" and config.routing == "personal_main":
        return "personal"
    return algorithm.predict


def predictions_of(algorithm: Algorithm) -> tuple[Predict, ...]:
    """The predictions that a detector of this algorithm can make, the algorithm's own first."""
    if algorithm.network == "one branch":
        return ("shared",)
    return (algorithm.predict, *(each for each in ("shared", "personal") if each != algorithm.predict))
