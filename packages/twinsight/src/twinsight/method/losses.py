"""The loss of one step: on a labelled client, on an unlabelled one, and where a client has both (paper §3)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from twinsight.config.methods import Consistency
from twinsight.method.neighborhood import Normalisation, neighbourhood_preserving_loss
from twinsight.method.pseudo_labels import FreeMatchThreshold, consistency_loss, fixmatch_loss, freematch_loss
from twinsight.models import StepOutput, TwinModel

Images = Float[Tensor, "b 3 h w"]


@dataclass(frozen=True)
class Weights:
    """How the terms are weighed in one round.

    Attributes:
        instance: lambda_ins, of the unsupervised objective.
        neighbourhood: lambda_np, of the neighbourhood-preserving constraint.
        pseudo: lambda_pl, of what the classifier learns where there are no labels.
        on_unlabelled: what that is.
        normalisation: of the constraint.
        supervised_views: whether the classifier also sees the strong views.
        threshold: FixMatch's.
    """

    instance: float = 0.5
    neighbourhood: float = 1.0
    pseudo: float = 0.5
    on_unlabelled: Consistency = "off"
    normalisation: Normalisation = "mean"
    supervised_views: Literal["both", "weak"] = "both"
    threshold: float = 0.95


@dataclass(frozen=True)
class StepLoss:
    """A loss and what it is made of.

    Attributes:
        total: to be differentiated.
        parts: its unweighted terms, still differentiable.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]


def _twin_terms(output: StepOutput, batch: int, weights: Weights, parts: dict[str, Tensor]) -> Tensor:
    """lambda_ins L_ins + lambda_np L_np, where the model has them."""
    total = output.logits.new_zeros((), dtype=torch.float32)
    if output.instance_loss is not None:
        parts["instance"] = output.instance_loss
        total = total + weights.instance * output.instance_loss
    # A batch of one has no neighbours.
    if output.unsup_features is not None and weights.neighbourhood and batch > 1:
        weak_unsup, weak_sup = output.unsup_features[:batch].float(), output.sup_features[:batch].float()
        parts["neighbourhood"] = neighbourhood_preserving_loss(weak_unsup, weak_sup, weights.normalisation)
        total = total + weights.neighbourhood * parts["neighbourhood"]
    return total


def unlabelled_term(
    weak: Float[Tensor, "b c"], strong: Float[Tensor, "b c"], weights: Weights, statistics: FreeMatchThreshold
) -> Float[Tensor, ""]:
    """L_pl: what the classifier learns from its logits of the weak and strong views of pictures without labels."""
    if weights.on_unlabelled == "consistency":
        return consistency_loss(weak, strong)
    if weights.on_unlabelled == "fixmatch":
        return fixmatch_loss(weak, strong, weights.threshold)[0]
    statistics.update(weak)
    return freematch_loss(weak, strong, statistics)[0]


def labelled_loss(
    model: TwinModel, weak: Images, strong: Images, labels: Int[Tensor, " b"], weights: Weights
) -> StepLoss:
    """CE + lambda_ins L_ins + lambda_np L_np: a step of a labelled client (paper §3, partial-client setting)."""
    both = weights.supervised_views == "both" and model.kind != "classifier"
    output = model.step(weak, strong, classify_strong=both)
    parts = {"cross_entropy": F.cross_entropy(output.logits[: len(weak)].float(), labels)}
    return StepLoss(parts["cross_entropy"] + _twin_terms(output, len(weak), weights, parts), parts)


def unlabelled_loss(
    model: TwinModel, weak: Images, strong: Images, weights: Weights, statistics: FreeMatchThreshold
) -> StepLoss:
    """lambda_ins L_ins + lambda_np L_np [+ lambda_pl L_pl]: a step of an unlabelled client."""
    teaches = weights.on_unlabelled != "off"
    both = teaches or (weights.supervised_views == "both" and model.kind != "classifier")
    output = model.step(weak, strong, classify_strong=both)
    parts: dict[str, Tensor] = {}
    total = _twin_terms(output, len(weak), weights, parts)
    if teaches:
        first, second = output.logits.float().chunk(2)
        parts["pseudo"] = unlabelled_term(first, second, weights, statistics)
        total = total + weights.pseudo * parts["pseudo"]
    return StepLoss(total, parts)


def partial_data_loss(
    model: TwinModel,
    weak: Images,
    strong: Images,
    labels: Int[Tensor, " k"],
    weights: Weights,
    statistics: FreeMatchThreshold,
) -> StepLoss:
    """CE on the labelled pictures, L_pl on the others, L_ins and L_np on both together (partial-data setting).

    Args:
        model: twins, or a classifier alone.
        weak: weak views of the k labelled pictures, then of the others.
        strong: strong views of the same.
        labels: of the first k.
        weights: of the terms.
        statistics: FreeMatch's.
    """
    known = len(labels)
    output = model.step(weak, strong, classify_strong=True)
    first, second = output.logits.float().chunk(2)
    parts = {"cross_entropy": F.cross_entropy(first[:known], labels)}
    total = parts["cross_entropy"] + _twin_terms(output, len(weak), weights, parts)
    if weights.on_unlabelled != "off" and len(weak) > known:
        parts["pseudo"] = unlabelled_term(first[known:], second[known:], weights, statistics)
        total = total + weights.pseudo * parts["pseudo"]
    return StepLoss(total, parts)


def proximal_term(model: torch.nn.Module, reference: dict[str, Tensor]) -> Float[Tensor, ""]:
    """||w - w_global||^2 over the trained parameters; FedProx without the usual half, as in the official code."""
    terms = [(each - reference[name]).square().sum() for name, each in model.named_parameters() if each.requires_grad]
    return torch.stack(terms).sum()


def gradient_cosine(first: Float[Tensor, ""], second: Float[Tensor, ""], parameters: list[torch.nn.Parameter]) -> float:
    """Cosine between the gradients of two losses on shared parameters; negative where they conflict."""
    gradients = [
        torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in (first, second)
    ]
    return F.cosine_similarity(gradients[0], gradients[1], dim=0).item()
