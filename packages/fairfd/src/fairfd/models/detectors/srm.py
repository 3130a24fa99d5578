"""SRM two-stream detector (Luo et al., CVPR 2021, "Generalizing face forgery detection with high-frequency features").

One Xception sees the image, the other its high-frequency residuals under three fixed SRM filters. The residual stream
borrows from the image stream in the entry flow, guides it by a spatial attention, and the two exchange by dual cross-modal
attention in the middle flow. Both are fused before the last ReLU. The attention's linear layers act on the 256 positions of
a 256-pixel image: other sizes are refused.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fairfd.models.detectors.detector import Detector, DetectorOutput, TrainBatch, at_least_float32, in_float32
from fairfd.models.detectors.losses import am_softmax
from fairfd.models.detectors.xception import (
    FEATURES,
    blocks,
    exit_maps,
    first_convolution,
    load_xception,
    pooled,
    second_convolution,
    xception_network,
)
from tenfold import UserError

IN_SIZE = 256
MIDDLE = 728
TOKENS = 256
CLIP = 3.0


def srm_kernels() -> Float[Tensor, "3 5 5"]:
    """The three fixed high-pass kernels: KB (3x3 second order), KV (5x5), horizontal second order. Each sums to 0."""
    kb = torch.zeros(5, 5)
    kb[1:4, 1:4] = torch.tensor([[-1.0, 2, -1], [2, -4, 2], [-1, 2, -1]]) / 4
    edge, inner, centre = [-1.0, 2, -2, 2, -1], [2.0, -6, 8, -6, 2], [-2.0, 8, -12, 8, -2]
    kv = torch.tensor([edge, inner, centre, inner, edge]) / 12
    horizontal = torch.zeros(5, 5)
    horizontal[2, 1:4] = torch.tensor([1.0, -2, 1]) / 2
    return torch.stack([kb, kv, horizontal])


def srm_residuals(
    x: Float[Tensor, "b c h w"], kernels: Float[Tensor, "3 5 5"] | None = None
) -> Float[Tensor, "b 3 h w"]:
    """Noise residuals: each kernel on the sum over channels, clipped to [-3, 3].

    Args:
        x: images, normalised to [-1, 1] in the detector.
        kernels: the fixed kernels, when they are at hand on the right device.
    """
    kernels = srm_kernels().to(x.device) if kernels is None else kernels
    # bfloat16 would round the residuals away: they are small differences of large values.
    with torch.autocast(x.device.type, enabled=False):
        # The same kernel on every channel, summed: one filtering of the channel sum.
        return F.conv2d(at_least_float32(x).sum(1, keepdim=True), kernels[:, None], padding=2).clamp(-CLIP, CLIP)


KernelLayout = Literal["blocks", "every_channel"]
"""Which kernels the three maps of a feature channel come from.

`blocks`: the kernels are repeated one after the other over all 3c maps, so that most channels meet one kernel three times.
The official code does so, and its weights expect it. `every_channel`: each channel meets all three, as SRM is meant.
"""


def depthwise_kernels(channels: int, layout: KernelLayout) -> Float[Tensor, "maps 1 5 5"]:
    """The fixed kernels of 3c depthwise maps, three consecutive maps to a channel."""
    kernels = srm_kernels()[:, None]
    if layout == "blocks":
        return kernels.repeat_interleave(channels, 0)
    return kernels.repeat(channels, 1, 1, 1)


class SeparableSrm(nn.Module):
    """The fixed kernels on the channels of a feature map, then a learned 1x1 convolution, BN and ReLU.

    Args:
        channels: of the input.
        out: channels of the result.
        layout: which channel meets which kernels.
    """

    kernels: Tensor

    def __init__(self, channels: int, out: int, layout: KernelLayout = "blocks") -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernels", depthwise_kernels(channels, layout), persistent=False)
        self.project = nn.Sequential(nn.Conv2d(3 * channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """Residuals of features."""
        residuals = F.conv2d(h, self.kernels.to(h.dtype), padding=2, groups=self.channels)
        return self.project(residuals.clamp(-CLIP, CLIP))


class NoiseGuidedAttention(nn.Module):
    """Where the residuals' residuals say to look: SRM, two convolutions, channel mean and maximum, a 7x7 convolution."""

    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernels", srm_kernels(), persistent=False)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.score = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, noise: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h2 w2"]:
        """Attention in (0, 1) from a residual map, which is filtered a second time (official code)."""
        h = self.stem(srm_residuals(noise, self.kernels))
        return self.score(torch.cat([h.mean(1, keepdim=True), h.amax(1, keepdim=True)], dim=1)).sigmoid()


