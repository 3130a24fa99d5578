"""The helpers of the other tests."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tenfold.cli import Paper, create_app, verb
from tenfold.errors import UserError
from tenfold.testing import code_blocks, load_golden, run_command

app = create_app("sketch", "Draws.", Paper("On Drawing", ("Doe, Jane",), "CVPR", 2025, "https://example.org"))


@verb(app, "sketch draw house")
def draw(what: str) -> int:
    """Draw a thing."""
    if what == "nothing":
        raise UserError("nothing: cannot be drawn")
    sys.stdout.write(f"{what} in {Path.cwd().name}\n")
    sys.stderr.write("careful\n")
    return 3 if what == "half" else 0


def test_a_command_line_answers(tmp_path: Path) -> None:
    place = tmp_path / "here"
    place.mkdir()
    good = run_command(app, "draw 'a house'", place)
    assert (good.code, good.out, good.err) == (0, "a house in here\n", "careful\n")
    assert run_command(app, ["draw", "half"]).code == 3
    bad = run_command(app, ["draw", "nothing"])
    assert (bad.code, bad.out, bad.err) == (2, "", "sketch: nothing: cannot be drawn\n")


def test_golden_vectors_and_blocks(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.arange(3))
    assert load_golden(tmp_path, "x")["a"].tolist() == [0, 1, 2]
    with pytest.raises(FileNotFoundError):
        load_golden(tmp_path, "y")
    (tmp_path / "README.md").write_text(
        "# T\n```python\nx = 1\n```\ntext\n```console\n$ a\n```\n```python\ny = 2\n```\n"
    )
    assert code_blocks(tmp_path / "README.md", "python") == ["x = 1\n", "y = 2\n"]
