"""The command line: verbs parse, call and print. `fairfd --help` lists them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from cyclopts import Parameter

from fairfd.config import IntakeOptions, TrainConfig
from tenfold import UserError
from tenfold.cli import EXIT_LIMIT_BROKEN, EXIT_OK, EXIT_SOME_SKIPPED, Paper, RunOptions, create_app, run, verb
from tenfold.files import check_writable
from tenfold.options import Count, OpenShare, Seed, Size

if TYPE_CHECKING:
    from fairfd.evaluation.scores.score_table import ScoreTable

PAPER = Paper(
    title="Thinking Racial Bias in Fair Forgery Detection: Models, Datasets and Evaluations",
    authors=("Liu, Decheng", "Wang, Zongqi", "Peng, Chunlei", "Wang, Nannan", "Hu, Ruimin", "Gao, Xinbo"),
    venue="AAAI",
    year=2025,
    url="https://arxiv.org/abs/2407.14367",
)

app = create_app("fairfd", "Audit face-forgery detectors for bias between groups of people.", PAPER)

Out = Annotated[Path, Parameter(name=("--out", "-o"))]
Names = Annotated[tuple[str, ...], Parameter(negative=())]
Layout = Literal["fairfd", "rfw", "folders", "plain", "deepfakebench", "aiface"]
Empty = Literal["raise", "drop", "nan"]


def _target(out: Path, *inputs: Path | None) -> Path:
    """A file that can be written and is none of the inputs, before anything is computed for it."""
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file to write")
    if any(each is not None and each.exists() and out.resolve() == each.resolve() for each in inputs):
        raise UserError(f"{out}: is an input and would be overwritten; name another file")
    check_writable(out)
    return out


def _skipped(faults: Sequence[str]) -> int:
    """Name the files that were passed over; the exit code that says so."""
    for fault in faults:
        print(f"fairfd: skipped: {fault}", file=sys.stderr)
    return EXIT_SOME_SKIPPED if faults else EXIT_OK


# ------------------------------------------------------------------------------------------------------------------ data


@verb(
    app,
    "fairfd scan faces/ --layout folders -o manifest.csv",
    "fairfd scan photos/ --layout plain --demographics people.csv -o manifest.csv",
)
def scan(
    root: Path,
    *,
    layout: Layout = "folders",
    out: Out = Path("manifest.csv"),
    demographics: Path | None = None,
    group: str = "",
    group_column: str = "",
    images: Path | None = None,
) -> None:
    """List the face images of a folder, with person and group, in a manifest.

    Groups are never guessed from pixels: they come from the folder names or from a table.

    Args:
        root: The folder, or the JSON or CSV file that some layouts start from.
        layout: fairfd: approach/group/[person/]image. rfw: data/group/person/image. folders: group/person/image. plain: images and --demographics. deepfakebench: its JSON and --demographics. aiface: its CSV.
        out: The manifest to write, .csv or .jsonl.
        demographics: CSV with the columns image (or identity, or video), group, and where known identity.
        group: One group for every image of an unlabelled folder.
        group_column: The column that holds the group, such as race.
        images: Where paths inside a JSON or CSV start from.
    """
    from fairfd.data.layouts import scan

    _target(out, root, demographics)
    manifest = scan(
        root, layout, demographics=demographics, group=group or None, group_column=group_column or None, images=images
    )
    manifest.write(out)
    print(
        f"{len(manifest)} images, groups {', '.join(manifest.groups())}, approaches {', '.join(manifest.approaches())} -> {out}"
    )


@verb(app, "fairfd crop photos/ crops --size 128")
def crop(
    photos: Path,
    out: Path,
    *,
    size: Count = 256,
    smallest: Count = 48,
    faces: Literal["largest", "all"] = "largest",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Cut the faces out of photographs, with landmarks beside each.

    Args:
        photos: Folder of photographs.
        out: Folder for the crops, in the same subfolders.
        size: Side of the crops in pixels.
        smallest: Faces narrower than this, in pixels of the photograph, are passed over.
        faces: Only the largest face of a photograph, or all.
        overwrite: Write over crops that are there; never over a photograph.
    """
    from fairfd.data.faces.crops import crop_faces

    report = crop_faces(photos, out, size=size, smallest=smallest, faces=faces, overwrite=overwrite)
    print(f"{len(report.written)} faces -> {out}")
    for reason, paths in (("no face found in", report.without_face), ("only small faces in", report.too_small)):
        if paths:
            print(
                f"{reason} {len(paths)}: {', '.join(path.name for path in paths[:5])}{' ...' if len(paths) > 5 else ''}"
            )
    return _skipped(report.skipped)


