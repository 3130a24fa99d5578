"""Training: resumed = uninterrupted, who is trained by what, several processes, every method and option runs."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tadsr.config import DistillConfig, TeacherConfig
from tadsr.data.datasets import CropDraws, refuse_overlap, training_pictures
from tadsr.models.autoencoders import IdentityAutoencoder
from tadsr.models.networks import ResShiftUNet
from tadsr.models.registry import create_network, create_scheduler
from tadsr.pipeline.pipeline import TADSRPipeline
from tadsr.training.loop import Batch, fit, learning_rate_at, restore, save, update_ema
from tadsr.training.run import distill, train_teacher
from tadsr.training.step import TIMES_D, TIMES_H, Distiller
from tadsr.training.teacher import TeacherTraining
from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.images import write_image
from tenfold.runs import RunFolder, seed_everything

COMMON = {
    "batch_size": 2,
    "crop": 32,
    "cropping": "native",
    "learning_rate": 1e-3,
    "warmup": 2,
    "ema": 0.9,
    "degradation": "bicubic",
    "precision": "float32",
    "seed": 3,
    "save_every": 2,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(3):
        write_image(folder / f"{index}.png", rng.random((40, 48, 3)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, photos):
    out = tmp_path_factory.mktemp("teacher") / "run"
    train_teacher([photos], TeacherConfig(**COMMON, steps=4, network="tiny"), out, device="cpu")
    return out


def weights(run):
    return load_file(run / "checkpoints" / "last.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stop_after(training, step):
    """Let Ctrl-C arrive in that step."""
    original = training.step

    def interrupted(batch, accelerator):
        if batch.step == step:
            raise KeyboardInterrupt
        return original(batch, accelerator)

    training.step = interrupted
    return training


def test_a_resumed_teacher_is_the_uninterrupted_one(teacher, photos, tmp_path):
    config = TeacherConfig(**COMMON, steps=4, network="tiny")
    torch.manual_seed(3)
    training = TeacherTraining(*create_network("tiny"), create_scheduler(15, 0.04), config)
    with pytest.raises(KeyboardInterrupt):
        fit(stop_after(training, 3), [photos], config, tmp_path / "run", device="cpu")
    train_teacher([photos], config, tmp_path / "run", resume=True, device="cpu")
    assert same(weights(tmp_path / "run"), weights(teacher))
    assert [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()] == [4]


def test_a_resumed_student_is_the_uninterrupted_one(teacher, photos, tmp_path):
    config = DistillConfig(**COMMON, steps=3, logits=4, lambda_hsd=0.1, lambda_adv=0.2)
    distill(TADSRPipeline.load(teacher), [photos], config, tmp_path / "whole", device="cpu")
    source = TADSRPipeline.load(teacher)
    torch.manual_seed(3)
    student = Distiller(source.unet, source.vae, source.scheduler, config)
    with pytest.raises(KeyboardInterrupt):
        fit(stop_after(student, 2), [photos], config, tmp_path / "parts", device="cpu")
    distill(TADSRPipeline.load(teacher), [photos], config, tmp_path / "parts", resume=True, device="cpu")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert TADSRPipeline.load(tmp_path / "parts").config.steps == 1


def test_a_run_stopped_between_its_last_weights_and_its_result_has_the_same_result(
    teacher, photos, tmp_path, monkeypatch
):
    config = TeacherConfig(**COMMON, steps=4, network="tiny")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            train_teacher([photos], config, tmp_path / "run", device="cpu")
    train_teacher([photos], config, tmp_path / "run", resume=True, device="cpu")
    files = [
        "result.json",
        "metrics.jsonl",
        "checkpoints/last.safetensors",
        "model/unet/diffusion_pytorch_model.safetensors",
    ]
    for name in files:
        assert (tmp_path / "run" / name).read_bytes() == (teacher / name).read_bytes(), name
    assert json.loads((teacher / "result.json").read_text())["loss"] > 0


def test_a_disk_that_is_full_leaves_the_model_that_was_there(teacher, photos, tmp_path, monkeypatch):
    original, calls = TeacherTraining.export, []

    def export(self, folder):
        calls.append(folder)
        original(self, folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TeacherTraining, "export", export)
    config = TeacherConfig(**COMMON, steps=4, network="tiny")
    with pytest.raises(UserError, match="No space left"):
        train_teacher([photos], config, tmp_path / "run", device="cpu")
    assert TADSRPipeline.load(tmp_path / "run").config.steps == 0
    train_teacher([photos], config, tmp_path / "run", resume=True, device="cpu")
    names = [
        sorted(path.relative_to(run) for path in run.rglob("*") if "tensorboard" not in str(path))
        for run in (tmp_path / "run", teacher)
    ]
    assert [each for each in names[0] if each.name != "run.lock"] == [
        each for each in names[1] if each.name != "run.lock"
    ]


def test_a_resumed_student_remembers_how_long_its_discriminator_has_won(teacher, tmp_path):
    def student():
        parts = TADSRPipeline.load(teacher)
        return Distiller(parts.unet, parts.vae, parts.scheduler, DistillConfig(**COMMON, steps=900, logits=4))

    stopped = student()
    stopped.counts["won"] = 499
    save(tmp_path / "c.safetensors", stopped, 600)
    resumed = student()
    restore(tmp_path / "c.safetensors", resumed, 900)
    assert resumed.counts == {"won": 499}
    tensors, _ = read_tensors(tmp_path / "c.safetensors")
    write_tensors(tmp_path / "c.safetensors", tensors, {"progress": '{"step": 600, "won": "all"}'})
    with pytest.raises(UserError, match="won 'all'"):
        restore(tmp_path / "c.safetensors", resumed, 900)


def test_a_damaged_checkpoint_is_named(teacher, tmp_path):
    training = TeacherTraining(*create_network("tiny"), create_scheduler(15, 0.04), TeacherConfig(**COMMON, steps=4))
    good = teacher / "checkpoints/last.safetensors"
    tensors, metadata = read_tensors(good)
    for change, word in (
        ({"progress": "[]"}, "damaged"),
        ({"progress": '{"step": 9}'}, "of step 9"),
        ({}, "not written by"),
    ):
        write_tensors(tmp_path / "c.safetensors", tensors, change)
        with pytest.raises(UserError, match=word):
            restore(tmp_path / "c.safetensors", training, 4)
    other = {name.replace("optimiser.student.0.", "optimiser.student.999."): value for name, value in tensors.items()}
    write_tensors(tmp_path / "c.safetensors", other, metadata)
    with pytest.raises(UserError, match="other parameters"):
        restore(tmp_path / "c.safetensors", training, 4)


def test_a_loss_that_is_not_finite_leaves_the_last_good_weights(photos, tmp_path):
    config = TeacherConfig(**COMMON, steps=4, network="tiny")
    training = TeacherTraining(*create_network("tiny"), create_scheduler(15, 0.04), config)
    original = training.step

    def diverging(batch, accelerator):
        logged = original(batch, accelerator)
        return {"loss": logged["loss"] * torch.nan} if batch.step == 3 else logged

    training.step = diverging
    with pytest.raises(UserError, match="loss of step 4 is not finite"):
        fit(training, [photos], config, tmp_path / "run", device="cpu")
    assert restore(tmp_path / "run/checkpoints/last.safetensors", training, 4) == 2
    assert TADSRPipeline.load(tmp_path / "run").config.steps == 0


@pytest.mark.parametrize(
    "options",
    [
        {"method": "regression", "target": "ground-truth"},
        {"method": "sinsr"},
        {"method": "sds", "lambda_adv": 0.0},
        {"method": "vsd", "lambda_adv": 0.0},
        {"discriminator": "multiple", "perturbation": "uniform", "double_scale": True, "tap_reduction": "taps"},
        {"discriminator": "vanilla"},
    ],
)
def test_every_method_trains(teacher, options, photos, tmp_path):
    config = DistillConfig(**COMMON, steps=1, logits=4, **options)
    before = TADSRPipeline.load(teacher).unet.state_dict()
    losses = distill(TADSRPipeline.load(teacher), [photos], config, tmp_path / "run", device="cpu")
    assert np.isfinite(losses["loss"])
    after = TADSRPipeline.load(tmp_path / "run").unet.state_dict()
    assert not same(before, after)


def batch(step=0):
    generator = torch.Generator().manual_seed(step)
    hr = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    return Batch(hr, torch.nn.functional.avg_pool2d(hr, 4), range(2), 2, step, 7)


def test_the_two_steps_train_whom_they_should(teacher):
    source = TADSRPipeline.load(teacher)
    distiller = Distiller(
        source.unet, source.vae, source.scheduler, DistillConfig(**COMMON, steps=2, logits=4, lambda_adv=0.2)
    )
    accelerator = Accelerator(cpu=True, device_placement=False)
    distiller.prepare(accelerator)
    teacher_before = {key: value.clone() for key, value in distiller.teacher.state_dict().items()}
    student_before = {key: value.clone() for key, value in distiller.student.state_dict().items()}
    seen = {}
    original = distiller._discriminator_step

    def watched(*arguments):
        loss = original(*arguments)
        seen["student"] = same(student_before, distiller.student.state_dict())
        seen["discriminator"] = {key: value.clone() for key, value in distiller.discriminator.state_dict().items()}
        return loss

    distiller._discriminator_step = watched
    logged = distiller.step(batch(), accelerator)
    assert logged["discriminator"].item() == pytest.approx(2, abs=0.7), "hinge of logits near zero"
    assert seen["student"], "the discriminator's step leaves the student alone"
    assert same(seen["discriminator"], distiller.discriminator.state_dict()), (
        "and the student's leaves the discriminator"
    )
    assert same(teacher_before, distiller.teacher.state_dict())
    assert not same(student_before, distiller.student.state_dict())
    assert all(each.grad is None for each in distiller.teacher.parameters())


def test_times_are_drawn_from_the_published_ranges(teacher, monkeypatch):
    source, limits = TADSRPipeline.load(teacher), {}
    original = Batch.times

    def watched(self, stream, limit):
        limits[stream] = limit
        return original(self, stream, limit)

    monkeypatch.setattr(Batch, "times", watched)
    config = DistillConfig(**COMMON, steps=2, logits=4)
    distiller = Distiller(source.unet, source.vae, source.scheduler, config)
    accelerator = Accelerator(cpu=True, device_placement=False)
    distiller.prepare(accelerator)
    distiller.step(batch(), accelerator)
    assert limits == {TIMES_D: 14, TIMES_H: 3}, "0..T-2 for the discriminator, 0, 1, 2 for score distillation"


def test_without_scores_and_adversary_it_is_regression(teacher):
    states = []
    for options in ({"method": "tad-sr", "lambda_hsd": 0.0, "lambda_adv": 0.0}, {"method": "regression"}):
        source = TADSRPipeline.load(teacher)
        distiller = Distiller(source.unet, source.vae, source.scheduler, DistillConfig(**COMMON, steps=2, **options))
        assert same(distiller.student.state_dict(), source.unet.state_dict()), "starts as the teacher"
        accelerator = Accelerator(cpu=True, device_placement=False)
        distiller.prepare(accelerator)
        distiller.step(batch(), accelerator)
        states.append(distiller.student.state_dict())
    assert same(*states)


def test_the_adversary_alone_trains_the_student(teacher):
    source = TADSRPipeline.load(teacher)
    config = DistillConfig(**COMMON, steps=2, logits=4, lambda_reg=0.0, lambda_hsd=0.0, lambda_adv=1.0)
    distiller = Distiller(source.unet, source.vae, source.scheduler, config)
    accelerator = Accelerator(cpu=True, device_placement=False)
    distiller.prepare(accelerator)
    distiller.step(batch(), accelerator)
    assert not same(distiller.student.state_dict(), source.unet.state_dict())


def test_random_numbers_follow_from_the_step_and_cover_their_range():
    times = torch.cat([batch(step).times(0, 3) for step in range(500)])
    assert set(times.tolist()) == {0, 1, 2}
    noise = torch.cat([batch(step).normal(1, torch.zeros(2, 48, 16, 16)).flatten() for step in range(45)])
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    whole = batch().normal(1, torch.zeros(2, 3, 4, 4))
    second = Batch(batch().hr[1:], batch().lr[1:], range(1, 2), 2, 0, 7).normal(1, torch.zeros(1, 3, 4, 4))
    assert torch.equal(whole[1:], second), "a process draws its share of the whole batch"


def test_learning_rate_and_average():
    config = TeacherConfig(steps=10, warmup=4, learning_rate=1.0, decay="cosine")
    assert [learning_rate_at(step, config) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate_at(10, config) == pytest.approx(0)
    ema, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(ema.weight)
    torch.nn.init.ones_(model.weight)
    for _ in range(3):
        update_ema(ema, model, 0.999)
    assert ema.weight.item() == pytest.approx(1 - 0.999**3, abs=1e-6)


def test_crops_follow_from_the_seed(photos):
    paths = training_pictures([photos], 32)
    for cropping in ("native", "rescaled"):
        kept, read = (CropDraws(paths, 32, 5, keep, cropping) for keep in (True, False))
        assert kept[0].shape == (3, 32, 32)
        assert all(torch.equal(kept[index], read[index]) for index in range(6))
        assert not torch.equal(kept[0], kept[1])
    (whole,) = (CropDraws(paths[:1], 40, 5, True, "rescaled")[index] for index in range(1))
    image = CropDraws(paths[:1], 40, 5, True, "native").picture(0)
    columns = image.permute(2, 0, 1).float().div(255).unfold(2, 40, 1).unbind(2)
    assert any(torch.equal(whole, c) or torch.equal(whole, c.flip(2)) for c in columns), "a square of the short side"


def test_faces_keep_their_size(photos, tmp_path):
    torch.manual_seed(0)
    unet = ResShiftUNet(
        image_size=8,
        model_channels=32,
        channel_mult=(1, 1),
        num_res_blocks=(1, 1),
        swin_embed_dim=32,
        window_size=4,
        lq_size=8,
    )
    teacher = TADSRPipeline(unet.eval(), IdentityAutoencoder(), create_scheduler(4, 0.2), scale=1, steps=0)
    config = DistillConfig(**(COMMON | {"degradation": "faces"}), steps=1, logits=4, lambda_hsd=0.1, lambda_adv=0.2)
    losses = distill(teacher, [photos], config, tmp_path / "run", device="cpu")
    assert np.isfinite(losses["loss"])
    student = TADSRPipeline.load(tmp_path / "run")
    assert student(torch.rand(1, 3, 17, 13), output_type="pt").images.shape == (1, 3, 17, 13)


def test_bad_training_input(photos, teacher, tmp_path):
    config = TeacherConfig(**COMMON, steps=1, network="tiny")
    with pytest.raises(UserError, match="lower --crop"):
        training_pictures([photos], 400)
    with pytest.raises(UserError, match="no such file or folder"):
        train_teacher([tmp_path / "none"], config, tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="was trained on it"):
        refuse_overlap(teacher, photos)
    with pytest.raises(UserError, match="was trained on it"):
        refuse_overlap(teacher, photos.parent)
    refuse_overlap(teacher, tmp_path)
    with pytest.raises(UserError, match="--crop 32: this network needs a multiple of 64"):
        train_teacher([photos], TeacherConfig(**COMMON, steps=1, network="swin"), tmp_path / "run", device="cpu")
    faces = DistillConfig(**(COMMON | {"degradation": "faces"}), steps=1)
    with pytest.raises(UserError, match="enlarges 4 times"):
        distill(TADSRPipeline.load(teacher), [photos], faces, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    other = TeacherTraining(*create_network("compact"), create_scheduler(15, 0.04), config)
    with pytest.raises(UserError, match="do not fit CompactDenoiser"):
        restore(teacher / "checkpoints/last.safetensors", other, 4)


def test_two_processes_train_as_one(photos, teacher, tmp_path):
    script = f"""
