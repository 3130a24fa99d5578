"""What the tests of all packages do: run a command line in this process, read golden vectors, read the blocks of a README."""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cyclopts import App


@dataclass(frozen=True)
class Answer:
    """What a command line answered.

    Attributes:
        code: exit code.
        out: what it printed.
        err: what it printed on stderr.
    """

    code: int
    out: str
    err: str


def run_command(app: "App", arguments: str | Sequence[str | os.PathLike[str]], cwd: Path | None = None) -> Answer:
    """Run a command line in this process: importing torch anew would cost seconds.

    Args:
        app: made by `tenfold.cli.create_app`.
        arguments: a list, or one line without the program's name.
        cwd: where to run it; here when None.
    """
    from tenfold.cli import run

    tokens = shlex.split(arguments) if isinstance(arguments, str) else [os.fspath(each) for each in arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    place = contextlib.chdir(cwd) if cwd is not None else contextlib.nullcontext()
    with place, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(app, tokens)
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0
    return Answer(code, out.getvalue(), err.getvalue())


def load_golden(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of `folder/NAME.npz` by name."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def code_blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a Markdown file, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
