"""What a stranger's file can do to a learner: be refused in one line that names it, and nothing else."""

import dataclasses
import json
import os
import pickle
import shutil
from types import SimpleNamespace

import pytest
import timm
import torch

import vptnsp.models.networks as prompted_vit
from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.runs import RunFolder
from vptnsp.config import LearnerConfig, PretrainConfig, TrainConfig
from vptnsp.models.backbones import build_backbone
from vptnsp.models.networks import PromptedViT
from vptnsp.training.checkpoints import load_checkpoint
from vptnsp.training.learner import NSPLearner
from vptnsp.training.run import run_prompts

CONFIG = LearnerConfig(epochs=1, repeats=1, batch_size=4, temperature=1.0, precision="float32")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A saved learner of one task on the embedded backbone."""
    learner = NSPLearner(None, CONFIG)
    learner.partial_fit(torch.rand(4, 3, 32, 32), torch.arange(4) % 2)
    folder = tmp_path_factory.mktemp("saved")
    learner.save(folder)
    return folder


@pytest.fixture
def copy(good, tmp_path):
    shutil.copytree(good, tmp_path / "learner")
    return tmp_path / "learner"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(tasks=7), "tasks"),
        (lambda d: d.update(tasks=[[0, 0]]), "named twice"),
        (lambda d: d.update(tasks=[[0, "x"]]), "tasks"),
        (lambda d: d.update(tasks=[[0, 1], []]), "has none"),
        (lambda d: d.update(class_names=["a"]), "1 class names for 2 classes"),
        (lambda d: d.update(backbone=[]), "backbone"),
        (lambda d: d["backbone"].update(dim="x"), "dim"),
        (lambda d: d.update(config="x"), "config"),
        (lambda d: d["config"].update(epochs=1.5), "epochs"),
        (lambda d: d["config"].update(lr=-1.0), "lr"),
        (lambda d: d["config"].update(num_prompts=10**6), "num_prompts"),
        (lambda d: d["config"].update(backbone="timm/hf-hub:somebody"), "no such model"),
        (lambda d: d["config"].update(backbone="hf-hub:somebody/something"), "no such model"),
        (lambda d: d["config"].update(backbone="local-dir:."), "no such model"),
        (lambda d: d.pop("tasks"), "tasks"),
    ],
)
def test_a_description_that_cannot_be_true_is_refused(copy, change, message):
    content = json.loads((copy / "learner.json").read_text())
    change(content)
    (copy / "learner.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        NSPLearner.load(copy)
    assert "\n" not in str(caught.value)


def test_descriptions_that_are_no_objects_are_refused(copy):
    for text, message in (
        ("[]", "expected an object"),
        ('{"a":' * 50_000, "nested too deeply"),
        ("{", "not valid JSON"),
    ):
        (copy / "learner.json").write_text(text)
        with pytest.raises(UserError, match=message):
            NSPLearner.load(copy)


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    [
        ("model", "head.heads.0.weight", torch.zeros(2, 3), "do not fit"),
        ("model", "head.heads.0.weight", torch.full((2, 128), torch.inf), "NaN or infinite"),
        ("model", "head.heads.7.weight", torch.zeros(2, 128), "do not fit"),
        ("model", "prompts.blocks.0", torch.zeros(3, 128), "these prompts"),
        ("moments", "C1.blocks.0", torch.zeros(3, 3), "expected"),
        ("moments", "C1.blocks.0", torch.full((128, 128), torch.nan), "NaN or infinite"),
        ("moments", "C3.blocks.0", torch.zeros(3, 3), "is no second moment"),
        ("moments", "C1.blocks.9", torch.zeros(3, 3), "blocks without prompts"),
        ("moments", "num_samples", torch.tensor(0), "of how many images"),
        ("moments", "gaussian.means", torch.zeros(2, 128), "class statistics"),
    ],
)
def test_tensors_must_fit_the_learner(copy, file, name, value, message):
    path = copy / f"{file}.safetensors"
    write_tensors(path, read_tensors(path)[0] | {name: value})
    with pytest.raises(UserError, match=message) as caught:
        NSPLearner.load(copy)
    assert str(path) in str(caught.value)


def test_class_statistics_that_are_no_covariances_are_refused(copy):
    path = copy / "moments.safetensors"
    statistics = {"gaussian.means": torch.zeros(2, 128), "gaussian.covariances": -torch.eye(128).expand(2, 128, 128)}
    write_tensors(path, read_tensors(path)[0] | statistics)
    with pytest.raises(UserError, match="not positive definite"):
        NSPLearner.load(copy)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A checkpoint in the middle of the second task, and the configuration of its stream."""
    config = TrainConfig(
        epochs=2, repeats=1, batch_size=8, samples_per_class=2, tasks=2, classes_per_task=2, precision="float32"
    )
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", config)
    original, epochs = NSPLearner.run_epoch, []

    def stopping(*arguments):
        epochs.append(1)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NSPLearner, "run_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_prompts(config, run=run)
    return run.checkpoints / "state.safetensors", config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.notes.update(task="x"), "task"),
        (lambda found: found.notes.update(task=0), "do not fit together"),
        (lambda found: found.notes.update(names=["a"]), "do not fit together"),
        (lambda found: found.notes.update(accuracy=[[0.5]]), "do not fit together"),
        (lambda found: found.tensors.pop("first_features"), "first task are missing"),
        (lambda found: found.tensors.pop("model.head.heads.1.weight"), "1 missing"),
        (lambda found: found.tensors.update({"training.adam.x.step": torch.zeros(1)}), "optimizer"),
        (lambda found: found.tensors.pop("training.reference.blocks.0"), "these prompts"),
        (lambda found: found.tensors.update({"moments.C1.blocks.0": torch.zeros(2, 2)}), "expected"),
    ],
)
def test_a_checkpoint_that_cannot_be_true_is_refused(interrupted, tmp_path, change, message):
    tensors, metadata = read_tensors(interrupted[0])
    found = SimpleNamespace(tensors=tensors, notes=json.loads(metadata["stream"]))
    change(found)
    path = tmp_path / "state.safetensors"
    write_tensors(path, tensors, {"stream": json.dumps(found.notes)})
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path, NSPLearner(None, interrupted[1]))
    assert "state.safetensors" in str(caught.value)


