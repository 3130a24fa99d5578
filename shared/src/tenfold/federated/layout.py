"""The arrays that a reply must hold, and how one is read without trusting it.

Arrays travel as `.npy` bytes with a declared type and shape beside them (Flower's `Array`). Both declarations, the header inside and the
number of bytes must agree with what the server expects; nothing is allocated before they do, and nothing is ever unpickled.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

HEADER_BYTES = 1024
"""An `.npy` header of a plain array has 64 to 192 bytes."""

TEXT_LIMIT = 200
"""Characters that are quoted of what a client wrote."""


class ReplyFault(ValueError):  # noqa: N818  # a reply's, not the program's
    """What is wrong with a reply, in a few words; becomes the reason of a `Rejection`."""


@runtime_checkable
class SerializedArray(Protocol):
    """An array as it travels: Flower's `Array` is one."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


@dataclass(frozen=True)
class Entry:
    """What one array must be.

    Attributes:
        shape: of it.
        dtype: by numpy's name, such as `float32`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def layout_of(arrays: Mapping[str, np.ndarray], floating: str | None = None) -> dict[str, Entry]:
    """The layout of arrays that the server holds.

    Args:
        arrays: by name.
        floating: type in which floating-point arrays travel, where it is another one.
    """
    return {
        name: Entry(tuple(each.shape), floating if floating and each.dtype.kind == "f" else str(each.dtype))
        for name, each in arrays.items()
    }


def short(value: object) -> str:
    """What a client sent, as it may be quoted: one line, printable, not long."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text[: 4 * TEXT_LIMIT].split())
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 3] + "..."


def check_names(names: Mapping[str, object], expected: Mapping[str, object], what: str) -> None:
    """Refuse another set of names.

    Raises:
        ReplyFault: names a few that are missing or were not asked for.
    """
    # So many that they are not worth looking at.
    if len(names) > 2 * len(expected) + 100:
        raise ReplyFault(f"sent {len(names)} {what}, expected {len(expected)}")
    if names.keys() == expected.keys():
        return
    extra = sorted(str(name) for name in names if name not in expected)
    missing = sorted(name for name in expected if name not in names)
    faults = [f"sent other {what} than it was asked for: {short(', '.join(extra[:3]))}"] if extra else []
    faults += [f"left out {what}: {', '.join(missing[:3])}"] if missing else []
    raise ReplyFault("; ".join(faults))


def check_size(arrays: Mapping[str, SerializedArray], layout: Mapping[str, Entry]) -> None:
    """Refuse more bytes than the layout has, before any of them is read.

    Raises:
        ReplyFault: the sizes.
    """
    allowed = sum(entry.nbytes + HEADER_BYTES for entry in layout.values())
    size = sum(len(each.data) for each in arrays.values())
    if size > allowed:
        raise ReplyFault(f"sent {size} bytes, at most {allowed} were expected")


def decode_array(array: SerializedArray, entry: Entry, name: str = "array") -> np.ndarray:
    """An array out of its bytes, read-only, or a fault; never unpickles and never allocates more than is there.

    Args:
        array: as it came.
        entry: what it must be.
        name: of it, for the fault.

    Raises:
        ReplyFault: another type, shape or number of bytes than expected, or bytes that are no `.npy` array.
    """
    if array.stype != "numpy.ndarray":
        raise ReplyFault(f"{name} is packed as {short(array.stype)}, expected numpy.ndarray")
    _check_kind(name, str(array.dtype), tuple(array.shape), entry)
    data = array.data
    if len(data) > entry.nbytes + HEADER_BYTES:
        raise ReplyFault(f"{name} has {len(data)} bytes, at most {entry.nbytes + HEADER_BYTES} were expected")
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, is_fortran, dtype = read_header(stream)
    except Exception:  # noqa: BLE001  # numpy parses the header as Python, and raises what Python raises
        raise ReplyFault(f"{name} is no .npy array") from None
    # The header has the last word on what the bytes mean: it must say what was declared.
    _check_kind(name, str(dtype) if dtype.isnative else dtype.str, tuple(shape), entry)
    there = len(data) - stream.tell()
    if there != entry.nbytes:
        raise ReplyFault(f"{name} has {there} bytes of numbers, expected {entry.nbytes}")
    return np.ndarray(shape, dtype, data, stream.tell(), order="F" if is_fortran else "C")


def _check_kind(name: str, dtype: str, shape: tuple[Any, ...], entry: Entry) -> None:
    if dtype != entry.dtype:
        raise ReplyFault(f"{name} has type {short(dtype)}, expected {entry.dtype}")
    if shape != entry.shape:
        raise ReplyFault(f"{name} has shape {short(shape)}, expected {entry.shape}")
