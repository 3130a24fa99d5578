"""The loss of one step: on a labelled client, on an unlabelled one, and where a client has both (paper §3)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from twinsight.config import Consistency
from twinsight.method.contrastive import byol_loss, nt_xent_loss, simsiam_loss
from twinsight.method.pseudo_labels import FreeMatchThreshold, consistency_loss, fixmatch_loss, freematch_loss
from twinsight.models import InstanceDiscriminator, TwinModel


class StepOutput(NamedTuple):
    """What one step needs of a model.

    Attributes:
        logits: of the views that the supervised model saw: the weak ones first.
        sup_features: pooled features of the same views.
        unsup_features: what the constraint sees of the unsupervised model: of the 2B views; None without such a model of its own.
        instance_loss: L_ins; None without an unsupervised objective.
    """

    logits: Float[Tensor, "n c"]
    sup_features: Float[Tensor, "n d"]
    unsup_features: Float[Tensor, "two_b d"] | None
    instance_loss: Float[Tensor, ""] | None


Normalisation = Literal["mean", "official"]


Images = Float[Tensor, "b ch h w"]
Direction = Literal["official", "weak_to_strong"]
Feature = Literal["official", "pooled"]


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
        direction: which view teaches on a client without labels. `official`: the strong one, as in the published code.
        feature: what the constraint sees of SimSiam's twin. `official`: the projection; else, and for the others, the pooled feature.
    """

    instance: float = 0.5
    neighbourhood: float = 1.0
    pseudo: float = 0.5
    on_unlabelled: Consistency = "off"
    normalisation: Normalisation = "official"
    supervised_views: Literal["both", "weak"] = "both"
    threshold: float = 0.95
    direction: Direction = "official"
    feature: Feature = "official"


