"""Training a detector (paper, "Experimental setup"): epochs over a manifest, best validation AUC kept, resumable.

Every random number of an epoch follows from (seed, epoch, process): a run that was interrupted and resumed ends with the
same bits as one that was not. Loops run under accelerate, on one CPU or many GPUs alike.
"""

import contextlib
import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import broadcast, gather_object
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairfd.config import TrainConfig
from fairfd.data.datasets import FaceDataset, ManifestDataset, as_dataset
from fairfd.data.manifest.manifest import Manifest
from fairfd.data.manifest.samples import few
from fairfd.evaluation.metrics import auc
from fairfd.evaluation.scores.inference import probabilities
from fairfd.models.detectors.detector import Detector, TrainBatch
from fairfd.training.samplers import PlannedEpoch, RawBatch, loader, plan_epoch
from tenfold import UserError
from tenfold.checkpoints import load_weights, read_metadata, read_tensors, write_tensors
from tenfold.config import from_dict
from tenfold.images import ImageError
from tenfold.runs import RunFolder, autocast, pick_device, track


@dataclass(frozen=True)
class TrainResult:
    """What came out of a training run.

    Attributes:
        best_auc: validation AUC of the weights that were kept.
        best_epoch: the epoch they are from, counted from 1.
        history: validation AUC after each epoch.
    """

    best_auc: float
    best_epoch: int
    history: tuple[float, ...]


@dataclass(frozen=True)
class Progress:
    """How far a run is, as kept in its checkpoint.

    Attributes:
        epoch: epochs done.
        step: optimiser steps done.
        history: validation AUC after each epoch.
    """

    epoch: int = 0
    step: int = 0
    history: tuple[float, ...] = ()

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest AUC, counted from 1; 0 before the first."""
        return 1 + int(np.argmax(self.history)) if self.history else 0


class _LossModule(nn.Module):
    """Makes the loss the forward pass of a module: distributed training averages gradients of modules it can call."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        return self.detector.training_loss(batch)


def train(
    detector: Detector,
    train_manifest: Manifest | FaceDataset,
    val_manifest: Manifest | FaceDataset,
    config: TrainConfig | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    device: str = "auto",
) -> TrainResult:
    """Train a detector and leave it with the weights of the best validation AUC.

    Args:
        detector: any trainable detector; seed torch before creating it if its start is to be repeatable.
        train_manifest: training images.
        val_manifest: validation images, real and fake; persons should not be those of the training images.
        config: None takes the paper's recipe.
        out: run folder: `model/` holds the best weights (load with `fairfd.load_detector`), `metrics.jsonl` the log,
            `checkpoints/` what a resumed run starts from. None, in a single process only, keeps nothing.
        resume: continue the run in `out` if there is one. An interrupted run loses its unfinished epoch only.
        device: `auto`, `cpu`, `cuda`, ...; several processes choose their own.

    Returns:
        Validation AUC of the kept weights and after each epoch.

    Raises:
        UserError: data without reals or fakes, approaches that the detector's heads cannot hold, a batch size that the
            processes cannot share, an unreadable image, or a loss that is not finite (with the batch's images).
    """
    config = config or TrainConfig()
    if out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training in several processes needs a run folder; give out=FOLDER")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_deterministic())
        kept = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        return _Run(detector, train_manifest, val_manifest, config, kept, resume, device).fit()


