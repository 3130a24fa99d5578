"""Learning one task (official code, main.py and cl_all_in_one.py): updates, checkpoint choice, memory, projector.

Patches, weather and replayed indices follow from (seed, task, step, row): a step can be repeated alone, so that a run that was
interrupted goes on as if it had not been, and several processes see what one would.
"""

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from tenfold.errors import UserError
from tenfold.random import keyed_generator, seed_of
from tenfold.runs import track
from tenfold.training.precision import precision_context
from weatherkr.config import METHODS, TrainConfig
from weatherkr.data.samplers import Batch, StepBatches, loader
from weatherkr.data.tasks import Task
from weatherkr.evaluation.protocols import evaluate
from weatherkr.evaluation.report import Score
from weatherkr.method.baselines import gradient_importance, merge_importance, scaled
from weatherkr.method.contrastive import ContrastLoss
from weatherkr.method.losses import Objective, Replay, Terms, Weights
from weatherkr.method.memory import ReplayMemory
from weatherkr.models.networks import normalize
from weatherkr.models.perceptual import random_extractor, vgg19_extractor
from weatherkr.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from weatherkr.training.projector import cosine_rate, fit_projector
from weatherkr.training.state import LearnerState
from weatherkr.training.teacher import CachedTeacher, LiveTeacher, Teacher

PATIENCE = 3
"""Steps in a row whose loss may be non-finite before training stops; none of them changes the weights."""

Log = Callable[..., None]
"""Receives the numbers of a step by name."""


def build_contrast(config: TrainConfig, device: torch.device) -> ContrastLoss | None:
    """The contrast loss that a configuration asks for, its feature network on `device`."""
    if config.contrast == "off":
        return None
    extractor = random_extractor(config.seed) if config.contrast == "random" else vgg19_extractor(config.vgg_weights)
    return ContrastLoss(extractor.to(device))


def learn_task(
    state: LearnerState,
    task: Task,
    config: TrainConfig,
    accelerator: Accelerator,
    device: torch.device,
    *,
    judged: Sequence[Task] = (),
    checkpoint: Path | None = None,
    log: Log | None = None,
) -> LearnerState:
    """Learn one more task.

    Args:
        state: what is known; left as it was.
        task: what to learn.
        config: how.
        accelerator: of the run; one process or many.
        device: to compute on.
        judged: tasks whose validation pictures are scored after this task (those without any are passed over).
        checkpoint: where an interrupted task continues from, and keeps its place.
        log: receives the numbers of each evaluation.

    Returns:
        The state after the task: best weights, memory with the task's patches, projector, importances, scores.

    Raises:
        UserError: the task was learnt before; a memory that is missing or lacks labels; a loss that is not finite.
    """
    stage = _Stage(state, task, config, accelerator, device, checkpoint, log)
    stage.run([each for each in judged if each.name in state.learnt or each.name == task.name])
    return carry_over(stage.concluded(judged), task, config, device)


def carry_over(state: LearnerState, task: Task, config: TrainConfig, device: torch.device) -> LearnerState:
    """Keep of a task just learnt what the method needs for the next: patches, then a projector of their features; or importances."""
    method, number = METHODS[config.method], len(state.learnt) - 1
    after = replace(state, memory=copy.deepcopy(state.memory))
    if method.replay:
        missing = remember(after.memory, task, config, number)
        if missing:
            warnings.warn(f"task {task.name}: has {missing} pictures fewer than its share of the memory", stacklevel=2)
    if method.projection:
        after.projector = fit_projector(after, config, device)
    if method.importance:
        after.importance = task_importance(after, task, config, device)
    return after


def remember(memory: ReplayMemory, task: Task, config: TrainConfig, number: int) -> int:
    """Take patches of a task into the memory, not mirrored; returns how many it is short of."""
    size = memory.patch or config.crop

    def draw(index: int) -> tuple[Tensor, Tensor]:
        return task.train.patch(index, size, keyed_generator(config.seed, "memory", number, index), False)

    return memory.add(task.name, len(task.train), draw, random.Random(seed_of(config.seed, "exemplars", number)))


def task_importance(state: LearnerState, task: Task, config: TrainConfig, device: torch.device) -> dict[str, Tensor]:
    """Importance of the weights for the tasks so far."""
    number, net = len(state.learnt) - 1, state.net
    data = StepBatches(task.train, config, number, 0, range(config.batch_size))
    batches = (data[config.steps + each] for each in range(config.importance_batches))
    net.requires_grad_(True)
    fresh = gradient_importance(
        net,
        ((each.degraded.to(device), each.clean.to(device)) for each in batches),
        lambda degraded: net(normalize(degraded)),
        power=2 if METHODS[config.method].importance == "squared" else 1,
    )
    net.requires_grad_(False)
    return merge_importance(state.importance, fresh, number + 1)


