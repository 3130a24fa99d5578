"""Learning: what moves, that it is repeatable, resumable and shared by processes; the rivals in the same loop."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from instructbrush import (
    ApplyOptions,
    BaseOptions,
    Instruction,
    LearnConfig,
    PairSet,
    edit_batch,
    learn_instruction,
    learning_preset,
    load_editor,
)
from instructbrush.benchmark.baselines import METHODS, recipe_of
from instructbrush.cli import app
from instructbrush.config import PhraseOptions
from instructbrush.data.tasks import LEARNT, TESTED, bank, draw_pairs
from instructbrush.evaluation.metrics import region_psnr
from instructbrush.method.parameterization import visii_direction_term
from instructbrush.method.sensitivity import _bank_features, extract_phrases, read_bank
from instructbrush.models.features import ClipFeatures
from instructbrush.models.networks import clip_processor
from instructbrush.training.datasets import LatentPairs
from instructbrush.training.learner import InversionStep, PairBatch, draw_batch, initial_text, step_order
from tenfold.cli import run
from tenfold.errors import UserError
from tenfold.images import write_image
from tenfold.runs import RunFolder

QUICK = LearnConfig(
    steps=6, batch_size=4, learning_rate=0.05, warmup=2, partitions=2, precision="float32", log_every=2, save_every=3
)


def same(first: Instruction, second: Instruction) -> bool:
    pairs = [(first.keys, second.keys), (first.values, second.values)]
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


@pytest.fixture
def clip(tiny_model: Any) -> ClipFeatures:
    return ClipFeatures(tiny_model.clip, clip_processor(32), tiny_model.tokenizer)


def test_only_the_instruction_moves_and_the_editor_is_left_as_it_was(pipe: Any, pairs: PairSet) -> None:
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    processors = dict(pipe.unet.attn_processors)
    learnt = learn_instruction(pipe, pairs, QUICK, "make it dark")
    for part, weights in zip(parts, before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())
    assert all(pipe.unet.attn_processors[name] is each for name, each in processors.items())
    start = Instruction.from_text(pipe, "make it dark", None, 2)
    assert all(max(moved) > 0 for moved in learnt.distance_from(start).values())
    assert learnt.about.init_text == "make it dark"
    assert learnt.about.train["pairs"] == 4


def test_one_seed_gives_one_result_and_another_gives_another(pipe: Any, pairs: PairSet) -> None:
    first, second = (learn_instruction(pipe, pairs, QUICK, None) for _ in range(2))
    assert same(first, second)
    assert not same(first, learn_instruction(pipe, pairs, replace(QUICK, seed=1), None))


class StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["kv", "visii"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    pipe: Any, pairs: PairSet, clip: ClipFeatures, tmp_path: Path, method: str
) -> None:
    # The log's period is no multiple of the checkpoints'; with strict Visii the lowest loss comes before the cut.
    recipe = replace(QUICK, method=method, strict_visii=method == "visii", log_every=4, learning_rate=2.0)

    def learn(run: str, recipe: LearnConfig = recipe, **options: Any) -> Instruction:
        return learn_instruction(pipe, pairs, recipe, "make it dark", clip, run=tmp_path / run, **options)

    whole = learn("whole")

    def stop(step: int, _: float) -> None:
        if step == 5:
            raise StopError

    with pytest.raises(StopError):
        learn("cut", callback=stop)
    with pytest.raises(UserError, match="already holds a run"):
        learn("cut")
    with pytest.raises(UserError, match="another configuration"):
        learn("cut", replace(recipe, steps=7), resume=True)
    resumed = learn("cut", resume=True)
    assert same(whole, resumed)
    logs = [[(line["step"], line["loss"]) for line in RunFolder(tmp_path / name).lines()] for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert [step for step, _ in logs[0]] == [4, 6]
    assert resumed.about == whole.about
    again = learn("cut", resume=True)
    assert same(whole, again)
    assert again.about == whole.about


def test_an_editor_that_was_not_frozen_collects_nothing_and_is_left_as_it_was(
    pipe: Any, pairs: PairSet, clip: ClipFeatures
) -> None:
    parts = (pipe.unet, pipe.text_encoder)
    for part in parts:
        part.requires_grad_(True)
    try:
        for method in ("kv", "textual-inversion"):
            learn_instruction(pipe, pairs, replace(QUICK, method=method, steps=1), None, clip)
            for each in (each for part in parts for each in part.parameters()):
                assert each.requires_grad
                assert each.grad is None
    finally:
        for part in parts:
            part.requires_grad_(False)


def test_gradients_are_clipped_to_norm_one_and_the_rate_warms_up(
    pipe: Any, pairs: PairSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms, rates, step = [], [], torch.optim.AdamW.step

    def seen(self: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [each.grad for group in self.param_groups for each in group["params"]]
        norms.append(float(torch.stack([each.norm() for each in gradients]).norm()))
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    learn_instruction(pipe, pairs, replace(QUICK, steps=3, loss="guided", loss_guidance=1000.0), None)
    assert norms == pytest.approx([1.0] * 3, abs=1e-3)
    assert rates == pytest.approx([0.025, 0.05, 0.05])


class Additive(torch.nn.Module):
    """A network whose output says which latent, picture and text each row was given."""

    dtype = torch.float32

    def forward(self, inputs: torch.Tensor, _: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        noisy, source = inputs.chunk(2, dim=1)
        return SimpleNamespace(sample=noisy + 2 * source + encoder_hidden_states.mean((1, 2))[:, None, None, None])


class Constant(torch.nn.Module):
    """A text."""

    def __init__(self, embedding: torch.Tensor) -> None:
        super().__init__()
        self.embedding = embedding

    def text(self) -> torch.Tensor:
        return self.embedding


def test_visiis_loss_is_four_times_the_guided_error_and_a_tenth_of_its_term() -> None:
    draws = torch.Generator().manual_seed(0)
    noisy, source, target = (torch.randn(2, 3, 4, 4, generator=draws) for _ in range(3))
    text, null = torch.randn(1, 5, 6, generator=draws), torch.randn(1, 5, 6, generator=draws)
    direction = torch.nn.functional.normalize(torch.randn(1, 4, generator=draws), dim=1)
    projection = torch.randn(4, 6, generator=draws)
    config = LearnConfig(method="visii", loss_guidance=3.0, loss_image_guidance=1.5, precision="float32")
    batch = PairBatch(source, noisy, torch.tensor([1, 2]), target)
    step = InversionStep(Additive(), Constant(text), null, config, (direction, projection))
    with_both = noisy + 2 * source + text.mean()
    with_picture, with_neither = noisy + 2 * source + null.mean(), noisy + null.mean()
    guided = with_neither + 1.5 * (with_picture - with_neither) + 3.0 * (with_both - with_picture)
    term = visii_direction_term(text, projection, direction)
    assert term.abs() > 0.01
    wanted = 4 * (guided - target).square().mean() + 0.1 * term
    assert step(batch).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_an_initial_caption_in_words_is_those_words(pipe: Any, pairs: PairSet) -> None:
    for init in ("red circle", "text:red circle", "caption:red circle"):
        assert initial_text(pipe, pairs, init, None, None, PhraseOptions()).text == "red circle"


def test_another_clip_does_not_get_the_words_of_one_that_is_gone(
    tiny_model: Any, pairs: PairSet, clip: ClipFeatures
) -> None:
    words = ("red", "blue")
    extract_phrases(pairs.before, pairs.after, clip, words)
    other = replace(clip, model=copy.deepcopy(tiny_model.clip))
    with torch.no_grad():
        other.model.text_projection.weight.neg_()
    assert torch.allclose(_bank_features(words, other), -_bank_features(words, clip), atol=1e-5)


def test_recomputed_activations_give_the_same_gradients(pipe: Any, pairs: PairSet) -> None:
    plain = learn_instruction(pipe, pairs, replace(QUICK, steps=1), None)
    lean = learn_instruction(pipe, pairs, replace(QUICK, steps=1, checkpointing=True), None)
    for name in plain.keys:
        assert torch.allclose(plain.keys[name], lean.keys[name], atol=1e-5)
    assert not pipe.unet.training


@pytest.mark.parametrize("method", [each for each in METHODS if each not in ("copy", "affine-color", "text")])
def test_every_learnt_rival_ends_in_an_instruction(pipe: Any, pairs: PairSet, clip: ClipFeatures, method: str) -> None:
    recipe, init = recipe_of(method, replace(QUICK, steps=2, partitions=1))
    learnt = learn_instruction(pipe, pairs, recipe, init, clip, read_bank(tiny=True))
    assert learnt.about.num_partitions == (5 if method == "kv-j5" else 1)
    assert learnt.about.num_tokens == (4 if method == "kv-4" else 16)
    text = Instruction.from_text(pipe, learnt.about.init_text, learnt.about.num_tokens, learnt.about.num_partitions)
    assert any(max(moved) > 0 for moved in learnt.distance_from(text).values())


def test_visii_moves_only_the_captions_own_tokens(pipe: Any, pairs: PairSet, clip: ClipFeatures) -> None:
    learnt = learn_instruction(pipe, pairs, replace(QUICK, method="visii"), "red circle", clip)
    start = Instruction.from_text(pipe, "red circle")
    moved = (learnt.text_embedding - start.text_embedding).abs().amax(2)[0] > 0
    assert moved.tolist() == [False, True, True] + [False] * 13


def test_the_guided_loss_with_unit_scales_is_the_plain_one(pipe: Any, pairs: PairSet) -> None:
    plain = learn_instruction(pipe, pairs, replace(QUICK, steps=2), None)
    guided = replace(QUICK, steps=2, loss="guided", loss_guidance=1.0, loss_image_guidance=1.0)
    other = learn_instruction(pipe, pairs, guided, None)
    for name in plain.keys:
        assert torch.allclose(plain.keys[name], other.keys[name], atol=1e-3)


def test_mirrored_pairs_are_drawn_when_asked_for(pipe: Any, pairs: PairSet) -> None:
    assert not same(
        learn_instruction(pipe, pairs, QUICK, None), learn_instruction(pipe, pairs, replace(QUICK, flip=True), None)
    )


def test_each_pair_is_used_once_before_any_again() -> None:
    drawn = [index for step in range(5) for index in step_order(4, 3, step, seed=7)]
    assert [sorted(drawn[at : at + 4]) for at in (0, 4, 8)] == [[0, 1, 2, 3]] * 3
    assert len({tuple(drawn[at : at + 4]) for at in (0, 4, 8)}) > 1


def test_the_paper_preset_is_the_specifications() -> None:
    recipe, phrases = learning_preset("paper")
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate, recipe.tokens, recipe.partitions) == (
        1000,
        4,
        1e-3,
        77,
        5,
    )
    assert (phrases.top, phrases.eta, phrases.sensitivity) == (5, 0.15, "relative")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 17}, "must be 1 to 16"),
        ({"tokens": 0}, "tokens: 0 is not"),
        ({"partitions": 0}, "partitions: 0 is not"),
        ({"partitions": 1001}, "must be 1 to 1000"),
        ({"steps": 0}, "steps: 0 is not"),
        ({"learning_rate": -1.0}, "learning_rate: -1 is not above 0"),
        ({"strict_visii": True}, "visii"),
        ({"method": "textual-inversion", "words": 15}, "room for"),
        ({"learning_rate": 1e37, "warmup": 0}, "not finite"),
    ],
)
def test_impossible_recipes_are_refused(pipe: Any, pairs: PairSet, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn_instruction(pipe, pairs, replace(QUICK, **change), None, run=tmp_path / "run")
    assert "finite" in message or not (tmp_path / "run").exists()


def test_two_processes_learn_what_one_does(
    pairs: PairSet, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(len(pairs)):
        for member, images in enumerate((pairs.before, pairs.after)):
            write_image(tmp_path / f"pairs/{index}_{member}.png", images[index].permute(1, 2, 0).numpy())
    common = ["learn", "pairs", "--base", str(model_folder), "--preset", "tiny", "--precision", "float32", "--full"]
    common = [*common, "--init", "none", "--steps", "3", "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        run(app, [*common, "-o", "one.safetensors", "--run-folder", "run-one"])
    assert not left.value.code
    # One start of the interpreter for both: the processes are forked after the imports.
    script = (
        "from accelerate import debug_launcher; from instructbrush.cli import app; from tenfold.cli import run;"
        "import instructbrush.models.backbones, instructbrush.training.learner;"
        f"debug_launcher(run, (app, {[*common, '-o', 'two.safetensors', '--run-folder', 'run-two']!r}))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-c", script]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (Instruction.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    editor = load_editor(BaseOptions(base=str(model_folder)), "cpu")
    start = Instruction.from_text(editor.pipe, "", one.about.num_tokens, one.about.num_partitions)
    for name in one.keys:
        # Gradients are the same sums in another order: relative errors far below a per cent. Where a gradient is next to nothing
        # Adam enlarges them, but not its step; a process that is left out changes half of every step.
        change = (one.keys[name] - start.keys[name]).norm()
        assert change > 0
        assert (two.keys[name] - one.keys[name]).norm() <= 0.01 * change
    assert len(RunFolder(tmp_path / "run-two").lines()) == len(RunFolder(tmp_path / "run-one").lines())


def test_on_the_embedded_editor_keys_and_values_fit_better_than_the_text_embedding() -> None:
    # That they also edit unseen pictures better is a claim, judged over seeds and edits in the benchmarks.
    editor = load_editor(device="cpu")
    train, test = (
        draw_pairs("heat", 4, bank(LEARNT, editor.size), 0),
        draw_pairs("heat", 4, bank(TESTED, editor.size), 1),
    )
    # In float32, so that the losses are those of every processor to four digits.
    recipe = replace(learning_preset("small")[0], steps=30, batch_size=4, precision="float32")
    losses: dict[str, list[float]] = {"kv": [], "text-embed": []}
    region = {}
    for method in losses:
        learnt = learn_instruction(
            editor.pipe,
            train,
            replace(recipe, method=method),
            None,
            about=editor.about,
            callback=lambda _, loss, method=method: losses[method].append(loss),
        )
        edited = edit_batch(editor.pipe, learnt, test.before, ApplyOptions())
        region[method] = region_psnr(edited, test.after, test.before).mean()
    start, end = (sum(part) / len(part) for part in (losses["kv"][:3], losses["kv"][-10:]))
    assert end < 0.75 * start
    assert end < 0.95 * sum(losses["text-embed"][-10:]) / 10
    assert region["kv"] > region_psnr(test.before, test.after, test.before).mean() + 2


@pytest.mark.parametrize("strict", [False, True])
def test_a_batch_pairs_sources_with_their_targets_at_times_over_the_whole_axis(strict: bool) -> None:
    scheduler = DDPMScheduler(prediction_type="sample")
    after = torch.arange(1.0, 6.0)[:, None, None, None].expand(5, 2, 64, 64)
    latents = LatentPairs(-after, after)
    config = LearnConfig(batch_size=10, method="visii" if strict else "kv", strict_visii=strict)
    batch = draw_batch(latents, scheduler, config, 3, range(10), torch.device("cpu"))
    assert torch.equal(batch.source, -batch.target)
    signal = scheduler.alphas_cumprod[batch.timesteps].sqrt()[:, None, None, None]
    noise = (batch.noisy - signal * batch.target) / (1 - signal.square()).sqrt()
    assert torch.allclose(noise.mean((1, 2, 3)), torch.zeros(10), atol=0.1)
    assert torch.allclose(noise.std((1, 2, 3)), torch.ones(10), atol=0.1)
    values = batch.target[:, 0, 0, 0].tolist()
    if strict:
        assert values == [int(time) % 5 + 1 for time in batch.timesteps]
        again = draw_batch(latents, scheduler, config, 103, range(10), torch.device("cpu"))
        assert len({*batch.timesteps.tolist(), *again.timesteps.tolist()}) > 10
    else:
        assert sorted(values) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert sorted((batch.timesteps // 100).tolist()) == list(range(10))
    half = draw_batch(latents, scheduler, config, 3, range(5, 10), torch.device("cpu"))
    assert torch.equal(half.noisy, batch.noisy[5:])
