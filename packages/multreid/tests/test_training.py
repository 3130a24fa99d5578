"""Training end to end on tiny procedural pedestrians: resume, processes, both associations, errors."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from multreid.config import TrainConfig
from multreid.data.synthetic import write_people
from multreid.training import loop as training
from multreid.training.loop import learning_rate, plan_epoch, train
from tenfold import UserError
from tenfold.config import load_preset


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    visible, infrared = write_people(tmp_path_factory.mktemp("people"), 6, 5, seed=0, look_alikes=False)
    base = load_preset("multreid", "tiny", TrainConfig)
    sizes = {
        "epochs": 3,
        "stage_two": 1,
        "steps": 2,
        "steps_two": 2,
        "identities": 4,
        "instances": 2,
        "k1": 5,
        "eps": 0.8,
    }
    return dataclasses.replace(base, visible=visible, infrared=infrared, **sizes)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(out, config, device="cpu")
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_log_result_and_model(finished, config) -> None:
    log = lines(finished)
    assert [line["step"] for line in log] == [1, 2, 3]
    assert "pair_f1" not in log[0]
    assert 0 <= log[1]["pair_f1"] <= 1
    assert json.loads((finished / "result.json").read_text())["epochs"] == config.epochs
    assert weights(finished)["neck.bias"].abs().sum() == 0
    assert (finished / "config.toml").exists()


def test_interrupted_and_resumed_run_ends_like_an_uninterrupted_one(finished, config, tmp_path, monkeypatch) -> None:
    def interrupt(*args: object) -> None:
        if args[3] == 2:
            raise KeyboardInterrupt
        return plan_epoch(*args)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "plan_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(out, config, device="cpu")
    assert len(lines(out)) == 2
    assert not (out / "run.lock").exists(), "other processes may go on with it"
    # Killed between the line of an epoch and its checkpoint, or while the model was written: neither is to be seen afterwards.
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "loss": 0.0}\n{"step": 3, "lo')
    (out / "model").mkdir()
    (out / "model" / "config.json").write_text("{")
    train(out, config, device="cpu", resume=True)
    expected = weights(finished)
    for name, value in weights(out).items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0, msg=name)
    for name in ("metrics.jsonl", "result.json", "model/config.json", "checkpoints/last.safetensors"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_line_logged_before_the_first_checkpoint_is_logged_once(config, tmp_path, monkeypatch) -> None:
    short = dataclasses.replace(config, epochs=1, steps=1)

    def full_disk(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", full_disk)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", short, device="cpu")
    assert len(lines(tmp_path / "run")) == 1
    train(tmp_path / "run", short, device="cpu", resume=True)
    assert len(lines(tmp_path / "run")) == 1


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
def test_two_processes_compute_what_one_does(config, tmp_path, monkeypatch) -> None:
    # In float32: bfloat16 rounds the two halves of a batch differently. One epoch of each stage: from the second on, labels of so
    # small a set change with rounding.
    monkeypatch.setattr(training, "autocast", lambda _: contextlib.nullcontext())
    stages = {"stage-one": 1, "stage-two": 0}
    for name, stage_two in stages.items():
        short = dataclasses.replace(config, epochs=1, stage_two=stage_two)
        train(tmp_path / "one" / name, short, device="cpu")

    def train_both() -> None:
        for name, stage_two in stages.items():
            train(tmp_path / name, dataclasses.replace(config, epochs=1, stage_two=stage_two), device="cpu")

    in_two_processes(train_both)
    for name in stages:
        for one, two in zip(lines(tmp_path / "one" / name), lines(tmp_path / name), strict=True):
            assert two["visible_clusters"] == one["visible_clusters"]
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_plain_transport_association_trains_too(config, tmp_path) -> None:
    result = train(tmp_path / "run", dataclasses.replace(config, association="ot", epochs=2), device="cpu")
    assert np.isfinite(result["loss"])


def test_learning_rate_falls_to_a_tenth_at_each_milestone() -> None:
    rates = [learning_rate(TrainConfig(), epoch) / 3.5e-4 for epoch in (0, 19, 20, 59, 60, 80, 89)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001, 0.001])


def test_defaults_are_the_papers_preset() -> None:
    assert load_preset("multreid", "paper", TrainConfig) == TrainConfig()


def test_training_starts_from_a_given_model(finished, config, tmp_path) -> None:
    short = dataclasses.replace(config, initial=finished, epochs=1)
    train(tmp_path / "run", short, device="cpu")
    with pytest.raises(UserError, match="is a small for 64 x 32 pictures"):
        train(tmp_path / "other", dataclasses.replace(short, height=32), device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visible": None}, "--visible: needed"),
        ({"visible": Path("missing")}, "missing: no such file or folder"),
        ({"dataset": "sysu"}, "--root: needed"),
        ({"epochs": 0}, "epochs: 0 is not"),
        ({"beta": 2.0}, "beta: 2 is not"),
        ({"refinement": -1.0}, "refinement: -1 is not"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is not"),
        ({"milestones": (3, -1)}, "milestones: -1 is not"),
        ({"min_samples": 29}, "epoch 0, visible: no cluster at eps"),
        ({"initial": Path("nowhere")}, "nowhere: holds no model"),
    ],
)
def test_unusable_options_are_named(config, tmp_path, change, message) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", dataclasses.replace(config, **change), device="cpu")


def test_finished_and_foreign_runs_are_not_touched(finished, config) -> None:
    with pytest.raises(UserError, match="already holds a run"):
        train(finished, config, device="cpu")
    with pytest.raises(UserError, match="the run is finished"):
        train(finished, config, device="cpu", resume=True)
    with pytest.raises(UserError, match="another configuration"):
        train(finished, dataclasses.replace(config, seed=5), device="cpu", resume=True)


def test_copies_of_a_picture_are_refused(config, tmp_path) -> None:
    folder = tmp_path / "visible" / "0000"
    folder.mkdir(parents=True)
    source = next(Path(config.visible).rglob("*.png"))
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(source.read_bytes())
    with pytest.raises(UserError, match=r"b\.png: the same file as .*a\.png"):
        train(tmp_path / "run", dataclasses.replace(config, visible=tmp_path / "visible"), device="cpu")
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoint_is_named(config, tmp_path) -> None:
    out = tmp_path / "run"
    train(out, dataclasses.replace(config, epochs=1), device="cpu")
    (out / "result.json").unlink()
    (out / "checkpoints" / "last.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"last\.safetensors: .*not a checkpoint of this run"):
        train(out, dataclasses.replace(config, epochs=1), device="cpu", resume=True)
