"""A comparison as a run folder: table, curves, pictures; a method that is done is not run again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from tenfold.data import embedded_pictures, to_tensor
from tenfold.errors import UserError
from tenfold.files import write_text
from tenfold.images import write_image
from tenfold.runs import RunFolder, pick_device, unlock_run
from weatherkr.benchmark.comparison import Outcome, check_methods, check_tasks, compare, comparison_rows
from weatherkr.config import TrainConfig
from weatherkr.data.datasets import SyntheticPairs, TensorPairs, centre_crop
from weatherkr.data.randomness import generator
from weatherkr.data.tasks import Task
from weatherkr.data.weather import degrade
from weatherkr.evaluation.figures import curves_svg
from weatherkr.evaluation.image_grid import stacked, strip

_HELD_OUT = ("chelsea", "china", "rocket")
_SIDE = 192


@dataclass(frozen=True)
class ComparisonRecord(TrainConfig):
    """What a comparison's folder says it holds.

    Attributes:
        task: names of the tasks.
        methods: what was compared.
    """

    task: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()


def photograph_tasks(kinds: Sequence[str] = ("haze", "rain", "snow"), seed: int = 0) -> list[Task]:
    """Tasks on the photographs that ship with scikit-image and scikit-learn: six to learn from, windows of three to judge by."""
    found = embedded_pictures()
    learnt = [path for name, path in found.items() if name not in _HELD_OUT]
    clean = torch.stack([centre_crop(to_tensor(found[name]), _SIDE, _SIDE) for name in _HELD_OUT])
    return [
        Task(
            kind,
            SyntheticPairs(learnt, kind, seed=seed),
            TensorPairs(degrade(clean, kind, generator(seed, "held out", kind)), clean),
        )
        for kind in kinds
    ]


def compare_in_folder(
    tasks: Sequence[Task] | None,
    methods: Sequence[str],
    config: TrainConfig,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
) -> list[list[str]]:
    """Compare methods and write `comparison.md`, `curves.svg`, `pictures/`, `result.json`.

    Args:
        tasks: None takes haze, rain and snow on embedded photographs.
        methods: see `weatherkr.comparing.compare`.
        config: the recipe.
        out: run folder.
        device: to compute on.
        resume: take up the comparison in `out`; a finished one is read again.

    Returns:
        The table, its first row the headings.
    """
    if not methods:
        raise UserError("nothing to compare: name at least one --method")
    check_methods(methods)
    where = pick_device(device)
    tasks = photograph_tasks(seed=config.seed) if tasks is None else tasks
    check_tasks(tasks)
    record = ComparisonRecord(**asdict(config), task=tuple(each.name for each in tasks), methods=tuple(methods))
    folder = RunFolder.create(out, record, resume)
    if folder.is_finished:
        unlock_run(out)
        return _table(folder)

    def done(name: str, outcome: Outcome) -> None:
        scores = {f"psnr_{task}": score.psnr for task, score in outcome.final.items()}
        folder.log(method=name, average=outcome.average, forgetting=outcome.forgetting, **scores)

    outcomes = compare(tasks, methods, config, where, done)
    rows = comparison_rows(outcomes)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|" + "---|" * len(rows[0])
    write_text(
        out / "comparison.md", "\n".join(["PSNR in dB, protocol official", "", lines[0], rule, *lines[1:]]) + "\n"
    )
    reports = {name: outcome.report for name, outcome in outcomes.items() if outcome.report is not None}
    if reports:
        write_text(out / "curves.svg", curves_svg(reports))
    for task in tasks:
        write_image(out / "pictures" / f"{task.name}.png", _picture(task, outcomes))
    folder.finish({"table": rows, "reports": {name: report.to_dict() for name, report in reports.items()}})
    return rows


def _table(folder: RunFolder) -> list[list[str]]:
    """The table of a finished comparison.

    Raises:
        UserError: its result is not what a comparison writes.
    """
    table = folder.result().get("table")
    is_table = isinstance(table, list) and all(isinstance(row, list) for row in table)
    if not is_table or not table or not all(isinstance(cell, str) for row in table for cell in row):
        raise UserError(f"{folder.path / 'result.json'}: holds no table; it is damaged")
    if any(len(row) != len(table[0]) for row in table):
        raise UserError(f"{folder.path / 'result.json'}: the rows of its table differ in length; it is damaged")
    return table


@torch.inference_mode()
def _picture(task: Task, outcomes: dict[str, Outcome]) -> np.ndarray:
    """Degraded, restored by each method, clean, in a row; the first validation picture, at most 256 pixels a side."""
    assert task.val is not None
    degraded, clean = (each[:, :256, :256] for each in task.val.pair(0))
    restored = []
    for outcome in outcomes.values():
        net = outcome.nets[task.name].eval()
        restored.append(net.restore(degraded[None].to(next(net.parameters()).device))[0])
    return stacked([strip([degraded, *restored, clean])])
