"""What holds for every attack, on random detectors and faces."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from asmattack import (
    PRESETS,
    AttackConfig,
    Detector,
    RegionAttack,
    attack,
    preset,
    region_mask,
    region_scores,
    select_regions,
)
from asmattack.data.landmarks import GeometricParser
from asmattack.data.synthetic import drawn_set
from asmattack.evaluation.metrics import distortion
from asmattack.method.selection import greedy
from asmattack.models.networks import surrogate
from tenfold import UserError

FACES = drawn_set(6, 64, seed=3)
IMAGES, LABELS = FACES.pixels(), FACES.labels
DETECTOR = surrogate("plain", 1)
PARSED = GeometricParser()(IMAGES)
MASK = region_mask(PARSED, (2, 4, 5, 6, 7)).float()


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "pgd_l2"])
def test_the_budget_and_the_mask_are_kept_bitwise(name) -> None:
    config = preset(name, 3 / 255)
    adversarial = RegionAttack(DETECTOR, config)(IMAGES, LABELS, MASK)
    outside = (MASK == 0).expand_as(IMAGES)
    assert torch.equal(adversarial[outside], IMAGES[outside])
    levels = (255 * adversarial - 255 * IMAGES).round()
    assert 0 < levels.abs().max() <= 3
    assert ((255 * adversarial).round() / 255 == adversarial).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    unrounded = RegionAttack(DETECTOR, replace(config, quantised=False))(IMAGES, LABELS, MASK)
    assert torch.equal(unrounded[outside], IMAGES[outside])
    assert ((unrounded - IMAGES).abs() <= 3 / 255 * MASK + 1e-6).all()
    assert ((unrounded >= 0) & (unrounded <= 1)).all()


def test_an_l2_budget_holds_before_and_after_rounding() -> None:
    for quantised in (False, True):
        config = AttackConfig(eps=1.0, alpha=0.5, norm="l2", quantised=quantised)
        change = RegionAttack(DETECTOR, config)(IMAGES, LABELS, MASK) - IMAGES
        assert change.any()
        assert change.flatten(1).norm(dim=1).max() <= 1 + 1e-5
        assert not change[(MASK == 0).expand_as(change)].any()


@pytest.mark.parametrize("changes", [{"eps": 0.0, "alpha": 0.01}, {"steps": 0}, {"momentum": 1.0}])
def test_nothing_moves_without_budget_steps_or_mask(changes) -> None:
    mask = torch.zeros_like(MASK) if "momentum" in changes else MASK
    result = RegionAttack(DETECTOR, AttackConfig(**changes)).run(IMAGES, LABELS, mask)
    assert torch.equal(result.images, IMAGES)
    assert result.empty_mask.all() == ("momentum" in changes)


def test_a_batch_is_attacked_as_its_images_are_alone() -> None:
    start = torch.empty_like(IMAGES).uniform_(-0.03, 0.03, generator=torch.Generator().manual_seed(0))
    for objective in ("margin", "cafa"):
        runner = RegionAttack(DETECTOR, AttackConfig(objective=objective, start="uniform", steps=2, quantised=False))
        together = runner.run(IMAGES, LABELS, MASK, start=start).images
        for i in range(2):
            one = slice(i, i + 1)
            alone = runner.run(IMAGES[one], LABELS[one], MASK[one], start=start[one]).images
            assert ((alone - together[one]).abs() < 1e-6).float().mean() > 0.995


def test_the_detector_and_the_global_randomness_are_left_as_they_were() -> None:
    detector = surrogate("plain", 2).train()
    before = [p.clone() for p in detector.parameters()]
    buffers = [b.clone() for b in detector.buffers()]
    state = torch.get_rng_state()
    attack(detector, IMAGES, LABELS, config=preset("difgsm"), method="gradcam")
    with pytest.raises(ValueError, match="normalisation belongs"):
        RegionAttack(detector)(IMAGES * 255, LABELS)
    assert detector.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, detector.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(buffers, detector.buffers(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in detector.parameters())
    assert not [m for m in detector.modules() if m._forward_hooks]


def test_a_seed_gives_one_result_and_another_seed_another() -> None:
    def run(seed: int) -> torch.Tensor:
        return RegionAttack(DETECTOR, preset("cafa", seed=seed))(IMAGES, LABELS, MASK)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


class Fault(torch.nn.Module):
    """Fails on the chosen pass."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.inside, self.left = surrogate("plain", 2).network, left

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("no more")
        return self.inside(x)


