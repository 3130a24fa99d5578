"""Archives of a stranger."""

import zipfile
from pathlib import Path

import pytest

import tenfold.archives
from tenfold.archives import open_zip
from tenfold.errors import UserError


def test_names_that_lead_outside_are_not_there(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("../out.png", "/abs.png", "a/../../b.png", "folder/", "good/b.png", "good/a.png"):
            archive.writestr(name, b"x")
    with open_zip(tmp_path / "x.zip") as archive:
        assert archive.names == ["good/a.png", "good/b.png"]
        assert archive.read("good/a.png") == b"x"


def test_members_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenfold.archives, "MEMBER_LIMIT", 2**20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(2**20 + 1))
    with open_zip(tmp_path / "x.zip") as archive, pytest.raises(UserError, match=r"bomb.png: is larger"):
        archive.read("bomb.png")


def test_damaged_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"hello " * 100)
    whole = (tmp_path / "x.zip").read_bytes()
    for name, content in {"text": b"hello", "cut": whole[: len(whole) // 2], "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name), open_zip(tmp_path / name):
            pass
    (tmp_path / "flipped").write_bytes(whole[:35] + bytes(8) + whole[43:])
    with open_zip(tmp_path / "flipped") as archive, pytest.raises(UserError, match="cannot read"):
        archive.read(archive.names[0])
    for place in (tmp_path, tmp_path / "none.zip"):
        with pytest.raises(UserError), open_zip(place):
            pass
