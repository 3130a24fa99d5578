"""Pairs, benchmark folders, scores and the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from instructbrush import (
    BaseOptions,
    DinoFeatures,
    LearnConfig,
    PairSet,
    Scorer,
    TopBench,
    apply_affine_colour,
    fit_affine_colour,
    import_flat,
    load_editor,
    make_embedded,
    run_bench,
    summarise,
)
from instructbrush.benchmark.comparison import contact_sheet
from instructbrush.config import ApplyOptions, PhraseOptions
from instructbrush.data.datasets import folder_pairs, named_pairs, read_rgb, rgb_of, squared
from instructbrush.data.layouts import check
from instructbrush.evaluation.metrics import region_psnr
from instructbrush.method.sensitivity import read_bank
from instructbrush.models.instruction import Instruction
from instructbrush.pipeline.inference import apply_instruction, plan
from tenfold.errors import UserError
from tenfold.images import write_image
from tenfold.runs import RunFolder


def write(path: Path, seed: int = 0, shape: tuple[int, int] = (20, 24)) -> Path:
    write_image(path, np.random.default_rng(seed).random((*shape, 3)).astype(np.float32))
    return path


def test_the_three_ways_to_name_pairs(tmp_path: Path) -> None:
    for index, name in enumerate(("2", "10")):
        write(tmp_path / f"flat/{name}_0.png", index)
        write(tmp_path / f"flat/{name}_1.png", index + 5)
        write(tmp_path / f"two/before/{name}.png", index)
        write(tmp_path / f"two/after/{name}.jpg", index + 5)
    assert [first.stem for first, _ in folder_pairs(tmp_path / "flat")] == ["2_0", "10_0"]
    assert len(named_pairs([tmp_path / "two"])) == 2
    assert len(named_pairs([tmp_path / "two/before", tmp_path / "two/after"])) == 2
    files = [tmp_path / f"flat/{name}" for name in ("2_0.png", "10_0.png", "2_1.png", "10_1.png")]
    assert named_pairs(files)[1] == (files[1], files[3])
    pairs = PairSet.from_folder(tmp_path / "flat", 16)
    assert pairs.ids == ("2", "10")
    assert pairs.before.shape == (2, 3, 16, 16)


def test_pictures_are_upright_opaque_and_square(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 30), (255, 0, 0, 0))
    image.save(tmp_path / "a_0.png")
    Image.new("RGB", (20, 30), (0, 0, 0)).save(tmp_path / "a_1.png")
    pairs = PairSet.from_folder(tmp_path, 16)
    assert torch.equal(pairs.before, torch.ones(1, 3, 16, 16))
    wide = np.zeros((8, 16, 3), np.float32)
    wide[:, :4] = 1
    assert squared(wide, 8, "crop").max() == 0
    assert squared(wide, 8, "stretch").max() == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_0.png": (20, 20)}, "partner of a_0.png is missing"),
        ({"a_0.png": (20, 20), "a_1.png": (20, 22)}, "differs in size"),
        ({"a_0.png": (1, 1), "a_1.png": (1, 1)}, "at least 8 a side"),
        ({"photo.png": (20, 20)}, "pairs are NAME_0 and NAME_1"),
        ({}, "holds no picture"),
    ],
)
def test_pairs_that_are_none_are_refused(tmp_path: Path, files: dict, message: str) -> None:
    for name, shape in files.items():
        write(tmp_path / name, shape=shape)
    with pytest.raises(UserError, match=message):
        PairSet.from_folder(tmp_path, 16)


def test_pictures_in_memory_are_read_as_files_are(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (20, 30), (255, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 255, 255))
    clear.save(tmp_path / "clear.png")
    assert np.array_equal(rgb_of(clear), read_rgb(tmp_path / "clear.png"))
    turned = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert rgb_of(image).shape == (30, 20, 3)
        assert np.array_equal(rgb_of(image), read_rgb(tmp_path / "turned.png"))
    with pytest.raises(UserError, match="at least 8"):
        rgb_of(Image.new("RGB", (7, 9)))
    with pytest.raises(UserError, match="differ in size"):
        PairSet.from_lists([Image.new("RGB", (20, 30))], [Image.new("RGB", (60, 16))], 32)


def test_pairs_are_in_order_however_they_were_written_and_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("10", "2", "1"):
        for member in "10":
            write(tmp_path / f"train/{name}_{member}.png")
    assert PairSet.from_folder(tmp_path / "train", 16).ids == ("1", "2", "10")
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="name one of them"):
        folder_pairs(tmp_path)


def test_results_keep_their_places_and_never_share_one(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "b/x.jpg", "y.png"):
        write(tmp_path / name)
    jobs = plan([tmp_path], tmp_path.with_name("out"))
    names = sorted(job.target.relative_to(tmp_path.with_name("out")).as_posix() for job in jobs)
    assert names == ["a/x.png", "b/x.png", "y.png"]
    with pytest.raises(UserError, match="both would become"):
        plan([tmp_path / "a", tmp_path / "b"], tmp_path.with_name("out"))


def test_pairs_without_an_edit_are_refused_and_odd_ones_warned_about() -> None:
    images = torch.rand(3, 3, 16, 16)
    with pytest.raises(UserError, match="no edit to learn"):
        PairSet(("a", "b", "c"), images, images).validate()
    with pytest.warns(UserWarning, match="the same in a"):
        PairSet(("a", "b", "c"), images, torch.cat([images[:1], 1 - images[1:]])).validate()
    with pytest.warns(UserWarning, match="only 1 pairs"):
        PairSet(("a",), images[:1], 0.9 * images[:1]).validate()
    with pytest.warns(UserWarning, match="aligned"):
        PairSet(("a", "b", "c"), torch.zeros_like(images), torch.ones_like(images)).validate()
    with pytest.raises(UserError, match="as many of each"):
        PairSet.from_lists([Image.new("RGB", (9, 9))], [])


def test_a_made_benchmark_is_well_and_faults_are_named(tmp_path: Path) -> None:
    made = make_embedded(tmp_path / "b", side=16, train=2, test=1, names=("comic", "small"))
    assert check(tmp_path / "b") == []
    assert TopBench.read(tmp_path / "b") == made
    assert made.pairs(made.effects[0], "train", 16).before.shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="is not empty"):
        make_embedded(tmp_path / "b")
    with pytest.raises(UserError, match="there are tint"):
        make_embedded(tmp_path / "c", names=("nothing",))
    root = tmp_path / "b/comic"
    (root / "test/00_0.png").write_bytes((root / "train/00_0.png").read_bytes())
    (root / "train/01_1.png").write_bytes(b"\x89PNG")
    (root / "instruction.txt").unlink()
    write(tmp_path / "b/small/train/02_0.png", shape=(16, 16))
    faults = "\n".join(check(tmp_path / "b"))
    for word in ("both in train and in test", "01_1.png", "no instruction.txt", "partner of 02_0.png"):
        assert word in faults


def test_a_flat_set_is_taken_over(tmp_path: Path) -> None:
    for index in range(11):
        write(tmp_path / f"flat/to_snow/{index}_0.png", index)
        write(tmp_path / f"flat/to_snow/{index}_1.png", 100 + index)
    made = import_flat(tmp_path / "flat", tmp_path / "b", train=9, test=2, local=("to_snow",))
    assert made.effects[0].instruction == "to snow"
    assert made.effects[0].group == "local"
    assert check(tmp_path / "b") == []
    last = (tmp_path / "b/to_snow/test/01_0.png").read_bytes()
    assert last == (tmp_path / "flat/to_snow/10_0.png").read_bytes()
    with pytest.raises(UserError, match="has 11 pairs, 15 are needed"):
        import_flat(tmp_path / "flat", tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("content", ["", "{", '{"format": "other"}', '{"format": "topbench/1", "effects": []}', "[1]"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "topbench.json").write_text(content)
    with pytest.raises(UserError, match="topbench"):
        TopBench.read(tmp_path)


def test_a_run_is_scored_summed_up_and_not_done_twice(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = load_editor(BaseOptions(base=str(model_folder)), "cpu")
    bench = make_embedded(tmp_path / "b", side=32, train=2, test=2, names=("comic", "small"))
    config = LearnConfig(steps=2, batch_size=2, partitions=1)
    folder = RunFolder.create(tmp_path / "run", config)
    arguments: Any = (editor, bench, ("copy", "affine-color", "text", "kv"), config, ApplyOptions(steps=2))
    rows = run_bench(*arguments, Scorer(editor.clip), folder, bank=read_bank(tiny=True), phrase_options=PhraseOptions())
    assert len(rows) == 8
    assert (tmp_path / "run/instructions/comic-kv.safetensors").exists()
    assert len(list((tmp_path / "run/pictures").iterdir())) == 8
    copied = next(row for row in rows if row["method"] == "copy")
    assert copied["clip-dir"] == 0.0
    assert {"psnr", "ssim", "clip-i", "clip-dir", "clip-dir transfer"} <= copied.keys()
    summary = summarise(rows)
    mean, low, high = summary["all"]["kv"]["psnr"]
    assert low <= mean <= high
    assert set(summary) == {"all", "global", "local"}
    monkeypatch.setattr("instructbrush.benchmark.comparison.learn_method", None)
    assert run_bench(*arguments, Scorer(editor.clip), folder) == rows
    with pytest.raises(UserError, match="there are copy"):
        run_bench(editor, bench, ("magic",), config, ApplyOptions(), Scorer(), folder)


def test_affine_colour_finds_a_colour_map_and_solves_flat_pictures() -> None:
    before = torch.rand(2, 3, 8, 8)
    after = (before * torch.tensor([0.5, 0.8, 0.3])[:, None, None] + 0.1).clamp(0, 1)
    assert torch.allclose(apply_affine_colour(fit_affine_colour(before, after), before), after, atol=1e-5)
    flat = torch.full((1, 3, 4, 4), 0.5)
    assert torch.allclose(apply_affine_colour(fit_affine_colour(flat, flat * 0.5), flat), flat * 0.5, atol=1e-5)


def test_the_edited_region_counts_only_what_the_true_edit_changes() -> None:
    source = torch.zeros(1, 3, 4, 4)
    truth, edited = source.clone(), source.clone()
    truth[..., :2] = 0.5
    edited[..., :2] = 0.4
    assert region_psnr(edited, truth, source).item() == pytest.approx(20.0, abs=1e-4)
    edited[..., 2:] = 1.0
    assert region_psnr(edited, truth, source).item() == pytest.approx(20.0, abs=1e-4)


def test_applying_is_repeatable_and_does_not_depend_on_the_batch(pipe: Any) -> None:
    instruction = Instruction.from_text(pipe, "make it dark", guidance_scale=2.0, image_guidance_scale=1.2)
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 30, 3), np.uint8)) for seed in range(3)]
    one, three = (apply_instruction(pipe, instruction, images, ApplyOptions(steps=2, batch_size=b)) for b in (1, 3))
    assert [each.size for each in one] == [(32, 32)] * 3
    for first, second in zip(one, three, strict=True):
        assert np.abs(np.asarray(first, int) - np.asarray(second, int)).max() <= 1
    other = apply_instruction(pipe, instruction, images, ApplyOptions(steps=2, seed=9))
    assert any(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in zip(one, other, strict=True))
    large = apply_instruction(pipe, instruction, images[:1], ApplyOptions(steps=1), size=48)
    assert large[0].size == (48, 48)


def test_free_slots_take_further_words(pipe: Any) -> None:
    few = Instruction.from_text(pipe, "make it dark", 4)
    image = [Image.new("RGB", (32, 32), (200, 100, 50))]
    plain, hybrid = (apply_instruction(pipe, few, image, ApplyOptions(steps=1, extra=e)) for e in ("", "and foggy"))
    assert plain[0].tobytes() != hybrid[0].tobytes()
    with pytest.raises(UserError, match="replaces all slots"):
        apply_instruction(pipe, Instruction.from_text(pipe, "x"), image, ApplyOptions(steps=1, extra="y"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps: 0 is not"), ({"guidance": 0.5}, "guidance"), ({"image_guidance": -1.0}, "guidance")],
)
def test_scales_out_of_range_are_refused(pipe: Any, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_instruction(pipe, Instruction.from_text(pipe, "x"), [Image.new("RGB", (32, 32))], ApplyOptions(**options))


def test_half_a_guidance_is_said_to_be_off(pipe: Any) -> None:
    options = ApplyOptions(steps=1, guidance=1.0, image_guidance=1.5)
    with pytest.warns(UserWarning, match="guidance is off"):
        apply_instruction(pipe, Instruction.from_text(pipe, "x"), [Image.new("RGB", (32, 32))], options)


def test_class_tokens_are_compared_at_the_models_own_size_and_scale() -> None:
    torch.manual_seed(0)
    dino = DinoFeatures.load("vit_tiny_patch16_224", pretrained=False)
    images = torch.rand(2, 3, 48, 48)
    model: Any = dino.model
    inputs = (F.interpolate(images, 224, mode="bicubic", antialias=True).clamp(0, 1) - 0.5) / 0.5
    assert torch.allclose(dino.images(images), model.forward_features(inputs)[:, 0], atol=1e-5)
    scorer = Scorer(dino=dino)
    assert scorer.measure(images, images, images)["dino"] == pytest.approx(1.0, abs=1e-6)
    assert scorer.measure(images, images.flip(2), images)["dino"] < 0.9999


def test_a_sheet_has_rows_and_margins() -> None:
    sheet = contact_sheet([torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 8, 8)], enlarge=2)
    assert sheet.shape == (3, 40, 60)


def test_the_lists_of_phrases(tmp_path: Path) -> None:
    for tiny in (True, False):
        bank = read_bank(tiny=tiny)
        assert len(set(bank)) == len(bank) > 100
    assert {"apple", "peach"} <= set(read_bank())
    (tmp_path / "none.txt").write_text("# nothing\n\n")
    with pytest.raises(UserError, match="holds no phrases"):
        read_bank(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot read"):
        read_bank(tmp_path / "missing.txt")


def test_the_report_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="nothing has been scored"):
        summarise([])
    assert json.dumps(summarise([{"effect": "a", "group": "local", "method": "kv", "psnr": 1.0}]))
