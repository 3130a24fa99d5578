"""One row of a manifest, and reading rows from CSV and JSON lines.

The columns follow FairFD's construction (paper, "Dataset Construction"): person, group, approach, donor of the same group.
"""

import csv
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.reading import parse_json, read_text

REAL = "real"
"""The approach of genuine images: row 0 of every accuracy matrix."""

_REQUIRED = ("image", "group", "approach", "label")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a benchmark.

    Attributes:
        image: file, relative to the manifest's folder (or absolute).
        identity: the person on the *pristine base image*; every forgery of that image carries it. Empty: unknown.
        group: sensitive group, e.g. one of the paper's four; free text.
        approach: "real" or the name of the forgery approach.
        label: 0 = real, 1 = fake; 0 exactly when `approach` is "real".
        split: "train", "val", "test" or empty.
        source_identity: the partner of a forgery: the person whose face or expression may have been put in; else empty.
        driving_image: the partner's image that the approach was given, relative as `image`; else empty.
        landmarks: .npy file, (points, 2) pixel coordinates x, y; empty: none.
        mask: image file of the altered region; empty: none.
        sha256: digest of the image file; empty: not recorded.
        meta: JSON object as text: how the image was made, further attributes of the person.
    """

    image: str
    identity: str = ""
    group: str = ""
    approach: str = REAL
    label: int = 0
    split: str = ""
    source_identity: str = ""
    driving_image: str = ""
    landmarks: str = ""
    mask: str = ""
    sha256: str = ""
    meta: str = ""


COLUMNS = tuple(field.name for field in fields(Sample))
"""The columns of a manifest file, in order."""


def read_rows(path: Path) -> tuple[Sample, ...]:
    """Read samples: JSON lines for `.jsonl`, else CSV (UTF-8, with a header); unknown columns go to `meta`.

    Raises:
        UserError: no such file, not UTF-8, or a required column is missing.
    """
    text = read_text(path)
    if "\0" in text:
        raise UserError(f"{path}: holds NUL bytes; it is no manifest")
    rows = _jsonl_rows(path, text) if path.suffix == ".jsonl" else _csv_rows(path, text)
    return tuple(_sample(row) for row in rows)


def few(items: Collection[Any]) -> str:
    """The first five items and how many more there are, for a one-line message."""
    shown = ", ".join(str(item) for item in list(items)[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"


def _csv_rows(path: Path, text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: column {', '.join(missing)} is missing; the header needs {', '.join(_REQUIRED)}")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: is no table ({error})") from None
    ragged = [number for number, row in enumerate(rows, 1) if None in row or None in row.values()]
    if ragged:
        raise UserError(f"{path}: rows {few(ragged)} have more or fewer fields than the header")
    return rows


def _jsonl_rows(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate((line for line in text.split("\n") if line.strip()), 1):
        row = parse_json(line, f"{path}: row {number}")
        if not isinstance(row, dict) or any(name not in row for name in _REQUIRED):
            raise UserError(f"{path}: row {number} needs the keys {', '.join(_REQUIRED)}")
        rows.append(row)
    return rows


def _sample(row: Mapping[str, Any]) -> Sample:
    known = {name: str(row.get(name) or "") for name in COLUMNS if name != "label"}
    extra = {name: value for name, value in row.items() if name not in COLUMNS}
    if isinstance(row.get("meta"), dict):
        known["meta"] = json.dumps(row["meta"], ensure_ascii=False)
    if extra:
        known["meta"] = json.dumps(json_object(known["meta"]) | extra, ensure_ascii=False)
    return Sample(**known, label=_label(row["label"]))


def _label(value: Any) -> int:
    """0 or 1, also from "1.0" as spreadsheets write it; -1 for anything else, which `verification.check_labels` reports by row."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return -1
    return int(number) if number in (0.0, 1.0) else -1


def meta_of(sample: Sample) -> dict[str, Any]:
    """The sample's `meta` as a dictionary."""
    return json_object(sample.meta)


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; free text becomes {"note": text}, so that nothing a user wrote is lost."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"note": text}
    return value if isinstance(value, dict) else {"note": value}
