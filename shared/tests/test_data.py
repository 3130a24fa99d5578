"""Embedded pictures and folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.data import (
    PairedFolder,
    PictureFolder,
    class_folder,
    embedded_pictures,
    held_out,
    pair_files,
    torchvision_set,
)
from tenfold.errors import UserError
from tenfold.images import read_image, write_image


def paint(path: Path, value: float = 0.5) -> None:
    write_image(path, np.full((4, 5, 3), value, np.float32))


def test_embedded_pictures_are_on_disk_and_in_colour() -> None:
    pictures = embedded_pictures()
    assert {"astronaut", "chelsea", "china", "flower"} <= pictures.keys()
    for path in pictures.values():
        assert min(read_image(path).shape[:2]) >= 300


def test_a_folder_of_pictures_gives_tensors(tmp_path: Path) -> None:
    paint(tmp_path / "b.png", 1.0)
    paint(tmp_path / "a.png", 0.0)
    pictures = PictureFolder(tmp_path, transform=lambda image: image + 1)
    assert len(pictures) == 2
    assert torch.equal(pictures[0], torch.ones(3, 4, 5))


def test_pairs_are_matched_by_name_whatever_the_suffix(tmp_path: Path) -> None:
    for name in ("in/x.png", "in/sub/y.png", "out/x.bmp", "out/sub/y.tif"):
        paint(tmp_path / name, 0.0 if name.startswith("in") else 1.0)
    pairs = PairedFolder(tmp_path / "in", tmp_path / "out")
    assert len(pairs) == 2
    assert [each.mean().item() for each in pairs[0]] == [0.0, 1.0]


def test_lonely_and_doubled_names_are_reported(tmp_path: Path) -> None:
    for name in ("in/x.png", "in/z.png", "out/x.png"):
        paint(tmp_path / name)
    with pytest.raises(UserError, match="1 pictures have no partner of the same name: z"):
        pair_files(tmp_path / "in", tmp_path / "out")
    paint(tmp_path / "out/x.bmp")
    with pytest.raises(UserError, match="same name"):
        pair_files(tmp_path / "in", tmp_path / "out")


def test_class_folders_follow_torchvision(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        paint(tmp_path / name)
    pictures = class_folder(tmp_path)
    assert pictures.classes == ["cat", "dog"]
    assert [label for _, label in pictures] == [0, 1, 1]
    assert pictures[0][0].shape == (3, 4, 5)


def test_folders_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        class_folder(tmp_path / "none")
    with pytest.raises(UserError, match="one folder per class"):
        class_folder(tmp_path)


def test_torchvision_sets_are_read_from_disk_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="CIFAR100 is not there"):
        torchvision_set("cifar100", tmp_path, train=False)
    with pytest.raises(UserError, match="SVHN is not there"):
        torchvision_set("SVHN", tmp_path, train=False)
    with pytest.raises(UserError, match="no such set"):
        torchvision_set("imaginary", tmp_path, train=True)


def test_class_folders_hold_every_format_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for suffix in (".gif", ".PNG", ".webp", ".avif"):
        Image.new("RGB", (4, 4)).save(tmp_path / "cat" / f"a{suffix}")
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / "cat" / "._a.png").touch()
    assert [Path(path).suffix for path, _ in class_folder(tmp_path).samples] == [".PNG", ".avif", ".gif", ".webp"]


NAMES = [f"{label}/{number}.png" for label in ("cat", "dog", "owl") for number in range(400)]
CLASSES = [name.split("/")[0] for name in NAMES]


def test_pictures_are_kept_for_testing_by_their_names_alone() -> None:
    held = held_out(CLASSES, NAMES, 0.2)
    assert 0.15 < held.mean() < 0.25
    order = np.random.default_rng(0).permutation(len(NAMES))[:700]
    fewer = held_out([CLASSES[i] for i in order], [NAMES[i] for i in order], 0.2)
    assert np.array_equal(fewer, held[order])


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_no_class_is_left_without_a_picture_on_either_side(share: float) -> None:
    labels = ["a", "a", "b", "b", "b"]
    held = held_out(labels, ["1", "2", "3", "4", "5"], share)
    for each in ("a", "b"):
        mine = held[np.array(labels) == each]
        assert mine.any()
        assert not mine.all()
    # Taking a picture away moves no other, as long as both sides keep one.
    third = next(i for i in (2, 3, 4) if held[i] == (share > 0.5))
    rest = [i for i in range(5) if i != third]
    assert held_out([labels[i] for i in rest], [str(i + 1) for i in rest], share).tolist() == held[rest].tolist()


def test_a_class_of_one_picture_cannot_be_parted() -> None:
    with pytest.raises(UserError, match="class b: 1 picture"):
        held_out(["a", "a", "b"], ["1", "2", "3"], 0.5)
