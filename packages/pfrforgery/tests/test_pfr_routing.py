"""One client step against the golden ones, and which loss reaches which parameter."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from pfrforgery.config import LossWeights, check_weights
from pfrforgery.method.gradient_routing import Draws, clip_joint_norm, draw, routed_gradients
from pfrforgery.models.networks import TwoBranchDetector, normalisation_affine
from tenfold import UserError

Golden = Callable[[str], dict[str, np.ndarray]]


class Toy(nn.Module):
    """The network of the golden step."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.shared, self.personal = (
            nn.Sequential(
                nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(6, 2),
            )
            for _ in range(2)
        )


@pytest.mark.parametrize(
    ("name", "routing"), [("training_step", "shared_main"), ("training_step_personal_main", "personal_main")]
)
def test_a_whole_step_is_the_golden_one(golden: Golden, name: str, routing: str) -> None:
    data = {key: torch.from_numpy(np.asarray(value)) for key, value in golden(name).items()}
    model = Toy()
    # The file's running statistics under `init.` are those after the step: torch's own start, 0 and 1, is the one they were made from.
    start = {
        key.removeprefix("init."): value
        for key, value in data.items()
        if key.startswith("init.") and "running" not in key
    }
    assert not model.load_state_dict(start, strict=False).unexpected_keys
    weights = LossWeights(*(float(data[key]) for key in ("alpha", "beta", "gamma", "adv_clip")))
    draws = Draws(data["perm_mix"], data["mix_alpha"], data["perm_swap"])
    losses = routed_gradients(model, data["x"], data["y"], draws, routing, weights)
    assert_allclose(losses.shared, data["loss_shared"], rtol=1e-5)
    assert_allclose(losses.personal, data["loss_personal"], rtol=1e-5)
    assert_allclose(losses.adversarial, data["loss_adv"], rtol=1e-5)
    for key, parameter in model.named_parameters():
        assert_allclose(parameter.grad, data[f"grad.{key}"], rtol=1e-4, atol=1e-6, err_msg=key)
    torch.optim.SGD(model.parameters(), lr=float(data["lr"])).step()
    checked = 0
    for key, value in model.state_dict().items():
        if f"after.{key}" in data:
            assert_allclose(value, data[f"after.{key}"], rtol=1e-5, atol=1e-6, err_msg=key)
            checked += 1
    assert checked == 13 + 6


def step(weights: LossWeights, routing: str = "shared_main") -> tuple[TwoBranchDetector, TwoBranchDetector]:
    """The detector before and after one SGD step."""
    torch.manual_seed(3)
    before = TwoBranchDetector("tiny")
    after = copy.deepcopy(before)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(8, 3, 16, 16, generator=generator), torch.arange(8) % 2
    routed_gradients(after, x, y, draw(8, generator), routing, weights)
    torch.optim.SGD(after.parameters(), lr=0.1).step()
    return before, after


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    return {name for (name, old), new in pairs if not torch.equal(old, new)}


def test_without_its_loss_the_personal_branch_rests_but_its_statistics_move() -> None:
    before, after = step(LossWeights(beta=0.0))
    assert not {name for name in moved(before, after) if name.startswith("personal.")}
    assert not torch.equal(before.personal.block3[1].running_mean, after.personal.block3[1].running_mean)


def test_without_its_loss_extractor_and_shared_branch_rest() -> None:
    names = moved(*step(LossWeights(alpha=0.0, gamma=0.0)))
    assert names
    assert all(name.startswith("personal.") for name in names)


def test_the_adversarial_loss_reaches_the_extractors_normalisation_only() -> None:
    names = moved(*step(LossWeights(alpha=0.5, beta=0.0, gamma=0.0)))
    assert names == {f"extractor.block{block}.1.{entry}" for block in (1, 2) for entry in ("weight", "bias")}


def test_the_personal_loss_never_reaches_the_extractor() -> None:
    calm, loud = (step(LossWeights(beta=beta))[1] for beta in (0.0, 5.0))
    for first, second in zip(calm.extractor.parameters(), loud.extractor.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)


def test_the_adversarial_gradient_is_clipped_jointly() -> None:
    gradients = [torch.randn(5, generator=torch.Generator().manual_seed(i)) * 3 for i in range(4)]
    clipped = clip_joint_norm(gradients, 0.1)
    assert torch.cat(clipped).norm() <= 0.1 * (1 + 1e-5)
    assert torch.cat(clipped).norm() > 0.0999
    small = [gradient * 1e-3 for gradient in gradients]
    assert all(torch.equal(a, b) for a, b in zip(clip_joint_norm(small, 0.1), small, strict=True))
    quiet, adversarial = (step(LossWeights(alpha=alpha, adv_clip=0.1))[1] for alpha in (0.0, 50.0))
    parts = [
        (b.grad - a.grad).flatten()
        for a, b in zip(normalisation_affine(quiet.extractor), normalisation_affine(adversarial.extractor), strict=True)
    ]
    assert torch.cat(parts).norm() == pytest.approx(0.1, rel=1e-3)


def test_weights_without_meaning_are_refused() -> None:
    with pytest.raises(UserError, match="beta: -1"):
        check_weights(LossWeights(beta=-1.0), "shared_main")
    with pytest.raises(UserError, match="set alpha to 0"):
        check_weights(LossWeights(), "plain")
