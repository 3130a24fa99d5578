"""FFD (Dang et al., CVPR 2020): Xception with an attention mask in the middle flow."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from timm.models.xception import SeparableConv2d
from torch import Tensor

from fairfd.models.detectors.detector import DetectorOutput, TrainBatch, in_float32
from fairfd.models.detectors.xception import XceptionDetector, blocks, entry_flow, exit_flow, pooled

MASK_CHANNELS = 728


@dataclass(frozen=True)
class FfdAux:
    """Where FFD looks.

    Attributes:
        mask: 1 where the features are kept.
    """

    mask: Float[Tensor, "b 1 h w"]


class FfdDetector(XceptionDetector):
    """Xception whose features after block 7 are multiplied by sigmoid(separable convolution of themselves).

    Args:
        in_size: height and width of the input.
        mask_weight: weight of L1(mask, true mask) where the batch has masks. 0 as in the official code, whose mask loss
            reads a key that its forward never writes.
    """

    name = "ffd"

    def __init__(self, in_size: int = 256, mask_weight: float = 0.0) -> None:
        super().__init__(in_size)
        self.mask_weight = mask_weight
        self.uses_masks = mask_weight > 0
        self.attention = SeparableConv2d(MASK_CHANNELS, 1, 3, 1, 1)

    def mask(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """The attention mask of middle-flow features."""
        return self.attention(h).sigmoid()

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        h = blocks(self.net, entry_flow(self.net, x), 1, 7)
        mask = self.mask(h)
        features = pooled(exit_flow(self.net, blocks(self.net, h * mask, 8, 12)))
        return DetectorOutput(in_float32(self.net.fc, features), features, FfdAux(mask))

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """CE, and the mask's L1 where it is switched on and the batch has masks."""
        output = self(batch.images)
        ce = F.cross_entropy(output.logits.float(), batch.labels)
        if batch.masks is None or self.mask_weight == 0:
            return ce, {"ce": ce.item()}
        mask = output.aux.mask.float()
        wanted = F.interpolate(batch.masks, size=mask.shape[-2:], mode="bilinear", align_corners=False)
        mask_l1 = F.l1_loss(mask, wanted)
        return ce + self.mask_weight * mask_l1, {"ce": ce.item(), "mask_l1": mask_l1.item()}
