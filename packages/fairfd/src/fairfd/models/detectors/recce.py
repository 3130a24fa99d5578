"""RECCE (Cao et al., CVPR 2022): an encoder, a decoder that reconstructs the face, and a graph that reads both.

The decoder hangs at Xception's block 4. Its two inner feature maps are aggregated onto the encoder's positions by
`GraphReasoning`; what it fails to reconstruct guides the attention of `GuidedAttention`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.models.xception import Block, SeparableConv2d
from torch import Tensor, nn

from fairfd.models.detectors.detector import Detector, DetectorOutput, TrainBatch, in_float32, to_signed
from fairfd.models.detectors.xception import (
    FEATURES,
    blocks,
    entry_flow,
    exit_flow,
    load_xception,
    pooled,
    unit,
    xception_network,
)

WIDTH = 728
NOISE = 1e-6


def children_of(maps: Float[Tensor, "b c h w"], ratio: int) -> Float[Tensor, "b n k c"]:
    """The k = ratio^2 positions of a finer map under each of the n positions of the coarse one."""
    channels = maps.shape[1]
    unfolded = F.unfold(maps, ratio, stride=ratio)
    return unfolded.unflatten(1, (channels, ratio * ratio)).permute(0, 3, 2, 1)


class ChildAggregation(nn.Module):
    """One finer map's share of the graph: each node takes a weighted sum of the embeddings of its children.

    Args:
        node: channels of the coarse features.
        node_embedding: channels of an embedded node.
        child: channels of the finer map.
        child_embedding: channels of an embedded child.
        ratio: how many times finer the map is.
    """

    def __init__(self, node: int, node_embedding: int, child: int, child_embedding: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.embedding = nn.Sequential(
            nn.Linear(child, child_embedding, bias=False),
            nn.ReLU(),
            nn.Linear(child_embedding, child_embedding, bias=False),
        )
        self.affinity = nn.Linear(node_embedding + child_embedding, 1, bias=False)
        self.gate = nn.Conv2d(node, child_embedding, 1, bias=False)

    def forward(
        self, h: Float[Tensor, "b c h w"], nodes: Float[Tensor, "b n e"], maps: Float[Tensor, "b c2 h2 w2"]
    ) -> Float[Tensor, "b e2 h w"]:
        """Aggregate `maps` onto the positions of `h`; all nodes at once.

        Args:
            h: coarse features.
            nodes: their embeddings, one row per position.
            maps: the finer map.
        """
        embedded = self.embedding(children_of(maps, self.ratio))
        # The affinity of [node, child] is the sum of their parts: no pair is ever written down.
        of_node, of_child = self.affinity.weight.split([nodes.shape[2], embedded.shape[3]], dim=1)
        weights = (F.linear(nodes, of_node)[:, :, None] + F.linear(embedded, of_child)).relu().softmax(dim=2)
        aggregate = (weights * embedded).sum(2).mT.unflatten(2, tuple(h.shape[-2:]))
        return aggregate * (1 - self.gate(h).sigmoid())


class GraphReasoning(nn.Module):
    """Relates the encoder's positions to the decoder's two inner maps (Cao et al. 2022, "multi-scale graph reasoning").

    Args:
        node: channels of the coarse features.
        node_embedding: channels of an embedded node.
        first, first_embedding: channels of the first finer map and of its embedding.
        second, second_embedding: those of the second.
        ratios: how many times finer the two maps are.
        drop_rate: dropout at the end.
    """

    def __init__(
        self,
        node: int = WIDTH,
        node_embedding: int = 256,
        first: int = 256,
        first_embedding: int = 256,
        second: int = 128,
        second_embedding: int = 256,
        ratios: tuple[int, int] = (2, 4),
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__()
        self.node_embedding = nn.Sequential(
            nn.Conv2d(node, node_embedding, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(node_embedding, node_embedding, 1, bias=False),
        )
        self.first = ChildAggregation(node, node_embedding, first, first_embedding, ratios[0])
        self.second = ChildAggregation(node, node_embedding, second, second_embedding, ratios[1])
        self.reproject = nn.Sequential(
            nn.Conv2d(first_embedding + second_embedding + node_embedding, node, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(node, node, 1, bias=False),
            nn.Dropout(drop_rate),
        )

    def forward(
        self, h: Float[Tensor, "b c h w"], first: Float[Tensor, "b c2 h2 w2"], second: Float[Tensor, "b c3 h3 w3"]
    ) -> Float[Tensor, "b c h w"]:
        """What the two decoder maps add to the encoder's features `h`."""
        embedded = self.node_embedding(h)
        nodes = embedded.flatten(2).mT
        parts = [self.first(h, nodes, first), self.second(h, nodes, second), embedded]
        return self.reproject(torch.cat(parts, dim=1).sigmoid())


class GuidedAttention(nn.Module):
    """Attention where the reconstruction differs from the image.

    Args:
        depth: channels of the features.
        drop_rate: dropout on the features themselves.
    """

    def __init__(self, depth: int = WIDTH, drop_rate: float = 0.2) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1, bias=False))
        self.project = nn.Sequential(nn.Conv2d(depth, depth, 1, bias=False), nn.BatchNorm2d(depth), nn.ReLU())
        self.dropout = nn.Dropout(drop_rate)

    def forward(
        self, x: Float[Tensor, "b 3 h w"], reconstruction: Float[Tensor, "b 3 h w"], h: Float[Tensor, "b c h2 w2"]
    ) -> Float[Tensor, "b c h2 w2"]:
        """sigmoid(gate(|x - reconstruction|)) * project(h) + dropout(h)."""
        residual = (x - reconstruction).abs()
        residual = F.interpolate(residual, size=h.shape[-2:], mode="bilinear", align_corners=True)
        return self.gate(residual).sigmoid() * self.project(h) + self.dropout(h)


