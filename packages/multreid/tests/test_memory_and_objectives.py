"""Cluster memory, OCLR and the objectives of both stages: golden vectors, invariants 7 and 8 of section 14."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from multreid.method.losses import (
    Memories,
    Targets,
    Views,
    infrared_space_loss,
    oclr_loss,
    stage_one_loss,
    visible_space_loss,
)
from multreid.method.memory import ClusterMemory, momentum_update


@pytest.fixture(scope="module")
def tensors(golden) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.atleast_1d(value)) for key, value in golden.items()}


def test_golden_logits_loss_gradient_and_update(tensors) -> None:
    memory = ClusterMemory(tensors["mem_bank_before"], temperature=0.05, momentum=0.1)
    inputs = tensors["mem_inputs"].clone().requires_grad_()
    logits = memory(inputs, tensors["mem_labels"])
    loss = F.cross_entropy(logits, tensors["mem_labels"])
    loss.backward()
    torch.testing.assert_close(logits, tensors["mem_logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, tensors["mem_loss"][0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(inputs.grad, tensors["mem_grad"], atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(memory.bank, tensors["mem_bank_after"], atol=1e-6, rtol=1e-5)


def test_golden_refinement_loss(tensors) -> None:
    loss = oclr_loss(tensors["oclr_pred"], tensors["oclr_target"])
    torch.testing.assert_close(loss, tensors["oclr_loss"][0], atol=1e-5, rtol=1e-6)


def sequential_update(bank, features, labels, momentum):
    bank = bank.clone()
    for feature, label in zip(features, labels, strict=True):
        bank[label] = F.normalize(momentum * bank[label] + (1 - momentum) * feature, dim=0)
    return bank


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9])
def test_update_is_sequential_in_batch_order(momentum) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, features = (F.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (5, 40))
    labels = torch.randint(0, 4, (40,), generator=generator)
    found = momentum_update(bank, features, labels, momentum)
    torch.testing.assert_close(found, sequential_update(bank, features, labels, momentum), atol=1e-6, rtol=1e-5)


def test_only_rows_of_present_labels_change_and_rows_stay_unit() -> None:
    memory = ClusterMemory(torch.randn(6, 8))
    before = memory.bank.clone()
    inputs = torch.randn(4, 8, requires_grad=True)
    F.cross_entropy(memory(inputs, torch.tensor([1, 1, 4, 1])), torch.tensor([1, 1, 4, 1])).backward()
    changed = (memory.bank != before).any(1)
    assert changed.tolist() == [False, True, False, False, True, False]
    torch.testing.assert_close(memory.bank.norm(dim=1), torch.ones(6))


def test_no_backward_no_update() -> None:
    memory = ClusterMemory(torch.randn(6, 8))
    before = memory.bank.clone()
    memory(torch.randn(4, 8), torch.tensor([0, 1, 2, 3]))
    memory.similarities(torch.randn(4, 8, requires_grad=True)).sum().backward()
    torch.testing.assert_close(memory.bank, before, atol=0, rtol=0)


def test_gradient_is_that_of_cross_entropy_with_a_frozen_bank() -> None:
    torch.manual_seed(0)
    bank, labels = F.normalize(torch.randn(6, 8), dim=1), torch.tensor([0, 3, 3, 5])
    first, second = (torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    memory = ClusterMemory(bank)
    # Used twice in one loss: the first update must not reach into the other gradient.
    (F.cross_entropy(memory(first, labels), labels) + F.cross_entropy(memory(first, labels), labels)).backward()
    (2 * F.cross_entropy(F.normalize(second, dim=1) @ bank.T / 0.05, labels)).backward()
    torch.testing.assert_close(first.grad, second.grad, atol=1e-6, rtol=1e-4)


def test_refinement_of_equal_logits_is_the_cross_term_of_the_sharpened_distribution() -> None:
    logits = torch.randn(7, 5)
    sharp = F.softmax(logits / 0.2, dim=1)
    entropy = -(sharp * sharp.log()).sum(1)
    divergence = (sharp * (sharp.log() - F.log_softmax(logits, 1))).sum(1)
    torch.testing.assert_close(oclr_loss(logits, logits), (entropy + divergence).mean())


def test_refinement_gradient_passes_the_numerical_check_through_both_arguments() -> None:
    torch.manual_seed(0)
    logits, target = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(oclr_loss_64, (logits, target))
    oclr_loss(logits.detach().float(), t := target.detach().float().requires_grad_()).backward()
    assert t.grad.abs().sum() > 0


def oclr_loss_64(logits, target):
    # float64 for the numerical derivative.
    return oclr_loss(logits, target)


def test_detached_target_receives_no_gradient() -> None:
    logits, target = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    oclr_loss(logits, target, detach_target=True).backward()
    assert target.grad is None
    assert logits.grad.abs().sum() > 0


@pytest.fixture
def stage_two():
    torch.manual_seed(0)
    visible, infrared = torch.randn(5, 8), torch.randn(4, 8)
    memories = Memories.starting_from(visible, infrared, 0.05, 0.1)
    views = Views(*(torch.randn(n, 8, requires_grad=True) for n in (6, 6, 7)))
    targets = Targets(*(F.softmax(torch.randn(n, k), 1) for n, k in ((6, 5), (7, 4), (6, 4), (7, 5))))
    return views, memories, targets


def changed(memories: Memories, loss: torch.Tensor) -> set[str]:
    before = {name: memory.bank.clone() for name, memory in vars(memories).items()}
    loss.backward()
    return {name for name, memory in vars(memories).items() if not torch.equal(memory.bank, before[name])}


def test_even_epochs_update_the_memories_of_the_visible_space(stage_two) -> None:
    views, memories, targets = stage_two
    assert changed(memories, visible_space_loss(views, memories, targets)) == {"v", "r", "va", "rcm"}


def test_odd_epochs_update_the_memories_of_the_infrared_space(stage_two) -> None:
    views, memories, targets = stage_two
    assert changed(memories, infrared_space_loss(views, memories, targets)) == {"v", "r", "ra", "vcm"}


def cross_entropy(memory, features, target):
    return F.cross_entropy(memory.similarities(features), target)


def refined(shared, view, other, partner):
    return oclr_loss(shared.similarities(view), other.similarities(partner))


@pytest.mark.parametrize("weight", [1.0, 0.0, 0.3])
def test_loss_of_even_epochs_is_the_sum_of_its_terms(stage_two, weight) -> None:
    views, m, t = stage_two
    v, a, r = views.visible, views.augmented, views.infrared
    ce, sce = cross_entropy, refined
    labels = (
        ce(m.v, v, t.visible) + ce(m.v, a, t.visible) + ce(m.r, r, t.infrared) + ce(m.rcm, r, t.infrared_cross)
        + ce(m.va, v, t.visible) + ce(m.va, a, t.visible) + ce(m.va, r, t.infrared_cross)
    )  # fmt: skip
    refinement = (
        sce(m.va, v, m.v, a) + sce(m.va, a, m.v, v) + sce(m.va, r, m.rcm, r)
        + sce(m.va, v, m.rcm, a) + sce(m.va, a, m.rcm, v) + sce(m.va, r, m.v, r)
    )  # fmt: skip
    torch.testing.assert_close(visible_space_loss(views, m, t, refinement=weight), labels + weight * refinement)
    if weight == 1:
        torch.testing.assert_close(visible_space_loss(views, m, t), labels + refinement)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_loss_of_odd_epochs_is_the_sum_of_its_terms(stage_two, weight) -> None:
    views, m, t = stage_two
    v, a, r = views.visible, views.augmented, views.infrared
    ce, sce = cross_entropy, refined
    labels = (
        ce(m.r, r, t.infrared) + ce(m.v, v, t.visible) + ce(m.v, a, t.visible)
        + ce(m.vcm, v, t.visible_cross) + ce(m.vcm, a, t.visible_cross)
        + ce(m.ra, r, t.infrared) + ce(m.ra, v, t.visible_cross) + ce(m.ra, a, t.visible_cross)
    )  # fmt: skip
    refinement = (
        sce(m.ra, r, m.r, r) + sce(m.ra, v, m.vcm, a) + sce(m.ra, a, m.vcm, v)
        + sce(m.ra, r, m.vcm, r) + sce(m.ra, v, m.r, a) + sce(m.ra, a, m.r, v)
    )  # fmt: skip
    torch.testing.assert_close(infrared_space_loss(views, m, t, refinement=weight), labels + weight * refinement)


def test_stage_one_keeps_the_modalities_apart() -> None:
    views = Views(*(torch.randn(3, 4, requires_grad=True) for _ in range(3)))
    v, r = ClusterMemory(torch.randn(3, 4)), ClusterMemory(torch.randn(2, 4))
    before = r.bank.clone()
    stage_one_loss(views, v, r, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0])).backward()
    assert not torch.equal(r.bank, before)
    assert all(each.grad is not None and each.grad.isfinite().all() for each in vars(views).values())
