"""The projected optimiser and the distribution loss (§3.5, invariant 9)."""

import pytest
import torch
from torch import nn

from tenfold import UserError
from vptnsp.method.losses import prompt_distribution_loss
from vptnsp.method.projection import LayerProjection, PromptProjector


def run_golden(data, projected: bool, project_gradient: bool = False):
    prompt = nn.Parameter(torch.from_numpy(data["P0"][0].copy()))
    weight, bias = (nn.Parameter(torch.from_numpy(data[name].copy())) for name in ("W0", "b0"))
    projection = LayerProjection(torch.from_numpy(data["B1"]), torch.from_numpy(data["B2"]))
    optimizer = torch.optim.Adam(
        [prompt, weight, bias],
        lr=float(data["lr"]),
        weight_decay=float(data["weight_decay"]),
        betas=tuple(data["betas"].tolist()),
        eps=float(data["eps"]),
    )
    if projected and not project_gradient:
        PromptProjector().attach(optimizer, {"blocks.0": prompt}, {"blocks.0": projection})
    drift = 0.0
    for step in range(len(data["gP"])):
        if step == int(data["lr_drop_at_step"]):
            optimizer.param_groups[0]["lr"] *= 0.1
        gradient = torch.from_numpy(data["gP"][step][0].copy())
        prompt.grad = projection.prompts @ gradient @ projection.features if project_gradient else gradient
        weight.grad, bias.grad = (torch.from_numpy(data[name][step].copy()) for name in ("gW", "gb"))
        optimizer.step()
        for name, value in (("P", prompt), ("W", weight), ("b", bias)):
            expected = torch.from_numpy(data[f"{name}_traj_proj{int(projected)}"][step]).reshape(value.shape)
            drift = max(drift, (value.detach() - expected).abs().max().item())
    return drift, optimizer, (weight, bias)


@pytest.mark.parametrize("projected", [False, True])
def test_golden_trajectories(golden, projected):
    assert run_golden(golden("projected_adam"), projected)[0] < 2e-6


def test_projecting_the_gradient_instead_fails_the_golden(golden):
    assert run_golden(golden("projected_adam"), True, project_gradient=True)[0] > 1e-3


def test_moments_and_heads_never_see_the_projection(golden):
    _, plain, head = run_golden(golden("projected_adam"), False)
    _, projected, other_head = run_golden(golden("projected_adam"), True)
    for first, second in zip(plain.state.values(), projected.state.values(), strict=True):
        if first["exp_avg"].shape == (4, 24):
            # Weight decay couples the gradient to P, which differs: the moments agree up to that.
            torch.testing.assert_close(first["exp_avg"], second["exp_avg"], atol=1e-4, rtol=0)
        else:
            assert torch.equal(first["exp_avg_sq"], second["exp_avg_sq"])
    assert all(torch.equal(one, two) for one, two in zip(head, other_head, strict=True))


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_identity_projections_change_nothing(optimizer_class):
    torch.manual_seed(0)
    gradients, finals = torch.randn(6, 4, 8), []
    for projected in (False, True):
        prompt = nn.Parameter(torch.ones(4, 8))
        optimizer = optimizer_class([prompt], lr=0.01)
        projector = PromptProjector()
        if projected:
            projector.attach(optimizer, {"a": prompt}, {"a": LayerProjection(torch.eye(8), torch.eye(4))})
        for gradient in gradients:
            prompt.grad = gradient.clone()
            optimizer.step()
        finals.append(prompt.detach().clone())
    torch.testing.assert_close(finals[0], finals[1], atol=1e-7, rtol=0)


def test_a_zero_projection_holds_the_prompts_until_it_is_detached():
    prompt = nn.Parameter(torch.ones(4, 8))
    optimizer = torch.optim.SGD([prompt], lr=1.0)
    projector = PromptProjector()
    projector.attach(optimizer, {"a": prompt}, {"a": LayerProjection(torch.zeros(8, 8), torch.eye(4))})
    prompt.grad = torch.ones(4, 8)
    optimizer.step()
    assert torch.equal(prompt, torch.ones(4, 8))
    projector.detach()
    optimizer.step()
    assert torch.equal(prompt.detach(), torch.zeros(4, 8))


def test_prompts_the_optimiser_does_not_hold_are_refused():
    prompt, other = nn.Parameter(torch.ones(4, 8)), nn.Parameter(torch.ones(4, 8))
    optimizer = torch.optim.SGD([prompt], lr=1.0)
    fitting = LayerProjection(torch.eye(8), torch.eye(4))
    for prompts, projections, message in (
        ({"a": other}, {"a": fitting}, "does not hold"),
        ({"a": prompt}, {}, "no projection"),
        ({"a": prompt}, {"a": LayerProjection(torch.eye(4), torch.eye(8))}, "does not fit"),
    ):
        with pytest.raises(UserError, match=message):
            PromptProjector().attach(optimizer, prompts, projections)


def test_the_distribution_loss_counts_what_layer_norm_would_see():
    torch.manual_seed(1)
    before = {name: torch.randn(4, 32) for name in "abc"}
    assert prompt_distribution_loss(before, before) == 0
    shifted = {name: value + 0.5 for name, value in before.items()}
    assert prompt_distribution_loss(shifted, before).item() == pytest.approx(3 * 0.5, rel=1e-5)
    both = prompt_distribution_loss(shifted, {name: value + 0.5 for name, value in before.items()})
    assert both.item() == pytest.approx(0, abs=1e-6)
    centred = {name: value - value.mean(1, keepdim=True) for name, value in before.items()}
    scaled = {name: 1.1 * value for name, value in centred.items()}
    expected = sum(value.std(1, correction=0).mean().item() * 0.1 for value in centred.values())
    assert prompt_distribution_loss(scaled, centred).item() == pytest.approx(expected, rel=1e-4)
    assert prompt_distribution_loss(shifted, before, "sum").item() == pytest.approx(4 * 3 * 0.5, rel=1e-5)


def test_the_distribution_loss_starts_with_a_zero_gradient():
    prompt = nn.Parameter(torch.randn(4, 8))
    prompt_distribution_loss({"a": prompt}, {"a": prompt.detach().clone()}).backward()
    assert torch.equal(prompt.grad, torch.zeros(4, 8))
