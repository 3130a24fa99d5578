"""Run folders: refusing to overwrite, resuming, logging."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tenfold.errors import RunLocked, UserError
from tenfold.runs import (
    LOCK,
    RunFolder,
    autocast,
    has_fast_bf16,
    pick_device,
    refused_without_trace,
    seed_everything,
    track,
)


@dataclass(frozen=True)
class Recipe:
    epochs: int = 3
    lr: float = 0.1


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", Recipe())
    with pytest.raises(UserError, match="--resume"):
        RunFolder.create(tmp_path / "run", Recipe())
    RunFolder.create(tmp_path / "run", Recipe(), resume=True)


def test_resuming_with_another_configuration_names_what_changed(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", Recipe())
    with pytest.raises(UserError, match="epochs was 3 and is now 4"):
        RunFolder.create(tmp_path / "run", Recipe(epochs=4), resume=True)


def test_foreign_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name, word in [("mine", "holds no run"), ("file", "is a file")]:
        with pytest.raises(UserError, match=word):
            RunFolder.create(tmp_path / name, Recipe())
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.tex"]


def start_without_pictures(path: Path, resume: bool, log: bool) -> None:
    with refused_without_trace(path):
        run = RunFolder.create(path, Recipe(), resume)
        run.rewind(0)
        if log:
            run.log(step=1, loss=1.0)
        raise UserError("no pictures")


def refuse(path: Path, resume: bool = False, log: bool = False) -> None:
    with pytest.raises(UserError, match="no pictures"):
        start_without_pictures(path, resume, log)


def test_a_refused_start_leaves_no_run_and_nothing_else_is_touched(tmp_path: Path) -> None:
    refuse(tmp_path / "new")
    (tmp_path / "there").mkdir()
    refuse(tmp_path / "there")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    refuse(tmp_path / "deep" / "er" / "new")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    refuse(tmp_path / "begun", log=True)
    assert (tmp_path / "begun" / "metrics.jsonl").exists()
    RunFolder.create(tmp_path / "old", Recipe())
    refuse(tmp_path / "old", resume=True)
    assert (tmp_path / "old" / "config.toml").exists()


def test_a_refusal_takes_nothing_from_a_folder_that_was_not_bare(tmp_path: Path) -> None:
    (tmp_path / "mine" / "for later").mkdir(parents=True)
    (tmp_path / "mine" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="holds no run"), refused_without_trace(tmp_path / "mine"):
        RunFolder.create(tmp_path / "mine", Recipe())
    assert {each.name for each in (tmp_path / "mine").iterdir()} == {"for later", "metrics.jsonl"}


def test_lines_are_json_and_rewinding_forgets_what_came_after(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", Recipe())
    for step in (1, 2, 3):
        run.log(step=step, loss=float("nan") if step == 2 else 0.5)
    assert [json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines()] == [
        0.5,
        None,
        0.5,
    ]
    assert run.last_step() == 3
    run.rewind(1)
    assert [line["step"] for line in run.lines()] == [1]
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert run.last_step() == 1


def test_a_result_marks_the_end(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", Recipe())
    assert not run.is_finished
    run.finish({"auc": 0.9})
    assert run.is_finished
    assert json.loads((run.path / "result.json").read_text()) == {"auc": 0.9}


def test_one_seed_one_sequence() -> None:
    draws = []
    for _ in range(2):
        seed_everything(7)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def test_a_device_that_is_not_here_is_one_line() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("cuda:63", "abacus"):
        with pytest.raises(UserError, match=name) as caught:
            pick_device(name)
        assert "\n" not in str(caught.value)


def test_autocast_computes_in_bf16_exactly_where_the_hardware_does() -> None:
    device = torch.device("cpu")
    with autocast(device):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) == has_fast_bf16(device)


def test_tracking_passes_everything_on() -> None:
    assert list(track(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    assert list(track([1, 2], "numbers")) == [1, 2]


HOLDER = """
import sys, time
from dataclasses import dataclass
from tenfold.runs import RunFolder

@dataclass(frozen=True)
class Recipe:
    epochs: int = 3
    lr: float = 0.1

RunFolder.create(sys.argv[1], Recipe(), resume=True)
print("held", flush=True)
time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_two_processes_never_work_on_one_run(tmp_path: Path) -> None:
    other = hold(tmp_path / "run")
    try:
        for resume in (True, False):
            with pytest.raises(UserError, match=rf"process {other.pid} on|already holds"):
                RunFolder.create(tmp_path / "run", Recipe(), resume=resume)
        with pytest.raises(RunLocked), refused_without_trace(tmp_path / "run"):
            RunFolder.create(tmp_path / "run", Recipe(), resume=True)
        assert (tmp_path / "run/config.toml").exists(), "the other's run is left alone"
    finally:
        other.kill()
        other.wait()
    run = RunFolder.create(tmp_path / "run", Recipe(), resume=True)
    assert (tmp_path / "run" / LOCK).exists(), "a dead process's lock is taken over"
    run.finish({})
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_result_is_read_back(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", Recipe())
    with pytest.raises(UserError, match="--resume"):
        run.result()
    run.finish({"accuracy": 0.5})
    assert run.result() == {"accuracy": 0.5}
    (run.path / "result.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        run.result()


def test_a_damaged_log_is_passed_over(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", Recipe())
    run.log(step=2, loss=1.0)
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write("[" * 50_000 + '\n[1]\n{"step": "x"}\n{"step": 3')
    assert run.lines() == [{"step": 2, "loss": 1.0}]
    assert run.last_step() == 2
