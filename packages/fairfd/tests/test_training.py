"""Training: learns, keeps the best, resumes bit for bit, shares batches over processes, names what goes wrong."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from fairfd.config import TrainConfig
from fairfd.data.datasets import ArrayDataset
from fairfd.data.manifest.manifest import Manifest, Sample
from fairfd.models.detectors import create_detector, load_detector
from fairfd.models.detectors.detector import Detector, TrainBatch
from fairfd.models.detectors.wrapping import wrap
from fairfd.training.loop import Progress, load_checkpoint, save_checkpoint, train
from fairfd.training.samplers import plan_epoch
from tenfold import UserError
from tenfold.config import load_preset, preset_names

SIZE = 16
QUICK = TrainConfig(
    epochs=3, batch_size=8, pairs_per_batch=4, learning_rate=3e-3, augment="flip", balance="labels", workers=0
)


def faces(count: int, seed: int, approaches: tuple[str, ...] = ("real", "swap", "edit", "swap")) -> ArrayDataset:
    """Noise; fakes carry faint stripes."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 160, (count, 3, SIZE, SIZE), dtype=np.uint8)
    samples = []
    for index in range(count):
        approach = approaches[index % len(approaches)]
        images[index, :, ::2] += 40 * (approach != "real")
        samples.append(Sample(f"{index}.png", f"p{index}", "AB"[index // 4 % 2], approach, int(approach != "real")))
    return ArrayDataset(images, samples)


TRAIN, VAL = faces(32, 0), faces(16, 1)


def new_detector(name: str = "small-rgb") -> Detector:
    torch.manual_seed(3)
    return create_detector(name, in_size=SIZE)


def weights(detector: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_training_learns_and_leaves_a_run_folder(tmp_path: Path) -> None:
    detector = new_detector()
    result = train(detector, TRAIN, VAL, QUICK, tmp_path / "run")
    assert result.best_auc > 0.9
    assert result.best_auc == max(result.history)
    assert result.history[result.best_epoch - 1] == result.best_auc
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["val_auc"] for line in lines] == list(result.history)
    assert lines[0].keys() >= {"step", "loss", "ce"}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best_auc"] == result.best_auc
    assert same(weights(load_detector(tmp_path / "run")), weights(detector))
    assert not detector.training


def test_training_is_repeatable_without_a_folder_and_leaves_torchs_generator_alone() -> None:
    first, second = new_detector(), new_detector()
    torch.manual_seed(9)
    state = torch.get_rng_state()
    result = train(first, TRAIN, VAL, QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert train(second, TRAIN, VAL, QUICK) == result
    assert same(weights(first), weights(second))


def interrupt_at(detector: Detector, step: int) -> None:
    """Make the detector raise KeyboardInterrupt in a training step, as Ctrl-C would."""
    original, count = detector.training_loss, iter(range(10**6))

    def interrupted(batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
        if next(count) == step:
            raise KeyboardInterrupt
        return original(batch)

    detector.training_loss = interrupted


@pytest.mark.parametrize(
    ("name", "augment", "stop"), [("small-rgb", "flip", 1), ("small-rgb", "flip", 8), ("small-f3net", "paper", 8)]
)
def test_resumed_run_ends_with_the_same_bits_as_an_uninterrupted_one(
    tmp_path: Path, name: str, augment: str, stop: int
) -> None:
    config = replace(QUICK, augment=augment)
    assert len(plan_epoch(TRAIN.labels, "single", "labels", config.seed, 0)) // config.batch_size == 6
    whole, stopped = new_detector(name), new_detector(name)
    expected = train(whole, TRAIN, VAL, config, tmp_path / "whole")
    interrupt_at(stopped, stop)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, TRAIN, VAL, config, tmp_path / "stopped")
    with (tmp_path / "stopped" / "metrics.jsonl").open("a") as log_file:  # as if stopped between log and checkpoint
        log_file.write('{"step": 99, "epoch": 9}\n')
    torch.manual_seed(77)  # a resumed run must not depend on how its detector was initialised
    resumed = create_detector(name, in_size=SIZE)
    assert train(resumed, TRAIN, VAL, config, tmp_path / "stopped", resume=True) == expected
    assert same(weights(resumed), weights(whole))
    log, last = "metrics.jsonl", "checkpoints/last.safetensors"
    assert (tmp_path / "stopped" / log).read_text() == (tmp_path / "whole" / log).read_text()
    assert same(load_file(tmp_path / "stopped" / last), load_file(tmp_path / "whole" / last))


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    detector = new_detector()
    result = train(detector, TRAIN, VAL, QUICK, tmp_path / "run")
    again = create_detector("small-rgb", in_size=SIZE)
    interrupt_at(again, 0)
    assert train(again, TRAIN, VAL, QUICK, tmp_path / "run", resume=True) == result
    assert same(weights(again), weights(detector))
    with pytest.raises(UserError, match="--resume"):
        train(again, TRAIN, VAL, QUICK, tmp_path / "run")


def test_run_of_another_detector_or_configuration_is_not_resumed(tmp_path: Path) -> None:
    train(new_detector(), TRAIN, VAL, replace(QUICK, epochs=1), tmp_path / "run")
    with pytest.raises(UserError, match="epochs was 1"):
        train(new_detector(), TRAIN, VAL, QUICK, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="do not fit SmallDetector"):
        train(
            new_detector("small-srm"),
            TRAIN,
            VAL,
            replace(QUICK, epochs=1),
            tmp_path / "run",
            resume=True,
        )


def test_checkpoint_brings_back_the_optimisers_state(tmp_path: Path) -> None:
    detector = new_detector().to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(detector.parameters())
    detector(torch.rand(2, 3, SIZE, SIZE)).logits.sum().backward()
    optimiser.step()
    save_checkpoint(tmp_path / "c.safetensors", detector, optimiser, Progress(2, 7, (0.5, 0.25)))
    other = create_detector("small-rgb", in_size=SIZE)
    fresh = torch.optim.Adam(other.parameters())
    assert load_checkpoint(tmp_path / "c.safetensors", other, fresh) == Progress(2, 7, (0.5, 0.25))
    assert same(weights(other), weights(detector))
    before, after = optimiser.state_dict()["state"], fresh.state_dict()["state"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[i][name], after[i][name]) for i in before for name in before[i])


def test_best_epoch_is_the_first_of_equal_ones() -> None:
    assert Progress(3, 9, (0.5, 0.8, 0.8)).best_epoch == 2
    assert Progress().best_epoch == 0


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_manifest_on_disk_trains_with_either_cache(tmp_path: Path, cache: Any) -> None:
    manifests = []
    for name, data in (("train", TRAIN), ("val", VAL)):
        (tmp_path / name).mkdir()
        for index, sample in enumerate(data.samples):
            image = data.pixels([index])[0].permute(1, 2, 0).numpy()
            Image.fromarray(image).save(tmp_path / name / sample.image)
        manifests.append(Manifest(tmp_path / name, data.samples))
    config = replace(QUICK, cache=cache, epochs=1)
    detector, from_arrays = new_detector(), new_detector()
    train(detector, *manifests, config, tmp_path / "run")
    train(from_arrays, TRAIN, VAL, replace(QUICK, epochs=1))
    assert same(weights(detector), weights(from_arrays))


# ------------------------------------------------------------------------------------------------------- two processes


class Marked(nn.Module):
    """Gradients of a batch are the mean of those of its halves. A buffer differs between processes, and turns scores round."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )
        self.register_buffer("mark", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.mark.fill_(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
            return self.layers(images)
        return self.layers(images) * (1 - 2 * self.mark)


def marked_detector() -> Detector:
    torch.manual_seed(0)
    return wrap(Marked(), in_size=SIZE)


ODD_VAL = faces(17, 1)
PLAIN = replace(QUICK, precision="float32")


def train_in_this_process(out: Path) -> None:
    AcceleratorState._reset_state(True)  # the parent's state came along with the fork
    torch.set_num_threads(1)
    train(marked_detector(), TRAIN, ODD_VAL, PLAIN, out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the launcher for tests forks")
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    train(marked_detector(), TRAIN, ODD_VAL, PLAIN, tmp_path / "one")
    debug_launcher(train_in_this_process, (tmp_path / "two",), num_processes=2)
    one, two = (load_file(tmp_path / name / "checkpoints/last.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    start = {f"model.{name}": value for name, value in marked_detector().state_dict().items()}

    def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
        return float(torch.cat([(left[name] - right[name]).flatten() for name in start]).norm())

    # Gradients are the same sums in another order: relative errors far below a per cent. Where a gradient is next to
    # nothing Adam enlarges them, but not its step; a process that is left out changes half of every step.
    assert distance(one, two) < 0.01 * distance(one, start)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for first, second in zip(*logs, strict=True):
        assert first.keys() == second.keys()
        assert first["val_auc"] == pytest.approx(second["val_auc"], abs=1.01 / (8 * 9))  # at most one pair of 8 x 9
        assert all(first[key] == pytest.approx(second[key], rel=0.01) for key in first if key != "val_auc")


def test_several_processes_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="out=FOLDER"):
        train(new_detector(), TRAIN, VAL, QUICK)


def test_batch_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    with pytest.raises(UserError, match="batch size 8 cannot be shared by 3"):
        train(new_detector(), TRAIN, VAL, QUICK)


# --------------------------------------------------------------------------------------------------- layouts and failures


class Recorder(Detector):
    """A linear detector that keeps what it is shown."""

    name = "recorder"

    def __init__(self, layout: Any = "single") -> None:
        super().__init__(SIZE)
        self.batch_layout = layout
        self.fc = nn.Linear(3, 2)
        self.seen: list[TrainBatch] = []

    def detect(self, x: Tensor) -> Any:
        from fairfd.models.detectors.detector import DetectorOutput

        features = x.mean((2, 3))
        return DetectorOutput(self.fc(features), features)

    def training_loss(self, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
        self.seen.append(batch)
        return super().training_loss(batch)


def test_two_views_come_as_first_views_then_second_views() -> None:
    detector = Recorder("two_views")
    train(detector, TRAIN, VAL, replace(QUICK, epochs=1))
    for batch in detector.seen:
        assert len(batch.ids) == 16
        assert batch.ids[:8] == batch.ids[8:]
        assert torch.equal(batch.labels[:8], batch.labels[8:])
    assert any(not torch.equal(batch.images[:8], batch.images[8:]) for batch in detector.seen)


def test_pairs_come_as_reals_then_fakes_with_their_approach() -> None:
    detector = Recorder("real_fake_pairs")
    train(detector, TRAIN, VAL, replace(QUICK, epochs=1))
    for batch in detector.seen:
        assert batch.labels.tolist() == [0] * 4 + [1] * 4
        assert (batch.approaches[4:] > 0).all()


def test_loss_that_is_not_finite_stops_the_run_and_names_the_images() -> None:
    detector = new_detector()
    with torch.no_grad():
        detector.get_submodule("fc").weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"loss is nan in epoch 1.*\d+\.png"):
        train(detector, TRAIN, VAL, QUICK)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_training_image_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    samples = tuple(Sample(f"{i}.png", f"p{i}", "A", ("real", "swap")[i % 2], i % 2) for i in range(8))
    for sample in samples:
        (tmp_path / sample.image).write_bytes(b"broken")
    with pytest.raises(UserError, match=r"\d\.png: not a picture") as error:
        train(new_detector(), Manifest(tmp_path, samples), VAL, replace(QUICK, workers=workers))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        (faces(8, 0, ("real",)), VAL, "real and fake images; there are 8 real and 0 fake"),
        (TRAIN, faces(8, 0, ("swap",)), "validation data needs real and fake"),
    ],
)
def test_data_without_both_labels_are_refused(training: ArrayDataset, validation: ArrayDataset, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(new_detector(), training, validation, QUICK)


def test_detector_without_parameters_has_nothing_to_train() -> None:
    with pytest.raises(UserError, match="nothing to train"):
        train(wrap(lambda images: images.mean((1, 2, 3)), output="prob", in_size=SIZE), TRAIN, VAL, QUICK)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"workers": -1}])
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        TrainConfig(**change)


def test_presets_are_complete_and_the_papers_is_the_default() -> None:
    assert {"paper", "small", "tiny"} <= set(preset_names("fairfd"))
    paper = load_preset("fairfd", "paper", TrainConfig)
    assert (paper.epochs, paper.batch_size, paper.pairs_per_batch) == (10, 32, 16)
    assert (paper.learning_rate, paper.weight_decay, paper.seed, paper.augment) == (2e-4, 5e-4, 1024, "paper")
    assert replace(TrainConfig(), workers=paper.workers) == paper
    assert load_preset("fairfd", "small", TrainConfig).epochs == 6
    assert load_preset("fairfd", "tiny", TrainConfig, epochs=1).epochs == 1
