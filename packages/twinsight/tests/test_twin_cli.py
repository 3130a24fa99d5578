"""The command line end to end, its examples, and what it says to bad input."""

import contextlib
import csv
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tenfold.cli import examples_of, run
from twinsight import demo as demonstration
from twinsight.cli import app

FAST = ("--rounds", "2", "--clients-per-round", "3")


def call(*arguments: str) -> int:
    """The command line in this process: importing torch anew costs seconds."""
    with pytest.raises(SystemExit) as left:
        run(app, list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run made by the command, and folders of pictures, one of them with damage."""
    root = tmp_path_factory.mktemp("cli")
    shown = io.StringIO()
    with contextlib.chdir(root), contextlib.redirect_stdout(shown):
        assert call("simulate", "--out", "run", "--preset", "tiny", *FAST) == 0
    assert "twin-sight" in shown.getvalue()
    assert "best round: top-1 " in shown.getvalue()
    assert "at a batch of 32 the constraint weighs 1/30 of what it weighs in the official code" in shown.getvalue()
    generator = np.random.default_rng(0)
    for name in "0123456789":
        (root / "pictures" / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(generator.integers(0, 255, (20, 31, 3), dtype=np.uint8)).save(
                root / "pictures" / name / f"{index}.png"
            )
    (root / "photos").mkdir()
    Image.new("L", (40, 30), 90).save(root / "photos/first.png")
    Image.new("RGBA", (1, 1), (9, 9, 9, 9)).save(root / "photos/dot.png")
    Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16)).save(root / "photos/deep.png")
    (root / "cut").mkdir()
    (root / "cut/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (root / "empty").mkdir()
    (root / "other").mkdir()
    for name in "ab":
        (root / "other" / name).mkdir()
        shutil.copy(root / "photos/first.png", root / "other" / name / "x.png")
    return root


def test_a_run_folder_holds_what_the_help_promises(workplace: Path) -> None:
    names = {path.name for path in (workplace / "run").iterdir()}
    assert {"config.toml", "metrics.jsonl", "result.json", "accuracy.png", "partition.png", "model"} <= names
    assert {path.name for path in (workplace / "run/model").iterdir()} >= {"config.json", "model.safetensors"}


def test_eval_and_predict_agree_with_the_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    assert call("eval", "run", "--out", "scores.json") == 0
    scores = json.loads(Path("scores.json").read_text())
    assert scores["accuracy"] == pytest.approx(json.loads(Path("run/result.json").read_text())["last"])
    assert sum(count for count, _ in scores["per_class"].values()) == scores["pictures"] == 400
    assert call("predict", "run", "photos", "--out", "named.csv") == 0
    rows = list(csv.DictReader(Path("named.csv").read_text().splitlines()))
    assert [Path(row["picture"]).name for row in rows] == ["deep.png", "dot.png", "first.png"]
    assert all(row["class"] in "0123456789" and 0 < float(row["probability"]) <= 1 for row in rows)
    assert call("predict", "run", "photos/first.png") == 0
    assert "photos/first.png" in capsys.readouterr().out


def test_a_damaged_picture_of_a_folder_is_named_and_passed_over(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workplace / "photos", "mixed")
    Path("mixed/damaged.png").write_bytes(b"no picture")
    capsys.readouterr()
    assert call("predict", str(workplace / "run"), "mixed", "--out", "named.csv") == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "damaged.png" in said[0]
    rows = list(csv.DictReader(Path("named.csv").read_text().splitlines()))
    assert [Path(row["picture"]).name for row in rows] == ["deep.png", "dot.png", "first.png"]
    assert call("predict", str(workplace / "run"), "mixed", "--out", "mixed/damaged.png") == 2
    assert Path("mixed/damaged.png").read_bytes() == b"no picture"


def test_a_partition_is_written_and_drawn(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    assert call("partition", "--plot", "p.png", "--out", "p.json", "--seed", "3") == 0
    split = json.loads(Path("p.json").read_text())
    assert len(split["labelled"]) == 4
    assert sorted(index for client in split["clients"] for index in client) == list(range(1397))
    assert Image.open("p.png").size[0] > 300
    assert "labelled" in capsys.readouterr().out


def test_a_federation_over_a_folder(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    options = ["--data", "folder", "--root", "pictures", "--image-size", "16", "--clients", "2", "--labelled", "1"]
    options += [
        "--clients-per-round",
        "2",
        "--partition",
        "iid",
        "--min-client-size",
        "4",
        "--min-labelled-per-class",
        "0",
    ]
    options += ["--preset", "tiny", "--rounds", "1", "--batch-size", "8"]
    assert call("simulate", "--out", "folder-run", *options) == 0
    assert json.loads(Path("folder-run/model/config.json").read_text())["classes"] == list("0123456789")


def test_the_demo_shows_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Two of the four methods: each trains alone and fills a row.
    monkeypatch.setattr(demonstration, "ARMS", ("lower-bound", "twin-sight"))
    assert call("demo", "--rounds", "1") == 0
    assert {path.name for path in Path("twinsight-demo").iterdir()} == {"accuracy.png", "partition.png", "views.png"}
    assert "lower-bound" in capsys.readouterr().out


def test_examples_in_the_help_run_as_printed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    for verb, lines in examples_of(app).items():
        for line in lines:
            arguments = shlex.split(line)[1:]
            if verb == "demo" or arguments[:3] == ["simulate", "--out", "run"]:
                continue  # run above
            assert call(*arguments) == 0, (line, capsys.readouterr().err)
    # The preset reaches every verb that takes one.
    assert 'encoder = "small"' in (workplace / "arms/twins-apart/config.toml").read_text()


BAD = [
    (("simulate", "--out", "run", "--preset", "tiny"), "already holds a run"),
    (("simulate", "--out", "run", "--preset", "tiny", "--seed", "7", "--resume"), "another configuration"),
    (("simulate", "--out", "x", "--preset", "huge"), "'huge'"),
    (("simulate", "--out", "photos", "--preset", "tiny"), "holds no run"),
    (("simulate", "--out", "/proc/x", "--preset", "tiny"), "/proc"),
    (("simulate", "--out", "x", "--preset", "tiny", "--alpha", "0"), "--alpha. 0 is not above 0"),
    (("simulate", "--out", "x", "--preset", "tiny", "--clients", "2000", "--clients-per-round", "5"), "more than the"),
    (("simulate", "--out", "x", "--preset", "tiny", "--data", "folder", "--root", "gone"), "no such folder"),
    (("simulate", "--out", "x", "--preset", "tiny", "--data", "folder", "--root", "empty"), "one folder per class"),
    (("simulate", "--out", "x", "--preset", "tiny", "--data", "cifar10"), "needs --root"),
    (("simulate", "--out", "x", "--preset", "tiny", "--data", "cifar10", "--root", "empty"), "is not there"),
    (("simulate", "--out", "x", "--preset", "tiny", "--device", "cuda:9"), "cuda:9"),
    (("simulate", "--out", "x", "--preset", "tiny", "--trim", "0.5"), "--trim 0.5: must be above 0 and below 0.5"),
    (("simulate", "--out", "x", "--preset", "tiny", "--aggregation", "mode"), "mode"),
    (("partition", "--min-client-size", "200"), "no dirichlet partition"),
    (("partition", "--plot", "/proc/p.png"), "cannot write"),
    (("eval", "gone"), "no such folder"),
    (("eval", "photos"), "holds no model"),
    (("eval", "run", "--data", "other"), "the model knows"),
    (("eval", "run", "--data", "gone"), "no such folder"),
    (("eval", "run", "--out", "/proc/s.json"), "cannot write"),
    (("predict", "run", "gone"), "no such file"),
    (("predict", "run", "empty"), "holds no picture"),
    (("predict", "run", "cut"), "broken.jpg"),
    (("predict", "run", "photos", "--out", "/proc/n.csv"), "cannot write"),
    (("predict", "foreign", "photos"), "not a model of twinsight"),
    (("predict", "list", "photos"), "holds a JSON list"),
    (("predict", "worded", "photos"), "image_size"),
    (("predict", "vast", "photos"), "at most 4096"),
    (("predict", "unnamed", "photos"), "2 names for 10 classes"),
    (("predict", "half", "photos"), "1 missing, first classifier.bias"),
    (("eval", "nan"), "classifier.bias holds numbers that are not finite"),
    (("eval", "scalar"), "holds no classifier of 10 classes"),
    (("eval", "one"), "another name here"),
    (("eval", "run", "--out", "run/model/config.json"), "is an input"),
    (("eval", "run", "--data", "pictures", "--out", "pictures/3/1.png"), "is an input"),
    (("predict", "run", "photos", "--out", "photos/first.png"), "is an input"),
    (("predict", "run", "photos", "--out", "photos"), "is a folder"),
    (("partition", "--data", "folder", "--root", "pictures", "--plot", "pictures/3/1.png"), "is an input"),
    (("simulate", "--out", "x", "--preset", "tiny", "--seed", "-1"), "--seed"),
    (
        ("compare", "lower-bound", "--out", "x", "--preset", "tiny", "--momentum", "nan"),
        "--momentum. nan is not a finite",
    ),
    (("compare", "lower-bound", "--out", "x", "--preset", "tiny", "--weight-decay", "-1"), "is not 0 or above"),
    (("compare", "lower-bound", "--out", "x", "--preset", "tiny", "--target", "101"), "at most 100"),
    (("compare", "--out", "x", "--preset", "tiny"), "requires an argument"),
    (("compare", "nonsense", "--out", "x", "--preset", "tiny"), "no such arm"),
    # What comes first is not run before the rest is known to be sound.
    (("compare", "lower-bound", "nonsense", "--out", "x", "--preset", "tiny"), "no such arm"),
    (("compare", "lower-bound", "lower-bound", "--out", "x", "--preset", "tiny"), "named twice"),
    (("demo", "--out", "photos/first.png/x"), "first.png"),
]


def test_bad_input_is_one_line_and_leaves_nothing(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "foreign").mkdir()
    shutil.copy(workplace / "run/model/config.json", workplace / "foreign/config.json")
    (workplace / "foreign/model.safetensors").write_bytes(b"\0" * 64)
    shutil.copytree(workplace / "run/model", workplace / "list")
    (workplace / "list/config.json").write_text("[]")
    described = json.loads((workplace / "run/model/config.json").read_text())
    told = {"worded": {"image_size": "x"}, "vast": {"image_size": 10**9}, "unnamed": {"classes": ["a", "b"]}}
    for name, change in (told | {"one": {"kind": "shared"}}).items():
        shutil.copytree(workplace / "run/model", workplace / name)
        (workplace / name / "config.json").write_text(json.dumps(described | change))
    weights = load_file(workplace / "run/model/model.safetensors")
    bias = {"classifier.bias": torch.full((10,), torch.nan)}
    rest = {name: each for name, each in weights.items() if name not in bias}
    for name, held in (("half", rest), ("nan", rest | bias), ("scalar", {"classifier.weight": torch.ones(())})):
        shutil.copytree(workplace / "run/model", workplace / name)
        save_file(held, workplace / name / "model.safetensors")
    capsys.readouterr()
    before = set(workplace.rglob("*"))
    for arguments, says in BAD:
        assert call(*arguments) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert says in error, (arguments, error)
        assert error.count("\n") == 0, (arguments, error)
        assert set(workplace.rglob("*")) == before, arguments


def test_ctrl_c_leaves_a_run_that_goes_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import twinsight.training.loop as federation

    monkeypatch.chdir(workplace)
    original = federation.save_checkpoint

    def interrupt(*arguments: object) -> None:
        original(*arguments)  # ty: ignore[invalid-argument-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(federation, "save_checkpoint", interrupt)
        assert call("simulate", "--out", "again", "--preset", "tiny", *FAST) == 130
    assert "interrupted" in capsys.readouterr().err
    assert call("simulate", "--out", "again", "--preset", "tiny", *FAST, "--resume") == 0
    assert Path("again/result.json").read_text() == Path("run/result.json").read_text()


def test_a_run_whose_pictures_were_not_drawn_is_resumed_to_its_end(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workplace / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for name in ("accuracy.png", "partition.png"):
        Path("run", name).unlink()
    assert call("simulate", "--out", "run", "--preset", "tiny", *FAST, "--resume") == 0
    for name in ("accuracy.png", "partition.png", "result.json", "metrics.jsonl"):
        assert Path("run", name).read_bytes() == (workplace / "run" / name).read_bytes(), name


def test_help_versions_and_unknown_verbs_load_no_library_that_computes() -> None:
    code = (
        "import sys\n"
        "from tenfold.cli import examples_of, run\n"
        "from twinsight.cli import app\n"
        "heavy = {'torch', 'torchvision', 'timm', 'flwr', 'sklearn', 'scipy', 'matplotlib', 'datasets', 'diffusers', 'transformers'}\n"
        "for line in (['--help'], ['--version'], ['nonsense'], *([verb, '--help'] for verb in examples_of(app))):\n"
        "    try:\n"
        "        run(app, line)\n"
        "    except SystemExit as left:\n"
        "        assert left.code == (2 if line == ['nonsense'] else 0), line\n"
        "    assert not heavy & sys.modules.keys(), (line, heavy & sys.modules.keys())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "simulate" in done.stdout
