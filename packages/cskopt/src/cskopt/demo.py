"""What the command line shows besides training: the intensity study and the demonstration."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cskopt.benchmark.profiling import measure_saved_bytes
from cskopt.config import TrainConfig, method_named
from cskopt.data.datasets import ClassOrder, Corpus, SessionPictures, as_loader, class_order, shapes_corpus
from cskopt.evaluation.figures import plot_intensity, plot_pictures, plot_sessions
from cskopt.evaluation.metrics import IncrementalScores
from cskopt.method.kernel_intensity import IntensityMap, kernel_intensity_maps
from cskopt.method.losses import session_loss
from cskopt.models.networks import build_model
from cskopt.training.learner import IncrementalLearner
from cskopt.training.run import make_accelerator, run_sessions, train_base
from tenfold import UserError
from tenfold.config import load_preset
from tenfold.runs import seed_everything, track


@dataclass(frozen=True)
class IntensityStudy:
    """Knowledge intensity of every layer on new classes.

    Attributes:
        maps: by layer.
        classes: new classes that the loss was of.
    """

    maps: dict[str, IntensityMap]
    classes: int

    def relative(self) -> dict[str, tuple[float, float, float, float]]:
        """Edge and corner against the centre, raw and per use, for square kernels of odd size."""
        return {
            name: (*edge_and_corner(each.raw), *edge_and_corner(each.per_use))
            for name, each in self.maps.items()
            if each.raw.shape[0] == each.raw.shape[1] and each.raw.shape[0] % 2
        }

    def to_json(self) -> str:
        """Maps and counts of all layers."""
        layers = {
            name: {"raw": each.raw.tolist(), "per_use": each.per_use.tolist(), "counts": each.counts.tolist()}
            for name, each in self.maps.items()
        }
        return json.dumps({"new_classes": self.classes, "layers": layers}, indent=2) + "\n"


def edge_and_corner(intensity: Float[Tensor, "k k"]) -> tuple[float, float]:
    """Mean of the four elements beside the centre's row and column at the border, and of the corners; centre = 1."""
    middle, last = intensity.shape[0] // 2, intensity.shape[0] - 1
    centre = float(intensity[middle, middle])
    edges = [intensity[0, middle], intensity[last, middle], intensity[middle, 0], intensity[middle, last]]
    corners = [intensity[i, j] for i in (0, last) for j in (0, last)]
    if centre == 0:
        return float("nan"), float("nan")
    return float(torch.stack(edges).mean()) / centre, float(torch.stack(corners).mean()) / centre


def intensity_study(
    corpus: Corpus, config: TrainConfig, device: torch.device, checkpoint: Path | None = None
) -> IntensityStudy:
    """Train the base classes (or load a learner) and measure on all classes after them (paper §3.1).

    Raises:
        UserError: no classes are left after the base.
    """
    accelerator = make_accelerator(device)
    known = None if checkpoint is None else IncrementalLearner.load(checkpoint, accelerator=accelerator)
    base_classes = config.base_classes if known is None else known.classes_seen
    order = class_order(len(corpus.classes), replace(config, base_classes=base_classes, increment=0))
    if len(order.sessions) < 2:
        raise UserError("no classes are left after the base: lower --base-classes")
    if known is None:
        seed_everything(config.seed)
        base = SessionPictures(corpus.train, order, order.labels_of(0), corpus, config.augment)
        model = train_base(build_model(config.model, config.base_classes), base, config, accelerator)
    else:
        model = known.plain_model().to(accelerator.device)
    learner = IncrementalLearner(model, method=method_named("full"), accelerator=accelerator)
    plain = learner.plain_model().to(accelerator.device)
    return intensity_of_new_classes(plain, corpus, order, config, accelerator.device)


