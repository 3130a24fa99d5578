"""A folder of pictures as a searchable gallery: features computed once, kept on disk, memory-mapped."""

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from multreid.data.datasets import CropSet
from multreid.data.layouts import Crops, Modality, folder_crops
from multreid.method.nearest_neighbors import nearest
from multreid.models.features import extract, extract_into
from multreid.models.networks import TwoStreamResNet
from tenfold import UserError
from tenfold.config import from_dict
from tenfold.files import atomic_path, write_text
from tenfold.images import list_images
from tenfold.reading import read_array, read_json_object

CACHE_NAME = ".multreid"
_LISTS_PER_ROOT = 4
_PROBES = 16
_ROWS_AT_ONCE = 65536


@dataclass(frozen=True)
class Gallery:
    """Pictures with their features.

    Attributes:
        paths: the files.
        features: unit rows, memory-mapped.
        folder: where features and index are kept.
        reused: how many features an earlier run had computed.
        skipped: files that could not be read, each with its reason in one line.
    """

    paths: tuple[Path, ...]
    features: Float[np.ndarray, "n d"]
    folder: Path
    reused: int
    skipped: tuple[str, ...] = ()


def open_gallery(
    root: Path,
    modality: Modality,
    model: TwoStreamResNet,
    *,
    device: torch.device,
    cache: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> Gallery:
    """The pictures below a folder with their features; only pictures that are new or changed are computed.

    Args:
        root: the folder.
        modality: of its pictures.
        model: whose features; those of another model are kept apart.
        device: where to compute.
        cache: where features are kept; `root/.multreid` by default.
        batch_size: pictures at once.
        workers: processes that read pictures.

    Raises:
        UserError: no pictures, none that can be read, or a place that cannot be written.
    """
    crops = folder_crops(root, modality)
    folder = (cache or root / CACHE_NAME) / f"{_fingerprint(model)}-{modality}"
    files = {str(path.relative_to(root)): [path.stat().st_size, path.stat().st_mtime_ns] for path in crops.paths}
    features_path, list_path = folder / "features.npy", folder / "files.json"
    known, stored = _stored(features_path, list_path, model.dimension)
    unreadable = {name: reason for name, (mark, reason) in known.unreadable.items() if files.get(name) == mark}
    wanted = {name: mark for name, mark in files.items() if name not in unreadable}
    reused = sum(known.files.get(name) == mark for name, mark in wanted.items())
    if list(known.files.items()) != list(wanted.items()):
        source = {name: row for row, (name, mark) in enumerate(known.files.items()) if files.get(name) == mark}
        rows = np.array([source.get(name, -1) for name in wanted], np.int64)
        chosen = np.array([row for row, name in enumerate(files) if name in wanted], np.int64)
        with atomic_path(features_path) as temporary:
            pictures = CropSet(crops, model.height, model.width)
            faults = _fill_matrix(temporary, stored, rows, model, pictures, chosen, device, batch_size, workers)
            unreadable |= {list(wanted)[row]: reason for row, reason in faults.items()}
            if len(unreadable) == len(files):
                raise UserError(f"{root}: no picture could be used: {next(iter(unreadable.values()))}")
            # Interrupted from here on, the old list must not describe the new rows.
            list_path.unlink(missing_ok=True)
        wanted = {name: mark for name, mark in wanted.items() if name not in unreadable}
        broken = {name: [files[name], reason] for name, reason in unreadable.items()}
        write_text(list_path, json.dumps({"files": wanted, "unreadable": broken}))
        stored = read_array(features_path, map_to_disk=True)
    paths = tuple(path for path, name in zip(crops.paths, files, strict=True) if name in wanted)
    return Gallery(paths, stored, folder, reused, tuple(unreadable.values()))


def _fill_matrix(
    path: Path,
    stored: Float[np.ndarray, "s d"],
    rows: Int[np.ndarray, " n"],
    model: TwoStreamResNet,
    pictures: CropSet,
    chosen: Int[np.ndarray, " n"],
    device: torch.device,
    batch_size: int,
    workers: int,
) -> dict[int, str]:
    """Write the features of some pictures, those that are at hand and those that must be computed.

    Args:
        path: the file.
        stored: features at hand.
        rows: where among them each picture's are; -1 where they must be computed.
        model: computes them.
        pictures: of the gallery.
        chosen: which of them.
        device: where to compute.
        batch_size: pictures at once.
        workers: processes that read pictures.

    Returns:
        Which of the chosen pictures could not be read, and why; the file has no rows for them.
    """
    features = _new_matrix(path, len(rows), model.dimension)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        features[start : start + _ROWS_AT_ONCE][part >= 0] = stored[part[part >= 0]]
    new = np.flatnonzero(rows < 0)
    faults: dict[int, str] = {}

    def store(start: int, batch: Float[np.ndarray, "b d"]) -> None:
        features[new[start : start + len(batch)]] = batch

    def pass_over(number: int, reason: str) -> None:
        faults[int(new[number])] = " ".join(reason.split())

    extract_into(store, model, pictures, chosen[new], device, batch_size, workers, "gallery", pass_over)
    features.flush()
    if faults:
        _keep_rows(path, np.array([row for row in range(len(rows)) if row not in faults], np.int64))
    return faults


def _new_matrix(path: Path, rows: int, columns: int) -> np.memmap:
    """A matrix on disk to be filled.

    Raises:
        OSError: the disk has no room for it. Without asking first, a write to the map would end the process.
    """
    matrix = np.lib.format.open_memmap(path, "w+", np.float32, (rows, columns))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return matrix


def _keep_rows(path: Path, kept: Int[np.ndarray, " k"]) -> None:
    """Reduce a matrix on disk to some of its rows."""
    whole = read_array(path, map_to_disk=True)
    # The name stays one of a temporary file, which a later run removes should this one be killed.
    smaller = path.with_suffix(".kept.npy")
    try:
        matrix = _new_matrix(smaller, kept.size, whole.shape[1])
        for start in range(0, kept.size, _ROWS_AT_ONCE):
            matrix[start : start + _ROWS_AT_ONCE] = whole[kept[start : start + _ROWS_AT_ONCE]]
        matrix.flush()
        smaller.replace(path)
    finally:
        smaller.unlink(missing_ok=True)


def _fingerprint(model: TwoStreamResNet) -> str:
    digest = hashlib.sha256(f"{model.architecture} {model.height} {model.width}".encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Known:
    """What an earlier run wrote beside its features: size and time of change of each file.

    Attributes:
        files: those that have features, in the order of the rows.
        unreadable: those that have none, with the reason.
    """

    files: dict[str, list[int]] = field(default_factory=dict)
    unreadable: dict[str, tuple[list[int], str]] = field(default_factory=dict)


def _stored(features: Path, names: Path, dimension: int) -> tuple[_Known, np.ndarray]:
    """What an earlier run kept; nothing where that is missing or damaged: it is computed again."""
    try:
        known = from_dict(read_json_object(names), _Known, str(names))
        rows = read_array(features, map_to_disk=True)
    except UserError:
        return _Known(), np.empty((0, dimension), np.float32)
    if rows.shape != (len(known.files), dimension) or rows.dtype != np.float32:
        return _Known(), np.empty((0, dimension), np.float32)
    return known, rows


def search_exact(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "n d"], top: int
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """The nearest gallery rows of each query and their squared distances, by torch; at most `top`."""
    return nearest(queries, gallery, min(top, len(gallery)))


def search_index(
    index: Any, queries: Float[np.ndarray, "q d"], top: int
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """The same from a faiss index: approximate, for large galleries. Places that it cannot fill hold row -1."""
    distances, rows = index.search(np.ascontiguousarray(queries), min(top, index.ntotal))
    return rows, distances


def build_index(features: Float[np.ndarray, "n d"], seed: int = 0) -> Any:
    """An inverted-file index of faiss over unit rows: about 4 sqrt(n) lists, of which a query looks into 16.

    Args:
        features: may be memory-mapped; read in blocks.
        seed: of the sample that the lists are learnt from.

    Raises:
        UserError: faiss is not installed.
    """
    faiss = _faiss()
    n, d = features.shape
    lists = max(1, min(int(_LISTS_PER_ROOT * n**0.5), n // 40))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists)
    index.cp.niter = 10
    index.cp.max_points_per_centroid = 64
    sample = np.sort(np.random.default_rng(seed).choice(n, min(n, 64 * lists), replace=False))
    index.train(np.ascontiguousarray(features[sample]))
    for start in range(0, n, _ROWS_AT_ONCE):
        index.add(np.ascontiguousarray(features[start : start + _ROWS_AT_ONCE]))
    index.nprobe = min(_PROBES, lists)
    return index


def gallery_index(gallery: Gallery) -> Any:
    """The index of a gallery, kept beside its features and built again when these have changed."""
    faiss = _faiss()
    path = gallery.folder / "index.faiss"
    newest = (gallery.folder / "features.npy").stat().st_mtime_ns
    if path.exists() and path.stat().st_mtime_ns >= newest:
        with contextlib.suppress(RuntimeError):  # what faiss raises for a damaged file: it is built again
            index = faiss.read_index(str(path))
            if (index.ntotal, index.d) == gallery.features.shape:
                return index
    index = build_index(gallery.features)
    with atomic_path(path) as temporary:
        faiss.write_index(index, str(temporary))
    return index


def _faiss() -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise UserError(
            "--index faiss: faiss is not installed (pip install 'multreid[faiss]'); --index exact needs nothing"
        )
    return importlib.import_module("faiss")


def query_features(
    model: TwoStreamResNet, query: Path, modality: Modality, device: torch.device
) -> tuple[list[Path], Float[np.ndarray, "q d"], list[str]]:
    """Unit features of one picture, or of all pictures below a folder that can be read.

    Returns:
        The pictures, their features in the same order, and those that could not be read with the reason of each.

    Raises:
        UserError: no such file, no picture in the folder, or none that can be read.
    """
    paths = list_images(query)
    nobody = np.full(len(paths), -1)
    crops = CropSet(Crops(tuple(paths), nobody, nobody, modality), model.height, model.width)
    faults: dict[int, str] = {}
    features = extract(
        model,
        crops,
        np.arange(len(paths)),
        device=device,
        description="queries",
        on_fault=lambda number, reason: faults.update({number: " ".join(reason.split())}),
    )
    if len(faults) == len(paths):
        alone = len(paths) == 1
        raise UserError(faults[0] if alone else f"{query}: no picture could be used: {faults[0]}")
    kept = [row for row in range(len(paths)) if row not in faults]
    return [paths[row] for row in kept], features[kept], list(faults.values())
