"""CLIP's classifier and its refinement after each task (paper App. B; official code, after SLCA's classifier alignment)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenfold import UserError


class ClipHead(nn.Module):
    """Logits are exp(s) cos(projected features, class text); only s is trained together with the prompts.

    Args:
        projection: from the tower's features into the joint space; kept frozen during prompt training.

    Attributes:
        logit_scale: s, from ln 100 on.
    """

    texts: Tensor

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.projection = projection.requires_grad_(False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100)))
        self.register_buffer("texts", torch.empty(0, projection.out_features))
        self.sizes: list[int] = []

    @classmethod
    def for_projection(cls, weight: Float[Tensor, "e d"]) -> "ClipHead":
        """From the matrix of CLIP's visual projection, which has no bias; ours starts at zero and is refined."""
        projection = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            projection.weight.copy_(weight)
            projection.bias.zero_()
        return cls(projection)

    def add_task(self, texts: Float[Tensor, "c e"]) -> None:
        """Append the unit text features of a new task's classes.

        Raises:
            UserError: another width than the projection's.
        """
        if texts.ndim != 2 or texts.shape[1] != self.texts.shape[1]:
            raise UserError(
                f"text features {tuple(texts.shape)} do not fit a space of {self.texts.shape[1]} dimensions"
            )
        self.texts = torch.cat([self.texts, F.normalize(texts.to(self.texts), dim=1)])
        self.sizes.append(len(texts))

    def forward(self, features: Float[Tensor, "b d"], task: int | None = None) -> Float[Tensor, "b c"]:
        """Logits of one task's classes, or of all so far."""
        first = 0 if task is None else sum(self.sizes[:task])
        count = len(self.texts) if task is None else self.sizes[task]
        embedding = F.normalize(self.projection(features), dim=1)
        return self.logit_scale.exp() * embedding @ self.texts[first : first + count].T


@dataclass(frozen=True)
class ClassGaussians:
    """Where the features of each class lie.

    Attributes:
        means: of each class.
        covariances: unbiased, with 1e-4 on the diagonal.
    """

    means: Float[Tensor, "c d"]
    covariances: Float[Tensor, "c d d"]

    @classmethod
    def fit(cls, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], num_classes: int) -> "ClassGaussians":
        """Measure them in 64 bits.

        Raises:
            UserError: a class with fewer than two pictures.
        """
        exact = features.double()
        counts = torch.bincount(labels, minlength=num_classes)
        if counts.min() < 2:
            raise UserError(
                f"class {int(counts.argmin())} of the task has fewer than two pictures to measure a spread from"
            )
        ridge = 1e-4 * torch.eye(exact.shape[1], dtype=torch.float64, device=exact.device)
        groups = [exact[labels == each] for each in range(num_classes)]
        return cls(
            torch.stack([group.mean(0) for group in groups]), torch.stack([group.T.cov() + ridge for group in groups])
        )

    def join(self, other: "ClassGaussians") -> "ClassGaussians":
        """These classes, then the other's."""
        return ClassGaussians(
            torch.cat([self.means, other.means]), torch.cat([self.covariances, other.covariances.to(self.covariances)])
        )

    def sample(self, per_class: int) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Draw features of every class; class c is labelled c."""
        normal = torch.distributions.MultivariateNormal(self.means, self.covariances)
        labels = torch.arange(len(self.means), device=self.means.device).repeat(per_class)
        return normal.sample((per_class,)).flatten(0, 1).float(), labels


def refine_projection_head(
    head: ClipHead,
    gaussians: ClassGaussians,
    *,
    epochs: int = 50,
    per_class: int = 256,
    batch_size: int = 256,
    lr: float = 1e-3,
) -> Sequence[float]:
    """Train the projection on drawn features of all classes seen (SGD, momentum 0.9, weight decay 1e-4).

    Returns:
        The mean loss of each epoch.
    """
    if len(gaussians.means) != len(head.texts):
        raise UserError(f"{len(gaussians.means)} classes were measured, the head has texts of {len(head.texts)}")
    head.projection.requires_grad_(True)
    optimizer = torch.optim.SGD(head.projection.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(epochs):
        features, labels = gaussians.sample(per_class)
        order = torch.randperm(len(labels), device=labels.device)
        total = 0.0
        for chosen in order.split(batch_size):
            loss = F.cross_entropy(head(features[chosen]), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            head.logit_scale.grad = None
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        losses.append(total / len(labels))
    head.logit_scale.grad = None
    head.projection.requires_grad_(False)
    return losses


TEMPLATES = {
    "cifar": tuple(
        f"a {kind}photo of {article} {size}{{}}."
        for article in ("a", "the")
        for kind, size in [
            *(
                (kind, "")
                for kind in ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
            ),
            ("", "small "),
            ("", "big "),
        ]
    ),
    "imagenet-r": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "domainnet": tuple(
        f"a {domain} of {article} {{}}."
        for domain in ("clipart", "infograph", "painting", "quickdraw", "real photo", "sketch")
        for article in ("a", "the")
    ),
}
"""Sentences for the class texts: 18, 7 and 12, as many as the paper uses of each set."""
