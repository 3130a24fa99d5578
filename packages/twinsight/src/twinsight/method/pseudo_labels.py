"""Pseudo-labels: the weak view teaches the strong one where the network is sure (FixMatch, FreeMatch)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def pseudo_label_loss(
    logits_weak: Float[Tensor, "b c"], logits_strong: Float[Tensor, "b c"], threshold: Float[Tensor, "..."]
) -> tuple[Float[Tensor, ""], Bool[Tensor, " b"]]:
    """Cross-entropy of the strong view against the weak view's most likely class, where that is likely enough.

    Args:
        logits_weak: they take no gradient.
        logits_strong: of the same pictures.
        threshold: the probability that is enough: one number, or one for each class.

    Returns:
        The mean over all B pictures (those left out count as zero), and which pictures took part.
    """
    confidence, label = logits_weak.detach().softmax(1).max(1)
    mask = confidence >= threshold.expand(logits_weak.shape[1])[label]
    losses = F.cross_entropy(logits_strong, label, reduction="none")
    return (losses * mask).mean(), mask


def fixmatch_loss(
    logits_weak: Float[Tensor, "b c"], logits_strong: Float[Tensor, "b c"], threshold: float = 0.95
) -> tuple[Float[Tensor, ""], Bool[Tensor, " b"]]:
    """`pseudo_label_loss` with one fixed threshold; the usual one is 0.95."""
    return pseudo_label_loss(logits_weak, logits_strong, logits_weak.new_tensor(threshold))


class FreeMatchThreshold:
    """FreeMatch's thresholds: a running mean of the confidence, scaled for each class by how often it is predicted.

    It starts at 1/C, and anew in each local epoch. FreeMatch's fairness term is not part of it.

    Args:
        num_classes: C.
        momentum: of the running means.
        clamp: lower and upper bound of the thresholds; the official code has (0.9, 0.95) for SVHN.
    """

    def __init__(self, num_classes: int, momentum: float = 0.999, clamp: tuple[float, float] | None = None) -> None:
        self.confidence = torch.tensor(1 / num_classes)
        self.class_mean = torch.full((num_classes,), 1 / num_classes)
        self.label_share = torch.full((num_classes,), 1 / num_classes)
        self.momentum, self.clamp = momentum, clamp

    def update(self, logits_weak: Float[Tensor, "b c"]) -> None:
        """Take a batch into the running means."""
        probability = logits_weak.detach().float().softmax(1)
        confidence, label = probability.max(1)
        share = torch.bincount(label, minlength=probability.shape[1]).to(probability) / len(label)
        for running, new in (
            (self.confidence, confidence.mean()),
            (self.class_mean, probability.mean(0)),
            (self.label_share, share),
        ):
            running.mul_(self.momentum).add_(new.to(running.device), alpha=1 - self.momentum)

    def thresholds(self) -> Float[Tensor, " c"]:
        """t * p_c / max p for each class, clamped where that was asked for."""
        value = self.confidence * self.class_mean / self.class_mean.max()
        return value.clamp(*self.clamp) if self.clamp else value


def freematch_loss(
    logits_weak: Float[Tensor, "b c"], logits_strong: Float[Tensor, "b c"], statistics: FreeMatchThreshold
) -> tuple[Float[Tensor, ""], Bool[Tensor, " b"]]:
    """`pseudo_label_loss` with the thresholds of the running statistics, which it does not change."""
    return pseudo_label_loss(logits_weak, logits_strong, statistics.thresholds().to(logits_weak.device))


def consistency_loss(logits_weak: Float[Tensor, "b c"], logits_strong: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """Mean squared difference of the two views' probabilities, the weak view as the teacher (Fed-Consist)."""
    return F.mse_loss(logits_strong.softmax(1), logits_weak.detach().softmax(1))
