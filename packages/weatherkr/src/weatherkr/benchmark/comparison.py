"""Methods side by side on one sequence of tasks: the paper's, its rivals, joint training, one network for each task."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from tenfold.data import embedded_pictures, to_tensor
from tenfold.errors import UserError
from tenfold.figures import image_grid
from tenfold.files import write_text
from tenfold.images import write_image
from tenfold.random import keyed_generator
from tenfold.runs import RunFolder, pick_device, unlock_run
from weatherkr.config import METHODS, TrainConfig
from weatherkr.data.datasets import MixedPairs, SyntheticPairs, TensorPairs, centre_crop
from weatherkr.data.tasks import Task
from weatherkr.data.weather import degrade
from weatherkr.evaluation.figures import curves_svg
from weatherkr.evaluation.report import ContinualReport, Score
from weatherkr.models.networks import WeatherNet
from weatherkr.training.learner import carry_over, learn_task
from weatherkr.training.state import LearnerState

REFERENCES = {
    "joint": "all tasks at once, as many steps as all of them: what continual learning is measured against",
    "single": "one network for each task, which needs to be told the weather",
}


@dataclass(frozen=True)
class Outcome:
    """What a method reached.

    Attributes:
        final: score on each task at the end.
        report: after each task; None for the references, which do not learn in sequence.
        nets: the network at the end, by the task it serves (the same for all but `single`).
    """

    final: dict[str, Score]
    report: ContinualReport | None
    nets: dict[str, WeatherNet]

    @property
    def average(self) -> float:
        """Mean PSNR over the tasks, in dB."""
        return sum(score.psnr for score in self.final.values()) / len(self.final)

    @property
    def forgetting(self) -> float | None:
        """In dB; None for the references."""
        return None if self.report is None else self.report.forgetting()


def check_methods(methods: Sequence[str]) -> None:
    """Refuse a method that does not exist."""
    known = [*METHODS, *REFERENCES]
    for name in methods:
        if name not in known:
            raise UserError(f"--method {name}: choose {', '.join(known)}")


def check_tasks(tasks: Sequence[Task]) -> None:
    """Refuse tasks without validation pictures."""
    if blind := [each.name for each in tasks if each.val is None]:
        raise UserError(f"--val: tasks {', '.join(blind)} have no validation pictures; a comparison needs them")


def compare(
    tasks: Sequence[Task],
    methods: Sequence[str],
    config: TrainConfig,
    device: torch.device,
    done: Callable[[str, Outcome], None] | None = None,
) -> dict[str, Outcome]:
    """Run each method through the same tasks; all sequential ones share the network after the first task.

    Args:
        tasks: in the order to learn, each with validation pictures.
        methods: keys of `METHODS` and `REFERENCES`.
        config: the recipe; its `method` is ignored.
        device: to compute on.
        done: called after each method.

    Raises:
        UserError: a task without validation pictures, or an unknown method.
    """
    check_methods(methods)
    check_tasks(tasks)
    accelerator = Accelerator(cpu=device.type == "cpu", device_placement=False)

    def learn(state: LearnerState, task: Task, recipe: TrainConfig) -> LearnerState:
        return learn_task(state, task, recipe, accelerator, device, judged=tasks)

    plain = replace(config, method="finetune")
    first: LearnerState | None = None
    outcomes: dict[str, Outcome] = {}
    for name in methods:
        if name == "joint":
            mixture = Task("joint", MixedPairs([each.train for each in tasks]))
            recipe = replace(plain, steps=config.steps * len(tasks), eval_every=config.eval_every * len(tasks))
            state = learn(LearnerState.fresh(recipe), mixture, recipe)
            outcome = Outcome(state.report.rows[-1], None, {each.name: state.net for each in tasks})
        elif name == "single":
            nets = {each.name: learn(LearnerState.fresh(plain), each, plain) for each in tasks}
            final = {task: state.report.rows[-1][task] for task, state in nets.items()}
            outcome = Outcome(final, None, {task: state.net for task, state in nets.items()})
        else:
            first = first or learn(LearnerState.fresh(plain), tasks[0], plain)
            outcome = _in_sequence(copy.deepcopy(first), tasks, replace(config, method=name), learn, device)
        outcomes[name] = outcome
        if done:
            done(name, outcome)
    return outcomes


def _in_sequence(
    first: LearnerState,
    tasks: Sequence[Task],
    recipe: TrainConfig,
    learn: Callable[[LearnerState, Task, TrainConfig], LearnerState],
    device: torch.device,
) -> Outcome:
    """The rest of a sequence whose first task is learnt."""
    first.memory.keep_targets = METHODS[recipe.method].replay == "labels"
    first.memory.capacity, first.memory.policy = recipe.memory, recipe.memory_policy
    state = carry_over(first, tasks[0], recipe, device)
    for task in tasks[1:]:
        state = learn(state, task, recipe)
    return Outcome(state.report.rows[-1], state.report, {each.name: state.net for each in tasks})


def comparison_rows(outcomes: dict[str, Outcome]) -> list[list[str]]:
    """A table: method, PSNR on each task at the end, their mean, forgetting; the degraded pictures first."""
    first = next(iter(outcomes.values()))
    names = list(first.final)
    inputs = [first.final[name].input_psnr for name in names]
    rows = [["degraded", *(f"{value:.2f}" for value in inputs), f"{sum(inputs) / len(inputs):.2f}", ""]]
    for method, outcome in outcomes.items():
        lost = "" if outcome.forgetting is None else f"{outcome.forgetting:.2f}"
        cells = [f"{outcome.final[name].psnr:.2f}" for name in names]
        rows.append([method, *cells, f"{outcome.average:.2f}", lost])
    return [["method", *names, "mean", "forgetting"], *rows]


_HELD_OUT = ("chelsea", "china", "rocket")
_SIDE = 192


@dataclass(frozen=True)
class ComparisonRecord(TrainConfig):
    """What a comparison's folder says it holds.

    Attributes:
        task: names of the tasks.
        methods: what was compared.
    """

    task: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()


def photograph_tasks(kinds: Sequence[str] = ("haze", "rain", "snow"), seed: int = 0) -> list[Task]:
    """Tasks on the photographs that ship with scikit-image and scikit-learn: six to learn from, windows of three to judge by."""
    found = embedded_pictures()
    learnt = [path for name, path in found.items() if name not in _HELD_OUT]
    clean = torch.stack([centre_crop(to_tensor(found[name]), _SIDE, _SIDE) for name in _HELD_OUT])
    return [
        Task(
            kind,
            SyntheticPairs(learnt, kind, seed=seed),
            TensorPairs(degrade(clean, kind, keyed_generator(seed, "held out", kind)), clean),
        )
        for kind in kinds
    ]


def compare_in_folder(
    tasks: Sequence[Task] | None,
    methods: Sequence[str],
    config: TrainConfig,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
) -> list[list[str]]:
    """Compare methods and write `comparison.md`, `curves.svg`, `pictures/`, `result.json`.

    Args:
        tasks: None takes haze, rain and snow on embedded photographs.
        methods: see `weatherkr.comparing.compare`.
        config: the recipe.
        out: run folder.
        device: to compute on.
        resume: take up the comparison in `out`; a finished one is read again.

    Returns:
        The table, its first row the headings.
    """
    if not methods:
        raise UserError("nothing to compare: name at least one --method")
    check_methods(methods)
    where = pick_device(device)
    tasks = photograph_tasks(seed=config.seed) if tasks is None else tasks
    check_tasks(tasks)
    record = ComparisonRecord(**asdict(config), task=tuple(each.name for each in tasks), methods=tuple(methods))
    folder = RunFolder.create(out, record, resume)
    if folder.is_finished:
        unlock_run(out)
        return _table(folder)

    def done(name: str, outcome: Outcome) -> None:
        scores = {f"psnr_{task}": score.psnr for task, score in outcome.final.items()}
        folder.log(method=name, average=outcome.average, forgetting=outcome.forgetting, **scores)

    outcomes = compare(tasks, methods, config, where, done)
    rows = comparison_rows(outcomes)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|" + "---|" * len(rows[0])
    write_text(
        out / "comparison.md", "\n".join(["PSNR in dB, protocol official", "", lines[0], rule, *lines[1:]]) + "\n"
    )
    reports = {name: outcome.report for name, outcome in outcomes.items() if outcome.report is not None}
    if reports:
        write_text(out / "curves.svg", curves_svg(reports))
    for task in tasks:
        write_image(out / "pictures" / f"{task.name}.png", _picture(task, outcomes))
    folder.finish({"table": rows, "reports": {name: report.to_dict() for name, report in reports.items()}})
    return rows


def _table(folder: RunFolder) -> list[list[str]]:
    """The table of a finished comparison.

    Raises:
        UserError: its result is not what a comparison writes.
    """
    table = folder.result().get("table")
    is_table = isinstance(table, list) and all(isinstance(row, list) for row in table)
    if not is_table or not table or not all(isinstance(cell, str) for row in table for cell in row):
        raise UserError(f"{folder.path / 'result.json'}: holds no table; it is damaged")
    if any(len(row) != len(table[0]) for row in table):
        raise UserError(f"{folder.path / 'result.json'}: the rows of its table differ in length; it is damaged")
    return table


@torch.inference_mode()
def _picture(task: Task, outcomes: dict[str, Outcome]) -> np.ndarray:
    """Degraded, restored by each method, clean, in a row; the first validation picture, at most 256 pixels a side."""
    assert task.val is not None
    degraded, clean = (each[:, :256, :256] for each in task.val.pair(0))
    restored = []
    for outcome in outcomes.values():
        net = outcome.nets[task.name].eval()
        restored.append(net.restore(degraded[None].to(next(net.parameters()).device))[0])
    return image_grid([[degraded, *restored, clean]])
