"""The command line end to end, every verb, every example, every mistake."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pfrforgery import demo as demonstration
from pfrforgery.cli import app
from pfrforgery.models.networks import TwoBranchDetector
from tenfold.cli import examples_of, run
from tenfold.data import to_tensor
from tenfold.images import list_images, write_image


@dataclass(frozen=True)
class Answer:
    """What a command line left behind."""

    returncode: int
    stdout: str
    stderr: str


def pfrforgery(place: Path, *arguments: str) -> Answer:
    """Run the command line in this process: what takes time is starting one."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(app, arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the examples have run in order: faces, a partition, two runs, pictures."""
    root = tmp_path_factory.mktemp("pfrforgery")
    examples = examples_of(app)
    for verb in ("synth", "partition", "simulate"):
        for example in examples[verb]:
            answer = pfrforgery(root, *example.split()[1:])
            assert answer.returncode == 0, f"{example}\n{answer.stderr}"
            assert "->" in answer.stdout
    shutil.copytree(root / "faces" / "0-smooth" / "test", root / "photos")
    return root


def test_every_example_of_the_help_runs_as_printed(place: Path) -> None:
    examples = examples_of(app)
    for verb in ("eval", "predict", "export"):
        for example in examples[verb]:
            answer = pfrforgery(place, *example.split()[1:])
            assert answer.returncode == 0, f"{example}\n{answer.stderr}"
            assert answer.stdout.strip()
    assert set(examples) == {"synth", "partition", "simulate", "eval", "predict", "export", "demo", "info"}
    cross = json.loads((place / "cross.json").read_text())
    assert len(cross["measured"]) == 25
    lines = [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(list_images(place / "photos"))
    for line in lines:
        low, high = sorted((line["p_shared"], line["p_personal"]))
        assert low - 2e-6 <= line["p_fake"] <= high + 2e-6


def test_a_run_is_a_folder_with_everything_in_it(place: Path) -> None:
    folder = place / "runs" / "fedpr"
    result = json.loads((folder / "result.json").read_text())
    assert result["rounds"] == 3
    assert set(result["clients"]) == set("01234")
    assert result["rejected"] == []
    assert result["bytes per round"]["up"] == result["bytes per round"]["down"] > 0
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3]
    assert log[-1]["auc/client 2"] == pytest.approx(result["clients"]["2"]["auc"])
    assert (folder / "curves.png").stat().st_size > 5000
    mine = json.loads((place / "runs" / "mine" / "result.json").read_text())
    assert mine["algorithm"] == "fedavg"


def test_eval_repeats_what_the_run_measured(place: Path) -> None:
    answer = pfrforgery(place, "eval", "runs/fedpr", "-o", "own.json")
    assert answer.returncode == 0, answer.stderr
    result = json.loads((place / "runs" / "fedpr" / "result.json").read_text())
    for each in json.loads((place / "own.json").read_text())["measured"]:
        assert each["auc"] == pytest.approx(result["clients"][str(each["client"])]["auc"], abs=1e-6)
    for protocol, tests in (("unseen", 25), ("robust", 35)):
        answer = pfrforgery(place, "eval", "runs/fedpr", "--protocol", protocol)
        assert f"{tests} tests" in answer.stdout, answer.stderr


def test_an_exported_detector_predicts_as_the_run_does(place: Path) -> None:
    if not (place / "detector0").exists():
        pfrforgery(place, "export", "runs/fedpr", "--client", "0", "--out", "detector0")
    model = TwoBranchDetector.from_pretrained(place / "detector0")
    answer = pfrforgery(place, "predict", "runs/fedpr", "photos", "--client", "0")
    for line in answer.stdout.splitlines():
        said = json.loads(line)
        own = float(model.predict_proba(to_tensor(place / said["path"])[None])[0])
        assert own == pytest.approx(said["p_fake"], abs=2e-6)


def test_a_damaged_picture_of_a_folder_is_named_and_passed_over(place: Path) -> None:
    shutil.copytree(place / "photos", place / "mixed")
    (place / "mixed" / "damaged.png").write_bytes(b"no picture")
    answer = pfrforgery(place, "predict", "runs/fedpr", "mixed", "--client", "0", "-o", "mixed.jsonl")
    assert answer.returncode == 3, answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert "damaged.png" in answer.stderr
    whole = pfrforgery(place, "predict", "runs/fedpr", "photos", "--client", "0")
    assert (place / "mixed.jsonl").read_text().replace("mixed/", "photos/") == whole.stdout
    over = pfrforgery(place, "predict", "runs/fedpr", "mixed", "--client", "0", "-o", "mixed/damaged.png")
    assert (over.returncode, (place / "mixed" / "damaged.png").read_bytes()) == (2, b"no picture")


