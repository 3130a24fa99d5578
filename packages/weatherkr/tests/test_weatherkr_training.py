"""Learning in sequence: resumed equals uninterrupted, cached equals live, methods, memory, projector (section 14: 5, 8, 9, 19, 22, 24, 26)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.config import load_preset
from weatherkr.benchmark.comparison import compare, comparison_rows
from weatherkr.config import METHODS, TrainConfig
from weatherkr.data.datasets import TensorPairs
from weatherkr.data.samplers import StepBatches
from weatherkr.data.tasks import Task
from weatherkr.data.weather import KINDS, degrade
from weatherkr.evaluation.figures import curves_svg
from weatherkr.method.losses import Objective, Weights
from weatherkr.method.memory import ReplayMemory
from weatherkr.models.networks import WeatherNet
from weatherkr.models.projector import PCAProjector
from weatherkr.training.checkpoints import Progress, load_checkpoint, read_progress, save_checkpoint
from weatherkr.training.learner import carry_over, learn_task
from weatherkr.training.run import train
from weatherkr.training.state import LearnerState, load_projector, newest_state, resolve_state, save_projector
from weatherkr.training.teacher import CachedTeacher, LiveTeacher, Teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return load_preset(
        "weatherkr", "tiny", TrainConfig, steps=6, batch_size=2, crop=16, precision="float32", save_every=2
    )


def weather_task(kind: str, seed: int = 0) -> Task:
    coarse = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(seed + 10 * KINDS.index(kind)))
    clean = torch.nn.functional.interpolate(coarse, (24, 24), mode="bicubic").clamp(0, 1)
    pairs = TensorPairs(degrade(clean, kind, torch.Generator().manual_seed(seed), scale=0.4), clean)
    return Task(kind, pairs, pairs.first(2))


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [weather_task(kind) for kind in ("haze", "rain", "snow")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return LearnerState.load(resolve_state(folder)).net.state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def whole(config, tasks, tmp_path_factory) -> Path:
    """An uninterrupted run through three tasks."""
    out = tmp_path_factory.mktemp("run") / "whole"
    train(tasks, config, out, device="cpu")
    return out


@pytest.mark.parametrize(("task", "step"), [(0, 3), (1, 5), (2, 2)])
def test_an_interrupted_run_resumes_to_the_same_bits(config, tasks, whole, tmp_path, monkeypatch, task, step) -> None:
    real, count = StepBatches.__getitem__, 0

    def interrupted(self: StepBatches, index: int):
        nonlocal count
        if self.number == task and index == step and count == 0:
            count = 1
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(StepBatches, "__getitem__", interrupted)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tasks, config, out, device="cpu")
    assert not (out / "run.lock").exists(), "other processes may go on with it"
    train(tasks, config, out, device="cpu", resume=True)
    assert not (out / "run.lock").exists()
    assert count == 1
    assert same(weights(out), weights(whole))
    lines = [(path / "metrics.jsonl").read_text() for path in (out, whole)]
    assert lines[0] == lines[1]
    assert (out / "result.json").read_text() == (whole / "result.json").read_text()


def test_learning_on_from_a_run_equals_learning_all_at_once(config, tasks, whole, tmp_path) -> None:
    train(tasks[:2], config, tmp_path / "first", device="cpu")
    train(tasks[2:], config, tmp_path / "second", device="cpu", start=newest_state(tmp_path / "first"))
    assert same(weights(tmp_path / "second"), weights(whole))
    assert LearnerState.load(resolve_state(tmp_path / "second")).learnt == ["haze", "rain", "snow"]
    with pytest.raises(UserError, match="was learnt already"):
        train(tasks[:1], config, tmp_path / "third", device="cpu", start=newest_state(tmp_path / "first"))
    assert not (tmp_path / "third").exists()


def test_a_finished_run_and_another_configuration(config, tasks, whole) -> None:
    before = (whole / "metrics.jsonl").read_text()
    assert train(tasks, config, whole, device="cpu", resume=True).tasks == ["haze", "rain", "snow"]
    assert (whole / "metrics.jsonl").read_text() == before
    with pytest.raises(UserError, match="another configuration"):
        train(tasks, replace(config, alpha=3.0), whole, device="cpu", resume=True)
    with pytest.raises(UserError, match="nothing to learn"):
        train([], config, whole, device="cpu")


def learn(state: LearnerState, task: Task, config: TrainConfig) -> LearnerState:
    return learn_task(state, task, config, Accelerator(cpu=True, device_placement=False), CPU)


@pytest.fixture(scope="module")
def after_first(config, tasks) -> LearnerState:
    return learn(LearnerState.fresh(config), tasks[0], config)


def test_what_is_kept_of_a_task(config, tasks, after_first) -> None:
    assert after_first.memory.tasks == ["haze"]
    assert len(after_first.memory) == 10, "all it has, fewer than its quota"
    assert after_first.memory.stored["haze"].targets is None
    second = learn(after_first, tasks[1], config)
    assert [len(each.inputs) for each in second.memory.stored.values()] == [6, 6]
    assert not torch.equal(second.projector.basis, after_first.projector.basis), "fitted anew"
    assert after_first.learnt == ["haze"], "the state that it started from is as it was"


def test_weights_of_zero_make_replay_fine_tuning(config, tasks, after_first) -> None:
    silent = replace(config, alpha=0.0, projection_weight=0.0)
    kr = learn(after_first, tasks[1], silent)
    plain = learn(after_first, tasks[1], replace(config, method="finetune"))
    for name, value in kr.net.state_dict().items():
        torch.testing.assert_close(value, plain.net.state_dict()[name], atol=1e-6, rtol=0)
    loud = learn(after_first, tasks[1], config)
    assert not same(loud.net.state_dict(), plain.net.state_dict())


def test_the_cached_teacher_is_the_live_one(after_first) -> None:
    teacher = Teacher(after_first.net, after_first.projector, METHODS["kr"], "float32")
    answers = [kind(teacher, after_first.memory, CPU) for kind in (CachedTeacher, LiveTeacher)]
    traces = []
    for each in answers:
        # Not the teacher's own weights: where both agree, the L1's gradient is the sign of rounding errors.
        torch.manual_seed(0)
        net = WeatherNet(12, 1, "image", 2)
        objective = Objective(net, Weights(), projector=after_first.projector)
        optimiser = torch.optim.SGD(net.parameters(), 0.05)
        trace = []
        for step in range(5):
            x, y = torch.rand(2, 2, 3, 16, 16)
            optimiser.zero_grad()
            loss = objective(x, y, each.replay(torch.tensor([step, 9 - step]))).total(Weights())
            loss.backward()
            trace.append((loss.detach(), [weight.grad.clone() for weight in net.parameters()]))
            optimiser.step()
        traces.append(trace)
    for (live, live_gradients), (cached, cached_gradients) in zip(*traces, strict=True):
        torch.testing.assert_close(cached, live, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(cached_gradients, live_gradients, atol=1e-5, rtol=0)


def test_the_projector_stays_frozen_during_a_task_and_may_stay_for_ever(config, tasks, after_first) -> None:
    before = {name: value.clone() for name, value in after_first.projector.state_dict().items()}
    second = learn(after_first, tasks[1], replace(config, projector_update="freeze_first"))
    assert same(before, after_first.projector.state_dict())
    assert same(before, second.projector.state_dict())
    attention = replace(config, projector="attention", projector_epochs=1, projector_update="continue")
    first = carry_over(after_first, tasks[0], attention, CPU)
    assert all(not p.requires_grad and p.grad is None for p in first.projector.parameters())
    continued = learn(first, tasks[1], attention)
    assert not same(first.projector.state_dict(), continued.projector.state_dict())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_learns_a_second_task(config, tasks, method) -> None:
    recipe = replace(
        config, method=method, steps=2, importance_batches=2, contrast="random" if method == "kr" else "off"
    )
    state = LearnerState.fresh(recipe)
    for task in tasks[:2]:
        state = learn(state, task, recipe)
    assert state.learnt == ["haze", "rain"]
    assert (len(state.memory) > 0) == (METHODS[method].replay is not None)
    assert (state.importance is not None) == (METHODS[method].importance is not None)
    assert (state.projector is not None) == METHODS[method].projection


def test_missing_pieces_are_named(config, tasks, after_first) -> None:
    bare = replace(after_first, memory=ReplayMemory(), projector=None)
    for state, method, message in (
        (bare, "kr", "no memory"),
        (after_first, "er", "no labels"),
        (replace(after_first, projector=None), "kr", "no projector"),
        (bare, "ewc", "no importances"),
    ):
        with pytest.raises(UserError, match=message):
            learn(state, tasks[1], replace(config, method=method))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_term(config, tasks) -> None:
    poisoned = tasks[0].train.clean.clone()
    poisoned[:] = torch.nan
    task = Task("fog", TensorPairs(tasks[0].train.degraded, poisoned))
    with pytest.raises(UserError, match=r"not finite since step 1 \(new_l1\)"):
        learn(LearnerState.fresh(config), task, config)


def test_states_survive_the_disk(after_first, tmp_path) -> None:
    after_first.save(tmp_path / "s")
    again = LearnerState.load(tmp_path / "s")
    assert same(after_first.net.state_dict(), again.net.state_dict())
    assert isinstance(again.projector, PCAProjector)
    assert again.memory.fingerprint() == after_first.memory.fingerprint()
    assert again.report == after_first.report
    score = {"psnr": "x", "ssim": 0, "input_psnr": 0, "input_ssim": 0, "pictures": 1}
    for wrong in (
        "{}",
        "[]",
        '{"protocol": "y8", "tasks": ["a"], "rows": []}',
        json.dumps({"protocol": "y8", "tasks": ["a"], "rows": [{"a": score}]}),
    ):
        (tmp_path / "s" / "history.json").write_text(wrong)
        with pytest.raises(UserError, match=r"history\.json"):
            LearnerState.load(tmp_path / "s")
    (tmp_path / "s" / "history.json").unlink()
    with pytest.raises(UserError, match="holds no history"):
        LearnerState.load(tmp_path / "s")
    with pytest.raises(UserError, match="neither a state nor a run"):
        resolve_state(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write here"):
        after_first.save(blocked / "s")


def test_parts_of_another_learner_are_named(after_first, tmp_path) -> None:
    after_first.save(tmp_path / "s")
    memory = tmp_path / "s" / "memory.safetensors"
    tensors, metadata = read_tensors(memory)
    about = json.loads(metadata["memory"])
    for change, message in (
        ({"capacity": "many"}, "capacity"),
        ({"tasks": [{"name": "haze", "indices": [1]}]}, "not what its list says"),
        ({"tasks": [{"name": "rain", "indices": about["tasks"][0]["indices"]}] * 2}, "not what its list says"),
        ({"tasks": 3}, "tasks"),
    ):
        write_tensors(memory, tensors, {"memory": json.dumps(about | change)})
        with pytest.raises(UserError, match=message):
            ReplayMemory.load(memory)
    write_tensors(memory, tensors, {"other": "x"})
    with pytest.raises(UserError, match="holds no memory"):
        ReplayMemory.load(memory)
    save_projector(PCAProjector(12, 4), tmp_path / "p.safetensors")
    with pytest.raises(UserError, match="takes 12 channels"):
        load_projector(tmp_path / "p.safetensors", 36)
    write_tensors(
        tmp_path / "p.safetensors",
        PCAProjector(36, 4).state_dict(),
        {"projector": '{"kind": "pca", "channels": 36, "rank": 5}'},
    )
    with pytest.raises(UserError, match="basis"):
        load_projector(tmp_path / "p.safetensors", 36)


def test_a_damaged_checkpoint_is_named(tmp_path) -> None:
    net = WeatherNet(8, 1, "image")
    optimiser = torch.optim.Adam(net.parameters())
    path = tmp_path / "task.safetensors"
    assert read_progress(path) is None
    save_checkpoint(path, net, optimiser, None, Progress(0))
    assert load_checkpoint(path, 0, net, optimiser) == (Progress(0), None), "before its first step Adam keeps nothing"
    net(torch.rand(1, 3, 8, 8)).sum().backward()
    optimiser.step()
    save_checkpoint(
        path, net, optimiser, {name: value.clone() for name, value in net.state_dict().items()}, Progress(0, 3)
    )
    tensors, metadata = read_tensors(path)
    for name in ("optimiser.0.exp_avg", "best.pre.0.weight", "net.pre.0.weight"):
        write_tensors(path, {key: value for key, value in tensors.items() if key != name}, metadata)
        with pytest.raises(UserError, match=r"task\.safetensors"):
            load_checkpoint(path, 0, net, optimiser)
    write_tensors(path, tensors, {"progress": '{"number": "x"}'})
    with pytest.raises(UserError, match="delete it"):
        read_progress(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"task\.safetensors"):
        load_checkpoint(path, 0, net, optimiser)


def test_methods_side_by_side(config, tasks) -> None:
    outcomes = compare(tasks[:2], ("finetune", "kr", "joint", "single"), replace(config, steps=3), CPU)
    rows = comparison_rows(outcomes)
    assert [row[0] for row in rows] == ["method", "degraded", "finetune", "kr", "joint", "single"]
    assert outcomes["joint"].forgetting is None
    assert outcomes["kr"].report.rows[0] == outcomes["finetune"].report.rows[0], "they share the first task"
    assert outcomes["single"].nets["haze"] is not outcomes["single"].nets["rain"]
    svg = curves_svg({name: each.report for name, each in outcomes.items() if each.report})
    assert svg.count("<polyline") == 4
    with pytest.raises(UserError, match="no validation pictures"):
        compare([Task("haze", tasks[0].train)], ("kr",), config, CPU)
    with pytest.raises(UserError, match="--method magic"):
        compare(tasks, ("magic",), config, CPU)


def test_workers_change_nothing(config, tasks) -> None:
    recipe = replace(config, steps=2, method="finetune")
    first, second = (learn(LearnerState.fresh(recipe), tasks[0], replace(recipe, workers=n)) for n in (0, 1))
    assert same(first.net.state_dict(), second.net.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"crop": 8},
        {"learning_rate": 0.0},
        {"alpha": -1.0},
        {"memory": 0},
        {"method": "magic"},
        {"crop": 10**6},
        {"dim": 10**6},
        {"alpha": float("nan")},
        {"seed": -1},
    ],
)
def test_impossible_recipes_are_refused(wrong) -> None:
    with pytest.raises(UserError):
        load_preset("weatherkr", "tiny", TrainConfig, **wrong)
