"""The backbone that ships with the package: a ViT of 0.8 million weights, frozen in every experiment here.

17 tokens of 128 channels: wide enough that the smoothed nullity rule (128 and more singular values) is the one at work.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tenfold import UserError
from tenfold.checkpoints import load_weights, read_tensors, write_tensors
from vptnsp.config import IMAGE_SIZE

EMBEDDED_NAME = "vptnsp_tiny_patch8_32"
"""What the backbone is called in configurations."""

MEAN = STD = (0.5, 0.5, 0.5)


def embedded_architecture(num_classes: int = 0) -> VisionTransformer:
    """An untrained backbone of the embedded kind: 32 x 32 pixels, patches of 8, four blocks, 128 channels, four heads."""
    return VisionTransformer(
        img_size=IMAGE_SIZE, patch_size=8, embed_dim=128, depth=4, num_heads=4, mlp_ratio=4, num_classes=num_classes
    )


def embedded_backbone() -> VisionTransformer:
    """The backbone with the weights that ship (made by `vptnsp pretrain`; the README has the recipe)."""
    with resources.as_file(resources.files("vptnsp") / "weights" / f"{EMBEDDED_NAME}.safetensors") as path:
        return load_backbone(path)


def load_backbone(path: Path) -> VisionTransformer:
    """A backbone of the embedded architecture from a file that `vptnsp pretrain` wrote.

    Raises:
        UserError: no such file, or weights of another architecture.
    """
    model = embedded_architecture()
    load_weights(model, finite(read_tensors(path)[0], path), path)
    return model.eval()


def finite(tensors: Mapping[str, Tensor], source: Path) -> Mapping[str, Tensor]:
    """The tensors as they are.

    Raises:
        UserError: one holds NaN or infinite values.
    """
    for name, each in tensors.items():
        if not torch.isfinite(each).all():
            raise UserError(f"{source}: {name} holds NaN or infinite values")
    return tensors


def save_backbone(path: Path, model: VisionTransformer) -> None:
    """Write the backbone without its classifier, in half precision."""
    kept = {name: value.to(torch.float16) for name, value in model.state_dict().items() if not name.startswith("head.")}
    write_tensors(path, kept)
