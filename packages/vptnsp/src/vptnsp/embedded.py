"""The backbone that ships with the package: a ViT of 0.8 million weights, frozen in every experiment here.

17 tokens of 128 channels: wide enough that the smoothed nullity rule (128 and more singular values) is the one at work.
"""

from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from tenfold import UserError
from tenfold.files import atomic_path

EMBEDDED_NAME = "vptnsp_tiny_patch8_32"
"""What the backbone is called in configurations."""

IMAGE_SIZE = 32
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
    try:
        weights = load_file(path)
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error})") from None
    except Exception as error:  # noqa: BLE001  # safetensors raises its own SafetensorError, torch RuntimeError
        raise UserError(f"{path}: not weights of {EMBEDDED_NAME} ({str(error).splitlines()[0]})") from None
    return model.eval()


def save_backbone(path: Path, model: VisionTransformer) -> None:
    """Write the backbone without its classifier, in half precision."""
    kept = {
        name: value.detach().to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("head.")
    }
    with atomic_path(path) as temporary:
        save_file(kept, temporary)
