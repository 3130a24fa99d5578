"""The parts of the embedded base model: a small CLIP, a small UNet on patch latents, and the pipeline that they make."""

from typing import Any

from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from instructbrush.config import HEADS, Sizes
from instructbrush.data.vocabulary import TEXT_LENGTH
from instructbrush.models.autoencoders import PatchAutoencoder


def build_clip(sizes: Sizes, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP with random weights for pictures of `sizes.side` pixels in 8 x 8 patches."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.text_width,
        "intermediate_size": 2 * sizes.text_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": 48,
    }
    vision = {
        "hidden_size": sizes.vision_width,
        "intermediate_size": 2 * sizes.vision_width,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": HEADS,
        "image_size": sizes.side,
        "patch_size": sizes.side // 8,
        "projection_dim": 48,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48))


def clip_processor(side: int) -> CLIPImageProcessor:
    """How pictures become inputs of the small CLIP."""
    return CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """The text encoder of a CLIP as a model of its own, as Stable Diffusion uses it."""
    config: Any = clip.config
    tower = CLIPTextModel(config.text_config)
    wanted = tower.state_dict()
    own = clip.text_model.state_dict()
    tower.load_state_dict({name: own[name.removeprefix("text_model.")] for name in wanted})
    return tower


def build_unet(sizes: Sizes) -> Any:
    """An instruction-following UNet with random weights: noisy latents beside the source's, cross-attention at every level."""
    return UNet2DConditionModel(
        sample_size=sizes.side // 4,
        in_channels=2 * sizes.latent_channels,
        out_channels=sizes.latent_channels,
        block_out_channels=(sizes.channels, 2 * sizes.channels),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=sizes.text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> Any:
    """Cosine schedule of 1,000 steps; the network predicts the clean latents."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def assemble(vae: PatchAutoencoder, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: Any) -> Any:
    """The pipeline that diffusers has for InstructPix2Pix, made of these parts."""
    pipe: Any = StableDiffusionInstructPix2PixPipeline(
        vae=vae,  # ty: ignore[invalid-argument-type]  # has AutoencoderKL's interface
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,  # ty: ignore[invalid-argument-type]  # optional
        feature_extractor=None,  # ty: ignore[invalid-argument-type]  # optional
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
