"""The demo: two edits without a name are learnt from four pairs each and applied to pictures the model has not seen."""

import warnings
from pathlib import Path

import torch

from instructbrush.benchmark.baselines import learn_method
from instructbrush.benchmark.comparison import contact_sheet
from instructbrush.config import learning_preset
from instructbrush.data.tasks import EFFECTS, LEARNT, TESTED, bank, draw_pairs
from instructbrush.evaluation.metrics import Scorer
from instructbrush.method.sensitivity import read_bank
from instructbrush.models.backbones import load_editor
from instructbrush.pipeline.inference import ApplyOptions
from tenfold.files import check_writable
from tenfold.images import write_image

SHOWN = ("heat", "pink")
METHODS = ("copy", "text", "text-embed", "kv")
STEPS = 80


def demo(out: Path, seed: int = 0) -> dict[str, dict[str, float]]:
    """Write pictures and instruction files; returns mean scores of each method over the effects.

    Args:
        out: folder.
        seed: of the pairs and of learning.
    """
    check_writable(out / "overview.png")
    editor = load_editor(device="cpu")
    config, phrase_options = learning_preset("small", seed=seed, steps=STEPS)
    scorer, scores = Scorer(editor.clip), {name: [] for name in METHODS}
    options, words = ApplyOptions(seed=seed, batch_size=6), read_bank(tiny=True)
    sheets = []
    for name in SHOWN:
        train = draw_pairs(name, 4, bank(LEARNT, editor.size), 2 * seed)
        test = draw_pairs(name, 6, bank(TESTED, editor.size), 2 * seed + 1)
        rows = [test.before]
        for method in METHODS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                learnt = learn_method(
                    editor,
                    method,
                    train,
                    EFFECTS[name].closest,
                    config,
                    options,
                    bank=words,
                    phrase_options=phrase_options,
                )
            edited = learnt.edit(test.before)
            scores[method].append(scorer.measure(test.before, edited, test.after))
            if method == "kv" and learnt.instruction is not None:
                learnt.instruction.save(out / f"{name}.safetensors")
            if method != "copy":
                rows.append(edited)
        rows.append(test.after)
        examples = contact_sheet([train.before, train.after])
        write_image(out / f"{name}-learnt-from.png", examples.permute(1, 2, 0).numpy())
        sheets.append(contact_sheet(rows))
        write_image(out / f"{name}.png", sheets[-1].permute(1, 2, 0).numpy())
    write_image(out / "overview.png", torch.cat(sheets, dim=2).permute(1, 2, 0).numpy())
    return {
        method: {key: sum(row[key] for row in each) / len(each) for key in each[0]} for method, each in scores.items()
    }
