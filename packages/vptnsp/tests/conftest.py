"""Shapes in signatures are checked while the tests run; one thread, so that results repeat."""

import os
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook

install_import_hook("vptnsp", "beartype.beartype")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402  # after the hook and the thread count

torch.set_num_threads(1)


@pytest.fixture
def golden():
    """Read a file of golden vectors."""
    return lambda name: np.load(Path(__file__).parent / "golden" / f"{name}.npz")


@pytest.fixture
def small_vit():
    """Make a timm ViT of 32 channels, 17 tokens and three blocks, with random weights."""
    from timm.models.vision_transformer import VisionTransformer

    def make(**kwargs) -> VisionTransformer:
        torch.manual_seed(kwargs.pop("seed", 0))
        defaults = {
            "img_size": 16,
            "patch_size": 4,
            "embed_dim": 32,
            "depth": 3,
            "num_heads": 4,
            "mlp_ratio": 2,
            "num_classes": 0,
        }
        model = VisionTransformer(**(defaults | kwargs))
        with torch.no_grad():
            for block in model.blocks:
                # Real networks have uneven LayerNorm weights; a fresh one would hide what depends on them.
                block.norm1.weight.uniform_(0.5, 1.5)
                block.attn.qkv.weight.mul_(4)
        return model.eval()

    return make
