"""The README's Python runs as printed, and the files that it names exist."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


def test_every_file_of_the_section_table_exists() -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", README.read_text(encoding="utf-8"))
    assert len(named) > 6
    for name in named:
        assert (README.parent / "src/asmattack" / name).exists(), name
