"""Files of a stranger: each fault is one line that names the file."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tenfold.errors import UserError
from tenfold.reading import (
    FIELD_LIMIT,
    read_array,
    read_bytes,
    read_json,
    read_json_object,
    read_rows,
    read_text,
    read_toml,
)

DEEP = "[" * 100_000
BAD_JSON = {
    "empty": b"",
    "cut": b'{"a": [1',
    "deep": DEEP.encode(),
    "deep objects": b'{"a":' * 50_000,
    "binary": bytes(range(128, 256)),
    "a number too long": b"1" * 5000,
}
BAD_TOML = {
    "syntax": b"a = = 1",
    "deep": b"x = " + DEEP.encode(),
    "too large": b"k = 1\n" * 200_000,
    "binary": bytes(range(128, 256)),
}
BAD_TABLES = {
    "empty": b"",
    "other columns": b"x,y\n1,2\n",
    "more fields": b"a,b\n1,2,3\n",
    "a long field": b"a,b\n" + b"x" * (FIELD_LIMIT + 1) + b",1\n",
    "nul": b"a,b\n1\0,2\n",
    "binary": bytes(range(128, 256)),
}


def refuse(read: Callable[[Path], object], path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    refuse(read_json, path)


@pytest.mark.parametrize("content", ["[1]", "null", "3", '"x"', "true"])
def test_an_object_is_expected(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    refuse(read_json_object, path)
    assert read_json(path) is not Ellipsis


@pytest.mark.parametrize("content", BAD_TOML.values(), ids=BAD_TOML.keys())
def test_bad_toml(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    refuse(read_toml, path)


@pytest.mark.parametrize("content", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_tables(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    refuse(lambda each: read_rows(each, ["a", "b"]), path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for place in (tmp_path / "none", tmp_path, tmp_path / "loop", tmp_path / ("x" * 300)):
        for read in (read_json, read_toml, read_rows, read_array, read_bytes):
            refuse(read, place)
    with pytest.raises(UserError, match="no file name"):
        read_text("a\0b")


def test_good_files(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2]}')
    assert read_json_object(tmp_path / "x.json") == {"a": [1, 2]}
    (tmp_path / "x.toml").write_text("a = 1")
    assert read_toml(tmp_path / "x.toml") == {"a": 1}
    (tmp_path / "x.csv").write_text("a,b\r\n1,2\r\n3\r\n")
    assert read_rows(tmp_path / "x.csv", ["a"]) == [{"a": "1", "b": "2"}, {"a": "3", "b": ""}]
    np.save(tmp_path / "x.npy", np.arange(6).reshape(2, 3))
    assert read_array(tmp_path / "x.npy", map_to_disk=True).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_size_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 11)
    assert read_bytes(tmp_path / "x", 11)
    with pytest.raises(UserError, match="too large"):
        read_bytes(tmp_path / "x", 10)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_arrays_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("evil.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    refuse(read_array, Path("evil.npy"))
    assert not Path("ran").exists()


def test_damaged_arrays(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((40, 8)))
    whole = stream.getvalue()
    np.savez(tmp_path / "many.npz", a=np.zeros(3))
    for name, content in {"cut": whole[:200], "empty": b"", "text": b"hello", "header": whole[:20]}.items():
        (tmp_path / name).write_bytes(content)
        refuse(read_array, tmp_path / name)
    refuse(read_array, tmp_path / "many.npz")
