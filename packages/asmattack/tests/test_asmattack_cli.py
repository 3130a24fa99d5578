"""The command line end to end: every example as printed, on files as people have them, and one line for each mistake."""

import contextlib
import io
import json
import os
import shlex
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file

from asmattack import MaskGenerator
from asmattack.cli import app
from tenfold.cli import examples_of, run
from tenfold.images import write_image


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str


def call(place: Path, *arguments: str) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(app, arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


OWN = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

def nothing():
    return 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which the examples of the training verbs and the first of eval have run."""
    root = tmp_path_factory.mktemp("asmattack")
    examples = examples_of(app)
    for name in ("train", "harden", "train-generator", "eval"):
        for line in examples[name][:1] if name == "eval" else examples[name]:
            done = call(root, *shlex.split(line)[1:])
            assert done.code == 0, f"{line}\n{done.stderr}"
    (root / "own.py").write_text(OWN)
    rng = np.random.default_rng(0)
    for kind in ("real", "fake"):
        for number in range(3):
            write_image(root / f"crops/{kind}/{number}.png", rng.random((56, 56, 3)).astype(np.float32))
    (root / "crops/fake/broken.png").write_bytes((root / "crops/fake/0.png").read_bytes()[:900])
    return root


def test_every_other_example_runs_as_printed(place: Path) -> None:
    examples = examples_of(app)
    for name in ("eval", "transfer", "attack", "regions", "mask", "check", "compare"):
        for line in examples[name][1:] if name == "eval" else examples[name]:
            done = call(place, *shlex.split(line)[1:])
            assert done.code == 0, f"{line}\n{done.stderr}"
            assert done.stdout.strip()
    # `demo` trains to the end: the tests across packages run it.
    assert set(examples) - {"info", "demo"} == {
        *("train", "harden", "train-generator", "eval", "transfer", "attack", "regions", "mask", "check", "compare")
    }
    rows = json.loads((place / "report/report.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 5 * 3
    assert {row["source"] for row in rows} == {"plain", "hard"}
    assert not any(row["over_budget"] for row in rows)
    found = json.loads((place / "report/report.json").read_text())
    assert set(found["weights"]) == {"plain", "hard"}
    assert len(set(found["weights"].values())) == 2
    assert found["data"]
    posted = json.loads((place / "posted/report.json").read_text())["rows"]
    asked = {(row["source"], row["target"], row["after"]) for row in posted}
    assert asked == {
        ("plain", name, after) for name in ("plain", "hard") for after in ("none", "jpeg:75", "resize:0.5")
    }
    page = (place / "report/report.html").read_text()
    assert page.count("data:image/png") == 6 * 5
    assert "Transfer: pgd, budget, 8/255" in page
    assert "http" not in page
    with Image.open(next((place / "attacked").glob("*.png"))) as picture:
        assert picture.text["asma:adversarial"].startswith("pgd 8/255 budget")
    with Image.open(next((place / "masks").glob("*.png"))) as labels:
        assert np.asarray(labels).max() <= 18


def test_own_detectors_timm_models_and_real_files(place: Path) -> None:
    weights = place / "small.safetensors"
    import timm

    save_file(
        {
            f"module.{key}": value
            for key, value in timm.create_model("mobilenetv3_small_050", num_classes=2).state_dict().items()
        },
        weights,
    )
    done = call(
        place, "eval", "own.py:build", f"timm:mobilenetv3_small_050@{weights}", "runs/plain", "--data", "crops",
        "--out", "mixed", "--policies", "budget", "--attacks", "fgsm", "--generator", "runs/generator",
    )  # fmt: skip
    # A file of the data was passed over: it is named, and the code says so.
    assert done.code == 3, done.stderr
    assert "skipped: crops/fake/broken.png" in done.stderr
    assert len(json.loads((place / "mixed/report.json").read_text())["rows"]) == 9
    assert call(place, "mask", "--data", "crops", "--out", "labels").code == 3
    again = call(place, "attack", "runs/plain", "--data", "crops", "--parser", "masks:labels", "--out", "again")
    # Only the first of two pictures with one name has a map of its own: names are what maps are found by.
    assert again.code == 3, again.stderr
    trained = call(place, "train", "--data", "crops", "--size", "32", "--out", "runs/crops", "--epochs", "1", "--batch-size", "2")  # fmt: skip
    assert trained.code == 3, trained.stderr
    assert "skipped: crops/fake/broken.png" in trained.stderr
    assert call(place, "check", "mixed/report.json", "--max-transfer", "-1").code == 3


def test_a_factory_is_named_again_and_never_taken_from_a_file(place: Path) -> None:
    hardened = call(place, "harden", "own.py:build", "--out", "runs/own", "--preset", "tiny", "--images", "16", "--batch-size", "8", "--epochs", "1", "--steps", "1")  # fmt: skip
    assert hardened.code == 0, hardened.stderr
    attack = ("attack", "runs/own", "--images", "8", "--steps", "1", "--out", "own")
    refused = call(place, *attack)
    assert refused.code == 2
    assert "--factory FILE.py:NAME" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert call(place, *attack, "--factory", "own.py:build").code == 0
    assert call(place, *attack, "--factory", "own.py:nothing").code == 2
    # A stranger's folder names code of its own, in every way that a reference has: none of it runs.
    (place / "payload.py").write_text("from pathlib import Path\n\nPath('executed').touch()\n\ndef build(): ...\n")
    folder = place / "runs/strange"
    folder.mkdir()
    for reference in ("payload.py:build", "payload:build", "runs/strange", "timm:hf-hub:a/b", "hf:a/b", 7):
        (folder / "config.json").write_text(json.dumps({"detector": reference}))
        done = call(place, "attack", "runs/strange", "--images", "8", "--out", "never")
        assert done.code == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1
    (folder / "config.json").unlink()
    assert not (place / "executed").exists()


def test_modules_of_the_current_folder_are_named_by_their_file(place: Path) -> None:
    (place / "lying_here.py").write_text(OWN)
    done = call(place, "attack", "lying_here:build", "--images", "8", "--out", "never")
    assert done.code == 2
    assert "No module named 'lying_here'" in done.stderr


def test_label_maps_are_never_written_over_faces_or_unasked(place: Path) -> None:
    face = place / "crops/real/0.png"
    before = face.read_bytes()
    over = call(place, "mask", "--data", "crops", "--out", "crops", "--overwrite")
    assert over.code == 2
    assert "is an input" in over.stderr
    assert face.read_bytes() == before
    assert call(place, "mask", "--images", "2", "--out", "two").code == 0
    assert "--overwrite" in call(place, "mask", "--images", "2", "--out", "two").stderr
    assert call(place, "mask", "--images", "2", "--out", "two", "--overwrite").code == 0


def test_mistakes_are_one_line_and_leave_nothing(place: Path, monkeypatch) -> None:
    # What is not on disk would be asked of the hub, which takes its time to be out of reach.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("empty", "small", "wide", "broken"):
        for kind in ("real", "fake"):
            (place / name / kind).mkdir(parents=True, exist_ok=True)
    for kind in ("real", "fake"):
        write_image(place / f"small/{kind}/one.png", np.zeros((1, 1, 3), np.float32))
        write_image(place / f"wide/{kind}/wide.png", np.zeros((64, 80, 3), np.float32))
        (place / f"broken/{kind}/x.png").write_bytes(b"no picture")
    (place / "table.csv").write_text("path,label\ncrops/real/0.png,perhaps\n")
    (place / "columns.csv").write_text("file\nx\n")
    (place / "points.csv").write_text("path,label,landmarks\ncrops/real/0.png,real,1 2 3\n")
    (place / "file").write_text("")
    (place / "other").mkdir(exist_ok=True)
    (place / "other/config.json").write_text('{"width": "wide"}')
    (place / "bad.json").write_text("[1]")
    (place / "rows.json").write_text('{"rows": 3}')
    (place / "types.json").write_text('{"rows": [], "seed": "x", "faces": 1}')
    (place / "bad.safetensors").write_bytes(b"no weights")
    swapped = place / "runs/swapped"
    swapped.mkdir(parents=True, exist_ok=True)
    (swapped / "config.json").write_text('{"architecture": "plain"}')
    (swapped / "model.safetensors").write_bytes((place / "runs/residual/model/model.safetensors").read_bytes())
    before = {path for path in place.rglob("*") if path.is_file()}
    good = ("eval", "runs/plain", "--images", "8")
    for arguments, word in (
        (("eval",), "at least one"),
        (("eval", "nowhere"), "no such folder"),
        (("eval", "runs/swapped"), "do not fit"),
        (("eval", "other"), "of no detector"),
        (("eval", "empty"), "no detector"),
        (("eval", "timm:nonsense"), "timm:nonsense"),
        (("eval", "timm:mobilenetv3_small_050@bad.safetensors"), "not a safetensors file"),
        (("eval", "own.py:nothing"), "neither a module"),
        (("eval", "own.py:missing"), "cannot be imported"),
        (("eval", "missing.py:build"), "no such file"),
        ((*good, "--data", "nowhere"), "nowhere"),
        ((*good, "--data", "empty"), "no picture"),
        ((*good, "--data", "small"), "1x1"),
        ((*good, "--data", "wide"), "square"),
        ((*good, "--data", "broken"), "cannot be read"),
        ((*good, "--data", "table.csv"), "perhaps"),
        ((*good, "--data", "columns.csv"), "missing: path"),
        ((*good, "--data", "points.csv"), "ten numbers"),
        ((*good, "--eps", "0.03"), "say 8 for 8/255"),
        ((*good, "--eps", "-2"), "--eps"),
        ((*good, "--attacks", "nope"), "no attack"),
        ((*good, "--attacks", "global-nope"), "no attack"),
        ((*good, "--parser", "nope"), "--parser nope"),
        ((*good, "--parser", "masks:nowhere"), "no such folder"),
        ((*good, "--parser", "segformer:nowhere"), "geometric parser"),
        ((*good, "--steps", "0"), "--steps"),
        ((*good, "--eot", "0"), "--eot"),
        ((*good, "--device", "nope"), "--device nope"),
        ((*good, "--after", "jpeg:0"), "jpeg:QUALITY"),
        ((*good, "--after", "resize:1.5"), "resize:FACTOR"),
        ((*good, "--after", "blur"), "expected jpeg"),
        ((*good, "--candidates", "chin"), "no such region"),
        ((*good, "--area", "0"), "--area"),
        ((*good, "--eps", "inf"), "finite"),
        ((*good, "--seed", "-1"), "--seed"),
        ((*good, "--lpips-weights", "bad.safetensors"), "bad.safetensors"),
        ((*good, "--attacks", "asma_official", "--stop-early"), "--stop-early"),
        ((*good, "--transfer-to", "nowhere"), "no such folder"),
        ((*good, "--generator", "runs/plain"), "of no mask generator"),
        ((*good, "--revision", "main"), "--revision"),
        ((*good, "--parser-revision", "main"), "--parser-revision"),
        ((*good, "--fake-index", "2"), "--fake-index"),
        (("eval", "runs/plain", "--images", "2000000000"), "too many to draw"),
        (("transfer", "runs/plain"), "at least two"),
        (("transfer", "runs/plain", "runs/plain"), "a name of its own"),
        (("attack", "runs/plain", "--save-examples", "-1"), "--save-examples"),
        (("attack", "nowhere"), "no such folder"),
        (("regions", "nowhere"), "no such folder"),
        (("mask", "--data", "empty"), "no picture"),
        (("train", "--model", "giant"), "no surrogate"),
        (("train", "--images", "2"), "images is 2"),
        (("train", "--batch-size", "5000"), "larger than"),
        (("train", "--data", "empty"), "no picture"),
        (("harden", "nowhere"), "no such folder"),
        (("train-generator", "runs/plain", "--width", "5"), "multiple of 4"),
    ):
        done = call(place, *arguments, "--out", "never")
        assert done.code == 2, f"{arguments}\n{done.stdout}{done.stderr}"
        lines = [line for line in done.stderr.splitlines() if "warning" not in line]
        assert len(lines) == 1, done.stderr
        assert word in lines[0], lines
        assert {path for path in place.rglob("*") if path.is_file()} == before, arguments
    for arguments, word in (
        ((*good, "--out", "file"), "is a file"),
        ((*good, "--out", "file/below"), "cannot write"),
        (("transfer", "runs/plain", "runs/hard", "--out", "file/below"), "cannot write"),
        (("attack", "runs/plain", "--out", "file/below"), "cannot write"),
        (("mask", "--out", "file/below"), "cannot write"),
        (("demo", "--out", "file"), "is a file"),
        (("regions", "runs/plain", "--out", "file/below"), "cannot write"),
        (("regions", "runs/plain", "--out", "crops"), "is a folder"),
        (("train", "--out", "file"), "is a file"),
        (("harden", "runs/plain", "--out", "file/below"), "file"),
        (("check", "nowhere.json", "--max-transfer", "1"), "nowhere.json"),
        (("check", "report/report.json", "--max-transfer", "nan"), "nan"),
        (("check", "report/report.json", "--min-robust-acc", "nan@pgd:8"), "expected ACCURACY"),
        (("compare", "report/report.json", "nowhere.json"), "nowhere.json"),
        (("check", "bad.json", "--max-transfer", "1"), "expected an object"),
        (("check", "report/report.json"), "give a limit"),
        (("check", "report/report.json", "--min-robust-acc", "0.4@nope:8"), "no white-box row"),
        (("compare", "rows.json", "rows.json"), "no report"),
        (("compare", "types.json", "types.json"), "is not a whole number"),
        (("train", "--out", "runs/plain", "--preset", "tiny"), "--resume"),
    ):
        done = call(place, *arguments)
        assert done.code == 2, f"{arguments}\n{done.stdout}{done.stderr}"
        assert word in done.stderr
    assert {path for path in place.rglob("*") if path.is_file()} == before


WITH_FACES = {
    "eval": ("eval", "runs/plain"),
    "transfer": ("transfer", "runs/plain", "runs/hard"),
    "attack": ("attack", "runs/plain", "--save-examples", "2"),
    "regions": ("regions", "runs/plain"),
    "mask": ("mask",),
    "train": ("train", "--preset", "tiny"),
    "harden": ("harden", "runs/plain", "--preset", "tiny"),
    "train-generator": ("train-generator", "runs/plain", "--preset", "tiny"),
}


def enormous_png() -> bytes:
    """A small file that says it holds 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("verb", WITH_FACES)
def test_every_verb_refuses_faces_that_are_none(place: Path, verb: str) -> None:
    root = place / "faulty"
    whole = np.full((48, 48, 3), 0.5, np.float32)
    for kind in ("real", "fake"):
        for name in ("nan", "enormous", "pixel", "grey-pixel", "two-sizes"):
            (root / name / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((48, 48), np.nan, np.float32)).save(root / f"nan/{kind}/x.tif")
        (root / f"enormous/{kind}/x.png").write_bytes(enormous_png())
        write_image(root / f"pixel/{kind}/x.png", whole[:1, :1])
        Image.new("L", (1, 1)).save(root / f"grey-pixel/{kind}/x.png")
        write_image(root / f"two-sizes/{kind}/x.png", whole if kind == "real" else whole[:40, :40])
    np.save(place / "maps.npy", np.full((48, 48), np.nan))
    write_image(place / "face.png", whole)
    (place / "nan-map.csv").write_text("path,label,mask\nface.png,real,maps.npy\n")
    (place / "nan-points.csv").write_text(f"path,label,landmarks\nface.png,real,{'nan ' * 10}\n")
    before = set(place.rglob("*"))
    for data, word in (
        ("faulty/nan", "NaN"),
        ("faulty/enormous", "more pixels"),
        ("faulty/pixel", "1x1"),
        ("faulty/grey-pixel", "1x1"),
        ("faulty/two-sizes", "another size"),
        ("nan-map.csv", "whole numbers"),
        ("nan-points.csv", "finite"),
        ("faulty/nowhere", "nowhere"),
    ):
        done = call(place, *WITH_FACES[verb], "--data", data, "--out", "never")
        assert done.code == 2, f"{verb} {data}\n{done.stdout}{done.stderr}"
        lines = [line for line in done.stderr.splitlines() if "warning" not in line]
        assert len(lines) == 1, done.stderr
        assert word in lines[0], lines
        assert set(place.rglob("*")) == before, (verb, data)


def test_a_detector_of_nan_is_refused_by_every_verb_that_attacks(place: Path) -> None:
    folder = place / "runs/nan"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"architecture": "plain"}')
    weights = load_file(place / "runs/plain/model/model.safetensors")
    save_file({name: value * float("nan") if value.is_floating_point() else value for name, value in weights.items()}, folder / "model.safetensors")  # fmt: skip
    before = set(place.rglob("*"))
    for verb in ("eval", "transfer", "attack", "regions", "harden", "train-generator"):
        arguments = [each.replace("plain", "nan") for each in WITH_FACES[verb]]
        done = call(place, *arguments, "--images", "16", "--out", "never")
        assert done.code == 2, f"{verb}\n{done.stdout}{done.stderr}"
        assert len([line for line in done.stderr.splitlines() if "warning" not in line]) == 1, done.stderr
        assert set(place.rglob("*")) == before, verb


