"""Augmentation of batches, and which instances make one (section 3.5, section 5)."""

import numpy as np
import pytest
import torch

from multreid.data.samplers import sample_instances, stage_one_batches, stage_two_batches
from multreid.data.transforms import (
    IMAGENET_MEAN,
    augment,
    augment_channels,
    colour_jitter,
    erase,
    exchange_channel,
    normalise,
    shift_and_flip,
)
from tenfold import UserError


def pictures(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 3, 12, 8, generator=torch.Generator().manual_seed(0))


def test_shift_by_the_padding_changes_nothing_and_flip_mirrors() -> None:
    x = pictures(2)
    found = shift_and_flip(x, torch.full((2, 2), 3), torch.tensor([False, True]), 3)
    torch.testing.assert_close(found[0], x[0])
    torch.testing.assert_close(found[1], x[1].flip(2))


def test_shift_moves_the_picture_and_fills_with_black() -> None:
    x = pictures(1)
    found = shift_and_flip(x, torch.tensor([[0, 5]]), torch.tensor([False]), 3)
    torch.testing.assert_close(found[0, :, 3:, :6], x[0, :, :-3, 2:])
    assert found[0, :, :3].abs().sum() == 0
    assert found[0, :, :, 6:].abs().sum() == 0


def test_exchanged_channel_is_in_all_three() -> None:
    x = pictures(3)
    found = exchange_channel(x, torch.tensor([0, 1, 2]))
    for row in range(3):
        torch.testing.assert_close(found[row], x[row, row].expand(3, -1, -1))


def test_jitter_agrees_with_torchvision() -> None:
    from torchvision.transforms.v2 import functional as tv

    x = pictures(1)
    found = colour_jitter(x, torch.tensor([1.3]), torch.tensor([0.7]), torch.tensor([1.4]))
    expected = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(x, 1.3), 0.7), 1.4)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_erasing_fills_a_rectangle_of_chosen_pictures_with_the_mean() -> None:
    x = pictures(2)
    found = erase(x, torch.zeros(2, 2), torch.full((2, 2), 0.5), torch.tensor([True, False]))
    torch.testing.assert_close(found[1], x[1])
    torch.testing.assert_close(found[0, :, :6, :4], torch.tensor(IMAGENET_MEAN).view(3, 1, 1).expand(3, 6, 4))
    torch.testing.assert_close(found[0, :, 6:], x[0, :, 6:])


@pytest.mark.parametrize("view", [augment, augment_channels])
def test_a_batch_in_parts_is_augmented_as_a_whole(view) -> None:
    x = pictures(6)
    whole = view(x, torch.Generator().manual_seed(5), 2, slice(0, 6, 6))
    parts = [view(x[s : s + 3], torch.Generator().manual_seed(5), 2, slice(s, s + 3, 6)) for s in (0, 3)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert whole.shape == x.shape
    assert whole.isfinite().all()


def test_normalised_mean_colour_is_zero() -> None:
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(normalise(mean), torch.zeros(1, 3, 2, 2))


def test_normalised_white_is_as_many_deviations_above_the_mean() -> None:
    # (1 - 0.485) / 0.229, and so on.
    white = normalise(torch.ones(1, 3, 1, 1)).flatten().tolist()
    assert white == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)


def test_half_of_the_pictures_are_mirrored() -> None:
    picture = torch.zeros(1000, 3, 2, 4)
    picture[..., 2:] = 1
    for view in (augment, augment_channels):
        seen = view(picture, torch.Generator().manual_seed(1), 0, slice(0, 1000, 1000))
        mirrored = seen[..., :2].mean((1, 2, 3)) > seen[..., 2:].mean((1, 2, 3))
        assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_half_of_the_augmented_pictures_lose_two_to_forty_in_a_hundred_of_their_area() -> None:
    # White stays white under every other step, and an erased point is zero after normalisation.
    seen = augment_channels(torch.ones(1000, 3, 60, 30), torch.Generator().manual_seed(2), 0, slice(0, 1000, 1000))
    erased = (seen == 0).all(1).float().mean((1, 2))
    assert (erased > 0).float().mean().item() == pytest.approx(0.5, abs=0.06)
    area = erased[erased > 0]
    # Rounding to whole points on either side; a rectangle too long for the picture is cut.
    assert area.min() > 0.01
    assert 0.35 < area.max() < 0.45
    assert area.mean().item() == pytest.approx(0.2, abs=0.03)


def test_instances_carry_their_label_and_repeat_only_when_they_must() -> None:
    labels = np.array([3, 3, 3, 3, 7, 7, -1, -1])
    rows = sample_instances(labels, np.array([7, 3]), 4, np.random.default_rng(0))
    assert labels[rows].tolist() == [7] * 4 + [3] * 4
    assert sorted(rows[4:]) == [0, 1, 2, 3]
    assert sorted(rows[:4]) == [4, 4, 5, 5]


def test_stage_one_batches_leave_outliers_out() -> None:
    visible, infrared = np.array([0, 0, 1, 1, -1, 2]), np.array([-1, 0, 0, 1])
    options = {"identities": 2, "instances": 3, "steps": 5, "generator": np.random.default_rng(0)}
    batches = stage_one_batches(visible, infrared, **options)
    assert len(batches) == 5
    for batch in batches:
        assert batch.visible.shape == batch.infrared.shape == (6,)
        assert (visible[batch.visible] >= 0).all()
        assert (infrared[batch.infrared] >= 0).all()
        assert np.unique(visible[batch.visible]).size == 2


def test_stage_two_batches_pair_own_and_cross_labels() -> None:
    generator = np.random.default_rng(0)
    own_v, cross_r = generator.integers(0, 6, 60), generator.integers(2, 8, 50)
    own_r, cross_v = generator.integers(0, 5, 50), generator.integers(0, 5, 60)
    batch = stage_two_batches(own_v, cross_r, own_r, cross_v, identities=6, instances=4, steps=1, generator=generator)[
        0
    ]
    half = 3 * 4
    np.testing.assert_array_equal(own_v[batch.visible[:half]], cross_r[batch.infrared[:half]])
    np.testing.assert_array_equal(cross_v[batch.visible[half:]], own_r[batch.infrared[half:]])
    assert set(own_v[batch.visible[:half]]) <= {2, 3, 4, 5}


def test_collapsed_association_is_an_error_and_a_thin_one_a_smaller_batch() -> None:
    options = {"identities": 8, "instances": 2, "steps": 1, "generator": np.random.default_rng(0)}
    zeros, ones = np.zeros(4, int), np.ones(4, int)
    with pytest.raises(UserError, match="no label is carried by both"):
        stage_two_batches(zeros, ones, zeros, zeros, **options)
    assert stage_two_batches(zeros, zeros, ones, ones, **options)[0].visible.shape == (4,)


def test_batches_of_a_seed_are_always_the_same() -> None:
    labels = np.arange(40) % 5
    first, second = (
        stage_one_batches(labels, labels, identities=3, instances=2, steps=4, generator=np.random.default_rng([0, 7]))
        for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.visible, other.visible)
