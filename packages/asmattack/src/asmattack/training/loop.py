"""The training loop: epochs under accelerate, one checkpoint after each, resumable to the same bits.

Every random number of an epoch follows from (seed, epoch, process): a run that was interrupted and resumed ends with the
weights of one that was not.
"""

import contextlib
import json
import math
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from asmattack.config import FitConfig, GeneratorConfig, HardenConfig, TrainConfig
from asmattack.data.layouts import FaceSet, read_faces
from asmattack.data.synthetic import drawn_set
from asmattack.models.checkpoints import load_detector
from asmattack.models.detector import Detector
from asmattack.models.masks import MaskGenerator
from asmattack.models.networks import Surrogate
from asmattack.training.step import Detection, Generation, Hardening, Task
from tenfold import UserError
from tenfold.checkpoints import load_weights, read_metadata, read_tensors, write_tensors
from tenfold.config import from_dict
from tenfold.runs import RunFolder, autocast, pick_device, track


@dataclass(frozen=True)
class FitResult:
    """What came out of a training run.

    Attributes:
        epochs: done.
        loss: mean of the last epoch.
        validation: what the task measures on held-out faces, after the last epoch.
        unreadable: files of the data that were passed over, with the reason.
    """

    epochs: int
    loss: float
    validation: dict[str, float]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a run is, as kept in its checkpoint; the loss is that of the last epoch, 0 before the first."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0


def train(config: TrainConfig, out: Path | None = None, resume: bool = False, device: str = "auto") -> Surrogate:
    """Train a surrogate detector, or a timm model, on forged faces.

    Args:
        config: see `TrainConfig`.
        out: run folder; `model/` holds the weights (`load_detector`). None keeps nothing.
        resume: continue the run in `out`; an interrupted run loses its unfinished epoch only.
        device: auto, cpu, cuda, ...; several processes choose their own.
    """
    torch.manual_seed(config.seed)
    detector = Surrogate(config.model)
    fit(Detection(detector, *faces_of(config), config), config, out, resume, device)
    return detector


