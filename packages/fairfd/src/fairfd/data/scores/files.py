"""Reading the columns of a score file: CSV, TSV or JSON lines.

Half a million rows take a second or two: fields are coded a few hundred rows at a time, and no row is kept.
"""

import csv
import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fairfd.data.scores.validation import Coded, Places, listed
from tenfold.errors import UserError
from tenfold.reading import parse_json

ROWS = Places("row", 1)
"""Rows of a file: the first one after the header is row 1; blank lines do not count."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}

# Small enough that Python's cyclic garbage collector is not set off by the row lists, which would double the time.
_CHUNK = 256


@dataclass(frozen=True)
class FileColumns:
    """Columns of a file.

    Attributes:
        names: every column of the file.
        texts: the wanted columns of text that the file has.
        numbers: the wanted columns of numbers that the file has.
        rows: number of rows.
    """

    names: tuple[str, ...]
    texts: Mapping[str, Coded]
    numbers: Mapping[str, Float[np.ndarray, " n"]]
    rows: int


def read_columns(path: Path, texts: Iterable[str], numbers: Iterable[str]) -> FileColumns:
    """Read some columns of a score file.

    Args:
        path: `.csv`, `.tsv` (UTF-8, with a header) or `.jsonl` (one object per line).
        texts: names of the columns of text to keep, where the file has them.
        numbers: names of the columns of numbers to keep, where the file has them.

    Raises:
        UserError: no such file, an unknown suffix, not UTF-8 text, a row with too many or too few fields, a value that is no
            number where one is wanted, or no rows.
    """
    suffix = path.suffix.lower()
    if suffix not in (*_DELIMITERS, ".jsonl"):
        raise UserError(f"{path}: a score file ends in .csv, .tsv or .jsonl")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            kept = {name: _Texts() for name in texts} | {name: _Numbers() for name in numbers}
            if suffix == ".jsonl":
                columns = _read_jsonl(path, lines, kept)
            else:
                columns = _read_csv(path, csv.reader(lines, delimiter=_DELIMITERS[suffix]), kept)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the scores as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read the scores ({error.strerror})") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error})") from error
    if not columns.rows:
        raise UserError(f"{path}: there are no rows")
    return columns


def require_columns(path: Path, columns: FileColumns, required: Sequence[str]) -> None:
    """Refuse a file without the required columns.

    Raises:
        UserError: naming those it lacks and those it has.
    """
    missing = [name for name in required if name not in columns.texts and name not in columns.numbers]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; it has {listed(columns.names, 12)}. "
            f"Rename the column, or say which one it is (columns={{'{missing[0]}': ...}})"
        )


class _Texts:
    """Codes names in the order in which they first appear."""

    def __init__(self) -> None:
        self.index: defaultdict[str, int] = defaultdict()
        self.index.default_factory = self.index.__len__
        self.codes = array("q")

    def extend(self, values: Iterable[str]) -> None:
        self.codes.extend(map(self.index.__getitem__, values))


class _Numbers:
    """Collects numbers and the places of what is none."""

    def __init__(self) -> None:
        self.values = array("d")
        self.wrong: list[int] = []

    def extend(self, values: Sequence[str]) -> None:
        before = len(self.values)
        try:
            self.values.extend(map(float, values))
        except ValueError:
            del self.values[before:]
            self.wrong += [before + place for place, text in enumerate(values) if not _is_number(text)]
            self.values.extend([0.0] * len(values))


def _collected(path: Path, names: Sequence[str], kept: Mapping[str, _Texts | _Numbers], rows: int) -> FileColumns:
    for name, column in kept.items():
        if isinstance(column, _Numbers) and column.wrong:
            wrong = np.zeros(rows, bool)
            wrong[column.wrong] = True
            raise UserError(f"{path}: {name}: not a number at {ROWS.name(wrong)}")
    texts = {
        name: Coded(tuple(column.index), np.array(column.codes, np.int64))
        for name, column in kept.items()
        if isinstance(column, _Texts)
    }
    numbers = {name: np.array(column.values) for name, column in kept.items() if isinstance(column, _Numbers)}
    return FileColumns(tuple(names), texts, numbers, rows)


def _read_csv(path: Path, reader: Iterator[list[str]], kept: Mapping[str, _Texts | _Numbers]) -> FileColumns:
    header = tuple(name.strip() for name in next(reader, []))
    if len(set(header)) < len(header):
        raise UserError(f"{path}: the header names a column twice")
    kept = {name: column for name, column in kept.items() if name in header}
    rows = 0
    filled = filter(None, reader)
    while chunk := list(islice(filled, _CHUNK)):
        _check_fields(path, chunk, len(header), rows)
        rows += len(chunk)
        columns = list(zip(*chunk, strict=True))
        for name, column in kept.items():
            column.extend(columns[header.index(name)])
    return _collected(path, header, kept, rows)


def _check_fields(path: Path, chunk: list[list[str]], fields: int, before: int) -> None:
    if set(map(len, chunk)) == {fields}:
        return
    number, row = next((number, row) for number, row in enumerate(chunk, 1) if len(row) != fields)
    raise UserError(f"{path}: row {before + number} has {len(row)} fields where the header has {fields}")


def _read_jsonl(path: Path, lines: Iterable[str], kept: Mapping[str, _Texts | _Numbers]) -> FileColumns:
    keys: dict[str, None] = {}
    rows = 0
    filled = filter(str.strip, lines)
    while chunk := list(islice(filled, _CHUNK)):
        objects = _objects(path, chunk, rows)
        rows += len(chunk)
        for row in objects:
            keys.update(dict.fromkeys(row))
        for name, column in kept.items():
            column.extend([_text(row.get(name)) for row in objects])
    # A key that no row has is a column that the file lacks.
    return _collected(path, tuple(keys), {name: column for name, column in kept.items() if name in keys}, rows)


def _objects(path: Path, lines: list[str], before: int) -> list[dict[str, Any]]:
    try:
        # One call for many lines reuses their keys.
        objects = json.loads(f"[{','.join(lines)}]")
    except (ValueError, RecursionError):
        objects = []
    if len(objects) != len(lines):
        objects = [_value(path, line, before + number) for number, line in enumerate(lines, 1)]
    wrong = [before + number for number, row in enumerate(objects, 1) if not isinstance(row, dict)]
    if wrong:
        raise UserError(f"{path}: row {wrong[0]} is not a JSON object")
    return objects


def _value(path: Path, line: str, number: int) -> Any:
    return parse_json(line, f"{path}: row {number}")


def _text(value: Any) -> str:
    """A JSON value as the text that a CSV file would hold; null is blank, true and false are 1 and 0."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
