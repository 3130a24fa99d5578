"""`vptnsp` on the command line: parse, call, print."""

import json as json_module
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import Parameter

from tenfold import UserError
from tenfold.cli import Paper, RunOptions, create_app, run, verb
from tenfold.files import check_writable
from tenfold.options import Count, Positive, Seed, Size
from vptnsp.config import MethodName, PretrainConfig, TrainConfig

PAPER = Paper(
    title="Visual Prompt Tuning in Null Space for Continual Learning",
    authors=(
        "Lu, Yue",
        "Zhang, Shizhou",
        "Cheng, De",
        "Xing, Yinghui",
        "Wang, Nannan",
        "Wang, Peng",
        "Zhang, Yanning",
    ),
    venue="NeurIPS",
    year=2024,
    url="https://arxiv.org/abs/2406.05658",
)

app = create_app(
    "vptnsp", "Class-incremental learning on any timm ViT without forgetting: prompts tuned in the null space.", PAPER
)

AsJson = Annotated[bool, Parameter(name="--json", negative=())]

Revision = Annotated[
    str | None,
    Parameter(
        help="Branch, tag or commit of a learner named OWNER/NAME on the Hugging Face Hub; the commit that is used is printed."
    ),
]

COLUMNS = {
    "acc_task_mean": "accuracy",
    "forgetting": "forgetting",
    "task_aware_accuracy": "task-aware",
    "task_aware_forgetting": "forgetting",
    "drift": "drift",
}


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


def _print_methods(results: dict[str, dict[str, Any]]) -> None:
    rows = [
        [name, *(f"{row[key]:.3f}" if key == "drift" else f"{100 * row[key]:.1f} %" for key in COLUMNS)]
        for name, row in results.items()
    ]
    _print_table(["method", *COLUMNS.values()], rows)


def _learner_folder(learner: Path, revision: str | None) -> Path:
    """The folder of a learner: a local one as it is, a Hub name fetched."""
    from tenfold.hub import model_folder

    return model_folder(learner, revision, ("learner.json", "model.safetensors", "moments.safetensors"))


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


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2))


@verb(app, "vptnsp train --out run --preset tiny", "vptnsp train --out run-seq --preset tiny --method seq --epochs 2")
def train(*, options: RunOptions, config: TrainConfig | None = None, json: AsJson = False) -> None:
    """Learn a stream of tasks: a learner, its accuracy after each task on each task, forgetting.

    Presets: tiny (procedural, seconds), small (digits), paper (10-split CIFAR-100), cifar100-20, imagenet-r, domainnet, clip-cifar100.

    Args:
        options: Where and how to run.
        config: The stream and the method.
        json: Print the result as JSON.
    """
    from accelerate import PartialState

    from vptnsp.training.run import train as train_stream

    result = train_stream(options.out, config or TrainConfig(), options.device, options.resume)
    if not PartialState().is_main_process:
        return
    if json:
        _print_json(result)
        return
    tasks = len(result["matrix"])
    rows = [
        [f"after task {after + 1}", *("" if value is None else f"{100 * value:.1f}" for value in row)]
        for after, row in enumerate(result["matrix"])
    ]
    _print_table(["%", *(f"on {task + 1}" for task in range(tasks))], rows)
    print(
        f"accuracy {100 * result['acc_task_mean']:.1f} %, pooled {100 * result['acc_pooled']:.1f} %, "
        f"incremental {100 * result['acc_incremental']:.1f} %, forgetting {100 * result['forgetting']:.1f} %, "
        f"drift {result['drift']:.3f} -> {options.out}"
    )


@verb(
    app,
    "vptnsp train --out run --preset tiny",
    "vptnsp fit-task run/learner new-classes --out learner-2 --epochs 2 --batch-size 8",
)
def fit_task(
    learner: Path,
    folder: Path,
    *,
    out: Path,
    epochs: Count | None = None,
    batch_size: Count | None = None,
    lr: Positive | None = None,
    augmentation: Literal["none", "autoaugment"] = "none",
    templates: Literal["cifar", "imagenet-r", "domainnet"] = "cifar",
    workers: Size = 0,
    revision: Revision = None,
    json: AsJson = False,
) -> None:
    """Teach a saved learner the classes of a folder, as one more task.

    Args:
        learner: The learner's folder, or its name on the Hugging Face Hub.
        folder: One folder per new class.
        out: The folder of the new learner.
        epochs: Passes over the pictures; by default as the learner learnt before.
        batch_size: Pictures per step; by default as before.
        lr: Learning rate; by default as before.
        augmentation: none, or autoaugment followed by a random resized crop.
        templates: Sentences for CLIP's texts.
        workers: Processes that load pictures.
        json: Print the result as JSON.
    """
    from tenfold.files import atomic_folder
    from vptnsp.pipeline.inference import changed, fit_folder
    from vptnsp.training.learner import NSPLearner

    _refuse_existing(out)
    loaded = changed(NSPLearner.load(_learner_folder(learner, revision)), epochs=epochs, batch_size=batch_size, lr=lr)
    result = fit_folder(loaded, folder, augmentation=augmentation, templates=templates, workers=workers)
    with atomic_folder(out) as temporary:
        loaded.save(temporary)
    if json:
        _print_json(result)
    else:
        print(f"learnt {len(result['classes'])} classes from {result['pictures']} pictures -> {out}")


