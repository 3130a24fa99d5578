"""Learning classes as they arrive (paper §3.6): what users call.

learner = IncrementalLearner(model)
learner.begin(base_loader, range(50))
learner.fit_session(loader, range(50, 55))
learner.predict(pictures)
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cskopt.config import CsKOConfig, Method
from cskopt.method.baselines import WeightAnchor, logits_of
from cskopt.method.losses import distillation_loss, session_loss
from cskopt.method.projection import attach_projection, gpm_basis, gpm_projector, projectors_for
from cskopt.method.prototypes import PrototypeBank
from cskopt.method.second_moments import FeatureCovariance
from cskopt.method.selection import select_channels
from cskopt.method.wrapping import WrapReport, apply_selection, partial_layers, report_of, trained_layers, unwrap, wrap
from cskopt.models.checkpoints import CONTINUAL, Description, PictureFormat, Saved, read_folder, rebuild, write_folder
from cskopt.models.folding import set_submodule, stock_state
from cskopt.models.heads import captured_features, evaluating, grow_head, head_of
from cskopt.models.networks import build_model
from cskopt.models.tracing import SplitModel, cached_maps, split_frozen_prefix
from cskopt.training.loop import Groups, SessionRecipe, Spread, WithPrototypes, fit_epochs, let_go, parameter_groups
from tenfold import UserError

OptimizerFactory = Callable[[Groups], torch.optim.Optimizer]


class IncrementalLearner(nn.Module, PyTorchModelHubMixin):
    """A classifier that learns new classes without the pictures of the old ones.

    Args:
        model: a classifier trained on the base classes, or the name of an architecture (see `build_model`) with
            `num_classes`. A model is copied.
        config: the method's settings.
        method: a baseline instead; its settings replace `config`.
        head: name of the last layer; found when None.
        num_classes: with an architecture's name, the rows of its head.
        optimizer_factory: makes the optimiser of a session from two parameter groups named `kernels` and `head`; Adam when None.
        accelerator: device, precision and processes; a plain one when None.
        seed: of prototypes' draws and new rows of the head.

    Attributes:
        sessions: class ids of each session so far.
        pictures: class names, size and normalisation of pictures; set it to use the learner on files.
        prototypes: mean features of the classes seen.
        covariance: second moments of what the trained layers have seen.
    """

    def __init__(
        self,
        model: nn.Module | str,
        config: CsKOConfig | None = None,
        *,
        method: Method | None = None,
        head: str | None = None,
        num_classes: int | None = None,
        optimizer_factory: OptimizerFactory | None = None,
        accelerator: Accelerator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.architecture = model if isinstance(model, str) else None
        if isinstance(model, str):
            if num_classes is None:
                raise UserError(f"model {model!r}: give num_classes, the number of base classes")
            model = build_model(model, num_classes)
        self.method = method or Method("as configured", config or CsKOConfig())
        self.accelerator = accelerator or Accelerator()
        self.model = wrap(model, self.config, head=head).to(self.accelerator.device).eval()
        self.optimizer_factory = optimizer_factory
        self.seed = seed
        self.sessions: list[list[int]] = []
        self.pictures: PictureFormat | None = None
        self.prototypes = PrototypeBank(head_of(self.model, self.head_name).in_features)
        self.covariance = FeatureCovariance(self.model, self.config.covariance)
        self._gpm: dict[str, Tensor] = {}
        self._anchor = WeightAnchor()

    @property
    def config(self) -> CsKOConfig:
        """The method's settings."""
        return self.method.config

    @property
    def report(self) -> WrapReport:
        """What was wrapped and why."""
        return report_of(self.model)

    @property
    def head_name(self) -> str:
        """Name of the last layer."""
        return self.report.head

    @property
    def classes_seen(self) -> int:
        """|S_t|."""
        return sum(map(len, self.sessions))

    def begin(self, loader: Iterable[Any], labels: Sequence[int]) -> None:
        """Take stock of the base session: prototypes and covariances of its classes. Trains nothing (paper §3.6).

        Args:
            loader: (picture, label) batches of the base classes.
            labels: their ids, 0 to the head's number of rows - 1.

        Raises:
            UserError: called twice, or labels that are not those of the head.
        """
        if self.sessions:
            raise UserError("begin was called already; use fit_session for further classes")
        rows = head_of(self.model, self.head_name).out_features
        if list(labels) != list(range(rows)):
            raise UserError(f"the base session must have the labels 0..{rows - 1} of the head, got {_short(labels)}")
        _refuse_used_up(loader)
        with self._transaction(), evaluating(self.model):
            self._take_stock(self.model, loader, labels)
            self.sessions.append(list(labels))

    def fit_session(
        self,
        loader: Iterable[Any],
        labels: Sequence[int],
        recipe: SessionRecipe | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> dict[str, float]:
        """Learn the classes of a session (paper §3.6).

        Args:
            loader: (picture, label) batches of the new classes only, a DataLoader or a list; every pass gives the same pictures.
            labels: their ids, following the last one seen.
            recipe: how long and how fast.
            progress: called after each epoch with its number from 1 and its mean loss.

        Returns:
            What there is to say: final `loss`, `kept_channels` and `kept_directions` (means over layers), `trained` parameters.

        Raises:
            UserError: `begin` is missing; labels that overlap earlier ones or leave a gap.
            FloatingPointError: features, gradients or loss that are not finite.
        """
        self._check_labels(labels)
        _refuse_used_up(loader)
        with self._transaction(), evaluating(self.model):
            return self._fit_session(loader, labels, recipe or SessionRecipe(), progress)

    def _fit_session(
        self,
        loader: Iterable[Any],
        labels: Sequence[int],
        recipe: SessionRecipe,
        progress: Callable[[int, float], None] | None,
    ) -> dict[str, float]:
        session = len(self.sessions)
        generator = torch.Generator().manual_seed(self.seed * 1009 + session)
        for _, targets in loader:
            _refuse_foreign(targets, labels)
            break
        old_model = copy.deepcopy(self.model).eval() if self.method.penalty == "lwf" else None
        grow_head(self.model, self.head_name, self.classes_seen + len(labels), generator)
        head_of(self.model, self.head_name).requires_grad_(True)
        body, source, old_body = self.model, loader, old_model
        cached = self._cached(loader) if recipe.cache_prefix else None
        if cached is not None:
            body, source = cached[0].suffix, cached[1]
            old_split = None if old_model is None else self._split(old_model, _first_batch(loader))
            old_body = old_split.suffix if old_split else None
        summary = {"loss": float("nan")}
        if self.method.trains:
            summary = self._train(body, source, labels, old_body, recipe, generator, progress)
        self._take_stock(body, source, labels)
        self.sessions.append(list(labels))
        return summary

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        """After a failure or an interrupt in the block the learner is as it was before: old head, old weights, old memory.

        Kept meanwhile: the elements that can be trained, the head, and what a learner remembers of old sessions.
        """
        head, partial = head_of(self.model, self.head_name), partial_layers(self.model)
        layers = {name: (layer.index, layer.elements()) for name, layer in partial.items()}
        own = {id(layer.trained) for layer in partial.values()}
        weights = [(each, each.detach().clone()) for each in self.model.parameters() if each.requires_grad]
        weights = [(each, value) for each, value in weights if id(each) not in own]
        prototypes = {name: each.clone() for name, each in self.prototypes.state_dict().items()}
        matrices, gpm = dict(self.covariance.matrices), dict(self._gpm)
        anchors, importance = self._anchor.anchors, self._anchor.importance
        sessions = len(self.sessions)
        try:
            yield
        except BaseException:
            set_submodule(self.model, self.head_name, head)
            for parameter, value in weights:
                parameter.data.copy_(value)
            for name, (index, elements) in layers.items():
                partial[name].rewind(index, elements)
            self.model.zero_grad(set_to_none=True)
            self.prototypes.load_state_dict(prototypes)
            self.covariance.matrices, self._gpm = matrices, gpm
            self._anchor.anchors, self._anchor.importance = anchors, importance
            del self.sessions[sessions:]
            raise

    def _train(
        self,
        body: nn.Module,
        loader: Iterable[Any],
        labels: Sequence[int],
        old_body: nn.Module | None,
        recipe: SessionRecipe,
        generator: torch.Generator,
        progress: Callable[[int, float], None] | None,
    ) -> dict[str, float]:
        self._select(body, loader, labels, generator)
        projectors = self._projectors()
        head = head_of(self.model, self.head_name)
        groups = parameter_groups(self.model, head, recipe)
        optimizer = (self.optimizer_factory or torch.optim.Adam)(groups)
        handle = attach_projection(optimizer, self.model, projectors)

        def accept(targets: Tensor) -> None:
            _refuse_foreign(targets, labels)

        def penalty(inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
            return self._penalty(inputs, logits, old_body, recipe.penalty_weight)

        try:
            loss = fit_epochs(
                WithPrototypes(body, head),
                optimizer,
                loader,
                self.accelerator,
                recipe,
                self.config,
                self.prototypes,
                penalty,
                generator,
                progress,
                accept,
            )
        finally:
            handle.remove()
            let_go(self.accelerator)
        return {
            "loss": loss,
            "trained": float(sum(each.numel() for group in groups for each in group["params"])),
            "kept_directions": _mean([_rank(each) for each in projectors.values()]),
        }

    def _select(
        self, body: nn.Module, loader: Iterable[Any], labels: Sequence[int], generator: torch.Generator
    ) -> None:
        config = self.config
        selection = select_channels(
            Spread(body), self._pairs(loader, labels), self._loss, config.channel_ratio, config.selection, generator
        )
        apply_selection(self.model, {name.removeprefix("body."): each for name, each in selection.items()})

    def _projectors(self) -> dict[str, Tensor]:
        config = self.config
        if config.rule == "none" or not trained_layers(self.model):
            return {}
        if config.rule == "gpm":
            return {name: gpm_projector(basis) for name, basis in self._gpm.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("once")
            return projectors_for(self.covariance, config.rule, config.thres, config.energy, config.normalize)

    def _penalty(self, inputs: tuple[Tensor, ...], logits: Tensor, old_body: nn.Module | None, weight: float) -> Tensor:
        if self.method.penalty == "lwf" and old_body is not None:
            return weight * distillation_loss(logits, logits_of(old_body, inputs, self.classes_seen))
        if self.method.penalty == "ewc":
            return weight * self._anchor.penalty(self.model)
        return logits.new_zeros(())

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return session_loss(logits, labels, self.config.temperature)

    def _take_stock(self, body: nn.Module, loader: Iterable[Any], labels: Sequence[int]) -> None:
        """Prototypes, covariances and importances of the session that has just ended (paper §3.6)."""
        before = {name: each.clone() for name, each in self.covariance.matrices.items()}
        missing = set(labels)
        with (
            torch.no_grad(),
            captured_features(self.model, self.head_name) as captured,
            self.covariance.watching() if self.config.rule != "none" else contextlib.nullcontext(),
        ):
            for inputs, targets in self._pairs(loader, labels):
                missing -= set(targets.tolist())
                body(*inputs)
                self.prototypes.add(captured.features(), targets)
        if missing == set(labels):
            raise UserError("the loader gave no batch")
        if missing:
            raise UserError(f"labels {_short(sorted(missing))} have no picture; a session needs some of every class")
        if self.config.rule == "gpm":
            self._extend_gpm(before)
        if self.method.penalty == "ewc":
            self._anchor.add_session(self.model, self._pairs(loader, labels), body, self._loss)

    def _extend_gpm(self, before: dict[str, Tensor]) -> None:
        for name, total in self.covariance.matrices.items():
            moment = total - before[name] if name in before else total
            basis = self._gpm.get(name, total.new_zeros(len(total), 0))
            self._gpm[name] = gpm_basis(basis, moment, self.config.energy).to(total)

    def _split(self, model: nn.Module, example: Tensor) -> SplitModel | None:
        return split_frozen_prefix(model, example.to(self.accelerator.device)[:2])

    def _cached(self, loader: Iterable[Any]) -> tuple[SplitModel, DataLoader] | None:
        """The model split at the end of its frozen part, and a loader of the maps there; None where that cannot be."""
        split = self._split(self.model, _first_batch(loader))
        if split is None:
            return None
        order = torch.Generator().manual_seed(self.seed * 1013 + len(self.sessions))
        size = getattr(loader, "batch_size", None) or len(_first_batch(loader))
        maps = cached_maps(split.prefix, loader, size, self.accelerator.device, order)
        return None if maps is None else (split, maps)

    def _pairs(self, loader: Iterable[Any], labels: Sequence[int]) -> Iterable[tuple[Any, Tensor]]:
        device = self.accelerator.device
        for *inputs, targets in loader:
            _refuse_foreign(targets, labels)
            yield tuple(each.to(device) for each in inputs), targets.to(device)

    def _check_labels(self, labels: Sequence[int]) -> None:
        if not self.sessions:
            raise UserError("no base session yet: call begin(loader, labels) first")
        seen = self.classes_seen
        overlap = sorted(set(labels) & set(range(seen)))
        if overlap:
            raise UserError(f"labels {_short(overlap)} were learnt in an earlier session")
        if not labels or list(labels) != list(range(seen, seen + len(labels))):
            raise UserError(f"labels of a session must follow {seen - 1} without a gap, got {_short(labels)}")
        if self.config.proto_weight > 0 and len(self.prototypes) < seen:
            raise UserError("prototypes of earlier classes are missing: call begin first, or set proto_weight = 0")

    @torch.no_grad()
    def scores(self, pictures: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Probability of each class seen, no session given; for the nearest class mean, from negative distances."""
        self.model.eval()
        with captured_features(self.model, self.head_name) as captured:
            logits = self.model(pictures.to(self.accelerator.device))
            features = captured.features()
        if self.method.trains:
            return (logits / self.config.temperature).softmax(1)
        return (-self.prototypes.distances(features)).softmax(1)

    def predict(self, pictures: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
        """The class of each picture among all seen, no session given."""
        return self.scores(pictures).argmax(1)

    def forward(self, pictures: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of all classes seen."""
        return self.model(pictures)

    def evaluate(self, loader: Iterable[Any]) -> float:
        """Accuracy in [0, 1] over a loader of (picture, label) batches."""
        hits = total = 0
        for pictures, labels in loader:
            hits += int((self.predict(pictures).cpu() == labels.cpu()).sum())
            total += len(labels)
        if total == 0:
            raise UserError("the loader gave no picture")
        return hits / total

    def plain_model(self) -> nn.Module:
        """An ordinary model with batch normalisation folded: nothing of this package is needed to run it."""
        return unwrap(self.model).cpu().eval()

    def save(self, folder: str | Path) -> None:
        """Write the folder that `load` reads; see `save_pretrained`."""
        self._save_pretrained(Path(folder))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Called by `save_pretrained`; see `cskopt.checkpoints` for the files."""
        description = Description(
            self.architecture, self.head_name, self.sessions, self.seed, self.method, self.pictures
        )
        continual = {
            "prototypes": self.prototypes.state_dict(),
            "covariance": self.covariance.state_dict(),
            "gpm": self._gpm,
            "anchor": self._anchor.anchors,
            "importance": self._anchor.importance,
        }
        write_folder(Path(save_directory), Saved(description, dict(self.plain_model().state_dict()), continual))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "IncrementalLearner":
        folder = Path(model_id)
        if not folder.is_dir():
            local = bool(options.get("local_files_only"))
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=options.get("revision"),
                    cache_dir=options.get("cache_dir"),
                    token=options.get("token"),
                    local_files_only=local,
                )
            )
        # The mixin also hands over what a config.json holds under the constructor's names: only real objects are of use here.
        kinds = {"accelerator": Accelerator, "optimizer_factory": Callable, "model": nn.Module}
        ours = {key: options[key] for key, kind in kinds.items() if isinstance(options.get(key), kind)}
        return cls.load(folder, **ours)

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module | None = None, **options: Any) -> "IncrementalLearner":
        """Read a folder written by `save` or `save_pretrained`.

        Args:
            folder: where.
            model: of the same architecture, needed when the learner was not made from an architecture's name.
            options: `accelerator`, `optimizer_factory`.

        Raises:
            UserError: files missing or damaged, or of another architecture. Nothing in them is run.
        """
        saved = read_folder(Path(folder))
        described = saved.description
        built = rebuild(saved, Path(folder), model)
        learner = cls(built, method=described.method, head=described.head, seed=described.seed, **options)
        learner.architecture = described.architecture
        learner.sessions = described.sessions
        learner.pictures = described.pictures
        try:
            learner._take_up(saved.continual)
        except UserError as error:
            raise UserError(f"{Path(folder) / CONTINUAL}: {error}") from None
        return learner

    def _take_up(self, continual: dict[str, dict[str, Tensor]]) -> None:
        """Prototypes, covariances, bases and anchors as they were saved, where they fit the model.

        Raises:
            UserError: they do not.
        """
        device = self.accelerator.device

        def part(kind: str) -> dict[str, Tensor]:
            return {name: each.to(device) for name, each in continual.get(kind, {}).items()}

        self.prototypes.load_state_dict({name: each.cpu() for name, each in part("prototypes").items()})
        if bool((self.prototypes.classes >= self.classes_seen).any()):
            raise UserError("prototypes of classes that were never learnt")
        self.covariance.load_state_dict(part("covariance"))
        self._gpm = part("gpm")
        for name, basis in self._gpm.items():
            if (
                name not in self.covariance.matrices
                or basis.ndim != 2
                or len(basis) != len(self.covariance.matrices[name])
            ):
                raise UserError(f"basis of {name} does not fit its covariance")
        self._anchor.load_state_dict(part("anchor"), part("importance"), self.model)

    def stock_weights(self) -> dict[str, Tensor]:
        """Weights in the layout of the architecture before folding: what torchvision's or timm's own model loads.

        Raises:
            UserError: the learner was not made from an architecture's name.
        """
        if self.architecture is None:
            raise UserError("the architecture has no name here; use plain_model().state_dict(), the folded layout")
        return stock_state(self.plain_model(), build_model(self.architecture, self.classes_seen))


def _refuse_foreign(targets: Tensor, labels: Sequence[int]) -> None:
    """Check the labels of a batch.

    Raises:
        UserError: a label of another session.
    """
    foreign = sorted(set(targets.tolist()) - set(labels))
    if foreign:
        raise UserError(f"the loader has labels {_short(foreign)}, which are not of this session ({_short(labels)})")


def _refuse_used_up(loader: Iterable[Any]) -> None:
    """Refuse what can be gone through only once.

    Raises:
        UserError: a generator or another iterator.
    """
    if isinstance(loader, Iterator):
        raise UserError(f"the loader is a {type(loader).__name__}, which one pass uses up; give a DataLoader")


def _first_batch(loader: Iterable[Any]) -> Tensor:
    for pictures, *_ in loader:
        return pictures
    raise UserError("the loader gave no batch")


def _short(labels: Iterable[int]) -> str:
    shown = list(labels)
    return ", ".join(map(str, shown[:5])) + (", ..." if len(shown) > 5 else "") if shown else "none"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _rank(projector: Tensor) -> float:
    """Directions that a projector keeps, whatever its scale: trace^2 / ||P||_F^2."""
    return float(projector.trace().square() / projector.square().sum().clamp_min(1e-30))