def run_in_this_process(place: Path, arguments: list[str]) -> None:
    AcceleratorState._reset_state(True)  # the parent's state came along with the fork
    torch.set_num_threads(1)
    with contextlib.chdir(place):
        run(app, arguments)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the launcher for tests forks")
def test_two_processes_end_with_the_weights_of_one(place: Path) -> None:
    options = "--preset tiny --images 24 --batch-size 8 --epochs 1 --width 8 --no-flip --precision float32"
    arguments = ["train-generator", "runs/plain", "--device", "cpu", *options.split(), "--optimiser", "sgd", "--out"]
    whole = call(place, *arguments, "runs/one")
    assert whole.code == 0, whole.stderr
    debug_launcher(run_in_this_process, (place, [*arguments, "runs/two"]), num_processes=2)
    one, two = (load_file(place / f"runs/{name}/model/model.safetensors") for name in ("one", "two"))
    torch.manual_seed(0)
    start = MaskGenerator(8).state_dict()
    assert one.keys() == two.keys() == start.keys()

    def distance(left, right) -> float:
        return float(torch.cat([(left[name] - right[name]).flatten() for name in start]).norm())

    # Gradients are sums over 8 x 48 x 48 pixels in float32, added up in another order: their relative error is below
    # 18432 x 2^-24 = 1.1e-3, and steps of SGD are proportional to them. A process that is left out changes half of each step.
    assert distance(one, two) < 0.01 * distance(one, start)
