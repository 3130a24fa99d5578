"""The command line end to end: every verb, every example, every mistake."""

import contextlib
import io
import json
import multiprocessing
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from tenfold.cli import examples_of, run
from weatherkr.cli import app
from weatherkr.models.networks import WeatherNet
from weatherkr.training.state import LearnerState, newest_state


@dataclass(frozen=True)
class Answer:
    """What a command line left behind."""

    returncode: int
    stdout: str
    stderr: str


def weatherkr(place: Path, *arguments: str) -> Answer:
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
    """A folder that holds what the examples name."""
    root = tmp_path_factory.mktemp("weatherkr")
    rng = np.random.default_rng(0)
    (root / "photos").mkdir()
    for number in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        coarse.resize((72, 60), Image.Resampling.BICUBIC).save(root / "photos" / f"{number}.png")
    Image.open(root / "photos" / "0.png").save(root / "rainy.jpg")
    torch.save({"model": WeatherNet(8, 1).state_dict()}, root / "ffa_best.pk")
    return root


@pytest.fixture(scope="module")
def answers(place: Path) -> dict[str, Answer]:
    """Every example of every verb, run as printed, in an order in which each finds what it needs."""
    found = examples_of(app)
    order = ["restore", "degrade", "train", "history", "compare", "eval", "export", "import-official", "demo"]
    assert sorted(order) == sorted(name for name, lines in found.items() if lines)
    return {line: weatherkr(place, *shlex.split(line)[1:]) for verb in order for line in found[verb]}


def test_every_example_runs_as_printed(answers: dict[str, Answer], place: Path) -> None:
    for line, answer in answers.items():
        assert answer.returncode == 0, f"{line}\n{answer.stderr}"
        assert answer.stdout.strip(), line
    assert Image.open(place / "clear.jpg").size == (72, 60)
    assert (place / "restored" / "1_compare.png").exists()
    assert (place / "weatherkr-demo" / "snow.png").exists()
    assert json.loads((place / "scores.json").read_text())["protocol"] == "official"
    assert (place / "comparison" / "curves.svg").read_text().startswith("<svg")
    assert "| kr |" in (place / "comparison" / "comparison.md").read_text()
    assert WeatherNet.from_pretrained(place / "official").dim == 8
    second = LearnerState.load(newest_state(place / "runs" / "second"))
    assert second.learnt == ["haze", "rain", "snow"]
    history = next(answer for line, answer in answers.items() if "history" in line).stdout
    assert "learnt: haze, rain" in history
    assert "patches of haze" in history


def test_training_judges_and_is_read_again(place: Path) -> None:
    line = "train --task haze=synth:photos --val haze=synth:photos --out runs/judged --preset tiny --steps 3"
    done = weatherkr(place, *line.split())
    assert done.returncode == 0, done.stderr
    assert "| after haze |" in done.stdout
    again = weatherkr(place, *line.split(), "--resume")
    assert again.stdout == done.stdout
    refused = weatherkr(place, *line.split())
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "--resume" in refused.stderr


