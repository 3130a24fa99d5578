"""The metadata probe: file format, size and JPEG tables must not tell real from fake."""

from pathlib import Path

import numpy as np
import pytest

from fairfd.data.manifest.validation import measure_shortcuts, shortcut_warnings
from tenfold.images import write_image

PIXELS = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)


def files(folder: Path, label: int, suffix: str = ".png", side: int = 16, quality: int = 95, count: int = 6):
    found = []
    for i in range(count):
        path = folder / f"{label}-{i}{suffix}"
        write_image(path, PIXELS[:side, :side], quality=quality)
        found.append((path, label))
    return found


def test_alike_files_give_no_shortcut(tmp_path):
    images = files(tmp_path, 0) + files(tmp_path, 1)
    assert all(found.balanced_accuracy == pytest.approx(0.5) for found in measure_shortcuts(images))
    assert shortcut_warnings(images) == []


@pytest.mark.parametrize(
    ("change", "trait"),
    [({"suffix": ".jpg"}, "format"), ({"side": 8}, "size"), ({"suffix": ".jpg", "quality": 50}, "quantisation tables")],
)
def test_each_trait_is_found(tmp_path, change, trait):
    same = {"suffix": change.get("suffix", ".png")} if trait == "quantisation tables" else {}
    images = files(tmp_path, 0, **same) + files(tmp_path, 1, **change)
    by_trait = {found.trait: found.balanced_accuracy for found in measure_shortcuts(images)}
    assert by_trait[trait] == pytest.approx(1)
    assert any(f"shortcut: {trait} " in line for line in shortcut_warnings(images))


def test_a_partial_leak_is_measured_as_the_best_rule_would_do(tmp_path):
    images = files(tmp_path, 0) + files(tmp_path, 1, count=3) + files(tmp_path, 1, ".jpg", count=3)
    by_trait = {found.trait: found.balanced_accuracy for found in measure_shortcuts(images)}
    # Says "real" for PNG and "fake" for JPEG: all reals and half of the fakes are right.
    assert by_trait["format"] == pytest.approx(0.75)


def test_sizes_that_all_differ_are_no_shortcut(tmp_path):
    images = []
    for i in range(120):
        path = tmp_path / f"{i}.png"
        write_image(path, np.zeros((4 + i, 4, 3), np.float32))
        images.append((path, i % 2))
    by_trait = {found.trait: found.balanced_accuracy for found in measure_shortcuts(images)}
    assert by_trait["size"] == pytest.approx(0.5)


def test_one_class_alone_and_unreadable_files_are_passed_over(tmp_path):
    images = files(tmp_path, 0)
    assert measure_shortcuts(images) == ()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert measure_shortcuts([*images, (broken, 1)]) == ()