class _Run:
    """One training run: the state that its epochs share."""

    def __init__(
        self,
        detector: Detector,
        train_data: Manifest | FaceDataset,
        val_data: Manifest | FaceDataset,
        config: TrainConfig,
        folder: Path,
        resume: bool,
        device: str,
    ) -> None:
        self.config, self.detector = config, detector
        # Without being told, accelerate does not let processes on CPUs find each other.
        on_cpu = device == "cpu" or not torch.accelerator.is_available()
        self.accelerator = Accelerator(cpu=on_cpu, device_placement=False)
        chosen = device != "auto" and self.accelerator.num_processes == 1
        self.device = pick_device(device) if chosen else self.accelerator.device
        self.batch_size = config.pairs_per_batch if detector.batch_layout == "real_fake_pairs" else config.batch_size
        self.train_data = as_dataset(train_data, detector.in_size)
        self.val_data = as_dataset(val_data, detector.in_size)
        self._check()
        self.folder = self._open(folder, resume)
        if config.cache != "none":
            self.train_data, self.val_data = self._decoded(self.train_data), self._decoded(self.val_data)
        if self.accelerator.num_processes > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(detector)
        detector.to(self.device).to(memory_format=torch.channels_last)
        trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.Adam(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.progress = self._restore()
        self.loss = self.accelerator.prepare(_LossModule(detector))

    def _check(self) -> None:
        """Refuse what cannot be trained before anything is written."""
        detector, processes = self.detector, self.accelerator.num_processes
        if self.batch_size % processes:
            raise UserError(
                f"batch size {self.batch_size} cannot be shared by {processes} processes; make it a multiple"
            )
        if not any(parameter.requires_grad for parameter in detector.parameters()):
            raise UserError(f"{detector.full_name}: has nothing to train")
        if len(self.val_data.labels.unique()) < 2:
            raise UserError("the validation data needs real and fake images: without both there is no AUC")
        detector.prepare_for(self.train_data.groups.bincount(), len(self.train_data.approach_names) - 1)
        plan_epoch(self.train_data.labels, detector.batch_layout, self.config.balance, self.config.seed, 0)

    def _open(self, folder: Path, resume: bool) -> RunFolder:
        """The main process makes the folder, the others find it."""
        if self.accelerator.is_main_process:
            RunFolder.create(folder, self.config, resume)
        self.accelerator.wait_for_everyone()
        return RunFolder(folder)

    def _decoded(self, data: FaceDataset) -> FaceDataset:
        if not isinstance(data, ManifestDataset):
            return data
        with self.accelerator.main_process_first():
            return data.decoded(self.folder.path / "cache" if self.config.cache == "disk" else None)

    # ------------------------------------------------------------------------------------------------------------ epochs

    def fit(self) -> TrainResult:
        """Train the epochs that are left."""
        while self.progress.epoch < self.config.epochs:
            self._train_epoch()
        if self.progress.history:
            self.detector.load(self.best_weights)
        self.detector.eval()
        best = self.progress.best_epoch
        result = TrainResult(self.progress.history[best - 1], best, self.progress.history)
        if self.accelerator.is_main_process and not self.folder.is_finished:
            self.folder.finish(asdict(result) | {"detector": self.detector.full_name})
        return result

    def _train_epoch(self) -> None:
        epoch = self.progress.epoch
        config = self.config
        torch.manual_seed(_epoch_seed(config.seed, epoch, self.accelerator.process_index))
        plan = plan_epoch(self.train_data.labels, self.detector.batch_layout, config.balance, config.seed, epoch)
        rows = PlannedEpoch(self.train_data, plan, config.augment, with_masks=self.detector.uses_masks)
        shard = partial(
            BatchSamplerShard,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            split_batches=True,
        )
        batches = loader(rows, self.batch_size, config.workers, shard)
        self.detector.train()
        sums: dict[str, float] = defaultdict(float)
        for batch in self._watched(batches, f"epoch {epoch + 1}/{config.epochs}"):
            for name, value in self._train_step(batch.to(self.device)).items():
                sums[name] += value
        steps = len(batches)
        history = (*self.progress.history, self._validation_auc())
        self.progress = Progress(epoch + 1, self.progress.step + steps, history)
        self._keep({name: self._mean_over_processes(total / steps) for name, total in sorted(sums.items())})

    def _mean_over_processes(self, value: float) -> float:
        """Every process saw its part of the batches; the log shows them all."""
        if self.accelerator.num_processes == 1:
            return value
        # float64 is beyond some devices; a logged mean needs no more.
        return self.accelerator.reduce(torch.tensor(value, dtype=torch.float32, device=self.device), "mean").item()

    def _watched(self, batches: DataLoader[RawBatch | ImageError], description: str) -> Iterator[RawBatch]:
        """The batches, with a progress bar in the main process.

        Raises:
            ImageError: an image of a batch cannot be read.
        """
        for batch in track(batches, description) if self.accelerator.is_main_process else batches:
            if isinstance(batch, ImageError):
                raise batch
            yield batch

    def _train_step(self, batch: TrainBatch) -> dict[str, float]:
        with autocast(self.device) if self.config.precision == "auto" else contextlib.nullcontext():
            loss, parts = self.loss(batch)
        value = loss.item()
        if not np.isfinite(value):
            raise UserError(
                f"the loss is {value} in epoch {self.progress.epoch + 1}; lower the learning rate, or look at the batch: "
                f"{few(batch.ids)}"
            )
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        self.optimiser.step()
        return {"loss": value, **parts}

    def _validation_auc(self) -> float:
        """AUC over the validation data, each process scoring its share."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        # Batch statistics of the last step differ between processes; the main process's are the ones that are saved.
        broadcast(list(self.detector.buffers()))
        rows = range(rank, len(self.val_data), processes)
        found = probabilities(
            self.detector.predict_proba,
            self.val_data,
            rows,
            self.config.eval_batch_size,
            self.device,
            self.config.workers,
            description="validation",
        )
        faults = gather_object(list(found.faults))
        if faults:
            raise UserError(f"{len(faults)} validation images cannot be read: {few(faults)}")
        shares = gather_object([(list(rows), found.probability[list(rows)])])
        fake = np.empty(len(self.val_data))
        for share, values in shares:
            fake[share] = values
        return auc(fake, self.val_data.labels.numpy())

    # ------------------------------------------------------------------------------------------------------- checkpoints

    @property
    def best_weights(self) -> Path:
        """Weights of the best epoch so far."""
        return self.folder.path / "model" / "model.safetensors"

    def _keep(self, means: dict[str, float]) -> None:
        """Log the epoch and keep what a resumed run needs; the model too when it is the best so far."""
        if self.accelerator.is_main_process:
            if self.progress.best_epoch == self.progress.epoch:
                self.detector.save(self.best_weights.parent)
            self.folder.log(
                step=self.progress.step, epoch=self.progress.epoch, val_auc=self.progress.history[-1], **means
            )
            save_checkpoint(self.folder.checkpoints / "last.safetensors", self.detector, self.optimiser, self.progress)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> Progress:
        """Take up the last checkpoint, or write the first: an interrupted first epoch starts from the same weights again."""
        path = self.folder.checkpoints / "last.safetensors"
        if path.is_file():
            progress = load_checkpoint(path, self.detector, self.optimiser)
            if self.accelerator.is_main_process:
                self.folder.rewind(progress.step)
            return progress
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            save_checkpoint(path, self.detector, self.optimiser, Progress())
        self.accelerator.wait_for_everyone()
        return Progress()


def save_checkpoint(path: Path, detector: Detector, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Write weights, optimiser state and progress into one safetensors file, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in detector.state_dict().items()}
    for index, entries in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in entries.items()}
    # Tensors that share their memory are written once each: what is read is copied into the detector's own.
    copies = {name: value.detach().clone() for name, value in tensors.items()}
    write_tensors(path, copies, {"progress": json.dumps(asdict(progress))})


def load_checkpoint(path: Path, detector: Detector, optimiser: torch.optim.Optimizer) -> Progress:
    """Read what `save_checkpoint` wrote into the detector and the optimiser.

    Raises:
        UserError: the checkpoint is of another detector.
    """
    tensors, metadata = read_tensors(path)
    progress = from_dict(read_metadata(metadata, "progress", path), Progress, str(path))
    if not 0 <= progress.epoch == len(progress.history):
        raise UserError(f"{path}: says that {progress.epoch} epochs are done and has {len(progress.history)} results")
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    load_weights(detector, weights, path)
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        if found := re.fullmatch(r"optimiser\.(\d{1,9})\.(\w+)", name):
            state[int(found[1])][found[2]] = value
    optimiser.load_state_dict({"state": dict(state), "param_groups": optimiser.state_dict()["param_groups"]})
    return progress


def _epoch_seed(seed: int, epoch: int, process: int) -> int:
    """Seed of torch's generator for one epoch in one process."""
    return int(np.random.SeedSequence([seed, epoch, process]).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def _deterministic() -> Generator[None]:
    """Deterministic kernels where there are any, and the caller's random state back afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
