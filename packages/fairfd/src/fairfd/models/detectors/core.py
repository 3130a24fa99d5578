"""CORE (Ni et al., CVPRW 2022): Xception whose features must agree on two augmented views of each image."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fairfd.models.detectors.detector import TrainBatch
from fairfd.models.detectors.losses import core_consistency
from fairfd.models.detectors.xception import XceptionDetector


class CoreDetector(XceptionDetector):
    """Xception with cross-entropy + `consistency_weight` * cosine consistency of the two views' pooled features.

    Args:
        in_size: height and width of the input.
        consistency_weight: weight of the consistency term (official code: 1.0).
    """

    name = "core"
    batch_layout = "two_views"

    def __init__(self, in_size: int = 256, consistency_weight: float = 1.0) -> None:
        super().__init__(in_size)
        self.consistency_weight = consistency_weight

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """CE over both views + the consistency of each image's two views."""
        output = self(batch.images)
        ce = F.cross_entropy(output.logits.float(), batch.labels)
        consistency = core_consistency(*output.features.float().chunk(2))
        return ce + self.consistency_weight * consistency, {"ce": ce.item(), "consistency": consistency.item()}
