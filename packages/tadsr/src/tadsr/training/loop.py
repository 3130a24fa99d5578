"""The training loop that teacher and student share: batches, learning rate, averaged weights, checkpoints, resuming.

Everything random in step k follows from (seed, k): an interrupted run that is resumed ends with the same bits as one that
was not, and several processes share each batch of the one-process run.
"""

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tadsr.config import TrainConfig
from tadsr.data.datasets import CropDraws, generator_of, remember_folders, training_pictures
from tadsr.data.degradation import degrade
from tadsr.models.registry import in_fast_layout
from tenfold import UserError
from tenfold.checkpoints import load_weights, read_metadata, read_tensors, write_tensors
from tenfold.files import atomic_folder
from tenfold.runs import RunFolder, autocast, has_fast_bf16, pick_device, track

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Batch:
    """One process's share of a step.

    Attributes:
        hr: high-resolution crops in [-1, 1].
        lr: their low-quality images in [-1, 1].
        rows: which samples of the whole batch these are.
        total: size of the whole batch.
        step: number of the step, from 0.
        seed: of the run.
    """

    hr: Float[Tensor, "b 3 h w"]
    lr: Float[Tensor, "b 3 _h _w"]
    rows: range
    total: int
    step: int
    seed: int

    def normal(self, stream: int, like: Tensor) -> Tensor:
        """Standard normal noise shaped like a latent batch; each stream of a step is another."""
        generator = generator_of(self.seed, self.step, stream)
        drawn = torch.randn(self.total, *like.shape[1:], generator=generator)
        return drawn[self.rows.start : self.rows.stop].to(like.device)

    def uniform(self, stream: int, like: Tensor) -> Tensor:
        """Noise from [0, 1) shaped like a latent batch."""
        generator = generator_of(self.seed, self.step, stream)
        drawn = torch.rand(self.total, *like.shape[1:], generator=generator)
        return drawn[self.rows.start : self.rows.stop].to(like.device)

    def times(self, stream: int, limit: int) -> Int[Tensor, " b"]:
        """One time per sample, uniform over 0..limit-1."""
        generator = generator_of(self.seed, self.step, stream)
        drawn = torch.randint(limit, (self.total,), generator=generator)
        return drawn[self.rows.start : self.rows.stop].to(self.hr.device)


