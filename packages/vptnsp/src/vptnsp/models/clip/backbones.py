"""CLIP's image tower of transformers, made to look like a timm VisionTransformer (paper App. B, the CLIP variant)."""

from typing import Any

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vptnsp.models.attention import UnsupportedBackboneError


@torch.no_grad()
def fused_attention(separate: Any) -> Attention:
    """A timm `Attention` with the weights of transformers' CLIPAttention (q, k and v in one matrix)."""
    fused = Attention(separate.embed_dim, separate.num_heads, qkv_bias=True)
    parts = (separate.q_proj, separate.k_proj, separate.v_proj)
    fused.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
    fused.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
    fused.proj.load_state_dict(separate.out_proj.state_dict())
    return fused.to(separate.q_proj.weight).eval()


class ClipBlock(Block):
    """One layer of the tower in timm's shape: its LayerNorms and MLP are the layer's own, its attention fused."""

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        self.norm1 = layer.layer_norm1
        self.attn = fused_attention(layer.self_attn)
        self.norm2 = layer.layer_norm2
        self.mlp = layer.mlp
        self.ls1 = self.ls2 = self.drop_path1 = self.drop_path2 = nn.Identity()


class ClipTower(nn.Module):
    """The tower with timm's `forward_features` and `forward_head`.

    Args:
        vision_model: transformers' CLIPVisionModel or CLIPVisionModelWithProjection; it is left as it is.

    Raises:
        UnsupportedBackboneError: something else.
    """

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self._original = (vision_model,)
        # CLIPVisionModelWithProjection wraps the tower once more.
        inner: Any = vision_model
        while hasattr(inner, "vision_model"):
            inner = inner.vision_model
        if not hasattr(inner, "pre_layrnorm"):
            raise UnsupportedBackboneError(f"{type(vision_model).__name__} is not CLIP's image tower")
        self.embeddings = inner.embeddings
        self.norm_pre = inner.pre_layrnorm
        self.blocks = nn.ModuleList(ClipBlock(layer) for layer in inner.encoder.layers)
        self.norm = inner.post_layernorm
        self.image_size = int(inner.config.image_size)
        self.num_features = int(inner.config.hidden_size)

    @property
    def projection(self) -> Any:
        """The tower's projection into the joint space, an `nn.Linear`; None where it has none."""
        return getattr(self._original[0], "visual_projection", None)

    def unwrapped(self) -> nn.Module:
        """The model this was made from."""
        return self._original[0]

    def forward_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Tokens after the last block, before the last norm."""
        tokens = self.norm_pre(self.embeddings(images))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def forward_head(self, tokens: Float[Tensor, "b n d"], pre_logits: bool = True) -> Float[Tensor, "b e"]:
        """The class token after the last norm; projected into the joint space unless `pre_logits`."""
        pooled = self.norm(tokens[:, 0])
        return pooled if pre_logits or self.projection is None else self.projection(pooled)