@pytest.mark.parametrize("name", ["pgd", "cafa"])
def test_a_failure_on_the_way_leaves_the_detector_as_it_was(name) -> None:
    detector = Detector(Fault(3)).train()
    with pytest.raises(RuntimeError, match="no more"):
        RegionAttack(detector, preset(name))(IMAGES, LABELS, MASK)
    assert all(module.training for module in detector.modules())
    assert all(p.grad is None and p.requires_grad for p in detector.parameters())
    assert not [m for m in detector.modules() if m._forward_hooks]


def test_fgsm_is_the_best_change_for_a_linear_detector() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))
    result = RegionAttack(net, AttackConfig(eps=0.02, alpha=0.02, steps=1, quantised=False, objective="margin"))
    images, labels, mask = IMAGES[:2], torch.tensor([0, 1]), MASK[:2]
    best = result(images, labels, mask)
    inside = (mask[:1] > 0).expand(1, 3, -1, -1)[0].flatten()
    assert torch.equal(mask[0], mask[1])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = (net[1].weight[1] - net[1].weight[0])[inside]
        for x, y, adversarial in zip(images, labels, best, strict=True):
            towards = weight * (1 - 2 * y)
            x, adversarial = x.flatten()[inside], adversarial.flatten()[inside]
            # A thousand draws, most of them corners of the feasible set.
            corners = torch.rand((1000, len(x)), generator=generator) * 2 - 1
            corners[200:] = corners[200:].sign()
            rivals = (x + 0.02 * corners).clamp(0, 1)
            assert (rivals @ towards <= adversarial @ towards + 1e-6).all()


def test_area_budgets_hold_and_absent_classes_are_never_chosen() -> None:
    scores = region_scores(torch.rand(PARSED.shape), PARSED)
    for pixels in (0, 30, 100, 5000):
        chosen = greedy(scores.density, scores.area, torch.full((6,), pixels))
        assert ((chosen * scores.area).sum(1) <= pixels).all()
    assert torch.equal(chosen, scores.area > 0)
    assert not greedy(scores.density, torch.zeros_like(scores.area), torch.full((6,), 50)).any()
    everything = region_scores(torch.ones(PARSED.shape), PARSED, range(19))
    assert torch.allclose(everything.mass.sum(1), torch.full((6,), 64.0 * 64))
    with pytest.raises(ValueError, match="budget"):
        select_regions(scores, PARSED, budget=1.5)


def test_psnr_rises_with_a_smaller_area_alone() -> None:
    clean = torch.full((64, 64, 3), 100, dtype=torch.uint8).numpy()
    changed = clean.copy()
    changed[:16] += 8
    expected = -20 * math.log10(8 / 255) - 10 * math.log10(0.25)
    assert distortion(clean, changed).psnr == pytest.approx(expected, abs=1e-3)


def test_input_gradients_are_central_differences() -> None:
    from asmattack.method.losses import objective_loss

    detector = surrogate("plain", 5).double().eval()
    x, y = IMAGES[:1].double(), LABELS[:1]
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()
    point = x + 0.01 * direction.roll(1)
    for name in ("ce", "margin", "cafa"):
        loss = objective_loss(name, detector, x, y)
        z = point.clone().requires_grad_()
        slope = (torch.autograd.grad(loss(z).sum(), z)[0] * direction).sum()
        numeric = (loss(point + 1e-6 * direction) - loss(point - 1e-6 * direction)).sum() / 2e-6
        assert slope.item() == pytest.approx(numeric.item(), rel=1e-4, abs=1e-9)


def test_what_cannot_be_attacked_is_refused() -> None:
    attacker = RegionAttack(DETECTOR)
    with pytest.raises(ValueError, match="does not fit"):
        attacker(IMAGES, LABELS, MASK[:2])
    with pytest.raises(ValueError, match="mask values"):
        attacker(IMAGES, LABELS, MASK * float("nan"))
    with pytest.raises(ValueError, match="pixels from"):
        attacker(IMAGES * float("nan"), LABELS, MASK)
    with pytest.raises(UserError, match="square"):
        GeometricParser()(torch.zeros(1, 3, 64, 50))
    with pytest.raises(UserError, match="channels"):
        RegionAttack(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 62 * 62, 2)), PRESETS["cafa"])(
            IMAGES, LABELS
        )
    with pytest.raises(UserError, match="outputs"):
        Detector(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5)))(IMAGES)
    with pytest.raises(ValueError, match="no attack"):
        preset("nonsense")