from pathlib import Path
from accelerate import debug_launcher
from tadsr.config import TeacherConfig
from tadsr.training.run import train_teacher
recipe = TeacherConfig(**{COMMON!r}, steps=4, network="tiny")
debug_launcher(lambda: train_teacher([Path({str(photos)!r})], recipe, Path({str(tmp_path / "run")!r}), device="cpu"))
"""
    # One start of the interpreter for both: the processes are forked after the imports.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-c", script]
    done = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = weights(teacher), weights(Path(tmp_path / "run"))
    seed_everything(COMMON["seed"])
    start = create_network("tiny")[0].state_dict()
    for key, value in start.items():
        for name in (f"unet.{key}", f"ema.{key}"):
            # Gradients are the same sums in another order: relative errors far below a per cent. Where a gradient is next to
            # nothing Adam enlarges them, but not its step; a process that is left out changes half of every step.
            assert (two[name] - one[name]).norm() <= 0.01 * (one[name] - value).norm(), name
    assert not same(start, {key: one[f"unet.{key}"] for key in start})


WIRED = {
    # towards the teacher's own output
    "regression": ("regression_loss", lambda z, _: (z - z.detach()).square().flatten(1).sum(1)),
    # high-frequency score distillation
    "score": ("gradient_loss", lambda _, z: (z - z.detach()).flatten(1).sum(1)),
    # the student's side of the time-aware adversarial loss
    "adversarial": ("hinge_g", lambda logits, _: sum(each.mean() for each in logits) * 0),
    # the discriminator's own training
    "discriminator": ("hinge_d", lambda real, fake, _: sum(each.mean() for each in (*real, *fake)) * 0),
}
"""The paper's terms of distillation: the function of `tadsr.training.step` that computes each, and one without it."""


@pytest.mark.parametrize("term", [None, *WIRED])
def test_without_a_term_another_student_is_distilled(teacher, photos, tmp_path, monkeypatch, term):
    config = DistillConfig(**COMMON, steps=3, logits=4, lambda_hsd=0.1, lambda_adv=0.2)
    distill(TADSRPipeline.load(teacher), [photos], config, tmp_path / "whole", device="cpu")
    if term is not None:
        monkeypatch.setattr(f"tadsr.training.step.{WIRED[term][0]}", WIRED[term][1])
    distill(TADSRPipeline.load(teacher), [photos], config, tmp_path / "without", device="cpu")
    students = [
        load_file(tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors") for name in ("whole", "without")
    ]
    assert same(*students) == (term is None)