@verb(
    app,
    "fairfd build faces/ forged --ratios .4,.3,.3 --size 64 --approach self_blend",
    "fairfd build photos/ cropped --demographics people.csv --crop --size 64 --approach self_blend --balance none",
)
def build(
    source: Path,
    out: Path,
    *,
    approach: Names = (),
    ratios: str = "",
    balance: Literal["identities", "images", "none"] = "identities",
    crop: bool = False,
    demographics: Path | None = None,
    size: Count = 256,
    image_format: Annotated[Literal["png", "jpg"], Parameter(name="--format")] = "png",
    quality: Count = 95,
    seed: Seed = 0,
    workers: Count = 2,
    allow_skips: bool = False,
    skip_bad: bool = False,
) -> int:
    """Forge every pristine face with each approach: a balanced benchmark whose splits share no person.

    Run it again after an interruption: what is finished is kept.

    Args:
        source: A manifest, a folder group/person/image, or a folder of pictures with --demographics.
        out: The folder for the benchmark; its manifest is OUT/manifest.csv.
        approach: NAME, NAME:key=value,... or LABEL=NAME:key=value,...; repeat for several; `fairfd approaches` lists them. By default the five that need nothing but the images.
        ratios: Shares of people for train, val and test, such as .6,.2,.2; the manifest's splits by default.
        balance: Give every group the same number of people, or of images.
        crop: Cut the faces out of photographs first.
        demographics: CSV with the columns image, group and, where known, identity.
        size: Side of the images in pixels.
        image_format: png, or jpg for reals and fakes alike.
        quality: Of jpg.
        seed: Of splits, partners and forgeries.
        workers: Processes; the result does not depend on them.
        allow_skips: Accept that an approach could not forge more than 2 % of a group's faces.
        skip_bad: Leave unreadable images out instead of stopping.
    """
    from fairfd.data.assembly.record import read_unprepared
    from fairfd.data.assembly.run import DEFAULT_APPROACHES
    from fairfd.data.assembly.run import build as build_benchmark
    from fairfd.data.layouts import scan
    from fairfd.data.manifest.manifest import Manifest

    if demographics:
        manifest = scan(source, "plain", demographics=demographics)
    else:
        manifest = scan(source) if source.is_dir() else Manifest.read(source)
    built = build_benchmark(
        manifest,
        out,
        approach or DEFAULT_APPROACHES,
        seed=seed,
        workers=workers,
        size=size,
        format=image_format,
        quality=quality,
        balance=balance,
        crop=crop,
        ratios=_ratios(ratios) if ratios else None,
        allow_skips=allow_skips,
        skip_bad=skip_bad,
    )
    print(
        f"{len(built)} images of {len(built.groups())} groups, {', '.join(built.approaches())} -> {out / 'manifest.csv'}"
    )
    return _skipped(read_unprepared(out))


def _ratios(text: str) -> dict[str, float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) not in (2, 3):
        raise UserError(f"--ratios {text}: give train,test or train,val,test, such as .6,.2,.2")
    names = ("train", "test") if len(shares) == 2 else ("train", "val", "test")
    return dict(zip(names, shares, strict=True))


@verb(app, "fairfd approaches")
def approaches() -> None:
    """List the forgery approaches that `build` knows."""
    from fairfd.data import forgers

    for name in forgers.forger_names():
        print(f"{name:<20} {forgers.summary_of(name)}")


@verb(app, "fairfd verify forged/manifest.csv")
def verify(manifest: Path, *, min_identities: Size = 20, allow_duplicates: bool = False) -> None:
    """Check what the fairness numbers rest on: splits, groups, partners, counts, files, codecs.

    Args:
        manifest: The manifest to check.
        min_identities: Fewer people than this in a group gives a warning.
        allow_duplicates: Accept an image that is listed twice.
    """
    from fairfd.data.manifest.manifest import Manifest

    data = Manifest.read(manifest)
    for line in data.verify(min_identities=min_identities, allow_duplicates=allow_duplicates):
        print(f"warning: {line}")
    print(f"{manifest}: {len(data)} images, sound")


# ------------------------------------------------------------------------------------------------------------- detectors


