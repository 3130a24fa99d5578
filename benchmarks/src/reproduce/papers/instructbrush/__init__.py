"""What instructbrush is measured by (Zhao et al., arXiv 2403.18660): edits without a name, learnt on the embedded editor.

Pairs to learn from are cut from six photographs that scikit-image and scikit-learn ship, test pictures from three others; local edits change
one thing in drawn scenes. LPIPS needs weights from the network and is not among the metrics: the README has it, by `instructbrush bench run`.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from reproduce.claims import Experiment, Measurement, Speed, Suite, at_most, claim, higher, lower

EFFECTS = ("comic", "heat", "leak", "pink")
METHODS = (
    "copy",
    "affine-color",
    "text",
    "textual-inversion",
    "visii",
    "text-embed",
    "kv",
    "kv-no-init",
    "kv-j5",
    "kv-4",
)
WORDS = {
    "copy": "the unchanged picture",
    "affine-color": "a fitted colour map",
    "text": "the nearest words",
    "textual-inversion": "Textual Inversion",
    "visii": "Visii (its guided loss and CLIP term)",
    "text-embed": "the text embedding, same loss and steps",
    "kv": "keys and values (the method)",
    "kv-no-init": "keys and values, started from nothing",
    "kv-j5": "keys and values in five time partitions",
    "kv-4": "keys and values of four tokens",
    "editor": "the embedded editor, told in its own words",
    "editor without instruction": "the embedded editor without an instruction",
    "autoencoder alone": "the wanted picture through the autoencoder",
}
METRICS = {
    "psnr": "PSNR to the wanted picture (dB)",
    "ssim": "SSIM to the wanted picture",
    "clip-dir": "similarity to the edit's direction (CLIP)",
    "clip-i": "similarity to the wanted picture (CLIP)",
    "train loss": "training loss",
    "psnr of heat": "PSNR of the two-colour heat map (dB)",
    "clip-dir of pink": "direction of the pink object (CLIP)",
    "MiB above the start": "peak memory of an update (MiB)",
}
PAIRS, TESTS, STEPS = 6, 8, 80
QUICK_EFFECTS, QUICK_METHODS, QUICK_STEPS = ("heat",), ("copy", "text-embed", "kv"), 10


def unnamed(seed: int, _tier: str, place: Path) -> Measurement:
    """Every method on four edits."""
    return run_methods(seed, EFFECTS, METHODS, STEPS, place)


def quick(seed: int, _tier: str, place: Path) -> Measurement:
    """Keys and values against the text embedding on one edit, in seconds."""
    return run_methods(seed, QUICK_EFFECTS, QUICK_METHODS, QUICK_STEPS, place)


def run_methods(
    seed: int, effects: tuple[str, ...], methods: tuple[str, ...], steps: int, place: Path
) -> dict[str, dict[str, float]]:
    """Learn each edit by each method; means over the edits, and single edits by name."""
    import torch

    from instructbrush import ApplyOptions, Scorer, learn_method, learning_preset, load_editor, read_bank
    from instructbrush.benchmark.comparison import contact_sheet
    from instructbrush.data.tasks import EFFECTS as KNOWN
    from instructbrush.data.tasks import LEARNT, TESTED, bank, draw_pairs
    from instructbrush.models.backbones import quiet_libraries
    from tenfold.images import write_image

    torch.set_num_threads(1)
    quiet_libraries()
    editor = load_editor(device="cpu")
    recipe, phrases = learning_preset("small", seed=seed, steps=steps)
    options, words, scorer = ApplyOptions(seed=seed, batch_size=TESTS), read_bank(tiny=True), Scorer(editor.clip)
    sources = bank(LEARNT, editor.size), bank(TESTED, editor.size)
    arms: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for name in effects:
        train, test = draw_pairs(name, PAIRS, sources[0], 2 * seed), draw_pairs(name, TESTS, sources[1], 2 * seed + 1)
        rows = [test.before]
        for method in methods:
            learnt = learn_method(
                editor, method, train, KNOWN[name].closest, recipe, options, bank=words, phrase_options=phrases
            )
            edited = learnt.edit(test.before)
            scores = scorer.measure(test.before, edited, test.after, (train.before, train.after))
            # Methods that learn nothing have no loss.
            arms[method].append(scores | ({"train loss": learnt.loss} if learnt.loss == learnt.loss else {}))
            rows.append(edited)
        rows.append(test.after)
        write_image(place / f"{name}-before-{'-'.join(methods)}-after.png", contact_sheet(rows).movedim(0, -1).numpy())
    return {
        method: {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        | {
            f"{key} of {name}": row[key]
            for name, row in zip(effects, rows, strict=True)
            for key in ("psnr", "clip-dir")
        }
        for method, rows in arms.items()
    }


def taught(seed: int, _tier: str, place: Path) -> Measurement:
    """The embedded editor on edits that it has words for, of photographs and scenes that it has not seen."""
    import random

    import torch

    from instructbrush import ApplyOptions, Instruction, Scorer, edit_batch, load_editor
    from instructbrush.benchmark.comparison import contact_sheet
    from instructbrush.data.samplers import draw_edit
    from instructbrush.data.tasks import TESTED, bank
    from instructbrush.models.backbones import quiet_libraries
    from tenfold.images import write_image

    torch.set_num_threads(1)
    quiet_libraries()
    editor = load_editor(device="cpu")
    photos, scorer = bank(TESTED, editor.size), Scorer(editor.clip)
    examples = [draw_edit(random.Random(10_000 * seed + index), photos) for index in range(48)]
    before, after = (torch.stack([getattr(each, side) for each in examples]) for side in ("before", "after"))
    made = {"editor": [], "editor without instruction": []}
    for each in examples:
        for name, words in (("editor", each.instruction), ("editor without instruction", "")):
            instruction = Instruction.from_text(editor.pipe, words, **editor.about)
            made[name].append(edit_batch(editor.pipe, instruction, each.before[None], ApplyOptions(seed=seed)))
    pictures = {name: torch.cat(each) for name, each in made.items()} | {"copy": before}
    pictures["autoencoder alone"] = (
        editor.pipe.vae.decode(editor.pipe.vae.latents(after * 2 - 1))[0].clamp(-1, 1) / 2 + 0.5
    )
    rows = [before[:12], pictures["editor"][:12], after[:12]]
    write_image(place / "before-editor-after.png", contact_sheet(rows).movedim(0, -1).numpy())
    return {name: scorer.measure(before, each, after) for name, each in pictures.items()}


_STEP = """
import gc, json, sys
import torch
torch.set_num_threads(1)
from dataclasses import replace
from instructbrush import learn_instruction, learning_preset, load_editor, read_bank
from instructbrush.benchmark.baselines import recipe_of
from instructbrush.data.tasks import LEARNT, bank, draw_pairs
editor = load_editor(device="cpu")
pairs = draw_pairs("heat", 6, bank(LEARNT, editor.size), int(sys.argv[2]))
recipe, init = recipe_of(sys.argv[1], replace(learning_preset("small")[0], batch_size=24))
clip, words = editor.clip, read_bank(tiny=True)