@runtime_checkable
class Trainee(Protocol):
    """What the loop trains."""

    @property
    def ema(self) -> nn.Module:
        """The averaged network, which is kept."""
        ...

    @property
    def counts(self) -> dict[str, int]:
        """What is counted from step to step, to be kept and put back, by name."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """Networks with a state to keep, by name."""
        ...

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimisers by name; the learning rate of `student` is scheduled."""
        ...

    def prepare(self, accelerator: Accelerator) -> None:
        """Move to the device and wrap what is trained."""
        ...

    def step(self, batch: Batch, accelerator: Accelerator) -> dict[str, Tensor]:
        """One step of every optimiser; returns what is logged."""
        ...

    def export(self, folder: Path) -> None:
        """Write the averaged network as a pipeline."""
        ...


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Linear warm-up from the first step on, then constant or a cosine to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.learning_rate
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay ema + (1 - decay) model, for parameters; buffers are copied."""
    for mine, other in zip(ema.parameters(), model.parameters(), strict=True):
        mine.lerp_(other, 1 - decay)
    for mine, other in zip(ema.buffers(), model.buffers(), strict=True):
        mine.copy_(other)


def frozen_copy(model: Module) -> Module:
    """A copy in evaluation mode that takes no gradients."""
    return deepcopy(model).eval().requires_grad_(False)


def fit(
    trainee: Trainee,
    folders: Sequence[Path],
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    device: str = "auto",
) -> dict[str, float]:
    """Train to the end of the recipe and leave a pipeline in `out/model`.

    Ctrl-C leaves the last checkpoint, from which `resume` goes on. It is not written then: the step under way may be half done.

    Args:
        trainee: teacher or student in training.
        folders: of photographs.
        config: the recipe.
        out: the run folder.
        resume: continue the run in `out`.
        device: where to compute; several processes choose their own.

    Returns:
        The last logged values.

    Raises:
        UserError: pictures too few or too small, a batch that the processes cannot share, a loss that is not finite.
    """
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    # Precision is this loop's affair (`autocast` below), whatever the machine's accelerate configuration says.
    accelerator = Accelerator(cpu=on_cpu, device_placement=False, mixed_precision="no")
    if config.batch_size % accelerator.num_processes:
        raise UserError(f"batch size {config.batch_size} cannot be shared by {accelerator.num_processes} processes")
    place = pick_device(device) if accelerator.num_processes == 1 and device != "auto" else accelerator.device
    draws = CropDraws(
        training_pictures(folders, config.crop), config.crop, config.seed, config.workers == 0, config.cropping
    )
    if accelerator.is_main_process:
        RunFolder.create(out, config, resume)
    accelerator.wait_for_everyone()
    run = RunFolder(out)
    for module in trainee.modules().values():
        in_fast_layout(module.to(place))
    checkpoint = run.checkpoints / "last.safetensors"
    first = restore(checkpoint, trainee, config.steps) if checkpoint.exists() else 0
    if accelerator.is_main_process:
        run.rewind(first)
    trainee.prepare(accelerator)
    step, logged = first, dict[str, Tensor]()
    fast = config.precision == "auto" and has_fast_bf16(place)

    def keep() -> None:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            # Only now, so that a run which never got so far leaves no trace when it is refused.
            remember_folders(out, folders)
            save(checkpoint, trainee, step)
            _export(trainee, run.path / "model")
        accelerator.wait_for_everyone()

    for batch in _batches(draws, config, first, accelerator, place):
        for group in trainee.optimisers()["student"].param_groups:
            group["lr"] = learning_rate_at(step, config)
        with autocast(place) if fast else contextlib.nullcontext():
            logged = trainee.step(batch, accelerator)
        step += 1
        logs, saves = step % 20 == 0 or step == config.steps, step % config.save_every == 0 and step < config.steps
        if logs or saves:
            values = {name: accelerator.reduce(value, "mean").item() for name, value in logged.items()}
            # Before anything is saved: the last good weights stay.
            _check_finite(values, step, out)
            if logs and accelerator.is_main_process:
                run.log(step=step, **values)
        if saves:
            keep()
    keep()
    # From the log, which has them too when the run was interrupted after its last step.
    values = {name: value for name, value in run.lines()[-1].items() if name != "step"}
    if accelerator.is_main_process:
        run.finish({"steps": step, **values})
    return values


def _export(trainee: Trainee, folder: Path) -> None:
    """Write the averaged network as a pipeline; the one that is there stays until the new one is whole."""
    fresh = folder.with_name(f"{folder.name}-next")
    shutil.rmtree(fresh, ignore_errors=True)
    with atomic_folder(fresh) as temporary:
        trainee.export(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def _check_finite(values: dict[str, float], step: int, out: Path) -> None:
    if not all(math.isfinite(value) for value in values.values()):
        raise UserError(
            f"{out}: the loss of step {step} is not finite; the last good weights are kept: lower --learning-rate or --lambda-adv"
        )


def _batches(
    draws: CropDraws, config: TrainConfig, first: int, accelerator: Accelerator, device: torch.device
) -> Iterator[Batch]:
    share = config.batch_size // accelerator.num_processes
    start = accelerator.process_index * share
    rows = range(start, start + share)

    def draws_of(step: int) -> list[int]:
        return [step * config.batch_size + row for row in rows]

    plan = (draws_of(step) for step in range(first, config.steps))
    loader = DataLoader(draws, batch_sampler=plan, num_workers=config.workers)
    watched = track(loader, "training", total=config.steps - first) if accelerator.is_main_process else loader
    for step, hr in enumerate(watched, start=first):
        hr = hr.to(device)
        lr = degrade(hr, config.degradation, seeds=[(config.seed, index) for index in draws_of(step)])
        yield Batch(hr * 2 - 1, lr * 2 - 1, rows, config.batch_size, step, config.seed)


def save(path: Path, trainee: Trainee, step: int) -> None:
    """Write networks, averaged network, optimisers, counts and the step into one safetensors file, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, module in {**trainee.modules(), "ema": trainee.ema}.items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimiser in trainee.optimisers().items():
        for index, entries in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{name}.{index}.{key}": value for key, value in entries.items()}
    write_tensors(path, tensors, {"progress": json.dumps({"step": step, **trainee.counts})})


def restore(path: Path, trainee: Trainee, steps: int) -> int:
    """Read what `save` wrote.

    Args:
        path: the checkpoint.
        trainee: takes its weights.
        steps: of the whole recipe.

    Returns:
        The number of steps done.

    Raises:
        UserError: the file is damaged or of other networks.
    """
    tensors, metadata = read_tensors(path)
    progress = read_metadata(metadata, "progress", path)
    step = progress.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 < step <= steps:
        raise UserError(f"{path}: is of step {step!r}, this run has 1 to {steps}")
    for name in trainee.counts:
        count = progress.get(name, 0)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= step:
            raise UserError(f"{path}: says {name} {count!r} at step {step}; it is damaged")
        trainee.counts[name] = count
    for name, module in {**trainee.modules(), "ema": trainee.ema}.items():
        load_weights(module, _below(tensors, f"{name}."), path)
    for name, optimiser in trainee.optimisers().items():
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, f"optimiser.{name}.").items():
            index, _, entry = key.partition(".")
            entries.setdefault(int(index) if index.isdecimal() else -1, {})[entry] = value
        groups = optimiser.state_dict()["param_groups"]
        if entries.keys() - set(groups[0]["params"]):
            raise UserError(f"{path}: its optimiser has other parameters than {name}")
        optimiser.load_state_dict({"state": entries, "param_groups": groups})
    return step


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
