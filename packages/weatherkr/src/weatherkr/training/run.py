"""A run: one task after another, each starting from the state that the last one left. Resumable, under accelerate."""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from tenfold.errors import UserError
from tenfold.runs import RunFolder, pick_device, unlock_run
from weatherkr.config import TrainConfig
from weatherkr.data.tasks import Task
from weatherkr.evaluation.report import ContinualReport
from weatherkr.training.checkpoints import read_progress
from weatherkr.training.learner import learn_task
from weatherkr.training.state import LearnerState, newest_state, state_folder


@dataclass(frozen=True)
class RunRecord(TrainConfig):
    """What a run folder says it holds: the recipe, and which tasks were learnt from what.

    Attributes:
        task: as on the command line, or the names alone.
        val: as on the command line.
        start: the state that it started from.
    """

    task: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    start: Path | None = None


def train(
    tasks: Sequence[Task],
    config: TrainConfig,
    out: Path,
    *,
    start: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    described: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
) -> ContinualReport:
    """Learn tasks in the order given.

    Args:
        tasks: any number, of any kinds.
        config: the recipe, the same for each task.
        out: run folder: `states/01-NAME/` after each task, `metrics.jsonl`, `result.json`.
        start: a state of an earlier run to go on from, with its network whatever the recipe's sizes; None starts with a new one.
        resume: continue the run in `out` if there is one; nothing but the steps since the last checkpoint is done again.
        device: `auto`, `cpu`, `cuda`, ...; several processes choose their own.
        described: how tasks and validation sets were written, for the record.

    Returns:
        Scores after each task.

    Raises:
        UserError: no task, a task that the state knows, or a loss that is not finite.
    """
    if not tasks:
        raise UserError("nothing to learn: name at least one --task")
    # Without being told, accelerate does not let processes on CPUs find each other.
    accelerator = Accelerator(cpu=device == "cpu" or not torch.accelerator.is_available(), device_placement=False)
    chosen = device != "auto" and accelerator.num_processes == 1
    where = pick_device(device) if chosen else accelerator.device
    state = LearnerState.load(start) if start else LearnerState.fresh(config)
    _check(tasks, state)
    words, val = described or (tuple(each.name for each in tasks), ())
    record = RunRecord(**asdict(config), task=words, val=val, start=start)
    try:
        if accelerator.is_main_process:
            RunFolder.create(out, record, resume)
        accelerator.wait_for_everyone()
        if finished := newest_state(out):
            state = LearnerState.load(finished)
        with _deterministic():
            return _learn_the_rest(tasks, config, state, RunFolder(out), accelerator, where)
    finally:
        # A finished run that is only read again, or one that failed, is not kept from other processes.
        if accelerator.is_main_process:
            unlock_run(out)


def _check(tasks: Sequence[Task], state: LearnerState) -> None:
    for each in tasks:
        if each.name in state.learnt:
            raise UserError(f"--task {each.name}: was learnt already; give the new pictures another name")


def _learn_the_rest(
    tasks: Sequence[Task],
    config: TrainConfig,
    state: LearnerState,
    folder: RunFolder,
    accelerator: Accelerator,
    device: torch.device,
) -> ContinualReport:
    for number, task in enumerate(tasks):
        if task.name in state.learnt:
            continue
        before = number * config.steps

        def log(task_step: int, before: int = before, name: str = task.name, **numbers: float) -> None:
            if accelerator.is_main_process:
                folder.log(step=before + task_step, task=name, **numbers)

        checkpoint = folder.checkpoints / "task.safetensors"
        if accelerator.is_main_process:
            folder.rewind(before + _step_of(checkpoint, len(state.learnt)))
        state = learn_task(state, task, config, accelerator, device, judged=tasks, checkpoint=checkpoint, log=log)
        if accelerator.is_main_process:
            state.save(state_folder(folder.path, len(state.learnt), task.name))
        accelerator.wait_for_everyone()
    if accelerator.is_main_process and not folder.is_finished:
        folder.finish(state.report.to_dict())
    return state.report


def _step_of(checkpoint: Path, number: int) -> int:
    """Steps that a checkpoint of this task has behind it."""
    progress = read_progress(checkpoint)
    return progress.step if progress and progress.number == number else 0


@contextlib.contextmanager
def _deterministic() -> Generator[None]:
    """Deterministic kernels where there are any."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
