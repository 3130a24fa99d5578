"""Whole runs: data on disk in its layouts, sessions, checkpoints, resuming, two processes."""

import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState
from torchvision import datasets

from cskopt.config import TrainConfig
from cskopt.data.datasets import (
    SessionPictures,
    as_loader,
    augment,
    class_order,
    load_corpus,
    shapes_corpus,
    zip_corpus,
)
from cskopt.data.synthetic import shape_pictures
from cskopt.training import run as training
from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.config import load_preset
from tenfold.images import write_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CONFIG = replace(
    load_preset("cskopt", "tiny", TrainConfig),
    base_classes=4,
    increment=2,
    base_epochs=2,
    image_size=16,
    batch_size=16,
    precision="fp32",
)
CPU = torch.device("cpu")


def corpus_of(classes: int = 8, train: int = 8) -> object:
    return shapes_corpus(classes, train, 4, 0, 16)


def picture_folders(root: Path, parts: tuple[str, ...], classes: tuple[str, ...], count: int, nested: str = "") -> None:
    rng = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            for index in range(count):
                write_image(root / part / name / nested / f"{index}.png", rng.random((9, 12, 3), dtype=np.float32))


def test_generated_classes_are_the_same_every_time_and_parts_differ() -> None:
    one, labels = shape_pictures(3, 4, 7)
    two, _ = shape_pictures(3, 4, 7)
    held, _ = shape_pictures(3, 4, 7, "test")
    assert torch.equal(one, two)
    assert not torch.equal(one, held)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert one.dtype == torch.uint8
    assert one.float().std() > 20


def test_sessions_divide_the_classes_in_order_of_arrival() -> None:
    order = class_order(8, CONFIG)
    assert [list(each) for each in order.sessions] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    shuffled = class_order(200, replace(CONFIG, order="shuffled", base_classes=100, increment=20))
    assert list(shuffled.order) == np.random.RandomState(1993).permutation(200).tolist()
    assert len(shuffled.sessions) == 6
    assert [len(each) for each in class_order(8, replace(CONFIG, increment=0)).sessions] == [4, 4]
    with pytest.raises(UserError, match="has 3 classes"):
        class_order(3, CONFIG)
    with pytest.raises(UserError, match="do not divide"):
        class_order(9, CONFIG)


def test_a_session_has_only_its_own_classes_with_ids_of_arrival() -> None:
    corpus = corpus_of()
    order = class_order(8, replace(CONFIG, order="shuffled"))
    dataset = SessionPictures(corpus.train, order, order.labels_of(1), corpus)
    x, y = next(iter(as_loader(dataset, 64)))
    assert sorted(set(y.tolist())) == [4, 5]
    label = order.order[4]
    expected = corpus.train.take((corpus.train.labels == label).nonzero().flatten()[:1]).float() / 255
    torch.testing.assert_close(x[y == 4][:1], (expected - 0.5) / 0.35)
    assert dataset[0][0].shape == (3, 16, 16)


def test_augmentation_moves_and_mirrors_each_picture_by_itself() -> None:
    picture = torch.rand(1, 3, 16, 16).expand(64, -1, -1, -1)
    out = augment(picture)
    assert out.shape == picture.shape
    assert len({each.sum().item() for each in out}) > 32
    assert out.min() >= 0
    assert out.max() <= 1


def test_folders_with_parts_nested_folders_and_folders_without_parts_are_read(tmp_path: Path) -> None:
    picture_folders(tmp_path / "a", ("train", "test"), ("n01", "n02"), 2, "images")  # Tiny-ImageNet's nesting
    corpus = load_corpus(str(tmp_path / "a"), 8)
    assert corpus.classes == ("n01", "n02")
    assert (len(corpus.train), len(corpus.test)) == (4, 4)
    assert corpus.train.take(torch.tensor([0, 3])).shape == (2, 3, 8, 8)
    picture_folders(tmp_path / "b", ("",), ("cat", "dog"), 5)
    whole = load_corpus(str(tmp_path / "b"), 8)
    assert (len(whole.train), len(whole.test)) == (8, 2)


def test_a_zip_of_parts_is_read(tmp_path: Path) -> None:
    picture_folders(tmp_path / "c", ("train", "test"), ("cat", "dog"), 3)
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for each in sorted((tmp_path / "c").rglob("*.png")):
            archive.write(each, each.relative_to(tmp_path / "c"))
    corpus = zip_corpus(path, 8, per_class=2)
    assert (len(corpus.train), len(corpus.test), corpus.classes) == (4, 2, ("cat", "dog"))
    assert len(load_corpus(str(path), 8).train) == 6


def test_cifar100_is_read_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        entry = {"data": rng.integers(0, 255, (6, 3072), dtype=np.uint8), "fine_labels": [0, 1, 2, 0, 1, 2]}
        (folder / part).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear", "can"]}))
    monkeypatch.setattr(datasets.CIFAR100, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    corpus = load_corpus("cifar100", 32, root=tmp_path)
    assert corpus.classes == ("apple", "bear", "can")
    assert corpus.train.take(torch.arange(6)).shape == (6, 3, 32, 32)


def test_digits_come_with_scikit_learn() -> None:
    corpus = load_corpus("digits", 16)
    assert len(corpus.train) + len(corpus.test) == 1797


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: load_corpus(str(root / "nowhere"), 8), "no such folder"),
        (lambda root: load_corpus(str(root), 8), "one folder per class"),
        (lambda root: load_corpus("cifar100", 8, root=root), "is not there"),
        (lambda root: load_corpus(str(root / "x.zip"), 8), r"x\.zip: cannot read"),
    ],
)
def test_data_that_is_not_there_is_said(tmp_path: Path, make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path)  # ty: ignore[call-non-callable]  # a lambda


