"""The losses against golden vectors, and their invariants."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional as F

from pfrforgery.method.losses import adversarial_entropy, proximal_term
from pfrforgery.models.networks import fake_probability

Golden = Callable[[str], dict[str, np.ndarray]]


def test_losses_gradients_and_fusion_are_the_golden_ones(golden: Golden) -> None:
    data = {name: torch.from_numpy(value) for name, value in golden("losses").items()}
    shared, personal = data["logits_shared"].requires_grad_(), data["logits_personal"].requires_grad_()
    losses = {
        "shared": F.cross_entropy(shared, data["y"]),
        "personal": F.cross_entropy(personal, data["y"]),
        "adv": adversarial_entropy(personal),
    }
    for name, loss in losses.items():
        assert_allclose(loss.item(), data[f"loss_{name}"], rtol=1e-5)
        (gradient,) = torch.autograd.grad(loss, shared if name == "shared" else personal, retain_graph=True)
        assert_allclose(gradient, data[f"grad_{name}"], rtol=1e-4, atol=1e-6)
    total = data["alpha"] * losses["adv"] + data["beta"] * losses["personal"] + data["gamma"] * losses["shared"]
    assert_allclose(total.item(), data["loss_total"], rtol=1e-5)
    fused = fake_probability({"shared": shared.detach(), "personal": personal.detach()}, "fused")
    assert_allclose(fused, data["prob_fake_fused"], rtol=1e-5, atol=1e-6)


def test_entropy_is_least_at_equal_logits_and_grows_with_their_distance() -> None:
    equal = torch.full((3, 2), 0.7, requires_grad=True)
    loss = adversarial_entropy(equal)
    assert loss.item() == pytest.approx(math.log(2), abs=3e-5)
    (gradient,) = torch.autograd.grad(loss, equal)
    assert gradient.abs().max() < 1e-7
    values = [adversarial_entropy(torch.tensor([[0.0, gap]])).item() for gap in (0, 0.5, 1, 2, 4, 8)]
    assert values == sorted(values)
    logits = torch.randn(50, 2) * 4
    assert adversarial_entropy(logits) >= math.log(2) - 3e-5
    assert torch.autograd.gradcheck(adversarial_entropy, torch.randn(4, 2, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("strength", "value", "gradient"),
    [
        ("mu", "prox_value", "prox_grad"),
        ("ditto_lambda", "ditto_value", "ditto_grad"),
    ],
)
def test_the_proximal_term_is_squared(golden: Golden, strength: str, value: str, gradient: str) -> None:
    data = golden("proximal")
    w = torch.from_numpy(data["w"]).requires_grad_()
    term = proximal_term([w], [torch.from_numpy(data["w_global"])], float(data[strength]))
    assert_allclose(term.item(), data[value], rtol=1e-5)
    (found,) = torch.autograd.grad(term, w)
    assert_allclose(found, data[gradient], rtol=1e-4, atol=1e-6)


def test_the_fused_probability_lies_between_the_branches() -> None:
    logits = {"shared": torch.randn(20, 2), "personal": torch.randn(20, 2)}
    shared, personal, fused = (fake_probability(logits, each) for each in ("shared", "personal", "fused"))
    assert (fused >= torch.minimum(shared, personal) - 1e-7).all()
    assert (fused <= torch.maximum(shared, personal) + 1e-7).all()
