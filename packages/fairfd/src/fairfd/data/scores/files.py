"""Reading the columns of a score file: CSV, TSV, JSON lines (also gzipped), Parquet or Feather.

A file is read a part at a time and only the wanted columns are kept, names as codes: two million rows take a few seconds.
"""

import csv
import gzip
import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from jaxtyping import Float, Shaped
from numpy.dtypes import StringDType

from fairfd.data.scores.validation import Coded, Places, listed
from tenfold.errors import UserError
from tenfold.reading import parse_json

ROWS = Places("row", 1)
"""Rows of a file: the first one after the header is row 1; blank lines do not count."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet", ".feather")
"""Of the files that can be read."""

DELIMITERS = (",", ";", "\t", "|")
"""Between the fields of a CSV file; the one that its header has most often is taken."""

_CHUNK = 4096
"""Lines of JSON at a time."""

_BATCH = 65536
"""Rows of a Parquet file at a time."""


@dataclass(frozen=True)
class FileColumns:
    """Columns of a file, under the names by which they were asked for.

    Attributes:
        names: every column of the file.
        texts: the wanted columns of text that the file has.
        numbers: the wanted columns of numbers that the file has; NaN where a field is blank.
        images: the wanted column of names that are all different, where the file has it.
        rows: number of rows.
    """

    names: tuple[str, ...]
    texts: Mapping[str, Coded]
    numbers: Mapping[str, Float[np.ndarray, " n"]]
    images: Shaped[np.ndarray, " n"] | None
    rows: int


@dataclass(frozen=True)
class _Parts:
    """A file that is read part by part.

    Attributes:
        names: its columns.
        parts: for each part its columns by their place in `names`; those that are not wanted may be left out.
        decimal_comma: whether numbers may be written 0,5.
    """

    names: tuple[str, ...]
    parts: Iterator[Mapping[int, pa.Array]]
    decimal_comma: bool = False


def read_columns(path: Path, texts: Iterable[str], numbers: Iterable[str], images: str | None = None) -> FileColumns:
    """Read some columns of a score file. A column is also found when its name differs in case, or in blanks for underscores.

    Args:
        path: a file with one of `SUFFIXES`; text is UTF-8, CSV and TSV have a header, JSON lines an object each.
        texts: names of the columns of text to keep, where the file has them.
        numbers: names of the columns of numbers to keep, where the file has them.
        images: a column of text whose values are hardly ever the same.

    Raises:
        UserError: no such file, an unknown suffix, not UTF-8 text, a row with too many or too few fields, a value that is no
            number where one is wanted, or no rows.
    """
    texts, numbers = tuple(dict.fromkeys(texts)), tuple(dict.fromkeys(numbers))
    wanted = (*texts, *numbers, *((images,) if images else ()))
    try:
        with _opened(path, wanted) as source:
            columns = _collected(path, source, texts, numbers, images)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the scores as UTF-8") from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["damaged"])[0][:120]
        raise UserError(f"{path}: cannot read the scores ({reason})") from error
    except pa.ArrowException as error:
        raise UserError(f"{path}: {_reason(error)}") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error})") from error
    if not columns.rows:
        raise UserError(f"{path}: there are no rows")
    return columns


def require_columns(path: Path, columns: FileColumns, required: Mapping[str, str]) -> None:
    """Refuse a file without the required columns.

    Args:
        path: for the message.
        columns: what was read.
        required: the file's name of each column that is needed, by our name.

    Raises:
        UserError: naming those it lacks and those it has.
    """
    missing = [ours for ours, theirs in required.items() if theirs not in (*columns.texts, *columns.numbers)]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(required[ours] for ours in missing)}; it has {listed(columns.names, 12)}. "
            f"Say which one it is: --columns {missing[0]}=NAME"
        )


def suffix_of(path: Path) -> str:
    """Which of `SUFFIXES` a file has.

    Raises:
        UserError: none of them.
    """
    kind = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if kind is None:
        raise UserError(f"{path}: a score file ends in {', '.join(SUFFIXES)}")
    return kind


def same_name(one: str, other: str) -> bool:
    """Whether two column names differ in case only, or in blanks for underscores."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "_", name.strip()).lower()


def _place(name: str, names: Sequence[str]) -> int | None:
    """Where a column is: under exactly this name, else under one that reads the same."""
    if name in names:
        return names.index(name)
    alike = [place for place, each in enumerate(names) if same_name(name, each)]
    return alike[0] if len(alike) == 1 else None


# --------------------------------------------------------------------------------------------------------------- collecting


class _Texts:
    """Codes names in the order in which they first appear."""

    def __init__(self) -> None:
        self.index: defaultdict[str, int] = defaultdict()
        self.index.default_factory = self.index.__len__
        self.codes = array("i")

    def extend(self, values: pa.Array) -> None:
        coded = values.dictionary_encode()
        codes = np.fromiter(map(self.index.__getitem__, coded.dictionary.to_pylist()), np.int32, len(coded.dictionary))
        self.codes.frombytes(codes[coded.indices.to_numpy()].tobytes())


