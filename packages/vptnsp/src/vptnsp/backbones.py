"""Backbones as a configuration names them, and a mark by which to know them again."""

import hashlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenfold import UserError
from vptnsp.clip_head import TEMPLATES, ClipHead
from vptnsp.config import LearnerConfig
from vptnsp.embedded import EMBEDDED_NAME, load_backbone
from vptnsp.prompted_vit import PromptedViT

CLIP_PREFIX = "clip:"


def build_backbone(config: LearnerConfig) -> PromptedViT:
    """The frozen backbone that a configuration names, with fresh prompts.

    Raises:
        UserError: an unknown model, or weights that cannot be read.
    """
    torch.manual_seed(config.seed)
    blocks = config.blocks or None
    if config.backbone.startswith(CLIP_PREFIX):
        tower = load_clip(config.backbone, "CLIPVisionModelWithProjection")
        return PromptedViT.from_clip(tower, config.num_prompts, blocks, name=config.backbone)
    if config.checkpoint is None:
        return PromptedViT.from_timm(config.backbone, config.num_prompts, blocks)
    if config.backbone == EMBEDDED_NAME:
        model = PromptedViT.from_timm(load_backbone(config.checkpoint), config.num_prompts, blocks)
        model.name = EMBEDDED_NAME
        return model
    if not config.checkpoint.is_file():
        raise UserError(f"{config.checkpoint}: no such file")
    return PromptedViT.from_timm(
        config.backbone, config.num_prompts, blocks, pretrained=False, checkpoint_path=str(config.checkpoint)
    )


def load_clip(backbone: str, kind: str) -> nn.Module:
    """A CLIP model of transformers from a folder or the hub's cache.

    Args:
        backbone: `clip:FOLDER` or `clip:OWNER/NAME`.
        kind: name of the transformers class.

    Raises:
        UserError: transformers is not installed, or there is no such model.
    """
    source = backbone.removeprefix(CLIP_PREFIX)
    try:
        import transformers
    except ImportError:
        raise UserError(f"{backbone}: needs transformers; install vptnsp[clip]") from None
    try:
        return getattr(transformers, kind).from_pretrained(source)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: no CLIP model there ({str(error).splitlines()[0]})") from None


def clip_head(model: PromptedViT) -> ClipHead:
    """CLIP's classifier for a tower that has its projection."""
    projection = getattr(model.backbone, "projection", None)
    if projection is None:
        raise UserError(f"{model.name}: a CLIP tower with its visual projection is needed")
    return ClipHead.for_projection(projection.weight.detach())


@torch.no_grad()
def class_texts(backbone: str, names: list[str], templates: str) -> Float[Tensor, "c e"]:
    """Unit text features of classes: every sentence encoded and normalised, averaged, normalised again (paper App. B).

    Args:
        backbone: `clip:FOLDER` or `clip:OWNER/NAME`, with its tokenizer.
        names: of the classes.
        templates: which sentences: cifar, imagenet-r or domainnet.
    """
    from transformers import AutoTokenizer

    model = load_clip(backbone, "CLIPTextModelWithProjection").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(backbone.removeprefix(CLIP_PREFIX))
    features = []
    for name in names:
        sentences = [template.format(name.replace("_", " ")) for template in TEMPLATES[templates]]
        tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        each = nn.functional.normalize(model(**tokens).text_embeds, dim=1)
        features.append(nn.functional.normalize(each.mean(0), dim=0))
    return torch.stack(features)


def fingerprint(model: PromptedViT) -> str:
    """A mark of the backbone's weights: prompts only make sense on the weights they were trained on."""
    digest = hashlib.sha256()
    for layer in model.attentions().values():
        digest.update(layer.attn.qkv.weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
