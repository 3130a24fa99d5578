"""The command line: verbs parse, call and print. `pfrforgery --help` lists them."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from pfrforgery.config import FederationConfig
from tenfold import UserError
from tenfold.cli import Paper, RunOptions, create_app, run, verb
from tenfold.options import Count, OpenShare, Positive, Seed, Size

PAPER = Paper(
    title="Federated Face Forgery Detection Learning with Personalized Representation",
    authors=("Liu, Decheng", "Dang, Zhan", "Peng, Chunlei", "Wang, Nannan", "Hu, Ruimin", "Gao, Xinbo"),
    venue="arXiv 2406.11145",
    year=2024,
    url="https://arxiv.org/abs/2406.11145",
)

app = create_app(
    "pfrforgery", "Train face-forgery detectors across sites that keep their images, one for each site.", PAPER
)

Out = Annotated[Path, Parameter(name=("--out", "-o"))]
Roots = Annotated[list[str], Parameter(negative=())]


@verb(
    app,
    "pfrforgery simulate --out runs/fedpr --preset tiny",
    "pfrforgery simulate --out runs/mine --preset tiny --data clients.json --algorithm fedavg",
)
def simulate(
    *,
    options: RunOptions,
    runtime: Literal["in-process", "ray"] = "in-process",
    recipe: FederationConfig = FederationConfig(),  # noqa: B008  # frozen
) -> None:
    """Run a federation on this machine; Ctrl-C leaves a run that --resume continues.

    Across machines the same app runs under Flower: `flwr run`, see the README.

    Args:
        runtime: in-process needs nothing and gives the same bits every time; ray is Flower's simulation, one process per core.
    """
    from pfrforgery.evaluation.figures import plot_curves
    from pfrforgery.pipeline.simulation import simulate as run_simulation
    from tenfold.runs import RunFolder

    folder = options.out
    run_simulation(recipe, folder, runtime=runtime, resume=options.resume, device=options.device)
    log = [line for line in RunFolder(folder).lines() if "step" in line]
    plot_curves(log, folder / "curves.png", f"{recipe.algorithm}, {len(log)} rounds")
    _print_run(folder)


def _print_run(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from tenfold.runs import RunFolder

    result = RunFolder(folder).result()
    table = Table(box=None, pad_edge=False)
    for column in ("client", "ACC", "AUC", "EER"):
        table.add_column(column, justify="left" if column == "client" else "right")
    try:
        for row in _measured_rows(result):
            table.add_row(*row)
        lines = _closing_lines(result)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{folder / 'result.json'}: is damaged; it is not what a run writes") from None
    Console(width=100).print(table)
    print("\n".join([*lines, f"{result['algorithm']}, {result['rounds']} rounds -> {folder}"]))


def _measured_rows(result: dict[str, Any]) -> list[list[str]]:
    """Name, ACC, AUC and EER of each client, and over clients."""
    metrics = ("acc", "auc", "eer")
    of_clients = [
        [client, *(_three(values[metric]) for metric in metrics)] for client, values in result["clients"].items()
    ]
    over = result["over clients"]
    return of_clients + [[name, *(_three(over[metric][name]) for metric in metrics)] for name in ("mean", "worst")]


def _closing_lines(result: dict[str, Any]) -> list[str]:
    """The traffic, and the first who were left out."""
    traffic = result["bytes per round"]
    return [
        f"{traffic['down'] / 2**20:.2f} MiB down and {traffic['up'] / 2**20:.2f} MiB up per round",
        *(f"round {each['round']}: {each['who']} left out: {each['why']}" for each in result["rejected"][:10]),
    ]


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@verb(
    app,
    "pfrforgery eval runs/fedpr",
    "pfrforgery eval runs/fedpr --protocol cross -o cross.json",
)
def eval(  # noqa: A001  # the verb's name
    run_folder: Path,
    *,
    protocol: Literal["personalised", "cross", "unseen", "robust"] = "personalised",
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    device: str = "auto",
) -> None:
    """Test the detectors of a run: AUC, accuracy and EER of each client.

    Args:
        run_folder: What `simulate` made.
        protocol: personalised: each on its own test images. cross: each on everybody's. unseen: the shared branch alone, as a new site would use it. robust: after JPEG, blur and noise.
        out: JSON file to write.
        device: auto, cpu, cuda, ...
    """
    import dataclasses

    from rich.console import Console
    from rich.table import Table

    from pfrforgery.pipeline.inference import check_spares_run, evaluate_run, open_run, over_measured
    from pfrforgery.training.server_app import finite
    from tenfold.files import check_writable, write_text

    if out is not None:
        check_writable(out)
        check_spares_run(run_folder, out)
    opened = open_run(run_folder)
    measured = evaluate_run(opened, protocol, device)
    if out is not None:
        rows = [
            {
                key: finite({key: value})[key] if isinstance(value, float) else value
                for key, value in dataclasses.asdict(each).items()
            }
            for each in measured
        ]
        write_text(out, json.dumps({"protocol": protocol, "round": opened.round, "measured": rows}, indent=1) + "\n")
    table = Table(box=None, pad_edge=False)
    for column in ("client", "tested on", "by", "images", "ACC", "AUC", "EER", "video AUC"):
        table.add_column(column, justify="right" if column.isupper() or column in ("images", "video AUC") else "left")
    for each in measured:
        values = (_three(value if value == value else None) for value in (each.acc, each.auc, each.eer, each.video_auc))
        table.add_row(str(each.client), each.tested_on, each.predict, str(each.images), *values)
    means = [
        over_measured(measured, "acc").mean,
        over_measured(measured, "auc").mean,
        over_measured(measured, "eer").mean,
    ]
    table.add_row("mean", "", "", "", *(_three(value if value == value else None) for value in means))
    Console(width=120).print(table)
    print(f"{len(measured)} tests of {run_folder} after round {opened.round}" + (f" -> {out}" if out else ""))


@verb(
    app,
    "pfrforgery predict runs/fedpr photos/ --client 0",
    "pfrforgery predict runs/fedpr photos/ --client 1 -o predictions.jsonl",
)
def predict(
    run_folder: Path,
    pictures: Path,
    *,
    client: Size,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    device: str = "auto",
) -> int:
    """Say of face crops how likely they are fake, one JSON line each.

    Pictures of a folder that cannot be read are named on stderr and passed over; the exit code is then 3.

    Args:
        run_folder: What `simulate` made.
        pictures: A folder of face crops, or one.
        client: Whose detector.
        out: File to write; the terminal by default.
        device: auto, cpu, cuda, ...
    """
    import dataclasses

    from pfrforgery.pipeline.inference import check_spares_run, client_detector, open_run, predict_pictures
    from tenfold.files import check_writable, write_text
    from tenfold.images import list_images

    if out is not None:
        check_writable(out)
        check_spares_run(run_folder, out)
        if out.resolve() in {path.resolve() for path in list_images(pictures)}:
            raise UserError(f"{out}: is an input; choose another --out")
    opened = open_run(run_folder)
    model, decides = client_detector(opened, client, device)
    found = predict_pictures(model, decides, pictures, opened.config.image_size)
    lines = "".join(
        json.dumps(
            {
                key: round(value, 6) if isinstance(value, float) else value
                for key, value in dataclasses.asdict(each).items()
            }
        )
        + "\n"
        for each in found.results.values()
    )
    if out is None:
        print(lines, end="")
    else:
        write_text(out, lines)
        fakes = sum(each.p_fake >= 0.5 for each in found.results.values())
        print(f"{len(found.results)} pictures, {fakes} called fake -> {out}")
    found.show_skipped("pfrforgery")
    return found.exit_code


@verb(app, "pfrforgery export runs/fedpr --client 0 --out detector0")
def export(run_folder: Path, *, client: Size, out: Out) -> None:
    """Write a client's detector, shared and personal part together, for `TwoBranchDetector.from_pretrained`.

    Args:
        run_folder: What `simulate` made.
        client: Whose detector.
        out: Folder to make.
    """
    from pfrforgery.pipeline.inference import export as write_detector
    from pfrforgery.pipeline.inference import open_run

    write_detector(open_run(run_folder), client, out)
    print(f"detector of client {client} -> {out}")


@verb(
    app,
    "pfrforgery partition faces -o clients.json",
    "pfrforgery partition faces --by dirichlet --clients 2 --concentration 10 -o skewed.json",
)
def partition(
    roots: Roots,
    *,
    out: Out = Path("clients.json"),
    by: Literal["source", "iid", "dirichlet", "sites"] = "source",
    clients: Count = 5,
    concentration: Positive = 0.5,
    train_images: Size = 0,
    test_images: Size = 0,
    train_share: OpenShare = 0.7,
    seed: Seed = 0,
    allow_single_class: bool = False,
) -> None:
    """List face crops and divide them among clients: whole videos, no image twice.

    Several sets make a hybrid domain: `pfrforgery partition ffpp:FF wilddeepfake:WDF --train-images 4000`.

    Args:
        roots: Folders as LAYOUT:FOLDER with folders (default: CLIENT/{real,fake}/..., with or without SPLIT/), ffpp, celebdf, dfdc, wilddeepfake or deeperforensics; or one manifest.csv.
        out: The partition to write; the manifest goes beside it.
        by: source: one client per data set or forgery. iid: equal random shares. dirichlet: skewed shares of every source. sites: several clients of every source.
        clients: Number of clients, or of sites per source.
        concentration: Of dirichlet; small is more skewed.
        train_images: At most so many training images per client, half of them real; 0 keeps all.
        test_images: The same for testing.
        train_share: Share of videos that train where a set does not say.
        seed: Of the draws.
        allow_single_class: Accept clients without real or without fake images.
    """
    from pfrforgery.data.layouts import gather
    from pfrforgery.data.manifest import read_manifest, write_manifest
    from pfrforgery.data.partition import Partition, Shares, check_replaceable, divide

    shares = Shares(by, clients, concentration, train_images, test_images, seed, allow_single_class)
    has_manifest = len(roots) == 1 and roots[0].endswith(".csv")
    manifest = Path(roots[0]) if has_manifest else out.with_suffix(".csv")
    check_replaceable(out, manifest, makes_manifest=not has_manifest)
    rows = read_manifest(manifest) if has_manifest else gather(roots, out.parent, train_share)
    found = Partition(divide(rows, shares), manifest, seed)
    if not has_manifest:
        write_manifest(manifest, rows)
    found.write(out)
    for number, each in enumerate(found.clients):
        fakes = sum(rows[index].label == "fake" for index in each.train)
        print(f"client {number} {each.name}: {len(each.train)} train ({fakes} fake), {len(each.test)} test")
    print(f"{len(rows)} images, {len(found.clients)} clients -> {out}")


@verb(app, "pfrforgery synth faces --clients 2 --images 40")
def synth(
    out: Path,
    *,
    data: Literal["drawn:tints", "drawn:families", "photos:families"] = "drawn:families",
    clients: Count = 5,
    images: Count = 200,
    size: Count = 32,
    seed: Seed = 0,
) -> None:
    """Write the embedded forged faces as folders, one per client.

    Args:
        out: Folder to fill.
        data: Drawn faces with a tint of each client's own, drawn faces with a kind of forgery of its own, or pieces of photographs with one.
        clients: Folders to write.
        images: Of each client, half of them forged.
        size: Side in pixels.
        seed: Of the drawing.
    """
    from pfrforgery.data.writers import write_faces

    print(f"{write_faces(out, data, clients, images, size, seed)} pictures of {clients} clients -> {out}")


@verb(app, "pfrforgery demo --out pfrforgery-demo")
def demo(*, out: Out = Path("pfrforgery-demo"), seed: Seed = 0, rounds: Count = 12) -> None:
    """Four clients with clues of their own: alone, FedAvg and FedPR compared on drawn faces.

    Args:
        out: Folder for faces.png and curves.png.
        seed: Of faces and training.
        rounds: Of each algorithm.
    """
    from pfrforgery.demo import demonstrate, mean_of_last

    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder")
    runs = demonstrate(out, seed, rounds)
    print(f"{'algorithm':<10} {'ACC':>6} {'AUC':>6} {'KiB up per round':>17}")
    for name, found in runs.items():
        values = (mean_of_last(found, metric) for metric in ("acc", "auc"))
        print(f"{name:<10} {next(values):6.3f} {next(values):6.3f} {found.rounds[-1].bytes_up / 1024:17.0f}")
    print(f"faces.png (one row per client, genuine left, forged right), curves.png -> {out}")


def main() -> None:
    """Entry point of `pfrforgery`."""
    run(app)


if __name__ == "__main__":
    main()
