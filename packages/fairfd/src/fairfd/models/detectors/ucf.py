"""UCF (Yan et al., ICCV 2023): disentangles content, common forgery and method-specific forgery features.

Two Xception encoders end in 512 channels: one for forgery, one for content. Forgery features split into a specific and a
common half; a conditional U-Net must rebuild the image from content and forgery style. Only the common head is read at
test time, so inference runs `encoder_f`, `block_sha` and `head_sha` alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.xception import Xception
from torch import Tensor, nn

from fairfd.models.detectors.detector import Detector, DetectorOutput, TrainBatch, in_float32, to_signed
from fairfd.models.detectors.losses import shuffle_within, ucf_contrastive
from fairfd.models.detectors.xception import (
    FEATURES,
    blocks,
    entry_flow,
    exit_maps,
    load_xception,
    pooled,
    xception_network,
)
from tenfold import UserError

WIDTH = 512
STYLE = 256
SMALLEST = 48
SHUFFLE_PROBABILITY = 0.7


class Encoder(nn.Module):
    """Xception whose last maps, before their ReLU, are brought to 512 channels by a 1x1 convolution, BN and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.net: Xception = xception_network(num_classes=0)
        self.adjust = nn.Sequential(nn.Conv2d(FEATURES, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 512 h2 w2"]:
        """Feature maps of images in [-1, 1]."""
        return self.adjust(exit_maps(self.net, blocks(self.net, entry_flow(self.net, x), 1, 12)))


def style_block() -> nn.Sequential:
    """Three 1x1 convolutions 512 -> 256 -> 256 -> 256."""
    return nn.Sequential(
        nn.Conv2d(WIDTH, STYLE, 1),
        nn.LeakyReLU(),
        nn.Conv2d(STYLE, STYLE, 1),
        nn.LeakyReLU(),
        nn.Conv2d(STYLE, STYLE, 1),
    )


class Head(nn.Module):
    """Pooled features to class scores.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(STYLE, WIDTH), nn.LeakyReLU(), nn.Linear(WIDTH, classes))
        self.dropout = nn.Dropout(0.2)

    def forward(self, features: Float[Tensor, "b 256"]) -> Float[Tensor, "b c"]:
        """Class scores, with dropout on the scores themselves (official code)."""
        return self.dropout(self.mlp(features))


def adain(content: Float[Tensor, "b c h w"], style: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b c h w"]:
    """Adaptive instance normalisation: content with the style's channel means and standard deviations.

    Variances are unbiased and have 1e-5 added (official code).
    """
    content_std, content_mean = _channel_moments(content)
    style_std, style_mean = _channel_moments(style)
    return (content - content_mean) / content_std * style_std + style_mean


def _channel_moments(maps: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c 1 1"], Float[Tensor, "b c 1 1"]]:
    variance, mean = torch.var_mean(maps, dim=(2, 3), keepdim=True, correction=1)
    return (variance + 1e-5).sqrt(), mean


def _double_convolution(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class ConditionalDecoder(nn.Module):
    """G(style, content): three stages of AdaIN and upsampling; the style goes through the same layers.

    Maps of 8x8 become an image of 256x256 in [-1, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [_double_convolution(WIDTH, 256), _double_convolution(256, 128), _double_convolution(128, 64)]
        )
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.dropout = nn.Dropout(0.3)
        self.to_rgb = nn.Conv2d(64, 3, 1)

    def forward(
        self, style: Float[Tensor, "b 512 h w"], content: Float[Tensor, "b 512 h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b 3 h2 w2"]:
        """An image of `size` pixels with the content of one sample and the forgery style of another."""
        for convolutions in self.stages:
            content = convolutions(self.dropout(self.upsample(adain(content, style))))
            style = convolutions(self.dropout(self.upsample(style)))
        image = F.interpolate(self.to_rgb(content), size=size, mode="bilinear", align_corners=True)
        return image.tanh()


def reconstruction_loss(
    decoder: ConditionalDecoder,
    x: Float[Tensor, "b 3 h w"],
    style: Float[Tensor, "b 512 h2 w2"],
    content: Float[Tensor, "b 512 h2 w2"],
) -> Float[Tensor, ""]:
    """Four L1 terms: each half rebuilt with its own style, and with the other half's (Yan et al. 2023).

    The batch is all reals, then as many fakes.
    """
    size = (x.shape[-2], x.shape[-1])
    swapped = style.roll(len(style) // 2, 0)
    own = (decoder(style, content, size) - x).abs()
    other = (decoder(swapped, content, size) - x).abs()
    # The two halves are equally large: the sum of their means is twice the mean over both.
    return 2 * own.mean() + 2 * other.mean()


@dataclass(frozen=True)
class UcfWeights:
    """Weights of UCF's loss terms (official code).

    Attributes:
        specific: CE of the forgery type.
        reconstruction: sum of the four L1 terms.
        contrastive: sum of the four triplet terms.
    """

    specific: float = 0.1
    reconstruction: float = 0.3
    contrastive: float = 0.05


class UcfDetector(Detector):
    """UCF; needs batches of all reals, then as many fakes.

    Args:
        in_size: height and width of the input, at least 48.
        num_fake_types: forgery approaches in the training data.
    """

    name = "ucf"
    backbone = "legacy_xception"
    batch_layout = "real_fake_pairs"
    weights = UcfWeights()

    def __init__(self, in_size: int = 256, num_fake_types: int = 4) -> None:
        if in_size < SMALLEST:
            raise UserError(f"ucf: in_size {in_size} leaves maps without variance; use at least {SMALLEST}")
        super().__init__(in_size)
        self.num_fake_types = num_fake_types
        self.encoder_f = Encoder()
        self.encoder_c = Encoder()
        self.block_spe = style_block()
        self.block_sha = style_block()
        self.head_spe = Head(num_fake_types + 1)
        self.head_sha = Head(2)
        self.decoder = ConditionalDecoder()

    def detect(self, x: Float[Tensor, "b 3 h w"]) -> DetectorOutput:
        """Classify images in [-1, 1] by their common forgery features."""
        features = pooled(self.block_sha(self.encoder_f(x)))
        return DetectorOutput(in_float32(self.head_sha, features), features)

    def prepare_for(self, group_counts: Int[Tensor, " g"], num_approaches: int) -> None:
        """The specific head needs a class for each forgery approach."""
        if num_approaches > self.num_fake_types:
            raise UserError(
                f"{self.name}: the data has {num_approaches} forgery approaches, the detector {self.num_fake_types}; "
                f"create it with num_fake_types={num_approaches}"
            )
        super().prepare_for(group_counts, num_approaches)

    def training_loss(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """CE(common) + .1 CE(specific) + .3 reconstruction + .05 contrastive.

        Raises:
            UserError: rows that are not all reals, then as many fakes.
        """
        halves = require_pairs(batch.labels, self.name)
        x = to_signed(batch.images)
        forgery = self.encoder_f(x)
        return self.ucf_loss(x, forgery, self.block_sha(forgery), halves, batch.approaches)

    def ucf_loss(
        self,
        x: Float[Tensor, "n 3 h w"],
        forgery: Float[Tensor, "n 512 h2 w2"],
        common: Float[Tensor, "n 256 h2 w2"],
        labels: Int[Tensor, " n"],
        approaches: Int[Tensor, " n"],
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of a batch whose forgery features are at hand.

        Args:
            x: images in [-1, 1], all reals, then as many fakes.
            forgery: features of the forgery encoder.
            common: common forgery features.
            labels: 0 real, 1 fake.
            approaches: 0 real, 1.. the forgery approach.
        """
        specific = self.block_spe(forgery)
        if torch.rand(()) < SHUFFLE_PROBABILITY:
            # Common features are interchangeable inside a class: the decoder must cope with another's.
            common = common[shuffle_within(labels)]
        specific_vector, common_vector = pooled(specific), pooled(common)
        ce = F.cross_entropy(in_float32(self.head_sha, common_vector), labels)
        specific_ce = F.cross_entropy(in_float32(self.head_spe, specific_vector), approaches)
        style = torch.cat([specific, common], dim=1)
        reconstruction = reconstruction_loss(self.decoder, x, style, self.encoder_c(x))
        contrastive = ucf_contrastive(
            common_vector, specific_vector, shuffle_within(labels), shuffle_within(approaches)
        )
        loss = (
            ce
            + self.weights.specific * specific_ce
            + self.weights.reconstruction * reconstruction
            + self.weights.contrastive * contrastive
        )
        return loss, {
            "ce": ce.item(),
            "specific_ce": specific_ce.item(),
            "reconstruction": reconstruction.item(),
            "contrastive": contrastive.item(),
        }

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start both encoders from an ImageNet Xception."""
        load_xception(self.encoder_f.net, state)
        load_xception(self.encoder_c.net, state)


def require_pairs(labels: Int[Tensor, " n"], name: str) -> Int[Tensor, " n"]:
    """The labels, after making sure that they are n/2 zeros, then n/2 ones.

    Raises:
        UserError: they are not.
    """
    half = len(labels) // 2
    if len(labels) % 2 or labels[:half].any() or not labels[half:].all():
        raise UserError(f"{name}: a training batch must hold all reals, then as many fakes")
    return labels