def harden(
    detector: str | Detector,
    config: HardenConfig,
    out: Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Detector:
    """Fine-tune a detector, or what names it (see `load_detector`), on its own attacked faces; see `train`."""
    detector = load_detector(detector) if isinstance(detector, str) else detector
    training, held_out = faces_of(config)
    detector.calibrate(held_out.pixels(), held_out.labels)
    fit(Hardening(detector, training, held_out, config), config, out, resume, device)
    return detector


def train_generator(
    detector: str | Detector,
    config: GeneratorConfig,
    out: Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> MaskGenerator:
    """Teach a mask generator where a detector, or what names it (see `load_detector`), looks; see `train`."""
    detector = load_detector(detector) if isinstance(detector, str) else detector
    detector = detector.to(pick_device(device))
    training, held_out = faces_of(config)
    detector.calibrate(held_out.pixels(), held_out.labels)
    torch.manual_seed(config.seed)
    generator = MaskGenerator(config.width, size=config.size or max(48, training.images.shape[-1] // 4 * 4))
    generator.to(pick_device(device))
    fit(Generation(generator, detector, training, held_out, config), config, out, resume, device)
    return generator


def faces_of(config: FitConfig) -> tuple[FaceSet, FaceSet]:
    """Training and held-out faces; no group is in both.

    Raises:
        UserError: a set that cannot be read, lacks reals or fakes, or has too few groups.
    """
    if config.data is None:
        faces = drawn_set(config.images, config.size or 48, config.seed)
    else:
        faces = read_faces(config.data, size=config.size)
    return split_by_group(faces, config.holdout, config.seed, str(config.data or "drawn faces"))


def split_by_group(faces: FaceSet, share: float, seed: int, name: str) -> tuple[FaceSet, FaceSet]:
    """Hold out a share of the groups of each label."""
    held = torch.zeros(len(faces), dtype=torch.bool)
    draw = np.random.default_rng(seed)
    # real/7.png and fake/7.png may show one person.
    names = tuple(Path(name).name for name in faces.names)
    groups = faces.groups if any(faces.groups) else names
    # A folder of pictures without subfolders is one group: its pictures are taken for different people then.
    if len({group for group in groups if group}) <= 2:
        groups = names
    for label, kind in ((0, "real"), (1, "fake")):
        mine = sorted({groups[row] for row in (faces.labels == label).nonzero().flatten().tolist()})
        if len(mine) < 2:
            raise UserError(f"{name}: {len(mine)} {kind} groups; training and validation need at least two of each")
        count = min(max(1, round(share * len(mine))), len(mine) - 1)
        chosen = {mine[i] for i in draw.permutation(len(mine))[:count].tolist()}
        for row, group in enumerate(groups):
            held[row] |= group in chosen
    training, held_out = faces.subset((~held).nonzero().flatten()), faces.subset(held.nonzero().flatten())
    training = replace(training, unreadable=faces.unreadable)
    for part in (training, held_out):
        if len(part.labels.unique()) < 2:
            raise UserError(f"{name}: cannot be split so that both parts have real and fake faces")
    return training, held_out


def learning_rate(config: FitConfig, step: int, steps_per_epoch: int) -> float:
    """The rate of one step: warm-up over a tenth and a cosine fall, falls every few epochs, or constant."""
    if config.schedule == "step":
        return config.learning_rate * config.step_factor ** (step // steps_per_epoch // config.step_epochs)
    if config.schedule == "constant":
        return config.learning_rate
    total = config.epochs * steps_per_epoch
    warm = max(1, total // 10)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * (0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, total - warm)))


def fit(task: Task, config: FitConfig, out: Path | None, resume: bool, device: str) -> FitResult:
    """Train a task; see `train`.

    Raises:
        UserError: nothing to train, a batch that the processes cannot share, or a loss that is not finite.
    """
    if out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training in several processes needs a run folder; give --out FOLDER")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_deterministic())
        kept = out if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        return _Run(task, config, kept, resume, device).fit()


class _Run:
    """One training run: the state that its epochs share."""

    def __init__(self, task: Task, config: FitConfig, folder: Path, resume: bool, device: str) -> None:
        self.task, self.config = task, config
        # Without being told, accelerate does not let processes on CPUs find each other.
        on_cpu = device == "cpu" or not torch.accelerator.is_available()
        self.accelerator = Accelerator(cpu=on_cpu, device_placement=False, mixed_precision="no")
        chosen = device != "auto" and self.accelerator.num_processes == 1
        self.device = pick_device(device) if chosen else self.accelerator.device
        self._check()
        if self.accelerator.is_main_process:
            RunFolder.create(folder, config, resume)
        self.accelerator.wait_for_everyone()
        self.folder = RunFolder(folder)
        if self.accelerator.num_processes > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(task.trained)
        task.loss.to(self.device).to(memory_format=torch.channels_last)
        parameters = [parameter for parameter in task.loss.parameters() if parameter.requires_grad]
        if config.optimiser == "sgd":
            self.optimiser: torch.optim.Optimizer = torch.optim.SGD(
                parameters, config.learning_rate, momentum=0.9, weight_decay=config.weight_decay
            )
        else:
            self.optimiser = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
        self.progress = self._restore()
        self.loss = self.accelerator.prepare(task.loss)

    def _check(self) -> None:
        """Refuse what cannot be trained before anything is written."""
        processes, batch = self.accelerator.num_processes, self.config.batch_size
        if batch % processes:
            raise UserError(f"batch size {batch} cannot be shared by {processes} processes; make it a multiple")
        if batch > self.task.count:
            raise UserError(f"batch size {batch} is larger than the {self.task.count} training faces")
        if not any(parameter.requires_grad for parameter in self.task.loss.parameters()):
            raise UserError("the model has nothing to train")

    def fit(self) -> FitResult:
        """Train the epochs that are left."""
        while self.progress.epoch < self.config.epochs:
            self._train_epoch()
        self.task.trained.eval()
        found = self.task.validation()
        result = FitResult(self.progress.epoch, self.progress.loss, found, self.task.training.unreadable)
        if self.accelerator.is_main_process and not self.folder.is_finished:
            self.task.save(self.folder.path / "model")
            self.folder.finish(asdict(result))
        self.accelerator.wait_for_everyone()
        return result

    def _train_epoch(self) -> None:
        epoch, config, accelerator = self.progress.epoch, self.config, self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        torch.manual_seed(_epoch_seed(config.seed, epoch, rank))
        augmentation = torch.Generator().manual_seed(_epoch_seed(config.seed, epoch, 1000 + rank))
        order = torch.randperm(
            self.task.count, generator=torch.Generator().manual_seed(_epoch_seed(config.seed, epoch, 2000))
        )
        # Whole batches only: every process has the same number of faces at every step.
        batches = order[: len(order) // config.batch_size * config.batch_size].split(config.batch_size)
        self.loss.train()
        total = 0.0
        shown = f"epoch {epoch + 1}/{config.epochs}"
        for number, rows in enumerate(track(batches, shown) if accelerator.is_main_process else batches):
            rate = learning_rate(config, epoch * len(batches) + number, len(batches))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            tensors = [each.to(self.device) for each in self.task.batch(rows[rank::processes], augmentation)]
            total += self._step(tensors)
        mean = torch.tensor(total / len(batches), dtype=torch.float32, device=self.device)
        if processes > 1:
            mean = accelerator.reduce(mean, "mean")
            # Batch statistics differ between processes; the main process's are the ones that are saved.
            broadcast(list(self.task.loss.buffers()))
        self.progress = Progress(epoch + 1, (epoch + 1) * len(batches), float(mean))
        if accelerator.is_main_process:
            self.folder.log(step=self.progress.step, epoch=epoch + 1, loss=self.progress.loss, **self.task.validation())
            save_checkpoint(self._last, self.task.loss, self.optimiser, self.progress)
        accelerator.wait_for_everyone()

    def _step(self, tensors: list[Tensor]) -> float:
        with autocast(self.device) if self.config.precision == "auto" else contextlib.nullcontext():
            loss = self.loss(*tensors)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} in epoch {self.progress.epoch + 1}; lower the learning rate")
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        self.optimiser.step()
        return value

    @property
    def _last(self) -> Path:
        return self.folder.checkpoints / "last.safetensors"

    def _restore(self) -> Progress:
        """Take up the last checkpoint, or write the first: an interrupted first epoch starts from the same weights again."""
        if self._last.is_file():
            progress = load_checkpoint(self._last, self.task.loss, self.optimiser)
            if self.accelerator.is_main_process:
                self.folder.rewind(progress.step)
            return progress
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            save_checkpoint(self._last, self.task.loss, self.optimiser, Progress())
        self.accelerator.wait_for_everyone()
        return Progress()


def save_checkpoint(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Write weights, optimiser state and progress into one safetensors file, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    for index, entries in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in entries.items() if value is not None}
    # Batch norm counts and the like may share their memory.
    write_tensors(
        path, {name: value.clone() for name, value in tensors.items()}, {"progress": json.dumps(asdict(progress))}
    )


def load_checkpoint(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Read what `save_checkpoint` wrote into the module and the optimiser.

    Raises:
        UserError: the checkpoint is of another model.
    """
    tensors, metadata = read_tensors(path)
    progress = from_dict(read_metadata(metadata, "progress", path), Progress, str(path))
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    load_weights(module, weights, path)
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        if found := re.fullmatch(r"optimiser\.(\d{1,9})\.(\w+)", name):
            state[int(found[1])][found[2]] = value
    optimiser.load_state_dict({"state": dict(state), "param_groups": optimiser.state_dict()["param_groups"]})
    return progress


def _epoch_seed(seed: int, epoch: int, stream: int) -> int:
    """Seed of one stream of random numbers in one epoch."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def _deterministic() -> Generator[None]:
    """Deterministic kernels where there are any, and the caller's random state back afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
