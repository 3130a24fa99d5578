"""The README's Python runs as printed, and names files that exist."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})
    assert (tmp_path / "site1" / "model.safetensors").exists()


def test_every_file_of_the_section_table_exists() -> None:
    source = README.parent / "src/pfrforgery"
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", README.read_text(encoding="utf-8")))
    assert len(named) >= 12
    for name in named:
        assert (source / name).exists(), name
