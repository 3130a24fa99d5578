"""The README's Python runs as printed, and its tables name what is there."""

import re
from pathlib import Path

import numpy as np
import pytest

import instructbrush
from tenfold.images import write_image

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in range(3):
        image = rng.random((60, 60, 3)).astype(np.float32)
        write_image(Path(f"pairs/{index}_0.png"), image)
        write_image(Path(f"pairs/{index}_1.png"), image * np.float32([0.9, 0.6, 0.3]))
    write_image(Path("photo.jpg"), image)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    scope: dict = {}
    for block in blocks:
        # Two updates show that it runs; how well is measured elsewhere.
        exec(
            compile(block.replace('learning_preset("small")', 'learning_preset("tiny", steps=2)'), str(README), "exec"),
            scope,
        )
    assert Path("edit.safetensors").exists()
    assert Path("edited.png").exists()


def test_every_file_and_function_of_the_table_exists() -> None:
    rows = re.findall(r"^\|[^|]+\| `((?:\w+/)*\w+\.py)` \| (.+) \|$", TEXT, re.MULTILINE)
    assert len(rows) > 10
    source = Path(instructbrush.__file__).parent
    for file, functions in rows:
        code = (source / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", functions):
            assert re.search(rf"^(?:    )?(?:def|class) {name}\b", code, re.MULTILINE), (file, name)
