"""A run is a folder: its configuration, its log, its result, its checkpoints. And what every run begins with."""

import atexit
import contextlib
import dataclasses
import importlib.util
import json
import math
import random
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tenfold.config import to_toml
from tenfold.errors import RunLocked, UserError
from tenfold.files import atomic_path, remove_stale, write_errors, write_text
from tenfold.reading import parse_toml, read_json_object, read_text, read_toml

if TYPE_CHECKING:
    import filelock
    import torch

Item = TypeVar("Item")

LOCK = "run.lock"
_held: "dict[Path, filelock.SoftFileLock]" = {}


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # libraries that draw from the global generator are seeded too
    torch.manual_seed(seed)


def pick_device(name: str = "auto") -> "torch.device":
    """The device to compute on.

    Args:
        name: `auto` (CUDA, else Apple's MPS, else the CPU) or a torch device name such as `cuda:1`.

    Raises:
        UserError: no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not available here ({reason}); use auto or cpu") from None
    return device


def has_fast_bf16(device: "torch.device") -> bool:
    """Whether bfloat16 arithmetic is done in hardware (AMX or AVX512-BF16 on a CPU, Ampere or later on CUDA)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def autocast(device: "torch.device") -> "contextlib.AbstractContextManager[Any]":
    """bf16 autocast where the hardware has it, otherwise nothing."""
    import torch

    return torch.autocast(device.type, torch.bfloat16) if has_fast_bf16(device) else contextlib.nullcontext()


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar on the terminal: count, rate, time left. Silent when nobody is watching.

    Args:
        items: what to iterate over.
        description: what is being done, in a word or two.
        total: the number of items where `items` has no length.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        count = len(items) if total is None and hasattr(items, "__len__") else total  # ty: ignore[invalid-argument-type]
        task = progress.add_task(description, total=count, rate="")
        for item in items:
            yield item
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")


