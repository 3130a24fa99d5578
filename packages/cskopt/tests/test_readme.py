"""The Python examples of the README run as printed."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_python_examples_run(capsys: pytest.CaptureFixture) -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    assert "layer4.1.conv1" in capsys.readouterr().out


def test_every_file_of_the_table_exists() -> None:
    source = README.parent / "src" / "cskopt"
    rows = [
        line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and ".py`" in line
    ]
    assert len(rows) >= 9
    for row in rows:
        text = "".join((source / name).read_text(encoding="utf-8") for name in re.findall(r"`((?:\w+/)*\w+\.py)`", row))
        for function in re.findall(r"`(\w+)`", row.split("|")[3]):
            assert re.search(rf"(def|class) {function}\b", text), function
