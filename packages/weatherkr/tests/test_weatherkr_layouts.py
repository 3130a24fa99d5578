"""Public sets as they lie on disk, pairs and patches, the way tasks are written, paired sets made from photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tenfold import UserError
from weatherkr.data.datasets import (
    FolderPairs,
    MixedPairs,
    SyntheticPairs,
    TensorPairs,
    random_patch,
    reflect_to,
    spread,
)
from weatherkr.data.tasks import build_tasks, parse_pairs
from weatherkr.data.writers import write_pairs


def picture(path: Path, value: int, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


LAYOUTS = {
    "reside": [("hazy/0001_0.8_0.04.png", "clear/0001.png"), ("hazy/0001_1_0.2.png", "clear/0001.png"), ("hazy/0002_0.9_0.1.png", "clear/0002.png")],
    "rain100": [("rain/norain-1x2.png", "norain/norain-1.png"), ("rain/norain-10x2.png", "norain/norain-10.png"), ("rain/norain-2x2.png", "norain/norain-2.png")],
    "rain1400": [("rainy_image/901_1.jpg", "ground_truth/901.jpg"), ("rainy_image/901_2.jpg", "ground_truth/901.jpg")],
    "snow100k": [("synthetic/beautiful_smile_01.jpg", "gt/beautiful_smile_01.jpg")],
    "csd": [("Snow/1.tif", "Gt/1.tif"), ("Snow/2.tif", "Gt/2.tif")],
    "raindrop": [("data/0_rain.png", "gt/0_clean.png"), ("data/12_rain.png", "gt/12_clean.png")],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_sets_pair_as_they_lie_on_disk(tmp_path, layout) -> None:
    targets = {}
    for number, (degraded, clean) in enumerate(LAYOUTS[layout]):
        targets.setdefault(clean, 20 * len(targets))
        picture(tmp_path / degraded, 200 + number)
        picture(tmp_path / clean, targets[clean], (28, 22) if layout == "reside" else (24, 20))
    name, pairs = parse_pairs(f"task={layout}:{tmp_path}")
    assert name == "task"
    found = {(a.relative_to(tmp_path).as_posix(), b.relative_to(tmp_path).as_posix()) for a, b in pairs.files}
    assert found == set(LAYOUTS[layout])
    for degraded, clean in (pairs.pair(i) for i in range(len(pairs))):
        assert degraded.shape == clean.shape == (3, 20, 24)
    (tmp_path / LAYOUTS[layout][0][1]).unlink()
    with pytest.raises(UserError, match=r"no clean one|no picture"):
        parse_pairs(f"task={layout}:{tmp_path}")


def test_patches_of_rain100_and_folders_and_tables(tmp_path) -> None:
    for i in (1, 2, 10):
        picture(tmp_path / f"rain/{i}.png", i)
        picture(tmp_path / f"norain/{i}.png", 100 + i)
    _, pairs = parse_pairs(f"rain=rain100:{tmp_path}")
    assert [a.name for a, _ in pairs.files] == ["1.png", "2.png", "10.png"]
    assert len(parse_pairs(f"rain=pairs:{tmp_path / 'rain'}:{tmp_path / 'norain'}")[1]) == 3
    (tmp_path / "t.csv").write_text("input,target\nrain/1.png,norain/2.png\n")
    assert parse_pairs(f"rain=csv:{tmp_path / 't.csv'}")[1].files == [
        (tmp_path / "rain/1.png", tmp_path / "norain/2.png")
    ]
    (tmp_path / "rain/3.png").write_bytes((tmp_path / "rain/1.png").read_bytes())
    with pytest.raises(UserError, match=r"3"):
        parse_pairs(f"rain=pairs:{tmp_path / 'rain'}:{tmp_path / 'norain'}")
    picture(tmp_path / "norain/x1.png", 3)
    with pytest.raises(UserError, match="both are the clean picture '1'"):
        parse_pairs(f"rain=rain100:{tmp_path}")


def test_sizes_that_differ(tmp_path) -> None:
    picture(tmp_path / "a/1.png", 10, (24, 20))
    picture(tmp_path / "b/1.png", 20, (26, 20))
    text = f"rain=pairs:{tmp_path / 'a'}:{tmp_path / 'b'}"
    with pytest.raises(UserError, match="24 x 20 and 26 x 20"):
        parse_pairs(text)[1].pair(0)
    assert parse_pairs(text, crop_to_fit=True)[1].pair(0)[1].shape == (3, 20, 24)
    picture(tmp_path / "b/1.png", 20, (15, 40))
    with pytest.raises(UserError, match="at least 16"):
        parse_pairs(text)[1].pair(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("haze", "write a task as"),
        ("haze=photos", "write a task as"),
        ("haze=cloud:photos", "no layout cloud"),
        ("hail=synth:photos", "hail=synth"),
        ("haze=synth:nowhere", "nowhere"),
        ("rain=pairs:only", "two folders"),
        ("rain=csv:none.csv", r"none\.csv"),
        ("a/b=synth-haze:photos", "file name"),
        ("rain=reside:.", "no folder hazy"),
    ],
)
def test_tasks_that_make_no_sense(tmp_path, monkeypatch, text, message) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "photos/1.png", 5)
    with pytest.raises(UserError, match=message):
        parse_pairs(text)


def test_tasks_of_a_command_line(tmp_path) -> None:
    picture(tmp_path / "1.png", 5)
    built = build_tasks(
        [f"haze=synth:{tmp_path}", f"fog=synth-haze-shifted:{tmp_path}"], [f"fog=synth-haze:{tmp_path}"], seed=0
    )
    assert [each.name for each in built] == ["haze", "fog"]
    assert (built[1].train.kind, built[1].train.setting) == ("haze", "shifted")
    assert built[0].val is None
    with pytest.raises(UserError, match="two tasks named haze"):
        build_tasks([f"haze=synth:{tmp_path}"] * 2, [], seed=0)
    with pytest.raises(UserError, match="no such task"):
        build_tasks([f"haze=synth:{tmp_path}"], [f"rain=synth:{tmp_path}"], seed=0)


def test_synthetic_pairs_keep_a_pictures_weather_and_renew_that_of_patches(tmp_path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", 60 * i, (40, 30))
    files = sorted(tmp_path.iterdir())
    pairs = SyntheticPairs(files, "rain", seed=3)
    degraded, clean = pairs.pair(2)
    assert not torch.equal(degraded, clean)
    torch.testing.assert_close(pairs.pair(2)[0], degraded)
    torch.testing.assert_close(SyntheticPairs(files[2:], "rain", seed=3).pair(0)[0], degraded)
    assert not torch.equal(SyntheticPairs(files, "rain", seed=4).pair(2)[0], degraded)
    draws = [pairs.patch(2, 16, torch.Generator().manual_seed(seed), True)[0] for seed in (0, 1, 0)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert len(pairs.first(2)) == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 50), st.integers(0, 9))
def test_patches_of_any_picture_have_the_size_asked_for(height, width, size, seed) -> None:
    if min(height, width) == 1 and size > 1:
        return
    image = torch.rand(2, height, width)
    assert random_patch(image, size, torch.Generator().manual_seed(seed), True).shape == (2, size, size)
    grown = reflect_to(image, size)
    assert torch.equal(grown[:, :height, :width], image)


def test_windows_of_a_pair_agree_and_mixtures_share_equally() -> None:
    clean = torch.rand(5, 3, 20, 22)
    pairs = TensorPairs(clean / 2, clean)
    for seed in range(6):
        degraded, target = pairs.patch(seed % 5, 16, torch.Generator().manual_seed(seed), True)
        torch.testing.assert_close(degraded * 2, target)
    small = TensorPairs(clean[:2], clean[:2])
    mixed = MixedPairs([pairs, small])
    assert len(mixed) == 10
    from_small = sum(torch.equal(*mixed.pair(i)) for i in range(len(mixed)))
    assert from_small == 5
    assert len(mixed.first(4)) == 4
    assert spread(10, 3) == [0, 3, 6]
    with pytest.raises(UserError, match="not pairs"):
        TensorPairs(clean[:0], clean[:0])
    with pytest.raises(UserError, match="at least one"):
        FolderPairs([])


def test_paired_sets_from_photographs(tmp_path) -> None:
    picture(tmp_path / "in/a.jpg", 90, (64, 48))
    picture(tmp_path / "in/sub/b.png", 30, (32, 32))
    assert len(write_pairs(tmp_path / "in", tmp_path / "out", ("rain", "haze"), seed=1).results) == 2
    name, pairs = parse_pairs(f"rain=pairs:{tmp_path / 'out/rain/degraded'}:{tmp_path / 'out/rain/clean'}")
    assert (name, len(pairs)) == ("rain", 2)
    assert "seed 1" in (tmp_path / "out/rain/README.txt").read_text()
    write_pairs(tmp_path / "in", tmp_path / "again", ("rain",), seed=1)
    first, second = (np.asarray(Image.open(tmp_path / place / "rain/degraded/a.png")) for place in ("out", "again"))
    assert np.array_equal(first, second)
    picture(tmp_path / "in/a.png", 90, (64, 48))
    with pytest.raises(UserError, match="both would become"):
        write_pairs(tmp_path / "in", tmp_path / "twins", ("rain",))
    assert not (tmp_path / "twins").exists()
    for kinds, message in ((("rain",), "exists"), (("hail",), "--kind hail")):
        with pytest.raises(UserError, match=message):
            write_pairs(tmp_path / "in", tmp_path / "out", kinds)