@dataclasses.dataclass
class RunFolder:
    """The folder of one run; make it with `create`.

    `config.toml` holds the resolved configuration, `metrics.jsonl` one JSON object a line, `result.json` what came out
    (its presence marks a finished run), `checkpoints/` what a resumed run starts from, `run.lock` which process works on
    it (while one does).

    Attributes:
        path: the folder.
    """

    path: Path
    _board: Any = dataclasses.field(default=None, repr=False)

    @classmethod
    def create(cls, path: str | Path, config: Any, resume: bool = False) -> "RunFolder":
        """Start a run, or take up one that was interrupted; no other process can meanwhile, until `finish` or the process ends.

        Temporary files of killed processes are removed.

        Args:
            path: the folder, made if missing.
            config: the resolved configuration, a dataclass.
            resume: continue the run that is there, if there is one.

        Raises:
            UserError: the folder holds a run and `resume` is off, holds one with another configuration, holds other
                things, or cannot be written.
            RunLocked: another living process works on it.
        """
        path = Path(path)
        recorded = path / "config.toml"
        if recorded.exists():
            if not resume:
                raise UserError(f"{path}: already holds a run; continue it with --resume or choose another --out")
            _check_same_config(recorded, config)
        elif path.is_dir() and any(path.iterdir()):
            raise UserError(f"{path}: is not empty and holds no run; choose another --out")
        elif path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file; choose a folder for --out")
        else:
            write_text(recorded, to_toml(config))
        lock_run(path)
        with write_errors(path):
            (path / "checkpoints").mkdir(exist_ok=True)
        remove_stale(path, recursive=True)
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def is_finished(self) -> bool:
        """Whether the result has been written."""
        return (self.path / "result.json").exists()

    def log(self, **scalars: float | int | str | list[float] | None) -> None:
        """Append one line to `metrics.jsonl` (and its single numbers to TensorBoard where that is installed); numbers that are not finite become null."""
        line = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in scalars.items()
        }
        path = self.path / "metrics.jsonl"
        with write_errors(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        with write_errors(self.path / "tensorboard"):
            self._log_to_tensorboard(line)

    def _log_to_tensorboard(self, line: dict[str, Any]) -> None:
        if self._board is None:
            if importlib.util.find_spec("tensorboard") is None:
                self._board = False
            else:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.path / "tensorboard"))
        if self._board:
            for key, value in line.items():
                if key != "step" and isinstance(value, int | float):
                    self._board.add_scalar(key, value, line.get("step"))

    def lines(self) -> list[dict[str, Any]]:
        """What has been logged so far. A last line cut short by a crash is passed over."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = []
        for text in read_text(path).splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step", 0), int | float):
                    lines.append(line)
        return lines

    def rewind(self, step: int) -> None:
        """Forget the lines logged after `step`: a resumed run logs them again, and the log reads as if nothing had happened."""
        kept = [line for line in self.lines() if line.get("step", 0) <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def last_step(self) -> int:
        """The last `step` that was logged, 0 for a new run."""
        return max((line.get("step", 0) for line in self.lines()), default=0)

    def finish(self, result: dict[str, Any]) -> None:
        """Write `result.json`, which marks the run as finished, and let other processes in."""
        if self._board:
            self._board.close()
        with atomic_path(self.path / "result.json") as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        unlock_run(self.path)

    def result(self) -> dict[str, Any]:
        """What came out of a finished run.

        Raises:
            UserError: the run is not finished, or its `result.json` is damaged.
        """
        if not self.is_finished:
            raise UserError(f"{self.path}: holds no finished run; continue it with --resume")
        return read_json_object(self.path / "result.json")


def lock_run(path: Path) -> None:
    """Keep other processes from working on a run folder; the lock of a dead process of this machine is taken over.

    The lock is this process's until `unlock_run` or its end; taking it twice is fine.

    Raises:
        RunLocked: another process holds it; the message names the process and its machine.
    """
    import filelock

    place = path.resolve()
    if place in _held:
        return
    lock = filelock.SoftFileLock(place / LOCK)
    try:
        with write_errors(path):
            lock.acquire(timeout=0.5, poll_interval=0.1)
    except filelock.Timeout:
        raise RunLocked(
            f"{path}: {_lock_holder(place / LOCK)} works on this run; wait for it, end it, or choose another --out"
        ) from None
    if not _held:
        atexit.register(_unlock_all)
    _held[place] = lock


def unlock_run(path: Path) -> None:
    """Let other processes work on a run folder again; nothing happens when this process does not hold it."""
    lock = _held.pop(path.resolve(), None)
    if lock is not None:
        with contextlib.suppress(OSError):
            lock.release()


def _unlock_all() -> None:
    for path in list(_held):
        unlock_run(path)


def _lock_holder(lock: Path) -> str:
    """The process and host that the first two lines of a lock name."""
    lines = (
        [*lock.read_text(encoding="utf-8", errors="replace").splitlines(), "?", "?"] if lock.exists() else ["?", "?"]
    )
    return f"process {lines[0]} on {lines[1]}"


@contextlib.contextmanager
def refused_without_trace(path: Path) -> Generator[None]:
    """Take back the run folder that a refused start has just made, if nothing but its configuration is in it.

    Args:
        path: of the run. One that held anything before, were it only an empty folder, is left as it was.

    Raises:
        UserError, OSError: those of the block, passed on.
    """
    path = path.absolute()
    made = [each for each in (path, *path.parents) if not each.exists()]
    was_bare = path in made or (path.is_dir() and not any(path.iterdir()))
    try:
        yield
    except RunLocked:
        raise  # what is there is another process's
    except (UserError, OSError):
        unlock_run(path)
        if was_bare and path.is_dir():
            _withdraw(path, made)
        raise
    finally:
        unlock_run(path)


def _withdraw(path: Path, made: list[Path]) -> None:
    files = [each for each in path.rglob("*") if not each.is_dir() or each.is_symlink()]
    log = path / "metrics.jsonl"
    if not set(files) <= {path / "config.toml", log} or (log.exists() and log.stat().st_size):
        return
    # Another process of the same run may be taking it back at the same time.
    with contextlib.suppress(OSError):
        for each in files:
            each.unlink(missing_ok=True)
        for folder in sorted((each for each in path.rglob("*") if each.is_dir()), reverse=True):
            folder.rmdir()
        for folder in made:
            folder.rmdir()


def _check_same_config(recorded: Path, config: Any) -> None:
    before, now = read_toml(recorded), parse_toml(to_toml(config), "configuration")
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        details = ", ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in changed)
        raise UserError(f"{recorded.parent}: cannot resume with another configuration ({details})")
