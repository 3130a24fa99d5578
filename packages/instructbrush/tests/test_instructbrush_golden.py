"""The golden vectors, each inside its stated tolerance."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention

from instructbrush import (
    InjectedProcessor,
    InjectionState,
    clip_direction,
    combine_guidance,
    partition_index,
    phrase_sensitivity,
    pick_phrases,
    psnr,
    ssim,
)
from instructbrush.evaluation.metrics import direction_similarity, visual_direction
from instructbrush.method.losses import denoising_loss, diffusion_target
from instructbrush.method.parameterization import edit_direction, visii_direction_term
from instructbrush.models.attention import Attachment


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


@pytest.mark.parametrize("name", ["attention_prefix", "attention_full"])
def test_injected_attention_matches_and_other_rows_are_untouched(golden: Any, name: str) -> None:
    g = {key: value if value.shape == () else tensor(value) for key, value in golden(name).items()}
    heads, width = int(g["heads"]), g["to_q"].shape[0]
    attn = Attention(g["hidden"].shape[2], g["text"].shape[2], heads=heads, dim_head=width // heads)
    attn.load_state_dict(
        {
            "to_q.weight": g["to_q"],
            "to_k.weight": g["to_k"],
            "to_v.weight": g["to_v"],
            "to_out.0.weight": g["to_out_w"],
            "to_out.0.bias": g["to_out_b"],
        }
    )
    state = InjectionState({"x": g["gamma_k"][None]}, {"x": g["gamma_v"][None]}, 1000, rows=g["inject_rows"], parts=0)
    with torch.no_grad():
        plain = attn(g["hidden"], g["text"])
        attn.set_processor(InjectedProcessor("x", state))
        injected = attn(g["hidden"], g["text"])
    assert torch.allclose(injected, g["out_injected"], atol=2e-5)
    assert torch.allclose(plain, g["out_text_only"], atol=2e-5)
    assert torch.equal(injected[~g["inject_rows"]], plain[~g["inject_rows"]])


def load_unet(g: dict[str, np.ndarray]) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**json.loads(str(g["config"])))
    unet.load_state_dict({name[3:]: tensor(g[name]) for name in g if name.startswith("w::")})
    return unet.eval().requires_grad_(False)


def instruction_of(g: dict[str, np.ndarray], grad: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    keys, values = (
        {str(name): tensor(g[f"{part}::{name}"]).requires_grad_(grad) for name in g["attn_names"]} for part in "KV"
    )
    return keys, values


@pytest.mark.parametrize("route", ["processor", "hooks"])
def test_a_training_step_matches_down_to_the_gradients(golden: Any, route: Any) -> None:
    g = golden("unet_step")
    unet, (keys, values) = load_unet(g), instruction_of(g, True)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps, noise = tensor(g["timesteps"]), tensor(g["noise"])
    noisy = scheduler.add_noise(tensor(g["latents_after"]), noise, timesteps)
    assert torch.allclose(noisy, tensor(g["noisy"]), atol=1e-6)
    assert torch.equal(torch.as_tensor(partition_index(timesteps, 1000, 5)), tensor(g["partition"]))
    with Attachment(unet, InjectionState(keys, values, 1000), lambda: False, route):
        inputs = torch.cat([noisy, tensor(g["latents_before"])], 1)
        prediction = unet(inputs, timesteps, encoder_hidden_states=tensor(g["text"]).expand(5, -1, -1)).sample
        target = diffusion_target(scheduler, tensor(g["latents_after"]), noise, timesteps)
        loss = denoising_loss(prediction, target)
        loss.backward()
    assert torch.allclose(prediction, tensor(g["pred"]), atol=2e-5)
    assert loss.item() == pytest.approx(float(g["loss"]), rel=1e-5)
    idle = set(range(5)) - set(g["partition"].tolist())
    assert idle
    for name in keys:
        for part, learned in (("gK", keys[name]), ("gV", values[name])):
            assert learned.grad is not None
            assert torch.allclose(learned.grad, tensor(g[f"{part}::{name}"]), atol=2e-6, rtol=1e-3)
            assert all(not learned.grad[each].any() for each in idle)
    assert all(parameter.grad is None for parameter in unet.parameters())


def ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def test_guidance_and_the_ddim_steps_match(golden: Any) -> None:
    g = golden("guidance")
    scheduler = ddim()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == g["timesteps"].tolist()
    assert torch.allclose(scheduler.alphas_cumprod, tensor(g["alphas_cumprod"]).float(), atol=1e-6)
    for step, time in enumerate(scheduler.timesteps):
        text, image, uncond = tensor(g["eps_text_image_uncond"][step]).split(1)
        guided = combine_guidance(text, image, uncond, float(g["s_text"]), float(g["s_image"]))
        assert torch.allclose(guided, tensor(g["guided"][step]), atol=1e-5)
        swapped = combine_guidance(image, text, uncond, float(g["s_text"]), float(g["s_image"]))
        assert not torch.allclose(swapped, guided, atol=1e-3)
        out = scheduler.step(guided, time, tensor(g["latents_in"][step])).prev_sample
        assert torch.allclose(out, tensor(g["latents_out"][step]), atol=1e-5)


def golden_pipeline(g: dict[str, np.ndarray]) -> Any:
    vae = AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4)
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=load_unet(g),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_golden(pipe: Any, g: dict[str, np.ndarray]) -> torch.Tensor:
    return pipe(
        image=tensor(g["image_latents"]),
        prompt_embeds=tensor(g["text"]).expand(2, -1, -1),
        negative_prompt_embeds=tensor(g["null_text"]).expand(2, -1, -1),
        latents=tensor(g["init_latents"]),
        guidance_scale=float(g["s_text"]),
        image_guidance_scale=float(g["s_image"]),
        num_inference_steps=int(g["num_inference_steps"]),
        output_type="latent",
    ).images


@pytest.mark.parametrize("route", ["processor", "hooks"])
def test_a_whole_edit_matches_on_both_routes(golden: Any, route: Any) -> None:
    step, g = golden("unet_step"), golden("pipeline_injected")
    pipe = golden_pipeline(step)
    keys, values = instruction_of(step, False)
    state = InjectionState(keys, values, 1000)
    with Attachment(pipe.unet, state, lambda: pipe.do_classifier_free_guidance, route):
        assert torch.allclose(run_golden(pipe, g), tensor(g["final"]), atol=5e-5)
    assert torch.allclose(run_golden(pipe, g), tensor(g["final_text_only"]), atol=5e-5)


def test_injecting_into_every_row_is_not_the_method(golden: Any) -> None:
    step, g = golden("unet_step"), golden("pipeline_injected")
    pipe = golden_pipeline(step)
    with Attachment(pipe.unet, InjectionState(*instruction_of(step, False), 1000), lambda: False):
        assert not torch.allclose(run_golden(pipe, g), tensor(g["final"]), atol=1e-3)


def test_clip_directions_match(golden: Any) -> None:
    g = {key: tensor(value).float() for key, value in golden("clip_direction").items()}
    start, end, truth = g["feat_in"], g["feat_out"], g["feat_gt"]
    text = direction_similarity(start, end, visual_direction(g["text_in"], g["text_out"]))
    assert torch.allclose(text, g["direction_text"], atol=1e-6)
    assert torch.allclose(clip_direction(start, end, start, truth), g["direction_visual"], atol=1e-6)
    cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(cosine(start, end), g["sim_in_out"], atol=1e-6)
    assert torch.allclose(cosine(end, truth), g["sim_out_gt"], atol=1e-6)
    assert torch.allclose(cosine(start, g["text_in"]), g["sim_in"], atol=1e-6)
    assert torch.allclose(cosine(end, g["text_out"]), g["sim_out"], atol=1e-6)


def test_sensitivity_and_truncation_match(golden: Any) -> None:
    g = golden("init_rule")
    phrases, before, after = (tensor(g[name]).float() for name in ("phrase", "before", "after"))
    removed, added = phrase_sensitivity(before, after, phrases, "difference")
    assert torch.allclose(added, tensor(g["sensitivity_after"]).float(), atol=1e-6)
    assert torch.equal(removed, -added)
    r, eta = int(g["r"]), float(g["eta"])
    assert pick_phrases(removed, r, eta) == g["picked_before"].tolist()
    assert pick_phrases(added, r, eta) == g["picked_after"].tolist()
    assert pick_phrases(removed, r, 0.9) == g["picked_before_eta_high"].tolist() == []
    assert pick_phrases(added, 1, eta) == g["picked_after_r1"].tolist()
    assert pick_phrases(added, r, float(g["eta_mid"])) == g["picked_after_eta_mid"].tolist()


def test_picture_metrics_match(golden: Any) -> None:
    g = golden("image_metrics")
    first, second = (tensor(g[name]).movedim(-1, 1).float() for name in "ab")
    assert torch.allclose(psnr(first, second), tensor(g["psnr"]).float(), atol=1e-3)
    assert torch.allclose(ssim(first, second), tensor(g["ssim_gauss"]).float(), atol=1e-4)


def test_visii_direction_term_matches(golden: Any) -> None:
    g = {key: tensor(value).float() for key, value in golden("visii_clip_loss").items()}
    direction = edit_direction(g["before_features"], g["after_features"])
    assert torch.allclose(direction, g["edit_direction"], atol=1e-6)
    term = visii_direction_term(g["instruction_embedding"], g["text_projection"], direction)
    assert 0.1 * term.item() == pytest.approx(float(g["weighted_term"][0]), abs=1e-6)
    assert -term.item() == pytest.approx(float(g["clamped"][0]), abs=1e-6)


def test_partitions_match(golden: Any) -> None:
    g = golden("partition")
    times = tensor(g["timesteps"])
    for count in (1, 2, 3, 5, 10):
        expected = g[f"part_J{count}"].tolist()
        assert torch.as_tensor(partition_index(times, 1000, count)).tolist() == expected
        assert [partition_index(float(t), 1000, count) for t in times] == expected