def test_the_module_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "weatherkr", "restor"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def in_two_processes(work: Callable[[], None]) -> None:
    """Do the same in two forked processes that find each other as torchrun's do: new ones would import torch anew."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        AcceleratorState._reset_state(reset_partial_state=True)
        work()
        assert torch.distributed.get_world_size() == 2
        torch.distributed.destroy_process_group()

    workers = [multiprocessing.get_context("fork").Process(target=rank, args=(number,)) for number in range(2)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(300)
    assert [each.exitcode for each in workers] == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have used torch")
def test_two_processes_learn_what_one_does(place: Path) -> None:
    line = "train --task haze=synth:photos --task rain=synth:photos --preset tiny --steps 3 --precision float32 --device cpu"
    arguments = line.split()

    def learn() -> None:
        answer = weatherkr(place, *arguments, "--out", "runs/two")
        assert answer.returncode == 0, answer.stderr

    in_two_processes(learn)
    assert weatherkr(place, *arguments, "--out", "runs/one").returncode == 0
    one, two = (LearnerState.load(newest_state(place / "runs" / name)) for name in ("one", "two"))
    assert one.memory.fingerprint() == two.memory.fingerprint()
    for name, value in one.net.state_dict().items():
        torch.testing.assert_close(two.net.state_dict()[name], value, atol=2e-2, rtol=0, msg=name)
    # Rounding differs, Adam enlarges it where gradients vanish: on average the weights agree far better than that.
    gaps = [(two.net.state_dict()[name] - value).abs().mean().item() for name, value in one.net.state_dict().items()]
    assert sum(gaps) / len(gaps) < 1e-3


@pytest.fixture(scope="module")
def bad(place: Path) -> Path:
    """A folder of things that cannot be restored or learnt from."""
    root = place / "bad"
    root.mkdir()
    good = (place / "photos" / "0.png").read_bytes()
    (root / "truncated.png").write_bytes(good[:100])
    (root / "text.png").write_text("no picture")
    (root / "empty").mkdir()
    (root / "dots").mkdir()
    Image.new("RGB", (1, 1)).save(root / "dots" / "dot.png")
    (root / "state").mkdir()
    (root / "other").mkdir()
    WeatherNet(16, 1).save_pretrained(root / "other")
    (root / "other" / "config.json").write_text('{"dim": 8, "blocks": 1}')
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("restore none.jpg", "none.jpg"),
        ("restore bad/empty --out o1", "holds no picture"),
        ("restore bad/truncated.png --out o1", "truncated"),
        ("restore bad/text.png --out o1", "not a picture"),
        ("restore photos --out rainy.jpg", "is a file"),
        ("restore rainy.jpg --out rainy.jpg", "is an input"),
        ("restore rainy.jpg --out rainy.jpg --overwrite", "is an input"),
        ("restore rainy.jpg --out o1 --quality 0", "--quality"),
        ("restore rainy.jpg --out o1 --tile big", "--tile big"),
        ("restore rainy.jpg --out o1 --model none", "no such folder"),
        ("restore rainy.jpg --out o1 --model bad/other", "of another network"),
        ("restore rainy.jpg --out o1 --device cuda:99", "--device cuda:99"),
        ("restore rainy.jpg --out rainy.jpg/o1", "rainy.jpg"),
        ("train --task haze=synth:none --out o1 --preset tiny", "none"),
        ("train --task haze=synth:bad/dots --out o2 --preset tiny", "at least 16"),
        ("train --task haze --out o1 --preset tiny", "write a task as"),
        ("train --task haze=synth:photos --out photos --preset tiny", "choose another --out"),
        ("train --task haze=synth:photos --out o1 --preset huge", "tiny"),
        ("train --task haze=synth:photos --out o1 --preset tiny --steps 0", "from 1 to"),
        ("train --task haze=synth:photos --out o1 --preset tiny --dim 4", "dim 4"),
        ("train --task ../haze=synth-haze:photos --out o1 --preset tiny", "file name"),
        ("train --task haze=synth:photos --out o1 --preset tiny --method magic", "magic"),
        ("train --task snow=synth:photos --out o1 --preset tiny --start bad/state", "neither a state nor a run"),
        ("train --task haze=synth:photos --out o3 --preset tiny --contrast vgg19 --vgg-weights none.pth", "none.pth"),
        ("compare --out o1 --preset tiny --method magic", "--method magic"),
        ("compare --task haze=synth:photos --out o4 --preset tiny", "no validation pictures"),
        ("eval --task haze=synth:none", "none"),
        ("eval --task rain=pairs:photos:bad/dots", "no partner"),
        ("eval --model bad/state --task haze=synth:photos", "config.json"),
        ("eval --task haze=synth:photos --protocol best", "best"),
        ("history photos", "neither a state nor a run"),
        ("degrade none --out o1", "none"),
        ("degrade photos --out o1 --kind hail", "--kind hail"),
        ("degrade bad/truncated.png --out o1", "truncated"),
        ("degrade photos --out o1 --scale 0", "above 0"),
        ("eval --task haze=synth:photos --limit 0", "--limit"),
        ("eval --task haze=synth:photos --out photos", "is a folder"),
        ("export rainy.jpg/o1", "cannot write here"),
        ("export rainy.jpg", "exists"),
        ("import-official rainy.jpg --out o1", "rainy.jpg: cannot read"),
        ("import-official none.pk --out o1", "none.pk: cannot read"),
        ("demo --out rainy.jpg", "rainy.jpg"),
    ],
)
def test_a_mistake_is_one_line(place: Path, bad: Path, arguments: str, message: str) -> None:
    before = (place / "rainy.jpg").read_bytes()
    answer = weatherkr(place, *shlex.split(arguments))
    assert answer.returncode == 2, answer.stdout + answer.stderr
    lines = [line for line in answer.stderr.splitlines() if ": warning:" not in line]
    assert len(lines) == 1, answer.stderr
    assert message in lines[0]
    assert not (place / "o1").exists()
    assert (place / "rainy.jpg").read_bytes() == before
    assert bad.exists()


@pytest.mark.parametrize(
    ("verb", "made"),
    [
        ("restore", ["good.png"]),
        ("degrade --kind haze", ["haze/README.txt", "haze/clean/good.png", "haze/degraded/good.png"]),
    ],
)
def test_a_folder_with_an_unreadable_picture_leaves_with_3(place: Path, bad: Path, verb: str, made: list[str]) -> None:
    mixed, kept = place / verb.split()[0] / "mixed", place / verb.split()[0] / "kept"
    mixed.mkdir(parents=True)
    (mixed / "good.png").write_bytes((place / "photos" / "0.png").read_bytes())
    (mixed / "bad.png").write_bytes((bad / "truncated.png").read_bytes())
    answer = weatherkr(place, *verb.split(), str(mixed), "--out", str(kept))
    assert answer.returncode == 3
    assert answer.stderr.count("\n") == 1
    assert f"weatherkr: skipped: {mixed / 'bad.png'}" in answer.stderr
    assert sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()) == made
