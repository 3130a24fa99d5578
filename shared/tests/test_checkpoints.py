"""Weights of a stranger are read without running what is in them; damaged ones are one line."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tenfold.checkpoints import load_weights, read_metadata, read_state_dict, read_tensors, write_tensors
from tenfold.errors import UserError


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(1)}, {"note": '{"step": 3}'})
    tensors, metadata = read_tensors(path)
    assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3).T)
    assert read_metadata(metadata, "note", path) == {"step": 3}
    with pytest.raises(UserError, match="no 'other'"):
        read_metadata(metadata, "other", path)
    with pytest.raises(UserError, match="damaged"):
        read_metadata({"note": "[]"}, "note", path)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.zeros(0)}
    metadata = {f"key {number}": '{"quoted": "ünï"}\n' for number in range(8)}
    for number in range(8):
        write_tensors(tmp_path / str(number), tensors, metadata if number % 2 else dict(reversed(metadata.items())))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1
    read, said = read_tensors(tmp_path / "0")
    assert said == metadata
    assert torch.equal(read["b"], tensors["b"])


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("evil.pth", "evil.safetensors", "evil.ckpt"):
        Path(name).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(UserError, match=name):
            read_state_dict(name)
    torch.save({"state_dict": {"a": Payload()}}, "zip.pth")
    with pytest.raises(UserError, match="could run code"):
        read_state_dict("zip.pth")
    assert not Path("ran").exists()


def test_damaged_files(tmp_path: Path) -> None:
    write_tensors(tmp_path / "whole.safetensors", {"a": torch.zeros(100)})
    torch.save({"a": torch.zeros(100)}, tmp_path / "whole.pth")
    bad = {
        "cut.safetensors": (tmp_path / "whole.safetensors").read_bytes()[:-4],
        "cut.pth": (tmp_path / "whole.pth").read_bytes()[:300],
        "header.safetensors": struct.pack("<Q", 2**60) + b"{}",
        "empty.pth": b"",
        "empty.safetensors": b"",
        "text.pth": b"hello world",
        "text.safetensors": b"hello world",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_state_dict(tmp_path / name)
    for place in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(UserError):
            read_state_dict(place)
        with pytest.raises(UserError):
            read_tensors(place)


def test_an_archive_that_grows_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(64 * 2**20))
    with pytest.raises(UserError, match="unpacks to"):
        read_state_dict(tmp_path / "bomb.pth")


@pytest.mark.parametrize("key", [None, "state_dict", "model", "params_ema"])
def test_public_wrappers(key: str | None, tmp_path: Path) -> None:
    weights = {"fc.weight": torch.ones(2)}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "w.pth")
    assert list(read_state_dict(tmp_path / "w.pth")) == ["fc.weight"]


def test_a_file_without_weights(tmp_path: Path) -> None:
    for content in ([1, 2], {"epoch": 3}, torch.zeros(3)):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match="no weights by name"):
            read_state_dict(tmp_path / "w.pth")


def test_weights_must_fit() -> None:
    module = nn.Linear(2, 3)
    good = {name: torch.ones_like(value) for name, value in module.state_dict().items()}
    load_weights(module, good, "w.pth")
    assert module.weight.eq(1).all()
    with pytest.raises(UserError, match=r"w.pth: .*1 missing, first bias; 1 unknown, first more"):
        load_weights(module, {"weight": good["weight"], "more": torch.zeros(1)}, "w.pth")
    with pytest.raises(UserError, match=r"bias is \(1,\), expected \(3,\)"):
        load_weights(module, good | {"bias": torch.zeros(1)}, "w.pth")
