"""The README's Python runs as printed, and says what the code says."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.csv").write_text(
        "image,identity,group,approach,label,score\n"
        + "\n".join(
            f"{approach}{person},p{person},{'AB'[person % 2]},{approach},{label},{(0.3 + 0.4 * label + 0.013 * person) % 1:.3f}"
            for approach, label in (("real", 0), ("swap", 1))
            for person in range(40)
        )
    )
    assert blocks()
    for block in blocks():
        exec(compile(block, str(README), "exec"), {})
    assert (tmp_path / "report.html").exists()


def test_every_file_of_the_section_table_exists() -> None:
    source = README.parent / "src/fairfd"
    named = re.findall(r"`((?!tests/)(?:\w+/)*\w+\.py)`", README.read_text(encoding="utf-8"))
    assert len(named) > 15
    for name in named:
        assert (source / name).exists(), name
