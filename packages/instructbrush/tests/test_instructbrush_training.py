"""Training the embedded editor: its world, its autoencoder, its resumable loop, and what ships."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import instructbrush.training.pretraining as module
from instructbrush import PatchAutoencoder, TrainConfig, load_editor, train
from instructbrush.config import BaseOptions
from instructbrush.data.image_banks import PhotoBank, training_photographs
from instructbrush.data.samplers import draw_captioned, draw_edit
from instructbrush.data.synthetic import random_scene, render
from instructbrush.data.tasks import EFFECTS, LEARNT, TESTED, bank, draw_pairs
from instructbrush.data.transforms import STYLES
from instructbrush.data.vocabulary import COLOURS, WORDS, build_tokenizer
from instructbrush.models.checkpoints import save_tiny, shipped_model
from instructbrush.training.contrastive import contrastive_loss
from tenfold.config import load_preset
from tenfold.errors import UserError
from tenfold.runs import RunFolder

QUICK = load_preset("instructbrush", "tiny", TrainConfig)


@pytest.fixture(scope="module")
def photos() -> PhotoBank:
    return bank(TESTED, 32)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(load_editor(BaseOptions(base=str(out)), "cpu").pipe.unet.state_dict())


class StopError(Exception):
    pass


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = train([], QUICK, tmp_path / "whole", device="cpu")
    original = module.draw_examples

    def stop(bank: Any, step: int, *rest: Any) -> Any:
        if step == 3:
            raise StopError
        return original(bank, step, *rest)

    monkeypatch.setattr(module, "draw_examples", stop)
    with pytest.raises(StopError):
        train([], QUICK, tmp_path / "cut", device="cpu")
    monkeypatch.setattr(module, "draw_examples", original)
    assert train([], QUICK, tmp_path / "cut", resume=True, device="cpu") == losses
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    # The configurations too: a network that was read from a checkpoint writes more into its own than one that was built.
    written = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole/model").rglob("*") if path.is_file()]
    assert len(written) > 10
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes() for name in written)
    steps = [[line["step"] for line in RunFolder(tmp_path / name).lines()] for name in ("whole", "cut")]
    assert steps[0] == steps[1] == [0, 2, 4, 6]


def test_a_model_is_written_alike_whether_its_tokenizer_was_used_or_not(tiny_model: Any, tmp_path: Path) -> None:
    """A run that is resumed after its last step writes the model without having encoded a word."""
    save_tiny(tmp_path / "unused", replace(tiny_model, tokenizer=build_tokenizer()))
    used = build_tokenizer()
    used(["red"], padding="max_length", truncation=True)
    save_tiny(tmp_path / "used", replace(tiny_model, tokenizer=used))
    written = sorted(path.relative_to(tmp_path / "used") for path in (tmp_path / "used").rglob("*") if path.is_file())
    assert any(name.name == "tokenizer.json" for name in written)
    assert all((tmp_path / "used" / name).read_bytes() == (tmp_path / "unused" / name).read_bytes() for name in written)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    config = replace(QUICK, steps=30, batch_size=8, learning_rate=1e-2, log_every=6, save_every=30)
    train([], config, tmp_path / "run", device="cpu")
    losses = [line["editor"] for line in RunFolder(tmp_path / "run").lines() if "editor" in line]
    assert losses[-1] < 0.92 * losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 30}, "multiple of 16"),
        ({"channels": 20}, "multiple of 16"),
        ({"latent_channels": 49}, "1 to 48"),
        ({"batch_size": 0}, "batch_size: 0 is not"),
        ({"steps": 0}, "steps: 0 is not"),
    ],
)
def test_impossible_sizes_leave_nothing_behind(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train([], replace(QUICK, **change), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_every_word_is_one_token_and_instructions_fit(photos: PhotoBank) -> None:
    tokenizer = build_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 3 for word in WORDS)
    for index in range(200):
        words = draw_edit(random.Random(index), photos).instruction
        assert set(words.replace(",", " ,").split()) <= set(WORDS), words
        assert len(tokenizer(words).input_ids) <= tokenizer.model_max_length, words


def test_pictures_of_the_world_are_pictures(photos: PhotoBank) -> None:
    for index in range(60):
        rng = random.Random(index)
        example, captioned = draw_edit(rng, photos), draw_captioned(rng, photos)
        for image in (example.before, example.after, captioned.image):
            assert image.shape == (3, 32, 32)
            assert ((image >= 0) & (image <= 1)).all()
        assert not torch.equal(example.before, example.after), example.instruction
    for style in STYLES.values():
        colours = [torch.tensor(COLOURS[name]) for name in ("red", "blue")][: style.colours]
        assert style.edit(photos.crop(random.Random(0)), 1.0, colours).shape == (3, 32, 32)


def test_scenes_show_what_they_say() -> None:
    for index in range(20):
        scene = random_scene(random.Random(index))
        image = render(scene, 48)
        row, column = (round(each * 48) for each in scene.centre)
        wanted = torch.tensor(COLOURS[str(scene.colour)])
        assert torch.allclose(image[:, row, column], wanted, atol=1e-3), scene


def test_effects_have_pairs_that_follow_from_the_seed(photos: PhotoBank) -> None:
    for name in EFFECTS:
        first, second = draw_pairs(name, 2, photos, 3), draw_pairs(name, 2, photos, 3)
        assert torch.equal(first.after, second.after)
        assert (first.before - first.after).abs().mean() > 0.003, name
        assert not torch.equal(first.before, draw_pairs(name, 2, photos, 4).before)
    assert not set(LEARNT) & set(TESTED)


def test_the_patch_autoencoder_is_linear_and_exact_with_all_components() -> None:
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    whole = PatchAutoencoder(latent_channels=48).fit(images)
    latents = whole.encode(images).latent_dist.mode()  # ty: ignore[unresolved-attribute]
    assert latents.shape == (6, 48, 4, 4)
    assert latents.square().mean().item() == pytest.approx(1.0, rel=0.05)
    assert torch.allclose(whole.decode(latents)[0], images, atol=1e-4)
    some = PatchAutoencoder(latent_channels=12).fit(images)
    kept = some.decode(some.encode(images).latent_dist.mode())[0]  # ty: ignore[unresolved-attribute]
    assert 0 < (kept - images).square().mean() < images.var()


def test_the_contrastive_loss_is_least_where_equal_captions_agree() -> None:
    features = torch.eye(4)[[0, 0, 1, 2]]
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    scale = torch.tensor(50.0)
    right = contrastive_loss(features, features, scale, same)
    assert right < contrastive_loss(features, features.roll(1, 0), scale, same)
    assert right.item() == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item(), abs=1e-3)


def test_photographs_come_from_folders_or_are_the_embedded_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        training_photographs([tmp_path / "missing"], 32)
    assert len(training_photographs([], 32)) == 9


def test_what_ships_is_the_small_preset_and_small() -> None:
    editor = load_editor(device="cpu")
    sizes = load_preset("instructbrush", "small", TrainConfig)
    assert editor.size == sizes.side
    assert editor.pipe.unet.config.block_out_channels[0] == sizes.channels
    assert sum(path.stat().st_size for path in shipped_model().rglob("*") if path.is_file()) < 12 * 2**20
    assert editor.about["guidance_scale"] == 1.0