def test_damaged_pictures_and_classes_that_differ_are_said(tmp_path: Path) -> None:
    picture_folders(tmp_path, ("train",), ("cat", "dog"), 2)
    picture_folders(tmp_path, ("test",), ("cat", "cow"), 2)
    with pytest.raises(UserError, match="different classes"):
        load_corpus(str(tmp_path), 8)
    victim = tmp_path / "train" / "cat" / "0.png"
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(UserError, match=r"0\.png"):
        load_corpus(str(tmp_path / "train"), 8)
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        archive.writestr("a.png", b"")
    with pytest.raises(UserError, match="train/CLASS"):
        load_corpus(str(tmp_path / "flat.zip"), 8)


def test_the_learning_rate_rises_and_falls() -> None:
    cosine = [training.learning_rate_factor(p, one_cycle=False) for p in (0.0, 0.5, 1.0)]
    assert cosine == pytest.approx([1, 0.5, 0])
    cycle = [training.learning_rate_factor(p, one_cycle=True) for p in (0.0, 0.3, 1.0)]
    assert cycle == pytest.approx([0.04, 1, 0])


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    training.train_run(corpus_of(), CONFIG, out, CPU)
    return out


def lines_of(folder: Path) -> list[dict]:
    lines = [json.loads(each) for each in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in each.items() if key != "seconds"} for each in lines]


@pytest.mark.parametrize("where", ["base", "session"])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    corpus, out = corpus_of(), tmp_path / "run"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "session":
            # Ctrl-C in the second incremental session.
            real = training.IncrementalLearner.fit_session
            patch.setattr(
                training.IncrementalLearner,
                "fit_session",
                lambda self, *a, **k: stop() if len(self.sessions) == 2 else real(self, *a, **k),
            )
        else:
            # Ctrl-C in the second epoch, after its line was logged and before its checkpoint was written.
            real_save = training._save_base
            patch.setattr(training, "_save_base", lambda *a: stop() if a[-1] == 2 else real_save(*a))
        with pytest.raises(KeyboardInterrupt):
            training.train_run(corpus, CONFIG, out, CPU)
    assert not (out / "result.json").exists()
    with pytest.raises(UserError, match="--resume"):
        training.train_run(corpus, CONFIG, out, CPU)
    training.train_run(corpus, CONFIG, out, CPU, resume=True)
    assert result_of(out) == result_of(uninterrupted)
    assert lines_of(out) == lines_of(uninterrupted)
    last = "checkpoints/session-002/model.safetensors"
    assert (out / last).read_bytes() == (uninterrupted / last).read_bytes()


def test_a_finished_run_has_its_parts(uninterrupted: Path) -> None:
    result = result_of(uninterrupted)
    assert len(result["accuracies"]) == 3
    assert result["classes"] == 8
    assert (uninterrupted / "config.toml").exists()
    steps = [each["step"] for each in lines_of(uninterrupted)]
    assert steps == [1, 2, 2, 3, 4]


def test_weights_can_be_given_instead_of_training_the_base(uninterrupted: Path, tmp_path: Path) -> None:
    learner = training.IncrementalLearner.load(uninterrupted / "checkpoints" / "session-000")
    path = tmp_path / "base.safetensors"
    write_tensors(path, learner.stock_weights())
    _, scores, _ = training.train_run(corpus_of(), replace(CONFIG, weights=str(path)), tmp_path / "run", CPU)
    assert scores.seen[0] == pytest.approx(result_of(uninterrupted)["scores"]["seen"][0])
    other = replace(CONFIG, weights=str(path), model="resnet18_cifar")
    with pytest.raises(UserError, match="do not fit"):
        training.train_run(corpus_of(), other, tmp_path / "other", CPU)


def train_in_this_process(weights: Path, out: Path) -> None:
    AcceleratorState._reset_state(True)  # the parent's state came along with the fork
    torch.set_num_threads(1)
    training.train_run(corpus_of(), replace(CONFIG, weights=str(weights)), out, CPU)
    assert PartialState().num_processes == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the launcher for tests forks")
def test_two_processes_give_the_result_of_one(uninterrupted: Path, tmp_path: Path) -> None:
    # The base is given: batch normalisation in it would see half a batch in each process.
    weights = tmp_path / "base.safetensors"
    base = training.IncrementalLearner.load(uninterrupted / "checkpoints" / "session-000")
    write_tensors(weights, base.stock_weights())
    debug_launcher(train_in_this_process, (weights, tmp_path / "two"), num_processes=2)
    training.train_run(corpus_of(), replace(CONFIG, weights=str(weights)), tmp_path / "one", CPU)
    start, one, two = (
        read_tensors(tmp_path / each / "model.safetensors")[0]
        for each in ("one/checkpoints/session-000", "one/checkpoints/session-002", "two/checkpoints/session-002")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        change = value.clone()
        change[: len(start[name])] -= start[name]  # rows of new classes count from nothing
        # Gradients are the same sums in another order: relative errors far below a per cent. Where a gradient is next to
        # nothing Adam enlarges them, but not its step; a process that is left out changes half of every step.
        assert (two[name] - value).norm() <= 0.01 * change.norm(), name
