"""Reading and writing tensors: safetensors, and other people's torch files without running what is in them.

Every fault of a file is one line that names it. Writing is atomic: a full disk leaves the checkpoint that was there.
"""

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.files import atomic_path
from tenfold.reading import parse_json

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params_ema", "params")
"""Keys under which public checkpoints keep their weights."""


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all; the same tensors and metadata give the same bytes.

    Args:
        path: the file.
        tensors: by name; made contiguous and moved to the CPU.
        metadata: strings to keep beside them.

    Raises:
        WriteError: the place cannot be written or the disk is full; what was there is kept.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, dict(metadata) if metadata else None)
        if metadata and len(metadata) > 1:
            _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: the library writes them in another one each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:  # never into the tensors, however the library may spell its header one day
            file.seek(8)
            file.write(ordered.ljust(length))  # the format fills up with spaces


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors by name, and the metadata (empty when there is none).

    Raises:
        UserError: cannot be read, not safetensors, or truncated.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a safetensors file")
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118  # `safe_open` is no dictionary
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or 'no such file'})") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError):
        raise UserError(f"{path}: is not a safetensors file, or damaged") from None


def read_metadata(metadata: Mapping[str, str], key: str, source: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object kept in the metadata of a safetensors file.

    Args:
        metadata: as `read_tensors` gives it.
        key: of the entry.
        source: the file, for errors.

    Raises:
        UserError: no such entry, or no JSON object.
    """
    if key not in metadata:
        raise UserError(f"{source}: was not written by this program (no {key!r} in its metadata)")
    found = parse_json(metadata[key], source)
    if not isinstance(found, dict):
        raise UserError(f"{source}: the {key!r} of its metadata is damaged")
    return found


def read_state_dict(path: str | os.PathLike[str], wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """Read the weights of a public checkpoint: safetensors, or a torch file (`weights_only`, nothing in it is run).

    Args:
        path: the file; what it is decides its content, not its suffix.
        wrappers: keys to look under when the file holds more than the weights.

    Returns:
        Tensors by name. Entries that are no tensors are left out.

    Raises:
        UserError: cannot be read, damaged, holds code, or holds no tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error})") from None
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return read_tensors(path)[0]
    found = _load_torch(path)
    for key in wrappers:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    tensors = (
        {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
        if isinstance(found, dict)
        else {}
    )
    if not tensors:
        raise UserError(f"{path}: holds no weights by name")
    return tensors


def _load_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        # torch stores tensors without compression: an archive that grows is no checkpoint.
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
        if unpacked > 4 * path.stat().st_size + 2**20:
            raise UserError(f"{path}: unpacks to {unpacked / 2**30:.1f} GiB; it is no checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # whatever a stranger's file makes the unpickler raise
        code = "Unsupported" in str(error) or "weights_only" in str(error).lower()
        reason = "it holds more than weights, which could run code" if code else "not a checkpoint, or damaged"
        raise UserError(f"{path}: cannot read ({reason})") from None


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str | os.PathLike[str]) -> None:
    """Copy tensors into a module that must have exactly these names and shapes.

    Args:
        module: takes them.
        tensors: by name.
        source: the file, for errors.

    Raises:
        UserError: a name is missing or unknown, or a shape differs; the first of each is named.
    """
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    faults = [f"{len(missing)} missing, first {missing[0]}"] if missing else []
    faults += [f"{len(unknown)} unknown, first {unknown[0]}"] if unknown else []
    if wrong:
        name = min(wrong)
        faults.append(f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}")
    if faults:
        raise UserError(f"{source}: its weights do not fit {type(module).__name__} ({'; '.join(faults)})")
    module.load_state_dict(dict(tensors))
