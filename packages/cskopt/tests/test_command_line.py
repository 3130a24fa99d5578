"""`cskopt`: examples of the help run as printed, mistakes give one line and code 2, nothing is half-written."""

import functools
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cskopt.cli import app
from cskopt.data.datasets import shapes_corpus
from cskopt.models.networks import CompactResNet
from tenfold.cli import examples_of, run
from tenfold.images import write_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def call(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as left:
        run(app, list(arguments))
    return int(left.value.code or 0)


@pytest.fixture(scope="module", autouse=True)
def drawn_once() -> Iterator[None]:
    """The generated pictures are the same in every test here: draw them once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cskopt.data.datasets.shapes_corpus", functools.cache(shapes_corpus))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the examples of `train` have run."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        for index in range(4):
            write_image(folder / "new-classes" / name / f"{index}.png", rng.random((20, 24, 3), dtype=np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for example in examples_of(app)["train"]:
            assert call(shlex.split(example)[1:]) == 0
    return folder


def test_train_leaves_a_run_with_pictures(place: Path) -> None:
    for name in ("config.toml", "metrics.jsonl", "result.json", "sessions.png", "matrix.png"):
        assert (place / "run" / name).stat().st_size > 0
    assert json.loads((place / "run" / "result.json").read_text())["method"] == "csko"


@pytest.mark.parametrize("verb", [each for each, shown in examples_of(app).items() if shown and each != "train"])
def test_examples_of_the_help_run_as_printed(
    place: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(place)
    # The same verb on a sixth of the demo's pictures and a ninth of a profile's pixels.
    monkeypatch.setattr("cskopt.demo.shapes_corpus", lambda classes, *_: shapes_corpus(classes, 12, 6, 0, 28))
    for example in examples_of(app)[verb]:
        if "resnet18" in example:
            example += " --repeats 1 --image-size 32 --batch 2"
        assert call(shlex.split(example)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_a_learner_that_has_grown_names_and_keeps_old_classes(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(place)
    assert call(["learn", "run/checkpoints/session-002", "new-classes", "--out", "grown-too", "--epochs", "1"]) == 0
    assert json.loads((place / "grown-too" / "cskopt.json").read_text())["pictures"]["classes"][-2:] == ["ant", "bee"]
    assert call(["learn", "grown-too", "new-classes", "--out", "grown-three"]) == 2
    assert "knows ant already" in capsys.readouterr().err
    assert call(["predict", "grown-too", "new-classes/ant/0.png"]) == 0
    assert capsys.readouterr().out.startswith("path,class,probability")
    assert call(["eval", "grown-too", "shapes"]) == 2


def test_pictures_that_cannot_be_read_are_passed_over_and_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for each in (place / "new-classes" / "ant").iterdir():
        (tmp_path / "mixed" / each.name).parent.mkdir(exist_ok=True)
        (tmp_path / "mixed" / each.name).write_bytes(each.read_bytes())
    (tmp_path / "mixed" / "1.png").write_bytes(b"text")
    out = tmp_path / "named.csv"
    learner = str(place / "run" / "checkpoints" / "session-002")
    assert call(["predict", learner, str(tmp_path / "mixed"), "--out", str(out)]) == 3
    assert [line.split(",")[0].rpartition("/")[2] for line in out.read_text().splitlines()[1:]] == [
        "0.png",
        "2.png",
        "3.png",
    ]
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "skipped" in error[0]
    assert "1.png" in error[0]


def test_a_learner_of_the_hub_is_fetched_at_a_revision_and_its_commit_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []

    def fetched(name: str, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        return str(place / "run" / "checkpoints" / "session-002")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    picture = str(place / "new-classes" / "ant" / "0.png")
    assert call(["predict", "somebody/learner", picture, "--revision", "v2"]) == 0
    assert asked == [("somebody/learner", "v2")]
    assert "somebody/learner: commit session-002" in capsys.readouterr().err


def test_info_says_how_to_cite(capsys: pytest.CaptureFixture) -> None:
    assert call(["info"]) == 0
    assert "@inproceedings" in capsys.readouterr().out


def test_exported_weights_are_those_of_the_architecture(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert call(["export", "run/checkpoints/session-002", "out.safetensors"]) == 0
    model = CompactResNet(20)
    model.load_state_dict(load_file("out.safetensors"), strict=True)
    assert torch.isfinite(model.eval()(torch.zeros(1, 3, 28, 28))).all()


def test_help_names_every_verb_and_loads_no_heavy_library() -> None:
    probe = """
import sys
from cskopt.cli import main
for arguments in (["--help"], ["train", "--help"], ["predict", "--help"], ["--version"], ["nonsense"]):
    sys.argv = ["cskopt", *arguments]
    try:
        main()
    except SystemExit:
        pass
heavy = {"torch", "torchvision", "timm", "accelerate", "sklearn", "scipy", "transformers", "numpy"}
sys.exit(f"loaded {heavy & sys.modules.keys()}" if heavy & sys.modules.keys() else 0)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("train", "profile", "intensity", "eval", "demo", "info", "export", "learn", "methods", "predict"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train nowhere --out new", "nowhere: no such folder"),
        ("train empty --out new", "one folder per class"),
        ("train broken --out new --preset tiny --base-classes 1 --increment 1", "1.png"),
        ("train shapes --out new --method magic", "--method magic"),
        ("train shapes --out new --preset huge", "--preset 'huge'"),
        ("train shapes --out new --epochs 0", "--epochs"),
        ("train shapes --out new --base-classes 50", "has 20 classes"),
        ("train shapes --out new --preset tiny --channel-ratio 0", "channel_ratio"),
        ("train shapes --out new --preset tiny --weights run/result.json", "result.json"),
        ("train shapes --out new --preset tiny --model resnet1000", "resnet1000"),
        ("train shapes --out new --device cuda:99", "cuda:99"),
        ("train shapes --out run --preset tiny", "--resume"),
        ("train shapes --out run --preset tiny --resume --epochs 9", "another configuration"),
        ("train shapes --out empty/../run/config.toml --preset tiny", "config.toml"),
        ("profile --model resnet1000", "resnet1000"),
        ("profile --schemes magic", "--schemes magic"),
        ("profile --batch 0", "--batch"),
        ("profile --model compact --image-size 1 --batch 1 --schemes full", "--image-size 1"),
        ("intensity shapes --out new --preset tiny --base-classes 20", "no classes are left"),
        ("intensity shapes --out new --preset tiny --checkpoint run", "not a saved learner"),
        ("eval run shapes", "not a saved learner"),
        ("eval run/checkpoints/session-002 digits", "has no class shape 0"),
        ("learn run/checkpoints/session-002 empty --out new", "one folder per class"),
        ("learn run/checkpoints/session-002 new-classes --out new --epochs 0", "--epochs"),
        ("learn run/checkpoints/session-002 new-classes --out run", "is there already"),
        ("learn run/checkpoints/session-002 broken/train --out new", "1.png"),
        ("predict run/checkpoints/session-002 empty", "empty"),
        ("predict run/checkpoints/session-002 broken/train/dog/1.png", "1.png"),
        ("predict run/checkpoints/session-002 new-classes --out file.txt/named.csv", "named.csv"),
        ("export run out.safetensors", "not a saved learner"),
        ("predict run/checkpoints/session-002 new-classes --out new-classes/ant/0.png", "is an input"),
        ("predict run/checkpoints/session-002 new-classes --revision main", "--revision is for models of the Hub"),
        ("eval run/checkpoints/session-002 shapes --json run/checkpoints/session-002/cskopt.json", "is an input"),
        ("export run/checkpoints/session-002 run/checkpoints/session-002/model.safetensors", "is an input"),
        ("export run/checkpoints/session-002 out.pt", "out.pt"),
        ("export run/checkpoints/session-002 out.safetensors --layout odd", "--layout"),
        ("demo --out file.txt", "file.txt"),
        ("profile --model compact --image-size 16 --out file.txt", "file.txt"),
    ],
)
def test_mistakes_give_one_line_and_code_2_and_leave_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: str, message: str
) -> None:
    monkeypatch.chdir(place)
    (place / "empty").mkdir(exist_ok=True)
    (place / "file.txt").write_text("not a folder")
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for index in range(2):
                write_image(place / "broken" / part / name / f"{index}.png", np.zeros((1, 1, 3), np.float32))
    (place / "broken" / "train" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = sorted(place.rglob("*"))
    assert call(shlex.split(arguments)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert "Traceback" not in error
    assert sorted(place.rglob("*")) == before
