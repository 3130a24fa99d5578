"""The command line: verbs parse, call and print. `asmattack --help` lists them."""

from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from asmattack.recipe import GeneratorConfig, HardenConfig, TrainConfig, check_levels
from tenfold import UserError
from tenfold.cli import EXIT_LIMIT_BROKEN, Paper, RunOptions, create_app, run, verb

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

Names = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)]
Policy = Literal["full", "fixed", "budget", "topk", "threshold", "calibrated", "random", "worst", "all_inner"]
Policies = Annotated[tuple[Policy, ...], Parameter(negative=(), consume_multiple=True)]
Levels = Annotated[tuple[float, ...], Parameter(negative=(), consume_multiple=True)]
Activation = Literal["saliency", "gradcam", "cam", "occlusion"]


@Parameter(name="*")
class FaceOptions:
    """Which faces, and how they are parsed.

    Args:
        data: Folder with real/ and fake/ crops, or a CSV manifest; drawn faces when absent.
        images: Size of the drawn set, half of it forged.
        size: Side to which square crops are resized.
        parser: geometric, segformer, segformer:ID_OR_FOLDER, masks:FOLDER or masks:FOLDER@bisenet.
        activation: The map that scores regions.
        generator: A run of train-generator, in place of parser and activation map.
        seed: Of the drawn set, random starts and random regions.
    """

    def __init__(
        self,
        data: Path | None = None,
        images: int = 80,
        size: int | None = None,
        parser: str = "geometric",
        activation: Activation = "saliency",
        generator: Path | None = None,
        seed: int = 1000,
    ) -> None:
        self.data, self.images, self.size, self.parser = data, images, size, parser
        self.activation, self.generator, self.seed = activation, generator, seed

    def faces(self) -> Any:
        """The set."""
        from asmattack.drawn import drawn_set
        from asmattack.sets import read_faces

        if self.data is not None:
            return read_faces(self.data, size=self.size)
        if self.images < 2:
            raise UserError("--images must be at least 2")
        return drawn_set(self.images, self.size or 48, self.seed)

    def maker(self) -> Any:
        """Parser or generator, and the activation map."""
        from asmattack.pipeline import MaskConfig, MaskMaker
        from asmattack.storage import load_generator

        generator = None if self.generator is None else load_generator(self.generator)
        return MaskMaker(make_parser(self.parser), MaskConfig(budget="fixed_area", method=self.activation), generator)


def make_parser(name: str) -> Any:
    """A parser by its name on the command line."""
    from asmattack.geometric import GeometricParser
    from asmattack.parsers import PrecomputedParser, SegformerParser

    kind, _, rest = name.partition(":")
    if name == "geometric":
        return GeometricParser()
    if kind == "segformer":
        return SegformerParser(rest) if rest else SegformerParser()
    if kind == "masks" and rest:
        folder, _, order = rest.partition("@")
        if order not in ("", "canonical", "bisenet", "celebamask"):
            raise UserError(f"--parser {name}: orders are canonical, bisenet, celebamask")
        return PrecomputedParser(folder, order or "canonical")
    raise UserError(f"--parser {name}: none of geometric, segformer[:ID], masks:FOLDER[@ORDER]")


def _load(references: tuple[str, ...], fake_index: int | None) -> list[Any]:
    from asmattack.storage import load_detector

    if not references:
        raise UserError(
            "name at least one detector: a run of `asmattack train`, timm:NAME@FILE, hf:ID or MODULE:FACTORY"
        )
    return [load_detector(each, fake_index) for each in references]


def _known_attacks(names: tuple[str, ...]) -> None:
    from asmattack.baselines import GLOBAL_ATTACKS, library_class
    from asmattack.presets import preset

    for name in names:
        if name in GLOBAL_ATTACKS:
            library_class(name)
        else:
            preset(name)


def _show(report: Any) -> None:
    from asmattack.robustness_report import SHOWN, shown

    table = Table(*SHOWN, box=None, pad_edge=False)
    for row in report.rows:
        table.add_row(*(shown(row, name) for name in SHOWN))
    Console(width=170).print(table)


def _write(report: Any, out: Path, examples: Any = ()) -> None:
    report.to_json(out / "report.json")
    report.to_csv(out / "report.csv")
    report.to_markdown(out / "report.md")
    report.to_html(out / "report.html", examples)


def _fresh(out: Path) -> Path:
    if out.is_file():
        raise UserError(f"{out}: is a file; choose a folder for --out")
    return out


@verb(
    app,
    "asmattack train --out runs/plain --preset tiny",
    "asmattack train --out runs/residual --preset tiny --model residual",
)
def train(*, options: RunOptions, recipe: TrainConfig | None = None) -> None:
    """Train a surrogate detector, or a timm model, on forged faces (drawn ones by default)."""
    from asmattack.training import train as run_training

    run_training(recipe or TrainConfig(), options.out, options.resume, options.device)
    _tell(options.out)


