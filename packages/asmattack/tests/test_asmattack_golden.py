"""Golden vectors: third-party libraries', the authors' own code, and the references of this project."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from asmattack import (
    PRESETS,
    Detector,
    GeometricParser,
    RegionAttack,
    attack_rates,
    calibrated_order,
    distortion,
    merge_official,
    region_mask,
    region_scores,
    select_regions,
)
from asmattack.data.landmarks import parse_face
from asmattack.data.regions import BISENET_TO_CANONICAL, FIXED, feather
from asmattack.method.iteration import gaussian_kernel
from asmattack.method.losses import cafa, class_activation_features_of_batch, cross_entropy
from asmattack.method.official import official_label_map, official_parser_input
from asmattack.method.region_attack import AttackConfig
from asmattack.method.selection import greedy
from asmattack.models.class_activation import activation_map

EPS, ALPHA = 8 / 255, 2 / 255


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def tiny(golden) -> Detector:
    g = golden("tiny_conv")
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    for layer, name in ((net[0], "conv1"), (net[2], "conv2"), (net[6], "fc")):
        layer.weight.data = tensor(g[f"{name}_weight"])
        layer.bias.data = tensor(g[f"{name}_bias"])
    return Detector(net, target_layer=net[3]).eval()


def linear(weight: np.ndarray, bias: np.ndarray) -> Detector:
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], 2))
    net[1].weight.data, net[1].bias.data = tensor(weight), tensor(bias)
    return Detector(net).eval()


def same(ours: torch.Tensor, theirs: np.ndarray, steps: int = 10, step: float = ALPHA) -> None:
    difference = (ours - tensor(theirs)).abs()
    assert (difference <= 1e-6).float().mean() >= 0.995
    assert difference.max() <= 2 * step * steps


def config(**changes) -> AttackConfig:
    return AttackConfig(**({"eps": EPS, "alpha": ALPHA, "quantised": False} | changes))


UNMASKED = {
    "fgsm": {"steps": 1, "alpha": EPS},
    "pgd10": {},
    "bim10": {},
    "mifgsm10": {"momentum": 1.0},
    "nifgsm10": {"momentum": 1.0, "nesterov": True},
}


@pytest.mark.parametrize("name", UNMASKED)
def test_a_full_mask_gives_the_attacks_of_torchattacks(golden, name) -> None:
    g, t = golden("torchattacks_unmasked"), golden("tiny_conv")
    same(RegionAttack(tiny(golden), config(**UNMASKED[name]))(tensor(t["x"]), tensor(t["y"])), g[f"conv_{name}"])
    flat = RegionAttack(linear(g["lin_W"], g["lin_b"]), config(**UNMASKED[name]))
    same(flat(tensor(g["lin_x"]), tensor(g["lin_y"])), g[f"lin_{name}"])


def test_translation_invariance_is_that_of_torchattacks(golden) -> None:
    g, t = golden("torchattacks_unmasked"), golden("tiny_conv")
    torch.testing.assert_close(gaussian_kernel(), tensor(g["ti_kernel15"]), atol=1e-7, rtol=1e-5)
    run = RegionAttack(tiny(golden), config(steps=3, momentum=1.0, ti_length=15))
    same(run(tensor(t["x"]), tensor(t["y"])), g["conv_tifgsm3_nodi"], 3)


def test_masked_pgd_equals_captum_and_every_stored_state(golden) -> None:
    g, t = golden("masked_attacks"), golden("tiny_conv")
    x, y, mask = tensor(t["x"]), tensor(t["y"]), tensor(g["mask"])
    detector = tiny(golden)
    assert torch.equal(region_mask(tensor(g["labels"]), FIXED).float(), mask)
    same(RegionAttack(detector, config())(x, y, mask), g["captum_pgd_adv10"])
    for step in range(3):
        start = tensor(g["pgd_delta"][step])
        delta = start.clone().requires_grad_()
        loss = cross_entropy(detector(x + delta), y).sum()
        assert loss.item() == pytest.approx(float(g["pgd_loss"][step]), rel=1e-4)
        gradient = torch.autograd.grad(loss, delta)[0] * mask
        torch.testing.assert_close(gradient, tensor(g["pgd_grad"][step]), rtol=1e-4, atol=1e-7)
        after = RegionAttack(detector, config(steps=1)).run(x, y, mask, start=start).images - x
        certain = tensor(np.abs(g["pgd_grad"][step]) > 1e-8) | (mask == 0)
        assert ((after - tensor(g["pgd_delta"][step + 1])).abs()[certain] <= 1e-6).all()


def test_masked_momentum_and_soft_masks(golden) -> None:
    g, soft, t = golden("masked_attacks"), golden("masked_attacks2"), golden("tiny_conv")
    x, y = tensor(t["x"]), tensor(t["y"])
    same(RegionAttack(tiny(golden), config(momentum=1.0))(x, y, tensor(g["mask"])), g["mi_adv10"])
    softened = feather(tensor(g["mask"]), 1)
    torch.testing.assert_close(softened, tensor(soft["soft_mask"]), atol=1e-6, rtol=0)
    same(RegionAttack(tiny(golden), config(steps=5))(x, y, tensor(soft["soft_mask"])), soft["soft_adv5"], 5)


def test_a_random_start_is_projected_and_followed(golden) -> None:
    g, soft, t = golden("masked_attacks"), golden("masked_attacks2"), golden("tiny_conv")
    x, y, mask = tensor(t["x"]), tensor(t["y"]), tensor(g["mask"])
    start = tensor(soft["rand_delta0"])
    for steps in range(4):
        run = RegionAttack(tiny(golden), config(steps=steps)).run(x, y, mask, start=start)
        same(run.images - x, soft["rand_delta"][steps], max(steps, 1))


def test_the_closed_form_of_a_linear_detector(golden) -> None:
    g = golden("masked_linear")
    detector, x, y, mask = linear(g["W"], g["b"]), tensor(g["x"]), tensor(g["y"]), tensor(g["mask"])
    for steps in range(11):
        run = RegionAttack(detector, config(steps=steps))(x, y, mask)
        torch.testing.assert_close(run - x, tensor(g["pgd_delta"][steps]), atol=1e-6, rtol=0)
    fgsm = RegionAttack(detector, config(steps=1, alpha=EPS))(x, y, mask)
    torch.testing.assert_close(fgsm - x, tensor(g["fgsm_delta"]), atol=1e-6, rtol=0)


def test_cafa_per_image_and_as_the_authors_normalise_it(golden) -> None:
    g, t = golden("cafa"), golden("tiny_conv")
    detector, x = tiny(golden), tensor(t["x"])
    for scale, loss, gradient in (
        (None, g["perimage_loss0"], g["perimage_grad0"]),
        (class_activation_features_of_batch, g["official_loss0"], g["official_grad0"]),
    ):
        delta = tensor(g["delta0"]).clone().requires_grad_()
        value = cafa(detector, x)(x + delta) if scale is None else cafa(detector, x, scale)(x + delta)
        if scale is not None:
            value = value.mean()
        np.testing.assert_allclose(value.detach().numpy(), loss, rtol=1e-4)
        torch.testing.assert_close(torch.autograd.grad(value.sum(), delta)[0], tensor(gradient), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(g["perimage_loss0"], g["official_single_loss0"], rtol=1e-4)


def test_cafa_does_not_move_from_the_clean_image(golden) -> None:
    x = tensor(golden("tiny_conv")["x"]).requires_grad_()
    value = cafa(tiny(golden), x.detach())(x).sum()
    assert value == 0
    assert not torch.autograd.grad(value, x)[0].any()
    with pytest.raises(ValueError, match="uniform"):
        AttackConfig(objective="cafa")


def test_gradcam_is_that_of_the_library(golden) -> None:
    g, x = golden("gradcam"), tensor(golden("tiny_conv")["x"])
    for target in (0, 1):
        ours = activation_map(tiny(golden), x, target, "gradcam")
        torch.testing.assert_close(ours, tensor(g[f"gradcam_c{target}"]), atol=1e-5, rtol=0)
        torch.testing.assert_close(activation_map(tiny(golden), x, target, "cam"), ours, atol=1e-5, rtol=0)


def test_region_scores_and_policies(golden) -> None:
    g = golden("regions")
    labels = tensor(g["labels"])
    scores = region_scores(tensor(g["cam"]), labels)
    torch.testing.assert_close(scores.density, tensor(g["density"]), atol=1e-5, rtol=0)
    assert torch.equal(scores.area, tensor(g["area"]))
    for budget, expected in ((int(g["budget_px"]), "greedy_sel"), (62, "greedy62_sel")):
        chosen = greedy(scores.density, scores.area, torch.full((4,), budget))
        assert torch.equal(chosen.long(), tensor(g[expected]))
    for policy, expected in (("budget", "greedy_mask"), ("topk", "topk5_mask"), ("fixed", "fixed_mask")):
        assert torch.equal(select_regions(scores, labels, policy, budget=0.10).mask[:, 0].long(), tensor(g[expected]))
    above = (scores.area > 0) & (scores.density > scores.cutoff[:, None])
    assert torch.equal(above.long(), tensor(g["thresh_sel"]))
    np.testing.assert_allclose(calibrated_order(scores).density, g["calib_mean_density"], atol=1e-5)


def test_the_geometric_parser(golden) -> None:
    g = golden("geometric_parser")
    for side in (64, 299, 320):
        ours = GeometricParser()(torch.zeros(1, 3, side, side))[0].numpy()
        assert (ours != g[f"template_{side}"]).mean() <= 1e-3
    side = int(g["rot_size"])
    assert (parse_face(g["landmarks_rot"], side, side) != g["rot_labels"]).mean() <= 1e-3


def test_metrics_and_label_orders(golden) -> None:
    g = golden("metrics")
    for index, (clean, adversarial) in enumerate(zip(g["clean"], g["adv"], strict=True)):
        ours = distortion(clean.astype(np.uint8), adversarial.astype(np.uint8))
        for name, key in (("mse", "mse"), ("mae", "mae01"), ("psnr", "psnr"), ("ssim", "ssim")):
            assert getattr(ours, name) == pytest.approx(float(g[key][index]), rel=1e-4)
    rates = attack_rates(tensor(g["logits_clean"]), tensor(g["logits_adv"]), tensor(g["y"]))
    for name in ("clean_acc", "adv_acc", "asr_drop", "evasion_rate", "false_alarm_rate"):
        assert getattr(rates, name) == pytest.approx(float(g[name]), rel=1e-4)
    assert rates.asr == pytest.approx(float(g["asr_conditional"]), rel=1e-4)
    assert tuple(golden("label_orders")["bisenet_to_canonical"]) == BISENET_TO_CANONICAL


def test_the_authors_cafa_iteration_step_by_step(golden) -> None:
    g, t = golden("cafa"), golden("tiny_conv")
    x, y = tensor(t["x"]), tensor(t["y"])
    for steps in (1, 3, 10):
        run = RegionAttack(tiny(golden), config(steps=steps, objective="cafa_batch", start="uniform"))
        same(run.run(x, y, start=tensor(g["delta0"])).images, g[f"official_adv{steps}"], steps)


def test_the_authors_setting_pasted_into_the_mask(golden) -> None:
    g, t, m = golden("cafa_paper_hp"), golden("tiny_conv"), golden("masked_attacks")
    x, y, mask = tensor(t["x"]), tensor(t["y"]), tensor(m["mask"])
    official = replace(PRESETS["asma_official"], quantised=False)
    assert (official.eps, official.alpha) == (pytest.approx(float(g["eps"])), pytest.approx(float(g["alpha"])))
    attack = RegionAttack(tiny(golden), official)
    same(attack.run(x, y, start=tensor(g["delta0"])).images, g["official_adv20"], 20, 0.015)
    same(attack.run(x, y, mask, start=tensor(g["delta0"])).images, g["pasted"], 20, 0.015)


def test_the_authors_merge(golden) -> None:
    g = golden("merge_official")
    labels = official_label_map(tensor(g["parser_logits_16"]), (32, 32))
    assert torch.equal(labels, tensor(g["label_map"]))
    mean, std = tensor(g["mean"]), tensor(g["std"])
    merged = merge_official(tensor(g["x_norm"]), tensor(g["adv01"]), labels, mean, std)
    torch.testing.assert_close(merged, tensor(g["out_norm"]), atol=1e-5, rtol=0)
    assert official_parser_input(tensor(g["x_norm"])).shape == tuple(g["parser_input_size"])


def test_region_permutations_are_permutations() -> None:
    assert sorted(BISENET_TO_CANONICAL) == list(range(19))
    assert BISENET_TO_CANONICAL[10] == 2
