"""Contrast, distillation, projection, rivals' losses against golden vectors and invariants (section 14: 1-6, 18, 22, 23)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import UserError
from weatherkr.method.baselines import gradient_importance, importance_penalty, merge_importance, pod_loss, scaled
from weatherkr.method.contrastive import LEVEL_WEIGHTS, ContrastLoss, contrast_terms, level_distances
from weatherkr.method.losses import Objective, Replay, Terms, Weights
from weatherkr.models.networks import WeatherNet, normalize
from weatherkr.models.perceptual import TappedVGG, random_extractor, vgg19_extractor
from weatherkr.models.projector import AttentionProjector


def tensors(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def narrow_vgg(golden) -> TappedVGG:
    extractor = TappedVGG(8)
    extractor.layers.load_state_dict(tensors(golden("contrast"), "vgg."))
    return extractor


def test_contrast_matches_the_golden_vectors(golden, narrow_vgg) -> None:
    g = golden("contrast")
    anchor, positive, negative = (torch.from_numpy(g[name]) for name in ("anchor", "positive", "negative"))
    anchor.requires_grad_()
    maps = [narrow_vgg(x) for x in (anchor, positive, negative)]
    assert [list(each.shape) for each in maps[0]] == g["feature_shapes"].tolist()
    np.testing.assert_allclose(level_distances(maps[0], maps[1]).detach(), g["d_pos"], rtol=1e-5)
    np.testing.assert_allclose(level_distances(maps[0], maps[2]).detach(), g["d_neg"], rtol=1e-5)
    contrast = ContrastLoss(narrow_vgg)
    loss = contrast(anchor, positive, negative)
    assert loss.item() == pytest.approx(float(g["loss"]), abs=1e-5)
    loss.backward()
    np.testing.assert_allclose(anchor.grad, g["grad_anchor"], atol=1e-7, rtol=0)
    assert all(weight.grad is None for weight in narrow_vgg.parameters())
    same = contrast(anchor.detach(), anchor.detach(), negative)
    assert same.item() == pytest.approx(float(g["loss_anchor_equals_positive"]), abs=1e-5)


def test_contrast_is_finite_where_the_official_form_is_nan(golden, narrow_vgg) -> None:
    g = golden("contrast")
    assert math.isnan(float(g["huge_official_loss"]))
    anchor = (torch.from_numpy(g["anchor"]) * float(g["huge_anchor_scale"])).requires_grad_()
    loss = ContrastLoss(narrow_vgg)(anchor, torch.from_numpy(g["positive"]), torch.from_numpy(g["negative"]))
    assert loss.item() == pytest.approx(3.29036, abs=1e-4)
    loss.backward()
    assert anchor.grad is not None
    assert anchor.grad.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 40), st.floats(0, 40))
def test_softplus_equals_the_official_form_where_that_is_sound(positive: float, negative: float) -> None:
    ours = contrast_terms(torch.tensor([positive]), torch.tensor([negative])).double()
    p, n = (torch.tensor([-d / 0.5], dtype=torch.float64) for d in (positive, negative))
    theirs = -(p.exp() / (p.exp() + n.exp())).log()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("pair", [(1e4, 0.0), (0.0, 1e4), (1e4, 1e4), (60.0, 55.0)])
def test_value_and_gradient_are_finite_at_any_distance(pair) -> None:
    positive = torch.tensor([pair[0]], requires_grad=True)
    value = contrast_terms(positive, torch.tensor([pair[1]]))
    value.sum().backward()
    expected = torch.sigmoid(torch.tensor([(pair[0] - pair[1]) / 0.5])) / 0.5
    assert value.isfinite().all()
    torch.testing.assert_close(positive.grad, expected)


def test_contrast_of_equal_distances_and_of_single_images(narrow_vgg) -> None:
    equal = torch.ones(5)
    total = (contrast_terms(equal, equal) * torch.tensor(LEVEL_WEIGHTS)).sum()
    assert total.item() == pytest.approx(1.018060, abs=1e-5)
    torch.manual_seed(0)
    a, p, n = torch.rand(3, 2, 3, 32, 32).mul(torch.tensor([1.0, 1.0, 4.0])[:, None, None, None, None])
    a[1] *= 10
    contrast = ContrastLoss(narrow_vgg)
    singles = [contrast(a[i : i + 1], p[i : i + 1], n[i : i + 1]) for i in range(2)]
    assert abs(contrast(a, p, n) - sum(singles) / 2) > 1e-4


def test_contrast_falls_as_the_anchor_nears_the_positive_and_needs_16_pixels(narrow_vgg) -> None:
    levels = ContrastLoss(lambda x: [x], weights=(1.0,))
    torch.manual_seed(0)
    p, n, start = torch.rand(3, 1, 3, 8, 8)
    values = [levels(start + s * (p - start), p, n).item() for s in (0.0, 0.3, 0.6, 1.0)]
    assert values == sorted(values, reverse=True)
    with pytest.raises(UserError, match="16 pixels"):
        narrow_vgg(torch.rand(1, 3, 15, 40))


@pytest.fixture(scope="module")
def golden_step(golden, narrow_vgg):
    g = golden("step_loss")
    nets = []
    for name in ("new", "old"):
        net = WeatherNet(64, 1)
        net.load_state_dict(
            {
                **tensors(golden(f"step_loss_weights_{name}"), "net."),
                **tensors(golden(f"step_loss_weights_{name}"), f"{name}."),
            }
        )
        nets.append(net)
    projector = AttentionProjector(192, 16)
    weights = tensors(golden("step_loss_weights_aux"), "enc.")
    weights["W"] = weights.pop("w.W")
    projector.load_state_dict(weights)
    return g, nets[0], nets[1], projector, ContrastLoss(narrow_vgg)


def test_the_whole_objective_matches_the_golden_vectors(golden_step) -> None:
    g, new, old, projector, contrast = golden_step
    x, y, m = (torch.from_numpy(g[name]) for name in ("x", "y", "old_x"))
    with torch.no_grad():
        target, f = old(m, return_features=True)
        replay = Replay(m, target, projector(f))
    objective = Objective(new, Weights(), contrast, projector)
    x01 = x * torch.tensor((0.14, 0.15, 0.152))[:, None, None] + torch.tensor((0.64, 0.60, 0.58))[:, None, None]
    new.zero_grad()
    terms = objective(x01, y, replay)
    for ours, theirs in (
        ("new_l1", "new_l1"), ("new_contrast", "new_con"), ("old_l1", "kd_l1"), ("old_contrast", "kd_con"), ("projection", "proj_l1"),
    ):  # fmt: skip
        assert getattr(terms, ours).item() == pytest.approx(float(g[theirs]), rel=1e-4), ours
    total = terms.total(objective.weights)
    assert total.item() == pytest.approx(float(g["total"]), rel=1e-4)
    assert float(g["returned_swloss"]) == pytest.approx(float(g["total"]), rel=1e-6)
    total.backward()
    norms = {name: value.grad.norm().item() for name, value in new.named_parameters()}
    for name, norm in zip(g["grad_norm_names"].astype(str), g["grad_norms"].tolist(), strict=True):
        assert norms[name] == pytest.approx(norm, rel=1e-4), name
    for name, value in new.named_parameters():
        if f"grad.{name}" in g:
            np.testing.assert_allclose(value.grad, g[f"grad.{name}"], rtol=1e-3, atol=1e-6)
    assert all(weight.grad is None for weight in projector.parameters())
    first = Objective(new, Weights(), contrast)(x01, y)
    assert first.total(Weights()).item() == pytest.approx(float(g["total_first_task"]), rel=1e-4)


def test_every_weight_weighs_its_own_term() -> None:
    """With alpha 1, as in the golden step, the replay loss would be right without it."""
    terms = Terms(*(torch.tensor(value) for value in (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)))
    weights = Weights(alpha=2.0, beta_new=3.0, beta_old=0.5, projection=4.0, pooled=5.0, importance=6.0)
    assert terms.total(weights).item() == 1 + 3 * 10 + 2 * (100 + 0.5 * 1e3) + 4 * 1e4 + 5 * 1e5 + 6 * 1e6


def test_with_the_old_network_only_the_contrast_is_left_of_the_replay_loss(golden_step) -> None:
    g, new, _, projector, contrast = golden_step
    m = torch.from_numpy(g["old_x"])
    with torch.no_grad():
        target, f = new(m, return_features=True)
        replay = Replay(m, target, projector(f))
    x, y = torch.rand(2, 1, 3, 32, 36)
    terms = Objective(new, Weights(), contrast, projector)(x, y, replay)
    # One pass over new and stored patches may round otherwise than a pass over the stored ones, and how differs between
    # processors: each of the network's 12 convolutions in a row sums 9 * 64 products, whose rounding grows as the root of their
    # number. A wrong patch or target is off by tenths of the values.
    rounding = 12 * math.sqrt(9 * 64) * torch.finfo(torch.float32).eps
    assert terms.old_l1.item() <= rounding * target.abs().max().item()
    # The projector averages channels: its values are no larger than the features that it is given.
    assert terms.projection.item() <= rounding * f.abs().max().item()
    d = level_distances(contrast.extractor(target), contrast.extractor(m))
    expected = (torch.nn.functional.softplus(-d / 0.5) * torch.tensor(LEVEL_WEIGHTS)).sum()
    assert terms.old_contrast.item() == pytest.approx(expected.item(), abs=1e-5)


def test_one_pass_equals_two_and_other_patch_sizes_are_allowed(golden_step) -> None:
    _, new, old, projector, contrast = golden_step
    torch.manual_seed(0)
    x, y, m01 = torch.rand(3, 2, 3, 32, 32)
    m = normalize(m01)
    with torch.no_grad():
        target, f = old(m, return_features=True)
    replay = Replay(m, target, projector(f).detach())
    objective = Objective(new, Weights(), contrast, projector)
    together = objective(x, y, replay)
    alone = objective(x, y)
    with torch.no_grad():
        p, f_new = new(m, return_features=True)
        separate = (p - target).abs().mean()
        projected = (projector(f_new) - replay.projection).abs().mean()
        old_contrast = contrast(p, target, m)
    assert together.new_l1.item() == pytest.approx(alone.new_l1.item(), abs=1e-5)
    assert together.new_contrast.item() == pytest.approx(alone.new_contrast.item(), abs=1e-5)
    assert together.old_l1.item() == pytest.approx(separate.item(), abs=1e-5)
    assert together.projection.item() == pytest.approx(projected.item(), abs=1e-5)
    assert together.old_contrast.item() == pytest.approx(old_contrast.item(), abs=1e-5)
    larger = objective(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40), replay)
    assert larger.old_l1.item() == pytest.approx(separate.item(), abs=1e-5)


def test_losses_clamp_nothing() -> None:
    net = WeatherNet(8, 1, "image")
    for weight in net.post.parameters():
        torch.nn.init.zeros_(weight)
    x, y = torch.full((1, 3, 8, 8), 2.0), torch.zeros(1, 3, 8, 8)
    assert Objective(net, Weights())(x, y).new_l1.item() == pytest.approx(2.0, abs=1e-5)
    assert Objective(net, Weights())(x / 2, y).new_l1.item() == pytest.approx(1.0, abs=1e-5)


def test_the_negative_may_be_the_image(narrow_vgg) -> None:
    torch.manual_seed(0)
    net = WeatherNet(8, 1, "image")
    x, y = torch.rand(2, 1, 3, 32, 32)
    contrast = ContrastLoss(narrow_vgg)
    estimate = net(normalize(x))
    value = Objective(net, Weights(), contrast, negative="image")(x, y).new_contrast
    assert value.item() == pytest.approx(contrast(estimate, y, x).item(), abs=1e-5)


def test_pod_matches_the_golden_vector(golden) -> None:
    g = golden("pod")
    old, new = ([torch.from_numpy(g[f"{side}{i}"]) for i in range(3)] for side in "ab")
    assert pod_loss(old, new).item() == pytest.approx(float(g["loss_spatial"]), abs=1e-5)


def test_importance_matches_the_golden_vectors(golden) -> None:
    g = golden("importance")

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2 = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.c2(self.c1(x).relu())

    net = Residual()
    net.load_state_dict(tensors(g, "net."))
    batches = zip(torch.from_numpy(g["x"]), torch.from_numpy(g["y"]), strict=True)
    found = gradient_importance(net, batches, net, power=1)
    assert int(g["task_id"]) == 2
    merged = merge_importance({name: torch.zeros_like(value) for name, value in found.items()}, found, 3)
    for number, name in enumerate(("c1.weight", "c1.bias", "c2.weight", "c2.bias")):
        np.testing.assert_allclose(found[name], g[f"imp{number}"], atol=1e-6, rtol=0)
        np.testing.assert_allclose(merged[name], g[f"all{number}"], atol=1e-6, rtol=0)
    anchor = {name: value.detach() - 2 for name, value in net.named_parameters()}
    weights = scaled(found)
    assert max(value.max().item() for value in weights.values()) == pytest.approx(1)
    expected = 4 * sum(value.sum().item() for value in weights.values())
    assert importance_penalty(net, weights, anchor).item() == pytest.approx(expected, rel=1e-5)


def test_perceptual_weights_come_from_a_file_or_not_at_all(tmp_path) -> None:
    with pytest.raises(UserError, match="vgg19-dcbb9e9d"):
        vgg19_extractor(tmp_path / "none.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not torchvision's VGG-19"):
        vgg19_extractor(tmp_path / "other.pth")
    assert torch.equal(random_extractor(3).layers[0].weight, random_extractor(3).layers[0].weight)
    assert not torch.equal(random_extractor(3).layers[0].weight, random_extractor(4).layers[0].weight)
    own = TappedVGG()
    state = {f"features.{name.removeprefix('layers.')}": value for name, value in own.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    assert torch.equal(vgg19_extractor(tmp_path / "vgg.pth").layers[28].weight, own.layers[28].weight)
