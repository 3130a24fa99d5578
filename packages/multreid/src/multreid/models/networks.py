"""The two-stream network (section 4): a stem for each modality, shared residual layers with non-local blocks, GeM, BN neck."""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.resnet import BasicBlock

from multreid.config import check_sides
from tenfold import UserError
from tenfold.checkpoints import read_state_dict

Architecture = Literal["resnet50", "small"]
ARCHITECTURES: tuple[Architecture, ...] = ("resnet50", "small")


class NonLocalBlock(nn.Module):
    """Dot-product attention over all positions with a residual connection (AGW, Ye et al., TPAMI 2021).

    z = x + BN(W(theta(x)^T phi(x) / N g(x))); the batch norm starts at zero, so that the block starts as identity.

    Args:
        channels: of the input; the embedding has half.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.out[1].weight)  # ty: ignore[invalid-argument-type]  # a batch norm has a weight

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The input plus what each position gathers from all others."""
        theta, phi, g = (each(x).flatten(2) for each in (self.theta, self.phi, self.g))
        # (theta^T phi / N) g, associated so that no N x N matrix exists: the product is linear.
        gathered = (g @ phi.transpose(1, 2) / phi.shape[2]) @ theta
        return x + self.out(gathered.unflatten(2, x.shape[2:]))


class GeM(nn.Module):
    """Generalised-mean pooling with a fixed exponent: (mean x^p)^(1/p).

    Args:
        p: the exponent.
    """

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Pool over positions; negative activations count as (almost) zero."""
        # Cubes of bf16 activations lose all precision.
        return x.float().clamp_min(1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class TwoStreamResNet(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="multreid",
    tags=["person-re-identification", "visible-infrared"],
):
    """Features of person crops of either modality, in one space.

    Args:
        architecture: `resnet50` (2048-d; the paper's) or `small` (128-d, for small pictures and tests).
        height: of the crops it is meant for, in pixels; kept with the weights for those who load them.
        width: see `height`.
    """

    def __init__(self, architecture: Architecture = "resnet50", height: int = 288, width: int = 144) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UserError(f"architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        check_sides(height, width)
        self.architecture, self.height, self.width = architecture, height, width
        build = _resnet50_parts if architecture == "resnet50" else _small_parts
        self.visible_stem, self.infrared_stem, self.layers, self.dimension = build()
        # Both stems start alike, as they do from ImageNet weights: features of the two modalities are comparable from the start.
        self.infrared_stem.load_state_dict(self.visible_stem.state_dict())
        self.pool = GeM()
        self.neck = nn.BatchNorm1d(self.dimension)
        self.neck.bias.requires_grad_(False)

    def forward(
        self, visible: Float[Tensor, "b 3 h w"], infrared: Float[Tensor, "c 3 h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "c d"]]:
        """Features after the BN neck of a batch of each modality (either may be empty when not training).

        Args:
            visible: ImageNet-normalised pictures.
            infrared: the same; a grey picture has three equal channels.
        """
        stems = [
            stem(batch)
            for stem, batch in ((self.visible_stem, visible), (self.infrared_stem, infrared))
            if batch.shape[0]
        ]
        features = self.neck(self.pool(self.layers(torch.cat(stems))))
        return features[: visible.shape[0]], features[visible.shape[0] :]


def _stem(first: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(first, nn.BatchNorm2d(first.out_channels), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))


def _resnet50_parts() -> tuple[nn.Sequential, nn.Sequential, nn.Sequential, int]:
    """torchvision's ResNet-50 with last stride 1, AGW's non-local blocks: after the last 2 of layer2, the last 3 of layer3."""
    base = resnet50(weights=None)
    last = base.layer4[0]
    last.conv2.stride = last.downsample[0].stride = (1, 1)
    stems = [_stem(nn.Conv2d(3, 64, 7, 2, 3, bias=False)) for _ in range(2)]
    layers = nn.Sequential(
        base.layer1, _with_attention(base.layer2, 2, 512), _with_attention(base.layer3, 3, 1024), base.layer4
    )
    return stems[0], stems[1], layers, 2048


def _with_attention(blocks: nn.Sequential, count: int, channels: int) -> nn.Sequential:
    plain = len(blocks) - count
    return nn.Sequential(
        *blocks[:plain], *(nn.Sequential(block, NonLocalBlock(channels)) for block in list(blocks)[plain:])
    )


def _small_parts() -> tuple[nn.Sequential, nn.Sequential, nn.Sequential, int]:
    """The same plan at a small size: four layers of one basic block each."""
    stems = [_stem(nn.Conv2d(3, 16, 5, 2, 2, bias=False)) for _ in range(2)]
    widths = (16, 32, 64, 128)
    strides = (1, 1, 2, 1)
    blocks = []
    for previous, width, stride in zip((16, *widths[:-1]), widths, strides, strict=True):
        shortcut = nn.Sequential(nn.Conv2d(previous, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        blocks.append(BasicBlock(previous, width, stride, shortcut))
    layers = nn.Sequential(blocks[0], blocks[1], NonLocalBlock(32), blocks[2], NonLocalBlock(64), blocks[3])
    return stems[0], stems[1], layers, 128


def load_imagenet_weights(model: TwoStreamResNet, path: Path) -> None:
    """Take the weights of a torchvision ResNet-50 from a local file into both stems and the shared layers.

    Args:
        model: of architecture `resnet50`.
        path: a `.safetensors` or torchvision's `.pth` (a plain state dictionary; nothing else is unpickled).

    Raises:
        UserError: not such a file, or a network of another kind.
    """
    if model.architecture != "resnet50":
        raise UserError(f"{path}: ImageNet weights are for the architecture resnet50, not {model.architecture}")
    state = read_state_dict(path)
    with torch.device("meta"):
        reference = resnet50(weights=None).state_dict()
    wanted = {key for key in reference if not key.startswith("fc.")}
    if not all(key in state and state[key].shape == reference[key].shape for key in wanted):
        raise UserError(f"{path}: not the weights of a torchvision ResNet-50")
    stem = {
        f"{new}.{rest}": state[f"{old}.{rest}"]
        for old, new in (("conv1", "0"), ("bn1", "1"))
        for rest in _names(reference, old)
    }
    model.visible_stem.load_state_dict(stem)
    model.infrared_stem.load_state_dict(stem)
    # Blocks followed by attention sit one level deeper than in torchvision.
    own = model.layers.state_dict()
    for key in wanted:
        if key.startswith("layer"):
            layer, block, rest = key.split(".", 2)
            place = f"{int(layer[-1]) - 1}.{block}"
            target = f"{place}.{rest}" if f"{place}.{rest}" in own else f"{place}.0.{rest}"
            own[target] = state[key]
    model.layers.load_state_dict(own)


def _names(state: dict[str, Tensor], prefix: str) -> list[str]:
    return [key.split(".", 1)[1] for key in state if key.startswith(f"{prefix}.")]


@torch.inference_mode()
def unit_features(
    model: TwoStreamResNet, pictures: Float[Tensor, "b 3 h w"], modality: Literal["visible", "infrared"]
) -> Float[Tensor, "b d"]:
    """Inference (section 3.5): mean of the features of each picture and its mirror image, unit norm; in evaluation mode."""
    nothing = pictures[:0]
    index = 0 if modality == "visible" else 1
    total = sum(
        (model(each, nothing) if index == 0 else model(nothing, each))[index] for each in (pictures, pictures.flip(3))
    )
    return F.normalize(torch.as_tensor(total).float(), dim=1)
