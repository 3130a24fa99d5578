"""Learners as people use them: tasks, files, resuming, rivals."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tenfold import UserError
from tenfold.runs import RunFolder
from vptnsp.config import METHODS, LearnerConfig, TrainConfig, for_method
from vptnsp.method.baselines import NearestClassMean, RandomProjectionRidge
from vptnsp.models.heads import TaskHeads
from vptnsp.models.networks import PromptedViT, check_images
from vptnsp.training import run as training
from vptnsp.training.learner import NSPLearner
from vptnsp.training.run import compare, run_prompts

CONFIG = LearnerConfig(epochs=2, batch_size=4, lr=0.01, temperature=1.0, precision="float32")
STREAM = TrainConfig(
    tasks=3,
    classes_per_task=2,
    samples_per_class=6,
    epochs=2,
    repeats=1,
    batch_size=6,
    temperature=1.0,
    precision="float32",
    seed=1,
)


def task_of(first: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(first)
    return torch.randn(count, 3, 16, 16, generator=generator), first + torch.arange(count) % 2


def flat(learner: NSPLearner) -> torch.Tensor:
    parts = [each.detach().flatten() for each in (*learner.vit.trainable_parameters(), *learner.head.parameters())]
    return torch.cat(parts)


def test_a_saved_learner_goes_on_as_if_it_had_never_stopped(small_vit, tmp_path):
    straight = NSPLearner(PromptedViT.from_timm(small_vit(), 4), CONFIG)
    for first in (0, 2):
        straight.partial_fit(*task_of(first))
    straight.save(tmp_path / "two")
    loaded = NSPLearner.load(tmp_path / "two", PromptedViT.from_timm(small_vit(), 4))
    assert loaded.tasks == [[0, 1], [2, 3]]
    images, _ = task_of(0)
    assert torch.equal(loaded.logits(images), straight.logits(images))
    for learner in (straight, loaded):
        learner.partial_fit(*task_of(4))
    torch.testing.assert_close(flat(loaded), flat(straight), atol=1e-6, rtol=0)
    assert set(loaded.predict(images).tolist()) <= set(range(6))


@pytest.mark.parametrize("conditions", ["paper", "exact"])
def test_a_stream_resumed_after_any_epoch_ends_the_same(tmp_path, monkeypatch, conditions):
    config = dataclasses.replace(STREAM, conditions=conditions)
    _, straight = run_prompts(config)
    folder = tmp_path / "run"
    run = RunFolder.create(folder, config)
    original, calls = NSPLearner.run_epoch, []

    def interrupted(self, task, loader):
        calls.append(task.epoch)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        return original(self, task, loader)

    monkeypatch.setattr(NSPLearner, "run_epoch", interrupted)
    drift = training.feature_drift

    def interrupted_at_the_end(*features):
        calls.append("end")
        if calls.count("end") == 1:
            raise KeyboardInterrupt
        return drift(*features)

    monkeypatch.setattr(training, "feature_drift", interrupted_at_the_end)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_prompts(config, None, run)
    _, resumed = run_prompts(config, None, run)
    # Each interruption repeated the epoch that it cut off, and no other.
    assert len(calls) == 3 * config.epochs + 2 + calls.count("end")
    assert straight["nullities"]
    for key in ("matrix", "drift", "final_loss", "nullities"):
        assert resumed[key] == straight[key], key
    assert [line["step"] for line in run.lines()] == list(range(1, 7))


def test_evaluate_reports_each_task(small_vit):
    learner = NSPLearner(PromptedViT.from_timm(small_vit(), 4), CONFIG)
    loaders = []
    for first in (0, 2):
        images, labels = task_of(first)
        learner.partial_fit(images, labels)
        loaders.append(DataLoader(TensorDataset(images, labels), 3))
    found = learner.evaluate(loaders)
    right = [(learner.predict(images) == labels).float().mean().item() for images, labels in (task_of(0), task_of(2))]
    assert found["accuracy"] == pytest.approx(right)
    assert found["acc_task_mean"] == pytest.approx(np.mean(right))
    assert all(aware >= accuracy for aware, accuracy in zip(found["task_aware"], found["accuracy"], strict=True))
    with pytest.raises(UserError, match="loaders of 1"):
        learner.evaluate(loaders[:1])
    with pytest.raises(UserError, match="not of task 1"):
        learner.evaluate(loaders[::-1])


def test_save_pretrained_and_from_pretrained_use_the_same_folder(tmp_path):
    learner = NSPLearner(
        None, dataclasses.replace(CONFIG, num_prompts=3, prompt_nullity_mode="fixed", prompt_nullity_value=2.0)
    )
    learner.fit_task(
        [(torch.randn(4, 3, 32, 32), torch.arange(4) % 2)],
        [(torch.randn(4, 3, 32, 32),)],
        [0, 1],
        names={0: "cat", 1: "dog"},
    )
    learner.save_pretrained(tmp_path / "hub")
    again = NSPLearner.from_pretrained(str(tmp_path / "hub"))
    assert again.names == {0: "cat", 1: "dog"}
    assert torch.equal(flat(again), flat(learner))
    assert again.config.num_prompts == 3


def test_prompts_travel_as_a_small_file(small_vit, tmp_path):
    model = PromptedViT.from_timm(small_vit(), 4)
    model.save_prompts(tmp_path / "prompts.safetensors")
    other = PromptedViT.from_timm(small_vit(), 4)
    other.load_prompts(tmp_path / "prompts.safetensors")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), other(images))
    assert (tmp_path / "prompts.safetensors").stat().st_size < 4000
    elsewhere = PromptedViT.from_timm(small_vit(), 4)
    elsewhere.name = "another"
    with pytest.raises(UserError, match="this backbone is another"):
        elsewhere.load_prompts(tmp_path / "prompts.safetensors")
    with pytest.raises(UserError, match="5 x 32"):
        PromptedViT.from_timm(small_vit(), 5).load_prompts(tmp_path / "prompts.safetensors")
    (tmp_path / "prompts.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is not a safetensors file"):
        model.load_prompts(tmp_path / "prompts.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "learner.json").unlink(), "learner.json is missing"),
        (lambda folder: (folder / "learner.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "is not a safetensors file"),
        (
            lambda folder: rewrite(folder, lambda d: d["backbone"].update(num_prompts=9)),
            "num_prompts is 9, this one's is 4",
        ),
        (lambda folder: rewrite(folder, lambda d: d["backbone"].update(fingerprint="0")), "fingerprint"),
        (lambda folder: rewrite(folder, lambda d: d.update(format=2)), "format 2"),
        (lambda folder: rewrite(folder, lambda d: d["config"].update(eta=1)), "eta"),
    ],
)
def test_damaged_learners_and_other_backbones_are_refused(small_vit, tmp_path, damage, message):
    learner = NSPLearner(PromptedViT.from_timm(small_vit(), 4), CONFIG)
    learner.partial_fit(*task_of(0))
    learner.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        NSPLearner.load(tmp_path, PromptedViT.from_timm(small_vit(), 4))


def rewrite(folder, change) -> None:
    found = json.loads((folder / "learner.json").read_text())
    change(found)
    (folder / "learner.json").write_text(json.dumps(found))


def test_a_learner_without_moments_cannot_project_the_next_task(small_vit, tmp_path):
    learner = NSPLearner(PromptedViT.from_timm(small_vit(), 4), CONFIG)
    learner.partial_fit(*task_of(0))
    learner.save(tmp_path)
    (tmp_path / "moments.safetensors").unlink()
    loaded = NSPLearner.load(tmp_path, PromptedViT.from_timm(small_vit(), 4))
    with pytest.raises(UserError, match="no second moments"):
        loaded.partial_fit(*task_of(2))
    NSPLearner.load(tmp_path, PromptedViT.from_timm(small_vit(), 4)).with_config(projection="none").partial_fit(
        *task_of(2)
    )


def test_bad_tasks_are_refused_before_anything_is_learnt(small_vit):
    learner = NSPLearner(PromptedViT.from_timm(small_vit(), 4), CONFIG)
    images, labels = task_of(0)
    with pytest.raises(UserError, match="nothing has been learnt"):
        learner.predict(images)
    with pytest.raises(UserError, match="at least two"):
        learner.begin_task([5])
    with pytest.raises(UserError, match="named twice"):
        learner.begin_task([5, 5])
    learner.partial_fit(images, labels)
    with pytest.raises(UserError, match="learnt before"):
        learner.begin_task([1, 2])
    training = learner.begin_task([2, 3])
    with pytest.raises(UserError, match="labels \\[0, 1\\] are not of task 2"):
        learner.run_epoch(training, [(images, labels)])
    with pytest.raises(UserError, match="no training pictures"):
        learner.run_epoch(training, [])
    with pytest.raises(UserError, match="task 2, epoch 1: the loss is nan"):
        learner.run_epoch(training, [(images * float("nan"), labels + 2)])
    with pytest.raises(UserError, match="takes \\[batch, 3, 16, 16\\]"):
        learner.predict(images[..., :9])
    for wrong in (images[:, :1], images[..., :9], images[0]):
        with pytest.raises(UserError, match="takes \\[batch, 3, 16, 16\\]"):
            check_images(wrong, 16)
    check_images(images[..., :9], None)
    with pytest.warns(UserWarning, match="0..255"):
        learner.predict(images * 200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: 0 is not"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"lr": 0.0}, "lr: 0 is not above 0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"eta1": 1.5}, "eta1: 1.5"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_values_that_no_run_could_use_are_refused_at_once(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_two_prompts_need_a_fixed_nullity(small_vit):
    learner = NSPLearner(PromptedViT.from_timm(small_vit(), 2), CONFIG)
    with pytest.raises(UserError, match="2 prompts have no adaptive nullity"):
        learner.partial_fit(*task_of(0))
    fixed = dataclasses.replace(CONFIG, prompt_nullity_mode="fixed", prompt_nullity_value=1.0)
    NSPLearner(PromptedViT.from_timm(small_vit(), 2), fixed).partial_fit(*task_of(0)).partial_fit(*task_of(2))


def test_the_official_second_head_continues_from_the_first():
    heads = TaskHeads(6, init="official")
    first = heads.add_task(3)
    assert first.bias.abs().max() == 0
    nn.init.normal_(first.weight)
    assert torch.equal(heads.add_task(3).weight, first.weight)
    assert not torch.equal(heads.add_task(3).weight, first.weight)
    assert [each.requires_grad for each in heads.parameters()] == [False, False, False, False, True, True]
    assert heads(torch.randn(2, 6)).shape == (2, 9)
    assert heads(torch.randn(2, 6), 1).shape == (2, 3)
    assert not torch.equal(TaskHeads(6).add_task(3).bias, torch.zeros(3))


def test_every_method_runs_in_the_same_loop_and_changes_what_it_says():
    results = compare(dataclasses.replace(STREAM, tasks=2, epochs=1), list(METHODS))
    assert set(results) == set(METHODS)
    assert results["frozen"]["drift"] == 0
    assert results["ncm"]["task_aware_forgetting"] == 0
    assert len(results["joint"]["matrix"]) == 1
    assert 0 < results["nsp2"]["drift"] < results["slow"]["drift"] < results["seq"]["drift"]
    assert for_method(dataclasses.replace(STREAM, method="affinity")).eta2 == 0


def test_class_means_and_ridge_do_not_depend_on_the_order_of_tasks(small_vit):
    images, labels = torch.randn(24, 3, 16, 16), torch.arange(24) % 4
    for make in (NearestClassMean, lambda backbone: RandomProjectionRidge(backbone, width=50, ridge=(1.0,))):
        outputs = []
        for order in ([[0, 1], [2, 3]], [[2, 3], [0, 1]]):
            classifier = make(small_vit())
            for classes in order:
                chosen = torch.isin(labels, torch.tensor(classes))
                classifier.fit_task([(images[chosen], labels[chosen])], classes)
            columns = [each for task in order for each in task]
            outputs.append(classifier.logits(images)[:, np.argsort(columns)])
        torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-3)


def test_ridge_regression_is_the_closed_form_of_all_tasks_at_once(small_vit):
    images, labels = torch.randn(20, 3, 16, 16), torch.arange(20) % 4
    ridge = RandomProjectionRidge(small_vit(), width=30, ridge=(10.0,))
    for classes in ([0, 1], [2, 3]):
        chosen = torch.isin(labels, torch.tensor(classes))
        ridge.fit_task([(images[chosen], labels[chosen])], classes)
    features = (ridge.features(images) @ ridge.random).relu().double()
    targets = nn.functional.one_hot(labels, 4).double()
    expected = torch.linalg.solve(features.T @ features + 10 * torch.eye(30), features.T @ targets)
    torch.testing.assert_close(ridge.weights.double(), expected, atol=1e-4, rtol=1e-3)


FAMILIES = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch16_siglip_224": {},
    "naflexvit_base_patch16_gap": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_work_on_every_family_of_timm(name):
    """Shrunk through keywords: a class token, two, four registers, LayerScale, a norm before, attention pooling."""
    patch = 14 if "14" in name else 16
    kwargs = {"embed_dim": 48, "depth": 2, "num_heads": 4}
    if not name.startswith("naflex"):
        kwargs["img_size"] = 2 * patch
    vit = PromptedViT.from_timm(name, 4, pretrained=False, **kwargs)
    learner = NSPLearner(vit, CONFIG)
    images = torch.randn(6, 3, 2 * patch, 2 * patch)
    for first in (0, 2):
        learner.partial_fit(images, first + torch.arange(6) % 2)
    for layer, prompt in vit.prompts().items():
        assert torch.isfinite(prompt).all()
        assert learner.moments.C1[layer].shape == (48, 48)
        assert learner.moments.C2[layer].shape == (4, 4)
    assert learner.logits(images).shape == (6, 4)


def test_unknown_models_and_missing_weights_are_one_line(tmp_path):
    with pytest.raises(UserError, match="timm has no such model"):
        PromptedViT.from_timm("vit_tiny_patch99")
    with pytest.raises(UserError, match="cannot read"):
        NSPLearner(
            None, dataclasses.replace(CONFIG, backbone="vit_tiny_patch16_224", checkpoint=tmp_path / "none.safetensors")
        )
    with pytest.raises(UserError, match="no CLIP model there"):
        NSPLearner(None, dataclasses.replace(CONFIG, backbone=f"clip:{tmp_path}"))
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="is not a safetensors file"):
        NSPLearner(None, dataclasses.replace(CONFIG, checkpoint=tmp_path / "broken.safetensors"))