class _Stage:
    """One task being learnt: the state that its steps share."""

    def __init__(
        self,
        state: LearnerState,
        task: Task,
        config: TrainConfig,
        accelerator: Accelerator,
        device: torch.device,
        checkpoint: Path | None,
        log: Log | None,
    ) -> None:
        self.state, self.task, self.config, self.accelerator, self.device = state, task, config, accelerator, device
        self.checkpoint, self.log = checkpoint, log
        self.method = METHODS[config.method]
        self.weights = Weights(
            config.alpha,
            config.beta_new,
            config.beta_old,
            config.projection_weight,
            config.pod_weight,
            config.importance_weight,
        )
        self.number = len(state.learnt)
        self._check()
        self.net = (
            copy.deepcopy(state.net).to(device).to(memory_format=torch.channels_last).train().requires_grad_(True)
        )
        self.objective = self._objective()
        self.teacher = self._teacher() if self.number else None
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=config.learning_rate)
        self.best: dict[str, Tensor] | None = None
        self.scores_of_best: dict[str, Score] = {}
        self.progress = self._restore()
        self.loss = accelerator.prepare(self.objective)

    def _check(self) -> None:
        state, method = self.state, self.method
        if self.task.name in state.learnt:
            raise UserError(f"task {self.task.name}: was learnt already; give the new pictures another name")
        if self.config.batch_size % self.accelerator.num_processes:
            raise UserError(
                f"batch size {self.config.batch_size} cannot be shared by {self.accelerator.num_processes} processes"
            )
        if self.number and method.replay and not len(state.memory):
            raise UserError(
                f"the state has no memory and method {self.config.method} needs it; use --method lwf, or restore memory.safetensors"
            )
        if self.number and method.replay == "labels" and not state.memory.keep_targets:
            raise UserError("the memory holds no labels; plain replay (er) needs a memory that was filled by er")
        if self.number and method.projection and state.projector is None:
            raise UserError("the state has no projector and method kr needs it; use --method kd")
        if self.number and method.importance and state.importance is None:
            raise UserError(f"the state has no importances and method {self.config.method} needs them")

    def _objective(self) -> Objective:
        """The network with the terms of this method."""
        state, config, method = self.state, self.config, self.method
        contrast = build_contrast(config, self.device)
        objective = Objective(self.net, self.weights, contrast, negative=config.contrast_negative)
        if self.number and method.projection and state.projector is not None:
            objective.projector = state.projector.to(self.device).requires_grad_(False)
        if self.number and method.importance and state.importance is not None:
            objective.importance = {name: value.to(self.device) for name, value in scaled(state.importance).items()}
            objective.anchor = {name: value.detach().clone() for name, value in self.net.named_parameters()}
        return objective

    def _teacher(self) -> Teacher | LiveTeacher | CachedTeacher | None:
        """How the old network is asked: never, on new inputs, on stored patches live, or on stored patches once."""
        if not self.method.needs_teacher and self.method.replay is None:
            return None
        old = copy.deepcopy(self.state.net).to(self.device).to(memory_format=torch.channels_last)
        teacher = Teacher(old, self.state.projector, self.method, self.config.precision)
        if self.method.on_new:
            return teacher
        live = LiveTeacher(teacher, self.state.memory, self.device)
        # Whole features of the memory would not fit where their projections and outputs do.
        if self.config.cache_teacher and self.method.replay == "teacher" and not self.method.pooled:
            return CachedTeacher(teacher, self.state.memory, self.device)
        return live

    # ------------------------------------------------------------------------------------------------------------- steps

    def run(self, judged: Sequence[Task]) -> None:
        """Make the updates that are left."""
        faults = 0
        for step, batch in self._batches():
            terms = self._terms(batch)
            total = terms.total(self.weights)
            if self._all_finite(total):
                faults = 0
                self._update(total, step)
            else:
                faults += 1
                if faults == PATIENCE:
                    self._stop(terms, step)
            self.progress = replace(self.progress, step=step + 1)
            self._after_step(terms, judged)

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """The steps that are left with their batches, with a progress bar in the main process."""
        share = self.config.batch_size // self.accelerator.num_processes
        first = share * self.accelerator.process_index
        rows = range(first, first + share)
        data = StepBatches(self.task.train, self.config, self.number, len(self.state.memory), rows)
        left = range(self.progress.step, self.config.steps)
        batches = loader(data, left, self.config.workers)
        return zip(left, track(batches, self.task.name) if self.accelerator.is_main_process else batches, strict=True)

    def _terms(self, batch: Batch) -> Terms:
        x01, y = (part.to(self.device).to(memory_format=torch.channels_last) for part in (batch.degraded, batch.clean))
        replay = self._replay(x01, batch.stored)
        with precision_context(self.config.precision, self.device):
            return self.loss(x01, y, replay)

    def _replay(self, x01: Tensor, stored: Tensor) -> Replay | None:
        if self.teacher is None:
            return None
        return self.teacher.replay(normalize(x01) if isinstance(self.teacher, Teacher) else stored)

    def _all_finite(self, total: Tensor) -> bool:
        """Whether the loss is finite in every process."""
        if self.accelerator.num_processes == 1:
            return bool(total.isfinite())
        return bool(self.accelerator.reduce(total.detach().isfinite().float(), "mean") == 1)

    def _update(self, total: Tensor, step: int) -> None:
        # The official schedule makes one more update, at rate 0.
        for group in self.optimiser.param_groups:
            group["lr"] = cosine_rate(self.config.learning_rate, step, self.config.steps)
        self.optimiser.zero_grad()
        self.accelerator.backward(total)
        self.optimiser.step()

    def _stop(self, terms: Terms, step: int) -> None:
        bad = [name for name, value in terms.values().items() if not math.isfinite(value)]
        raise UserError(
            f"task {self.task.name}: the loss is not finite since step {step - PATIENCE + 2} ({', '.join(bad) or 'in another process'}); "
            "lower the learning rate, or look at the pictures; --resume continues from the last checkpoint"
        )

    def _after_step(self, terms: Terms, judged: Sequence[Task]) -> None:
        step, last = self.progress.step, self.progress.step == self.config.steps
        if step % self.config.eval_every == 0 or last:
            scores = self._judge(judged)
            if self.log:
                shown = {f"psnr_{name}": score.psnr for name, score in scores.items()}
                rate = cosine_rate(self.config.learning_rate, step - 1, self.config.steps)
                self.log(task_step=step, learning_rate=rate, **terms.values(), **shown)
        if self.checkpoint and (step % self.config.save_every == 0 or last):
            self._save()

    def _scores(self, judged: Sequence[Task], known: dict[str, Score]) -> dict[str, Score]:
        """Scores of the present weights, as far as they are not known."""
        config = self.config
        return {
            each.name: known.get(each.name)
            or evaluate(self.net, each.val, "official", config.eval_images, config.precision, each.name)
            for each in judged
            if each.val is not None
        }

    def _judge(self, judged: Sequence[Task]) -> dict[str, Score]:
        """Score the tasks learnt so far and keep these weights if neither mean PSNR nor mean SSIM is worse than the best."""
        scores = self._scores(judged, {})
        self.net.train()
        if scores:
            mean_psnr = sum(score.psnr for score in scores.values()) / len(scores)
            mean_ssim = sum(score.ssim for score in scores.values()) / len(scores)
            if mean_psnr >= self.progress.best_psnr and mean_ssim >= self.progress.best_ssim:
                self.best = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
                self.scores_of_best = scores
                self.progress = replace(
                    self.progress, best_step=self.progress.step, best_psnr=mean_psnr, best_ssim=mean_ssim
                )
        return scores

    # ---------------------------------------------------------------------------------------------------------- conclusion

    def concluded(self, judged: Sequence[Task]) -> LearnerState:
        """The state with the best weights, judged; what the next task needs is still the old."""
        if self.best is not None:
            self.net.load_state_dict(self.best)
        after = replace(self.state, net=self.net.eval().requires_grad_(False), report=copy.deepcopy(self.state.report))
        after.report.tasks.append(self.task.name)
        after.report.rows.append(self._scores(judged, self.scores_of_best))
        return after

    # ---------------------------------------------------------------------------------------------------------- checkpoint

    def _save(self) -> None:
        if self.checkpoint and self.accelerator.is_main_process:
            save_checkpoint(self.checkpoint, self.net, self.optimiser, self.best, self.progress)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> Progress:
        found = load_checkpoint(self.checkpoint, self.number, self.net, self.optimiser) if self.checkpoint else None
        if found is None:
            return Progress(self.number)
        progress, self.best = found
        return progress