def test_weights_of_a_torch_file_are_read_and_nothing_in_it_is_run(tmp_path):
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, num_classes=0, depth=12)
    path = tmp_path / "weights.pth"
    wrapped = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"model": {"never": torch.zeros(1)}, "state_dict_ema": wrapped}, path)
    config = dataclasses.replace(CONFIG, backbone=name, checkpoint=path)
    vit = build_backbone(config)
    assert vit.name == name
    assert torch.equal(vit.backbone.norm.weight, model.norm.weight)
    torch.save({"state_dict": wrapped | {"module.blocks.12.norm1.weight": torch.zeros(192)}}, path)
    with pytest.raises(UserError, match=r"1 unknown, first blocks\.12\.norm1\.weight"):
        build_backbone(config)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"weights\.pth: cannot read"):
        build_backbone(config)
    assert not (tmp_path / "run").exists()


def test_weights_of_the_hub_are_of_the_commit_that_is_said(monkeypatch, capsys, tmp_path):
    asked = {}

    def fetched(name, revision, **_):
        asked["fetched"] = (name, revision)
        return str(tmp_path / "0123abc")

    def created(name, **options):
        asked["created"] = options["pretrained_cfg_overlay"]
        return original(name, num_classes=0)

    original = timm.create_model
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    monkeypatch.setattr(prompted_vit.timm, "create_model", created)
    PromptedViT.from_timm("vit_tiny_patch16_224", blocks=[0], revision="v1")
    name = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert asked == {"fetched": (name, "v1"), "created": {"hf_hub_id": f"{name}@0123abc"}}
    assert f"{name}: commit 0123abc" in capsys.readouterr().err


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(shift=float("nan")),
        lambda: TrainConfig(classes_per_task=1),
        lambda: TrainConfig(workers=-1),
        lambda: PretrainConfig(glyph_classes=1),
        lambda: PretrainConfig(steps=0),
        lambda: LearnerConfig(nullity_value=float("inf")),
        lambda: LearnerConfig(num_prompts=2**30),
    ],
)
def test_values_that_no_run_could_use_are_refused_in_python_too(make):
    with pytest.raises(UserError):
        make()
    assert LearnerConfig(weight_decay=0.0, ln_weight=0.0, eta1=0.0, refine_epochs=0).eta1 == 0
