"""The README's Python runs as printed, and names files that exist."""

import re
from pathlib import Path

import numpy as np
import pytest

from tenfold.images import write_image

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image("photo.jpg", np.random.default_rng(0).random((24, 32, 3)).astype(np.float32))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})
    assert (tmp_path / "large.png").exists()


def test_every_file_of_the_section_table_exists() -> None:
    source = README.parent / "src/tadsr"
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", README.read_text(encoding="utf-8"))
    assert len(named) > 12
    for name in named:
        assert (source / name).exists(), name
