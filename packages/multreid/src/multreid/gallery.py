"""A folder of pictures as a searchable gallery: features computed once, kept on disk, memory-mapped."""

import hashlib
import importlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from multreid.crops import CropSet
from multreid.extraction import extract_into
from multreid.layouts import Modality, folder_crops
from multreid.neighbours import nearest
from multreid.networks import TwoStreamResNet
from tenfold import UserError
from tenfold.files import atomic_path, write_text

CACHE_NAME = ".multreid"
_LISTS_PER_ROOT = 4
_PROBES = 16


@dataclass(frozen=True)
class Gallery:
    """Pictures with their features.

    Attributes:
        paths: the files.
        features: unit rows, memory-mapped.
        folder: where features and index are kept.
        reused: how many features an earlier run had computed.
    """

    paths: tuple[Path, ...]
    features: Float[np.ndarray, "n d"]
    folder: Path
    reused: int


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
        UserError: no pictures, or a place that cannot be written.
    """
    crops = folder_crops(root, modality)
    folder = (cache or root / CACHE_NAME) / f"{_fingerprint(model)}-{modality}"
    files = {str(path.relative_to(root)): [path.stat().st_size, path.stat().st_mtime_ns] for path in crops.paths}
    features_path, list_path = folder / "features.npy", folder / "files.json"
    known, stored = _stored(features_path, list_path, model.dimension)
    if list(known.items()) == list(files.items()):
        return Gallery(crops.paths, stored, folder, len(files))
    source = {name: row for row, (name, mark) in enumerate(known.items()) if files.get(name) == mark}
    rows = np.array([source.get(name, -1) for name in files])
    new = np.flatnonzero(rows < 0)
    with atomic_path(features_path) as temporary:
        features = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(files), model.dimension))
        for start in range(0, len(files), 65536):
            part = rows[start : start + 65536]
            features[start : start + 65536][part >= 0] = stored[part[part >= 0]]

        def store(start: int, batch: Float[np.ndarray, "b d"]) -> None:
            features[new[start : start + len(batch)]] = batch

        pictures = CropSet(crops, model.height, model.width)
        extract_into(store, model, pictures, new, device, batch_size, workers, "gallery")
        features.flush()
        # Interrupted from here on, the old list must not describe the new rows.
        list_path.unlink(missing_ok=True)
    write_text(list_path, json.dumps(files))
    return Gallery(crops.paths, np.load(features_path, mmap_mode="r"), folder, len(files) - new.size)


def _fingerprint(model: TwoStreamResNet) -> str:
    digest = hashlib.sha256(f"{model.architecture} {model.height} {model.width}".encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _stored(features: Path, names: Path, dimension: int) -> tuple[dict[str, list[int]], np.ndarray]:
    """What an earlier run kept; nothing where that is missing or damaged."""
    try:
        known = json.loads(names.read_text(encoding="utf-8"))
        rows = np.load(features, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return {}, np.empty((0, dimension), np.float32)
    if rows.shape != (len(known), dimension):
        return {}, np.empty((0, dimension), np.float32)
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
    for start in range(0, n, 65536):
        index.add(np.ascontiguousarray(features[start : start + 65536]))
    index.nprobe = min(_PROBES, lists)
    return index


def gallery_index(gallery: Gallery) -> Any:
    """The index of a gallery, kept beside its features and built again when these have changed."""
    faiss = _faiss()
    path = gallery.folder / "index.faiss"
    newest = (gallery.folder / "features.npy").stat().st_mtime_ns
    if path.exists() and path.stat().st_mtime_ns >= newest:
        return faiss.read_index(str(path))
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
