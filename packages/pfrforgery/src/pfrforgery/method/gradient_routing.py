"""One client step of FedPR: each loss reaches the parameters that it may reach.

A single backward pass through the sum of the losses would contradict itself: L_p wants the auxiliary branch to classify, L_adv wants it not to.
So gradients are routed, as in SagNet. All of them are taken on one forward pass, before any parameter moves.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pfrforgery.config import LossWeights, Routing
from pfrforgery.method.feature_statistics import draw_permutation, mix_statistics, swap_content
from pfrforgery.method.losses import adversarial_entropy
from pfrforgery.models.networks import normalisation_affine


@dataclass(frozen=True)
class Draws:
    """The random draws of one step.

    Attributes:
        perm_mix: partners of the statistics mixing.
        mix_weight: share of a sample's own statistics.
        perm_swap: partners of the content swap.
    """

    perm_mix: Int[Tensor, " n"]
    mix_weight: Float[Tensor, " n"]
    perm_swap: Int[Tensor, " n"]


def draw(count: int, generator: torch.Generator | None = None) -> Draws:
    """Draw partners and weights for a batch."""
    perm_mix = draw_permutation(count, generator)
    return Draws(perm_mix, torch.rand(count, generator=generator), draw_permutation(count, generator))


@dataclass(frozen=True)
class StepLosses:
    """The losses of one step, before their weights.

    Attributes:
        shared: cross-entropy of the shared branch, L_s.
        personal: cross-entropy of the personal branch, L_p; 0 where there is none.
        adversarial: entropy of the auxiliary branch, L_adv; 0 where it was not needed.
    """

    shared: float
    personal: float = 0.0
    adversarial: float = 0.0


def clip_joint_norm(gradients: list[Tensor], largest: float) -> list[Tensor]:
    """Scale gradients down so that the norm of all of them together is at most `largest`."""
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * scale for gradient in gradients]


def routed_gradients(
    model: nn.Module,
    x: Float[Tensor, "n 3 h w"],
    y: Int[Tensor, " n"],
    draws: Draws,
    routing: Routing = "shared_main",
    weights: LossWeights = LossWeights(),  # noqa: B008  # frozen
) -> StepLosses:
    """Set `.grad` of every parameter to what one step of FedPR asks for.

    Args:
        model: has `extractor`, `shared` and `personal`.
        x: images.
        y: 0 real, 1 fake.
        draws: partners and weights of the statistic operations.
        routing: which branch trains the extractor: `shared_main` (default), `personal_main`, or `plain`, without operations.
        weights: of the losses.

    Returns:
        The losses.
    """
    # Statistics are taken in 32 bits whatever the convolutions run in.
    extractor, shared, personal = (model.get_submodule(name) for name in ("extractor", "shared", "personal"))
    z = extractor(x).float()
    if routing == "plain":
        return _plain_gradients(shared, personal, list(model.parameters()), z, y, weights)
    mixed = mix_statistics(z, draws.perm_mix, draws.mix_weight)
    swapped = swap_content(z, draws.perm_swap)
    main_is_shared = routing == "shared_main"
    logits_shared = shared(mixed if main_is_shared else swapped).float()
    logits_personal = personal(swapped if main_is_shared else mixed).float()
    loss_shared, loss_personal = F.cross_entropy(logits_shared, y), F.cross_entropy(logits_personal, y)
    main, auxiliary = (shared, personal) if main_is_shared else (personal, shared)
    main_loss, auxiliary_loss = weights.gamma * loss_shared, weights.beta * loss_personal
    if not main_is_shared:
        main_loss, auxiliary_loss = auxiliary_loss, main_loss
    _set_gradients([*extractor.parameters(), *main.parameters()], main_loss)
    # Asked for the branch's own parameters only: nothing reaches the extractor.
    _set_gradients(list(auxiliary.parameters()), auxiliary_loss)
    if not weights.alpha:
        return StepLosses(loss_shared.item(), loss_personal.item())
    adversarial = adversarial_entropy(logits_personal if main_is_shared else logits_shared)
    affine = normalisation_affine(extractor)
    clipped = clip_joint_norm(
        list(torch.autograd.grad(weights.alpha * adversarial, affine, retain_graph=True)), weights.adv_clip
    )
    for parameter, gradient in zip(affine, clipped, strict=True):
        assert parameter.grad is not None
        parameter.grad += gradient
    return StepLosses(loss_shared.item(), loss_personal.item(), adversarial.item())


def _plain_gradients(
    shared: nn.Module,
    personal: nn.Module,
    parameters: list[nn.Parameter],
    z: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    weights: LossWeights,
) -> StepLosses:
    loss_shared = F.cross_entropy(shared(z).float(), y)
    loss_personal = F.cross_entropy(personal(z).float(), y)
    _set_gradients(parameters, weights.gamma * loss_shared + weights.beta * loss_personal)
    return StepLosses(loss_shared.item(), loss_personal.item())


def _set_gradients(parameters: list[nn.Parameter], loss: Float[Tensor, ""]) -> None:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
