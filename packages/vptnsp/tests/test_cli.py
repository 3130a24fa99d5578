"""The command line end to end, its examples, and what it says to bad input."""

import contextlib
import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from tenfold import UserError
from tenfold.cli import examples_of, run
from tenfold.config import load_preset
from vptnsp.cli import app
from vptnsp.config import TrainConfig
from vptnsp.models.backbones import build_backbone
from vptnsp.training.run import compare


def call(*arguments: str) -> int:
    """The same command line in this process: importing torch again would cost seconds each time."""
    with pytest.raises(SystemExit) as left:
        run(app, list(arguments))
    return left.value.code


def pictures(root: Path, classes=("ape", "bee"), count: int = 3) -> Path:
    generator = np.random.default_rng(len(classes))
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(generator.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(root / name / f"{index}.jpg")
    return root


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A finished run, folders of pictures and a damaged one, made once."""
    root = tmp_path_factory.mktemp("cli")
    assert call("train", "--out", str(root / "run"), "--preset", "tiny", "--tasks", "2", "--epochs", "2") == 0
    pictures(root / "new-classes")
    pictures(root / "pictures", tuple("abcd"), 5)
    named = json.loads((root / "run/result.json").read_text())["tasks"][0]
    pictures(root / "test-pictures", tuple(named), 2)
    Image.new("RGB", (50, 40), "red").save(root / "picture.png")
    (root / "broken").mkdir()
    (root / "broken" / "cut.jpg").write_bytes((root / "pictures" / "a" / "0.jpg").read_bytes()[:200])
    (root / "empty").mkdir()
    return root


def test_train_leaves_a_run_folder_that_eval_and_predict_read(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    assert {path.name for path in Path("run").iterdir()} >= {
        "config.toml",
        "metrics.jsonl",
        "result.json",
        "accuracy.png",
        "learner",
    }
    assert {path.name for path in Path("run/learner").iterdir()} == {
        "model.safetensors",
        "moments.safetensors",
        "learner.json",
    }
    assert call("train", "--out", "run", "--preset", "tiny", "--tasks", "2", "--epochs", "2", "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("run/result.json").read_text())
    assert call("eval", "run/learner", "test-pictures", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == 8
    assert 0 <= found["accuracy"] <= 1
    assert call("predict", "run/learner", "pictures", "--out", "named.csv") == 0
    assert len(Path("named.csv").read_text().splitlines()) == 21
    assert call("inspect", "run/learner", "--out", "spectra.png", "--json") == 0
    reports = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    first = reports[0]["features"]
    assert first["gain_null"] == pytest.approx(0.97 / first["nullity"] ** 0.5 + 0.03)
    assert Path("spectra.png").stat().st_size > 1000


def test_pictures_that_cannot_be_read_are_passed_over_and_named(workplace, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("1.png", "3.png"):
        (mixed / name).write_bytes((workplace / "picture.png").read_bytes())
    (mixed / "2.png").write_bytes(b"text")
    learner = str(workplace / "run" / "learner")
    assert call("predict", learner, str(mixed), "--json") == 3
    printed = capsys.readouterr()
    assert [Path(each["file"]).name for each in json.loads(printed.out)] == ["1.png", "3.png"]
    assert printed.err.count("\n") == 1
    assert "skipped: " in printed.err
    assert "2.png" in printed.err


def test_a_learner_of_the_hub_is_fetched_at_a_revision_and_its_commit_is_said(workplace, monkeypatch, capsys):
    asked = []

    def fetched(name, revision, **_):
        asked.append((name, revision))
        return str(workplace / "run" / "learner")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    assert call("inspect", "somebody/learner", "--revision", "v2") == 0
    assert asked == [("somebody/learner", "v2")]
    assert "somebody/learner: commit learner" in capsys.readouterr().err


def test_a_learner_learns_the_classes_of_a_folder_as_one_more_task(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    assert call("fit-task", "run/learner", "new-classes", "--out", "three", "--epochs", "1", "--batch-size", "4") == 0
    described = json.loads(Path("three/learner.json").read_text())
    assert described["class_names"][-2:] == ["ape", "bee"]
    assert len(described["tasks"]) == 3
    capsys.readouterr()
    assert call("fit-task", "three", "new-classes", "--out", "four") == 2
    assert "ape, bee: learnt before" in capsys.readouterr().err
    assert not Path("four").exists()


def test_a_split_is_what_train_reads(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    assert call("split", "pictures", "--tasks", "2", "--out", "split", "--seed", "1") == 0
    assert sorted(path.name for path in Path("split").iterdir()) == ["tasks.tsv", "train.txt", "val.txt"]
    options = ["--train-list", "split/train.txt", "--val-list", "split/val.txt", "--task-file", "split/tasks.tsv"]
    code = call(
        "train",
        "--out",
        "folder-run",
        "--preset",
        "tiny",
        "--dataset",
        "folder",
        "--root",
        "pictures",
        *options,
        "--epochs",
        "1",
    )
    assert code == 0
    tasks = json.loads(Path("folder-run/result.json").read_text())["tasks"]
    assert tasks == [line.split("\t") for line in Path("split/tasks.tsv").read_text().splitlines()]
    assert "accuracy" in capsys.readouterr().out


def call_in_this_process(place, arguments) -> None:
    AcceleratorState._reset_state(True)  # the parent's state came along with the fork
    torch.set_num_threads(1)
    with contextlib.chdir(place):
        run(app, arguments)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the launcher for tests forks")
def test_two_processes_learn_the_same_as_one(workplace, capfd):
    """Batches divide evenly here, so that both see the same means; only the first process writes and prints."""
    arguments = ["train", "--out", "two", "--preset", "tiny", "--tasks", "2", "--epochs", "2", "--json"]
    debug_launcher(call_in_this_process, (workplace, arguments), num_processes=2)
    assert json.loads(capfd.readouterr().out)["processes"] == 2
    one, two = (json.loads((workplace / run / "result.json").read_text()) for run in ("run", "two"))
    assert two["final_loss"] == pytest.approx(one["final_loss"], rel=0.01)
    config = load_preset("vptnsp", "tiny", TrainConfig)
    start = {f"prompts.{name}": each.detach() for name, each in build_backbone(config).prompts().items()}
    one, two = (load_file(workplace / run / "learner" / "model.safetensors") for run in ("run", "two"))
    assert one.keys() == two.keys() >= start.keys()
    for name, value in one.items():
        # Gradients are the same sums in another order: relative errors far below a per cent. Where a gradient is next to
        # nothing Adam enlarges them, but not its step; a process that is left out changes half of every step.
        change = value - start.get(name, torch.zeros(()))
        assert (two[name] - value).norm() <= 0.01 * change.norm(), name
    first, second = (load_file(workplace / run / "learner" / "moments.safetensors") for run in ("run", "two"))
    for name, value in first.items():
        # Sums over the pictures of both processes; what prompts a per cent of their change apart do to them is less.
        assert (second[name] - value).float().norm() <= 0.01 * value.float().norm(), name


def test_pretraining_writes_a_backbone_and_resumes_to_the_same_weights(workplace, monkeypatch):
    import vptnsp.training.pretraining as pretraining

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(pretraining, "CHECKPOINT_EVERY", 2)
    options = ["--steps", "4", "--batch-size", "9", "--glyph-classes", "3", "--photographs", "pictures"]
    options += ["--characters", "pictures", "--alphabets", "a", "b", "--num-photographs", "4"]
    assert call("pretrain", "--out", "whole", *options) == 0
    original = pretraining.draw_batch
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(pretraining, "draw_batch", interrupted)
    assert call("pretrain", "--out", "parts", *options) == 130
    assert call("pretrain", "--out", "parts", *options, "--resume") == 0
    name = "vptnsp_tiny_patch8_32.safetensors"
    assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes()
    trained = ["--preset", "tiny", "--checkpoint", f"whole/{name}", "--epochs", "1", "--tasks", "2"]
    assert call("train", "--out", "on-own", *trained) == 0


def test_the_demo_draws_pictures(workplace, monkeypatch, capsys):
    import vptnsp.demo as demonstration

    # The rivals are the same loop again; three rows are enough here.
    monkeypatch.setattr(demonstration, "DEMO_METHODS", ("nsp2", "seq", "ncm"))
    # So is a fifth of the pictures.
    monkeypatch.setattr(
        demonstration, "compare", lambda config, names: compare(replace(config, samples_per_class=4, epochs=2), names)
    )
    monkeypatch.chdir(workplace)
    assert call("demo", "--out", "demo") == 0
    assert {path.name for path in (workplace / "demo").iterdir()} == {
        "accuracy.png", "glyphs.png", "matrix-nsp2.png", "matrix-seq.png"
    }  # fmt: skip
    assert "nsp2" in capsys.readouterr().out


EXAMPLES = [each for verb, lines in examples_of(app).items() if verb != "demo" for each in lines]


def test_the_examples_in_the_help_run_as_printed(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    for example in dict.fromkeys(EXAMPLES):
        arguments = shlex.split(example)[1:]
        if "--out" in arguments and arguments[0] != "inspect":
            place = Path(arguments[arguments.index("--out") + 1])
            if place.name == "run":
                continue  # the fixture ran it, and later examples read it
            assert not place.exists() or arguments[0] == "split"
            if place.exists():
                arguments[arguments.index("--out") + 1] = "another-split"
        assert call(*arguments) == 0, (example, capsys.readouterr().err)


BAD = [
    (("train", "--out", "x", "--preset", "nothing"), "nothing"),
    (("train", "--out", "run", "--preset", "tiny"), "already holds a run"),
    (("train", "--out", "run", "--preset", "tiny", "--epochs", "9", "--resume"), "another configuration"),
    (("train", "--out", "x", "--preset", "tiny", "--dataset", "folder", "--root", "gone"), "no such folder"),
    (("train", "--out", "x", "--preset", "tiny", "--dataset", "folder", "--root", "empty"), "one folder per class"),
    (
        ("train", "--out", "x", "--preset", "tiny", "--dataset", "folder", "--root", "pictures", "--tasks", "3"),
        "4 classes cannot be dealt out",
    ),
    (
        ("train", "--out", "x", "--preset", "tiny", "--backbone", "resnet18", "--checkpoint", "picture.png"),
        "picture.png: cannot read",
    ),
    (("train", "--out", "x", "--preset", "tiny", "--backbone", "vit_tiny_patch98"), "no such model"),
    (("train", "--out", "x", "--preset", "tiny", "--blocks", "0", "9"), "blocks must be among 0 to 3, got [0, 9]"),
    (("train", "--out", "x", "--preset", "tiny", "--num-prompts", "0"), "--num-prompts"),
    (("train", "--out", "x", "--preset", "tiny", "--num-prompts", "2"), "no adaptive nullity"),
    (("train", "--out", "x", "--preset", "tiny", "--epochs", "0"), "--epochs"),
    (("train", "--out", "x", "--preset", "tiny", "--eta1", "2"), "--eta1"),
    (("train", "--out", "x", "--preset", "tiny", "--task-file", "gone.tsv"), "gone.tsv"),
    (("train", "--out", "/proc/x", "--preset", "tiny"), "/proc"),
    (("train", "--out", "x", "--preset", "tiny", "--device", "cuda:77"), "cuda:77"),
    (("eval", "gone/in/full", "pictures"), "no such folder"),
    (("eval", "run/learner", "pictures"), "never learnt"),
    (("eval", "run/learner", "empty"), "one folder per class"),
    (("predict", "run/learner", "broken"), "damaged or truncated"),
    (("predict", "run/learner", "empty"), "holds no picture"),
    (("predict", "run/learner", "picture.png", "--out", "/proc/x.csv"), "cannot write"),
    (("predict", "run", "picture.png"), "learner.json is missing"),
    (("predict", "run/learner", "picture.png", "--out", "picture.png"), "is an input"),
    (("predict", "run/learner", "picture.png", "--out", "run/learner/learner.json"), "is an input"),
    (("predict", "run/learner", "picture.png", "--out", "empty"), "is a folder"),
    (("predict", "run/learner", "picture.png", "--revision", "main"), "--revision is for models of the Hub"),
    (("inspect", "run/learner", "--out", "spectra.foo"), "name a .png file"),
    (("train", "surplus", "--out", "x", "--preset", "tiny"), "surplus"),
    (("inspect", "gone/in/full"), "no such folder"),
    (("inspect", "run/learner", "--out", "/proc/x.png"), "cannot write"),
    (("fit-task", "run/learner", "gone", "--out", "y"), "no such folder"),
    (("fit-task", "run/learner", "new-classes", "--out", "run"), "is there already"),
    (("split", "pictures", "--out", "z", "--tasks", "3"), "cannot be dealt out"),
    (("split", "gone", "--out", "z"), "no such folder"),
    (("toy", "--seeds", "0"), "--seeds"),
    (("bench", "--batch-size", "0"), "--batch-size"),
    (("bench", "--repeats", "0"), "--repeats"),
    (("bench", "--num-prompts", "2"), "--num-prompts 2: at least 3"),
    (("pretrain", "--out", "p", "--steps", "0"), "--steps"),
    (("bench", "--backbone", "nothing_vit"), "no such model"),
    (("pretrain", "--out", "p", "--photographs", "gone"), "gone"),
    (("pretrain", "--out", "p2", "--characters", "pictures", "--alphabets", "Klingon"), "no alphabet Klingon"),
    (("demo", "--out", "picture.png/x"), "picture.png"),
]


def test_bad_input_is_one_line_and_leaves_nothing_behind(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    for arguments, message in BAD:
        before = set(workplace.rglob("*"))
        code = call(*arguments)
        error = capsys.readouterr().err.strip()
        assert code == 2, (arguments, error)
        assert message in error, (arguments, error)
        assert error.count("\n") == 0, (arguments, error)
        assert set(workplace.rglob("*")) == before, arguments


def test_the_readme_example_runs(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README", "exec"), {})  # the example that we print


def test_errors_are_one_kind():
    assert issubclass(UserError, ValueError)
