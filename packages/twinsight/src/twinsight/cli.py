"""The command line: verbs parse, call and print. `twinsight --help` lists them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import Parameter

from tenfold.cli import Paper, RunOptions, create_app, run, verb
from tenfold.options import Count, Seed
from twinsight.config import FederationConfig

PAPER = Paper(
    title="Robust Training of Federated Models with Extremely Label Deficiency",
    authors=("Zhang, Yonggang", "Yang, Zhiqin", "Tian, Xinmei", "Wang, Nannan", "Liu, Tongliang", "Han, Bo"),
    venue="ICLR",
    year=2024,
    url="https://arxiv.org/abs/2402.14430",
)

app = create_app("twinsight", "Train a classifier over many participants of whom most have no labels.", PAPER)

Config = Annotated[FederationConfig, Parameter(name="*")]


def table(rows: Sequence[tuple[str, ...]], heads: tuple[str, ...], title: str = "") -> None:
    """Print rows under heads; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(*heads[:1], title=title or None, box=None, pad_edge=False)
    for head in heads[1:]:
        shown.add_column(head, justify="right")
    for row in rows:
        shown.add_row(*row)
    Console(width=110).print(shown)


def result_row(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of results."""
    reached = "-" if result["rounds_to_target"] is None else str(result["rounds_to_target"])
    numbers = [f"{result[key]:.1f}" for key in ("best", "last", "mean_last_5")]
    return (name, *numbers, reached, str(result["clients_per_round"]), f"{result['megabytes_per_round']:.2f}")


def show_notes(results: Iterable[dict[str, Any]]) -> None:
    """Say once what belongs beside the numbers of a table."""
    for note in dict.fromkeys(note for each in results for note in each["notes"]):
        print(note)


HEADS = ("method", "best %", "last %", "last five %", "rounds to target", "clients a round", "MB a round")


def _check_result(out: Path | None, pictures: Path | None = None, model: Path | None = None) -> None:
    """Refuse a file for results that cannot be written or that is an input, before any work.

    Args:
        out: the file; None where none was asked for.
        pictures: a picture or a folder of them.
        model: a run folder or a model's folder.
    """
    from tenfold import UserError
    from tenfold.files import check_writable
    from tenfold.images import list_images

    if out is None:
        return
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file to write")
    check_writable(out)
    inputs = [] if pictures is None else list_images(pictures)
    if model is not None:
        # What else is in a run folder may be written: `--out run/scores.json`.
        inputs += [model / name for name in ("config.toml", "result.json", "metrics.jsonl")]
        inputs += [
            folder / name for folder in (model, model / "model") for name in ("config.json", "model.safetensors")
        ]
    if out.resolve() in {path.resolve() for path in inputs}:
        raise UserError(f"{out}: is an input and would be overwritten; choose another file")


@verb(
    app,
    "twinsight simulate --out run --preset tiny",
    "twinsight simulate --out lower --preset tiny --method lower-bound --rounds 2",
    "twinsight simulate --out resumed --preset tiny --alpha 0.5 --resume",
)
def simulate(
    options: RunOptions,
    config: Config = FederationConfig(),  # noqa: B008  # frozen
    *,
    backend: Literal["local", "ray"] = "local",
) -> None:
    """Run a federation on this machine into a run folder: result.json, metrics.jsonl, accuracy.png, partition.png, model/.

    Args:
        options: of the run.
        config: of the federation.
        backend: local: clients one after the other in this process. ray: Flower's simulation, several at a time.
    """
    from tenfold.runs import pick_device
    from twinsight.evaluation.figures import plot_curves
    from twinsight.pipeline.simulation import simulate as start

    pick_device(options.device)
    outcome = start(options.out, config, resume=options.resume, backend=backend, device=options.device)
    plot_curves(
        {config.method: outcome.result["accuracy"]}, options.out / "accuracy.png", f"{config.data}, seed {config.seed}"
    )
    draw_partition_of(config, options.out / "partition.png")
    table([result_row(config.method, outcome.result)], HEADS)
    show_notes([outcome.result])
    print(
        f"best round: top-1 {outcome.result['best_top_1']:.1f} %, the official code's running mean {outcome.result['best_running_mean']:.1f} %"
    )
    for left_out in outcome.result["rejected"][:10]:
        print(f"round {left_out['round']}: {left_out['who']} left out: {left_out['why']}")
    print(f"{config.rounds} rounds of {outcome.result['clients_per_round']} clients -> {options.out}")


def draw_partition_of(config: FederationConfig, path: Path) -> None:
    """The class counts of a configuration's clients as a picture."""
    from twinsight.data.datasets import load
    from twinsight.data.partition import partition_of
    from twinsight.evaluation.figures import plot_partition

    train, _ = load(config)
    split = partition_of(config)
    plot_partition(split.counts(train.labels.numpy(), len(train.classes)), split.labelled, train.classes, path)


@dataclass(frozen=True)
class PartitionOptions:
    """Where a partition goes.

    Attributes:
        plot: Picture to draw, a bar of class counts for each client.
        out: JSON to write: indices of each client, and which are labelled.
        preset: Where unset options come from.
    """

    plot: Path | None = None
    out: Path | None = None
    preset: str = "small"


@verb(
    app,
    "twinsight partition --plot partition.png",
    "twinsight partition --clients 20 --partition pathological --min-client-size 5 --min-labelled-per-class 0 --out split.json",
)
def partition(
    options: Annotated[PartitionOptions, Parameter(name="*")] = PartitionOptions(),  # frozen
    config: Config = FederationConfig(),  # noqa: B008  # frozen
) -> None:
    """Show who would hold what: pictures of each class at each client, and who is labelled.

    Args:
        options: where it goes.
        config: of the federation.
    """
    from tenfold.files import write_text
    from twinsight.data.datasets import load
    from twinsight.data.partition import partition_of

    for out in (options.plot, options.out):
        _check_result(out, config.root if config.data == "folder" else None)
    train, _ = load(config)
    split = partition_of(config)
    counts = split.counts(train.labels.numpy(), len(train.classes))
    if options.plot is not None:
        draw_partition_of(config, options.plot)
    if options.out is not None:
        record = {"labelled": list(split.labelled), "clients": [each.tolist() for each in split.indices]}
        write_text(options.out, json.dumps(record) + "\n")
    rows = [
        (
            f"{k}{' labelled' if k in split.labelled else ''}",
            str(counts[k].sum()),
            *(str(each) for each in counts[k][:20]),
        )
        for k in range(config.clients)
    ]
    table(rows, ("client", "all", *train.classes[:20]))
    print("".join(f"-> {each}\n" for each in (options.plot, options.out) if each is not None), end="")


@verb(
    app,
    "twinsight eval run --data digits",
    "twinsight eval run --data pictures --out scores.json",
)
def eval(  # noqa: A001  # the verb's name
    model: Path,
    *,
    data: str = "digits",
    root: Path | None = None,
    out: Path | None = None,
    revision: str | None = None,
) -> None:
    """Test a model: accuracy, and for each class.

    Args:
        model: A run folder, what save_pretrained wrote, or a name on the Hugging Face Hub.
        data: digits, cifar10, cifar100, svhn, fashionmnist, or a folder with one folder per class.
        root: Where torchvision's files are.
        out: JSON to write.
        revision: Branch, tag or commit of a model of the Hub.
    """
    from tenfold.files import write_text
    from twinsight.evaluation.protocols import NAMED_SETS, score, test_pictures
    from twinsight.training.loop import load_model

    _check_result(out, None if data in NAMED_SETS else Path(data), model)
    network = load_model(model, revision)
    scores = score(network, test_pictures(data, root, network))
    if out is not None:
        write_text(out, json.dumps(asdict(scores), indent=2) + "\n")
    rows = [(name, str(count), f"{value:.1f}") for name, (count, value) in scores.per_class.items()]
    table([*rows, ("all", str(scores.pictures), f"{scores.accuracy:.1f}")], ("class", "pictures", "accuracy %"))


@verb(app, "twinsight predict run photos --out named.csv", "twinsight predict run photos/first.png")
def predict(model: Path, pictures: Path, *, out: Path | None = None, revision: str | None = None) -> int:
    """Name pictures.

    Pictures of a folder that cannot be read are named on stderr and passed over; the exit code is then 3.

    Args:
        model: A run folder, what save_pretrained wrote, or a name on the Hugging Face Hub.
        pictures: A picture, or a folder.
        out: CSV to write; without it the names are printed.
        revision: Branch, tag or commit of a model of the Hub.
    """
    from twinsight.pipeline.inference import predict_files, write_predictions
    from twinsight.training.loop import load_model

    _check_result(out, pictures, model)
    found = predict_files(load_model(model, revision), pictures)
    if out is None:
        for each in found.results.values():
            print(f"{each.path}\t{each.label}\t{each.probability:.3f}")
    else:
        write_predictions(found.results.values(), out)
        print(f"named {len(found.results)} pictures -> {out}")
    found.show_skipped("twinsight")
    return found.exit_code


@verb(app, "twinsight methods")
def methods() -> None:
    """List the methods that --method takes."""
    from twinsight.config import METHODS

    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        print(f"{name:<{width}}  {method.summary}")


@verb(
    app,
    "twinsight compare twins-apart lower-bound --out arms --preset tiny --rounds 2",
)
def compare(arms: tuple[str, ...], /, *, options: RunOptions, config: Config = FederationConfig()) -> None:  # noqa: B008  # frozen
    """Run several methods on one partition and print one table.

    Args:
        arms: Names that `twinsight methods` lists; also twin-sight:official, twin-sight:mean, twin-sight:fixmatch, lower-bound:all.
        options: of the runs; --out holds one run folder for each.
        config: what all share.
    """
    from twinsight.benchmark import compare as run_arms
    from twinsight.evaluation.figures import plot_curves

    results = run_arms(config, arms, options.out, resume=options.resume, device=options.device)
    plot_curves({name: each["accuracy"] for name, each in results.items()}, options.out / "accuracy.png", config.data)
    table([result_row(name, each) for name, each in results.items()], HEADS)
    show_notes(results.values())
    print(f"-> {options.out}")


@verb(app, "twinsight demo", "twinsight demo --out demo --rounds 3")
def demo(*, out: Path = Path("twinsight-demo"), rounds: Count = 8, seed: Seed = 0) -> None:
    """Four methods on scikit-learn's digits over ten clients of whom four are labelled: a table and three pictures.

    Args:
        out: Folder for the pictures.
        rounds: Rounds of each federation; at this size the paper's claim does not show, and more rounds do not change that.
        seed: Of the partition and of all draws.
    """
    from twinsight.demo import ARMS, demonstrate

    results = demonstrate(out, rounds, seed)
    table([result_row(name, results[name]) for name in ARMS], HEADS, title=f"digits, {rounds} rounds, seed {seed}")
    show_notes(results.values())
    print(f"who holds what, the two views, accuracy over rounds -> {out}")


def main() -> NoReturn:
    """The `twinsight` command."""
    run(app)
