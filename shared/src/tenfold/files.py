"""Writing files and folders so that nobody ever meets half of one, and nothing is lost."""

import errno
import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from tenfold.errors import UserError, WriteError

# What a disk, a quota, a file system or its mode can answer to a write.
_WRITE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
)
_TEMPORARY = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-\w+")
_swept: set[Path] = set()


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary file beside `path` that takes its place when the block ends well, and vanishes when it does not.

    The temporary name keeps the suffix, so that writers which choose a format by suffix still do. Missing parent
    folders are made, and taken back when the block fails. Temporary files that a killed process left in the same folder
    are removed.

    Args:
        path: the file to write.

    Raises:
        UserError: `path` is a folder.
        WriteError: the folder cannot be written, or the disk is full; what was there is kept.
    """
    target = Path(path)
    with _atomic(target) as (folder, prefix):
        if target.is_dir():
            raise UserError(f"{target}: is a folder; name a file to write")
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=target.suffix[-40:], dir=folder)
        os.close(handle)
        temporary = Path(name)
        try:
            with write_errors(target, temporary):
                yield temporary
                # mkstemp makes private files; what a person asked for gets the usual mode.
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Generator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Args:
        path: the folder to write. An empty one that exists is replaced; any other is refused.

    Raises:
        UserError: something is at `path` already.
        WriteError: the place cannot be written, or the disk is full.
    """
    target = Path(path)
    with _atomic(target) as (parent, prefix):
        if target.is_dir() and any(target.iterdir()):
            raise UserError(f"{target}: is not empty; choose another folder")
        if target.exists() and not target.is_dir():
            raise UserError(f"{target}: is a file; choose a folder")
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            with write_errors(target, temporary):
                yield temporary
                temporary.chmod(0o777 & ~_umask())
                if target.is_dir():
                    target.rmdir()
                temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _atomic(target: Path) -> Generator[tuple[Path, str]]:
    """The folder to write in and the prefix of temporary names; folders made for a block that fails are taken back."""
    made = _make_folders(target)
    try:
        remove_stale(target.parent)
        yield target.parent, f".{target.stem[:60]}.tmp-{_host()}-{os.getpid()}-"
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _make_folders(target: Path) -> list[Path]:
    """Make the folders above `target`; those that were missing, the deepest first."""
    missing = []
    try:
        with suppress(FileNotFoundError):
            target.lstat()  # a name that is too long is refused here, before any work
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            return missing
    except OSError as error:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise WriteError(f"{target}: cannot write here ({error.strerror or error}); choose another place") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a place that cannot be written before long work starts; leaves nothing behind.

    Args:
        path: the file or folder that will be written.

    Raises:
        WriteError: it cannot.
    """
    for folder in _make_folders(Path(path)):
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def write_errors(target: Path, temporary: Path | None = None) -> Generator[None]:
    """Turn a full disk, a quota or a lost right while `target` is written into one line.

    Args:
        target: what is being written.
        temporary: where it is written meanwhile: errors that name another file pass.

    Raises:
        WriteError: names the file, the reason, and says that what was there is kept.
    """
    try:
        yield
    except OSError as error:
        ours = error.filename is None or Path(os.fsdecode(error.filename)) in (target, temporary)
        if not ours or error.errno not in _WRITE_ERRORS:
            raise
        raise WriteError(_cannot_write(target, error.strerror or str(error))) from error
    except Exception as error:
        # safetensors raises its own class, which is no OSError; it is named, not imported: most callers never load it.
        if type(error).__name__ != "SafetensorError" or "I/O" not in str(error):
            raise
        raise WriteError(_cannot_write(target, str(error).split("I/O error: ")[-1])) from error


def _cannot_write(target: Path, reason: str) -> str:
    return f"{target}: cannot write ({reason}); what was there before is kept"


def remove_stale(folder: Path, recursive: bool = False) -> None:
    """Remove temporary files and folders that dead processes of this machine left in `folder`, once in a process's life.

    Args:
        folder: where to look.
        recursive: below it too.
    """
    folder = folder.absolute()
    if folder in _swept and not recursive:
        return
    _swept.add(folder)
    for entry in folder.rglob("*.tmp-*") if recursive else folder.glob("*.tmp-*"):
        found = _TEMPORARY.search(entry.name)
        if found and found["host"] == _host() and not _is_alive(int(found["process"])):
            with suppress(OSError):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _is_alive(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process)


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
