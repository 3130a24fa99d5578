"""Capsule: routing, squash and statistics against golden vectors; one softmax, not two."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairfd.models.detectors.capsule import PrimaryCapsules, class_log_probability, route, squash, statistics

GOLDEN = np.load(Path(__file__).parent / "golden" / "capsule_modules.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def test_routing_reproduces_the_golden_capsules() -> None:
    outputs = route(golden("routing_x"), golden("routing_weights"))
    assert torch.allclose(outputs, golden("routing_out"), atol=1e-4)


def test_class_probability_reproduces_the_golden_one_with_a_single_softmax() -> None:
    logits = class_log_probability(golden("routing_out"))
    assert torch.allclose(logits.exp(), golden("class_prob"), atol=1e-5)
    assert torch.allclose(logits.softmax(1), golden("class_prob"), atol=1e-5)


def test_second_softmax_would_change_neither_decisions_nor_ranks() -> None:
    once = class_log_probability(torch.randn(50, 4, 2, generator=torch.Generator().manual_seed(0))).exp()
    twice = once.softmax(1)
    assert torch.equal(once[:, 1] >= 0.5, twice[:, 1] >= 0.5)
    assert torch.equal(once[:, 1].argsort(), twice[:, 1].argsort())
    assert twice.min() > 0.268
    assert twice.max() < 0.732


def test_squash_reproduces_the_golden_vectors() -> None:
    assert torch.allclose(squash(golden("routing_x")), golden("squash_last_dim"), atol=1e-5)


def test_squash_of_zero_is_zero_with_a_finite_gradient() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    squash(x).sum().backward()
    assert torch.equal(squash(x), torch.zeros(2, 4))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_statistics_reproduce_the_golden_ones() -> None:
    assert torch.allclose(statistics(golden("stats_x")), golden("stats_y"), atol=1e-5)


def test_primary_capsules_do_not_mix() -> None:
    torch.manual_seed(0)
    primary = PrimaryCapsules().eval()
    h = torch.randn(2, 256, 6, 6)
    before = primary.vectors(statistics(primary.maps(h).unflatten(1, (10, 16)).flatten(0, 1)).reshape(2, 20, 16))
    with torch.no_grad():
        primary.maps[3].weight[16 * 4 : 16 * 5] += 1  # the second convolution of capsule 4
    after = primary.vectors(statistics(primary.maps(h).unflatten(1, (10, 16)).flatten(0, 1)).reshape(2, 20, 16))
    changed = (before != after).any(2).any(0)
    assert changed.nonzero().flatten().tolist() == [4]
    assert primary(h).shape == (2, 8, 10)