def _refuse_existing(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose another --out")
    check_writable(out)


@verb(app, "vptnsp train --out run --preset tiny", "vptnsp eval run/learner test-pictures")
def eval(learner: Path, folder: Path, *, revision: Revision = None, json: AsJson = False) -> None:  # noqa: A001  # the verb's name
    """Test a saved learner on a folder with one folder per class.

    Args:
        learner: The learner's folder, or its name on the Hugging Face Hub.
        folder: One folder per class, named as when learnt.
        json: Print the result as JSON.
    """
    from vptnsp.pipeline.inference import evaluate_folder
    from vptnsp.training.learner import NSPLearner

    result = evaluate_folder(NSPLearner.load(_learner_folder(learner, revision)), folder)
    if json:
        _print_json(result)
        return
    rows = [
        [str(row["task"]), str(row["pictures"]), f"{100 * row['accuracy']:.1f} %", f"{100 * row['task_aware']:.1f} %"]
        for row in result["tasks"]
    ]
    _print_table(["task", "pictures", "accuracy", "task known"], rows)
    print(f"{100 * result['accuracy']:.1f} % of {result['pictures']} pictures")


@verb(app, "vptnsp train --out run --preset tiny", "vptnsp predict run/learner picture.png")
def predict(
    learner: Path, pictures: Path, *, out: Path | None = None, revision: Revision = None, json: AsJson = False
) -> int:
    """Name pictures among all classes learnt so far.

    Pictures of a folder that cannot be read are named on stderr and passed over; the exit code is then 3.

    Args:
        learner: The learner's folder, or its name on the Hugging Face Hub.
        pictures: A picture, or a folder of them.
        out: Write file, class and confidence to this CSV file.
        json: Print the result as JSON.
    """
    from tenfold.images import list_images
    from vptnsp.pipeline.inference import predict_pictures, write_predictions
    from vptnsp.training.learner import NSPLearner

    source = _learner_folder(learner, revision)
    _check_result(out, [source, *list_images(pictures)])
    found = predict_pictures(NSPLearner.load(source), pictures)
    named = list(found.results.values())
    if out is not None:
        write_predictions(out, named)
    if json:
        _print_json([asdict(each) for each in named])
    elif out is not None:
        print(f"named {len(named)} pictures -> {out}")
    else:
        _print_table(
            ["picture", "class", "confidence"], [[each.file, each.name, f"{each.confidence:.3f}"] for each in named]
        )
    found.show_skipped("vptnsp")
    return found.exit_code


@verb(app, "vptnsp train --out run --preset tiny", "vptnsp inspect run/learner --out spectra.png")
def inspect(learner: Path, *, out: Path | None = None, revision: Revision = None, json: AsJson = False) -> None:
    """Show what the projections of a learner do: nullity, kept energy and gains of each layer.

    Args:
        learner: The learner's folder, or its name on the Hugging Face Hub.
        out: Draw the spectra to this PNG file.
        json: Print the result as JSON.
    """
    from vptnsp.pipeline.inspection import inspect_learner, plot_inspection
    from vptnsp.training.learner import NSPLearner

    source = _learner_folder(learner, revision)
    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"{out}: name a .png file for the picture")
    _check_result(out, [source])
    loaded = NSPLearner.load(source)
    reports, spectra = inspect_learner(loaded)
    if out is not None:
        plot_inspection(reports, spectra, out, f"second moments after {len(loaded.tasks)} tasks")
    if json:
        _print_json([asdict(each) for each in reports])
        return
    rows = [
        [
            each.layer,
            f"{each.features.nullity} of {each.features.size}",
            f"{100 * each.features.kept_energy:.0f} %",
            f"{each.features.gain_null:.3f} / {each.features.gain_rest:.3f}",
            f"{each.prompts.nullity} of {each.prompts.size}",
            f"{100 * each.prompts.kept_energy:.0f} %",
            f"{each.prompts.gain_null:.3f} / {each.prompts.gain_rest:.3f}",
        ]
        for each in reports
    ]
    _print_table(["layer", "nullity 1", "energy", "gain null / rest", "nullity 2", "energy", "gain null / rest"], rows)
    if out is not None:
        print(f"spectra -> {out}")


