"""Learning tasks one after the other (paper Alg. 1): prompts under projection, a head per task, moments after each."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from huggingface_hub import ModelHubMixin
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tenfold import UserError
from tenfold.runs import autocast
from vptnsp.config import LearnerConfig, from_plain
from vptnsp.evaluation.protocols import StreamRecord, count_correct
from vptnsp.method.losses import prompt_distribution_loss
from vptnsp.method.projection import LayerProjection, Nullity, PromptProjector, layer_projections
from vptnsp.method.second_moments import SecondMoments, collect_second_moments
from vptnsp.models.backbones import build_backbone, clip_head
from vptnsp.models.clip.heads import ClassGaussians, ClipHead, refine_projection_head
from vptnsp.models.heads import TaskHeads
from vptnsp.models.networks import PromptedViT, check_images, required_size
from vptnsp.training.state import DESCRIPTION, read_description, restore_from, save_learner
from vptnsp.training.step import PromptClassifier, TaskTraining, learning_rates, task_loss


class NSPLearner(ModelHubMixin):
    """A classifier that learns classes task by task on a frozen backbone, without keeping images.

    Args:
        vit: the prompted backbone; built from the configuration when None.
        config: how to learn.
        accelerator: where several processes learn together; one process by default.

    Attributes:
        tasks: labels of each task learnt, in the order of the logits' columns.
        names: name of each label.
        moments: second moments of all tasks so far, or None.
        nullities: of the projections in use, by layer.
    """

    def __init__(
        self,
        vit: PromptedViT | None = None,
        config: LearnerConfig | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        # learner.json says it all: the mixin need not write a config.json beside it.
        self._hub_mixin_config = None
        self.config = config or LearnerConfig()
        self.accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
        self.device = self.accelerator.device
        self.vit = build_backbone(self.config) if vit is None else vit
        is_clip = getattr(self.vit.backbone, "projection", None) is not None
        head = clip_head(self.vit) if is_clip else TaskHeads(self.vit.dim, self.config.head_init)
        self.network = PromptClassifier(self.vit, head).to(self.device)
        self.tasks: list[list[int]] = []
        self.names: dict[int, str] = {}
        self.moments: SecondMoments | None = None
        self.projections: Mapping[str, LayerProjection] = {}
        self.nullities: Mapping[str, Nullity] = {}
        self.gaussians: ClassGaussians | None = None
        self._projector = PromptProjector()

    @property
    def head(self) -> TaskHeads | ClipHead:
        """The classifier on top."""
        return self.network.head

    @property
    def labels(self) -> list[int]:
        """Labels of all tasks, in the order of the logits' columns."""
        return [label for task in self.tasks for label in task]

    def begin_task(
        self,
        classes: Sequence[int],
        names: Mapping[int, str] | None = None,
        texts: Float[Tensor, "c e"] | None = None,
    ) -> TaskTraining:
        """Open a new task: its head, a fresh optimiser, the projection of the tasks before.

        Args:
            classes: its labels.
            names: of the labels.
            texts: unit text features of the classes; CLIP only.

        Raises:
            UserError: repeated or too few classes, no texts for CLIP, or no moments of the tasks before.
        """
        self._check_classes(classes)
        self._check_nullity()
        task, config = len(self.tasks), self.config
        torch.manual_seed(config.seed * 1009 + task)
        self._add_head(classes, texts)
        trains_prompts = task == 0 or config.train_prompts == "always"
        for prompt in self.vit.trainable_parameters():
            prompt.requires_grad_(trains_prompts)
        head = [each for each in self.head.parameters() if each.requires_grad]
        groups = [{"params": head, "scale": 1.0}]
        if trains_prompts:
            scale = 1.0 if config.prompt_lr is None else config.prompt_lr / config.lr
            groups.append({"params": self.vit.trainable_parameters(), "scale": scale})
        optimizer = torch.optim.Adam(groups, lr=config.lr, weight_decay=config.weight_decay)
        if task > 0 and trains_prompts and config.projection != "none":
            self._projector.attach(optimizer, self.vit.prompts(), self._needed_projections())
        self.tasks.append(list(classes))
        self.names |= {label: (names or {}).get(label, str(label)) for label in classes}
        return TaskTraining(
            task=task,
            optimizer=optimizer,
            network=self._shared_network(),
            reference={name: prompt.detach().clone() for name, prompt in self.vit.prompts().items()},
            rates=learning_rates(config.epochs, config.lr, config.schedule),
        )

    def _shared_network(self) -> nn.Module:
        """The network as the processes share it: one process without mixed precision has nothing to wrap."""
        if self.accelerator.num_processes == 1 and self.accelerator.mixed_precision == "no":
            return self.network
        self.accelerator.free_memory()  # the last task's wrapper would keep its gradient hooks
        return self.accelerator.prepare_model(self.network)

    def _check_classes(self, classes: Sequence[int]) -> None:
        repeated = sorted({each for each in classes if each in self.labels or list(classes).count(each) > 1})
        if repeated:
            raise UserError(
                f"classes {repeated} were learnt before, or are named twice; a task brings new classes only"
            )
        if len(classes) < 2:
            raise UserError(
                f"a task needs at least two classes, got {list(classes)}: with one there is nothing to learn"
            )

    def _check_nullity(self) -> None:
        config = self.config
        projects = config.projection != "none" and config.train_prompts == "always" and config.eta2 > 0
        if projects and config.prompt_nullity_mode == "adaptive" and self.vit.num_prompts < 3:
            raise UserError(
                f"{self.vit.num_prompts} prompts have no adaptive nullity, which needs three: use more, "
                "--prompt-nullity-mode fixed, or --eta2 0"
            )

    def _add_head(self, classes: Sequence[int], texts: Tensor | None) -> None:
        if isinstance(self.head, ClipHead):
            if texts is None or len(texts) != len(classes):
                raise UserError(
                    f"CLIP needs one text feature for each of the task's {len(classes)} classes, got {0 if texts is None else len(texts)}"
                )
            self.head.add_task(texts)
        else:
            self.head.add_task(len(classes))

    def _needed_projections(self) -> Mapping[str, LayerProjection]:
        if not self.projections:
            if self.moments is None:
                raise UserError(
                    "no second moments of the tasks before: they were not collected, or moments.safetensors is missing; "
                    "use --projection none, or learn with --extendable"
                )
            self.projections, self.nullities = layer_projections(self.moments, self.vit, self.config)
        return self.projections

    def step(self, training: TaskTraining, images: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """One step on a batch; returns the loss without waiting for it.

        Raises:
            UserError: a label that is not of the task.
        """
        classes = torch.tensor(self.tasks[training.task], device=self.device)
        member = labels.to(self.device)[:, None] == classes
        config = self.config
        with autocast(self.device) if config.precision == "auto" else contextlib.nullcontext():
            logits = training.network(images.to(self.device), training.task)
        distribution: Tensor | float = 0.0
        if training.task > 0 and config.ln_weight > 0 and config.train_prompts == "always":
            drift = prompt_distribution_loss(self.vit.prompts(), training.reference, config.ln_reduction)
            distribution = config.ln_weight * drift
        loss = task_loss(logits.float(), member.int().argmax(1), config.temperature, distribution)
        training.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        training.optimizer.step()
        return loss.detach()

    def run_epoch(self, training: TaskTraining, loader: Iterable[Any]) -> float:
        """One pass over the task's data; what chance decides in it depends on seed, task and epoch alone.

        Returns:
            The mean loss.

        Raises:
            UserError: no data, labels of another task, or a loss that is not finite.
        """
        self.network.train()
        torch.manual_seed((self.config.seed * 1009 + training.task) * 10_007 + training.epoch)
        for group in training.optimizer.param_groups:
            group["lr"] = training.rates[training.epoch] * group["scale"]
        known = set(self.tasks[training.task])
        losses = []
        for images, labels in self._shared(loader, split=True):
            foreign = sorted(set(labels.tolist()) - known)
            if foreign:
                raise UserError(
                    f"labels {foreign[:5]} are not of task {training.task + 1}, whose labels are {sorted(known)}"
                )
            check_images(images, required_size(self.vit))
            losses.append(self.step(training, images, labels))
        if not losses:
            raise UserError(f"task {training.task + 1} has no training pictures")
        loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        if not math.isfinite(loss):
            raise UserError(
                f"task {training.task + 1}, epoch {training.epoch + 1}: the loss is {loss}; lower --lr or check the pictures"
            )
        training.epoch += 1
        return loss

    def finish_task(self, training: TaskTraining, stats_loader: Iterable[Any], last: bool = False) -> None:
        """Close a task: freeze its head, collect its second moments, prepare the next projections.

        Args:
            training: what `begin_task` returned.
            stats_loader: the task's training pictures with the evaluation transform.
            last: no task will follow, so that moments are collected only if the learner is to stay extendable.
        """
        config = self.config
        self._projector.detach()
        self.network.eval()
        for parameter in self.head.parameters():
            parameter.requires_grad_(isinstance(self.head, ClipHead) and parameter is self.head.logit_scale)
        needs_moments = config.projection != "none" and config.train_prompts == "always"
        if needs_moments and (config.extendable or not last):
            moments = collect_second_moments(
                self.vit,
                self._shared(stats_loader, split=False),
                device=self.device,
                weighting=config.weighting,
                consistency=config.consistency,
                reduce=self._sum_over_processes if self.accelerator.num_processes > 1 else None,
            )
            self.moments = moments if self.moments is None else self.moments.merge(moments, config.accumulate)
            self.projections, self.nullities = layer_projections(self.moments, self.vit, config)
        if isinstance(self.head, ClipHead) and config.refine_epochs > 0:
            self._refine(self.head, stats_loader, self.tasks[training.task])

    @torch.no_grad()
    def _task_features(self, loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
        pairs = [(self.vit(images.to(self.device)), labels) for images, labels in loader]
        features, labels = zip(*pairs, strict=True)
        return torch.cat(features), torch.cat(labels)

    def _refine(self, head: ClipHead, loader: Iterable[Any], classes: list[int]) -> None:
        features, labels = self._task_features(loader)
        positions = (labels[:, None] == torch.tensor(classes)).int().argmax(1).to(self.device)
        measured = ClassGaussians.fit(features, positions, len(classes))
        self.gaussians = measured if self.gaussians is None else self.gaussians.join(measured)
        refine_projection_head(head, self.gaussians, epochs=self.config.refine_epochs)

    def fit_task(
        self,
        train_loader: Iterable[Any],
        stats_loader: Iterable[Any],
        classes: Sequence[int],
        *,
        names: Mapping[int, str] | None = None,
        texts: Float[Tensor, "c e"] | None = None,
        last: bool = False,
    ) -> list[float]:
        """Learn one task from beginning to end.

        Args:
            train_loader: yields (images, labels), augmented and normalised.
            stats_loader: the same pictures with the evaluation transform.
            classes: the task's labels.
            names: of the labels.
            texts: unit text features of the classes; CLIP only.
            last: see `finish_task`.

        Returns:
            The mean loss of each epoch.
        """
        training = self.begin_task(classes, names, texts)
        losses = [self.run_epoch(training, train_loader) for _ in range(self.config.epochs)]
        self.finish_task(training, stats_loader, last)
        return losses

    def partial_fit(self, images: Float[Tensor, "n 3 h w"], labels: Int[Tensor, " n"]) -> "NSPLearner":
        """Learn the classes in `labels` as the next task, from tensors (as in scikit-learn)."""
        pictures = TensorDataset(images, labels)
        train = DataLoader(pictures, self.config.batch_size, shuffle=True)
        self.fit_task(train, DataLoader(pictures, self.config.moment_batch_size), sorted(set(labels.tolist())))
        return self

    def _shared(self, loader: Iterable[Any], split: bool) -> Iterable[Any]:
        """This process's share: of every batch (training), or of the batches (moments)."""
        processes = self.accelerator.num_processes
        if processes == 1 or not isinstance(loader, DataLoader):
            return loader
        if split and self.config.batch_size % processes:
            raise UserError(f"--batch-size {self.config.batch_size} cannot be split over {processes} processes evenly")
        return prepare_data_loader(
            _drawn(loader) if split else loader,
            num_processes=processes,
            process_index=self.accelerator.process_index,
            split_batches=split,
            even_batches=split,
        )

    def _sum_over_processes(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value.to(self.device), "sum")

    @torch.no_grad()
    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Raw logits of all classes so far, in the order of `labels`."""
        self.network.eval()
        with autocast(self.device) if self.config.precision == "auto" else contextlib.nullcontext():
            return self.network(images.to(self.device)).float()

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """What the heads see."""
        self.network.eval()
        return self.vit(images.to(self.device))

    def predict(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, " b"]:
        """The label of each picture, among all classes so far."""
        if not self.tasks:
            raise UserError("nothing has been learnt yet")
        check_images(images, required_size(self.vit))
        return torch.tensor(self.labels)[self.logits(images).argmax(1).cpu()]

    def evaluate(self, loaders: Sequence[Iterable[Any]]) -> dict[str, Any]:
        """Accuracy on the test pictures of each task seen.

        Args:
            loaders: one for each task, in order, yielding (images, labels).

        Returns:
            `accuracy` and `task_aware` by task, `acc_task_mean`, `acc_pooled`; in [0, 1].
        """
        if len(loaders) != len(self.tasks):
            raise UserError(f"{len(self.tasks)} tasks were learnt, got loaders of {len(loaders)}")
        counts = [count_correct(self, loader, task) for task, loader in enumerate(loaders)]
        record = StreamRecord(len(counts))
        for task, each in enumerate(counts):
            record.add(len(counts) - 1, task, each)
        accuracy = [each.correct / each.total for each in counts]
        return {
            "accuracy": accuracy,
            "task_aware": [each.aware / each.total for each in counts],
            "acc_task_mean": sum(accuracy) / len(accuracy),
            "acc_pooled": sum(each.correct for each in counts) / sum(each.total for each in counts),
        }

    def with_config(self, **changes: Any) -> "NSPLearner":
        """Change how later tasks are learnt; returns the learner itself."""
        self.config = dataclasses.replace(self.config, **changes)
        self.projections = {}
        return self

    def save(self, path: str | Path) -> None:
        """Write the learner's folder: model.safetensors, moments.safetensors, learner.json."""
        save_learner(self, Path(path))

    @classmethod
    def load(
        cls, path: str | Path, vit: PromptedViT | None = None, accelerator: Accelerator | None = None
    ) -> "NSPLearner":
        """Read what `save` wrote.

        Args:
            path: the folder.
            vit: the backbone, where the configuration's name is not enough to build it.
            accelerator: see the class.

        Raises:
            UserError: files missing, damaged, or of another backbone.
        """
        found = read_description(Path(path))
        learner = cls(vit, from_plain(found.config, str(Path(path) / DESCRIPTION)), accelerator)
        restore_from(Path(path), found, learner)
        return learner

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> "NSPLearner":
        from huggingface_hub import snapshot_download

        if Path(model_id).is_dir():
            return cls.load(model_id)
        return cls.load(
            snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        )


def _drawn(loader: DataLoader) -> DataLoader:
    """The loader with its order drawn as one process would: accelerate seeds a random sampler in its own way."""
    torch.empty((), dtype=torch.int64).random_()  # a loader draws its workers' seed before its sampler draws
    order = list(loader.sampler)
    return DataLoader(
        loader.dataset, loader.batch_size, sampler=order, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )
