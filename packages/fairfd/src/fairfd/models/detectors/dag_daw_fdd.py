"""DAG-FDD and DAW-FDD (Ju et al., WACV 2024): Xception trained on the worst share of the losses (paper, "Fair detectors").

Both have one logit; the two logits that every detector returns are (0, logit), whose softmax is its sigmoid.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fairfd.models.detectors.detector import DetectorOutput, TrainBatch, in_float32
from fairfd.models.detectors.losses import dag_loss, daw_loss
from fairfd.models.detectors.xception import FEATURES, XceptionDetector, pooled


class OneLogitXception(XceptionDetector):
    """Xception with a single logit.

    Args:
        in_size: height and width of the input.
    """

    def __init__(self, in_size: int = 256) -> None:
        super().__init__(in_size)
        self.net.fc = nn.Linear(FEATURES, 1)

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        features = pooled(self.maps(x))
        logit = in_float32(self.net.fc, features)
        return DetectorOutput(torch.cat([torch.zeros_like(logit), logit], dim=1), features)

    def per_sample_bce(self, batch: TrainBatch) -> Float[Tensor, " b"]:
        """Binary cross-entropy of each image."""
        logit = self(batch.images).logits[:, 1].float()
        return F.binary_cross_entropy_with_logits(logit, batch.labels.float(), reduction="none")


class DagFddDetector(OneLogitXception):
    """Demographic-agnostic: the mean of the worst half of the batch.

    Args:
        in_size: height and width of the input.
        alpha: share of the batch that counts (official code: 0.5).
    """

    name = "dag-fdd"

    def __init__(self, in_size: int = 256, alpha: float = 0.5) -> None:
        super().__init__(in_size)
        self.alpha = alpha

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """CVaR of the batch's binary cross-entropies."""
        losses = self.per_sample_bce(batch)
        return dag_loss(losses, self.alpha), {"bce": losses.mean().item()}


class DawFddDetector(OneLogitXception):
    """Demographic-aware: the worst share of the groups, each by the worst share of its images.

    Args:
        in_size: height and width of the input.
        inner: share of a group's images that counts (official code: 0.9).
        outer: share of the groups that counts (official code: 0.5).
    """

    name = "daw-fdd"

    def __init__(self, in_size: int = 256, inner: float = 0.9, outer: float = 0.5) -> None:
        super().__init__(in_size)
        self.inner, self.outer = inner, outer

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """CVaR over groups of each group's CVaR."""
        losses = self.per_sample_bce(batch)
        return daw_loss(losses, batch.groups, self.inner, self.outer), {"bce": losses.mean().item()}