@verb(
    app,
    "fairfd train forged/manifest.csv --detector small-spsl --out runs/spsl --preset tiny",
    "fairfd train forged/manifest.csv --detector small-rgb --in-size 32 --out runs/rgb --preset tiny --epochs 1",
)
def train(
    manifest: Path,
    *,
    detector: str,
    options: RunOptions,
    pretrained: str | None = None,
    in_size: Count | None = None,
    revision: str | None = None,
    approach: Names = (),
    recipe: TrainConfig = TrainConfig(),  # noqa: B008  # frozen
) -> None:
    """Train a detector on the train split and keep the weights with the best AUC on the val split.

    Ctrl-C leaves a run that --resume continues. Several GPUs: accelerate launch -m fairfd train ...

    Args:
        manifest: A manifest with the splits train and val.
        detector: xception, core, spsl, f3net, ffd, recce, ucf, srm, capsule, meso4, mesoinception4, pgfdd, dag-fdd, daw-fdd, small-rgb, small-spsl, ..., timm:NAME, probe:NAME, hf:NAME. The small ones go with the presets tiny and small, the others with paper.
        pretrained: imagenet, a file of ImageNet weights, a trained detector's folder, deepfakebench:FILE, or mesonet:FILE.h5.
        in_size: Side of the network's input; the detector's own by default.
        revision: Branch, tag or commit of hf:NAME on the Hub; the commit that is used is printed.
        approach: Train on these forgeries only; repeat for several.
    """
    from fairfd.data.manifest.manifest import REAL, Manifest
    from fairfd.models.detectors import create_detector
    from fairfd.training.loop import train as train_detector
    from tenfold.runs import seed_everything

    data = Manifest.read(manifest)
    shown = (REAL, *approach) if approach else None
    training, validation = data.subset("train", shown), data.subset("val", shown)
    seed_everything(recipe.seed)
    model = create_detector(detector, pretrained, in_size, **_at(detector, revision))
    result = train_detector(model, training, validation, recipe, options.out, options.resume, options.device)
    kept = f"after epoch {result.best_epoch} of {len(result.history)}"
    print(f"validation AUC {result.best_auc:.4f} {kept} -> {options.out / 'model'}")


@verb(app, "fairfd score forged/manifest.csv --detector runs/spsl --split test -o test-scores.csv")
def score(
    manifest: Path,
    *,
    detector: str,
    out: Out = Path("scores.csv"),
    split: str | None = None,
    pretrained: str | None = None,
    revision: str | None = None,
    batch_size: Count = 32,
    device: str = "auto",
    gray: bool = False,
    skip_bad: bool = False,
) -> int:
    """Score every image of a manifest with a detector.

    Args:
        manifest: The images.
        detector: A run folder, a folder of save_pretrained, hf:NAME, or a detector by name with --pretrained.
        out: The score file to write, .csv or .jsonl.
        split: Only this split.
        pretrained: Weights for a detector given by name: deepfakebench:FILE, mesonet:FILE.h5.
        revision: Branch, tag or commit of hf:NAME on the Hub; the commit that is used is printed.
        batch_size: Images at a time.
        device: auto, cpu, cuda, ...
        gray: Test on luminance, as the paper's colour ablation does.
        skip_bad: Leave unreadable images out instead of stopping.
    """
    from fairfd.data.manifest.manifest import Manifest
    from fairfd.data.manifest.samples import few
    from fairfd.evaluation.scores.inference import score_readable
    from fairfd.models.detectors import create_detector, load_detector

    _target(out, manifest)
    data = Manifest.read(manifest)
    data = data.subset(split) if split else data
    if Path(detector).exists():
        model = load_detector(detector)
    elif pretrained or detector.startswith("hf:"):
        model = create_detector(detector, pretrained, None, **_at(detector, revision))
    else:
        raise UserError(
            f"--detector {detector}: no such folder; a network by name needs trained weights (--pretrained)"
        )
    table, faults = score_readable(model, data, batch_size, device, colour="gray" if gray else "rgb")
    if faults and not skip_bad:
        raise UserError(
            f"{len(faults)} of {len(data)} images cannot be read; mend them or pass --skip-bad: {few(faults)}"
        )
    table.write(out)
    print(f"{len(table)} scores of {table.detector} -> {out}")
    return _skipped(faults)


def _at(detector: str, revision: str | None) -> dict[str, str]:
    """The revision as an option of `create_detector`, for what comes from the Hub."""
    if revision is None:
        return {}
    if not detector.startswith("hf:"):
        raise UserError(f"--revision {revision}: is of a detector of the Hub, hf:NAME, not of {detector}")
    return {"revision": revision}