@verb(app, "vptnsp demo", "vptnsp demo --out demo-pictures")
def demo(*, out: Path = Path("vptnsp-demo"), json: AsJson = False) -> None:
    """Learn three tasks of procedural glyphs with the method, its control and its rivals, and draw the result.

    Args:
        out: A folder for the pictures.
        json: Print the result as JSON.
    """
    from vptnsp.demo import demonstrate

    check_writable(out / "glyphs.png")
    results = demonstrate(out)
    if json:
        _print_json(results)
    else:
        _print_methods(results)
        print(f"pictures -> {out}")


@verb(app, "vptnsp toy --methods nsp2 ncm --seeds 1 --tasks 2")
def toy(
    *,
    methods: Annotated[tuple[MethodName, ...], Parameter(consume_multiple=True, negative=())] = (
        "seq",
        "nsp2",
        "frozen",
        "slow",
        "ncm",
        "ranpac",
        "joint",
    ),
    seeds: Count = 3,
    tasks: Count = 5,
    json: AsJson = False,
) -> None:
    """Compare methods on five tasks of glyphs, mean over seeds: the experiment behind the README's table.

    Args:
        methods: Which.
        seeds: How many, from 0.
        tasks: Length of the stream.
        json: Print the result as JSON.
    """
    from dataclasses import replace

    from vptnsp.demo import TOY
    from vptnsp.demo import toy as compare_methods

    results = compare_methods(replace(TOY, tasks=tasks), methods, range(seeds))
    if json:
        _print_json(results)
    else:
        _print_methods(results)


@verb(app, "vptnsp split pictures --tasks 2 --out split")
def split(folder: Path, *, out: Path, tasks: Count = 10, seed: Seed = 2024, json: AsJson = False) -> None:
    """Write the order of classes and an 80/20 split of a folder, as files that train understands.

    Args:
        folder: One folder per class.
        out: A folder for tasks.tsv, train.txt and val.txt.
        tasks: Number of tasks.
        seed: Of the order and the split.
        json: Print the tasks as JSON.
    """
    from vptnsp.data.writers import write_split

    _refuse_existing(out)
    order = write_split(folder, out, tasks, seed)
    if json:
        _print_json(order)
    else:
        print(f"{sum(map(len, order))} classes in {len(order)} tasks -> {out}")


@verb(app, "vptnsp bench", "vptnsp bench --num-prompts 8 --batch-size 4 --repeats 1")
def bench(
    *,
    backbone: str = "vptnsp_tiny_patch8_32",
    num_prompts: Count = 4,
    batch_size: Count = 16,
    repeats: Count = 5,
    json: AsJson = False,
) -> None:
    """Time a step with and without the method, and the pass that collects second moments; weights are random.

    Args:
        backbone: A timm model.
        num_prompts: Prompts per block.
        batch_size: Pictures per batch.
        repeats: How often each is timed.
        json: Print the result as JSON.
    """
    if num_prompts < 3:
        raise UserError(f"--num-prompts {num_prompts}: at least 3 are needed")
    from vptnsp.benchmark import measure_costs
    from vptnsp.models.networks import PromptedViT

    costs = measure_costs(lambda: PromptedViT.from_timm(backbone, num_prompts, pretrained=False), batch_size, repeats)
    if json:
        _print_json(asdict(costs) | {"step_overhead": costs.step_overhead, "pass_overhead": costs.pass_overhead})
        return
    rows = [
        ["training step, sequential", f"{costs.sequential_step:.4f}", f"{costs.sequential_peak:.1f}"],
        ["training step, null space", f"{costs.projected_step:.4f}", f"{costs.projected_peak:.1f}"],
        ["forward", f"{costs.forward:.4f}", ""],
        ["second moments, streaming", f"{costs.moment_pass:.4f}", f"{costs.moment_peak:.1f}"],
        ["second moments, every token stored", f"{costs.stored_pass:.4f}", f"{costs.stored_peak:.1f}"],
    ]
    _print_table(["per batch", "seconds", "peak MiB"], rows)
    print(f"a step costs {100 * costs.step_overhead:+.1f} %, the moment pass {100 * costs.pass_overhead:+.1f} %")


@verb(app, "vptnsp pretrain --out backbone --steps 2 --batch-size 8 --glyph-classes 4")
def pretrain(*, options: RunOptions, config: PretrainConfig | None = None, json: AsJson = False) -> None:
    """Pre-train the embedded backbone on glyphs, characters and photographs.

    Args:
        options: Where and how to run.
        config: Data and optimisation.
        json: Print the result as JSON.
    """
    from vptnsp.training.pretraining import pretrain as pretrain_backbone

    result = pretrain_backbone(options.out, config or PretrainConfig(), options.device, options.resume)
    if json:
        _print_json(result)
    else:
        print(
            f"{result['classes']} classes, {100 * result['accuracy']:.1f} % right at the end of training -> {options.out}"
        )


def main() -> NoReturn:
    """Entry point of `vptnsp`."""
    run(app)