def memory(line):
    with open("/proc/self/status") as status:
        return next(int(each.split()[1]) / 1024 for each in status if each.startswith(line))

learn_instruction(editor.pipe, pairs, replace(recipe, steps=1, batch_size=6), "make it dark", clip, words)
gc.collect()
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as mark:  # the high-water mark starts anew
    mark.write("5")
learnt = learn_instruction(editor.pipe, pairs, replace(recipe, steps=3), "make it dark", clip, words)
peak = memory("VmHWM")
path = sys.argv[3]
from pathlib import Path
learnt.save(Path(path))
print(json.dumps({"MiB above the start": peak - before, "KiB of the file": Path(path).stat().st_size / 1024}))
"""


def memory(seed: int, _tier: str, place: Path) -> Measurement:
    """Three updates on 24 rows, each method in a process of its own: peak memory, and size of the file."""
    arms = {}
    for method in ("kv", "kv-4", "kv-j5", "text-embed", "visii"):
        command = [sys.executable, "-c", _STEP, method, str(seed), str(place / f"{method}.safetensors")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        arms[method] = json.loads(done.stdout.splitlines()[-1])
        (place / f"{method}.safetensors").unlink()
    return arms


def measure_exactness(_seed: int, _tier: str, place: Path) -> Measurement:
    """An instruction before its first update against the prompt it comes from, and the size of its file."""
    import torch

    from instructbrush import Instruction, load_editor
    from instructbrush.models.backbones import quiet_libraries
    from instructbrush.models.instruction import encode_text

    quiet_libraries()
    pipe = load_editor(device="cpu").pipe
    pictures = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(5))

    def edited(text: torch.Tensor) -> torch.Tensor:
        null = encode_text(pipe, "")
        return pipe(
            image=pictures,
            prompt_embeds=text.expand(2, -1, -1),
            negative_prompt_embeds=null.expand(2, -1, -1),
            generator=torch.Generator().manual_seed(0),
            guidance_scale=3.0,
            image_guidance_scale=1.5,
            num_inference_steps=2,
            output_type="latent",
        ).images

    text = encode_text(pipe, "make it a watercolor")
    expected = edited(text)
    instruction = Instruction.from_text(pipe, "make it a watercolor", 4, 5)
    with instruction.attach(pipe):
        difference = (edited(text) - expected).abs().max()
    instruction.save(place / "instruction.safetensors")
    return {
        "untrained instruction": {
            "difference": float(difference),
            "KiB": (place / "instruction.safetensors").stat().st_size / 1024,
        }
    }


EXPERIMENTS = (
    Experiment(
        "exactness",
        "The embedded editor with a prompt, and with the same prompt as keys and values of its attention.",
        {"smoke": 1},
        measure_exactness,
        {"untrained instruction": "the instruction before its first update"},
        {"difference": "largest difference of latents from the prompt's", "KiB": "size of its file (KiB)"},
    ),
    Experiment(
        "quick-look",
        "One edit without a name, learnt from six pairs in 10 updates on the embedded editor; other photographs to test.",
        {"smoke": 1},
        quick,
        WORDS,
        METRICS,
    ),
    Experiment(
        "unnamed-edits",
        "Four edits without a name (three of photographs, one of drawn objects), each from six pairs in 80 updates; eight test pictures.",
        {"small": 5},
        unnamed,
        WORDS,
        METRICS,
    ),
    Experiment(
        "taught-edits",
        "The embedded editor told in its own words to edit 48 photographs and scenes that it has not seen.",
        {"small": 5},
        taught,
        WORDS,
        METRICS,
    ),
    Experiment(
        "step-memory",
        "Peak memory of three updates on 24 rows of the embedded editor, and the size of the instruction file.",
        {"small": 2},
        memory,
        WORDS,
        METRICS,
    ),
)

CLAIMS = (
    claim(
        "instructbrush/starts-as-its-prompt",
        "Before the first update an instruction edits as the prompt it comes from, to the bit.",
        at_most("difference", "untrained instruction", 0.0),
        experiment="exactness",
        source="paper §4.1",
        deterministic=True,
    ),
    claim(
        "instructbrush/small-file",
        "An instruction of four tokens and five time partitions for the embedded editor is a file below 64 KiB.",
        at_most("KiB", "untrained instruction", 64),
        experiment="exactness",
        source="our README",
        deterministic=True,
    ),
    claim(
        "instructbrush/quick-look-psnr",
        "Even after 10 updates keys and values edit unseen pictures better than the text embedding (PSNR).",
        higher("psnr", "kv", than="text-embed"),
        experiment="quick-look",
        source="the paper's ablation, as third parties report it: +1.1 dB",
        remark="One seed of a few seconds; the small tier is the measurement",
    ),
    claim(
        "instructbrush/kv-over-text-direction",
        "Keys and values go more in the direction of the edit than the text embedding with the same loss, start and steps.",
        higher("clip-dir", "kv", than="text-embed"),
        experiment="unnamed-edits",
        source="the paper's ablation, as third parties report it: +0.03",
    ),
    claim(
        "instructbrush/kv-over-text-psnr",
        "Keys and values come nearer to the wanted picture than the text embedding (PSNR).",
        higher("psnr", "kv", than="text-embed"),
        experiment="unnamed-edits",
        source="the paper's ablation, as third parties report it: +1.1 dB",
    ),
    claim(
        "instructbrush/kv-fits-better",
        "Keys and values reach a lower training loss than the text embedding in the same number of steps.",
        lower("train loss", "kv", than="text-embed"),
        experiment="unnamed-edits",
        source="method: the keys and values contain what the text can express",
    ),
    *(
        claim(
            f"instructbrush/kv-over-{name}-{metric}",
            f"Keys and values beat {words} ({'direction' if metric == 'clip-dir' else metric.upper()}).",
            higher(metric, "kv", than=rival),
            experiment="unnamed-edits",
            source="abstract; tables of the revised text",
        )
        for rival, name, words in (
            ("visii", "visii", "Visii (its guided loss and CLIP term)"),
            ("textual-inversion", "textual-inversion", "Textual Inversion"),
            ("text", "nearest-words", "the nearest words"),
        )
        for metric in ("clip-dir", "psnr")
    ),
    claim(
        "instructbrush/kv-ssim-over-text",
        "Keys and values keep more of the wanted structure than the text embedding (SSIM).",
        higher("ssim", "kv", than="text-embed"),
        experiment="unnamed-edits",
        source="the paper's ablation reports LPIPS .139 against .156; LPIPS needs weights that are not here",
    ),
    claim(
        "instructbrush/initialisation-helps",
        "Starting from the words that the edit adds and removes gives a higher CLIP similarity than starting from nothing.",
        higher("clip-i", "kv", than="kv-no-init"),
        experiment="unnamed-edits",
        source="the paper's ablation, as third parties report it: .737 against .727",
        remark="The embedded CLIP finds few fitting words for edits without a name",
    ),
    claim(
        "instructbrush/one-partition-psnr",
        "Without time partitions PSNR is higher.",
        higher("psnr", "kv", than="kv-j5"),
        experiment="unnamed-edits",
        source="the paper's ablation, as third parties report it",
    ),
    claim(
        "instructbrush/partitions-direction",
        "With five time partitions the direction is better.",
        higher("clip-dir", "kv-j5", than="kv"),
        experiment="unnamed-edits",
        source="the paper's ablation, as third parties report it",
        remark="At equal steps each partition gets a fifth of the updates",
    ),
    claim(
        "instructbrush/four-tokens-are-worse",
        "Replacing all tokens gives a higher PSNR than replacing four.",
        higher("psnr", "kv", than="kv-4"),
        experiment="unnamed-edits",
        source="our README",
    ),
    claim(
        "instructbrush/colour-map-wins-on-tone",
        "On a pure change of tone a fitted colour map beats keys and values (PSNR).",
        higher("psnr of heat", "affine-color", than="kv"),
        experiment="unnamed-edits",
        source="our README, limits",
    ),
    claim(
        "instructbrush/kv-over-colour-map-on-objects",
        "On a change of one object keys and values beat a fitted colour map (direction).",
        higher("clip-dir of pink", "kv", than="affine-color"),
        experiment="unnamed-edits",
        source="our README",
    ),
    claim(
        "instructbrush/editor-follows-words",
        "The embedded editor comes nearer to the wanted picture than the unchanged picture does, by 2 dB.",
        higher("psnr", "editor", than="copy", by=2.0),
        experiment="taught-edits",
        source="our README",
    ),
    claim(
        "instructbrush/less-memory-than-visii",
        "An update takes less memory than Visii's on the same pairs.",
        lower("MiB above the start", "kv", than="visii"),
        experiment="step-memory",
        source="our README",
    ),
    claim(
        "instructbrush/no-more-memory-than-text",
        "An update takes less memory than the text embedding's on the same pairs.",
        lower("MiB above the start", "kv", than="text-embed"),
        experiment="step-memory",
        source="our README",
    ),
)


def _updates(first: str, second: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Ten updates by two methods on the same pairs; both encode them first."""
    from dataclasses import replace

    from instructbrush import learn_instruction, learning_preset, load_editor
    from instructbrush.benchmark.baselines import recipe_of
    from instructbrush.data.tasks import LEARNT, bank, draw_pairs

    editor = load_editor(device="cpu")
    pairs = draw_pairs("heat", 6, bank(LEARNT, editor.size), 0)
    clip, base = editor.clip, replace(learning_preset("small")[0], steps=10)

    def run(method: str) -> Callable[[], object]:
        recipe, _ = recipe_of(method, base)
        return lambda: learn_instruction(editor.pipe, pairs, recipe, "make it dark", clip)

    return run(first), run(second)


