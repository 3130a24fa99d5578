"""The command line: verbs parse, call and print; no mathematics here."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from multreid.config import AssociateConfig, EvalConfig, TrainConfig
from tenfold import UserError
from tenfold.cli import Paper, RunOptions, create_app, run, verb
from tenfold.options import Count

if TYPE_CHECKING:
    from multreid.method.label_transfer import Association, HardLabels

PAPER = Paper(
    title="Exploring Homogeneous and Heterogeneous Consistent Label Associations for Unsupervised Visible-Infrared Person ReID",
    authors=("He, Lingfeng", "Cheng, De", "Wang, Nannan", "Gao, Xinbo"),
    venue="International Journal of Computer Vision",
    year=2024,
    url="https://arxiv.org/abs/2402.00672",
)
app = create_app("multreid", "Match people between visible and infrared cameras without identity labels.", PAPER)


@verb(
    app,
    "multreid train --visible people/visible --infrared people/infrared --preset tiny --out run",
    "multreid train --visible people/visible --infrared people/infrared --preset tiny --epochs 1 --out short",
)
def train(*, options: RunOptions, config: TrainConfig = TrainConfig()) -> None:  # noqa: B008  # frozen
    """Train a two-stream network on crops of both modalities, without identities.

    Ctrl-C leaves a run that --resume continues. Several processes: torchrun --nproc-per-node 2 -m multreid train ...
    """
    from accelerate import PartialState

    from multreid.training.loop import train as train_network

    result = train_network(options.out, config, device=options.device, resume=options.resume)
    if not PartialState().is_main_process:
        return
    _print_table(("", ""), [(key, _shown(value)) for key, value in result.items() if not isinstance(value, dict)])
    for key, value in (result.get("test") or {}).items():
        print(f"test {key}: {_shown(value)}")
    print(f"trained {config.epochs} epochs -> {options.out}")


@verb(
    app,
    "multreid associate a.npy b.npy --out labels.npz",
    "multreid associate a.npy b.npy --method pgm --out labels.csv",
)
def associate(a: Path, b: Path, /, *, config: AssociateConfig = AssociateConfig(), out: Path) -> None:  # noqa: B008  # frozen
    """Label two unlabelled feature matrices alike: clusters within each, then labels across.

    Args:
        a: A .npy matrix, one row per instance of the first modality.
        b: The same of the second, from the same encoder.
        config: See the options.
        out: Where labels go: .npz (all arrays), .csv or .parquet (a row per instance).
    """
    from multreid.pipeline.files import check_output, read_features, write_labels

    check_output(out, (a, b))
    labels, clusters = _associated(read_features(a), read_features(b), config, (str(a), str(b)))
    write_labels(out, labels, clusters)
    rows = [
        (str(path), str(each.size), str(int(each.max()) + 1), str(int((each < 0).sum())), str(len(set(cross.tolist()))))
        for path, each, cross in zip((a, b), clusters, (labels.cross_a, labels.cross_b), strict=True)
    ]
    _print_table(("features", "instances", "clusters", "outliers", "cross labels used"), rows)
    if config.method == "mult":
        _print_convergence(labels)
    print(f"associated {clusters[0].size} and {clusters[1].size} instances -> {out}")


def _associated(features_a, features_b, config: AssociateConfig, names: tuple[str, str]):
    from multreid.benchmark import associate_by
    from multreid.method.clustering import cluster_features
    from multreid.method.validation import check_features, check_pair
    from multreid.pipeline.inference import associate as associate_features

    settings = {key: getattr(config, key) for key in ("eps", "min_samples", "k1", "k2")}
    pair = [check_features(each, name) for each, name in zip((features_a, features_b), names, strict=True)]
    check_pair(pair[0], pair[1], names)
    if config.method == "mult":
        found = associate_features(
            pair[0],
            pair[1],
            **settings,
            alpha=config.alpha,
            start=config.start,
            stopping="official" if config.tolerance is None else config.tolerance,
            names=names,
        )
        return found.association, (found.clusters_a, found.clusters_b)
    in_a, in_b = (cluster_features(each, **settings, name=name) for each, name in zip(pair, names, strict=True))
    return associate_by(config.method, pair[0], pair[1], in_a.labels, in_b.labels), (in_a.labels, in_b.labels)


def _print_convergence(labels: "Association | HardLabels") -> None:
    for name, key in (
        ("transport", "transport"),
        ("labels on a's clusters", "space_a"),
        ("labels on b's clusters", "space_b"),
    ):
        report = getattr(labels, key)
        end = "converged" if report.converged else "stopped at the cap"
        rest = f", row sums within {report.row_error:.2g}" if key == "transport" else ""
        if report.far_mass:
            rest += f", {report.far_mass:.2g} of the mass in entries summed up"
        print(f"{name}: {report.iterations} iterations, {end}, change {report.change:.3g}{rest}")


@verb(
    app,
    "multreid search people/infrared/0000/c3_000.png --gallery people/visible --model run --out sheet.png",
    "multreid search people/infrared/0001 --gallery people/visible --model run --top 5 --out sheets.png",
)
def search(
    query: Path,
    /,
    *,
    gallery: Path,
    model: Path,
    out: Path,
    top: Count = 10,
    query_modality: Literal["visible", "infrared"] = "infrared",
    gallery_modality: Literal["visible", "infrared"] = "visible",
    index: Literal["exact", "faiss"] = "exact",
    cache: Path | None = None,
    device: str = "auto",
) -> int:
    """Find the gallery pictures most like a query, and write a contact sheet.

    Pictures of a folder that cannot be read are named and passed over; it then leaves with 3.

    Args:
        query: A picture, or a folder of pictures (a row of the sheet each).
        gallery: A folder of pictures; their features are kept and computed once.
        model: A finished run, or a model folder.
        out: The contact sheet, a .png.
        top: Answers per query.
        query_modality: visible or infrared.
        gallery_modality: visible or infrared.
        index: exact, or faiss for large galleries (approximate; an optional extra).
        cache: Where gallery features are kept; inside the gallery by default.
        device: auto, cpu, cuda.
    """
    from multreid.evaluation.figures import contact_sheet, ranked_paths
    from multreid.models.features import load_model
    from multreid.pipeline.gallery import gallery_index, open_gallery, query_features, search_exact, search_index
    from tenfold.files import check_writable
    from tenfold.folders import FolderReport
    from tenfold.images import list_images
    from tenfold.runs import pick_device

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"--out {out}: name a picture, such as sheet.png")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a picture")
    check_writable(out)
    inputs = {path.resolve() for folder in (query, gallery) for path in list_images(folder)}
    if out.resolve() in inputs:
        raise UserError(f"--out {out}: is an input and would be overwritten; choose another name")
    place = pick_device(device)
    network = load_model(model).to(place)
    paths, features, skipped = query_features(network, query, query_modality, place)
    kept = open_gallery(gallery, gallery_modality, network, device=place, cache=cache)
    rows, distances = (
        search_exact(features, kept.features, top)
        if index == "exact"
        else search_index(gallery_index(kept), features, top)
    )
    found, far = ranked_paths(kept.paths, rows, distances)
    contact_sheet(paths, found, far, out)
    _print_table(
        ("rank", "distance", "picture"),
        [(str(rank), f"{d:.3f}", str(path)) for rank, (path, d) in enumerate(zip(found[0], far[0], strict=True), 1)],
    )
    print(f"searched {len(kept.paths)} pictures ({kept.reused} features were at hand) for {len(paths)} -> {out}")
    report = FolderReport(results=dict.fromkeys(paths), skipped=[*skipped, *kept.skipped])
    report.show_skipped("multreid")
    return report.exit_code


@verb(
    app,
    "multreid eval run --visible people/visible --infrared people/infrared",
    "multreid eval run --visible people/visible --infrared people/infrared --query visible --out scores.json",
)
def eval(  # noqa: A001  # the verb's name
    model: Path,
    /,
    *,
    test: EvalConfig = EvalConfig(),  # noqa: B008  # frozen
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Score a model: CMC, mAP and mINP by the data set's own protocol, averaged over its trials.

    Args:
        model: A finished run, or a model folder.
        test: See the options.
        out: Also write the scores as JSON.
        device: auto, cpu, cuda.
    """
    import json

    from multreid.evaluation.protocols import evaluate
    from multreid.models.features import load_model
    from tenfold.files import check_writable, write_text
    from tenfold.runs import pick_device

    if out is not None:
        if out.is_dir():
            raise UserError(f"--out {out}: is a folder; name a file for the scores")
        check_writable(out)
    scores = dataclasses.asdict(evaluate(load_model(model), test, device=pick_device(device)))
    if out is not None:
        write_text(out, json.dumps(scores, indent=2) + "\n")
    _print_table(("score", "value"), [(key, _shown(value)) for key, value in scores.items()])


@verb(app, "multreid demo")
def demo(*, out: Path = Path("multreid-demo"), device: str = "auto") -> None:
    """Associate, train and search on embedded data: no network, under a minute.

    Args:
        out: The folder to make.
        device: auto, cpu, cuda.
    """
    from multreid.demo import association_demo, training_demo
    from tenfold.config import load_preset
    from tenfold.files import check_writable
    from tenfold.runs import pick_device

    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--out {out}: already there; choose another folder")
    check_writable(out / "association.png")
    pick_device(device)
    config = load_preset("multreid", "tiny", TrainConfig, "train")
    rows = [*association_demo(out), *training_demo(out, config, device)]
    _print_table(("what", "value", ""), [(each.what, f"{each.value:.3f}", each.unit) for each in rows])
    print(f"pictures: association.png, labels.png, search.png, people/ -> {out}")


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False, show_header=any(header))
    for row in rows:
        table.add_row(*row)
    # A pipe has no width: lines must not be broken for it.
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def main() -> NoReturn:
    """Entry point of `multreid`."""
    run(app)