class Decoder(nn.Module):
    """From block 4's features back to the face, at half the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up1 = self._up(WIDTH, 256)
        self.block1 = Block(256, 256, 3, 1)
        self.up2 = self._up(256, 128)
        self.block2 = Block(128, 128, 3, 1)
        self.up3 = self._up(128, 64)
        self.to_rgb = nn.Sequential(nn.Conv2d(64, 3, 1, bias=False), nn.Tanh())

    @staticmethod
    def _up(channels: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.UpsamplingNearest2d(scale_factor=2),
            SeparableConv2d(channels, out, 3, 1, 1),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )

    def forward(
        self, h: Float[Tensor, "b 728 h w"]
    ) -> tuple[Float[Tensor, "b 256 h2 w2"], Float[Tensor, "b 128 h4 w4"], Float[Tensor, "b 3 h8 w8"]]:
        """The two inner maps and the reconstruction in [-1, 1]."""
        d2 = self.block1(self.up1(h))
        d4 = self.block2(self.up2(d2))
        return d2, d4, self.to_rgb(self.up3(d4))


@dataclass(frozen=True)
class RecceAux:
    """What RECCE makes of a face besides its class.

    Attributes:
        reconstruction: the decoder's image in [-1, 1].
        bottleneck: pooled features at the decoder's root.
        inner: pooled features of the decoder's inner maps.
    """

    reconstruction: Float[Tensor, "b 3 h w"]
    bottleneck: Float[Tensor, "b c"]
    inner: tuple[Float[Tensor, "b c2"], Float[Tensor, "b c3"]]


def add_noise_to_half(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """White noise of standard deviation 1e-6 on a random half of the images, clipped to [-1, 1] (official code)."""
    noisy = (torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5).to(x.dtype)
    return (x + noisy * NOISE * torch.randn_like(x)).clamp(-1, 1)


def reconstruction_loss(
    reconstruction: Float[Tensor, "b 3 h w"], x: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]
) -> Float[Tensor, ""]:
    """L1 of the real images only; 0 where the batch has none (Cao et al. 2022)."""
    real: Bool[Tensor, " b"] = labels == 0
    per_image = (reconstruction - x).abs().mean((1, 2, 3))
    return (per_image * real).sum() / real.sum().clamp(min=1)


def metric_loss(features: Float[Tensor, "b c"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Reals close to each other, fakes far from reals, by cosine distance (Cao et al. 2022, "metric learning").

    Mean distance among reals minus mean distance between reals and fakes, shifted to be at least 0.
    """
    distance = (1 - unit(features) @ unit(features).mT) / 2
    real: Bool[Tensor, " b"] = labels == 0
    among = real[:, None] & real
    across = real[:, None] & ~real
    close = (distance * among).sum() / among.sum().clamp(min=1)
    far = (distance * across).sum() / across.sum().clamp(min=1)
    return 1 + close - far


class RecceDetector(Detector):
    """RECCE; cross-entropy, with the paper's two further losses as options.

    Args:
        in_size: height and width of the input.
        reconstruction_weight: weight of the reconstruction of reals. The RECCE paper uses 0.1, the official code 0.
        metric_weight: weight of the metric loss. The RECCE paper uses 0.1, the official code 0.
    """

    name = "recce"
    backbone = "legacy_xception"

    def __init__(self, in_size: int = 256, reconstruction_weight: float = 0.0, metric_weight: float = 0.0) -> None:
        super().__init__(in_size)
        self.reconstruction_weight = reconstruction_weight
        self.metric_weight = metric_weight
        self.encoder = xception_network(num_classes=0)
        self.decoder = Decoder()
        self.reasoning = GraphReasoning()
        self.attention = GuidedAttention()
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(FEATURES, 2)

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        seen = add_noise_to_half(x) if self.training else x
        root = blocks(self.encoder, entry_flow(self.encoder, seen), 1, 4)
        d2, d4, small = self.decoder(self.dropout(root))
        reconstruction = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=True)
        h = blocks(self.encoder, root, 5, 7)
        h = blocks(self.encoder, h + self.reasoning(h, d2, d4), 8, 8)
        h = self.attention(x, reconstruction, h)
        features = pooled(exit_flow(self.encoder, blocks(self.encoder, h, 9, 12)))
        aux = RecceAux(reconstruction, pooled(root), (pooled(d2), pooled(d4)))
        return DetectorOutput(in_float32(self.fc, self.dropout(features)), features, aux)

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """CE, and the reconstruction and metric terms where their weights are not 0."""
        output = self(batch.images)
        loss = F.cross_entropy(output.logits.float(), batch.labels)
        parts = {"ce": loss.item()}
        if self.reconstruction_weight:
            image = to_signed(batch.images)
            term = reconstruction_loss(output.aux.reconstruction.float(), image, batch.labels)
            loss = loss + self.reconstruction_weight * term
            parts["reconstruction"] = term.item()
        if self.metric_weight:
            levels = (output.aux.bottleneck, *output.aux.inner)
            term = torch.stack([metric_loss(level.float(), batch.labels) for level in levels]).sum()
            loss = loss + self.metric_weight * term
            parts["metric"] = term.item()
        return loss, parts

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start the encoder from an ImageNet Xception."""
        load_xception(self.encoder, state)
