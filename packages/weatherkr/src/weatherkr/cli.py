"""The command line: verbs parse, call and print. `weatherkr --help` lists them."""

from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import Parameter
from cyclopts.validators import Number

from tenfold import UserError
from tenfold.cli import Paper, RunOptions, create_app, run, verb
from tenfold.options import Count, Positive, Seed
from weatherkr.config import TrainConfig

PAPER = Paper(
    title="Continual All-in-One Adverse Weather Removal with Knowledge Replay on a Unified Network Structure",
    authors=(
        "Cheng, De", "Ji, Yanling", "Gong, Dong", "Li, Yan", "Wang, Nannan", "Han, Junwei", "Zhang, Dingwen",
    ),
    venue="IEEE Transactions on Multimedia",
    year=2024,
    url="https://arxiv.org/abs/2403.07292",
)  # fmt: skip

app = create_app(
    "weatherkr", "Remove haze, rain and snow with one network that learns new weather and keeps the old.", PAPER
)

Out = Annotated[Path, Parameter(name=("--out", "-o"))]
Texts = Annotated[tuple[str, ...], Parameter(negative=())]
Setting = Literal["standard", "shifted"]
Protocol = Literal["official", "rgb8", "y8"]
Gates = Literal["global", "local"]
Precision = Literal["auto", "float32"]


# ------------------------------------------------------------------------------------------------------------ restoring


