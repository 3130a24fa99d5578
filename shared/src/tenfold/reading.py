"""Reading files that a stranger wrote: bounded in size and depth, typed, and every fault is one line that names the file.

Nothing here runs or unpickles what it reads. Weights are read by `tenfold.checkpoints`, pictures by `tenfold.images`,
archives by `tenfold.archives`.
"""

import csv
import io
import json
import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.errors import UserError

if TYPE_CHECKING:
    import numpy as np

TEXT_LIMIT = 256 * 2**20
"""Bytes of a text file: far above any index or manifest, far below what fills a memory."""

CONFIG_LIMIT = 2**20
"""Bytes of a configuration file."""

FIELD_LIMIT = 2**17
"""Characters of one field of a table."""


def read_bytes(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> bytes:
    """Read a whole file.

    Args:
        path: the file.
        limit: the most bytes it may have.

    Raises:
        UserError: missing, a folder, unreadable, or larger than `limit`.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error})") from None
    except ValueError as error:
        raise UserError(f"{str(path)!r}: is no file name ({error})") from None
    if len(content) > limit:
        raise UserError(f"{path}: is larger than {limit / 2**20:g} MiB, too large for what it should hold")
    return content


def read_text(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> str:
    """Read a UTF-8 text file, with or without a byte-order mark; see `read_bytes`.

    Raises:
        UserError: cannot be read, or is not UTF-8 text.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None


def parse_json(text: str, source: str | os.PathLike[str]) -> Any:
    """Parse JSON.

    Args:
        text: what to parse.
        source: what to call its origin in an error.

    Raises:
        UserError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{source}: is nested too deeply to be what it should be") from None
    except ValueError as error:
        raise UserError(f"{source}: is not valid JSON ({error})") from None


def read_json(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> Any:
    """Read a JSON file; see `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit), path)


def read_json_object(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        UserError: cannot be read, not JSON, or something else than an object.
    """
    found = read_json(path, limit)
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a JSON {_json_kind(found)}, expected an object {{...}}")
    return found


def _json_kind(value: Any) -> str:
    kinds = {list: "list", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return kinds.get(type(value), "value")


def parse_toml(text: str, source: str | os.PathLike[str]) -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: what to parse.
        source: what to call its origin in an error.

    Raises:
        UserError: not TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{source}: is nested too deeply to be a configuration") from None
    except ValueError as error:
        raise UserError(f"{source}: not valid TOML ({error})") from None


def read_toml(path: str | os.PathLike[str], limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """Read a TOML file; see `read_text` and `parse_toml`."""
    return parse_toml(read_text(path, limit), path)


def read_rows(
    path: str | os.PathLike[str], required: Sequence[str] = (), delimiter: str = ",", limit: int = TEXT_LIMIT
) -> list[dict[str, str]]:
    """Read a table with a header line.

    Args:
        path: a CSV file (or TSV, with another `delimiter`).
        required: columns that it must have.
        delimiter: between fields.
        limit: the most bytes of the file.

    Returns:
        One dictionary a row, with every column of the header; absent trailing fields are empty strings.

    Raises:
        UserError: cannot be read, no header, a required column missing, a NUL byte, a field too long or too many fields.
    """
    return [row for _, row in numbered_rows(path, required, delimiter, limit)]


def numbered_rows(
    path: str | os.PathLike[str], required: Sequence[str] = (), delimiter: str = ",", limit: int = TEXT_LIMIT
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with the number of the line where each ends, for errors that name it; see `read_rows`."""
    text = read_text(path, limit)
    if "\0" in text:
        raise UserError(f"{path}: holds NUL bytes; it is no text table")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
    try:
        missing = [name for name in required if name not in (reader.fieldnames or ())]
        if missing:
            has = ", ".join(map(str, reader.fieldnames or ())) or "none"
            raise UserError(
                f"{path}: needs the columns {', '.join(required)}; missing: {', '.join(missing)}; it has {has}"
            )
        for row in reader:
            if None in row:
                raise UserError(f"{path}:{reader.line_num}: has more fields than the header")
            if max(map(len, row.values()), default=0) > FIELD_LIMIT:
                raise UserError(f"{path}:{reader.line_num}: a field has more than {FIELD_LIMIT} characters")
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: is no table ({error})") from None


def read_array(path: str | os.PathLike[str], map_to_disk: bool = False) -> "np.ndarray":
    """Read one `.npy` file; nothing is unpickled.

    Args:
        path: the file.
        map_to_disk: leave the numbers on disk and read them when they are used.

    Raises:
        UserError: cannot be read, not an array, truncated, or one that holds Python objects.
    """
    import numpy as np

    try:
        found = np.load(path, mmap_mode="r" if map_to_disk else None, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or 'not an array file'})") from None
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        reason = "holds Python objects" if "pickle" in str(error) else "not a .npy array, or damaged"
        raise UserError(f"{path}: cannot read ({reason})") from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise UserError(f"{path}: is an archive of arrays; give one .npy array")
    return found