@verb(app, "asmattack harden runs/plain --out runs/hard --preset tiny")
def harden(detector: str, *, options: RunOptions, recipe: HardenConfig | None = None) -> None:
    """Fine-tune a detector on its own attacked faces: the defence.

    Args:
        detector: A run of train, timm:NAME@FILE, hf:ID or MODULE:FACTORY.
    """
    from asmattack.training import harden as run_hardening

    run_hardening(detector, recipe or HardenConfig(), options.out, options.resume, options.device)
    _tell(options.out)


@verb(app, "asmattack train-generator runs/plain --out runs/generator --preset tiny --width 8")
def train_generator(detector: str, *, options: RunOptions, recipe: GeneratorConfig | None = None) -> None:
    """Teach a mask generator where a detector looks; masks then need neither a parser nor the detector's gradients.

    Args:
        detector: Whose activation is learned.
    """
    from asmattack.training import train_generator as run_generator

    run_generator(detector, recipe or GeneratorConfig(), options.out, options.resume, options.device)
    _tell(options.out)


def _tell(out: Path) -> None:
    import json

    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    values = ", ".join(f"{name} {value:.3f}" for name, value in found["validation"].items())
    print(f"{found['epochs']} epochs, {values} -> {out / 'model'}")


@verb(
    app,
    "asmattack eval runs/plain runs/hard --out report --images 40",
    "asmattack eval runs/plain --out curve --images 20 --eps 2 4 8 --attacks pgd margin noise global-mifgsm --policies full budget random",
)
def eval(  # noqa: A001  # the verb's name
    *detectors: str,
    out: Path,
    faces: FaceOptions | None = None,
    attacks: Names = ("pgd",),
    eps: Levels = (8.0,),
    policies: Policies = ("full", "fixed", "budget", "random", "worst"),
    steps: int | None = None,
    fake_index: int | None = None,
    lpips: bool = False,
) -> None:
    """White-box and transfer table of detectors, with the controls beside it, and an HTML report with pictures.

    Args:
        detectors: Runs of train or harden, timm:NAME@FILE, hf:ID, MODULE:FACTORY or FILE.py:FACTORY.
        out: Folder for report.json, report.csv, report.md, report.html.
        attacks: fgsm, pgd, mifgsm, nifgsm, tifgsm, difgsm, margin, cafa, noise, asma_official, ...; global-fgsm, global-pgd, ... from torchattack.
        eps: Budgets in levels of 255.
        policies: Regions; random and worst are controls of budget, at the same area.
        steps: Iterations, where not the attack's own.
        fake_index: Which output means fake, where label names do not tell.
        lpips: Also measure LPIPS of the first attack (needs AlexNet's weights).
    """
    from asmattack.bench import Bench

    faces = faces or FaceOptions()
    grid = tuple(check_levels(each) for each in eps)
    _known_attacks(attacks)
    _fresh(out)
    if steps is not None and steps < 1:
        raise UserError("--steps must be at least 1")
    if lpips:
        _lpips_or_refuse()
    loaded, data, maker = _load(detectors, fake_index), faces.faces(), faces.maker()
    bench = Bench(loaded, (), attacks, policies, grid, maker, steps=steps, seed=faces.seed)
    report = bench.run(data)
    if not any(row.n for row in report.rows):
        raise UserError("no face is answered rightly before the attack: there is nothing to measure (labels swapped?)")
    examples = _examples(loaded[0], data, maker, attacks[0], grid[0], policies)
    _write(report, out, examples)
    _show(report)
    for fault in data.unreadable:
        print(f"passed over: {fault}")
    if lpips:
        print(f"LPIPS of {attacks[0]} on {loaded[0].name}: {_lpips(loaded[0], data, maker, attacks[0], grid[0]):.4f}")
    print(f"{len(report.rows)} rows -> {out / 'report.html'}")


