"""Running the methods over a benchmark folder, and the report: means over effects with bootstrap intervals (paper §5, tables)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instructbrush.benchmark.baselines import METHODS, learn_method
from instructbrush.data.layouts import TopBench
from instructbrush.evaluation.metrics import Scorer
from instructbrush.method.sensitivity import PhraseOptions
from instructbrush.models.backbones import Editor
from instructbrush.pipeline.inference import ApplyOptions
from instructbrush.training.learner import LearnConfig
from tenfold.errors import UserError
from tenfold.images import write_image
from tenfold.runs import RunFolder, track

Rows = list[dict[str, Any]]


def run_bench(
    editor: Editor,
    bench: TopBench,
    methods: Sequence[str],
    config: LearnConfig,
    options: ApplyOptions,
    scorer: Scorer,
    folder: RunFolder,
    *,
    bank: tuple[str, ...] | None = None,
    phrase_options: PhraseOptions | None = None,
) -> Rows:
    """Learn and score each method on each effect; what the run folder has already is not done again.

    Args:
        editor: the frozen editor.
        bench: the effects.
        methods: names in METHODS.
        config: recipe of the learnt methods.
        options: how pictures are edited.
        scorer: the metrics.
        folder: where scores, instructions and pictures go.
        bank: phrases of the initialisation.
        phrase_options: of the choice.
    """
    if unknown := [each for each in methods if each not in METHODS]:
        raise UserError(f"--method {unknown[0]}: there are {', '.join(METHODS)}")
    folder.rewind(folder.last_step())  # a last line that was cut short would swallow the next one
    done = {(line["effect"], line["method"]) for line in scored(folder)}
    jobs = [(effect, method) for effect in bench.effects for method in methods if (effect.name, method) not in done]
    for effect, method in track(jobs, "benchmark"):
        train, test = (bench.pairs(effect, split, editor.size) for split in ("train", "test"))
        learnt = learn_method(
            editor, method, train, effect.instruction, config, options, bank=bank, phrase_options=phrase_options
        )
        edited = learnt.edit(test.before)
        scores = scorer.measure(test.before, edited, test.after, (train.before, train.after))
        if learnt.instruction is not None and learnt.instruction.about.train:
            learnt.instruction.save(folder.path / "instructions" / f"{effect.name}-{method}.safetensors")
        sheet = contact_sheet([test.before, edited, test.after])
        write_image(folder.path / "pictures" / f"{effect.name}-{method}.png", sheet.permute(1, 2, 0).numpy())
        folder.log(
            step=len(folder.lines()) + 1,
            effect=effect.name,
            group=effect.group,
            method=method,
            train_loss=learnt.loss,
            **scores,
        )
    return scored(folder)


def scored(folder: RunFolder) -> Rows:
    """The lines of a benchmark's log.

    Raises:
        UserError: one that names no method or group of an effect, or has other scores than numbers.
    """
    rows = [line for line in folder.lines() if "effect" in line]
    for row in rows:
        words = all(isinstance(row.get(key), str) for key in ("effect", "group", "method"))
        numbers = (value for key, value in row.items() if key not in ("effect", "group", "method"))
        if not words or not all(value is None or isinstance(value, int | float) for value in numbers):
            raise UserError(f"{folder.path / 'metrics.jsonl'}: is no log of the benchmark ({row})")
    return rows


def contact_sheet(rows: Sequence[Tensor], enlarge: int | None = None, gap: int = 2) -> Tensor:
    """Rows of pictures as one picture, (3, h, w), white between them.

    Args:
        rows: batches of pictures of one size in [0, 1].
        enlarge: whole factor; by default what brings a picture to about 96 pixels.
        gap: white pixels between pictures, before enlarging.
    """
    side = rows[0].shape[-1]
    factor = enlarge or max(1, round(96 / side))
    framed = [torch.nn.functional.pad(each, (gap // 2,) * 4, value=1.0) for each in rows]
    whole = torch.cat([torch.cat(list(row), dim=2) for row in framed], dim=1)
    return whole.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def summarise(rows: Rows, seed: int = 0, draws: int = 2000) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Group to method to metric to [mean over effects, lower and upper end of a 95 % bootstrap interval over effects].

    Args:
        rows: from `run_bench`.
        seed: of the bootstrap.
        draws: of the bootstrap.
    """
    if not rows:
        raise UserError("nothing has been scored yet")
    metrics = [key for key, value in rows[0].items() if isinstance(value, float) and key != "train_loss"]
    groups = {"all": {"global", "local"}, "global": {"global"}, "local": {"local"}}
    out: dict[str, dict[str, dict[str, list[float]]]] = {}
    for group, members in groups.items():
        chosen = [row for row in rows if row["group"] in members]
        for method in dict.fromkeys(row["method"] for row in chosen):
            mine = [row for row in chosen if row["method"] == method]
            cells = {name: _interval([row.get(name) for row in mine], seed, draws) for name in metrics}
            out.setdefault(group, {})[method] = cells
    return out


def _interval(values: Sequence[float | None], seed: int, draws: int) -> list[float]:
    data = np.array([each for each in values if each is not None], dtype=np.float64)
    if not data.size:
        return [float("nan")] * 3
    picked = np.random.default_rng(seed).integers(0, data.size, (draws, data.size))
    low, high = np.quantile(data[picked].mean(1), [0.025, 0.975])
    return [float(data.mean()), float(low), float(high)]


def read_rows(path: Path) -> Rows:
    """The scores of a benchmark run.

    Raises:
        UserError: no such run.
    """
    if not (path / "config.toml").is_file():
        raise UserError(f"{path}: no run of the benchmark")
    return scored(RunFolder(path))


def as_json(summary: dict[str, Any]) -> str:
    """For files."""
    return json.dumps(summary, indent=2) + "\n"
