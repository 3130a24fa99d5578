"""Training: resumed equals uninterrupted, models come back from their folders, hardening changes what it should."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asmattack import HardenConfig, MaskGenerator, Surrogate, TrainConfig, drawn_set, load_detector, train
from asmattack.training.loop import faces_of, fit, split_by_group
from asmattack.training.step import Detection, Hardening
from tenfold import UserError
from tenfold.config import load_preset, preset_names

QUICK = TrainConfig(images=40, epochs=3, batch_size=8, jpeg=0.3, seed=3)


class Stopped(Detection):
    """Ctrl-C in a chosen batch."""

    left = 6

    def batch(self, rows, generator):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().batch(rows, generator)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(QUICK, out, device="cpu")
    return out


@pytest.mark.parametrize("batch", [2, 6])  # of the first epoch, before there is any result, and of the second
def test_a_resumed_run_ends_with_the_same_bytes_as_an_uninterrupted_one(
    whole: Path, tmp_path: Path, batch: int
) -> None:
    torch.manual_seed(QUICK.seed)
    task = Stopped(Surrogate(QUICK.model), *faces_of(QUICK), QUICK)
    task.left = batch
    with pytest.raises(KeyboardInterrupt):
        fit(task, QUICK, tmp_path / "stopped", False, "cpu")
    train(QUICK, tmp_path / "stopped", resume=True, device="cpu")
    for name in ("model/model.safetensors", "checkpoints/last.safetensors", "metrics.jsonl", "result.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_is_not_resumed_with_another_configuration(whole: Path) -> None:
    with pytest.raises(UserError, match="epochs was 3"):
        train(replace(QUICK, epochs=4), whole, resume=True, device="cpu")


def test_detectors_and_generators_come_back_from_their_folders(tmp_path: Path) -> None:
    images = drawn_set(4).pixels()
    for architecture in ("plain", "residual", "separable", "inverted"):
        detector = Surrogate(architecture).eval()
        assert 4_000 <= sum(each.numel() for each in detector.parameters()) <= 23_000
        detector.save_pretrained(tmp_path / architecture)
        for again in (
            Surrogate.from_pretrained(tmp_path / architecture).eval(),
            load_detector(str(tmp_path / architecture)),
        ):
            assert torch.equal(again(images), detector(images))
    generator = MaskGenerator(8).eval()
    generator.save_pretrained(tmp_path / "generator")
    for ours, theirs in zip(
        generator.generate(images), MaskGenerator.from_pretrained(tmp_path / "generator").generate(images), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_hardening_sees_attacked_copies_inside_the_budget_and_the_face(tmp_path: Path) -> None:
    config = HardenConfig(images=24, epochs=1, batch_size=8, eps=4.0)
    task = Hardening(Surrogate("plain"), *faces_of(config), config)
    images, attacked, labels = task.batch(torch.arange(8), torch.Generator().manual_seed(0))
    changed = (attacked != images).any(1)
    assert changed.any()
    assert changed.float().mean() < 0.25
    assert ((attacked - images).abs() * 255).max() <= 4 + 1e-3
    assert labels.shape == (8,)
    before = [each.clone() for each in task.trained.parameters()]
    fit(task, config, tmp_path / "run", False, "cpu")
    assert any(not torch.equal(a, b) for a, b in zip(before, task.trained.parameters(), strict=True))


def test_no_group_is_on_both_sides_of_a_split() -> None:
    faces = drawn_set(40)
    grouped = replace(faces, groups=tuple(str(i // 4) for i in range(40)))
    training, held_out = split_by_group(grouped, 0.3, 0, "faces")
    assert not set(training.groups) & set(held_out.groups)
    assert len(training) + len(held_out) == 40
    with pytest.raises(UserError, match="at least two"):
        split_by_group(faces.subset(torch.arange(10)), 0.2, 0, "faces")


def test_the_presets_are_configurations() -> None:
    assert preset_names("asmattack") == ["paper", "small", "tiny"]
    paper = load_preset("asmattack", "paper", TrainConfig)
    assert (paper.model, paper.optimiser, paper.epochs, paper.learning_rate) == (
        "timm:legacy_xception",
        "sgd",
        50,
        0.01,
    )
    assert load_preset("asmattack", "small", HardenConfig, "harden").learning_rate == 1e-3
