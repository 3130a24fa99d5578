"""What a stranger's file can do to a learner: be refused in one line that names it, and nothing else."""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from cskopt.config import METHODS, CsKOConfig, TrainConfig
from cskopt.data.datasets import shapes_corpus, zip_corpus
from cskopt.models.checkpoints import load_network
from cskopt.models.networks import CompactResNet, build_model
from cskopt.training import run as training
from cskopt.training.learner import IncrementalLearner
from cskopt.training.loop import SessionRecipe
from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.images import write_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def saved(folder: Path, method: str = "csko") -> Path:
    learner = IncrementalLearner("compact", num_classes=2, method=METHODS[method], accelerator=Accelerator(cpu=True))
    pictures = DataLoader(TensorDataset(torch.randn(4, 3, 16, 16), torch.arange(4) % 2), 4)
    learner.begin(pictures, range(2))
    learner.save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("learner"))


def load(folder: Path) -> IncrementalLearner:
    return IncrementalLearner.load(folder, accelerator=Accelerator(cpu=True))


def described(folder: Path, copy: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the learner whose description was changed."""
    for each in folder.iterdir():
        (copy / each.name).write_bytes(each.read_bytes())
    content = json.loads((copy / "cskopt.json").read_text())
    change(content)
    (copy / "cskopt.json").write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(seed="x"), "seed"),
        (lambda d: d.update(seed=-1), "seed"),
        (lambda d: d.update(sessions=7), "sessions"),
        (lambda d: d.update(sessions=[[0, 5]]), "without a gap"),
        (lambda d: d.update(method=7), "method"),
        (lambda d: d["method"].update(penalty="odd"), "penalty"),
        (lambda d: d["method"]["config"].update(channel_ratio="x"), "channel_ratio"),
        (lambda d: d["method"]["config"].update(channel_ratio=2.0), "channel_ratio"),
        (lambda d: d["method"]["config"].update(layers={"a": 1}), "layers"),
        (lambda d: d["method"]["config"].update(tap=[0, "x"]), "tap"),
        (lambda d: d.update(head="conv1"), "head 'conv1'"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.pop("head"), "head"),
        (lambda d: d.update(pictures={"classes": ["a"], "size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}), "1 classes"),
        (
            lambda d: d.update(pictures={"classes": ["a", "b"], "size": 2**30, "mean": [0, 0, 0], "std": [1, 1, 1]}),
            "pixels",
        ),
        (lambda d: d.update(pictures={"classes": ["a", "b"], "size": 8, "mean": [0, 0, 0], "std": [1, 1, 0]}), "std"),
        (lambda d: d.update(pictures=[]), "pictures"),
        # What would be fetched, or taken from another folder, were it not a name of the registry.
        (lambda d: d.update(architecture="timm:hf-hub:somebody/something"), "no such model"),
        (lambda d: d.update(architecture="timm:local-dir:."), "no such model"),
    ],
)
def test_a_description_that_cannot_be_true_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(described(folder, tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("prototypes/sums", torch.zeros(2, 3, dtype=torch.float64), "length 3"),
        ("prototypes/counts", torch.ones(5, dtype=torch.long), "counts"),
        ("prototypes/counts", torch.tensor([-1, 1]), "whole numbers from 0"),
        ("prototypes/sums", torch.full((2, 64), torch.nan, dtype=torch.float64), "NaN"),
        ("covariance/conv1", torch.eye(3), "conv1, which is no trained layer"),
        ("covariance/blocks.3.conv1", torch.eye(3), r"is \(3, 3\)"),
        ("gpm/blocks.3.conv1", torch.eye(3), "basis of blocks.3.conv1"),
        ("anchor/fc.weight", torch.zeros(2, 64), "anchor of fc.weight"),
    ],
)
def test_what_continual_learning_added_must_fit_the_model(
    folder: Path, tmp_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    described(folder, tmp_path, lambda _: None)
    path = tmp_path / "continual.safetensors"
    write_tensors(path, read_tensors(path)[0] | {name: tensor})
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert "continual.safetensors" in str(caught.value)


def test_weights_that_are_not_finite_are_refused_and_counters_may_lack() -> None:
    model = CompactResNet(2)
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        del weights[name]
    weights["fc.bias"] += 1
    load_network(model, weights, Path("w.safetensors"))
    assert torch.equal(model.state_dict()["fc.bias"], weights["fc.bias"])
    weights["fc.bias"][0] = torch.inf
    with pytest.raises(UserError, match=r"w\.safetensors: fc\.bias"):
        load_network(model, weights, Path("w.safetensors"))


def test_a_checkpoint_of_the_base_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(base_classes=2, increment=0, base_epochs=2, epochs=1, image_size=8, augment=False)
    corpus = shapes_corpus(3, 2, 1, 0, 8)
    monkeypatch.setattr(training, "_save_base", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train_run(corpus, config, tmp_path / "run", torch.device("cpu"))
    write_tensors(tmp_path / "run" / "checkpoints" / "base.safetensors", {"epoch": torch.tensor(-3)})
    with pytest.raises(UserError, match=r"base\.safetensors: is no checkpoint"):
        training.train_run(corpus, config, tmp_path / "run", torch.device("cpu"), resume=True)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(epochs=0),
        lambda: TrainConfig(lr=float("nan")),
        lambda: TrainConfig(seed=-1),
        lambda: TrainConfig(image_size=2**20),
        lambda: TrainConfig(channel_ratio=0.0),
        lambda: CsKOConfig(energy=float("nan")),
        lambda: CsKOConfig(grad_filter=0),
        lambda: SessionRecipe(lr=float("inf")),
        lambda: build_model("timm:hf-hub:somebody/something", 2),
    ],
)
def test_values_that_no_run_could_use_are_refused_in_python_too(make: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        make()
    assert TrainConfig(weight_decay=0.0, increment=0, proto_weight=0.0).increment == 0


def bomb() -> bytes:
    """A PNG whose header promises 50000 x 50000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(6251))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [(bomb(), "more pixels"), (b"text", "not a picture"), (bomb()[:40], "not a picture|damaged")],
)
def test_pictures_of_a_zip_are_bounded(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for part in ("train", "test"):
            archive.writestr(f"{part}/cat/0.png", content)
    with pytest.raises(UserError, match=message) as caught:
        zip_corpus(path, 8)
    assert "train/cat/0.png" in str(caught.value)


def test_names_that_leave_a_zip_are_no_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "p.png", np.zeros((4, 4, 3), np.float32))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("train/cat/0.png", "test/cat/0.png", "../../train/dog/0.png", "/train/elk/0.png"):
            archive.writestr(zipfile.ZipInfo(name), (tmp_path / "p.png").read_bytes())
    assert zip_corpus(path, 8).classes == ("cat",)
