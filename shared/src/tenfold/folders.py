"""One rule for verbs that turn a file or a folder of files into others.

Go on past a file that cannot be read, name it, leave with exit code 3; never write over an input; two inputs never share an
output; what was refused leaves nothing behind.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from tenfold.errors import UserError, WriteError
from tenfold.files import check_writable
from tenfold.images import list_images

Result = TypeVar("Result")

EXIT_SOME_SKIPPED = 3


@dataclass(frozen=True)
class Job:
    """One file to work on.

    Attributes:
        source: what is read.
        target: what is written.
    """

    source: Path
    target: Path


@dataclass
class FolderReport(Generic[Result]):
    """What became of a folder.

    Attributes:
        results: what the work gave, by file, in order.
        skipped: files that could not be read, each with its reason in one line.
    """

    results: dict[Path, Result] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """3 when a file was skipped, else 0."""
        return EXIT_SOME_SKIPPED if self.skipped else 0

    def show_skipped(self, program: str) -> None:
        """Name the skipped files on stderr, one a line."""
        for reason in self.skipped:
            print(f"{program}: skipped: {reason}", file=sys.stderr)  # noqa: T201  # shown at the command line


def plan_outputs(
    source: Path,
    out: Path,
    *,
    suffix: str = "",
    endings: Collection[str] = (),
    ending: str = ".png",
    overwrite: bool = False,
) -> list[Job]:
    """Where each picture of `source` goes; refuses before anything is computed.

    Args:
        source: a picture, or a folder whose sub-folders are kept.
        out: for a picture a file (by its ending) or a folder; for a folder a folder.
        suffix: put before the ending of each new name.
        endings: those that may be written; a file with another one gets `ending`. Empty: all become `ending`.
        ending: of the results whose own ending cannot be written.
        overwrite: allow outputs that exist. An input is never one of them.

    Raises:
        UserError: nothing there, a place that cannot be written, an output that exists or is an input, or two inputs with one output.
    """
    check_writable(out)
    single = source.is_file()
    if not single and out.is_file():
        raise UserError(f"{out}: is a file; choose a folder for the results")
    to_file = single and not out.is_dir() and out.suffix.lower() in (endings or {ending})
    jobs = []
    for path in list_images(source):
        name = f"{path.stem}{suffix}{path.suffix if path.suffix.lower() in endings else ending}"
        below = Path(name) if single else path.relative_to(source).with_name(name)
        jobs.append(Job(path, out if to_file else out / below))
    check_jobs(jobs, overwrite)
    return jobs


def check_jobs(jobs: Sequence[Job], overwrite: bool = False) -> None:
    """Refuse outputs that are inputs, exist, or are shared.

    Args:
        jobs: what is to be done.
        overwrite: allow outputs that exist and are no input.

    Raises:
        UserError: names the first pair at fault.
    """
    inputs = {job.source.resolve() for job in jobs}
    owners: dict[Path, Path] = {}
    for job in jobs:
        place = job.target.resolve()
        if place in inputs:
            raise UserError(f"{job.target}: is an input and would be overwritten; choose another --out or a --suffix")
        if place in owners:
            raise UserError(f"{job.source} and {owners[place]}: both would become {job.target}")
        if job.target.exists() and not overwrite:
            raise UserError(f"{job.target}: exists; choose another --out, or --overwrite")
        owners[place] = job.source


def work_on_files(
    files: Iterable[Path], work: Callable[[Path], Result], *, alone: bool = False
) -> FolderReport[Result]:
    """Work on one file after another, passing over those that cannot be read.

    Args:
        files: what to work on (give `tenfold.runs.track(files, ...)` for a progress bar).
        work: raises `UserError` for a file that cannot be used.
        alone: the file was named by itself: its error is the answer.

    Raises:
        UserError: `alone`, or not one file could be used: the first reason.
        WriteError: a result could not be written: what was written before stays.
    """
    report: FolderReport[Result] = FolderReport()
    for path in files:
        try:
            report.results[path] = work(path)
        except UserError as error:
            if alone or isinstance(error, WriteError):
                raise
            report.skipped.append(" ".join(str(error).split()))
    if report.skipped and not report.results:
        others = f" (and {len(report.skipped) - 1} more)" if len(report.skipped) > 1 else ""
        raise UserError(f"no file could be used: {report.skipped[0]}{others}")
    return report
