"""`cskopt`: the command line. Verbs parse, call and print."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from rich.console import Console
from rich.table import Table

from cskopt.benchmark.tables import layer_table, percent, scheme_table, table_of
from cskopt.config import METHODS, TrainConfig, check_side
from tenfold import UserError
from tenfold.cli import Paper, Parameter, RunOptions, create_app, run, verb
from tenfold.files import check_writable
from tenfold.options import Count, Positive, Seed

if TYPE_CHECKING:
    from cskopt.benchmark.comparison import ProfileRow

PAPER = Paper(
    "Center-Sensitive Kernel Optimization for Efficient On-Device Incremental Learning",
    ("Zhang, Dingwen", "Li, Yan", "Cheng, De", "Wang, Nannan", "Han, Junwei"),
    "arXiv",
    2024,
    "https://arxiv.org/abs/2406.08830",
)

app = create_app(
    "cskopt", "Teach a CNN new classes in a fraction of the memory: train the centres of its kernels, projected.", PAPER
)


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    """Where pictures come from.

    Attributes:
        root: Folder of torchvision's files, for cifar100 and cifar10.
        data_seed: Seed of generated pictures.
    """

    root: Path = Path("data")
    data_seed: Seed = 0


@Parameter(name="*")
@dataclass(frozen=True)
class LearnerOptions:
    """Which state of a learner that is named on the Hub.

    Attributes:
        revision: Branch, tag or commit, for a checkpoint named OWNER/NAME on the Hugging Face Hub; the commit that is used is printed.
    """

    revision: str | None = None

    def folder(self, checkpoint: Path) -> Path:
        """The folder of a learner: a local one as it is, a Hub name fetched."""
        from tenfold.hub import model_folder

        return model_folder(checkpoint, self.revision, ("cskopt.json", "model.safetensors", "continual.safetensors"))


_CONFIG, _SOURCE, _LEARNER = TrainConfig(), DataOptions(), LearnerOptions()


def _check_result(out: Path | None, inputs: Iterable[Path]) -> None:
    """Refuse a file for results that cannot be written or that is one of the inputs, before any work.

    Args:
        out: the file; None where none was asked for.
        inputs: files, and folders none of whose files may be written.
    """
    if out is None:
        return
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file to write")
    check_writable(out)
    place = out.resolve()
    if out.exists() and any(
        place == each.resolve() or (each.is_dir() and place.is_relative_to(each.resolve())) for each in inputs
    ):
        raise UserError(f"{out}: is an input and would be overwritten; choose another place")


def _check_folder(out: Path | None) -> None:
    """Refuse a folder for results that cannot be written, before any work."""
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; choose a folder for the results")
    if out is not None:
        check_writable(out / "result")


def _show(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@verb(
    app,
    "cskopt train shapes --out run --preset tiny",
    "cskopt train digits --out digits-run --preset tiny --base-classes 4 --increment 3 --method head-prototypes",
)
def train(data: str, *, options: RunOptions, config: TrainConfig = _CONFIG, source: DataOptions = _SOURCE) -> None:
    """Learn a sequence of classes, session after session, and measure after each.

    The first classes are learnt in the ordinary way (or come with --weights); after that no picture of an old class is seen again.
    Runs on several processes with `accelerate launch -m cskopt train ...`.

    Args:
        data: shapes (generated), digits, cifar100, cifar10, a folder with train/ and test/ of class folders, a folder of
            class folders, or a zip of train/CLASS/ and test/CLASS/.
    """
    from cskopt.data.datasets import load_corpus
    from cskopt.evaluation.figures import plot_matrix, plot_sessions
    from cskopt.training.run import train_run
    from tenfold.runs import pick_device

    corpus = load_corpus(data, config.image_size, source.data_seed, source.root)
    folder, scores, matrix = train_run(corpus, config, options.out, pick_device(options.device), options.resume)
    if folder is None:
        return
    plot_sessions({config.method: scores.seen}, folder.path / "sessions.png", f"{config.method} on {corpus.name}")
    plot_matrix(matrix, folder.path / "matrix.png", f"{config.method} on {corpus.name}")
    table = table_of("session", "classes seen", "accuracy on all of them %")
    for index, seen in enumerate(scores.seen):
        classes = (
            config.base_classes
            if index == 0
            else min(len(corpus.classes), config.base_classes + index * (config.increment or len(corpus.classes)))
        )
        table.add_row(str(index), str(classes), percent(seen))
    _show(table)
    print(
        f"{config.method}: average {percent(scores.average)} %, last {percent(scores.last)} %, "
        f"forgetting {percent(scores.forgetting)}, new classes {percent(scores.new)} % -> {folder.path}"
    )


@verb(
    app,
    "cskopt profile --model compact --image-size 32 --batch 4",
    "cskopt profile --model resnet18 --schemes full csko --out profile",
)
def profile(
    *,
    model: str = "resnet18",
    image_size: Count = 96,
    batch: Count = 8,
    classes: Count = 100,
    schemes: Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)] = (
        "full",
        "head",
        "sparse-update",
        "all-taps",
        "csko",
    ),
    layers: str | None = None,
    repeats: Count = 5,
    device: str = "auto",
    out: Path | None = None,
) -> None:
    """Measure what a training step keeps, allocates and takes, layer by layer and in all.

    The layer table is of the last scheme. Bytes kept are measured by intercepting what autograd stores.

    Args:
        model: compact, resnet18_cifar, any torchvision classification network, or timm:NAME.
        image_size: Side of the pictures.
        batch: Pictures in a step.
        classes: Rows of the head.
        schemes: What to compare: full, full-folded, head, bias, sparse-update, all-taps, centre, csko, csko-25, csko-filtered, csko-all-layers.
        layers: Train these layers instead of the last block (see `cskopt train --help`).
        repeats: Timed steps; the median counts.
        device: auto, cpu, cuda, cuda:1, mps.
        out: A folder for profile.json and profile.png.
    """
    check_side("--image-size", image_size)
    from cskopt.benchmark.comparison import compare_schemes
    from tenfold.runs import pick_device

    _check_folder(out)
    rows = compare_schemes(model, schemes, image_size, batch, classes, layers, pick_device(device), repeats)
    _show(layer_table(rows[-1]))
    print()
    _show(scheme_table(rows))
    if out is not None:
        _write_profile(rows, out, f"{model}, {batch} x {image_size} x {image_size}")
        print(f"-> {out}")


def _write_profile(rows: "list[ProfileRow]", out: Path, title: str) -> None:
    import json

    from cskopt.evaluation.figures import plot_profile
    from tenfold.files import write_text

    write_text(
        out / "profile.json", json.dumps({row.scheme: json.loads(row.report.to_json()) for row in rows}, indent=2)
    )
    kept = {row.scheme: {name: value / 2**20 for name, value in row.report.saved_by_layer.items()} for row in rows}
    totals = {
        row.scheme: {
            "activations kept": row.report.saved / 2**20,
            "gradients": row.report.grads / 2**20,
            "Adam": row.report.optim_state / 2**20,
        }
        for row in rows
    }
    plot_profile(kept, totals, out / "profile.png", title)


@verb(app, "cskopt intensity digits --out intensity --preset tiny --base-classes 5")
def intensity(
    data: str,
    *,
    out: Path,
    checkpoint: Path | None = None,
    preset: str = "small",  # noqa: ARG001  # the command line looks for it before parsing
    config: TrainConfig = _CONFIG,
    source: DataOptions = _SOURCE,
    learner: LearnerOptions = _LEARNER,
    device: str = "auto",
) -> None:
    """Study the knowledge intensity of kernel elements (paper §3.1): which element does the loss of new classes pull at?

    Trains the base classes, or takes --checkpoint, and measures on the classes after them; raw, and divided by how often each
    element falls inside the picture. Writes intensity.json and intensity.png.

    Args:
        data: See `cskopt train --help`.
        out: A folder for the results.
        checkpoint: A learner that `train` or the Python API saved, or its name on the Hub, instead of training the base classes.
        preset: Where unset options come from: tiny, small, paper.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    from cskopt.data.datasets import load_corpus
    from cskopt.demo import intensity_study
    from cskopt.evaluation.figures import plot_intensity
    from tenfold.files import write_text
    from tenfold.runs import pick_device

    _check_folder(out)
    place = pick_device(device)
    folder = None if checkpoint is None else learner.folder(checkpoint)
    corpus = load_corpus(data, config.image_size, source.data_seed, source.root)
    study = intensity_study(corpus, config, place, folder)
    write_text(out / "intensity.json", study.to_json())
    plot_intensity(
        {name: (each.raw.numpy(), each.per_use.numpy()) for name, each in study.maps.items()}, out / "intensity.png"
    )
    table = table_of("layer", "edge / centre", "corner / centre", "edge, per use", "corner, per use")
    for name, values in study.relative().items():
        table.add_row(name, *(f"{each:.2f}" for each in values))
    _show(table)
    print(f"{len(study.maps)} layers, {study.classes} new classes -> {out}")


