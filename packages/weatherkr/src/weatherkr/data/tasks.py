"""A task: a weather by name, with pictures to learn it from and to judge it by. And how a command line writes one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from tenfold.errors import UserError
from tenfold.images import list_images
from weatherkr.data.datasets import FolderPairs, PairSet, SyntheticPairs
from weatherkr.data.layouts import LAYOUTS, csv_files, folder_files, layout_files
from weatherkr.data.weather import KINDS
from weatherkr.data.weather.config import Setting

_NAME = re.compile(r"\w[\w .+-]{0,63}")

SYNTAX = "NAME=LAYOUT:PATH, such as haze=synth:photos, rain=pairs:rainy:clean, snow=snow100k:Snow100K/train"


@dataclass(frozen=True)
class Task:
    """A weather to learn.

    Attributes:
        name: what reports call it.
        train: what it is learnt from.
        val: what weights are chosen by; None keeps the last weights.
    """

    name: str
    train: PairSet
    val: PairSet | None = None


def parse_pairs(text: str, *, keep: bool = False, seed: int = 0, crop_to_fit: bool = False) -> tuple[str, PairSet]:
    """Read `NAME=LAYOUT:PATH[:PATH]`.

    Layouts: `pairs:DEGRADED:CLEAN`, `csv:FILE`, the keys of `LAYOUTS` with a folder, and `synth[-KIND][-shifted]:FOLDER[,FOLDER]`,
    which makes the weather on clean photographs; the kind is the task's name unless it is given.

    Args:
        text: as typed.
        keep: keep decoded pictures in memory.
        seed: of synthetic weather on whole pictures.
        crop_to_fit: where the sizes of a pair differ, take the middle of the larger.

    Raises:
        UserError: not of this form, or files that are not there or do not pair.
    """
    name, equals, source = text.partition("=")
    layout, colon, place = source.partition(":")
    if not (equals and colon and name and place):
        raise UserError(f"{text}: write a task as {SYNTAX}")
    if not _NAME.fullmatch(name):
        raise UserError(f"{text}: a task's name becomes a file name; use up to 64 letters, digits, spaces, . + - and _")
    if layout.startswith("synth"):
        kind, setting = _synthetic(name, layout)
        files = [path for folder in place.split(",") for path in list_images(folder)]
        return name, SyntheticPairs(files, kind, setting, seed, keep)
    fit = "crop" if crop_to_fit or (layout in LAYOUTS and LAYOUTS[layout].fit_crop) else "exact"
    if layout == "pairs":
        degraded, between, clean = place.partition(":")
        if not between:
            raise UserError(f"{text}: pairs needs two folders, pairs:DEGRADED:CLEAN")
        return name, FolderPairs(folder_files(Path(degraded), Path(clean)), fit, keep)
    if layout == "csv":
        return name, FolderPairs(csv_files(Path(place)), fit, keep)
    if layout in LAYOUTS:
        return name, FolderPairs(layout_files(layout, Path(place)), fit, keep)
    raise UserError(f"{text}: no layout {layout}; there are pairs, csv, synth, {', '.join(LAYOUTS)}")


def _synthetic(name: str, layout: str) -> tuple[str, Setting]:
    _, *options = layout.split("-")
    setting = options.pop() if options and options[-1] in get_args(Setting) else "standard"
    kind = options.pop() if options else name
    if options or kind not in KINDS:
        raise UserError(f"{name}={layout}: write synth-KIND with KIND one of {', '.join(KINDS)}, or call the task so")
    return kind, cast("Setting", setting)


def build_tasks(tasks: Sequence[str], validation: Sequence[str], *, seed: int, crop_to_fit: bool = False) -> list[Task]:
    """The tasks of a command line, in the order given.

    Args:
        tasks: what to learn, see `parse_pairs`.
        validation: of the same form and with the same names, any of them.
        seed: of synthetic weather on whole pictures.
        crop_to_fit: see `parse_pairs`.

    Raises:
        UserError: a name twice, or a validation set of no task.
    """
    val = dict(parse_pairs(text, keep=True, seed=seed + 1, crop_to_fit=crop_to_fit) for text in validation)
    built: dict[str, Task] = {}
    for text in tasks:
        name, train = parse_pairs(text, keep=True, seed=seed, crop_to_fit=crop_to_fit)
        if name in built:
            raise UserError(f"--task {text}: there are two tasks named {name}")
        built[name] = Task(name, train, val.get(name))
    if stray := sorted(val.keys() - built.keys()):
        raise UserError(f"--val {', '.join(stray)}: no such task")
    return list(built.values())
