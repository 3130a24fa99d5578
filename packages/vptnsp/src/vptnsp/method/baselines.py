"""The strong simple rivals: nothing of the backbone is trained, each task adds to sums (SimpleCIL; RanPAC, NeurIPS 2023)."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def timm_features(backbone: Any, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """Frozen features of a backbone without prompts."""
    return backbone.forward_head(backbone.forward_features(images), pre_logits=True)


def _one_hot(labels: Tensor, classes: Sequence[int], device: torch.device) -> Float[Tensor, "b c"]:
    columns = torch.tensor(classes, device=device)
    return (labels.to(device)[:, None] == columns).float()


class NearestClassMean:
    """Cosine to the mean feature of each class.

    Args:
        backbone: a frozen timm model, or a `ClipTower`.

    Attributes:
        tasks: labels of each task, in the order of the logits' columns.
    """

    def __init__(self, backbone: Any, device: torch.device | None = None) -> None:
        self.device = device or next(backbone.parameters()).device
        self.backbone = backbone.to(self.device).eval()
        self.tasks: list[list[int]] = []
        self.means: list[Tensor] = []

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Frozen features."""
        return timm_features(self.backbone, images)

    @torch.no_grad()
    def fit_task(self, stats_loader: Iterable[Any], classes: Sequence[int]) -> None:
        """One pass over a task's training pictures, with the evaluation transform."""
        totals, counts = 0, 0
        for images, labels in stats_loader:
            member = _one_hot(labels, classes, self.device)
            totals = totals + member.T @ self.features(images.to(self.device))
            counts = counts + member.sum(0)
        self.means.append(F.normalize(totals / counts[:, None], dim=1))  # ty: ignore[not-subscriptable]  # a tensor by now
        self.tasks.append(list(classes))

    @torch.no_grad()
    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Cosine to every class seen."""
        return F.normalize(self.features(images), dim=1) @ torch.cat(self.means).T


class RandomProjectionRidge:
    """Ridge regression from relu(f W) with a random W, solved in closed form from sums over all tasks.

    Args:
        backbone: a frozen timm model, or a `ClipTower`.
        width: random features.
        seed: of W.
        ridge: candidates for the penalty; the one with the least squared error on a fifth of each task's features, held out, is taken.
    """

    def __init__(
        self,
        backbone: Any,
        width: int = 1000,
        seed: int = 0,
        ridge: Sequence[float] = tuple(10.0**power for power in range(-3, 6)),
        device: torch.device | None = None,
    ) -> None:
        self.device = device or next(backbone.parameters()).device
        self.backbone = backbone.to(self.device).eval()
        self.tasks: list[list[int]] = []
        self.ridge = tuple(ridge)
        generator = torch.Generator().manual_seed(seed)
        self.random = torch.randn(backbone.num_features, width, generator=generator).to(self.device)
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=self.device)
        self.cross = torch.zeros(width, 0, dtype=torch.float64, device=self.device)
        self.weights = torch.zeros(width, 0, device=self.device)

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Frozen features."""
        return timm_features(self.backbone, images)

    def _expand(self, images: Tensor) -> Float[Tensor, "b w"]:
        return (self.features(images) @ self.random).relu()

    @torch.no_grad()
    def fit_task(self, stats_loader: Iterable[Any], classes: Sequence[int]) -> None:
        """One pass over a task's training pictures, with the evaluation transform; then the solution for all classes."""
        self.tasks.append(list(classes))
        seen = [label for task in self.tasks for label in task]
        pairs = [
            (self._expand(images.to(self.device)), _one_hot(labels, seen, self.device))
            for images, labels in stats_loader
        ]
        features, targets = (torch.cat(each).double() for each in zip(*pairs, strict=True))
        self.cross = F.pad(self.cross, (0, len(classes)))
        held = torch.arange(len(features), device=self.device) % 5 == 0
        penalty = self._best_penalty(features, targets, held)
        self.gram += features.T @ features
        self.cross += features.T @ targets
        self.weights = self._solve(self.gram, self.cross, penalty).float()

    def _best_penalty(self, features: Tensor, targets: Tensor, held: Tensor) -> float:
        gram = self.gram + features[~held].T @ features[~held]
        cross = self.cross + features[~held].T @ targets[~held]
        values, vectors = torch.linalg.eigh(gram)
        tested, rotated = features[held] @ vectors, vectors.T @ cross
        errors = [
            (tested @ (rotated / (values.clamp(min=0) + penalty)[:, None]) - targets[held]).square().mean().item()
            for penalty in self.ridge
        ]
        return self.ridge[min(range(len(errors)), key=errors.__getitem__)]

    @staticmethod
    def _solve(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        return torch.cholesky_solve(cross, torch.linalg.cholesky(gram + penalty * eye))

    @torch.no_grad()
    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Regressed membership of every class seen."""
        return self._expand(images) @ self.weights