class _Numbers:
    """Collects numbers, NaN for blanks, and the places of what is none."""

    def __init__(self, decimal_comma: bool) -> None:
        self.decimal_comma = decimal_comma
        self.parts: list[np.ndarray] = []
        self.wrong = array("q")
        self.rows = 0

    def extend(self, values: pa.Array) -> None:
        try:
            kind = pa.float32() if values.type == pa.float32() else pa.float64()
            found = values.cast(kind).fill_null(np.nan).to_numpy(zero_copy_only=False)
        except pa.ArrowException:
            found = np.array([self._number(place, value) for place, value in enumerate(values.to_pylist(), self.rows)])
        self.rows += len(values)
        self.parts.append(found)

    def _number(self, place: int, value: Any) -> float:
        if value is None or (isinstance(value, str) and not value.strip()):
            return np.nan
        try:
            return float(value.replace(",", ".") if self.decimal_comma else value)
        except (TypeError, ValueError):
            self.wrong.append(place)
            return 0.0


class _Images:
    """Keeps names as they are: coding what is always different would cost memory and bring nothing."""

    def __init__(self) -> None:
        self.names = np.empty(0, StringDType())
        self.rows = 0

    def extend(self, values: pa.Array) -> None:
        end = self.rows + len(values)
        if end > len(self.names):
            # Room to grow in place: parts that are joined at the end would be in memory twice.
            self.names.resize(end + len(self.names) // 2, refcheck=False)
        self.names[self.rows : end] = np.array(values.to_pylist(), dtype=StringDType())
        self.rows = end

    def all(self) -> Shaped[np.ndarray, " n"]:
        """The names of all rows."""
        self.names.resize(self.rows, refcheck=False)
        return self.names


def _collected(
    path: Path, source: _Parts, texts: Sequence[str], numbers: Sequence[str], images: str | None
) -> FileColumns:
    kept: dict[str, tuple[int, _Texts | _Numbers | _Images]] = {}
    for names, make in ((texts, _Texts), (numbers, lambda: _Numbers(source.decimal_comma)), ((images,), _Images)):
        for name in names:
            if name is not None and (place := _place(name, source.names)) is not None:
                kept[name] = (place, make())
    rows = 0
    for part in source.parts:
        rows += len(next(iter(part.values()), ()))
        for place, column in kept.values():
            values = part[place]
            values = values.dictionary_decode() if isinstance(values, pa.DictionaryArray) else values
            column.extend(values if isinstance(column, _Numbers) else _as_text(values))
    for name, (_, column) in kept.items():
        if isinstance(column, _Numbers) and column.wrong:
            wrong = np.zeros(rows, bool)
            wrong[column.wrong] = True
            raise UserError(f"{path}: {name}: not a number at {ROWS.name(wrong)}")
    columns = {name: column for name, (_, column) in kept.items() if rows}
    return FileColumns(
        source.names,
        {
            n: Coded(tuple(c.index), np.frombuffer(c.codes, np.int32))
            for n, c in columns.items()
            if isinstance(c, _Texts)
        },
        {n: np.concatenate(c.parts) for n, c in columns.items() if isinstance(c, _Numbers)},
        next((c.all() for c in columns.values() if isinstance(c, _Images)), None),
        rows,
    )


def _as_text(values: pa.Array) -> pa.Array:
    """Any column as text: a whole number without a point, true and false as words, nothing as a blank."""
    if pa.types.is_floating(values.type):
        known = values.drop_null().to_numpy()
        if (known == np.trunc(known)).all():
            # Whole numbers with blanks among them are floats to pandas.
            values = values.cast(pa.int64())
    return values.cast(pa.string()).fill_null("")


# ------------------------------------------------------------------------------------------------------------------- kinds


class _opened:  # noqa: N801  # a context manager, used as a function
    """The file's columns and parts, closed at the end."""

    def __init__(self, path: Path, wanted: Sequence[str]) -> None:
        self.path, self.wanted = path, wanted
        self.closing: list[Any] = []

    def __enter__(self) -> _Parts:
        kind = suffix_of(self.path)
        if kind in (".parquet", ".feather"):
            file = pa.memory_map(str(self.path))
            self.closing.append(file)
            return _parquet(file, self.wanted) if kind == ".parquet" else _feather(file)
        packed = kind.endswith(".gz")
        opener = gzip.open if packed else open
        lines = opener(self.path, "rt", encoding="utf-8-sig", newline="")
        self.closing.append(lines)
        if kind.startswith(".jsonl"):
            return _json_lines(self.path, lines)
        names, delimiter = _header(self.path, lines, "\t" if kind.startswith(".tsv") else None)
        stream = pa.input_stream(str(self.path), compression="gzip" if packed else None)
        self.closing.append(stream)
        return _csv(self.path, stream, names, delimiter, self.wanted)

    def __exit__(self, *_: object) -> None:
        for each in self.closing:
            each.close()
        # What Arrow keeps for a next file is more than the columns that were taken.
        pa.default_memory_pool().release_unused()


def _header(path: Path, lines: Iterable[str], delimiter: str | None) -> tuple[tuple[str, ...], str]:
    """The names of the columns and what stands between them."""
    first = next((line for line in lines if line.strip()), "")
    if delimiter is None:
        unquoted = re.sub(r'"[^"]*"', "", first)
        delimiter = max(DELIMITERS, key=unquoted.count)
    names = tuple(name.strip() for name in next(csv.reader([first], delimiter=delimiter), []))
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        raise UserError(f"{path}: the header names a column twice")
    return names, delimiter


def _csv(path: Path, stream: pa.NativeFile, names: tuple[str, ...], delimiter: str, wanted: Sequence[str]) -> _Parts:
    refused: list[str] = []

    def refuse(row: pacsv.InvalidRow) -> str:
        at = "a row" if row.number is None else f"row {row.number - 1}"
        refused.append(f"{path}: {at} has {row.actual_columns} fields where the header has {row.expected_columns}")
        return "error"

    def parts() -> Iterator[Mapping[int, pa.Array]]:
        # The columns are called by their places, so that the header is the first row.
        called = {f"f{place}": place for place in _places(wanted, names) or range(len(names))}
        try:
            reader = pacsv.open_csv(
                stream,
                # One thread: rows keep their numbers, and one part at a time is in memory.
                pacsv.ReadOptions(use_threads=False, block_size=2**20, autogenerate_column_names=True),
                pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse),
                pacsv.ConvertOptions(
                    include_columns=list(called),
                    column_types=dict.fromkeys(called, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            skip = 1
            for batch in reader:
                yield {called[name]: batch.column(name).slice(skip) for name in called}
                skip = 0
        except pa.ArrowInvalid as error:
            raise UserError(refused[0]) if refused else error from None

    return _Parts(names, parts() if names else iter(()), decimal_comma=delimiter == ";")


def _places(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    return sorted({place for name in wanted if (place := _place(name, names)) is not None})


def _parquet(file: pa.NativeFile, wanted: Sequence[str]) -> _Parts:
    table = pq.ParquetFile(file)
    names = tuple(table.schema_arrow.names)
    read = [names[place] for place in _places(wanted, names)] or list(names)
    batches = table.iter_batches(_BATCH, columns=read, use_threads=False)
    return _Parts(names, ({names.index(name): batch.column(name) for name in read} for batch in batches))


def _feather(file: pa.NativeFile) -> _Parts:
    table = pa.ipc.open_file(file)
    return _Parts(
        tuple(table.schema.names),
        (dict(enumerate(table.get_batch(number).columns)) for number in range(table.num_record_batches)),
    )


def _json_lines(path: Path, lines: Iterable[str]) -> _Parts:
    chunks = _objects_by_chunk(path, lines)
    first = next(chunks, [])
    # A key that the first objects lack is a column that the file lacks.
    names = tuple(dict.fromkeys(key for row in first for key in row))

    def parts() -> Iterator[Mapping[int, pa.Array]]:
        chunk = first
        while chunk:
            yield {
                place: pa.array([_text(row.get(name)) for row in chunk], pa.string())
                for place, name in enumerate(names)
            }
            chunk = next(chunks, [])

    return _Parts(names, parts())


def _objects_by_chunk(path: Path, lines: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    rows = 0
    filled = filter(str.strip, lines)
    while chunk := list(islice(filled, _CHUNK)):
        yield _objects(path, chunk, rows)
        rows += len(chunk)


def _objects(path: Path, lines: list[str], before: int) -> list[dict[str, Any]]:
    try:
        # One call for many lines reuses their keys.
        objects = json.loads(f"[{','.join(lines)}]")
    except (ValueError, RecursionError):
        objects = []
    if len(objects) != len(lines):
        objects = [parse_json(line, f"{path}: row {before + number}") for number, line in enumerate(lines, 1)]
    wrong = [before + number for number, row in enumerate(objects, 1) if not isinstance(row, dict)]
    if wrong:
        raise UserError(f"{path}: row {wrong[0]} is not a JSON object")
    return objects


def _text(value: Any) -> str:
    """A JSON value as the text that a CSV file would hold; null is blank."""
    if isinstance(value, str):
        return value
    return "" if value is None else str(value)


def _reason(error: pa.ArrowException) -> str:
    """Arrow's error in one line of ours."""
    text = (str(error).splitlines() or [type(error).__name__])[0][:160]
    if "UTF8" in text:
        return "not UTF-8 text; save the scores as UTF-8"
    return f"not a table ({text})"
