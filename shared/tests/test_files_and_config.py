"""Whole files or none; configurations that say what is wrong with them."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import tenfold.files
from tenfold.checkpoints import read_tensors
from tenfold.config import for_verb, from_dict, from_toml, to_toml
from tenfold.errors import UserError, WriteError
from tenfold.files import atomic_folder, atomic_path, check_writable, remove_stale, write_text
from tenfold.options import Count, Positive
from tenfold.reading import read_toml


@dataclass(frozen=True)
class Recipe:
    epochs: int = 3
    lr: float = 1e-3
    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None
    flip: bool = True


def _write_half(temporary: Path, target: Path) -> None:
    temporary.write_text("half")
    assert temporary.suffix == ".txt"
    assert not target.exists()
    raise RuntimeError


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x.txt"
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        _write_half(temporary, target)
    assert not target.parent.exists(), "folders made for it are taken back"
    write_text(target, "whole")
    write_text(target, "again")
    assert target.read_text() == "again"
    assert list(target.parent.iterdir()) == [target]


def test_the_old_file_survives_a_failed_write(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "x"):
        raise RuntimeError
    assert (tmp_path / "x").read_text() == "old"


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target, word in [(tmp_path / "file" / "x", "cannot write"), (tmp_path, "is a folder")]:
        with pytest.raises(UserError, match=word):
            write_text(target, "")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "new/x") as temporary:
        (temporary / "half").replace(temporary / "nothing")
    assert not (tmp_path / "new").exists()
    for _ in range(2):
        (tmp_path / "x").mkdir(exist_ok=True)  # an empty folder is taken
        with atomic_folder(tmp_path / "x") as temporary:
            (temporary / "whole").write_text("whole")
        assert [path.name for path in (tmp_path / "x").iterdir()] == ["whole"]
        (tmp_path / "x/whole").unlink()
    (tmp_path / "x/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "x", tmp_path / "file"):
        with pytest.raises(UserError, match=r"is not empty|is a file"), atomic_folder(place):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "x"]


def test_a_place_is_tried_without_a_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b/c.png")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file/x", tmp_path / ("x" * 300)):
        with pytest.raises(WriteError, match="cannot write here"):
            check_writable(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


FILL = """
import resource, signal, sys
import torch
from tenfold.checkpoints import write_tensors
from tenfold.errors import WriteError
from tenfold.files import write_text

target = sys.argv[1]
write_text(target + ".txt", "old")
write_tensors(target, {"a": torch.zeros(10)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (lambda: write_text(target + ".txt", "x" * 5000), lambda: write_tensors(target, {"a": torch.zeros(5000)})):
    try:
        write()
    except WriteError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_and_keeps_what_was_there(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    target = tmp_path / "w.safetensors"
    done = subprocess.run([sys.executable, "-c", FILL, target], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all("cannot write" in line and "is kept" in line and str(target) in line for line in lines)
    assert len(read_tensors(target)[0]["a"]) == 10
    assert Path(f"{target}.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2, "no temporary file stays"


def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenfold.files, "_swept", set())
    code = "import os, sys; from tenfold.files import atomic_path; held = atomic_path(sys.argv[1]); held.__enter__(); os._exit(9)"
    for name in ("a.png", "deep/b.png"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], check=False)
    assert len(list(tmp_path.rglob("*.tmp-*"))) == 2
    with atomic_path(tmp_path / "living.png"):
        remove_stale(tmp_path, recursive=True)
        assert len(list(tmp_path.rglob("*.tmp-*"))) == 1, "the file of a living process stays"


def test_a_configuration_survives_toml() -> None:
    for recipe in (Recipe(), Recipe(7, 0.5, "ü", (4,), "slow", 9, False)):
        assert from_toml(to_toml(recipe), Recipe) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch = 3", "epoch"),
        ("epochs = 2.5", "epochs"),
        ('lr = "fast"', "lr"),
        ("flip = 1", "flip"),
        ('mode = "medium"', "mode"),
        ('sizes = ["a"]', "sizes"),
        ("epochs = ", "not valid TOML"),
    ],
)
def test_mistakes_in_a_configuration_are_one_line_that_names_them(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        from_toml(text, Recipe, "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Kinds:
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    word: str = ""
    kind: Literal["adam", "sgd"] = "adam"
    steps: Count = 3
    rate: Positive | None = None
    root: Path | None = None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"names": "abc"}, "'abc' is not a list for names"),
        ({"names": [1]}, "1 is not text for names"),
        ({"sizes": ["x"]}, "'x' is not a whole number for sizes"),
        ({"word": 5}, "5 is not text for word"),
        ({"kind": "sdg"}, "'sdg' is not one of adam, sgd; did you mean sgd? for kind"),
        ({"steps": 1.5}, "1.5 is not a whole number for steps"),
        ({"rate": "x"}, "'x' is not a number for rate"),
        ({"root": 5}, "5 is not text for root"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(values, Kinds, "here")
    assert str(caught.value) == f"here: {says}"


def test_lists_become_tuples_and_text_becomes_paths() -> None:
    values = {"names": ["a"], "sizes": [1, 2], "root": "x", "rate": 2}
    assert from_dict(values, Kinds, "here") == Kinds(names=("a",), sizes=(1, 2), root=Path("x"), rate=2.0)


def test_whole_numbers_serve_as_floats() -> None:
    assert from_toml("lr = 1", Recipe).lr == 1.0


def test_a_verbs_table_goes_before_the_common_keys() -> None:
    values = {"seed": 1, "lr": 2, "train": {"lr": 3}, "distill": {"lr": 4}}
    assert for_verb(values, "train") == {"seed": 1, "lr": 3}
    assert for_verb(values, "eval") == {"seed": 1, "lr": 2}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none.toml", tmp_path / "x.toml"):
        with pytest.raises(UserError, match=r"\.toml: is not UTF-8|\.toml: cannot read"):
            read_toml(path)