@verb(
    app, "weatherkr restore rainy.jpg --out clear.jpg", "weatherkr restore photos/ --out restored --tile 256 --compare"
)
def restore(
    source: Path,
    *,
    out: Out = Path("restored"),
    model: str = "compact",
    tile: str = "auto",
    gates: Gates = "global",
    precision: Precision = "auto",
    device: str = "auto",
    suffix: str = "",
    quality: Annotated[int, Parameter(validator=Number(gte=1, lte=100))] = 95,
    compare: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Remove haze, rain and snow from a picture or a folder of pictures.

    Any size and aspect; orientation, EXIF, colour profile, alpha and 16 bits are kept. Pictures of a folder that cannot be read
    are named and passed over; it then leaves with 3.

    Args:
        source: A picture, or a folder.
        out: For a picture a file or a folder, for a folder a folder.
        model: compact, the one that ships; a run folder, one of its states, or a folder of save_pretrained.
        tile: Side of the tiles in pixels, auto, or off.
        gates: global: tiles share the whole picture's channel gates; local: each has its own, and overlaps are blended.
        precision: auto: bfloat16 where the hardware has it; or float32.
        device: auto, cpu, cuda, ...
        suffix: Put before the ending of each new name.
        quality: Of JPEG and WebP, 1 to 100.
        compare: Also write each picture beside its restoration, as NAME_compare.png.
        overwrite: Replace files that exist; never the pictures themselves.
    """
    import time

    from weatherkr.pipeline.inference import load_model, restore_files

    started = time.perf_counter()
    report = restore_files(
        load_model(model, device),
        source,
        out,
        tile=_tile(tile),
        gates=gates,
        precision=precision,
        suffix=suffix,
        quality=quality,
        overwrite=overwrite,
        compare=compare,
    )
    seconds, size = time.perf_counter() - started, sum(each.pixels for each in report.results.values()) / 1e6
    pictures = "1 picture" if len(report.results) == 1 else f"{len(report.results)} pictures"
    print(f"restored {pictures} ({size:.1f} MP) in {seconds:.1f} s -> {out}")
    report.show_skipped("weatherkr")
    return report.exit_code


def _tile(text: str) -> int | Literal["auto", "off"]:
    if text == "auto" or text == "off":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--tile {text}: give a positive number of pixels, auto or off")
    return int(text)


# -------------------------------------------------------------------------------------------------------------- learning


@verb(
    app,
    "weatherkr train --task haze=synth:photos --task rain=synth:photos --out runs/first --preset tiny",
    "weatherkr train --task snow=pairs:set/snow/degraded:set/snow/clean --start runs/first --out runs/second --preset tiny",
)
def train(
    *,
    task: Texts,
    options: RunOptions,
    val: Texts = (),
    start: Path | None = None,
    fit_crop: Annotated[bool, Parameter(negative=())] = False,
    recipe: TrainConfig = TrainConfig(),  # noqa: B008  # frozen
) -> None:
    """Learn one weather after another with one network, keeping the old ones.

    A task is NAME=LAYOUT:PATH. Layouts: synth:FOLDER[,FOLDER] makes the weather NAME on clean photographs (synth-KIND or
    synth-KIND-shifted where NAME is no kind), pairs:DEGRADED:CLEAN, csv:FILE, and the public sets reside, rain100, rain1400,
    snow100k, csd, raindrop, each with its folder. Ctrl-C leaves a run that --resume continues. Several GPUs: accelerate
    launch -m weatherkr train ...

    Args:
        task: What to learn, in this order; repeat for several.
        val: Validation pictures of a task, written alike; without them the last weights are kept.
        start: A run, or one of its states, to go on from: its network, whatever --dim says; its pictures are not needed.
        fit_crop: Where the sizes of a pair differ, take the middle of the larger.
    """
    from weatherkr.data.tasks import build_tasks
    from weatherkr.training.run import train as train_tasks
    from weatherkr.training.state import resolve_state

    tasks = build_tasks(task, val, seed=recipe.seed, crop_to_fit=fit_crop)
    report = train_tasks(
        tasks,
        recipe,
        options.out,
        start=resolve_state(start) if start else None,
        resume=options.resume,
        device=options.device,
        described=(task, val),
    )
    if any(report.rows):
        print(report.to_markdown())
    else:
        print("no --val: the last weights of each task are kept, nothing was judged")
    print(f"learnt {', '.join(report.tasks)} -> {options.out}")


@verb(
    app,
    "weatherkr compare --out comparison --preset tiny --method finetune --method kr --steps 5",
    "weatherkr compare --task haze=synth:photos --val haze=synth:photos --task snow=synth:photos --val snow=synth:photos --out other --preset tiny --method er --steps 5",
)
def compare(
    *,
    options: RunOptions,
    task: Texts = (),
    val: Texts = (),
    method: Texts = ("finetune", "er", "kd", "kr", "joint"),
    recipe: TrainConfig = TrainConfig(),  # noqa: B008  # frozen
) -> None:
    """Run methods side by side through the same tasks; write table, curves and pictures.

    kr: the paper's knowledge replay. kd: kr without the projection. er: plain replay with true labels. finetune: nothing kept.
    lwf: no memory, old outputs on new inputs. pod: kd with pooled features. ewc, pigwm: quadratic penalties. joint: all tasks at
    once. single: a network for each task.

    Args:
        task: As for train; by default haze, rain and snow on photographs that ship with libraries.
        val: As for train; every task needs some.
        method: Repeat for several.
    """
    from rich.console import Console
    from rich.table import Table

    from weatherkr.benchmark.comparison import compare_in_folder
    from weatherkr.data.tasks import build_tasks

    tasks = build_tasks(task, val, seed=recipe.seed) if task else None
    rows = compare_in_folder(tasks, method, recipe, options.out, device=options.device, resume=options.resume)
    table = Table(*rows[0], title="PSNR in dB after the last task, protocol official")
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 120).print(table)
    print(f"comparison.md, curves.svg, pictures/ -> {options.out}")


@verb(
    app,
    "weatherkr eval --task haze=synth:photos --task rain=synth:photos -o scores.json",
    "weatherkr eval --model runs/first --task rain=synth-rain-shifted:photos --protocol y8",
)
def eval(  # noqa: A001  # the verb's name
    *,
    task: Texts,
    model: str = "compact",
    protocol: Protocol = "official",
    limit: Count | None = None,
    out: Out | None = None,
    seed: Seed = 0,
    device: str = "auto",
    precision: Precision = "auto",
) -> None:
    """Measure a model on pictures with known clean ones: PSNR and SSIM, and what they gain over the degraded pictures.

    Args:
        task: As for train; repeat for several.
        model: compact, a run folder, one of its states, or a folder of save_pretrained.
        protocol: official: float RGB, as the authors' code; rgb8: 8 bits, RGB; y8: 8 bits, luma. Never compare across them.
        limit: At most this many pictures of each task.
        out: JSON to write.
        seed: Of synthetic weather.
        device: auto, cpu, cuda, ...
        precision: auto: bfloat16 where the hardware has it; or float32.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from tenfold.files import check_writable, write_text
    from weatherkr.data.tasks import parse_pairs
    from weatherkr.evaluation.protocols import evaluate
    from weatherkr.pipeline.inference import load_model

    if not task:
        raise UserError("nothing to measure: name at least one --task")
    if out is not None:
        if out.is_dir():
            raise UserError(f"{out}: is a folder; name a file for the scores")
        check_writable(out)
    sets = [parse_pairs(text, seed=seed) for text in task]
    net = load_model(model, device)
    table = Table("task", "pictures", "degraded", "restored", "gain", title=f"PSNR in dB / SSIM, protocol {protocol}")
    scores = {}
    for name, pairs in sets:
        score = evaluate(net, pairs, protocol, limit, precision, name)
        scores[name] = asdict(score)
        table.add_row(
            name,
            str(score.pictures),
            f"{score.input_psnr:.2f} / {score.input_ssim:.4f}",
            f"{score.psnr:.2f} / {score.ssim:.4f}",
            f"{score.gain:+.2f}",
        )
    Console(width=None if Console().is_terminal else 120).print(table)
    if out:
        write_text(out, json.dumps({"protocol": protocol, "model": model, "scores": scores}, indent=2) + "\n")
        print(f"scores -> {out}")


@verb(app, "weatherkr history runs/first")
def history(state: Path) -> None:
    """Show what a run or a state has learnt: tasks, memory, scores after each task.

    Args:
        state: A run folder, or one of its states.
    """
    from weatherkr.training.state import LearnerState, resolve_state

    found = LearnerState.load(resolve_state(state))
    print(f"network: dim {found.net.dim}, {found.net.blocks} blocks, shuffle {found.net.shuffle}")
    print(f"learnt: {', '.join(found.learnt)}")
    for name, stored in found.memory.stored.items():
        print(f"memory: {len(stored.inputs)} patches of {name}, {stored.inputs.shape[-1]} pixels")
    if any(found.report.rows):
        print(found.report.to_markdown())
        print(f"average {found.report.average():.2f} dB, forgetting {found.report.forgetting():.2f} dB")


# ------------------------------------------------------------------------------------------------------------------ data


@verb(
    app, "weatherkr degrade photos/ --out set --kind snow", "weatherkr degrade photos/ --out shifted --setting shifted"
)
def degrade(
    source: Path,
    *,
    out: Out = Path("degraded"),
    kind: Texts = ("haze", "rain", "snow", "raindrop"),
    setting: Setting = "standard",
    seed: Seed = 0,
    scale: Positive | None = None,
) -> int:
    """Put weather on clean photographs: a paired set OUT/KIND/degraded, OUT/KIND/clean.

    Pictures of a folder that cannot be read are named and passed over; it then leaves with 3.

    Args:
        source: A photograph, or a folder of them.
        out: Folder for the set.
        kind: haze, rain, snow, raindrop; repeat for several.
        setting: standard, what the shipped model was trained on, or shifted, other ranges.
        seed: Of the weather.
        scale: Size of streaks, flakes and drops; by default it follows the picture's (1 for 320 pixels of height).
    """
    from weatherkr.data.writers import write_pairs

    report = write_pairs(source, out, kind, setting, seed, scale)
    print(f"{len(report.results)} pairs each of {', '.join(dict.fromkeys(kind))} -> {out}")
    report.show_skipped("weatherkr")
    return report.exit_code


# ---------------------------------------------------------------------------------------------------------------- models


@verb(app, "weatherkr export compact.pt2 --format pt2", "weatherkr export half --model runs/first --half")
def export(
    out: Path,
    *,
    model: str = "compact",
    file_format: Annotated[Literal["safetensors", "pt2", "onnx"], Parameter(name="--format")] = "safetensors",
    half: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write a model for use elsewhere.

    Args:
        out: A folder for safetensors, a file for the others.
        model: compact, a run folder, one of its states, or a folder of save_pretrained.
        file_format: safetensors: what restore and from_pretrained read; pt2: torch.export, any size; onnx: needs weatherkr[onnx].
        half: Store the weights in half precision.
    """
    from weatherkr.pipeline.export import check_export, export_model
    from weatherkr.pipeline.inference import load_model

    check_export(out, file_format, half)
    export_model(load_model(model, "cpu"), out, file_format, half)
    print(f"{model} -> {out}")


@verb(app, "weatherkr import-official ffa_best.pk --out official")
def import_official(checkpoint: Path, *, out: Out = Path("official")) -> None:
    """Turn a checkpoint of the authors' code into a model folder.

    Args:
        checkpoint: ffa_best.pk.
        out: Folder for the model.
    """
    from weatherkr.pipeline.export import check_export, export_model
    from weatherkr.pipeline.export import import_official as read_official

    check_export(out)
    net = read_official(checkpoint)
    export_model(net, out)
    print(f"dim {net.dim}, {net.blocks} blocks -> {out}")


@verb(app, "weatherkr demo --out weatherkr-demo")
def demo(*, out: Out = Path("weatherkr-demo"), seed: Seed = 0) -> None:
    """Put haze, rain and snow on photographs and remove it with the model that ships; no network, no data, seconds.

    Args:
        out: Folder for the pictures.
        seed: Of the weather.
    """
    from rich.console import Console
    from rich.table import Table

    from weatherkr.demo import demonstrate
    from weatherkr.pipeline.inference import load_model

    found = demonstrate(load_model(), out, seed=seed)
    table = Table("weather", "degraded", "restored", "gain", title="PSNR in dB / SSIM, protocol official")
    for kind, score in found.items():
        before, after = (
            f"{score.input_psnr:.2f} / {score.input_ssim:.3f}",
            f"{score.psnr:.2f} / {score.ssim:.3f}",
        )
        table.add_row(kind, before, after, f"{score.gain:+.2f}")
    Console(width=None if Console().is_terminal else 120).print(table)
    print(f"{', '.join(f'{kind}.png' for kind in found)} (degraded, restored, clean) -> {out}")


def main() -> NoReturn:
    """Entry point of `weatherkr`."""
    run(app)