def _lpips_or_refuse() -> None:
    import torch

    from asmattack.metrics import lpips

    lpips(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


def _lpips(detector: Any, data: Any, maker: Any, name: str, eps: float) -> float:
    from asmattack.examples import attacked_examples
    from asmattack.metrics import lpips

    batch, _ = attacked_examples(detector, data, maker, name, eps)
    return lpips(data.pixels(), batch.images)


def _examples(detector: Any, data: Any, maker: Any, name: str, eps: float, policies: tuple[Policy, ...]) -> Any:
    from asmattack.examples import example_pictures

    policy = "budget" if "budget" in policies else policies[0]
    return example_pictures(detector, data, maker, name, eps, policy)


@verb(app, "asmattack transfer runs/plain runs/residual --out transfer --images 40")
def transfer(
    *detectors: str,
    out: Path,
    faces: FaceOptions | None = None,
    attack: str = "mifgsm",
    eps: float = 8.0,
    policy: Policy = "budget",
    fake_index: int | None = None,
) -> None:
    """Transfer matrix: gradients of one detector, answers of every other, over faces that all answer rightly.

    Args:
        detectors: At least two; see eval.
        out: Folder for the report.
        attack: Name of the attack.
        eps: Budget in levels of 255.
        policy: Regions.
        fake_index: Which output means fake, where label names do not tell.
    """
    from asmattack.bench import Bench

    faces = faces or FaceOptions()
    if len(detectors) < 2:
        raise UserError("a transfer matrix needs at least two detectors")
    fraction = check_levels(eps)
    _known_attacks((attack,))
    loaded, data, maker = _load(detectors, fake_index), faces.faces(), faces.maker()
    report = Bench(loaded, (), (attack,), (policy,), (fraction,), maker, seed=faces.seed).run(data)
    _write(report, _fresh(out))
    names = [each.name for each in loaded]
    table = Table("gradients of \\ answers of", *names, box=None, pad_edge=False)
    first = report.rows[0]
    for source, row in report.matrix(first.attack, first.policy, first.eps).items():
        table.add_row(source, *(f"{row[name].asr:.3f}" for name in names))
    Console(width=120).print(table)
    print(f"success of {attack}, {policy}, {eps:g}/255 -> {out / 'report.html'}")


@verb(app, "asmattack attack runs/plain --out attacked --images 20 --save-examples 4")
def attack(
    detector: str,
    *,
    out: Path,
    faces: FaceOptions | None = None,
    attack: str = "pgd",
    eps: float | None = None,
    policy: Policy | None = None,
    save_examples: int = 0,
    fake_index: int | None = None,
) -> None:
    """Attack one detector: success, distortion, and on request the attacked pictures.

    Args:
        detector: See eval.
        out: Folder for report.json and pictures.
        attack: Name of the attack.
        eps: Budget in levels of 255; the attack's own when absent (asma_official has 51).
        policy: Regions; budget, or what the attack was published with.
        save_examples: How many attacked faces to write, each PNG marked as adversarial inside.
        fake_index: Which output means fake, where label names do not tell.
    """
    from asmattack.bench import Bench
    from asmattack.examples import write_examples
    from asmattack.presets import PUBLISHED_POLICY

    faces = faces or FaceOptions()
    fraction = None if eps is None else check_levels(eps)
    _known_attacks((attack,))
    if save_examples < 0:
        raise UserError("--save-examples cannot be negative")
    (loaded,), data, maker = _load((detector,), fake_index), faces.faces(), faces.maker()
    chosen: Any = policy or PUBLISHED_POLICY.get(attack, "budget")
    report = Bench([loaded], (), (attack,), (chosen,), (fraction,), maker, seed=faces.seed).run(data)
    report.to_json(_fresh(out) / "report.json")
    _show(report)
    count = write_examples(out, loaded, data, maker, attack, report.rows[0].eps, chosen, save_examples)
    print(f"{count} pictures, report -> {out}")


@verb(app, "asmattack regions runs/plain --out regions.json --images 20")
def regions(
    detector: str, *, out: Path, faces: FaceOptions | None = None, eps: float = 8.0, fake_index: int | None = None
) -> None:
    """Which regions a detector hangs on: activation density, occlusion drop, success of attacking one region alone.

    Args:
        detector: See eval.
        out: The JSON file to write.
        eps: Budget in levels of 255.
        fake_index: Which output means fake, where label names do not tell.
    """
    import json

    from asmattack.region_report import region_vulnerability
    from tenfold.files import write_text

    faces = faces or FaceOptions()
    fraction = check_levels(eps)
    (loaded,), data, maker = _load((detector,), fake_index), faces.faces(), faces.maker()
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


@verb(app, "asmattack mask --out masks --images 6")
def mask(*, out: Path, faces: FaceOptions | None = None) -> None:
    """Write the label map of each face (8-bit PNG, classes 0 to 18) and an overlay to look at.

    Args:
        out: Folder for NAME.png and overlays/NAME.png.
    """
    from asmattack.examples import write_masks

    faces = faces or FaceOptions()
    data = faces.faces()
    count = write_masks(_fresh(out), data, make_parser(faces.parser))
    print(f"{count} label maps -> {out}")


@verb(app, "asmattack check report/report.json --min-robust-acc 0@pgd:8 --max-transfer 1")
def check(report: Path, *, min_robust_acc: Names = (), max_transfer: float | None = None) -> int:
    """Hold a report against limits; leaves with 3 when one is broken, for use in CI.

    Args:
        report: A report.json of eval.
        min_robust_acc: ACCURACY@ATTACK:LEVELS, such as 0.4@pgd:8; repeat for several.
        max_transfer: Largest success on a detector whose gradients were not used.
    """
    from asmattack.robustness_report import read_report

    limits = {}
    for each in min_robust_acc:
        value, _, key = each.partition("@")
        try:
            limits[key] = float(value)
        except ValueError:
            raise UserError(f"--min-robust-acc {each}: expected ACCURACY@ATTACK:LEVELS, such as 0.4@pgd:8") from None
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
    from asmattack.robustness_report import read_report, shown_setting

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
def demo(*, out: Path = Path("asmattack-demo"), seed: int = 0) -> None:
    """Train two surrogates on drawn faces, attack them, harden one, and write a report with pictures. No network.

    Args:
        out: Folder for faces.png, report.html, report.json.
        seed: Of everything.
    """
    from asmattack.demonstration import demonstrate

    report, examples = demonstrate(_fresh(out), seed)
    _write(report, out, examples)
    _show(report)
    print(f"pictures and report -> {out}")


def main() -> NoReturn:
    """Entry point."""
    run(app)
