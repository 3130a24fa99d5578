"""The losses: golden vectors, invariants, limits, gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinsight.method.contrastive import byol_distance, byol_loss, negative_cosine, nt_xent_loss, simsiam_loss
from twinsight.method.losses import cosine_gram, neighbourhood_preserving_loss, pair_count
from twinsight.method.pseudo_labels import FreeMatchThreshold, consistency_loss, fixmatch_loss, freematch_loss

Golden = Callable[[str], dict[str, np.ndarray]]
FILES = pytest.mark.parametrize("name", ["losses_a", "losses_b"])


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}


@FILES
def test_nt_xent_is_the_golden_one(golden: Golden, name: str) -> None:
    g = tensors(golden(name))
    torch.testing.assert_close(nt_xent_loss(g["infonce_z"], 0.07), g["infonce_loss"], rtol=1e-5, atol=0)


@FILES
def test_neighbourhood_loss_is_the_golden_one_under_both_normalisations(golden: Golden, name: str) -> None:
    g = tensors(golden(name))
    features = g["np_unsup_features"], g["np_sup_features"]
    mean = neighbourhood_preserving_loss(*features, "mean")
    torch.testing.assert_close(mean, g["np_loss_mean"], rtol=1e-5, atol=0)
    torch.testing.assert_close(mean * len(features[0]) ** 2, g["np_sum_sq"], rtol=1e-5, atol=0)
    official = neighbourhood_preserving_loss(*features, "official")
    torch.testing.assert_close(official, g["np_loss_official_xor"], rtol=1e-5, atol=0)


@FILES
@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_fixmatch_is_the_golden_one(golden: Golden, name: str, threshold: float) -> None:
    g = tensors(golden(name))
    loss, mask = fixmatch_loss(g["logits_weak"], g["logits_strong"], threshold)
    torch.testing.assert_close(loss, g[f"fixmatch_loss_{threshold}"], rtol=1e-5, atol=1e-9)
    assert mask.long().tolist() == g[f"fixmatch_mask_{threshold}"].tolist()


@FILES
def test_freematch_statistics_and_loss_are_the_golden_ones(golden: Golden, name: str) -> None:
    g = tensors(golden(name))
    for suffix, clamp in (("", None), ("_svhn", (0.9, 0.95))):
        statistics = FreeMatchThreshold(g["logits_weak"].shape[1], clamp=clamp)
        for k in range(3):
            # The golden statistics were fed with these probabilities; their logarithm is a logit.
            probability = (g["logits_weak"] + 0.1 * k * g["logits_strong"]).softmax(1)
            statistics.update(probability.log())
            torch.testing.assert_close(statistics.confidence, g[f"free_time_p_{k}"], rtol=1e-5, atol=0)
            torch.testing.assert_close(statistics.class_mean, g[f"free_p_model_{k}"], rtol=1e-5, atol=0)
            torch.testing.assert_close(statistics.label_share, g[f"free_label_hist_{k}"], rtol=1e-5, atol=0)
        loss, mask = freematch_loss(g["logits_weak"], g["logits_strong"], statistics)
        torch.testing.assert_close(loss, g[f"freematch{suffix}_loss"], rtol=1e-5, atol=1e-9)
        assert mask.long().tolist() == g[f"freematch{suffix}_mask"].tolist()


@FILES
def test_simsiam_and_byol_are_the_golden_ones(golden: Golden, name: str) -> None:
    g = tensors(golden(name))
    torch.testing.assert_close(negative_cosine(g["p"], g["z"]), g["simsiam_D"], rtol=1e-5, atol=0)
    torch.testing.assert_close(byol_distance(g["p"], g["z"]), g["byol_loss"], rtol=1e-5, atol=0)


def test_neighbourhoods_do_not_see_scale_rotation_or_order() -> None:
    torch.manual_seed(0)
    features = torch.randn(9, 6, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    scaled = features @ rotation * torch.rand(9, 1, dtype=torch.float64).add(0.1)
    assert neighbourhood_preserving_loss(features, scaled, "mean") < 1e-20
    other = torch.randn(9, 4, dtype=torch.float64)
    value = neighbourhood_preserving_loss(features, other)
    torch.testing.assert_close(neighbourhood_preserving_loss(other, features), value)
    torch.testing.assert_close(neighbourhood_preserving_loss(features, other * 7), value)


@pytest.mark.parametrize("batch", [2, 5, 8])
def test_orthonormal_against_identical_rows_is_one_minus_one_over_b(batch: int) -> None:
    value = neighbourhood_preserving_loss(torch.ones(batch, 3), torch.eye(batch), "mean")
    assert value.item() == pytest.approx((batch**2 - batch) / batch**2)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 2**31))
def test_neighbourhood_loss_stays_between_0_and_4(batch: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = neighbourhood_preserving_loss(
        torch.randn(batch, width, generator=generator), torch.randn(batch, width + 1, generator=generator), "mean"
    )
    assert 0 <= value <= 4
    assert cosine_gram(torch.randn(batch, width, generator=generator)).abs().max() <= 1 + 1e-5


def test_the_constraint_pulls_both_twins_and_its_gradient_is_right() -> None:
    torch.manual_seed(1)
    features = [torch.randn(5, width, dtype=torch.float64, requires_grad=True) for width in (4, 3)]
    assert torch.autograd.gradcheck(neighbourhood_preserving_loss, features, atol=1e-4)
    gradients = torch.autograd.grad(neighbourhood_preserving_loss(*features), features)
    assert all(each.abs().max() > 1e-4 for each in gradients)


def test_official_normalisation_is_xor_and_refuses_a_batch_of_two() -> None:
    assert [pair_count(size, "official") for size in (64, 32, 16, 4, 3, 1)] == [66, 34, 18, 6, 1, 3]
    assert pair_count(64, "mean") == 4096
    features = torch.randn(5, 3), torch.randn(5, 4)
    torch.testing.assert_close(
        neighbourhood_preserving_loss(*features), neighbourhood_preserving_loss(*features, "mean") * 25 / 7
    )
    with pytest.raises(ValueError, match="divides by 2 XOR 2"):
        pair_count(2, "official")


def test_nt_xent_of_equal_views_and_of_permuted_pictures() -> None:
    assert nt_xent_loss(torch.ones(12, 5)).item() == pytest.approx(math.log(11), rel=1e-6)
    torch.manual_seed(2)
    views = torch.randn(2, 6, 5)
    order = torch.randperm(6)
    torch.testing.assert_close(nt_xent_loss(views[:, order].flatten(0, 1)), nt_xent_loss(views.flatten(0, 1)))


def test_simsiam_and_byol_meet_the_other_view_and_stop_the_gradient() -> None:
    torch.manual_seed(3)
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    crossed = torch.cat([second, first]).requires_grad_()
    predictions = torch.cat([first, second]).requires_grad_()
    assert simsiam_loss(predictions, crossed).item() == pytest.approx(-1, abs=1e-6)
    assert byol_loss(predictions, crossed).item() == pytest.approx(0, abs=1e-6)
    (simsiam_loss(predictions, crossed) + byol_loss(predictions, crossed)).backward()
    assert crossed.grad is None


def test_fixmatch_counts_the_whole_batch_and_nothing_above_the_threshold() -> None:
    torch.manual_seed(4)
    weak, strong = torch.randn(6, 3), torch.randn(6, 3)
    every, mask = fixmatch_loss(weak, strong, 0.0)
    torch.testing.assert_close(every, torch.nn.functional.cross_entropy(strong, weak.argmax(1)))
    assert mask.all()
    none, mask = fixmatch_loss(weak, strong, 1.01)
    assert none == 0
    assert not mask.any()
    threshold = weak.softmax(1).max(1).values.median().item()
    part, mask = fixmatch_loss(weak, strong, threshold)
    losses = torch.nn.functional.cross_entropy(strong, weak.argmax(1), reduction="none")
    torch.testing.assert_close(part, losses[mask].sum() / 6)


def test_the_weak_view_teaches_and_takes_no_gradient() -> None:
    weak, strong = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    (fixmatch_loss(weak, strong, 0.0)[0] + consistency_loss(weak, strong)).backward()
    assert weak.grad is None
    assert strong.grad is not None
