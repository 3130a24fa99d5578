"""The command line end to end, every verb, every example, every mistake."""

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fairfd.cli import app
from fairfd.data.synthetic.datasets import write_drawn_faces
from tenfold.cli import examples_of, run
from tenfold.images import write_image

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}


@dataclass(frozen=True)
class Answer:
    """What a command line left behind."""

    returncode: int
    stdout: str
    stderr: str


def fairfd(place: Path, *arguments: str) -> Answer:
    """Run the command line in this process: what takes time is starting one."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(app, arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def process(place: Path, *arguments: str) -> Answer:
    """Run the command line as a person does."""
    command = [sys.executable, "-m", "fairfd", *arguments]
    done = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def score_rows(people: int = 24, groups: str = "AB", detector: str = "net") -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": f"{approach}/{person}.png",
            "identity": f"p{person}",
            "group": groups[person % len(groups)],
            "approach": approach,
            "label": int(approach != "real"),
            "score": round(float(np.clip(rng.normal(0.25 + 0.5 * (approach != "real"), 0.3), 0, 1)), 4),
            "detector": detector,
        }
        for approach in ("real", "swap", "edit")
        for person in range(people)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the examples name: faces, photographs, scores, the authors' score files."""
    root = tmp_path_factory.mktemp("fairfd")
    write_drawn_faces(root / "faces", persons=7, images=1, size=64)
    pictures = sorted((root / "faces").rglob("*.png"))
    (root / "photos").mkdir()
    people = []
    for number, path in enumerate(pictures[:16]):
        shutil.copy(path, root / "photos" / f"{number}.png")
        people.append({"image": f"{number}.png", "group": path.parts[-3], "identity": path.parts[-2]})
    write_csv(root / "people.csv", people)
    write_csv(root / "scores.csv", score_rows())
    for name in ("data_Asian", "data_Indian", "SimSwap_Asian", "SimSwap_Indian"):
        folder = root / "saved_confidences" / "xception"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", np.random.default_rng(1).random(30))
    return root


def test_from_faces_to_a_page_by_the_examples_of_the_help(place: Path) -> None:
    examples = examples_of(app)
    order = (
        "scan",
        "build",
        "approaches",
        "verify",
        "train",
        "score",
        "prune",
        "metrics",
        "report",
        "thresholds",
        "import-official",
    )
    # `crop` and the second example of `build` look for faces: drawn ones are none to a face finder trained on photographs.
    skipped = {"fairfd scan photos/", "fairfd build photos/"}
    for name in order:
        for example in examples[name]:
            if any(example.startswith(each) for each in skipped):
                continue
            # `build` has worker processes of its own.
            start = process if name == "build" else fairfd
            result = start(place, *example.split()[1:])
            assert result.returncode == 0, f"{example}\n{result.stderr}"
            assert result.stdout.strip()
    assert set(examples) - set(order) == {"crop", "demo", "info"}
    mine = fairfd(place, "metrics", "test-scores.csv", "--n-boot", "0", "--n-perm", "0", "-o", "mine.json")
    assert mine.returncode == 0, mine.stderr
    assert json.loads((place / "mine.json").read_text())["audits"][0]["data"]["approaches"] == ["real", "self_blend"]
    audit = json.loads((place / "metrics.json").read_text())["audits"][0]
    assert audit["data"]["groups"] == ["A", "B"]
    assert "<svg" in (place / "report.html").read_text()
    assert (place / "pruned" / "model.safetensors").exists()
    # What a person would lose: outputs are never inputs, and what was passed over is said.
    for arguments in (
        ("metrics", "scores.csv", "-o", "scores.csv"),
        ("metrics", "scores.csv", "-o", "m.json", "--html", "scores.csv"),
        ("report", "metrics.json", "-o", "metrics.json"),
        ("score", "forged/manifest.csv", "--detector", "runs/spsl", "-o", "forged/manifest.csv"),
        ("scan", "photos", "--layout", "plain", "--demographics", "people.csv", "-o", "people.csv"),
    ):
        refused = fairfd(place, *arguments)
        assert refused.returncode == 2
        assert "is an input" in refused.stderr, refused.stderr
    lines = (place / "forged/manifest.csv").read_text().splitlines()
    image = lines[1].split(",")[0]
    (place / "forged" / image).write_bytes(b"broken")
    score = ("score", "forged/manifest.csv", "--detector", "runs/spsl", "-o", "some.csv")
    assert fairfd(place, *score).returncode == 2
    passed = fairfd(place, *score, "--skip-bad")
    assert passed.returncode == 3
    assert "fairfd: skipped:" in passed.stderr
    assert image in passed.stderr


