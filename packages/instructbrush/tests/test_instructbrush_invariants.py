"""What must hold whatever the weights are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from instructbrush import (
    Attachment,
    InjectionState,
    Instruction,
    clip_direction,
    combine_guidance,
    encode_pairs,
    inject,
    partition_index,
    phrase_sensitivity,
    psnr,
    ssim,
)
from instructbrush.method.losses import diffusion_target, stratified_timesteps
from instructbrush.method.sensitivity import fill_template, fitted_template, initial_instruction
from instructbrush.models.attention import attachment_of, cross_attention_layers
from instructbrush.models.features import ClipFeatures, projected
from instructbrush.models.instruction import encode_text
from tenfold.errors import UserError

TEXT = "turn red circle into blue square"
PICTURES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def run(pipe: Any, text: torch.Tensor, guided: bool = True, count: int = 2, per_prompt: int = 1) -> torch.Tensor:
    null = encode_text(pipe, "")
    generator = torch.Generator().manual_seed(0)
    shape = (count * per_prompt, 8, 8, 8)
    return pipe(
        image=PICTURES[:count],
        prompt_embeds=text.expand(count, -1, -1),
        negative_prompt_embeds=null.expand(count, -1, -1),
        num_images_per_prompt=per_prompt,
        latents=torch.randn(shape, generator=generator),
        guidance_scale=3.0 if guided else 1.0,
        image_guidance_scale=1.5,
        num_inference_steps=3,
        output_type="latent",
    ).images


def moved(instruction: Instruction, seed: int = 0) -> Instruction:
    """The instruction with every number changed."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (
        {name: each + torch.randn(each.shape, generator=generator) for name, each in part.items()}
        for part in (instruction.keys, instruction.values)
    )
    return Instruction(keys, values, instruction.text_embedding, instruction.about)


@pytest.mark.parametrize("tokens", [1, 4, 16])
@pytest.mark.parametrize("partitions", [1, 5])
@pytest.mark.parametrize("guided", [True, False])
def test_before_the_first_step_it_is_the_prompt_to_the_bit(
    pipe: Any, tokens: int, partitions: int, guided: bool
) -> None:
    text = encode_text(pipe, TEXT)
    expected = run(pipe, text, guided)
    with Instruction.from_text(pipe, TEXT, tokens, partitions).attach(pipe):
        assert torch.equal(run(pipe, text, guided), expected)


def test_full_replacement_makes_the_text_irrelevant_and_a_prefix_does_not(pipe: Any) -> None:
    for tokens, same in ((16, True), (4, False)):
        instruction = moved(Instruction.from_text(pipe, TEXT, tokens))
        outputs = []
        for words in (TEXT, "make it dark"):
            with instruction.attach(pipe):
                outputs.append(run(pipe, encode_text(pipe, words)))
        assert torch.allclose(*outputs, atol=1e-6) == same


def test_any_text_embedding_is_a_set_of_keys_and_values(pipe: Any) -> None:
    embedding = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(3))
    expected = run(pipe, embedding)
    with Instruction.from_embedding(pipe, embedding).attach(pipe):
        assert torch.equal(run(pipe, encode_text(pipe, "")), expected)


@pytest.mark.parametrize("route", ["processor", "hooks"])
def test_the_network_is_left_as_it_was_also_after_an_error(pipe: Any, route: Any) -> None:
    before = dict(pipe.unet.attn_processors)
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    text = encode_text(pipe, TEXT)
    expected = run(pipe, text)
    instruction = moved(Instruction.from_text(pipe, TEXT))

    def fail_inside() -> None:
        with instruction.attach(pipe, route):
            assert list(pipe.unet.state_dict()) == list(weights)
            assert not torch.equal(run(pipe, text), expected)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert attachment_of(pipe.unet) is None
    assert all(pipe.unet.attn_processors[name] is each for name, each in before.items())
    assert not pipe.unet._forward_pre_hooks
    assert not pipe.unet._forward_hooks
    for attn in cross_attention_layers(pipe.unet).values():
        assert not attn.to_k._forward_hooks
        assert not attn.to_v._forward_hooks
    assert torch.equal(run(pipe, text), expected)
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())


