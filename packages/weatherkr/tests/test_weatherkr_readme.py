"""The README's Python runs as printed, and names files that exist."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "rainy.jpg", tmp_path / "photos" / "a.png"):
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).save(path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})
    assert (tmp_path / "clear.jpg").exists()


def test_every_file_of_the_section_table_exists() -> None:
    source = README.parent / "src/weatherkr"
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", README.read_text(encoding="utf-8"))
    assert len(named) > 15
    for name in named:
        assert (source / name).exists(), name