def intensity_of_new_classes(
    model: torch.nn.Module, corpus: Corpus, order: ClassOrder, config: TrainConfig, device: torch.device
) -> IntensityStudy:
    """Intensity maps of a plain model on the classes of the second session; the head grows by them."""
    from cskopt.models.heads import find_head, grow_head

    labels = order.labels_of(1)
    grow_head(model, find_head(model), order.sessions[1].stop, torch.Generator().manual_seed(config.seed))
    dataset = SessionPictures(corpus.train, order, labels, corpus)
    batches = [(x.to(device), y.to(device)) for x, y in as_loader(dataset, config.batch_size)]
    temperature = config.resolved_method().config.temperature
    maps = kernel_intensity_maps(model, batches, lambda logits, y: session_loss(logits, y, temperature))
    cpu = {name: IntensityMap(each.raw.cpu(), each.per_use.cpu(), each.counts.cpu()) for name, each in maps.items()}
    return IntensityStudy(cpu, len(labels))


@dataclass(frozen=True)
class DemoRow:
    """One method in the demonstration.

    Attributes:
        method: its name.
        scores: accuracies and forgetting.
        kept: bytes kept for the backward pass in a step of 8 pictures, measured.
        trained: trained parameters.
    """

    method: str
    scores: IncrementalScores
    kept: int
    trained: int


@dataclass(frozen=True)
class Demo:
    """What the demonstration gave.

    Attributes:
        rows: a line for each method.
        pictures: files written.
    """

    rows: list[DemoRow]
    pictures: list[Path]


def run_demo(out: Path, seed: int = 0) -> Demo:
    """Learn eight generated classes, then two times two more, by three methods; write pictures."""
    methods = ("csko", "head-prototypes", "all-taps")
    config = replace(
        load_preset("cskopt", "small", TrainConfig),
        base_classes=8,
        increment=2,
        base_epochs=6,
        epochs=10,
        seed=seed,
        order="natural",
        precision="fp32",
    )
    corpus = shapes_corpus(12, 80, 40, seed, config.image_size)
    order = class_order(12, config)
    accelerator = make_accelerator(torch.device("cpu"))
    seed_everything(seed)
    base = SessionPictures(corpus.train, order, order.labels_of(0), corpus)
    model = train_base(build_model(config.model, 8), base, config, accelerator)
    rows, learners = [], {}
    for name in track(methods, "methods"):
        learner = IncrementalLearner(model, method=method_named(name), accelerator=accelerator, seed=seed)
        result = run_sessions(learner, corpus, order, replace(config, method=name))
        learners[name] = learner
        x, y = next(iter(as_loader(SessionPictures(corpus.train, order, order.labels_of(2), corpus), 8)))
        kept = sum(measure_saved_bytes(learner.model, x, y, torch.nn.functional.cross_entropy).values())
        trained = sum(each.numel() for each in learner.model.parameters() if each.requires_grad)
        rows.append(DemoRow(name, result.scores, kept, trained))
    curves = {row.method: row.scores.seen for row in rows}
    plot_sessions(curves, out / "sessions.png", "12 classes of textured shapes: 8, then 2, then 2")
    _plot_guesses(corpus, order, learners, out / "guesses.png")
    study = intensity_of_new_classes(
        model, corpus, class_order(12, replace(config, increment=0)), config, accelerator.device
    )
    plot_intensity({name: (m.raw.numpy(), m.per_use.numpy()) for name, m in study.maps.items()}, out / "intensity.png")
    return Demo(rows, [out / "sessions.png", out / "guesses.png", out / "intensity.png"])


def _plot_guesses(corpus: Corpus, order: ClassOrder, learners: dict[str, IncrementalLearner], path: Path) -> None:
    """One test picture of each class and what three learners say it is; wrong answers in red."""
    dataset = SessionPictures(corpus.test, order, torch.tensor(order.order), corpus)
    step = len(dataset) // len(corpus.classes)
    positions = [each * step for each in range(len(corpus.classes))]
    x, y = dataset.__getitems__(positions)
    shown = corpus.test.take(torch.tensor(positions)).permute(0, 2, 3, 1).numpy() / 255
    rows, captions = [], []
    for name in ("csko", "all-taps"):
        said = learners[name].predict(x).tolist()
        rows.append(shown)
        captions.append([f"{'' if a == b else '!'}{name}\n{b} -> {a}" for a, b in zip(said, y.tolist(), strict=True)])
    plot_pictures(rows, captions, path)