@verb(app, "cskopt eval run/checkpoints/session-002 shapes")
def eval_(
    checkpoint: Path,
    data: str,
    *,
    batch_size: Count = 256,
    json: Path | None = None,
    device: str = "auto",
    source: DataOptions = _SOURCE,
    learner: LearnerOptions = _LEARNER,
) -> None:
    """Measure a saved learner on the test pictures of all classes it has learnt; classes are matched by name.

    Args:
        checkpoint: A folder such as run/checkpoints/session-002, or a name on the Hugging Face Hub.
        data: See `cskopt train --help`.
        batch_size: Pictures at a time.
        json: Also write the numbers to this file.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    import json as json_module

    from cskopt.data.datasets import load_corpus
    from cskopt.pipeline import evaluate_learner, open_learner
    from tenfold.files import write_text
    from tenfold.runs import pick_device

    place, folder = pick_device(device), learner.folder(checkpoint)
    _check_result(json, [folder])
    opened, form = open_learner(folder, place)
    found = evaluate_learner(opened, load_corpus(data, form.size, source.data_seed, source.root), batch_size)
    table = table_of("session", "classes", "accuracy %")
    for index, (names, accuracy) in enumerate(zip(found.classes, found.accuracies, strict=True)):
        shown = ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
        table.add_row(str(index), shown, percent(accuracy))
    _show(table)
    if json is not None:
        write_text(json, json_module.dumps({"accuracies": found.accuracies, "all": found.overall}, indent=2) + "\n")
    print(f"all classes seen: {percent(found.overall)} %")


@verb(app, "cskopt learn run/checkpoints/session-002 new-classes --out grown --epochs 2")
def learn(
    checkpoint: Path,
    pictures: Path,
    *,
    out: Path,
    epochs: Count = 20,
    lr: Positive = 3e-4,
    head_lr: Positive = 1e-2,
    batch_size: Count = 32,
    seed: Seed = 0,
    device: str = "auto",
    learner: LearnerOptions = _LEARNER,
) -> None:
    """Teach a saved learner the classes of a folder as one more session, without the pictures of the old ones.

    Args:
        checkpoint: A folder such as run/checkpoints/session-002, or a name on the Hugging Face Hub.
        pictures: A folder with one folder per new class.
        out: A folder for the learner that comes out of it; checkpoint stays as it is.
        epochs: Passes over the new pictures.
        lr: Learning rate of kernels.
        head_lr: Learning rate of the last layer.
        batch_size: Pictures in a step.
        seed: Of the order of pictures and the new rows of the last layer.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    from cskopt.pipeline import learn_folder, open_learner
    from cskopt.training.loop import SessionRecipe
    from tenfold.files import atomic_folder
    from tenfold.runs import pick_device

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is there already; choose another")
    check_writable(out)
    place = pick_device(device)
    opened, _ = open_learner(learner.folder(checkpoint), place)
    before = opened.classes_seen
    said = learn_folder(opened, pictures, SessionRecipe(epochs, lr, head_lr, cache_prefix=True), batch_size, seed)
    with atomic_folder(out) as temporary:
        opened.save(temporary)
    print(f"learnt {opened.classes_seen - before} classes after {before}, loss {said['loss']:.3f} -> {out}")


