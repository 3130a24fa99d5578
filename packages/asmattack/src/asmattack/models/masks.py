"""A learned mask generator: one pass gives what a parser and an activation map of the detector would have given.

The paper's abstract speaks of a mask "generative model"; the published code has none but parser, union and paste. This one is our own
addition: a small U-Net that learns label map and activation map together, so that masks need neither a parser nor gradients of the
detector. It takes both places in `MaskMaker(generator=...)`.
"""

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn

from asmattack.data.regions import REGIONS
from asmattack.models.class_activation import normalise
from tenfold import UserError


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 1, 1),
        nn.GroupNorm(4, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1),
        nn.GroupNorm(4, outputs),
        nn.SiLU(),
    )


class MaskGenerator(nn.Module, PyTorchModelHubMixin):
    """Faces to label-map logits and an activation logit for each pixel. Images are resized to `size` inside.

    Args:
        width: channels at full resolution; a multiple of 4, at most 512.
        size: side at which it works, a multiple of 4, at most 4096.

    Raises:
        UserError: another width or size.
    """

    def __init__(self, width: int = 16, size: int = 48) -> None:
        super().__init__()
        for name, value, most in (("width", width, 512), ("size", size, 4096)):
            if value not in range(4, most + 1, 4):
                raise UserError(f"{name} is {value}; it must be a multiple of 4, at most {most}")
        self.width, self.size = width, size
        # Two more inputs say where a pixel is: faces are aligned.
        self.down = nn.ModuleList([_block(5, width), _block(width, 2 * width), _block(2 * width, 4 * width)])
        self.up = nn.ModuleList([_block(6 * width, 2 * width), _block(3 * width, width)])
        self.head = nn.Conv2d(width, len(REGIONS) + 1, 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 19 h w"], Float[Tensor, "b h w"]]:
        """Logits of the classes and of the activation, at the size of the images."""
        height, width = images.shape[-2:]
        x = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        ramp = torch.linspace(-1, 1, self.size, device=x.device, dtype=x.dtype)
        place = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij")).expand(len(x), -1, -1, -1)
        x = torch.cat([2 * x - 1, place], 1)
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool2d(x, 2))
            kept.append(x)
        for block, skip in zip(self.up, reversed(kept[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1))
        x = F.interpolate(self.head(x), (height, width), mode="bilinear", align_corners=False)
        return x[:, :-1], x[:, -1]

    @torch.no_grad()
    def generate(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Int64[Tensor, "b h w"], Float[Tensor, "b h w"]]:
        """Label maps, and activation maps scaled to [0, 1] per image: what `region_scores` takes."""
        training = self.training
        self.eval()
        classes, activation = self(images)
        self.train(training)
        return classes.argmax(1), normalise(activation.sigmoid())


def generator_loss(
    classes: Float[Tensor, "b 19 h w"],
    activation: Float[Tensor, "b h w"],
    label_maps: Int64[Tensor, "b h w"],
    maps: Float[Tensor, "b h w"],
) -> Float[Tensor, ""]:
    """Cross-entropy with the parser's classes plus binary cross-entropy with the detector's activation in [0, 1]."""
    return F.cross_entropy(classes, label_maps) + F.binary_cross_entropy_with_logits(activation, maps)
