"""The command line end to end: the examples of every help, and bad input for every verb."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from instructbrush import Instruction, PatchAutoencoder
from instructbrush.cli import app, bench
from tenfold.cli import examples_of, run
from tenfold.images import write_image


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command line in this process."""
    with pytest.raises(SystemExit) as left:
        run(app, arguments)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder with what the examples speak of."""
    root = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    for name in "abc":
        image = rng.random((40, 50, 3)).astype(np.float32)
        for folder, member in (("pairs", ""), ("flat/effect", "")):
            write_image(root / folder / f"{name}_0{member}.png", image)
            write_image(root / folder / f"{name}_1{member}.png", image * np.float32([0.9, 0.6, 0.3]))
        write_image(root / "before" / f"{name}.png", image)
        write_image(root / "after" / f"{name}.png", image * np.float32([0.9, 0.6, 0.3]))
        write_image(root / "photos" / f"{name}.jpg", image)
    write_image(root / "photo.jpg", image)
    (root / "editor").symlink_to(model_folder)
    return root


def test_the_examples_of_every_help_run_as_printed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    verbs = examples_of(app)
    order = ["learn", "apply", "eval", "phrases", "show", "pull", "train"]
    assert {name for name, lines in verbs.items() if lines} == {*order, "demo"}
    commands = [each for name in order for each in verbs[name]]
    commands += [each for name in ("make", "import", "check", "run", "report") for each in examples_of(bench)[name]]
    for command in commands:
        if command.startswith("instructbrush pull"):
            Instruction.load("edit.safetensors").save_pretrained("saved")
        code, out, err = call(capsys, *shlex.split(command)[1:])
        assert code == 0, (command, err)
        assert out.strip(), command
    for made in ("edit.safetensors", "two.safetensors", "edited/photo.png", "edited/grid.png", "scores.json"):
        assert (place / made).exists(), made
    scores = json.loads((place / "scores.json").read_text())["scores"]
    assert set(scores) == {"unchanged", "edited"}
    assert scores["unchanged"]["clip-dir text"] == 0.0
    assert scores["edited"]["clip-dir text"] != 0.0
    assert (place / "runs/editor/model/unet").is_dir()
    _, out, _ = call(capsys, "show", "edit.safetensors", "--distance")
    assert float(next(line for line in out.splitlines() if line.startswith("mid_block")).split("|")[-1]) > 0
    assert json.loads((place / "runs/bench/result.json").read_text())["summary"]["all"]["kv"]


def test_a_trained_editor_is_a_base_and_a_dry_run_learns_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    arguments = ["learn", "pairs", "-o", "own.safetensors", "--base", "editor", "--preset", "tiny"]
    code, out, _ = call(capsys, *arguments, "--dry-run")
    assert code == 0
    assert "3 pairs: a, b, c" in out
    assert not (place / "own.safetensors").exists()
    code, out, err = call(capsys, *arguments, "--edit", "less blue", "--licence", "cc0-1.0", "--run-folder", "own")
    assert code == 0, err
    code, out, _ = call(capsys, "show", "own.safetensors")
    assert "less blue" in out
    code, _, err = call(capsys, *arguments, "--run-folder", "own")
    assert code == 2
    assert "already holds a run" in err
    code, _, err = call(capsys, *arguments, "--edit", "less blue", "--run-folder", "own", "--resume")
    assert code == 0, err
    code, _, err = call(capsys, "apply", "own.safetensors", "photo.jpg", "-o", "e")
    assert code == 2
    assert "another editor (editor)" in err
    assert not (place / "e").exists()


def test_a_checked_benchmark_with_faults_leaves_with_three(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    code, out, _ = call(capsys, "bench", "make", "faulty", "--effect", "small", "--train", "1", "--test", "1")
    (place / "faulty/small/test/00_1.png").unlink()
    code, out, _ = call(capsys, "bench", "check", "faulty")
    assert code == 3
    assert "partner" in out


BAD: dict[str, tuple[str, str]] = {
    "missing folder": ("learn nowhere -o o.safetensors", "nowhere"),
    "empty folder": ("learn empty -o o.safetensors", "no picture"),
    "odd number": ("learn photo.jpg photos/a.jpg photos/b.jpg -o o.safetensors", "3 pictures"),
    "truncated": ("learn cut/a_0.png cut/a_1.png -o o.safetensors", "a_1.png"),
    "one pixel": ("learn dots/a_0.png dots/a_1.png -o o.safetensors", "at least 8"),
    "over an input": ("learn pairs -o pairs/a_0.png", ".safetensors"),
    "a number that is none": ("learn pairs -o o.safetensors --preset tiny --learning-rate nan", "finite"),
    "a huge number": ("learn pairs -o o.safetensors --preset tiny --steps 99999999999999999999999", "number"),
    "no suffix": ("learn pairs -o o.bin", ".safetensors"),
    "too many tokens": ("learn pairs -o o.safetensors --tokens 17 --preset tiny", "1 to 16"),
    "too many partitions": ("learn pairs -o o.safetensors --partitions 1001 --preset tiny", "1 to 1000"),
    "negative eta": ("learn pairs -o o.safetensors --eta -1 --preset tiny", "eta"),
    "no such base": ("learn pairs -o o.safetensors --base empty", "--base empty"),
    "text to image": ("learn pairs -o o.safetensors --base wide --preset tiny", "input channels"),
    "resume nothing": ("learn pairs -o o.safetensors --resume", "--run-folder"),
    "unwritable": ("learn pairs -o photo.jpg/o.safetensors", "photo.jpg"),
    "offload without GPU": ("learn pairs -o o.safetensors --offload model --device cpu", "--offload"),
    "wrong word": ("learn pairs -o o.safetensors --method magic", "magic"),
    "no bank": ("learn pairs -o o.safetensors --bank nowhere.txt", "nowhere.txt"),
    "apply missing": ("apply nothing.safetensors photo.jpg -o e", "nothing.safetensors"),
    "apply pickle": ("apply pickle.safetensors photo.jpg -o e", "pickle.safetensors"),
    "apply other": ("apply other.safetensors photo.jpg -o e", "not an instruction"),
    "apply no picture": ("apply start.safetensors -o e", "at least one picture"),
    "apply bad picture": ("apply start.safetensors pickle.jpg -o e", "pickle.jpg"),
    "apply to file": ("apply start.safetensors photo.jpg -o photo.jpg", "photo.jpg"),
    "apply odd size": ("apply start.safetensors photo.jpg -o e --size 50", "multiple of 4"),
    "apply over itself": ("apply start.safetensors pairs -o pairs", "is an input"),
    "apply two of a name": ("apply start.safetensors before after -o e", "both would become"),
    "apply offload without GPU": ("apply start.safetensors photo.jpg -o e --offload model --device cpu", "--offload"),
    "apply steps": ("apply start.safetensors photo.jpg -o e --steps 0", "steps"),
    "eval missing": ("eval start.safetensors nowhere", "nowhere"),
    "eval no such model": ("eval start.safetensors pairs --dino nonsense", "nonsense"),
    "eval no weights": ("eval start.safetensors pairs --lpips-weights nowhere.pth", "nowhere.pth"),
    "eval one caption": ("eval start.safetensors pairs --captions photo", "captions"),
    "phrases missing": ("phrases nowhere", "nowhere"),
    "show missing": ("show nothing.safetensors", "nothing.safetensors"),
    "push nowhere": ("push start.safetensors not/a/name", "not/a/name"),
    "pull missing": ("pull nowhere/at/all -o o.safetensors", "nowhere"),
    "bench make full": ("bench make pairs", "is not empty"),
    "bench import none": ("bench import nowhere new", "nowhere"),
    "bench check none": ("bench check pairs", "topbench.json"),
    "bench run none": ("bench run pairs --out r", "topbench.json"),
    "bench report none": ("bench report pairs", "no run"),
    "train missing": ("train nowhere --out r --preset tiny", "nowhere"),
    "train size": ("train --out r --preset tiny --side 20", "multiple of 16"),
}


@pytest.fixture(scope="module")
def bad(place: Path) -> Path:
    """Files that nothing can be done with, and an untrained instruction for the embedded editor."""
    from instructbrush import load_editor

    (place / "empty").mkdir()
    pairs = {"cut": "a_0.png", "dots": "a_0.png"}
    for folder in pairs:
        shutil.copytree(place / "pairs", place / folder)
    (place / "cut/a_1.png").write_bytes((place / "cut/a_1.png").read_bytes()[:200])
    for member in "01":
        write_image(place / f"dots/a_{member}.png", np.zeros((1, 1, 3), np.float32))
    for name in ("pickle.safetensors", "pickle.jpg"):
        (place / name).write_bytes(b"\x80\x04\x95 not what it says")
    save_file({"x": torch.zeros(2)}, place / "other.safetensors")
    editor = load_editor(device="cpu")
    Instruction.from_text(editor.pipe, "make it dark", **editor.about).save(place / "start.safetensors")
    shutil.copytree(place / "editor", place / "wide")
    config = json.loads((place / "wide/vae/config.json").read_text())
    vae = PatchAutoencoder(latent_channels=config["latent_channels"] + 1)
    vae.save_pretrained(place / "wide/vae")
    return place


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    bad: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(bad)
    command, word = BAD[case]
    before = sorted(bad.rglob("*"))
    code, out, err = call(capsys, *shlex.split(command))
    lines = [line for line in err.splitlines() if "warning:" not in line]
    assert code == 2, (out, err)
    assert len(lines) == 1, err
    assert word in lines[0]
    assert sorted(bad.rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    ["learn cut -o o.safetensors --preset tiny --steps 1", "eval start.safetensors cut --steps 1", "phrases cut"],
)
def test_pairs_that_cannot_be_read_are_named_and_passed_over(
    bad: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(bad)
    code, out, err = call(capsys, *shlex.split(command))
    assert code == 3, (out, err)
    assert [line for line in err.splitlines() if "skipped: " in line and "a_1.png" in line]
    (bad / "o.safetensors").unlink(missing_ok=True)


def test_results_replace_others_only_when_told(
    bad: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(bad)
    (tmp_path / "photo.png").write_text("mine")
    line = f"apply start.safetensors photo.jpg -o {tmp_path} --steps 1"
    code, _, err = call(capsys, *shlex.split(line))
    assert (code, "exists" in err) == (2, True)
    assert (tmp_path / "photo.png").read_text() == "mine"
    assert call(capsys, *shlex.split(line + " --overwrite"))[0] == 0
    assert (tmp_path / "photo.png").read_bytes().startswith(b"\x89PNG")