def test_attaching_twice_is_refused_and_detach_ends_it(pipe: Any) -> None:
    instruction = Instruction.from_text(pipe, TEXT)
    instruction.attach(pipe)
    with pytest.raises(UserError, match="in place already"):
        instruction.attach(pipe)
    Instruction.detach(pipe)
    assert attachment_of(pipe.unet) is None


def test_both_routes_agree_and_the_hooks_go_beside_other_processors(pipe: Any) -> None:
    instruction, outputs = moved(Instruction.from_text(pipe, TEXT, 4, 5)), []
    for route in ("processor", "hooks"):
        with instruction.attach(pipe, route):  # ty: ignore[invalid-argument-type]
            outputs.append(run(pipe, encode_text(pipe, TEXT)))
    assert torch.allclose(*outputs, atol=1e-5)
    stock = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(AttnProcessor())
    with instruction.attach(pipe):
        assert torch.allclose(run(pipe, encode_text(pipe, TEXT)), outputs[0], atol=1e-4)
    pipe.unet.set_attn_processor(dict(stock))


class Bypassing(AttnProcessor):
    def __call__(self, _attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:  # ty: ignore[invalid-method-override]
        return hidden_states


def test_a_processor_that_bypasses_the_projections_is_found_out(pipe: Any) -> None:
    stock = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(Bypassing())
    with pytest.raises(RuntimeError, match="bypasses"), Instruction.from_text(pipe, TEXT).attach(pipe):
        run(pipe, encode_text(pipe, TEXT))
    pipe.unet.set_attn_processor(dict(stock))
    assert attachment_of(pipe.unet) is None


def test_rows_that_are_no_three_groups_are_refused(pipe: Any) -> None:
    state = Instruction.from_text(pipe, TEXT).state()
    with Attachment(pipe.unet, state, lambda: True), pytest.raises(RuntimeError, match="three equal groups"):
        pipe.unet(torch.zeros(4, 16, 8, 8), 5, encode_text(pipe, "").expand(4, -1, -1))


def test_only_the_first_group_is_injected_with_several_images_for_a_prompt(pipe: Any) -> None:
    seen = []
    instruction = moved(Instruction.from_text(pipe, TEXT))
    state = instruction.state()
    with Attachment(pipe.unet, state, lambda: pipe.do_classifier_free_guidance):
        pipe.unet.register_forward_hook(lambda *_: seen.append(None if state.rows is None else state.rows.tolist()))
        run(pipe, encode_text(pipe, ""), count=2, per_prompt=2)
    pipe.unet._forward_hooks.clear()
    assert seen == [[True] * 4 + [False] * 8] * 3


def test_slots_permuted_together_and_a_constant_added_to_all_keys_change_nothing(pipe: Any) -> None:
    instruction, text = moved(Instruction.from_text(pipe, TEXT)), encode_text(pipe, "")
    with instruction.attach(pipe):
        expected = run(pipe, text)
    draws = torch.Generator().manual_seed(0)
    order = torch.randperm(16, generator=draws)
    keys, values = ({n: each[:, order] for n, each in part.items()} for part in (instruction.keys, instruction.values))
    with Instruction(keys, values, instruction.text_embedding, instruction.about).attach(pipe):
        assert torch.allclose(run(pipe, text), expected, atol=1e-5)
    shifted = {name: each + torch.randn(each.shape[2], generator=draws) for name, each in instruction.keys.items()}
    with Instruction(shifted, instruction.values, instruction.text_embedding, instruction.about).attach(pipe):
        assert torch.allclose(run(pipe, text), expected, atol=1e-4)


def test_a_file_gives_the_same_pictures_and_has_the_size_it_must(pipe: Any, tmp_path: Path) -> None:
    instruction = moved(Instruction.from_text(pipe, TEXT, 4, 5))
    text = encode_text(pipe, TEXT)
    with instruction.attach(pipe):
        expected = run(pipe, text)
    numbers = 2 * 5 * 4 * sum(instruction.about.layers.values()) + instruction.text_embedding.numel()
    for dtype, size in ((torch.float32, 4), (torch.float16, 2)):
        path = tmp_path / f"{size}.safetensors"
        instruction.save(path, dtype)
        assert 0 < path.stat().st_size - numbers * size < 16 * 1024
        loaded = Instruction.load(path)
        assert loaded.about == instruction.about
        with loaded.attach(pipe):
            result = run(pipe, text)
        if size == 4:
            assert torch.equal(result, expected)
        assert (result - expected).norm() < 1e-3 * expected.norm()
    names = set(load_file(tmp_path / "4.safetensors"))
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.key" in names


def test_a_folder_for_the_hub_loads_back(pipe: Any, tmp_path: Path) -> None:
    instruction = moved(Instruction.from_text(pipe, TEXT, 2, 1, edit="make it blue", licence="cc0-1.0"))
    instruction.save_pretrained(tmp_path / "edit")
    assert {each.name for each in (tmp_path / "edit").iterdir()} == {
        "instruction.safetensors",
        "config.json",
        "README.md",
    }
    loaded = Instruction.from_pretrained(str(tmp_path / "edit"))
    assert loaded.about == instruction.about
    assert "make it blue" in (tmp_path / "edit/README.md").read_text()


def test_targets_are_scaled_and_picture_conditions_are_not(pipe: Any) -> None:
    whole = encode_pairs(pipe, PICTURES, PICTURES)
    pipe.vae.register_to_config(scaling_factor=0.5)
    half = encode_pairs(pipe, PICTURES, PICTURES)
    pipe.vae.register_to_config(scaling_factor=1.0)
    assert torch.equal(whole.before, half.before)
    assert torch.equal(half.after, whole.after * 0.5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_scheduler_undoes(kind: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind, clip_sample=False)
    clean, noise = torch.randn(2, 3, 4, 4, 4)
    times = torch.tensor([10, 500, 900])
    noisy, target = scheduler.add_noise(clean, noise, times), diffusion_target(scheduler, clean, noise, times)
    for row, time in enumerate(times.tolist()):
        recovered = scheduler.step(target[row : row + 1], time, noisy[row : row + 1]).pred_original_sample
        assert torch.allclose(recovered[0], clean[row], atol=1e-3)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="flow"):
        diffusion_target(DDPMScheduler(prediction_type="flow"), *torch.randn(2, 1, 1, 2, 2), torch.tensor([1]))


@given(st.integers(1, 2000), st.integers(1, 50))
def test_partitions_cover_the_axis_in_order(total: int, count: int) -> None:
    if count > total:
        with pytest.raises(UserError):
            partition_index(0, total, count)
        return
    parts = torch.as_tensor(partition_index(torch.arange(total), total, count))
    assert parts[0] == 0
    assert parts[-1] == count - 1
    assert (parts.diff() >= 0).all()
    assert [partition_index(float(t), total, count) for t in range(total)] == parts.tolist()


def test_partitions_of_the_paper() -> None:
    assert [partition_index(t, 1000, 5) for t in (199, 200, 999, 999.0, 946.42)] == [0, 1, 4, 4, 4]


def test_guidance_limits() -> None:
    text, image, uncond = torch.randn(3, 2, 4)
    assert torch.allclose(combine_guidance(text, image, uncond, 1.0, 1.0), text, atol=1e-6)
    assert torch.allclose(combine_guidance(text, image, uncond, 0.0, 1.0), image, atol=1e-6)
    assert torch.allclose(combine_guidance(text, text, text, 7.5, 1.5), text, atol=1e-5)


def test_injection_does_not_write_into_the_projection() -> None:
    projected_text, learned = torch.randn(2, 6, 4), torch.randn(1, 3, 4)
    kept = projected_text.clone()
    out = inject(projected_text, learned, torch.tensor([True, False]))
    assert torch.equal(projected_text, kept)
    assert torch.equal(out[0, :3], learned[0])
    assert torch.equal(out[0, 3:], kept[0, 3:])
    assert torch.equal(out[1], kept[1])


def test_partitions_are_gathered_row_by_row(pipe: Any) -> None:
    text = encode_text(pipe, TEXT).expand(3, -1, -1)
    instruction = moved(Instruction.from_text(pipe, TEXT, 4, 5))
    sample, times = torch.randn(3, 16, 8, 8), torch.tensor([10, 450, 990])
    with torch.no_grad(), Attachment(pipe.unet, instruction.state(), lambda: False):
        together = pipe.unet(sample, times, text).sample
        alone = [pipe.unet(sample[i : i + 1], int(times[i]), text[:1]).sample for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_sensitivity_is_antisymmetric_and_nothing_is_found_where_nothing_changed() -> None:
    before, after, phrases = torch.randn(3, 8), torch.randn(3, 8), torch.randn(20, 8)
    removed, added = phrase_sensitivity(before, after, phrases, "difference")
    assert torch.allclose(removed, -added)
    words = [f"w{index}" for index in range(20)]
    first = initial_instruction(before, after, phrases, words, lambda _: True, eta=0.01)
    second = initial_instruction(after, before, phrases, words, lambda _: True, eta=0.01)
    assert [word for word, _ in first.before] == [word for word, _ in second.after]
    for side in (first.before, first.after):
        values = [value for _, value in side]
        assert values == sorted(values, reverse=True)
        assert len({word for word, _ in side}) == len(side) <= 5
        assert all(value > 0.01 for value in values)
    nothing = initial_instruction(before, before, phrases, words, lambda _: True)
    assert (nothing.before, nothing.after, nothing.text) == ((), (), "")


def test_the_template_and_its_shortening() -> None:
    assert fill_template(["a"], ["b", "c"]) == "turn a into b, c"
    assert fill_template([], ["b"]) == "turn it into b"
    assert fill_template(["a"], []) == "remove a"
    assert fill_template([], []) == ""
    assert fitted_template(["a", "b", "c"], ["d"], lambda text: len(text) <= 16) == "turn a, b into d"


def test_directions_of_the_truth_and_of_nothing() -> None:
    start, truth = torch.randn(2, 5, 8)
    assert torch.allclose(clip_direction(start, truth, start, truth), torch.ones(5), atol=1e-6)
    assert torch.equal(clip_direction(start, start, start, truth), torch.zeros(5))
    assert torch.allclose(clip_direction(3 * start, 2 * truth, start, truth), torch.ones(5), atol=1e-6)
    assert psnr(PICTURES, PICTURES).tolist() == [100.0, 100.0]
    assert torch.allclose(ssim(PICTURES, PICTURES), torch.ones(2))


def test_projected_features_of_old_and_new_transformers(tiny_model: Any) -> None:
    class Output:
        pooler_output = torch.ones(1, 2)

    assert torch.equal(projected(torch.ones(1, 2)), projected(Output()))
    from instructbrush.models.networks import clip_processor

    clip = ClipFeatures(tiny_model.clip, clip_processor(32), tiny_model.tokenizer)
    assert clip.images(torch.rand(2, 3, 40, 50)).shape == (2, 48)
    assert clip.texts(["red circle", "dark photo", "xyz"]).shape == (3, 48)


def test_sums_of_instructions(pipe: Any) -> None:
    start = Instruction.from_text(pipe, TEXT, 4, 2)
    end = moved(start)
    layer = next(iter(start.keys))
    assert torch.allclose(
        start.interpolate(end, 0.25).keys[layer], torch.lerp(start.keys[layer], end.keys[layer], 0.25)
    )
    assert torch.allclose(end.scale(1.0, start).values[layer], end.values[layer], atol=1e-6)
    assert end.merge_partitions().keys[layer].shape == (1, 4, start.about.layers[layer])
    assert start.distance_from(start)[layer] == [0.0, 0.0]
    with pytest.raises(UserError, match="differ"):
        start.interpolate(Instruction.from_text(pipe, TEXT, 3, 2), 0.5)


@given(st.integers(1, 40), st.integers(1, 50))
def test_one_time_step_in_each_part(count: int, width: int) -> None:
    times = stratified_timesteps(count, count * width, torch.Generator().manual_seed(0))
    assert sorted((times // width).tolist()) == list(range(count))


def test_a_state_needs_the_networks_layers(pipe: Any) -> None:
    with pytest.raises(UserError, match="same layers"):
        Attachment(pipe.unet, InjectionState({"a": torch.zeros(1, 1, 1)}, {}, 1000), lambda: False)
