"""On-disk layouts, splits and transforms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tenfold import UserError
from vptnsp.config import TrainConfig
from vptnsp.data.datasets import keep_most_frequent, read_folder, read_list, split_by_name, stratified_split
from vptnsp.data.synthetic import draw_classes, render_glyphs, shift_domain
from vptnsp.data.tasks import open_pictures, open_stream, read_task_file, training_loader
from vptnsp.data.transforms import evaluation_transform, training_transform

MEAN = STD = (0.5, 0.5, 0.5)


def make_folder(root, classes=("0", "1", "2", "10"), count=5, mode="RGB", size=(9, 7)):
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{index}.png")
    return root


def test_class_folders_that_are_numbers_are_sorted_as_numbers(tmp_path):
    pictures = read_folder(make_folder(tmp_path))
    assert pictures.class_names == ("0", "1", "2", "10")
    assert np.bincount(pictures.targets).tolist() == [5, 5, 5, 5]
    assert pictures.read.paths[int(np.flatnonzero(pictures.targets == 3)[0])].parent.name == "10"


def test_a_folder_with_train_and_val_is_taken_as_it_is(tmp_path):
    for part, count in (("train", 4), ("val", 2)):
        make_folder(tmp_path / part, count=count)
    train, test, source = open_pictures(TrainConfig(dataset="folder", root=tmp_path, tasks=2))
    assert (len(train.targets), len(test.targets)) == (16, 8)
    assert "train and val" in source


@pytest.mark.parametrize("with_label", [False, True])
def test_the_official_lists_are_read_with_and_without_labels(tmp_path, with_label):
    make_folder(tmp_path / "val", ("n01", "n02"))
    lines = [
        f"val/{name}/{i}.png" + (f" {label}" if with_label else "")
        for label, name in enumerate(("n01", "n02"))
        for i in (0, 3)
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    pictures = read_list(tmp_path, tmp_path / "list.txt")
    assert pictures.class_names == (("0", "1") if with_label else ("n01", "n02"))
    assert pictures.targets.tolist() == [0, 0, 1, 1]


def test_a_list_that_names_a_missing_picture_says_which_line(tmp_path):
    make_folder(tmp_path, ("a", "b"))
    (tmp_path / "list.txt").write_text("a/0.png\na/99.png\n")
    with pytest.raises(UserError, match="line 2: no picture"):
        read_list(tmp_path, tmp_path / "list.txt")


def test_lists_go_together_and_parts_must_hold_the_same_classes(tmp_path):
    make_folder(tmp_path / "train", ("a", "b"))
    make_folder(tmp_path / "val", ("a", "c"))
    with pytest.raises(UserError, match="b, c are not in both"):
        open_pictures(TrainConfig(dataset="folder", root=tmp_path))
    with pytest.raises(UserError, match="go together"):
        open_pictures(TrainConfig(dataset="folder", root=tmp_path, train_list=tmp_path / "x"))


def test_a_folder_is_parted_by_names_so_that_no_picture_changes_sides(tmp_path):
    def sides():
        parts = split_by_name(read_folder(tmp_path), tmp_path)
        return [{str(part.read.read.paths[i].relative_to(tmp_path)) for i in part.indices} for part in parts]

    make_folder(tmp_path, ("a", "b"), 20)
    train, test = sides()
    assert len(train | test) == 40
    for taken in (sorted(train)[0], sorted(test)[-1]):
        (tmp_path / taken).unlink()
        assert sides() == [train - {taken}, test - {taken}]
        train, test = sides()
    opened = open_pictures(TrainConfig(dataset="folder", root=tmp_path))
    assert [len(each.targets) for each in opened[:2]] == [len(train), len(test)]
    assert "by the names of the files" in opened[2]


def test_arrays_are_parted_by_class_and_seed(tmp_path):
    pictures = read_folder(make_folder(tmp_path, ("a", "b")))
    train, test = stratified_split(pictures, 1)
    again, _ = stratified_split(pictures, 1)
    assert np.bincount(train.targets).tolist() == [4, 4]
    assert np.bincount(test.targets).tolist() == [1, 1]
    assert train.indices.tolist() == again.indices.tolist()
    assert not set(train.indices) & set(test.indices)


def test_the_most_frequent_classes_are_kept_and_relabelled(tmp_path):
    for name, count in (("a", 2), ("b", 5), ("c", 4)):
        make_folder(tmp_path, (name,), count)
    train, test = stratified_split(read_folder(tmp_path), 0)
    train, test = keep_most_frequent(train, test, 2)
    assert train.class_names == ("b", "c")
    assert set(train.targets) == set(test.targets) == {0, 1}


def test_tasks_can_be_listed_in_a_file(tmp_path):
    path = tmp_path / "tasks.tsv"
    path.write_text("b\ta\nc\td\te\n")
    assert read_task_file(path, tuple("abcde")) == [[1, 0], [2, 3, 4]]
    path.write_text("b\tb\n")
    with pytest.raises(UserError, match="line 1: b"):
        read_task_file(path, tuple("abcde"))
    path.write_text("a\nz\n")
    with pytest.raises(UserError, match="line 2: z"):
        read_task_file(path, tuple("abcde"))


def test_labels_are_positions_in_the_class_order(tmp_path):
    make_folder(tmp_path, ("a", "b", "c", "d"))
    stream = open_stream(TrainConfig(dataset="folder", root=tmp_path, tasks=2, seed=3), 8, MEAN, STD)
    assert [task.labels for task in stream.tasks] == [(0, 1), (2, 3)]
    assert sorted(stream.class_names) == ["a", "b", "c", "d"]
    image, label = stream.tasks[1].test[0]
    assert image.shape == (3, 8, 8)
    assert label in (2, 3)
    assert {label for _, label in stream.merged().tasks[0].train} == {0, 1, 2, 3}


def test_repeats_lengthen_a_pass_and_the_last_batch_is_kept(tmp_path):
    make_folder(tmp_path, ("a", "b"))
    config = TrainConfig(dataset="folder", root=tmp_path, tasks=1, repeats=3, batch_size=7)
    stream = open_stream(config, 8, MEAN, STD)
    sizes = [len(labels) for _, labels in training_loader(stream.tasks[0].train, config)]
    assert sum(sizes) == 24
    assert sizes == [7, 7, 7, 3]


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA"])
def test_pictures_of_any_mode_and_size_come_out_normalised(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    (tmp_path / "a").mkdir()
    Image.new(mode, (1, 1) if mode == "L" else (13, 5)).save(tmp_path / "a" / f"x.{suffix}")
    picture = read_folder(tmp_path).read(0)
    for style in ("stretch", "crop"):
        out = evaluation_transform(16, MEAN, STD, style)(picture)
        assert out.shape == (3, 16, 16)
        assert out.abs().max() <= 1.0001


def test_autoaugment_makes_other_pictures_each_time_and_none_the_same():
    picture = (torch.rand(3, 20, 30) * 255).to(torch.uint8)
    plain = training_transform(16, MEAN, STD, "crop", "none")
    augmented = training_transform(16, MEAN, STD, "crop", "autoaugment")
    assert torch.equal(plain(picture), plain(picture))
    assert not torch.equal(augmented(picture), augmented(picture))


def test_glyphs_repeat_by_seed_and_the_shift_is_the_stated_mix():
    classes = draw_classes(3, torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2, 2])
    one, two = (render_glyphs(classes, labels, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(shift_domain(one, 0.0, torch.Generator()), one)
    assert (shift_domain(one, 0.22, torch.Generator()) - one).abs().mean() > 0.01


@given(st.integers(1, 3), st.sampled_from([16, 33]))
@settings(max_examples=6, deadline=None)
def test_glyphs_of_any_size(count, size):
    classes = draw_classes(2, torch.Generator().manual_seed(0))
    drawn = render_glyphs(classes, torch.zeros(count, dtype=torch.long), torch.Generator(), size)
    assert drawn.shape == (count, 3, size, size)


def test_cifar100_is_read_from_torchvisions_layout(tmp_path):
    import pickle

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for part in ("train", "test"):
        data = {"data": np.zeros((4, 3072), dtype=np.uint8), "fine_labels": [0, 1, 2, 3], "filenames": []}
        (folder / part).write_bytes(pickle.dumps(data))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]}))
    from unittest.mock import patch

    # The archive's checksums are torchvision's business; the layout is ours.
    with (
        patch("torchvision.datasets.CIFAR100._check_integrity", lambda _: True),
        patch("torchvision.datasets.cifar.check_integrity", lambda *_: True),
    ):
        train, test, source = open_pictures(TrainConfig(dataset="cifar100", root=tmp_path))
    assert len(train.class_names) == 100
    assert train.read(0).shape == (3, 32, 32)
    assert len(test.targets) == 4
    assert source == "CIFAR-100"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "folder"}, "--root is needed"),
        ({"dataset": "cifar100"}, "--root is needed"),
    ],
)
def test_missing_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        open_pictures(TrainConfig(**options))


def test_folders_without_pictures_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_folder(tmp_path / "nothing")
    with pytest.raises(UserError, match="one folder per class"):
        read_folder(tmp_path)
    make_folder(tmp_path, ("a",), 1)
    with pytest.raises(UserError, match="at least two"):
        stratified_split(read_folder(tmp_path), 0)
