"""A frozen Vision Transformer with prompts in its blocks: VPT-deep and VPT-shallow (paper §3, official code: vit_builder.py).

The model's own forward runs unchanged; only `block.attn` is replaced. timm's VisionTransformer family by name or object,
and CLIP's image tower of transformers.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, resolve_model_data_config
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.hub import model_folder
from vptnsp.models.attention import PromptedAttention, UnsupportedBackboneError
from vptnsp.models.clip.backbones import ClipBlock, ClipTower
from vptnsp.models.compact import EMBEDDED_NAME, MEAN, STD, embedded_backbone


def check_block(name: str, block: nn.Module, allow_qk_norm: bool) -> None:
    """Refuse a block in which the paper's conditions do not hold.

    Raises:
        UnsupportedBackboneError: not timm's pre-norm Block with plain softmax attention after a LayerNorm.
    """
    if type(block) not in (Block, ClipBlock):
        raise UnsupportedBackboneError(
            f"{name} is a {type(block).__name__}; prompts need timm's pre-norm Block (a vit_*, deit_*, DINOv2, SigLIP or CLIP model)"
        )
    if type(block.attn) is not Attention:
        raise UnsupportedBackboneError(
            f"{name}.attn is a {type(block.attn).__name__}; rotary, relative-position and split-qkv attention are not supported"
        )
    if not isinstance(block.norm1, nn.LayerNorm):
        raise UnsupportedBackboneError(
            f"{name}.norm1 is a {type(block.norm1).__name__}; the conditions assume LayerNorm"
        )
    if not isinstance(block.attn.q_norm, nn.Identity) and not allow_qk_norm:
        raise UnsupportedBackboneError(
            f"{name}.attn normalises queries and keys, so keys are not linear in LN(P); pass allow_qk_norm=True to try"
        )


class PromptedViT(nn.Module):
    """A frozen backbone with trainable prompts; make it with `from_timm` or `from_clip`.

    Args:
        backbone: its parameters are frozen, and it stays in evaluation mode.
        name: what to call it in files.
        blocks: its transformer blocks, in order.
        chosen: indices of the blocks that get prompts.
        num_prompts: M, per block.
        allow_qk_norm: accept models that normalise queries and keys.

    Raises:
        UserError: no prompts, or a block that is not there.
    """

    def __init__(
        self,
        backbone: nn.Module,
        name: str,
        blocks: Iterable[nn.Module],
        chosen: Iterable[int],
        num_prompts: int,
        allow_qk_norm: bool = False,
    ) -> None:
        super().__init__()
        blocks, chosen = list(blocks), sorted(set(chosen))
        if num_prompts < 1:
            raise UserError(f"num_prompts must be at least 1, got {num_prompts}")
        if not chosen or chosen[0] < 0 or chosen[-1] >= len(blocks):
            raise UserError(f"blocks must be among 0 to {len(blocks) - 1}, got {chosen or 'none'}")
        self.backbone: Any = backbone.requires_grad_(False).eval()
        self.name = name
        self.num_prompts = num_prompts
        self._prompted: dict[str, tuple[Any]] = {}  # blocks in tuples, so that they are no submodules twice
        for index in chosen:
            block: Any = blocks[index]
            check_block(f"blocks.{index}", block, allow_qk_norm)
            block.attn = PromptedAttention(block.attn, block.norm1, num_prompts)
            self._prompted[f"blocks.{index}"] = (block,)

    @classmethod
    def from_timm(
        cls,
        name_or_model: str | nn.Module,
        num_prompts: int = 4,
        blocks: Iterable[int] | None = None,
        pretrained: bool = True,
        allow_qk_norm: bool = False,
        revision: str | None = None,
        **timm_kwargs: Any,
    ) -> "PromptedViT":
        """Put prompts into a timm VisionTransformer.

        Args:
            name_or_model: a timm model name, the embedded `vptnsp_tiny_patch8_32`, or a model, which is changed in place.
            num_prompts: M.
            blocks: which blocks; all by default (VPT-deep), `[0]` for VPT-shallow.
            pretrained: load timm's pre-trained weights (from its cache, or the network).
            allow_qk_norm: accept models that normalise queries and keys.
            revision: branch, tag or commit of the weights on the Hub; the commit that is used is printed.
            timm_kwargs: handed to `timm.create_model`, such as `img_size`.

        Raises:
            UnsupportedBackboneError: not such a model.
        """
        model, name = timm_model(name_or_model, pretrained, timm_kwargs, revision)
        layers = getattr(model, "blocks", None)
        if not isinstance(layers, nn.Sequential | nn.ModuleList):
            raise UnsupportedBackboneError(
                f"{name} ({type(model).__name__}) has no `blocks`; a timm VisionTransformer is needed"
            )
        chosen = range(len(layers)) if blocks is None else blocks
        return cls(model, name, layers, chosen, num_prompts, allow_qk_norm)

    @classmethod
    def from_clip(
        cls, vision_model: nn.Module, num_prompts: int = 4, blocks: Iterable[int] | None = None, name: str = "clip"
    ) -> "PromptedViT":
        """Put prompts into CLIP's image tower (transformers' CLIPVisionModel or CLIPVisionModelWithProjection).

        Args:
            vision_model: the tower; its attention is replaced in place.
            num_prompts: M.
            blocks: which; by default the first four, as the official code does (the paper says three).
            name: what to call it in files.
        """
        tower = ClipTower(vision_model)
        chosen = range(min(4, len(tower.blocks))) if blocks is None else blocks
        return cls(tower, name, tower.blocks, chosen, num_prompts)

    @property
    def dim(self) -> int:
        """D, width of the features."""
        return self.backbone.num_features

    def attentions(self) -> dict[str, PromptedAttention]:
        """The prompted layers by block name, in order."""
        return {name: block.attn for name, (block,) in self._prompted.items()}

    def prompts(self) -> dict[str, nn.Parameter]:
        """P of each prompted block, [M, D]."""
        return {name: layer.prompt for name, layer in self.attentions().items()}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The prompts."""
        return list(self.prompts().values())

    def train(self, mode: bool = True) -> "PromptedViT":
        """The frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """What the classifier sees: the model's own pooling after its last norm, before its head.

        Args:
            images: normalised as the backbone expects.
        """
        tokens = self.backbone.forward_features(images)
        return self.backbone.forward_head(tokens, pre_logits=True)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """See `features`."""
        return self.features(images)

    def detach_prompts(self) -> nn.Module:
        """Take the prompts out again; returns the backbone as it was."""
        for (block,) in self._prompted.values():
            block.attn = block.attn.attn
        self._prompted = {}
        return self.backbone.unwrapped() if isinstance(self.backbone, ClipTower) else self.backbone

    def prompt_state_dict(self) -> dict[str, Tensor]:
        """The prompts alone."""
        return {name: prompt.detach().cpu().clone() for name, prompt in self.prompts().items()}

    @torch.no_grad()
    def load_prompt_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take prompts from elsewhere.

        Raises:
            UserError: other blocks, another number of prompts, another width, or values that are not finite.
        """
        have = {name: tuple(prompt.shape) for name, prompt in self.prompts().items()}
        given = {name: tuple(value.shape) for name, value in state.items()}
        if have != given:
            raise UserError(f"these prompts are {_shapes(given)}, this model's {_shapes(have)}")
        for name, prompt in self.prompts().items():
            if not torch.isfinite(state[name]).all():
                raise UserError(f"{name}: prompts are NaN or infinite")
            prompt.copy_(state[name])

    def save_prompts(self, path: Path) -> None:
        """Write the prompts as a small safetensors file that names its backbone."""
        write_tensors(path, self.prompt_state_dict(), {"backbone": self.name})

    def load_prompts(self, path: Path) -> None:
        """Attach prompts that `save_prompts` wrote.

        Raises:
            UserError: unreadable, or made for another backbone.
        """
        state, metadata = read_tensors(path)
        made_for = metadata.get("backbone", "?")
        if made_for != self.name:
            raise UserError(f"{path}: made for {made_for}, this backbone is {self.name}")
        self.load_prompt_state_dict(state)


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    kinds = sorted(set(shapes.values()))
    return f"{' and '.join(' x '.join(map(str, kind)) for kind in kinds)} in {', '.join(shapes) or 'no block'}"


