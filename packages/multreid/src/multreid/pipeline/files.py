"""Feature matrices in, labels out: the files of `multreid associate`."""

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from multreid.method.label_transfer import Association, HardLabels
from tenfold import UserError
from tenfold.files import atomic_path, check_writable
from tenfold.reading import read_array

SUFFIXES = (".npz", ".csv", ".parquet")


def read_features(path: Path) -> Num[np.ndarray, "..."]:
    """Read a feature matrix from a `.npy` file; nothing is unpickled.

    Raises:
        UserError: no such file, or none of that format.
    """
    features = read_array(path, map_to_disk=True)
    if not np.issubdtype(features.dtype, np.number):
        raise UserError(f"{path}: expected a .npy file with one matrix of numbers")
    return np.asarray(features)


def check_output(out: Path, inputs: Sequence[Path] = ()) -> None:
    """Refuse a place where `write_labels` cannot or must not write, before anything is computed.

    Args:
        out: the suffix names the format.
        inputs: files that are never overwritten.

    Raises:
        UserError: another suffix, a missing library, an input, a folder, or a place that cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: choose a name ending in {', '.join(SUFFIXES)}")
    if out.suffix == ".parquet":
        _parquet()
    if out.resolve() in {path.resolve() for path in inputs}:
        raise UserError(f"--out {out}: is an input and would be overwritten; choose another name")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file")
    check_writable(out)


def write_labels(
    out: Path,
    labels: Association | HardLabels,
    clusters: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]],
) -> None:
    """Write labels, whole or not at all: all arrays to `.npz`, a table with one row per instance to `.csv` or `.parquet`.

    Args:
        out: the suffix names the format.
        labels: what was found.
        clusters: DBSCAN's labels of both modalities.
    """
    check_output(out)
    with atomic_path(out) as temporary:
        if out.suffix == ".npz":
            arrays = {
                field.name: value
                for field in dataclasses.fields(labels)
                if isinstance(value := getattr(labels, field.name), np.ndarray)
            }
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, clusters_a=clusters[0], clusters_b=clusters[1], **arrays)
            return
        columns = _table(labels, clusters)
        if out.suffix == ".parquet":
            arrow, parquet = _parquet()
            parquet.write_table(arrow.table(columns), temporary)
        else:
            rows = zip(*columns.values(), strict=True)
            lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(labels: Association | HardLabels, clusters: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    sizes = clusters[0].size, clusters[1].size
    return {
        "modality": np.repeat(["a", "b"], sizes),
        "row": np.concatenate([np.arange(each) for each in sizes]),
        "cluster": np.concatenate(clusters),
        "label": np.concatenate([labels.labels_a, labels.labels_b]),
        "cross_label": np.concatenate([labels.cross_a, labels.cross_b]),
    }


def _parquet() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            "--out: writing .parquet needs pyarrow (pip install pyarrow); .csv holds the same table"
        ) from None
