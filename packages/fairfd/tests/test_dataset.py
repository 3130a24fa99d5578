"""Images of a manifest: decoding, resizing, indices, masks, caching, augmentation, and the plan of an epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fairfd.data.datasets import ArrayDataset, ManifestDataset, as_dataset, augmented, decode, resize
from fairfd.data.manifest.manifest import Manifest, Sample
from fairfd.data.transforms import JpegCompression, augment_one, flip_where, paper_transform
from fairfd.training.samplers import PlannedEpoch, loader, plan_epoch
from tenfold import UserError
from tenfold.images import ImageError

SIZE = 24


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Six pictures of different sizes and formats in two groups; two fakes have masks."""
    rng = np.random.default_rng(0)
    samples = []
    for index, (approach, mask) in enumerate(
        [("real", ""), ("swap", "m1.png"), ("edit", "m2.png"), ("real", ""), ("swap", "m1.png"), ("edit", "m2.png")]
    ):
        name = f"{index}.{'png' if index % 2 else 'jpg'}"
        Image.fromarray(rng.integers(0, 255, (30 + index, SIZE, 3), dtype=np.uint8)).save(tmp_path / name)
        samples.append(Sample(name, f"p{index}", "AB"[index // 3], approach, int(approach != "real"), mask=mask))
    for name, level in (("m1.png", 255), ("m2.png", 0)):
        Image.fromarray(np.full((10, 10), level, np.uint8)).save(tmp_path / name)
    return Manifest(tmp_path, tuple(samples))


def picture(seed: int = 0, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


def test_pictures_become_square_8_bit_tensors(manifest: Manifest) -> None:
    data = ManifestDataset(manifest, SIZE)
    assert len(data) == 6
    assert data[0].shape == (3, SIZE, SIZE)
    assert data[0].dtype == torch.uint8
    assert torch.equal(data.pixels([2, 0])[1], data[0])


def test_pictures_of_the_right_size_keep_their_levels(tmp_path: Path) -> None:
    levels = picture()
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    assert torch.equal(decode(tmp_path / "a.png", SIZE), levels)


def test_resizing_is_cubic_without_antialiasing() -> None:
    # OpenCV's INTER_CUBIC (a = -0.75) halfway between samples weighs them -3/32, 19/32, 19/32, -3/32.
    row = torch.tensor([10, 200, 60, 90, 30, 250, 0, 120], dtype=torch.uint8)
    halved = resize(row.expand(1, 8, 8), 4)[0, 0]
    inner = (-3 * 200 + 19 * 60 + 19 * 90 - 3 * 30) / 32
    assert halved[1].item() == round(inner)
    assert resize(row.expand(1, 8, 8), 8).data_ptr() is not None
    sharp = torch.tensor([[0, 255] * 4] * 8, dtype=torch.uint8)[None]
    assert resize(sharp, 16).min() == 0
    assert resize(sharp, 16).max() == 255


def test_indices_follow_sorted_names_with_real_first(manifest: Manifest) -> None:
    data = ManifestDataset(manifest, SIZE)
    assert data.group_names == ("A", "B")
    assert data.approach_names == ("real", "edit", "swap")
    assert data.approaches.tolist() == [0, 2, 1, 0, 2, 1]
    assert data.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.labels.tolist() == [0, 1, 1, 0, 1, 1]


def test_masks_are_black_for_reals_and_absent_when_a_fake_has_none(manifest: Manifest) -> None:
    data = ManifestDataset(manifest, SIZE)
    masks = data.masks([0, 1, 2])
    assert masks is not None
    assert masks.shape == (3, 1, SIZE, SIZE)
    assert [int(mask.max()) for mask in masks] == [0, 255, 0]
    bare = Manifest(manifest.root, (*manifest.samples[:2], Sample("2.jpg", "p", "A", "edit", 1)))
    assert ManifestDataset(bare, SIZE).masks([0, 2]) is None


@pytest.mark.parametrize("on_disk", [False, True])
def test_decoded_data_hold_the_same_pixels(manifest: Manifest, tmp_path: Path, on_disk: bool) -> None:
    data = ManifestDataset(manifest, SIZE)
    folder = tmp_path / "cache" if on_disk else None
    for _ in range(2):
        decoded = data.decoded(folder, threads=2)
        assert torch.equal(decoded.pixels([5, 0, 3]), data.pixels([5, 0, 3]))
        masks, wanted = decoded.masks([4, 0]), data.masks([4, 0])
        assert masks is not None
        assert wanted is not None
        assert torch.equal(masks, wanted)
    assert not on_disk or len(list((tmp_path / "cache").iterdir())) == 1


def test_disk_cache_notices_a_changed_picture(manifest: Manifest, tmp_path: Path) -> None:
    data = ManifestDataset(manifest, SIZE)
    data.decoded(tmp_path / "cache")
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(manifest.root / "0.jpg")
    assert data.decoded(tmp_path / "cache").pixels([0]).max() < 10


def test_unreadable_pictures_are_named(manifest: Manifest) -> None:
    (manifest.root / "1.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"1\.png"):
        ManifestDataset(manifest, SIZE).decoded()


def test_data_sets_check_their_sizes(manifest: Manifest) -> None:
    data = ArrayDataset(torch.stack([picture()] * 6), manifest.samples)
    assert as_dataset(data, SIZE) is data
    with pytest.raises(UserError, match="24x24, the detector takes 48x48"):
        as_dataset(data, 48)
    with pytest.raises(UserError, match="2 images for 6 samples"):
        ArrayDataset(torch.stack([picture()] * 2), manifest.samples)
    with pytest.raises(UserError, match="empty"):
        ManifestDataset(Manifest(manifest.root, ()), SIZE)


# ---------------------------------------------------------------------------------------------------------- augmentation


def test_augmentation_depends_on_its_seed_alone_and_leaves_torchs_generator() -> None:
    transform = paper_transform()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, _ = augment_one(transform, picture(), None, seed=11)
    torch.rand(3)
    again, _ = augment_one(transform, picture(), None, seed=11)
    torch.set_rng_state(state)
    augment_one(transform, picture(), None, seed=12)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)


def test_augmentation_changes_most_pictures_but_not_their_kind() -> None:
    transform = paper_transform()
    results = [augment_one(transform, picture(), None, seed)[0] for seed in range(24)]
    assert all(result.shape == (3, SIZE, SIZE) and result.dtype == torch.uint8 for result in results)
    assert sum(torch.equal(result, picture()) for result in results) < 6
    assert len({result.numpy().tobytes() for result in results}) > 12


def test_jpeg_keeps_a_smooth_picture_better_at_high_quality_and_leaves_masks_alone() -> None:
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8).expand(3, SIZE, SIZE).contiguous()
    mask = picture()[:1]
    errors = []
    for quality in (40, 100):
        compressed, same_mask = augment_one(JpegCompression(quality, quality), ramp, mask, 0)
        errors.append((compressed.float() - ramp.float()).abs().mean())
        assert same_mask is not None
        assert torch.equal(same_mask, mask)
    assert errors[1] < errors[0] < 20


def test_masks_move_with_their_pictures() -> None:
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    mask[:, :, : SIZE // 2] = 255
    image = mask.expand(3, -1, -1).clone()
    for seed in range(6):
        moved, moved_mask = augment_one(paper_transform(), image, mask, seed)
        assert moved_mask is not None
        inside = moved_mask[0] > 127
        assert moved.float().mean(0)[inside].mean() > moved.float().mean(0)[~inside].mean() + 100


def test_flips_follow_the_seeds_parity() -> None:
    images = torch.stack([picture(0), picture(1)])
    flipped, _ = augmented(images, None, torch.tensor([2, 3]), "flip")
    assert torch.equal(flipped[0], images[0])
    assert torch.equal(flipped[1], images[1].flip(-1))
    assert torch.equal(flip_where(images, torch.tensor([False, False])), images)


def test_augmented_data_set_draws_from_torchs_generator(manifest: Manifest) -> None:
    data = ManifestDataset(manifest, SIZE, augment="paper")
    torch.manual_seed(0)
    first = torch.stack([data[1] for _ in range(6)])
    torch.manual_seed(0)
    assert torch.equal(torch.stack([data[1] for _ in range(6)]), first)
    assert len({image.numpy().tobytes() for image in first}) > 1


# ------------------------------------------------------------------------------------------------------------- the plan

LABELS = st.lists(st.integers(0, 1), min_size=2, max_size=20).filter(lambda labels: 0 < sum(labels) < len(labels))


@settings(max_examples=25, deadline=None)
@given(LABELS, st.integers(0, 5))
def test_plain_epoch_shows_every_image_once(labels: list[int], epoch: int) -> None:
    plan = plan_epoch(torch.tensor(labels), "single", "none", 3, epoch)
    assert sorted(plan.rows[:, 0].tolist()) == list(range(len(labels)))
    assert plan.seeds.shape == plan.rows.shape


@settings(max_examples=25, deadline=None)
@given(LABELS)
def test_balanced_epoch_repeats_the_rarer_label_evenly(labels: list[int]) -> None:
    rows = plan_epoch(torch.tensor(labels), "single", "labels", 0, 0).rows[:, 0]
    shown = np.bincount(rows, minlength=len(labels))
    values = np.array(labels)
    for label in (0, 1):
        assert shown[values == label].sum() == max(sum(labels), len(labels) - sum(labels))
        assert np.ptp(shown[values == label]) <= 1


@settings(max_examples=25, deadline=None)
@given(LABELS)
def test_pairs_hold_a_real_and_every_fake_once(labels: list[int]) -> None:
    rows = plan_epoch(torch.tensor(labels), "real_fake_pairs", "none", 0, 0).rows
    values = np.array(labels)
    assert (values[rows] == [0, 1]).all()
    assert sorted(rows[:, 1].tolist()) == np.flatnonzero(values).tolist()


def test_two_views_show_the_same_image_with_different_seeds() -> None:
    plan = plan_epoch(torch.tensor([0, 1, 1]), "two_views", "none", 0, 0)
    assert (plan.rows[:, 0] == plan.rows[:, 1]).all()
    assert (plan.seeds[:, 0] != plan.seeds[:, 1]).all()


def test_epochs_differ_and_repeat() -> None:
    labels = torch.arange(40) % 2
    first, second = (plan_epoch(labels, "single", "none", 7, epoch) for epoch in (0, 1))
    assert not np.array_equal(first.rows, second.rows)
    again = plan_epoch(labels, "single", "none", 7, 1)
    assert np.array_equal(second.rows, again.rows)
    assert np.array_equal(second.seeds, again.seeds)


@pytest.mark.parametrize("label", [0, 1])
def test_pairs_and_balance_need_both_labels(label: int) -> None:
    with pytest.raises(UserError, match="real and fake"):
        plan_epoch(torch.full((4,), label), "real_fake_pairs", "none", 0, 0)
    with pytest.raises(UserError, match="real and fake"):
        plan_epoch(torch.full((4,), label), "single", "labels", 0, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_detectors_layout_whatever_the_workers(manifest: Manifest, workers: int) -> None:
    data = ManifestDataset(manifest, SIZE).decoded()
    plan = plan_epoch(data.labels, "real_fake_pairs", "none", 0, 0)
    batches = list(loader(PlannedEpoch(data, plan, "paper", with_masks=True), 2, workers))
    assert [batch.labels.tolist() for batch in batches] == [[0, 0, 1, 1]] * 2
    fetched = PlannedEpoch(data, plan, "paper", with_masks=True).__getitems__([0, 1])
    assert torch.equal(batches[0].images, fetched.images)
    on_device = batches[0].to(torch.device("cpu"))
    assert on_device.images.max() <= 1
    assert on_device.masks is not None
    assert on_device.ids[2] in {"1.png", "2.jpg", "4.jpg", "5.png"}


def test_incomplete_last_batch_is_left_out_unless_it_is_the_only_one(manifest: Manifest) -> None:
    data = ManifestDataset(manifest, SIZE).decoded()
    epoch = PlannedEpoch(data, plan_epoch(data.labels, "single", "none", 0, 0), "none", with_masks=False)
    assert [len(batch.labels) for batch in loader(epoch, 4, 0)] == [4]
    assert [len(batch.labels) for batch in loader(epoch, 8, 0)] == [6]