@verb(app, "fairfd prune forged/manifest.csv --detector runs/spsl --rate .01 --out pruned")
def prune(
    manifest: Path,
    *,
    detector: Path,
    out: Out,
    method: Literal["bpfa", "weig", "roba"] = "bpfa",
    rate: float = 0.01,
    statistic: Literal["mean_of_norm", "norm_of_mean"] = "mean_of_norm",
    calibration: str = "val",
    evaluation: str = "test",
    batch_size: Count = 32,
) -> None:
    """Zero the weights of each layer that weigh least against their channel's bias between groups (BPFA).

    Args:
        manifest: Images with splits; the genuine ones of the calibration split are used.
        detector: A trained detector.
        out: Folder for the pruned detector and its masks.
        method: bpfa, or the paper's baselines weig and roba.
        rate: Share of each layer's weights, 0 to 1; the paper tries .001 to .1.
        statistic: mean_of_norm (paper) or norm_of_mean (official code).
        calibration: The split that calibrates.
        evaluation: The split that the pruned detector will be judged on; it may share no person with the calibration.
        batch_size: Images at a time.
    """
    from fairfd.data.manifest.manifest import Manifest
    from fairfd.training.pruning import prune_detector

    zeros, layers = prune_detector(
        Manifest.read(manifest), detector, out, method, rate, statistic, calibration, evaluation, batch_size
    )
    print(f"{zeros} weights of {layers} layers set to zero -> {out}")


# --------------------------------------------------------------------------------------------------------------- numbers


@verb(
    app,
    "fairfd metrics scores.csv --n-boot 200 --n-perm 199 -o metrics.json",
    "fairfd metrics scores.csv --n-boot 0 --n-perm 0 --max aadpd=.9",
)
def metrics(
    scores: Path,
    *,
    out: Out = Path("metrics.json"),
    html: Path | None = None,
    convention: Literal["official", "paper", "both"] = "both",
    threshold: float = 0.5,
    n_boot: Size = 1000,
    n_perm: Size = 999,
    seed: Seed = 0,
    empty: Empty = "raise",
    limit: Annotated[tuple[str, ...], Parameter(name="--max", negative=())] = (),
    subjects_curve: bool = False,
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008  # frozen
) -> int:
    """Compute the twelve fairness metrics of a score file, with intervals, noise floor and p-values.

    The file needs the columns group, score and label or approach, by whatever names (--columns); identity makes the intervals honest. Leaves with 3 when a --max limit is broken.

    Args:
        scores: CSV, TSV or JSONL (or .gz of them), Parquet or Feather, one row an image; a detector column may hold several detectors.
        out: The JSON to write; fairfd report turns one or more into a page.
        html: Also write the page.
        convention: official reproduces the published tables, paper follows the equations as printed.
        threshold: Scores at or above it are called fake.
        n_boot: Bootstrap replicates over people; 0 for no intervals.
        n_perm: Shuffles of the groups over people; 0 for no noise floor.
        seed: Of both.
        empty: What to do with a cell without images: stop, leave it out, or make what it reaches undefined.
        limit: Such as aadpd=.05, paper.urdpd.high=.1; repeat for several.
        subjects_curve: Also show how the numbers change with the number of people.
    """
    from rich.console import Console

    from fairfd.evaluation.audit.limits import check_limits, parse_limits
    from fairfd.evaluation.audit.run import audit
    from fairfd.evaluation.audit.sample_size import SIZES
    from fairfd.evaluation.report.report import Report
    from fairfd.evaluation.report.tables import metrics_table
    from fairfd.method.fairness import OFFICIAL
    from fairfd.method.fairness import PAPER as PRINTED

    limits = parse_limits(limit)
    _target(out, scores, intake.people)
    if html:
        _target(html, scores, intake.people, out)
    conventions = {"official": (OFFICIAL,), "paper": (PRINTED,), "both": (OFFICIAL, PRINTED)}[convention]
    tables = _read(scores, intake)
    for name, table in tables.items():
        if len(groups := table.groups.present()) < 2:
            raise UserError(
                f"{scores}: {name} has the one group {', '.join(groups)}; a comparison needs two or more (see --group-by)"
            )
    audits = [
        audit(
            table,
            conventions=conventions,
            threshold=threshold,
            n_boot=n_boot,
            n_perm=n_perm,
            seed=seed,
            empty=empty,
            min_identities=intake.min_identities,
            subject_sizes=SIZES if subjects_curve else (),
        )
        for table in tables.values()
    ]
    violations = check_limits(audits, limits)
    report = Report(*audits, limits=limits)
    report.to_json(out)
    if html:
        report.to_html(html)
    console = Console(width=None if Console().is_terminal else 150)
    for each in audits:
        console.print(metrics_table(each))
        if each.gate.near_trivial:
            print(
                f"{each.detector} is near-trivial ({'; '.join(each.gate.reasons)}): fairness numbers are not meaningful"
            )
        for line in each.warnings:
            print(f"warning: {line}")
    for violation in violations:
        print(f"limit broken: {violation.reason}")
    print(f"{_counted(len(audits), 'detector')} -> {out}{f', {html}' if html else ''}")
    return EXIT_LIMIT_BROKEN if violations else 0


