"""Prompted self-attention (paper §3, eq. 1-6), as extra keys and values.

The paper concatenates the prompts to the tokens before LayerNorm and throws their outputs away. Only their keys and
values are ever used, and those depend on no image: they are computed once and appended, which is the same to rounding.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention
from torch import Tensor, nn

from tenfold import UserError


class UnsupportedBackboneError(UserError):
    """A backbone in which prompts cannot be projected as the paper derives it; the message names the block and why."""


def uniform_prompts(num_prompts: int, dim: int) -> Float[Tensor, "m d"]:
    """Fresh prompts from U(-1, 1) (paper App. B)."""
    return torch.empty(num_prompts, dim).uniform_(-1, 1)


class PromptedAttention(nn.Module):
    """A timm `Attention` whose image tokens also attend to prompts; it takes the place of `block.attn`.

    Args:
        attn: the attention it wraps, unchanged.
        norm: the block's LayerNorm before it. It is referred to, not owned: the block still does.
        num_prompts: M.

    Attributes:
        prompt: P, the trainable prompts.
    """

    attn: Attention

    def __init__(self, attn: Attention, norm: nn.LayerNorm, num_prompts: int) -> None:
        super().__init__()
        self.attn = attn
        self._norm = (norm,)  # in a tuple, so that it is no submodule here
        weight = attn.qkv.weight
        self.prompt = nn.Parameter(uniform_prompts(num_prompts, attn.qkv.in_features).to(weight.device, torch.float32))

    @property
    def norm(self) -> nn.LayerNorm:
        """The block's LayerNorm before the attention."""
        return self._norm[0]

    def split_heads(self, qkv: Float[Tensor, "b n a"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, N, d] from what `attn.qkv` returns, normalised per head where the model does."""
        heads = qkv.unflatten(-1, (3, self.attn.num_heads, self.attn.head_dim)).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind(0)
        return self.attn.q_norm(queries), self.attn.k_norm(keys), values

    def prompt_keys_values(self) -> tuple[Float[Tensor, "h m d"], Float[Tensor, "h m d"]]:
        """K_P = LN(P) W_k + b_k and V_P = LN(P) W_v + b_v (paper eq. 4-5), once for the whole batch."""
        width, bias = self.attn.attn_dim, self.attn.qkv.bias
        projected = F.linear(
            self.norm(self.prompt), self.attn.qkv.weight[width:], None if bias is None else bias[width:]
        )
        keys, values = projected.unflatten(-1, (2, self.attn.num_heads, self.attn.head_dim)).permute(1, 2, 0, 3)
        return self.attn.k_norm(keys), values

    def forward(
        self, x: Float[Tensor, "b n d"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "b n e"]:
        """Attention of image tokens over image tokens and prompts (paper eq. 6).

        Args:
            x: image tokens after the block's LayerNorm; class and register tokens are among them.
            attn_mask: not supported.
            is_causal: not supported.
        """
        if attn_mask is not None or is_causal:
            raise UnsupportedBackboneError("attention masks cannot be combined with prompts")
        attn = self.attn
        gate = attn.gate(x).sigmoid() if attn.gate is not None else None
        queries, keys, values = self.split_heads(attn.qkv(x))
        prompt_keys, prompt_values = (each.expand(len(x), -1, -1, -1) for each in self.prompt_keys_values())
        out = F.scaled_dot_product_attention(
            queries,
            torch.cat([keys, prompt_keys.to(keys.dtype)], dim=2),
            torch.cat([values, prompt_values.to(values.dtype)], dim=2),
            dropout_p=attn.attn_drop.p if self.training else 0.0,
        )
        out = attn.norm(out.transpose(1, 2).flatten(2))
        out = out if gate is None else out * gate
        return attn.proj_drop(attn.proj(out))

    def key_weights(self) -> Float[Tensor, "h d c"]:
        """W_k of each head: rows of head h map the layer's input channels to that head's key."""
        width = self.attn.attn_dim
        return self.attn.qkv.weight[width : 2 * width].unflatten(0, (self.attn.num_heads, self.attn.head_dim))


def attention_to_prompts(
    queries: Float[Tensor, "b h n d"], keys: Float[Tensor, "b h n d"], prompt_keys: Float[Tensor, "h m d"]
) -> Float[Tensor, "b h n m"]:
    """S_P: what each image token's softmax over image tokens and prompts gives to each prompt.

    Fused attention never shows its softmax. With the unit vector e_m as the value of prompt m and zero as that of every
    image token, its output is S_P: no N x N matrix is stored.
    """
    batch, heads, tokens, width = queries.shape
    prompts = prompt_keys.shape[1]
    # Fused kernels want values as wide as keys; more prompts than channels come in several rounds.
    rounds = []
    every_key = torch.cat([keys, prompt_keys.expand(batch, -1, -1, -1)], dim=2)
    for first in range(0, prompts, width):
        chosen = min(width, prompts - first)
        values = queries.new_zeros(tokens + prompts, width)
        values[tokens + first : tokens + first + chosen, :chosen] = torch.eye(chosen, device=queries.device)
        out = F.scaled_dot_product_attention(queries, every_key, values.expand(batch, heads, -1, -1))
        rounds.append(out[..., :chosen])
    return torch.cat(rounds, dim=-1)
