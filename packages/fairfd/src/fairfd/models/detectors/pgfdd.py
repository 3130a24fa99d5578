"""PG-FDD (Lin et al., CVPR 2024), which the paper's tables call PFGDFD: UCF with a demographic branch and a fair head.

A third encoder learns the demographic group. Its features restyle the common forgery features by AdaIN, and a head on the
result is trained by DAW-FDD's worst-share loss over groups. The weights of the six terms are the official code's. Two points
are not told by the paper and are decided here: the decoder is UCF's, and the fairness term is the exact CVaR.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fairfd.models.detectors.detector import DetectorOutput, TrainBatch, in_float32, to_signed
from fairfd.models.detectors.losses import daw_loss, ldam_loss, ldam_margins
from fairfd.models.detectors.ucf import Encoder, Head, UcfDetector, adain, require_pairs, style_block
from fairfd.models.detectors.xception import load_xception, pooled
from tenfold import UserError


@dataclass(frozen=True)
class FairWeights:
    """Weights of the two terms that PG-FDD adds to UCF's (official code).

    Attributes:
        demographic: LDAM loss of the group.
        fair: worst-share loss of the fused head.
    """

    demographic: float = 0.1
    fair: float = 1.0


class PgFddDetector(UcfDetector):
    """PG-FDD; needs batches of all reals, then as many fakes, with groups.

    Args:
        in_size: height and width of the input, at least 48.
        num_fake_types: forgery approaches in the training data.
        num_groups: demographic groups in the training data.
        inference: the head that predicts. `fused`, which the fairness loss trains, or `shared` as the official code does.
    """

    name = "pgfdd"
    fair_weights = FairWeights()
    margins: Tensor

    def __init__(
        self,
        in_size: int = 256,
        num_fake_types: int = 4,
        num_groups: int = 8,
        inference: Literal["fused", "shared"] = "fused",
    ) -> None:
        super().__init__(in_size, num_fake_types)
        self.num_groups, self.inference = num_groups, inference
        self.encoder_d = Encoder()
        self.block_dem = style_block()
        self.head_dem = Head(num_groups)
        self.head_fused = Head(1)
        self.register_buffer("margins", ldam_margins(torch.ones(num_groups, dtype=torch.long)))

    def prepare_for(self, group_counts: Int[Tensor, " g"], num_approaches: int) -> None:
        """Margins by how frequent the groups are; a head for each of them.

        Raises:
            UserError: more groups or approaches than the heads hold.
        """
        super().prepare_for(group_counts, num_approaches)
        if len(group_counts) > self.num_groups:
            raise UserError(
                f"{self.name}: the data has {len(group_counts)} groups, the detector {self.num_groups}; create it with "
                f"num_groups={len(group_counts)}"
            )
        counts = F.pad(group_counts, (0, self.num_groups - len(group_counts)), value=int(group_counts.max()))
        self.margins.copy_(ldam_margins(counts))

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        if self.inference == "shared":
            return super().detect(x)
        fused = pooled(adain(self.block_sha(self.encoder_f(x)), self.block_dem(self.encoder_d(x))))
        logit = in_float32(self.head_fused, fused)
        return DetectorOutput(torch.cat([torch.zeros_like(logit), logit], dim=1), fused)

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """UCF's loss + .1 LDAM(group) + 1 worst-share loss of the fused head over groups.

        Raises:
            UserError: rows that are not all reals, then as many fakes.
        """
        halves = require_pairs(batch.labels, self.name)
        x = to_signed(batch.images)
        forgery = self.encoder_f(x)
        demographic = self.block_dem(self.encoder_d(x))
        common = self.block_sha(forgery)
        loss, parts = self.ucf_loss(x, forgery, common, halves, batch.approaches)
        ldam = ldam_loss(in_float32(self.head_dem, pooled(demographic)), batch.groups, self.margins)
        logit = in_float32(self.head_fused, pooled(adain(common, demographic)))[:, 0]
        errors = F.binary_cross_entropy_with_logits(logit, batch.labels.float(), reduction="none")
        fair = daw_loss(errors, batch.groups)
        loss = loss + self.fair_weights.demographic * ldam + self.fair_weights.fair * fair
        return loss, parts | {"demographic": ldam.item(), "fair": fair.item()}

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start all three encoders from an ImageNet Xception."""
        super().load_backbone(state)
        load_xception(self.encoder_d.net, state)
