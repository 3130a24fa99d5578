"""Reading archives that a stranger made: names that stay inside, sizes that fit in memory."""

import os
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tenfold.errors import UserError

MEMBER_LIMIT = 256 * 2**20
"""Bytes that one member may have when unpacked."""

MEMBERS_LIMIT = 10_000_000
"""Members that an archive may have."""


class ZipReader:
    """An open zip whose members are read one at a time, into memory, never onto the disk; make it with `open_zip`.

    Attributes:
        path: the archive.
        names: of its files, sorted; folders, absolute names and names with `..` are left out.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self.names = sorted(each.filename for each in archive.infolist() if _is_inside(each))

    def read(self, name: str) -> bytes:
        """The content of a member.

        Raises:
            UserError: encrypted, damaged, of an unknown compression, or larger than `MEMBER_LIMIT`.
        """
        try:
            # The declared size may lie: what is unpacked is bounded, not what is promised.
            with self._archive.open(name) as stream:
                content = stream.read(MEMBER_LIMIT + 1)
        except (
            zipfile.BadZipFile,
            OSError,
            RuntimeError,
            NotImplementedError,
            EOFError,
            zlib.error,
            KeyError,
        ) as error:
            raise UserError(f"{self.path}: {name}: cannot read ({error})") from None
        if len(content) > MEMBER_LIMIT:
            raise UserError(f"{self.path}: {name}: is larger than {MEMBER_LIMIT // 2**20} MiB")
        return content


def _is_inside(member: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    return not member.is_dir() and not name.is_absolute() and ".." not in name.parts


@contextmanager
def open_zip(path: str | os.PathLike[str]) -> Generator[ZipReader]:
    """Open a zip for reading.

    Raises:
        UserError: cannot be read, not a zip, or of more than `MEMBERS_LIMIT` members.
    """
    path = Path(path)
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error})") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: is not a zip, or damaged ({error})") from None
    with archive:
        if len(archive.infolist()) > MEMBERS_LIMIT:
            raise UserError(f"{path}: has more than {MEMBERS_LIMIT} members")
        yield ZipReader(path, archive)
