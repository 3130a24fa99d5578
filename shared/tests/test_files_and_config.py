"""Whole files or none; configurations that say what is wrong with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tenfold.config import for_verb, from_toml, read_toml, to_toml
from tenfold.errors import UserError
from tenfold.files import atomic_path, write_text


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
    assert list(target.parent.iterdir()) == []
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


def test_whole_numbers_serve_as_floats() -> None:
    assert from_toml("lr = 1", Recipe).lr == 1.0


def test_a_verbs_table_goes_before_the_common_keys() -> None:
    values = {"seed": 1, "lr": 2, "train": {"lr": 3}, "distill": {"lr": 4}}
    assert for_verb(values, "train") == {"seed": 1, "lr": 3}
    assert for_verb(values, "eval") == {"seed": 1, "lr": 2}


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none.toml", tmp_path / "x.toml"):
        with pytest.raises(UserError, match=r"\.toml: cannot read"):
            read_toml(path)