def against_visii() -> tuple[Callable[[], object], Callable[[], object]]:
    """Keys and values with the plain loss, against Visii's loss through guidance."""
    return _updates("kv", "visii")


def against_text() -> tuple[Callable[[], object], Callable[[], object]]:
    """Keys and values against the text embedding, the same loss."""
    return _updates("kv", "text-embed")


def batched_editing() -> tuple[Callable[[], object], Callable[[], object]]:
    """Eight pictures at once, against one after the other."""
    import torch

    from instructbrush import ApplyOptions, Instruction, edit_batch, load_editor

    editor = load_editor(device="cpu")
    instruction = Instruction.from_text(editor.pipe, "make it dark", **editor.about)
    images = torch.rand(8, 3, editor.size, editor.size, generator=torch.Generator().manual_seed(0))

    def theirs() -> object:
        return [edit_batch(editor.pipe, instruction, each[None], ApplyOptions(), at) for at, each in enumerate(images)]

    return lambda: edit_batch(editor.pipe, instruction, images, ApplyOptions()), theirs


SPEEDS = (
    Speed(
        "instructbrush/step-against-visii",
        "Ten updates on batches of six pairs: keys and values with the plain loss, against Visii's loss through three-way guidance",
        against_visii,
        target=2.0,
        repeats=5,
        unit="ten updates",
    ),
    Speed(
        "instructbrush/step-against-text-embedding",
        "Ten updates on batches of six pairs: keys and values, against the text embedding with the same loss",
        against_text,
        target=0.9,
        repeats=5,
        unit="ten updates",
    ),
    Speed(
        "instructbrush/batched-editing",
        "Eight pictures edited in one batch, against one after the other",
        batched_editing,
        target=1.2,
        repeats=5,
        unit="eight pictures",
    ),
)

SUITE = Suite(
    "instructbrush",
    "An edit shown by a few before/after pairs is learnt as keys and values of the editor's attention, nearer than any words or text embedding.",
    experiments=EXPERIMENTS,
    claims=CLAIMS,
    speeds=SPEEDS,
)
"""Everything that `reproduce` runs for instructbrush."""
