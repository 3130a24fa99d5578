"""Scanners: every on-disk layout becomes a manifest with the right person, group and approach."""

import json
from pathlib import Path

import numpy as np
import pytest

from fairfd.data.layouts import LAYOUTS, scan
from fairfd.data.manifest.manifest import Manifest
from tenfold.errors import UserError


def touch(root: Path, *names: str) -> None:
    """Scanners read names only: empty files will do."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(manifest: Manifest) -> set[tuple[str, str, str, str, int]]:
    return {(s.image, s.identity, s.group, s.approach, s.label) for s in manifest}


@pytest.mark.parametrize("top", ["dataset/test", "test", "."])
def test_fairfd_layout_with_and_without_identity_folders(tmp_path, top):
    root = tmp_path / "fairfd"
    touch(root / top, "data/African/m.01_0001.jpg", "data/Asian/m.02/m.02_0003.jpg", "SimSwap/African/m.01_0001.jpg")
    manifest = scan(root, "fairfd")
    prefix = "" if top == "." else f"{top}/"
    assert rows(manifest) == {
        (f"{prefix}data/African/m.01_0001.jpg", "m.01", "African", "real", 0),
        (f"{prefix}data/Asian/m.02/m.02_0003.jpg", "m.02", "Asian", "real", 0),
        (f"{prefix}SimSwap/African/m.01_0001.jpg", "m.01", "African", "SimSwap", 1),
    }
    assert {s.split for s in manifest} == {"test"}
    assert all(manifest.path(s).is_file() for s in manifest)


def test_fairfd_layout_needs_the_real_images(tmp_path):
    touch(tmp_path, "SimSwap/African/a_0001.jpg")
    with pytest.raises(UserError, match="no folder `data`"):
        scan(tmp_path, "fairfd")


def test_rfw_layout_reads_five_points_and_drops_persons_of_two_groups(tmp_path):
    touch(
        tmp_path / "test/data",
        "African/m.01/m.01_0001.jpg",
        "Indian/m.02/m.02_0001.jpg",
        "African/m.03/m.03_0001.jpg",
        "Indian/m.03/m.03_0002.jpg",
    )
    landmarks = tmp_path / "test/txts/African/African_lmk.txt"
    landmarks.parent.mkdir(parents=True)
    landmarks.write_text("/test/data/African/m.01/m.01_0001.jpg\t0\t1\t2\t3\t4\t5\t6\t7\t8\t9\t10\n")
    with pytest.warns(UserWarning, match=r"identities in two groups are left out: m\.03"):
        manifest = scan(tmp_path, "rfw")
    assert {(s.identity, s.group) for s in manifest} == {("m.01", "African"), ("m.02", "Indian")}
    metas = {s.identity: s.meta for s in manifest}
    assert json.loads(metas["m.01"]) == {"five_points": [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]}
    assert metas["m.02"] == ""


def test_a_bad_rfw_landmark_line_is_an_error(tmp_path):
    touch(tmp_path / "data", "African/m.01/m.01_0001.jpg")
    file = tmp_path / "txts/African/African_lmk.txt"
    file.parent.mkdir(parents=True)
    file.write_text("a.jpg 0 " + "x " * 10)
    with pytest.raises(UserError, match=r"African_lmk\.txt: landmark lines must read"):
        scan(tmp_path, "rfw")


def test_folders_layout_takes_landmarks_beside_images_and_keeps_equal_names_apart(tmp_path):
    touch(tmp_path, "A/p1/x_0001.png", "B/p1/y.png", "B/lonely_0002.png")
    np.save(tmp_path / "A/p1/x_0001.npy", np.zeros((5, 2)))
    manifest = scan(tmp_path)
    assert rows(manifest) == {
        ("A/p1/x_0001.png", "A/p1", "A", "real", 0),
        ("B/p1/y.png", "B/p1", "B", "real", 0),
        ("B/lonely_0002.png", "B/lonely", "B", "real", 0),
    }
    assert {s.image: s.landmarks for s in manifest}["A/p1/x_0001.png"] == "A/p1/x_0001.npy"


def test_an_unlabelled_folder_says_how_to_give_labels(tmp_path):
    touch(tmp_path, "a.png")
    for layout in ("folders", "plain"):
        with pytest.raises(UserError, match="never guessed: give a table with columns image,group"):
            scan(tmp_path, layout)


def test_plain_folder_with_a_table_matches_by_path_name_or_stem(tmp_path):
    touch(tmp_path / "photos", "a/one.jpg", "two.jpg", "three.png", "nobody.png")
    people = table(
        tmp_path / "people.csv",
        "image,group,identity,split",
        "a/one.jpg,A,p1,train",
        "two.jpg,B,p2,test",
        "three,A,p1,train",
    )
    with pytest.warns(UserWarning, match="1 images have no row"):
        manifest = scan(tmp_path / "photos", "plain", demographics=people)
    assert {(s.image, s.identity, s.group, s.split) for s in manifest} == {
        ("a/one.jpg", "p1", "A", "train"),
        ("two.jpg", "p2", "B", "test"),
        ("three.png", "p1", "A", "train"),
    }


def test_plain_folder_without_identities_takes_every_image_as_a_person(tmp_path):
    touch(tmp_path / "photos", "one.jpg", "two.jpg")
    people = table(tmp_path / "people.csv", "Image,Skin Tone", "one.jpg,1", "two.jpg,2")
    with pytest.warns(UserWarning, match="own person"):
        manifest = scan(tmp_path / "photos", "plain", demographics=people, group_column="Skin Tone")
    assert {(s.identity, s.group) for s in manifest} == {("one", "1"), ("two", "2")}


def test_one_group_for_a_whole_folder_is_a_warned_option(tmp_path):
    touch(tmp_path, "one.jpg", "two.jpg")
    with pytest.warns(UserWarning, match="own person"), pytest.warns(UserWarning, match="one group 'all'"):
        manifest = scan(tmp_path, "plain", group="all")
    assert manifest.groups() == ("all",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("image,group", "a/x.jpg,A", "missing.jpg,B"), r"1 images are not in .*: missing\.jpg"),
        (("image,group", "x.jpg,A"), r"names that fit several images: x\.jpg"),
        (("image,group", "a/x.jpg,"), "empty in rows 1"),
        (("name,group", "a/x.jpg,A"), "column image is missing"),
        (("image,group",), "missing or the table is empty"),
    ],
)
def test_bad_tables_are_one_line_errors(tmp_path, lines, message):
    touch(tmp_path / "photos", "a/x.jpg", "b/x.jpg")
    with pytest.raises(UserError, match=message) as error:
        scan(tmp_path / "photos", "plain", demographics=table(tmp_path / "people.csv", *lines))
    assert "people.csv" in str(error.value)


def test_deepfakebench_json_with_compressions_windows_paths_landmarks_and_donors(tmp_path):
    def entry(label: str, *frames: str) -> dict:
        return {"label": label, "frames": list(frames)}

    index = {
        "FaceForensics++": {
            "FF-real": {"train": {"c23": {"000": entry("FF-real", r"FF\real\c23\frames\000\1.png")}, "c40": {}}},
            "FF-DF": {
                "train": {
                    "c23": {"000_003": entry("FF-DF", "FF/DF/c23/frames/000_003/1.png")},
                    "c40": {"000_003": entry("FF-DF", "FF/DF/c40/frames/000_003/1.png")},
                }
            },
        },
        "Celeb-DF-v2": {
            "CelebDFv2_fake": {"test": {"id1_id2_0000": entry("CelebDFv2_fake", "C/frames/id1_id2_0000/0.png")}}
        },
    }
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    touch(tmp_path / "rgb", "FF/real/c23/landmarks/000/1.npy", "FF/DF/c23/masks/000_003/1.png")
    people = table(tmp_path / "people.csv", "identity,group", "000,A", "id1,B")
    manifest = scan(path, "deepfakebench", demographics=people, images=tmp_path / "rgb")
    found = {s.image: s for s in manifest}
    assert set(found) == {
        "FF/real/c23/frames/000/1.png",
        "FF/DF/c23/frames/000_003/1.png",
        "C/frames/id1_id2_0000/0.png",
    }
    real, fake, celebrity = (
        found[name]
        for name in ("FF/real/c23/frames/000/1.png", "FF/DF/c23/frames/000_003/1.png", "C/frames/id1_id2_0000/0.png")
    )
    assert (real.identity, real.approach, real.label, real.split, real.landmarks) == (
        "000", "real", 0, "train", "FF/real/c23/landmarks/000/1.npy"
    )  # fmt: skip
    assert (fake.identity, fake.source_identity, fake.approach, fake.mask) == (
        "000", "003", "FF-DF", "FF/DF/c23/masks/000_003/1.png"
    )  # fmt: skip
    assert (celebrity.identity, celebrity.source_identity, celebrity.group, celebrity.split) == (
        "id1",
        "id2",
        "B",
        "test",
    )


def test_deepfakebench_without_labels_or_with_strangers(tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"X": {"real": {"test": {"v1": {"label": "real", "frames": ["v1/0.png"]}}}}}))
    with pytest.raises(UserError, match="columns identity"):
        scan(path, "deepfakebench")
    with pytest.warns(UserWarning, match="no group for 1 persons"), pytest.raises(UserError, match="no labelled frame"):
        scan(path, "deepfakebench", demographics=table(tmp_path / "p.csv", "identity,group", "v2,A"))


def test_aiface_table(tmp_path):
    file = table(
        tmp_path / "test.csv",
        "Image Path,Gender,Age,Skin Tone,Intersection,Target",
        "/ffhq/1.png,1,2,Light,3,0",
        "/StyleGAN2/2.png,0,2,Dark,1,1",
    )
    with pytest.warns(UserWarning, match="names no identities"):
        manifest = scan(file, "aiface")
    assert rows(manifest) == {
        ("ffhq/1.png", "", "Light", "real", 0),
        ("StyleGAN2/2.png", "", "Dark", "StyleGAN2", 1),
    }
    assert manifest.group_by("gender").groups() == ("0", "1")
    with pytest.warns(UserWarning, match="names no identities"):
        assert scan(file, "aiface", group_column="Intersection").groups() == ("1", "3")
    with pytest.raises(UserError, match="Target of row 1 is 'yes'"):
        scan(table(tmp_path / "bad.csv", "Image Path,Skin Tone,Target", "a.png,L,yes"), "aiface")


def test_newer_aiface_table_keeps_gender_age_and_race(tmp_path):
    file = table(
        tmp_path / "test.csv",
        "Image Path,Uncertainty Score Gender,Uncertainty Score Age,Uncertainty Score Race,Ground Truth Gender,"
        "Ground Truth Age,Ground Truth Race,Intersection,Target",
        "/ffhq/1.png,.1,.2,.3,1,0,2,2,0",
        "/StyleGAN2/2.png,.1,.2,.3,0,2,0,4,1",
    )
    with pytest.warns(UserWarning, match="names no identities"):
        manifest = scan(file, "aiface")
    assert manifest.groups() == ("Asian", "Black")
    assert manifest.group_by("gender").groups() == ("Female", "Male")
    assert manifest.group_by("age").groups() == ("Senior", "Young")
    with pytest.warns(UserWarning, match="names no identities"):
        assert scan(file, "aiface", group_column="Ground Truth Gender").groups() == ("Female", "Male")
    with pytest.raises(UserError, match="skin_tone is missing or empty in rows 1, 2"):
        scan(file, "aiface", group_column="Skin Tone")


def test_unknown_layouts_options_and_places_are_errors(tmp_path):
    with pytest.raises(UserError, match="is not one of fairfd, rfw"):
        scan(tmp_path, "imagenet")
    with pytest.raises(UserError, match="layout 'folders' has no option group; it takes no options"):
        scan(tmp_path, "folders", group="all")
    with pytest.raises(UserError, match="no such file or folder"):
        scan(tmp_path / "absent")
    for layout in ("deepfakebench", "aiface"):
        with pytest.raises(UserError, match="name the"):
            scan(tmp_path, layout)
    assert set(LAYOUTS) == {"fairfd", "rfw", "folders", "plain", "deepfakebench", "aiface"}


def test_a_scanned_manifest_can_be_written_and_read_elsewhere(tmp_path):
    touch(tmp_path / "faces", "A/p1/x.png", "B/p2/y.png")
    manifest = scan(tmp_path / "faces")
    manifest.write(tmp_path / "lists/m.csv")
    read = Manifest.read(tmp_path / "lists/m.csv")
    assert [read.path(s).resolve() for s in read] == [manifest.path(s) for s in manifest]
