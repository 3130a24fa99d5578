"""Writing files so that nobody ever meets half of one."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tenfold.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary file beside `path` that takes its place when the block ends well, and vanishes when it does not.

    The temporary name keeps the suffix, so that writers which choose a format by suffix still do. Missing parent
    folders are made.

    Args:
        path: the file to write.

    Raises:
        UserError: the folder cannot be written, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file to write")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:80]}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise UserError(f"{target}: cannot write here ({error.strerror or error}); choose another place") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; what a person asked for gets the usual mode.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