@verb(app, "cskopt predict run/checkpoints/session-002 new-classes --out named.csv")
def predict(
    checkpoint: Path,
    pictures: Path,
    *,
    out: Path | None = None,
    device: str = "auto",
    learner: LearnerOptions = _LEARNER,
) -> int:
    """Name pictures with a saved learner.

    Pictures of a folder that cannot be read are named on stderr and passed over; the exit code is then 3.

    Args:
        checkpoint: A folder such as run/checkpoints/session-002, or a name on the Hugging Face Hub.
        pictures: A picture, or a folder of pictures.
        out: A CSV file of path, class and probability; without it they are printed.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    import csv
    import io

    from cskopt.pipeline import name_pictures, open_learner
    from tenfold.files import write_text
    from tenfold.images import list_images
    from tenfold.runs import pick_device

    place, folder = pick_device(device), learner.folder(checkpoint)
    _check_result(out, [folder, *list_images(pictures)])
    opened, _ = open_learner(folder, place)
    found = name_pictures(opened, pictures)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "class", "probability"))
    writer.writerows((each.path, each.name, f"{each.probability:.4f}") for each in found.results.values())
    if out is None:
        print(text.getvalue(), end="")
    else:
        write_text(out, text.getvalue())
        print(f"named {len(found.results)} pictures -> {out}")
    found.show_skipped("cskopt")
    return found.exit_code


@verb(
    app,
    "cskopt export run/checkpoints/session-002 plain.safetensors",
    "cskopt export run/checkpoints/session-002 folded.safetensors --layout folded",
)
def export(
    checkpoint: Path,
    out: Path,
    *,
    layout: Literal["stock", "folded"] = "stock",
    learner: LearnerOptions = _LEARNER,
) -> None:
    """Write a learner's weights as an ordinary model's, centres merged: nothing of this package is needed to use them.

    Args:
        checkpoint: A folder such as run/checkpoints/session-002, or a name on the Hugging Face Hub.
        out: A safetensors file.
        layout: stock has the keys of the architecture as torchvision or timm builds it; folded has no batch normalisation.
    """
    from cskopt.models.checkpoints import apart
    from cskopt.training.learner import IncrementalLearner
    from tenfold.checkpoints import write_tensors

    if out.suffix != ".safetensors":
        raise UserError(f"{out}: name a .safetensors file")
    folder = learner.folder(checkpoint)
    _check_result(out, [folder])
    opened = IncrementalLearner.load(folder)
    weights = opened.stock_weights() if layout == "stock" else dict(opened.plain_model().state_dict())
    write_tensors(out, apart(weights))
    print(f"{opened.architecture or 'model'} with {opened.classes_seen} classes, {len(weights)} tensors -> {out}")


@verb(app, "cskopt methods")
def methods() -> None:
    """List the paper's method, its ablations and the baselines, for `cskopt train --method`."""
    table = table_of("method", "what it does")
    table.columns[1].justify = "left"
    for name, method in METHODS.items():
        table.add_row(name, method.summary)
    _show(table)


@verb(app, "cskopt demo --out demo")
def demo(*, out: Path = Path("cskopt-demo"), seed: Seed = 0) -> None:
    """See it work in under a minute, without network or data: eight generated classes, then two times two more.

    Prints accuracy, forgetting and measured memory of the paper's method, of last layer + prototypes (which ties with it), and of
    ordinary fine-tuning of the last block; writes pictures.

    Args:
        out: A folder for the pictures.
        seed: Of data and training.
    """
    from cskopt.demo import run_demo

    _check_folder(out)
    found = run_demo(out, seed)
    table = table_of("method", "average %", "last %", "forgetting", "new classes %", "kept KiB / step", "trained")
    for row in found.rows:
        table.add_row(
            row.method,
            percent(row.scores.average),
            percent(row.scores.last),
            percent(row.scores.forgetting),
            percent(row.scores.new),
            f"{row.kept / 1024:.0f}",
            f"{row.trained:,}",
        )
    _show(table)
    print(f"pictures: {', '.join(path.name for path in found.pictures)} -> {out}")


def main() -> NoReturn:
    """Run the command line."""
    run(app)
