"""Checkpoints in the layout of public InstructPix2Pix models: a tiny one, saved by diffusers on the spot, loads by folder."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from instructbrush import (
    ApplyOptions,
    BaseOptions,
    Instruction,
    LearnConfig,
    PairSet,
    apply_instruction,
    edit_batch,
    learn_instruction,
    load_editor,
)
from instructbrush.data.vocabulary import build_tokenizer
from instructbrush.models.instruction import fingerprint
from tenfold.errors import UserError

CONFIG = LearnConfig(steps=2, batch_size=2, tokens=4, partitions=2, learning_rate=0.01)


def save_stable_diffusion(folder: Path, channels: int = 8, prediction: str = "epsilon") -> Path:
    """A random Stable Diffusion editor of a few thousand weights, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    StableDiffusionInstructPix2PixPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(prediction_type=prediction, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_stable_diffusion(tmp_path_factory.mktemp("sd"))


def test_a_public_layout_learns_and_edits(checkpoint: Path, pairs: PairSet, tmp_path: Path) -> None:
    editor = load_editor(BaseOptions(base=str(checkpoint)), "cpu")
    assert not editor.embedded
    assert editor.size == 32
    assert isinstance(editor.pipe.scheduler, EulerAncestralDiscreteScheduler)
    learnt = learn_instruction(editor.pipe, pairs, CONFIG, "make it dark", about=editor.about)
    learnt.save(tmp_path / "edit.safetensors")
    loaded = Instruction.load(tmp_path / "edit.safetensors")
    assert (loaded.about.guidance_scale, loaded.about.image_guidance_scale, loaded.about.sampling_steps) == (
        7.5,
        1.5,
        20,
    )
    assert loaded.about.prediction_type == "epsilon"
    images = [Image.new("RGB", (40, 32), (200, 90, 30))] * 2
    edited = apply_instruction(editor.pipe, loaded, images, ApplyOptions(steps=2, batch_size=2))
    assert edited[0].size == (32, 32)
    assert loaded.check_compatible(editor.pipe)


@pytest.mark.parametrize("weights", ["bfloat16", "float32"])
def test_narrow_weights_and_sliced_attention(checkpoint: Path, pairs: PairSet, weights: Any) -> None:
    editor = load_editor(BaseOptions(base=str(checkpoint), weights=weights, slicing=True), "cpu")
    assert editor.pipe.unet.dtype == getattr(torch, weights)
    learnt = learn_instruction(editor.pipe, pairs, replace(CONFIG, steps=1), None, about=editor.about)
    assert all(value.dtype == torch.float32 for value in learnt.keys.values())
    apply_instruction(editor.pipe, learnt, [Image.new("RGB", (32, 32), (9, 90, 200))], ApplyOptions(steps=1))
    assert learnt.check_compatible(load_editor(BaseOptions(base=str(checkpoint)), "cpu").pipe)


def test_velocity_prediction_is_learnt_too(pairs: PairSet, tmp_path: Path) -> None:
    editor = load_editor(BaseOptions(base=str(save_stable_diffusion(tmp_path / "v", prediction="v_prediction"))), "cpu")
    assert learn_instruction(editor.pipe, pairs, CONFIG, None).about.prediction_type == "v_prediction"


def test_a_text_to_image_model_is_refused(tmp_path: Path) -> None:
    folder = save_stable_diffusion(tmp_path / "plain", channels=4)
    with pytest.raises(UserError, match="has 4 input channels; an InstructPix2Pix-style UNet needs 8"):
        load_editor(BaseOptions(base=str(folder)), "cpu")


def test_a_network_with_further_conditions_is_refused(pipe: Any) -> None:
    pipe.unet.register_to_config(addition_embed_type="text_time")
    try:
        with pytest.raises(UserError, match="Stable Diffusion XL"):
            Instruction.from_text(pipe, "make it dark")
    finally:
        pipe.unet.register_to_config(addition_embed_type=None)


def test_weights_that_are_offloaded_layer_by_layer_edit_alike(tiny_model: Any) -> None:
    pipe = tiny_model.pipeline()
    instruction = Instruction.from_text(pipe, "make it dark", 4)
    images = torch.rand(2, 3, 32, 32)
    options = ApplyOptions(guidance=1.5, image_guidance=1.2, steps=2)
    wanted = edit_batch(pipe, instruction, images, options)
    pipe.unet = copy.deepcopy(pipe.unet)
    fingerprint(pipe.unet)
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert pipe.unet.device.type == "meta"
    assert torch.allclose(edit_batch(pipe, instruction, images, options), wanted, atol=1e-6)
    assert instruction.check_compatible(pipe)


def test_an_instruction_of_another_editor_is_refused_and_other_weights_are_noticed(
    checkpoint: Path, pipe: Any, tiny_model: Any
) -> None:
    foreign = load_editor(BaseOptions(base=str(checkpoint)), "cpu")
    with pytest.raises(UserError, match="learnt for another editor"):
        Instruction.from_text(pipe, "x").check_compatible(foreign.pipe)
    same = Instruction.from_text(pipe, "x")
    assert same.check_compatible(pipe)
    layer = tiny_model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
    layer.data.mul_(1.5)
    assert not same.check_compatible(pipe)
    layer.data.div_(1.5)


def test_guidance_without_a_text_encoder_is_refused_before_sampling(pipe: Any) -> None:
    instruction = Instruction.from_text(pipe, "x")
    pipe.text_encoder = None
    with pytest.raises(UserError, match="no text encoder"):
        apply_instruction(pipe, instruction, [Image.new("RGB", (32, 32))], ApplyOptions(steps=1))