def timm_model(
    name_or_model: str | nn.Module,
    pretrained: bool,
    kwargs: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> tuple[nn.Module, str]:
    """A timm model, and what to call it.

    Args:
        name_or_model: a name of timm's registry, the embedded backbone's, or a model.
        pretrained: load its weights, from the cache or the Hub.
        kwargs: handed to `timm.create_model`.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: no such model, or no such weights.
    """
    if isinstance(name_or_model, nn.Module):
        config = getattr(name_or_model, "pretrained_cfg", None) or {}
        return name_or_model, config.get("architecture") or type(name_or_model).__name__
    if name_or_model == EMBEDDED_NAME:
        return embedded_backbone(), EMBEDDED_NAME
    if not timm.is_model(name_or_model.split(".")[0]):
        near = (
            ", ".join(timm.list_models(f"*{name_or_model.split('.')[0][:12]}*")[:5]) or "see timm.list_models('vit_*')"
        )
        raise UserError(f"{name_or_model}: timm has no such model; {near}, or the embedded {EMBEDDED_NAME}")
    overlay = _at_commit(name_or_model, revision) if pretrained else {}
    try:
        return timm.create_model(name_or_model, pretrained=pretrained, num_classes=0, **overlay, **(kwargs or {})), (
            name_or_model
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{name_or_model}: cannot load the weights ({_first_line(error)})") from None


def _at_commit(name: str, revision: str | None) -> dict[str, Any]:
    """Options that make timm load the weights of one commit of the Hub, which is fetched and printed; none for weights from elsewhere."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return {}
    commit = model_folder(config.hf_hub_id, revision, ("*.json", "*.safetensors")).name
    return {"pretrained_cfg_overlay": {"hf_hub_id": f"{config.hf_hub_id}@{commit}"}}


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def normalisation(model: PromptedViT) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that the backbone was pre-trained with."""
    if model.name == EMBEDDED_NAME:
        return MEAN, STD
    if isinstance(model.backbone, ClipTower):
        return OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    resolved = resolve_model_data_config(model.backbone)
    return tuple(resolved["mean"]), tuple(resolved["std"])


def image_size(model: PromptedViT) -> int:
    """Side of the square pictures that the backbone takes, in pixels."""
    if isinstance(model.backbone, ClipTower):
        return model.backbone.image_size
    embedding = getattr(model.backbone, "patch_embed", None)
    size = None if embedding is None else embedding.img_size
    return size[0] if size else 224


def required_size(model: PromptedViT) -> int | None:
    """`image_size`, where the backbone takes no other; None where it takes any (NaFlex, `dynamic_img_size`)."""
    embedding = getattr(model.backbone, "patch_embed", None)
    if isinstance(model.backbone, ClipTower) or (embedding is not None and embedding.strict_img_size):
        return image_size(model)
    return None


def check_images(images: Tensor, size: int | None) -> None:
    """Refuse pictures that the backbone cannot take; warn of values that were never normalised.

    Args:
        images: a batch, whatever its shape.
        size: side that the backbone takes, in pixels; None where it takes any.

    Raises:
        UserError: another shape or size.
    """
    if images.ndim != 4 or images.shape[1] != 3 or (size is not None and images.shape[2:] != (size, size)):
        sides = "height, width" if size is None else f"{size}, {size}"
        raise UserError(f"images are {list(images.shape)}; this backbone takes [batch, 3, {sides}]")
    if images.abs().amax() > 20:
        warnings.warn(
            "pixel values beyond 20: are the pictures in 0..255, not normalised for the backbone?", stacklevel=3
        )
