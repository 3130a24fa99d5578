"""The command-line conventions, on a command line made for the purpose, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
from dataclasses import dataclass
from pathlib import Path

from tenfold import UserError
from tenfold.cli import Parameter, Paper, RunOptions, create_app, run, verb
from tenfold.runs import RunFolder

app = create_app("sketch", "Draws.", Paper("On Drawing", ("Doe, Jane", "Roe, R."), "CVPR", 2025, "https://example.org"))


@Parameter(name="*")
@dataclass(frozen=True)
class Recipe:
    """How to draw.

    Attributes:
        lr: Learning rate.
        epochs: Passes over the data.
    """

    lr: float = 1.0
    epochs: int = 1


@verb(app, "sketch draw house", "sketch draw tree --lr 3")
def draw(what: str, *, options: RunOptions, recipe: Recipe = Recipe()) -> int | None:
    """Draw a thing.

    Args:
        what: The thing.
    """
    if what == "refused":
        RunFolder.create(options.out, recipe)
        raise UserError("refused")
    if what == "mistake":
        raise UserError("mistake.png: is [red]not[/red] there;\\n choose another " + "x" * 100)
    if what == "missing":
        Path("nowhere.txt").read_text()
    if what == "loop":
        Path("loop").symlink_to("loop")
        Path("loop").resolve(strict=True)
    if what == "bug":
        raise RuntimeError("a bug")
    if what == "stop":
        raise KeyboardInterrupt
    if what == "limit":
        return 3
    print(what, recipe.lr, recipe.epochs, options.preset)


run(app)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    (root / "sketch" / "presets").mkdir(parents=True)
    (root / "sketch" / "__init__.py").touch()
    (root / "sketch" / "presets" / "small.toml").write_text("epochs = 5\n[draw]\nlr = 0.5\n[other]\nlr = 9\n")
    (root / "sketch" / "presets" / "odd.toml").write_text("epocs = 5\n")
    (root / "sketch-0.1.0.dist-info").mkdir()
    (root / "sketch-0.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sketch\nVersion: 0.1.0\n")
    (root / "program.py").write_text(PROGRAM)
    (root / "mine.toml").write_text("lr = 0.25\n")
    (root / "bad.toml").write_text("lr = \n")
    return root


def sketch(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(place), "COLUMNS": "70"}
    command = [sys.executable, str(place / "program.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, check=False)


def test_options_come_from_the_line_then_the_file_then_the_preset_then_the_default(place: Path) -> None:
    assert sketch(place, "draw", "house", "--out", "o").stdout == "house 0.5 5 small\n"
    assert sketch(place, "draw", "house", "--out", "o", "--config", "mine.toml").stdout == "house 0.25 5 small\n"
    typed = sketch(place, "draw", "house", "--out", "o", "--config", "mine.toml", "--lr", "7", "--epochs", "2")
    assert typed.stdout == "house 7.0 2 small\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["draw", "mistake", "--out", "o"], "sketch: mistake.png: is [red]not[/red] there; choose another xxx"),
        (["draw", "missing", "--out", "o"], "sketch: nowhere.txt: No such file or directory"),
        (["draw", "house"], "--out"),
        (["draw", "house", "--out", "o", "--bogus", "1"], "--bogus"),
        (["draw", "house", "--out", "o", "--lr", "fast"], "fast"),
        (["draw", "house", "--out", "o", "--lr", "nan"], "--lr: nan is not a finite number"),
        (["draw", "house", "--out", "o", "--epochs", "1" + "0" * 20], "--epochs: is too large a number"),
        (["draw", "loop", "--out", "o"], "loop"),
        (["draw", "house", "--out", "o", "--preset", "none"], "sketch has odd, small"),
        (["draw", "house", "--out", "o", "--preset", "odd"], "epocs"),
        (["draw", "house", "--out", "o", "--config", "none.toml"], "none.toml: cannot read"),
        (["draw", "house", "--out", "o", "--config", "bad.toml"], "bad.toml: not valid TOML"),
        (["bogus"], "bogus"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(place: Path, arguments: list[str], words: str) -> None:
    result = sketch(place, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


def test_a_refused_verb_leaves_no_run_folder(place: Path) -> None:
    assert sketch(place, "draw", "refused", "--out", "refused-run").returncode == 2
    assert not (place / "refused-run").exists()


def test_debug_shows_the_traceback_and_a_bug_always_does(place: Path) -> None:
    assert "Traceback" in sketch(place, "draw", "mistake", "--out", "o", "--debug").stderr
    bug = sketch(place, "draw", "bug", "--out", "o")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr


def test_exit_codes_of_limits_and_interruption(place: Path) -> None:
    assert sketch(place, "draw", "limit", "--out", "o").returncode == 3
    stopped = sketch(place, "draw", "stop", "--out", "o")
    assert stopped.returncode == 130
    assert len(stopped.stderr.splitlines()) == 1


def test_help_shows_verbs_fields_and_examples(place: Path) -> None:
    top = sketch(place, "--help")
    assert top.returncode == 0
    assert "draw" in top.stdout
    assert "info" in top.stdout
    one = sketch(place, "draw", "--help")
    for words in ("Learning rate.", "--epochs", "$ sketch draw tree --lr 3", "--resume"):
        assert words in one.stdout


def test_version_and_info(place: Path) -> None:
    assert sketch(place, "--version").stdout.strip() == "0.1.0"
    info = sketch(place, "info")
    assert info.returncode == 0
    for words in ("sketch", "torch", "On Drawing", "@inproceedings{doe2025on,", "author = {Doe, Jane and Roe, R.}"):
        assert words in info.stdout


def test_help_does_not_load_torch(place: Path) -> None:
    code = "import sys; import tenfold.cli; import tenfold; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=place, check=False).returncode == 0