def test_a_finished_run_is_resumed_to_itself(place: Path) -> None:
    before = (place / "runs" / "fedpr" / "result.json").read_bytes()
    answer = pfrforgery(place, "simulate", "--out", "runs/fedpr", "--preset", "tiny", "--resume")
    assert answer.returncode == 0, answer.stderr
    assert (place / "runs" / "fedpr" / "result.json").read_bytes() == before


def spoilt_results(place: Path) -> None:
    """Copies of a finished run, each with a `result.json` that no run writes."""
    whole = json.loads((place / "runs" / "fedpr" / "result.json").read_text())
    contents = {
        "deep": "[" * 100_000,
        "list": "[]",
        "types": json.dumps(dict.fromkeys(whole, "x")),
        "another": json.dumps(whole | {"rounds": 99}),
        "inside": json.dumps(whole | {"clients": {"0": 5}}),
    }
    for name, content in contents.items():
        shutil.copytree(place / "runs" / "fedpr", place / f"result-{name}")
        (place / f"result-{name}" / "result.json").write_text(content)


def mistakes(place: Path) -> list[tuple[tuple[str, ...], str]]:
    """A command line that cannot succeed, and what its one line must name."""
    (place / "empty").mkdir()
    (place / "file").write_text("")
    (place / "notes.json").write_text('{"a": 1}')
    (place / "deep.json").write_text("[" * 100_000)
    whole = (place / "photos" / "real").iterdir().__next__().read_bytes()
    for name, content in (("truncated", whole[: len(whole) // 2]), ("words", b"no picture")):
        (place / name).mkdir()
        (place / name / "x.png").write_bytes(content)
    write_image(place / "pixel" / "site" / "real" / "x.png", np.zeros((1, 1, 3), np.float32))
    (place / "other").mkdir()
    (place / "other" / "config.toml").write_text('detector = "xception"\n')
    broken = place / "broken"
    shutil.copytree(place / "runs" / "fedpr", broken)
    shutil.copy(place / "runs" / "mine" / "shared.safetensors", broken / "shared.safetensors")
    spoilt_results(place)
    shutil.copy(place / "clients.csv", place / "images.csv")
    (place / "notes.csv").write_text("mine\n")
    return [
        (("simulate", "--out", "r1", "--preset", "nope"), "nope"),
        (("simulate", "--out", "r1", "--algorithm", "fedsgd"), "fedsgd"),
        (("simulate", "--out", "r1", "--data", "nowhere.json"), "nowhere.json"),
        (("simulate", "--out", "r1", "--data", "notes.json"), "not a partition"),
        (("simulate", "--out", "r1", "--data", "faces"), "make clients of it"),
        (("simulate", "--out", "r1", "--data", "clients.json", "--clients", "9"), "has 2"),
        (("simulate", "--out", "r1", "--rounds", "0"), "0 is not a whole number from 1"),
        (("simulate", "--out", "r1", "--routing", "plain"), "alpha"),
        (("simulate", "--out", "r1", "--backbone", "resnet7"), "resnet7"),
        (("simulate", "--out", "r1", "--pretrained", "nowhere.pth"), "nowhere.pth"),
        (("simulate", "--out", "r1", "--image-size", "2"), "split too deep"),
        (("simulate", "--out", "r1", "--device", "cuda:9"), "cuda:9"),
        (("simulate", "--out", "file/run"), "file"),
        (("simulate", "--out", "runs/fedpr"), "--resume"),
        (("simulate", "--out", "photos"), "holds no run"),
        (("eval", "nowhere"), "nowhere"),
        (("eval", "other"), "other"),
        (("eval", "broken"), "another configuration"),
        (("eval", "runs/fedpr", "-o", "file/x.json"), "file"),
        (("predict", "runs/fedpr", "nowhere", "--client", "0"), "nowhere"),
        (("predict", "runs/fedpr", "empty", "--client", "0"), "no picture"),
        (("predict", "runs/fedpr", "truncated", "--client", "0"), "x.png"),
        (("predict", "runs/fedpr", "words", "--client", "0", "-o", "never.jsonl"), "x.png"),
        (("predict", "runs/fedpr", "photos", "--client", "7"), "clients 0 to 4"),
        (("export", "runs/fedpr", "--client", "0", "--out", "photos"), "photos"),
        *(
            (("predict", f"result-{name}", "photos", "--client", "0"), "result.json")
            for name in ("deep", "list", "types", "another")
        ),
        (("export", "result-types", "--client", "0", "--out", "d"), "result.json"),
        (("simulate", "--out", "result-inside", "--preset", "tiny", "--resume"), "result.json: is damaged"),
        (("eval", "runs/fedpr", "-o", "runs/fedpr/shared.safetensors"), "belongs to the run"),
        (("predict", "runs/fedpr", "photos", "--client", "0", "-o", "runs/fedpr/personal/x"), "belongs to the run"),
        (("predict", "runs/fedpr", "photos", "--client", "-1"), "--client"),
        (("partition", "images.csv", "-o", "images.csv"), "the manifest's place"),
        (("partition", "faces", "-o", "p5.csv"), "the manifest's place"),
        (("partition", "faces", "-o", "notes.json"), "is no partition"),
        (("partition", "faces", "-o", "notes.partition"), "notes.csv: exists and is no manifest"),
        (("simulate", "--out", "r2", "--backbone", "timm:hf-hub:owner/name"), "no such model"),
        (("export", "empty", "--client", "0", "--out", "d"), "holds no run"),
        (("partition", "nowhere"), "nowhere"),
        (("partition", "faces", "--seed", "-1", "-o", "p0.json"), "--seed"),
        (("synth", "never", "--size", "-1"), "--size"),
        (("simulate", "--out", "r2", "--data", "deep.json"), "deep.json"),
        (("simulate", "--out", "r2", "--seed", "1" + "0" * 20), "--seed"),
        (("partition", "empty", "-o", "p1.json"), "empty"),
        (("partition", "pixel", "-o", "p2.json"), "training images"),
        (("partition", "ffpp:faces", "-o", "p3.json"), "layout ffpp"),
        (("partition", "faces", "--by", "dirichlet", "--concentration", "-1", "-o", "p4.json"), "concentration"),
        (("synth", "photos"), "photos"),
        (("demo", "--out", "file"), "file"),
    ]


def test_every_verb_answers_a_mistake_in_one_line(place: Path) -> None:
    for arguments, words in mistakes(place):
        before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
        answer = pfrforgery(place, *arguments)
        assert answer.returncode == 2, f"{arguments}\n{answer.stdout}{answer.stderr}"
        assert len(answer.stderr.splitlines()) == 1, answer.stderr
        assert words in answer.stderr, answer.stderr
        after = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
        if "--resume" not in arguments:  # which sweeps the log
            assert after == before, arguments
        assert after.keys() == before.keys(), arguments


def test_an_unreadable_image_at_every_client_ends_the_run_and_is_named(place: Path) -> None:
    shutil.copytree(place / "faces", place / "spoilt")
    for path in list_images(place / "spoilt"):
        if "train" in path.parts:
            path.write_bytes(path.read_bytes()[:60])
    assert pfrforgery(place, "partition", "spoilt", "-o", "spoilt.json").returncode == 0
    answer = pfrforgery(place, "simulate", "--out", "runs/spoilt", "--preset", "tiny", "--data", "spoilt.json")
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert "damaged or truncated" in answer.stderr
    assert not (place / "runs" / "spoilt" / "result.json").exists()


def test_the_demo_shows_a_table_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawing the faces of three algorithms is what takes time; twenty of a client are as good as three hundred.
    small = replace(demonstration.RECIPE, train_images=20, test_images=20)
    monkeypatch.setattr(demonstration, "RECIPE", small)
    answer = pfrforgery(tmp_path, "demo", "--out", "shown", "--rounds", "1")
    assert answer.returncode == 0, answer.stderr
    assert "fedpr" in answer.stdout
    assert {path.name for path in (tmp_path / "shown").iterdir()} == {"faces.png", "curves.png"}


def test_help_versions_and_unknown_verbs_load_no_library_that_computes() -> None:
    code = (
        "import sys\n"
        "from tenfold.cli import examples_of, run\n"
        "from pfrforgery.cli import app\n"
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