def test_an_unlabelled_folder_is_labelled_by_a_table_only(place: Path) -> None:
    labelled = fairfd(place, "scan", "photos", "--layout", "plain", "--demographics", "people.csv", "-o", "plain.csv")
    assert labelled.returncode == 0, labelled.stderr
    assert "16 images" in labelled.stdout
    guessed = fairfd(place, "scan", "photos", "--layout", "plain", "-o", "none.csv")
    assert guessed.returncode == 2
    assert "never guessed" in guessed.stderr
    assert not (place / "none.csv").exists()


def test_a_broken_limit_leaves_with_three(place: Path) -> None:
    quick = ("metrics", "scores.csv", "--n-boot", "0", "--n-perm", "0", "-o", "gate.json")
    assert fairfd(place, *quick, "--max", "aadpd=1").returncode == 0
    broken = fairfd(place, *quick, "--max", "aadpd=0.0001", "--max", "paper.dpd=1")
    assert broken.returncode == 3
    assert "limit broken: net: official.AADPD.value" in broken.stdout
    assert (place / "gate.json").exists()


MISTAKES = {
    "missing file": ("none.csv", None, "none.csv"),
    "missing column": (
        "a.csv",
        lambda rows: [{key: value for key, value in row.items() if key != "score"} for row in rows],
        "--columns score=NAME",
    ),
    "NaN score": ("b.csv", lambda rows: [{**rows[0], "score": "nan"}, *rows[1:]], "row"),
    "score outside [0, 1]": ("c.csv", lambda rows: [{**rows[0], "score": 3.5}, *rows[1:]], "--logits"),
    "label at odds with the approach": ("d.csv", lambda rows: [{**rows[0], "label": 1}, *rows[1:]], "row"),
    "an empty cell": (
        "e.csv",
        lambda rows: [row for row in rows if (row["approach"], row["group"]) != ("swap", "B")],
        "swap",
    ),
    "a person in two groups": ("f.csv", lambda rows: [{**rows[0], "group": "B"}, *rows[1:]], "p0"),
    "one group": ("h.csv", lambda rows: [{**row, "group": "A"} for row in rows], "one group A"),
    "an image twice": ("g.csv", lambda rows: [*rows, rows[0]], "--allow-duplicates"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_score_file_is_one_line(place: Path, mistake: str) -> None:
    name, change, words = MISTAKES[mistake]
    if change:
        write_csv(place / name, change(score_rows()))
    # One of them as a person meets it.
    start = process if mistake == "NaN score" else fairfd
    result = start(place, "metrics", name, "--n-boot", "0", "--n-perm", "0", "-o", "out/never.json")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert result.stdout == ""
    assert not (place / "out").exists()


def broken_inputs(place: Path) -> list[tuple[tuple[str, ...], str]]:
    """A command line that cannot succeed, and what its one line must name."""
    (place / "empty").mkdir(exist_ok=True)
    (place / "truncated").mkdir(exist_ok=True)
    write_image(place / "truncated" / "x.png", np.random.default_rng(0).random((64, 64, 3)).astype(np.float32))
    whole = (place / "truncated" / "x.png").read_bytes()
    (place / "truncated" / "x.png").write_bytes(whole[: len(whole) // 2])
    (place / "faceless").mkdir(exist_ok=True)
    write_image(place / "faceless" / "x.png", np.full((80, 80, 3), 0.5, np.float32))
    (place / "pixel").mkdir(exist_ok=True)
    (place / "jpeg").mkdir(exist_ok=True)
    write_image(place / "jpeg" / "x.jpg", np.random.default_rng(0).random((64, 64, 3)).astype(np.float32))
    jpeg = (place / "jpeg" / "x.jpg").read_bytes()
    (place / "jpeg" / "x.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    write_image(place / "pixel" / "x.png", np.zeros((1, 1, 3), np.float32))
    (place / "notes.json").write_text('{"a": 1}')
    (place / "other").mkdir(exist_ok=True)
    (place / "other" / "config.json").write_text('{"detector": "resnet"}')
    (place / "file").write_text("")
    return [
        (("scan", "nowhere"), "nowhere"),
        (("scan", "empty"), "empty"),
        (("crop", "faceless", "c1"), "no face"),
        (("crop", "truncated", "c2"), "x.png"),
        (("crop", "jpeg", "c5"), "x.jpg"),
        (("crop", "pixel", "c3"), "no face"),
        (("crop", "empty", "c4"), "empty"),
        (("build", "nowhere.csv", "b1"), "nowhere.csv"),
        (("build", "empty", "b2"), "empty"),
        (("build", "faces", "b3", "--approach", "teleport"), "teleport"),
        (("build", "faces", "b4", "--ratios", "half"), "--ratios half"),
        (("build", "faces", "file/b5", "--size", "64"), "file"),
        (("verify", "nowhere.csv"), "nowhere.csv"),
        (("train", "nowhere.csv", "--detector", "small-rgb", "--out", "r1"), "nowhere.csv"),
        (("report", "notes.json"), "notes.json"),
        (("report", "nowhere.json"), "nowhere.json"),
        (("thresholds", "nowhere.csv"), "nowhere.csv"),
        (("import-official", "empty"), "empty"),
        (("metrics", "scores.csv", "--max", "aadpq=.1"), "aadpd"),
        (("metrics", "scores.csv", "--n-boot", "20", "--n-perm", "0", "-o", "file/x.json"), "file"),
    ]


def test_every_verb_answers_a_mistake_in_one_line(place: Path) -> None:
    for arguments, words in broken_inputs(place):
        before = {path for path in place.rglob("*") if path.is_file()}
        result = fairfd(place, *arguments)
        assert result.returncode == 2, f"{arguments}\n{result.stdout}{result.stderr}"
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert words in result.stderr, result.stderr
        assert {path for path in place.rglob("*") if path.is_file()} == before


def test_wrong_detectors_are_named(place: Path) -> None:
    rows = [{"image": "faces/A/x.png", "identity": "p", "group": "A", "approach": "real", "label": 0, "split": "test"}]
    write_csv(place / "one-image.csv", rows)
    configurations = {
        "other": '{"detector": "resnet"}',
        "list": "[]",
        "deep": '{"a":' * 50_000,
        "number": '{"detector": 7}',
        "types": '{"detector": "small", "in_size": "x", "front": 7}',
        "huge": '{"detector": "small", "in_size": 99999999999999, "front": "rgb"}',
        "remote": '{"detector": "timm", "in_size": 32, "model": "hf-hub:a/b"}',
    }
    for name, text in configurations.items():
        (place / name).mkdir(exist_ok=True)
        (place / name / "config.json").write_text(text)
        (place / name / "model.safetensors").write_bytes(b"")
    (place / "empty").mkdir(exist_ok=True)
    for detector, words in (
        ("nothing", "nothing"),
        ("other", "names no detector"),
        ("empty", "holds no detector"),
        ("list", "expected an object"),
        ("deep", "nested too deeply"),
        ("number", "names no detector"),
        ("types", "describes no detector"),
        ("huge", "in_size"),
        ("remote", "no such model"),
    ):
        result = fairfd(place, "score", "one-image.csv", "--detector", detector, "-o", "never.csv")
        assert result.returncode == 2
        assert words in result.stderr
        assert not (place / "never.csv").exists()


def test_a_revision_is_of_the_hub_alone(place: Path) -> None:
    write_csv(
        place / "one-image.csv", [{"image": "x.png", "identity": "p", "group": "A", "approach": "real", "label": 0}]
    )
    for detector, extra, words in (
        ("small-rgb", ("--pretrained", "x"), "of a detector of the Hub"),
        ("hf:photos", (), "is a folder; --revision"),
    ):
        arguments = ("--detector", detector, "--revision", "v1", *extra, "-o", "never.csv")
        result = fairfd(place, "score", "one-image.csv", *arguments)
        assert result.returncode == 2
        assert words in result.stderr