def _read(scores: Path, intake: IntakeOptions) -> "dict[str, ScoreTable]":
    """The tables of a score file."""
    from fairfd.evaluation.scores.files import ScoreFormat, read_score_tables

    how = ScoreFormat(
        group_by=tuple(part.strip() for part in intake.group_by.split(",")),
        min_group=intake.min_group,
        video=intake.video,
        logits=intake.logits,
        allow_duplicates=intake.allow_duplicates,
        min_identities=intake.min_identities,
        real=intake.real,
        columns=intake.renamed(),
        drop_missing=intake.drop_missing,
        people=intake.people,
        on=intake.on,
    )
    return read_score_tables(scores, how)


@verb(app, "fairfd report metrics.json -o report.html")
def report(metrics: Annotated[tuple[Path, ...], Parameter(negative=())], *, out: Out = Path("report.html")) -> None:
    """Make one self-contained HTML page of one or more results of `metrics`.

    Args:
        metrics: JSON files.
        out: The page to write.
    """
    from fairfd.evaluation.report.report import Report

    if not metrics:
        raise UserError("name at least one JSON file written by `fairfd metrics`")
    _target(out, *metrics)
    page = Report.read(*metrics)
    page.to_html(out)
    print(f"{_counted(len(page.audits), 'detector')} -> {out}")


@verb(app, "fairfd thresholds scores.csv")
def thresholds(
    scores: Path,
    *,
    fraction: OpenShare = 0.5,
    threshold: float = 0.5,
    seed: Seed = 0,
    intake: IntakeOptions = IntakeOptions(),  # noqa: B008  # frozen
) -> None:
    """Show what a threshold for each group would change, judged on people who did not set it.

    Args:
        scores: The score file, with identities.
        fraction: Share of each group's people that sets the thresholds.
        threshold: The common threshold to compare with.
        seed: Of the split.
    """
    from rich.console import Console

    from fairfd.evaluation.audit.thresholds import threshold_audit
    from fairfd.evaluation.report.tables import thresholds_table
    from fairfd.method.fairness import fairness

    for name, table in _read(scores, intake).items():
        found = threshold_audit(
            table.score, table.label, table.group, table.approach, table.identity, threshold, fraction, seed
        )
        before, after = fairness(found.before), fairness(found.after)
        print(name)
        Console(width=120).print(
            thresholds_table(found, {metric: (before[metric], after[metric]) for metric in before})
        )
        for line in found.warnings:
            print(f"warning: {line}")


@verb(app, "fairfd import-official saved_confidences -o official.csv")
def import_official(folder: Path, *, out: Out = Path("scores.csv")) -> None:
    """Turn the score files of the authors' code (MODEL/METHOD_RACE.npy) into a score file.

    They name no person, so that only intervals that take images as independent are possible.

    Args:
        folder: saved_confidences, or one model's folder in it.
        out: The score file to write.
    """
    from fairfd.evaluation.scores.official import read_official_scores
    from fairfd.evaluation.scores.score_table import write_score_tables

    _target(out)
    tables = read_official_scores(folder)
    write_score_tables(out, tables.values())
    print(f"{sum(map(len, tables.values()))} scores of {_counted(len(tables), 'detector')} -> {out}")
    for line in dict.fromkeys(line for table in tables.values() for line in table.warnings):
        print(f"warning: {line}")


@verb(app, "fairfd demo --out fairfd-demo")
def demo(*, out: Out = Path("fairfd-demo"), seed: Seed = 0) -> None:
    """Draw faces, forge them, train two small detectors, audit them and write the report: everything, in under a minute.

    Args:
        out: Folder for pictures, scores, metrics and the report.
        seed: Of faces, forgeries and training.
    """
    from rich.console import Console

    from fairfd.demo import demonstrate
    from fairfd.evaluation.report.tables import accuracy_table, metrics_table

    console = Console(width=None if Console().is_terminal else 120)
    for each in demonstrate(out, seed):
        console.print(metrics_table(each))
        console.print(accuracy_table(each))
    print(f"faces.png, scores.csv, metrics.json, report.html -> {out}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def main() -> NoReturn:
    """Entry point of `fairfd`."""
    run(app)
