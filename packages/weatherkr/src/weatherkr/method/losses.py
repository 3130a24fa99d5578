"""The loss of one step: new task, knowledge replay, projected features (official code, cl_all_in_one.py compute_loss).

    total = L1 + beta_new C                                     on new patches
          + alpha (L1 + beta_old C)                             on stored patches, towards the old network's outputs
          + lambda mean|phi(f_new) - phi(f_old)|                on their features

Nothing is clamped here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weatherkr.method.baselines import importance_penalty, pod_loss
from weatherkr.method.contrastive import ContrastLoss, contrast_from_features
from weatherkr.models.networks import GROUPS, WeatherNet, denormalize, normalize
from weatherkr.models.projector import Projector


@dataclass(frozen=True)
class Weights:
    """Weights of the terms; the defaults are the official code's.

    Attributes:
        alpha: of the replay loss.
        beta_new: of the contrast on new patches.
        beta_old: of the contrast on stored patches, inside the replay loss.
        projection: lambda, of the projected features.
        pooled: of pooled-output distillation.
        importance: of the quadratic penalty.
    """

    alpha: float = 1.0
    beta_new: float = 0.2
    beta_old: float = 0.8
    projection: float = 0.3
    pooled: float = 1.0
    importance: float = 200.0


@dataclass(frozen=True)
class Replay:
    """What the old network says of patches that are replayed.

    Attributes:
        inputs: stored patches, normalised; None where the new inputs themselves are replayed (LwF).
        target: what their restorations are pulled to.
        projection: phi(f_old), or None.
        features: f_old for pooled-output distillation, or None.
    """

    inputs: Float[Tensor, "b 3 h w"] | None
    target: Float[Tensor, "b 3 h w"]
    projection: Float[Tensor, "b r h2 w2"] | None = None
    features: Float[Tensor, "b c h2 w2"] | None = None


@dataclass(frozen=True)
class Terms:
    """The terms of the loss, each without its weight; those that a method lacks are 0."""

    new_l1: Tensor
    new_contrast: Tensor
    old_l1: Tensor
    old_contrast: Tensor
    projection: Tensor
    pooled: Tensor
    penalty: Tensor

    def total(self, w: Weights) -> Float[Tensor, ""]:
        """The weighted sum."""
        return (
            self.new_l1
            + w.beta_new * self.new_contrast
            + w.alpha * (self.old_l1 + w.beta_old * self.old_contrast)
            + w.projection * self.projection
            + w.pooled * self.pooled
            + w.importance * self.penalty
        )

    def values(self) -> dict[str, float]:
        """The terms as numbers, without those that are 0."""
        numbers = {each.name: float(getattr(self, each.name).detach()) for each in fields(self)}
        return {name: value for name, value in numbers.items() if value != 0}


def l1(first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference over all elements."""
    return (first - second).abs().mean()


def projection_loss(
    projector: Projector, f_new: Float[Tensor, "b c h w"], h_old: Float[Tensor, "b r h w"]
) -> Float[Tensor, ""]:
    """L_p = mean|phi(f_new) - phi(f_old)|; the gradient flows through phi, whose weights are fixed, into f_new."""
    return (projector(f_new).float() - h_old.float()).abs().mean()


class Objective(nn.Module):
    """The network with its loss: what a training step calls.

    Args:
        net: the network that learns.
        weights: of the terms.
        contrast: the contrast loss, or None.
        projector: phi, frozen, or None.
        negative: the contrast's negative: the `normalized` degraded image (official) or the `image` in [0, 1].
        importance: of each weight, for the quadratic penalty, or None.
        anchor: the weights that the penalty pulls to.
    """

    def __init__(
        self,
        net: WeatherNet,
        weights: Weights,
        contrast: ContrastLoss | None = None,
        projector: Projector | None = None,
        negative: str = "normalized",
        importance: Mapping[str, Tensor] | None = None,
        anchor: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.weights, self.contrast, self.projector = net, weights, contrast, projector
        self.negative = negative
        self.importance, self.anchor = importance, anchor
        for fixed in (contrast, projector):
            if fixed is not None:
                fixed.requires_grad_(False)

    def forward(
        self, x01: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"], replay: Replay | None = None
    ) -> Terms:
        """The terms for new pairs and, from the second task on, replayed patches.

        Args:
            x01: degraded patches, in [0, 1].
            y: clean ones.
            replay: the old network's say.
        """
        x = normalize(x01)
        zero = y.new_zeros(())
        if replay is None:
            estimate, _ = self._estimate(x)
            new_contrast = self._contrasts([(estimate, y, x)])[0] if self.contrast else zero
            return Terms(l1(estimate, y), new_contrast, zero, zero, zero, zero, self._penalty(zero))
        estimate, old_estimate, f = self._both(x, replay.inputs)
        old_x = x if replay.inputs is None else replay.inputs
        new_contrast, old_contrast = zero, zero
        if self.contrast:
            new_contrast, old_contrast = self._contrasts([(estimate, y, x), (old_estimate, replay.target, old_x)])
        projection = zero
        if self.projector is not None and replay.projection is not None:
            projection = projection_loss(self.projector, f, replay.projection)
        pooled = zero
        if replay.features is not None:
            pooled = pod_loss(replay.features.chunk(GROUPS, 1), f.chunk(GROUPS, 1))
        return Terms(
            l1(estimate, y),
            new_contrast,
            l1(old_estimate, replay.target),
            old_contrast,
            projection,
            pooled,
            self._penalty(zero),
        )

    def _estimate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        estimate, f = self.net(x, return_features=True)
        return estimate.float(), f

    def _both(self, x: Tensor, stored: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Estimates of new and stored patches and the latter's features: one pass when the sizes agree.

        The network has no batch statistics, so that one pass over both is the same as two.
        """
        if stored is None:
            estimate, f = self._estimate(x)
            return estimate, estimate, f
        if stored.shape[-2:] != x.shape[-2:]:
            old_estimate, f = self._estimate(stored)
            return self._estimate(x)[0], old_estimate, f
        estimate, f = self._estimate(torch.cat([x, stored]))
        count = x.shape[0]
        return estimate[:count], estimate[count:], f[count:]

    def _contrasts(self, trios: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
        """C of each (anchor, positive, normalised degraded): its distances are means over a batch, so the batches stay apart.

        The extractor sees all anchors at once, and all that needs no gradient at once, when the sizes agree.
        """
        assert self.contrast is not None
        if len({anchor.shape[-2:] for anchor, _, _ in trios}) > 1:
            return [self._contrasts([trio])[0] for trio in trios]
        count = [anchor.shape[0] for anchor, _, _ in trios]
        anchors, positives, negatives = (torch.cat(part) for part in zip(*trios, strict=True))
        if self.negative == "image":
            negatives = denormalize(negatives)
        moving = [level.split(count) for level in self.contrast.extractor(anchors)]
        with torch.no_grad():
            fixed = [level.split(count * 2) for level in self.contrast.extractor(torch.cat([positives, negatives]))]
        return [
            contrast_from_features(
                [level[i] for level in moving],
                [level[i] for level in fixed],
                [level[len(trios) + i] for level in fixed],
                self.contrast.weights,
                self.contrast.tau,
            )
            for i in range(len(trios))
        ]

    def _penalty(self, zero: Tensor) -> Tensor:
        if self.importance is None or self.anchor is None:
            return zero
        return importance_penalty(self.net, self.importance, self.anchor)
