"""Backbones as a configuration names them, and a mark by which to know them again."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from tenfold import UserError
from tenfold.checkpoints import WRAPPERS, load_weights, read_state_dict
from tenfold.hub import model_folder
from vptnsp.config import LearnerConfig
from vptnsp.models.clip.heads import TEMPLATES, ClipHead
from vptnsp.models.compact import EMBEDDED_NAME, finite, load_backbone
from vptnsp.models.networks import PromptedViT, image_size, timm_model

CLIP_PREFIX = "clip:"


def build_backbone(config: LearnerConfig) -> PromptedViT:
    """The frozen backbone that a configuration names, with fresh prompts.

    Raises:
        UserError: an unknown model, or weights that cannot be read.
    """
    if config.image_size and (config.backbone == EMBEDDED_NAME or config.backbone.startswith(CLIP_PREFIX)):
        raise UserError(f"--image-size {config.image_size}: {config.backbone} takes pictures of its own size only")
    torch.manual_seed(config.seed)
    blocks = config.blocks or None
    if config.backbone.startswith(CLIP_PREFIX):
        tower = load_clip(config.backbone, "CLIPVisionModelWithProjection", config.revision)
        return PromptedViT.from_clip(tower, config.num_prompts, blocks, name=config.backbone)
    size: dict[str, Any] = {"img_size": config.image_size} if config.image_size else {}
    if config.checkpoint is None:
        return PromptedViT.from_timm(config.backbone, config.num_prompts, blocks, revision=config.revision, **size)
    if config.backbone == EMBEDDED_NAME:
        model: nn.Module = load_backbone(config.checkpoint)
    else:
        # What is in the file is looked at before the network is built.
        weights = backbone_weights(config.checkpoint)
        model, _ = timm_model(config.backbone, pretrained=False, kwargs=size)
        load_weights(model, fit_weights(weights, model), config.checkpoint)
    vit = PromptedViT.from_timm(model, config.num_prompts, blocks)
    vit.name = config.backbone
    return vit


def backbone_weights(path: Path) -> Mapping[str, Tensor]:
    """Weights as training scripts leave them: averaged ones first, names without the prefix of a wrapper."""
    found = read_state_dict(path, ("state_dict_ema", "model_ema", *WRAPPERS))
    plain = {name.removeprefix("module.").removeprefix("_orig_mod."): each for name, each in found.items()}
    return finite(plain, path)


def fit_weights(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights of a whole classifier, or of a larger model, as those of a backbone without a head.

    What is put in front of all its names is taken off, the classifier is left out, and position embeddings are resampled to the
    model's grid of patches (bicubic, as timm does). Whatever else does not fit is for the caller to find.

    Args:
        weights: by name.
        model: of timm, without a classifier.
    """
    stem = "patch_embed.proj.weight"
    prefix = next((name.removesuffix(stem) for name in weights if name.endswith(stem)), "")
    inner = {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
    found = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (found,) if isinstance(found, str) else tuple(found)
    own = model.state_dict()
    fitted = {
        name: each for name, each in inner.items() if name in own or not name.startswith(tuple(f"{h}." for h in heads))
    }
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    place = fitted.get("pos_embed")
    if place is not None and grid and "pos_embed" in own and place.shape[1] != own["pos_embed"].shape[1]:
        extra = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
        if math.isqrt(place.shape[1] - extra) ** 2 == place.shape[1] - extra:
            fitted["pos_embed"] = resample_abs_pos_embed(place, list(grid), num_prefix_tokens=extra)
    return fitted


ClipKind = Literal["CLIPVisionModelWithProjection", "CLIPTextModelWithProjection"]
"""The classes of transformers that are built, whatever a file may ask for."""


def load_clip(backbone: str, kind: ClipKind, revision: str | None = None) -> nn.Module:
    """A CLIP model of transformers from a folder or the Hub. No code comes from either.

    Args:
        backbone: `clip:FOLDER` or `clip:OWNER/NAME`.
        kind: name of the transformers class.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: transformers is not installed, there is no such model, or one of its weights is missing.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(f"{backbone}: needs transformers; install vptnsp[clip]") from None
    source, folder = clip_folder(backbone, revision)
    try:
        model, notes = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # noqa: BLE001  # whatever a stranger's configuration makes transformers raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{source}: no CLIP model there ({reason[0]})") from None
    missing = sorted(notes["missing_keys"])
    if missing:
        raise UserError(f"{source}: no CLIP model there ({len(missing)} weights are missing, first {missing[0]})")
    return model


def clip_folder(backbone: str, revision: str | None) -> tuple[str, Path]:
    """What a `clip:` backbone names, and the folder where it is."""
    source = backbone.removeprefix(CLIP_PREFIX)
    return source, model_folder(source, revision)


def clip_head(model: PromptedViT) -> ClipHead:
    """CLIP's classifier for a tower that has its projection."""
    projection = getattr(model.backbone, "projection", None)
    if projection is None:
        raise UserError(f"{model.name}: a CLIP tower with its visual projection is needed")
    return ClipHead.for_projection(projection.weight.detach())


@torch.no_grad()
def class_texts(backbone: str, names: list[str], templates: str, revision: str | None = None) -> Float[Tensor, "c e"]:
    """Unit text features of classes: every sentence encoded and normalised, averaged, normalised again (paper App. B).

    Args:
        backbone: `clip:FOLDER` or `clip:OWNER/NAME`, with its tokenizer.
        names: of the classes.
        templates: which sentences: cifar, imagenet-r or domainnet.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: see `load_clip`; or no tokenizer.
    """
    model = load_clip(backbone, "CLIPTextModelWithProjection", revision).eval()
    tokenizer = _tokenizer(backbone, revision)
    features = []
    for name in names:
        sentences = [template.format(name.replace("_", " ")) for template in TEMPLATES[templates]]
        tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        each = nn.functional.normalize(model(**tokens).text_embeds, dim=1)
        features.append(nn.functional.normalize(each.mean(0), dim=0))
    return torch.stack(features)


def _tokenizer(backbone: str, revision: str | None) -> Any:
    from transformers import CLIPTokenizer

    source, folder = clip_folder(backbone, revision)
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001  # as for the model
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{source}: no CLIP tokenizer there ({reason[0]})") from None


def fingerprint(model: PromptedViT) -> str:
    """A mark of the backbone's weights and picture size: prompts only make sense on those that they were trained on."""
    prompts = {id(prompt) for prompt in model.prompts().values()}
    digest = hashlib.sha256(str(image_size(model)).encode())
    for name, value in sorted(model.state_dict(keep_vars=True).items()):
        if id(value) not in prompts:
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