class DualCrossModalAttention(nn.Module):
    """Each stream adds what the other holds at related positions (Luo et al. 2021).

    Args:
        channels: of both streams.
        tokens: positions of the map; the energies pass a linear layer over them.
        ratio: channels per key channel.
    """

    def __init__(self, channels: int = MIDDLE, tokens: int = TOKENS, ratio: int = 8) -> None:
        super().__init__()
        key = channels // ratio
        self.key_x = nn.Conv2d(channels, key, 1)
        self.key_y = nn.Conv2d(channels, key, 1)
        self.key_shared = nn.Conv2d(key, key, 1)
        self.energy_x = nn.Linear(tokens, tokens)
        self.energy_y = nn.Linear(tokens, tokens)
        self.value_x = nn.Conv2d(channels, channels, 1)
        self.value_y = nn.Conv2d(channels, channels, 1)
        self.gamma_x = nn.Parameter(torch.zeros(1))
        self.gamma_y = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """out_x = x + gamma_x value(y) P_x^T, and the same with the streams exchanged."""
        a = self.key_shared(self.key_x(x)).flatten(2).mT
        b = self.key_shared(self.key_y(y)).flatten(2).mT
        energy = a @ b.mT
        p_x = self.energy_x(energy).softmax(-1)
        p_y = self.energy_y(energy.mT).softmax(-1)
        from_y = (self.value_y(y).flatten(2) @ p_x.mT).reshape(x.shape)
        from_x = (self.value_x(x).flatten(2) @ p_y.mT).reshape(y.shape)
        return x + self.gamma_x * from_y, y + self.gamma_y * from_x


class ChannelAttention(nn.Module):
    """sigmoid(mlp(average) + mlp(maximum)) over space.

    Args:
        channels: of the map.
        ratio: channels per hidden channel.
    """

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // ratio, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // ratio, channels, 1, bias=False),
        )

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        """A weight in (0, 1) per channel."""
        return (self.mlp(h.mean((2, 3), keepdim=True)) + self.mlp(h.amax((2, 3), keepdim=True))).sigmoid()


class Fusion(nn.Module):
    """Both streams to one: 1x1 convolution, BN, ReLU, weighted by channel attention.

    Args:
        channels: of each stream.
    """

    def __init__(self, channels: int = FEATURES) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.attention = ChannelAttention(channels)

    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Fuse two maps of equal shape."""
        fused = self.project(torch.cat([x, y], dim=1))
        return fused * self.attention(fused)


class SrmDetector(Detector):
    """The two-stream detector; AM-softmax.

    Args:
        in_size: must be 256.
        margin: m of the AM-softmax.
        scale: s of the AM-softmax.
        am_cosine: let the classifier return s * cosine between feature and class weight, as AM-softmax is defined. Off by
            default: the official code feeds raw logits.
        kernel_layout: which feature channels meet which SRM kernels.
    """

    name = "srm"
    backbone = "legacy_xception"

    def __init__(
        self,
        in_size: int = IN_SIZE,
        margin: float = 0.45,
        scale: float = 30.0,
        am_cosine: bool = False,
        kernel_layout: KernelLayout = "blocks",
    ) -> None:
        if in_size != IN_SIZE:
            raise UserError(f"srm: in_size {in_size} is not possible, the attention is built for {IN_SIZE}x{IN_SIZE}")
        super().__init__(in_size)
        self.margin, self.scale, self.am_cosine = margin, scale, am_cosine
        self.rgb = xception_network()
        self.noise = xception_network(num_classes=0)
        self.srm1 = SeparableSrm(32, 32, kernel_layout)
        self.srm2 = SeparableSrm(64, 64, kernel_layout)
        self.spatial = NoiseGuidedAttention()
        self.after_spatial = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
        self.exchange1 = DualCrossModalAttention(tokens=TOKENS)
        self.exchange2 = DualCrossModalAttention(tokens=TOKENS)
        self.fusion = Fusion()

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1]."""
        residuals = srm_residuals(x, self.spatial.kernels)
        x1 = first_convolution(self.rgb, x)
        y1 = F.relu(first_convolution(self.noise, residuals) + self.srm1(x1))
        x2 = second_convolution(self.rgb, x1)
        y2 = F.relu(second_convolution(self.noise, y1) + self.srm2(x2))
        x2 = self.after_spatial(x2 * self.spatial(residuals) + x2)
        x3, y3 = blocks(self.rgb, x2, 1, 3), blocks(self.noise, y2, 1, 3)
        x3, y3 = self.exchange1(x3, y3)
        x7, y7 = blocks(self.rgb, x3, 4, 7), blocks(self.noise, y3, 4, 7)
        x7, y7 = self.exchange2(x7, y7)
        x12 = exit_maps(self.rgb, blocks(self.rgb, x7, 8, 12))
        y12 = exit_maps(self.noise, blocks(self.noise, y7, 8, 12))
        features = pooled(self.fusion(x12, y12))
        return DetectorOutput(self.classify(features), features)

    def classify(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b 2"]:
        """Class scores: raw ones, or scaled cosines with `am_cosine`."""
        if self.am_cosine:
            return self.scale * F.cosine_similarity(at_least_float32(features)[:, None], self.rgb.fc.weight, dim=2)
        return in_float32(self.rgb.fc, features)

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """AM-softmax of the logits, or of the cosines with `am_cosine`."""
        logits = self(batch.images).logits.float()
        cosines = logits / self.scale if self.am_cosine else logits
        loss = am_softmax(cosines, batch.labels, self.margin, self.scale)
        return loss, {"am_softmax": loss.item()}

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start both streams from an ImageNet Xception."""
        load_xception(self.rgb, state)
        load_xception(self.noise, state)
