"""Crops on disk: tiny folders in the layouts of SYSU-MM01, RegDB, LLCM and plain folders (section 6)."""

import random
from pathlib import Path

import numpy as np
import pytest

from multreid.config import EvalConfig
from multreid.data.datasets import CropSet, duplicated
from multreid.data.layouts import (
    folder_crops,
    llcm_test,
    llcm_training,
    regdb_part,
    sysu_test,
    sysu_training,
)
from multreid.evaluation.protocols import convention_of, trials_of
from tenfold import UserError
from tenfold.images import write_image


def picture(path: Path, value: float = 0.5) -> None:
    write_image(path, np.full((6, 4, 3), value, np.float32))


@pytest.fixture(scope="module")
def sysu(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sysu")
    (root / "exp").mkdir()
    for part, ids in {"train": "1,4", "val": "2", "test": "6,10"}.items():
        (root / "exp" / f"{part}_id.txt").write_text(ids + "\n")
    for identity in (1, 2, 4, 6, 10):
        for camera in range(1, 7):
            if (identity, camera) == (6, 4):
                continue  # not everybody was seen everywhere
            for number in range(3):
                picture(
                    root / f"cam{camera}" / f"{identity:04d}" / f"{number + 1:04d}.jpg", identity / 20 + number / 10
                )
    return root


def test_sysu_trains_on_train_and_val_identities(sysu) -> None:
    visible, infrared = sysu_training(sysu)
    assert set(visible.identities) == set(infrared.identities) == {1, 2, 4}
    assert set(visible.cameras) == {1, 2, 4, 5}
    assert set(infrared.cameras) == {3, 6}
    assert len(visible) == 3 * 4 * 3


def test_sysu_tests_one_visible_picture_per_identity_and_camera(sysu) -> None:
    queries, gallery = sysu_test(sysu, "all", trial=3)
    assert len(queries) == 2 * 2 * 3
    assert queries.modality == "infrared"
    pairs = list(zip(gallery.identities.tolist(), gallery.cameras.tolist(), strict=True))
    assert pairs == [(6, 1), (6, 2), (6, 5), (10, 1), (10, 2), (10, 4), (10, 5)]
    # The benchmark's own way to choose: Python's generator, seeded by the trial, one draw per identity and camera.
    chance = random.Random(3)
    assert [path.name for path in gallery.paths] == [f"{chance.choice([1, 2, 3]):04d}.jpg" for _ in pairs]
    assert set(sysu_test(sysu, "indoor", 0)[1].cameras) == {1, 2}


def test_sysu_protocol_averages_ten_trials(sysu) -> None:
    test = EvalConfig(dataset="sysu", root=sysu)
    trials = list(trials_of(test))
    assert len(trials) == 10
    assert convention_of(test) == "sysu"
    assert len({tuple(gallery.paths) for _, gallery in trials}) > 1


@pytest.fixture(scope="module")
def regdb(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("regdb")
    for part, ids in {"train": (0, 1), "test": (2, 3)}.items():
        for name, folder in {"visible": "Visible", "thermal": "Thermal"}.items():
            lines = []
            for identity in ids:
                for number in range(2):
                    relative = f"{folder}/{identity + 1}/male_{number}_{name[0]}.bmp"
                    picture(root / relative, identity / 10)
                    lines.append(f"{relative} {identity}")
            (root / "idx").mkdir(exist_ok=True)
            (root / "idx" / f"{part}_{name}_4.txt").write_text("\n".join(lines) + "\n")
    return root


def test_regdb_reads_the_index_files_of_its_trial(regdb) -> None:
    visible, infrared = regdb_part(regdb, "train", 4)
    assert visible.identities.tolist() == infrared.identities.tolist() == [0, 0, 1, 1]
    assert all(path.is_file() for path in visible.paths + infrared.paths)
    with pytest.raises(UserError, match=r"test_visible_5\.txt"):
        regdb_part(regdb, "test", 5)
    with pytest.raises(UserError, match="trials 1 to 10"):
        regdb_part(regdb, "test", 11)


@pytest.mark.parametrize(("query", "modality"), [("infrared", "infrared"), ("visible", "visible")])
def test_regdb_is_searched_in_both_directions(regdb, query, modality) -> None:
    ((queries, gallery),) = trials_of(EvalConfig(dataset="regdb", root=regdb, trial=4, query=query))
    assert queries.modality == modality
    assert gallery.modality != modality


@pytest.fixture(scope="module")
def llcm(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("llcm")
    (root / "idx").mkdir()
    (root / "idx" / "test_id.txt").write_text("5,9")
    for short, folder in {"vis": "vis", "nir": "nir"}.items():
        relative = f"{folder}/0001/0001_c03_s1_f{short}.jpg"
        picture(root / relative)
        (root / "idx" / f"train_{short}.txt").write_text(f"{relative} 0\n")
        for identity in (5, 9):
            for camera in (1, 3):
                for number in range(2):
                    picture(root / f"test_{short}" / f"cam{camera}" / f"{identity:04d}" / f"{number}.jpg", number / 2)
    return root


def test_llcm_reads_both_parts(llcm) -> None:
    visible, infrared = llcm_training(llcm)
    assert visible.identities.tolist() == infrared.identities.tolist() == [0]
    assert visible.cameras.tolist() == [3]
    queries, gallery = llcm_test(llcm, "infrared", trial=1)
    assert len(queries) == 2 * 2 * 2
    assert list(zip(gallery.identities.tolist(), gallery.cameras.tolist(), strict=True)) == [
        (5, 1),
        (5, 3),
        (9, 1),
        (9, 3),
    ]
    assert llcm_test(llcm, "visible")[0].modality == "visible"


def test_folders_give_identity_and_camera_where_names_do(tmp_path) -> None:
    picture(tmp_path / "0007" / "c2_001.png")
    picture(tmp_path / "0012" / "0012_c5_f9.png")
    crops = folder_crops(tmp_path, "visible")
    assert crops.identities.tolist() == [7, 12]
    assert crops.cameras.tolist() == [2, 5]
    assert crops.has_identities
    picture(tmp_path / "loose.png")
    assert not folder_crops(tmp_path, "visible").has_identities


def test_crops_are_resized_and_kept(tmp_path) -> None:
    picture(tmp_path / "a.png", 0.25)
    crops = CropSet(folder_crops(tmp_path, "visible"), 16, 8)
    first = crops[0]
    assert first.shape == (3, 16, 8)
    assert (first == 64).all()
    (tmp_path / "a.png").unlink()
    assert crops[0] is first


def test_duplicated_files_are_found(tmp_path) -> None:
    picture(tmp_path / "a.png", 0.2)
    picture(tmp_path / "b.png", 0.9)
    picture(tmp_path / "c.png", 0.2)
    pairs = duplicated(folder_crops(tmp_path, "visible"))
    assert [(one.name, other.name) for one, other in pairs] == [("a.png", "c.png")]


def test_missing_and_broken_lists_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"train_id.txt: no such file"):
        sysu_training(tmp_path)
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "test_id.txt").write_text("1,x")
    with pytest.raises(UserError, match="comma-separated"):
        sysu_test(tmp_path)
    (tmp_path / "exp" / "test_id.txt").write_text("77")
    with pytest.raises(UserError, match="no infrared pictures found"):
        sysu_test(tmp_path)
    (tmp_path / "exp" / "test_id.txt").write_text("9" * 5000)
    with pytest.raises(UserError, match="comma-separated"):
        sysu_test(tmp_path)
    picture(tmp_path / "crops" / ("9" * 30) / "a.png")
    with pytest.raises(UserError, match="too large"):
        folder_crops(tmp_path / "crops", "visible")
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train_vis.txt").write_text("no-identity\n")
    with pytest.raises(UserError, match="line 1: expected a path and an identity"):
        llcm_training(tmp_path)
    with pytest.raises(UserError, match="--root: needed"):
        list(trials_of(EvalConfig(dataset="sysu")))