@dataclass(frozen=True)
class StepLoss:
    """A loss and what it is made of.

    Attributes:
        total: to be differentiated.
        parts: its unweighted terms, still differentiable.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]


def discriminate(
    twin: InstanceDiscriminator,
    views: Float[Tensor, "two_b ch h w"],
    feature: Feature,
    shared: Float[Tensor, "two_b d"] | None = None,
) -> tuple[Float[Tensor, "two_b e"], Float[Tensor, ""]]:
    """Run the unsupervised twin: all views in one pass for SimCLR, a pass for each view else (official code: SemiFed.py, ssl_model).

    So SimCLR's BatchNorm sees both views together; SimSiam's and BYOL's sees them one after the other.

    Args:
        twin: the encoder with its head.
        views: [first view of each; second view of each].
        feature: what the constraint sees of SimSiam's twin.
        shared: pooled features, where the encoder is the classifier's and has made them.

    Returns:
        What the constraint sees, and L_ins.
    """
    passes = (views,) if twin.objective == "simclr" else views.chunk(2)
    features = [twin.encoder(each) for each in passes] if shared is None else list(shared.chunk(len(passes)))
    projections = [twin.projector(each) for each in features]
    joined = torch.cat(projections).float()
    if twin.objective == "simclr":
        return features[0], nt_xent_loss(joined, twin.temperature)
    predictions = torch.cat([twin.predictor(each) for each in projections]).float()
    if twin.objective == "simsiam":
        seen = projections if feature == "official" else features
        return torch.cat(seen), simsiam_loss(predictions, joined)
    with torch.no_grad():
        targets = torch.cat([twin.target(each) for each in passes]).float()
    return torch.cat(features), byol_loss(predictions, targets)


def twin_step(
    model: TwinModel, weak: Images, strong: Images, *, classify_strong: bool, feature: Feature = "official"
) -> StepOutput:
    """Run both models on the two views of each picture.

    Args:
        model: both, or a classifier alone.
        weak: weak views, normalized.
        strong: strong views of the same pictures.
        classify_strong: let the supervised model see the strong views too. Even where their logits go unused they
            change its BatchNorm statistics, as in the official code.
        feature: see `Weights`.
    """
    views = torch.cat([weak, strong])
    if model.kind == "shared":
        features = model.encoder(views)
        assert model.twin is not None
        return StepOutput(
            model.classifier(features), features, None, discriminate(model.twin, views, feature, features)[1]
        )
    features = model.encoder(views if classify_strong else weak)
    logits = model.classifier(features)
    if model.twin is None:
        return StepOutput(logits, features, None, None)
    return StepOutput(logits, features, *discriminate(model.twin, views, feature))


def _twin_terms(output: StepOutput, batch: int, weights: Weights, parts: dict[str, Tensor]) -> Tensor:
    """lambda_ins L_ins + lambda_np L_np, where the model has them.

    A term of weight 0 stays in the graph: as in the official code, weight decay then acts on the weights that it reaches.
    """
    total = output.logits.new_zeros((), dtype=torch.float32)
    if output.instance_loss is not None:
        parts["instance"] = output.instance_loss
        total = total + weights.instance * output.instance_loss
    if output.unsup_features is not None:
        weak_unsup, weak_sup = output.unsup_features[:batch].float(), output.sup_features[:batch].float()
        parts["neighbourhood"] = neighbourhood_preserving_loss(weak_unsup, weak_sup, weights.normalisation)
        total = total + weights.neighbourhood * parts["neighbourhood"]
    return total


def unlabelled_term(
    teacher: Float[Tensor, "b c"], student: Float[Tensor, "b c"], weights: Weights, statistics: FreeMatchThreshold
) -> Float[Tensor, ""]:
    """L_pl: what the classifier learns from its logits of two views of pictures without labels."""
    if weights.on_unlabelled == "consistency":
        return consistency_loss(teacher, student)
    if weights.on_unlabelled == "fixmatch":
        return fixmatch_loss(teacher, student, weights.threshold)[0]
    statistics.update(teacher)
    return freematch_loss(teacher, student, statistics)[0]


def labelled_loss(
    model: TwinModel, weak: Images, strong: Images, labels: Int[Tensor, " b"], weights: Weights
) -> StepLoss:
    """CE + lambda_ins L_ins + lambda_np L_np: a step of a labelled client (paper §3, partial-client setting)."""
    both = weights.supervised_views == "both" and model.kind != "classifier"
    output = twin_step(model, weak, strong, classify_strong=both, feature=weights.feature)
    parts = {"cross_entropy": F.cross_entropy(output.logits[: len(weak)].float(), labels)}
    return StepLoss(parts["cross_entropy"] + _twin_terms(output, len(weak), weights, parts), parts)


def unlabelled_loss(
    model: TwinModel, weak: Images, strong: Images, weights: Weights, statistics: FreeMatchThreshold
) -> StepLoss:
    """lambda_ins L_ins + lambda_np L_np [+ lambda_pl L_pl]: a step of an unlabelled client."""
    teaches = weights.on_unlabelled != "off"
    both = teaches or (weights.supervised_views == "both" and model.kind != "classifier")
    output = twin_step(model, weak, strong, classify_strong=both, feature=weights.feature)
    parts: dict[str, Tensor] = {}
    total = _twin_terms(output, len(weak), weights, parts)
    if teaches:
        first, second = output.logits.float().chunk(2)
        teacher, student = (second, first) if weights.direction == "official" else (first, second)
        parts["pseudo"] = unlabelled_term(teacher, student, weights, statistics)
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
    output = twin_step(model, weak, strong, classify_strong=True, feature=weights.feature)
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


def cosine_gram(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Cosine similarity of every pair of rows, in [-1, 1]: the neighbourhood relation N of paper eq. 9."""
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def pair_count(batch: int, normalisation: Normalisation) -> int:
    """What the sum over pairs is divided by.

    Args:
        batch: B, the number of pictures.
        normalisation: `mean` divides by B * B. `official` divides by `B XOR 2`, what the published code computes where it
            writes `bs ^ 2`: at B = 64 that weighs the constraint 62 times more.

    Raises:
        ValueError: `official` with a batch of two, where the published code divides by zero.
    """
    if normalisation == "mean":
        return batch * batch
    if batch == 2:
        raise ValueError("the official normalisation divides by 2 XOR 2 = 0 for a batch of two pictures")
    return batch ^ 2


def neighbourhood_preserving_loss(
    unsup_features: Float[Tensor, "b d1"],
    sup_features: Float[Tensor, "b d2"],
    normalisation: Normalisation = "official",
) -> Float[Tensor, ""]:
    """Squared Frobenius distance between the cosine Gram matrices of the twins' features (paper eq. 9).

    The gradient reaches both feature matrices.

    Args:
        unsup_features: pooled features of the unsupervised twin, of the weak views.
        sup_features: pooled features of the supervised twin, of the same pictures.
        normalisation: see `pair_count`.

    Returns:
        A number in [0, 4] under `mean`; 0 when the features are equal up to a scale per row and a rotation.
    """
    difference = cosine_gram(unsup_features) - cosine_gram(sup_features)
    return difference.square().sum() / pair_count(len(difference), normalisation)
