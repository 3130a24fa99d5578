"""Invariants of specification section 14 beyond budgets and masks: closed forms, scale, gradients, transfer, bad detectors."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from asmattack import (
    ASMA,
    GLOBAL_ATTACKS,
    REGIONS,
    AttackConfig,
    Detector,
    GlobalAttack,
    MaskConfig,
    MaskMaker,
    PrecomputedParser,
    RegionAttack,
    SegformerParser,
    activation_map,
    as_art,
    attack,
    dfdc_frames,
    drawn_set,
    preset,
    read_faces,
    region_mask,
    region_scores,
    select_regions,
)
from asmattack.benchmark.comparison import Bench
from asmattack.data.landmarks import TEMPLATE, GeometricParser, parse_face
from asmattack.data.parsers import check_label_maps
from asmattack.evaluation.metrics import AttackSuccessRate, attack_rates
from asmattack.method.iteration import accumulate, diversify, perturbations, project_l2
from asmattack.method.losses import objective_loss
from asmattack.method.selection import Selection
from asmattack.models.checkpoints import load_detector, save_detector
from asmattack.models.detector import fake_index_of
from asmattack.models.networks import surrogate
from asmattack.models.pretrained import load_weights
from tenfold import UserError
from tenfold.images import write_image

FACES = drawn_set(6, 48, seed=3)
IMAGES, LABELS = FACES.pixels(), FACES.labels
MASK = region_mask(FACES.label_maps, (2, 4, 5, 6, 7)).float()
DETECTOR = surrogate("plain", 1)


def linear(size: int = 48, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 2))


def test_a_linear_detector_moves_by_its_closed_form() -> None:
    net = linear()
    weight = net[1].weight.detach().view(2, 3, 48, 48)
    direction = (weight[1 - LABELS] - weight[LABELS]).sign()
    for steps in (1, 3, 7):
        config = AttackConfig(eps=0.03, alpha=0.01, steps=steps, quantised=False, objective="margin")
        expected = (IMAGES + min(steps * 0.01, 0.03) * direction * MASK).clamp(0, 1)
        torch.testing.assert_close(RegionAttack(net, config)(IMAGES, LABELS, MASK), expected, atol=1e-6, rtol=0)


def test_scaling_the_loss_or_the_mean_of_momentum_changes_nothing() -> None:
    scaled = Detector(lambda x: DETECTOR(x))
    by_three = Detector(lambda x: 3.0 * DETECTOR(x))
    for config in (AttackConfig(objective="margin"), AttackConfig(objective="margin", momentum=1.0)):
        one, three = (RegionAttack(each, config)(IMAGES, LABELS, MASK) for each in (scaled, by_three))
        assert (one == three).float().mean() > 0.995
    gradient, velocity = torch.randn_like(IMAGES) * MASK, torch.zeros_like(IMAGES)
    ours = theirs = velocity
    area = MASK.sum((1, 2, 3), keepdim=True)
    for _ in range(3):
        ours = accumulate(ours, gradient, 1.0)
        theirs = theirs + gradient / (gradient.abs().sum((1, 2, 3), keepdim=True) / (3 * area))
    assert torch.equal(ours.sign(), theirs.sign())


def test_a_larger_mask_holds_more_gradient_and_lets_a_linear_loss_grow() -> None:
    net = linear(seed=1)
    small, large = region_mask(FACES.label_maps, (4, 5)).float(), MASK
    loss = objective_loss("margin", Detector(net), IMAGES, LABELS)
    z = IMAGES.clone().requires_grad_()
    gradient = torch.autograd.grad(loss(z).sum(), z)[0].abs()
    assert ((gradient * small).sum((1, 2, 3)) <= (gradient * large).sum((1, 2, 3))).all()
    values = []
    for mask, eps in ((small, 0.02), (large, 0.02), (large, 0.04)):
        config = AttackConfig(eps=eps, quantised=False, objective="margin")
        values.append(loss(RegionAttack(net, config)(IMAGES, LABELS, mask)))
    assert (values[0] <= values[1] + 1e-5).all()
    assert (values[1] <= values[2] + 1e-5).all()


def test_a_soft_mask_bounds_each_pixel_and_a_binary_one_is_the_same_bitwise() -> None:
    soft = torch.rand(MASK.shape, generator=torch.Generator().manual_seed(0)) * MASK
    adversarial = RegionAttack(DETECTOR, AttackConfig(quantised=False))(IMAGES, LABELS, soft)
    assert ((adversarial - IMAGES).abs() <= 8 / 255 * soft + 1e-7).all()
    assert torch.equal(
        RegionAttack(DETECTOR)(IMAGES, LABELS, MASK.bool()), RegionAttack(DETECTOR)(IMAGES, LABELS, MASK)
    )


def test_cafa_may_start_at_zero_only_when_told_and_then_changes_nothing() -> None:
    config = AttackConfig(objective="cafa", allow_zero_start=True)
    with pytest.warns(UserWarning, match="vanish"):
        batch = RegionAttack(DETECTOR, config).run(IMAGES, LABELS, MASK)
    assert torch.equal(batch.images, IMAGES)
    assert batch.zero_gradient.all()


def test_scores_ignore_scale_and_turn_with_the_face() -> None:
    cam = torch.rand(FACES.label_maps.shape, generator=torch.Generator().manual_seed(2))
    scores, double = region_scores(cam, FACES.label_maps), region_scores(2 * cam, FACES.label_maps)
    torch.testing.assert_close(2 * scores.density.clamp(min=0), double.density.clamp(min=0))
    flat = region_scores(torch.full_like(cam, 0.3), FACES.label_maps)
    torch.testing.assert_close(flat.density[flat.area > 0], torch.full_like(flat.density[flat.area > 0], 0.3))
    mirrored = torch.from_numpy(parse_face(TEMPLATE * 48, 48, 48))[None]
    one = region_scores(cam[:1], mirrored).density
    other = region_scores(cam[:1].flip(-1), mirrored).density
    torch.testing.assert_close(one[:, [0, 2, 1, 4, 3]], other[:, :5])


def test_a_mirrored_face_has_mirrored_scores() -> None:
    net = linear(seed=6)
    with torch.no_grad():
        for row in net[1].weight.view(2, 3, 48, 48):
            row.copy_((row + row.flip(-1)) / 2)
    one = activation_map(Detector(net), IMAGES)
    other = activation_map(Detector(net), IMAGES.flip(-1))
    torch.testing.assert_close(other.flip(-1), one, atol=1e-5, rtol=0)
    sides = torch.tensor([0, 2, 1, 4, 3, 5, 6, 7])  # the candidates' columns, left and right exchanged
    names = torch.arange(19)
    names[[4, 5, 6, 7]] = torch.tensor([5, 4, 7, 6])
    scores = region_scores(one, FACES.label_maps).density
    mirrored = region_scores(other, names[FACES.label_maps].flip(-1)).density
    torch.testing.assert_close(mirrored[:, sides], scores, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    side=st.integers(48, 160),
    distance=st.floats(15, 30),
    across=st.floats(0, 1),
    down=st.floats(0, 1),
    turn=st.floats(-15, 15),
)
def test_every_candidate_occurs_from_48_pixels_and_15_between_the_eyes(side, distance, across, down, turn) -> None:
    """Anywhere in the picture, a little turned, down to the smallest face that the specification allows."""
    points = (TEMPLATE - TEMPLATE[:2].mean(0)) * 320 / 75 * distance
    angle = np.deg2rad(turn)
    points = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    # Room for brows above, lips below, the eyes' ends beside.
    reach = 0.9 * distance
    low, high = points.min(0) - reach / 2, points.max(0) + reach / 2
    room = side - (high - low)
    if (room < 0).any():
        return
    placed = points - low + room * np.array([across, down])
    assert {2, 4, 5, 6, 7, 10, 11, 12} <= set(np.unique(parse_face(placed, side, side)))


def test_a_turned_face_is_parsed_turned() -> None:
    points = TEMPLATE * 64
    turned = 64 - points
    assert (parse_face(turned, 64, 64)[::-1, ::-1] != parse_face(points, 64, 64)).mean() <= 1e-3
    with pytest.raises(UserError, match="above the eyes"):
        parse_face(points[[1, 0, 2, 3, 4]], 64, 64)


@pytest.mark.parametrize("objective", ["ce", "margin", "cafa"])
def test_input_gradients_are_central_differences_in_double_precision(objective) -> None:
    torch.manual_seed(0)
    # Smooth: a kink of ReLU inside the difference would be no fault of the gradient's.
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.Softplus(), nn.Conv2d(6, 8, 3, 2, 1), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    ).double()  # fmt: skip
    detector = Detector(net).double()
    x, y = IMAGES[:2, :, ::3, ::3].double(), LABELS[:2]
    loss = objective_loss(objective, detector, x, y)
    generator = torch.Generator().manual_seed(1)
    z = (x + 0.05 * torch.randn(x.shape, dtype=torch.float64, generator=generator)).requires_grad_()

    def kinks(at: torch.Tensor) -> list[torch.Tensor]:
        """Which side of every kink of cafa's max and argmax a point is on."""
        logits, features = detector.with_last_convolution(at)
        predicted = logits.argmax(1)
        maps = features * detector.head_weight()[predicted][:, :, None, None]
        return [predicted, maps > 0, maps.flatten(1).argmax(1)]

    gradient = torch.autograd.grad(loss(z).sum(), z)[0]
    directions = 0
    while directions < 3:
        direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        direction /= direction.norm()
        with torch.no_grad():
            ends = z - 1e-4 * direction, z + 1e-4 * direction
            if not all(torch.equal(a, b) for a, b in zip(*map(kinks, ends), strict=True)):
                continue
            numeric = (loss(ends[1]) - loss(ends[0])).sum() / 2e-4
        assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-5, abs=1e-10)
        directions += 1


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, _gradient):
        raise AssertionError("a gradient of a target was taken")


def test_a_target_is_only_asked() -> None:
    target = Detector(lambda x: surrogate("residual", 2).eval()(NoBackward.apply(x)), name="target")
    before = [each.clone() for each in DETECTOR.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = Bench([DETECTOR], [target], policies=("fixed",), steps=2).run(FACES)
    assert [(row.source, row.target) for row in report.rows] == [("plain", "target")]
    assert all(torch.equal(a, b) for a, b in zip(before, DETECTOR.parameters(), strict=True))
    with pytest.raises(AssertionError, match="of a target"):
        RegionAttack(target)(IMAGES, LABELS)


def test_traces_tell_loss_and_first_success() -> None:
    trace = RegionAttack(DETECTOR, AttackConfig(eps=0.2, steps=4)).trace(IMAGES, LABELS, MASK)
    assert trace.loss.shape == (4, 6)
    assert (trace.loss[-1] >= trace.loss[0] - 1e-6).all()
    assert trace.queries == 4
    already = DETECTOR.eval()(IMAGES).argmax(1) != LABELS
    assert torch.equal(trace.first_success_step == 0, already)


def test_what_is_not_finite_or_not_a_batch_is_refused() -> None:
    broken = Detector(lambda x: torch.stack([x.mean((1, 2, 3)), (x.mean((1, 2, 3)) - 10).log()], 1))
    with pytest.raises(UserError, match="image 0 is not finite"):
        RegionAttack(broken)(IMAGES, LABELS)
    for images, labels in ((IMAGES[:, :1], LABELS), (IMAGES[0], LABELS), (IMAGES, LABELS[:2]), (IMAGES, LABELS + 1)):
        with pytest.raises(ValueError, match="expected"):
            RegionAttack(DETECTOR)(images, labels)
    eight_bit = RegionAttack(DETECTOR)(FACES.images, LABELS, MASK)
    assert torch.equal(eight_bit, RegionAttack(DETECTOR)(IMAGES, LABELS, MASK))
    for changes in ({"eps": -1.0}, {"alpha": 0.0}, {"steps": -1}, {"eps": float("nan")}, {"eot": 0}):
        with pytest.raises(UserError):
            AttackConfig(**changes)
    with pytest.raises(UserError, match="no mask"):
        attack(DETECTOR, IMAGES, LABELS, budget=1e-6)
    with pytest.raises(UserError, match="0 to 18"):
        check_label_maps(FACES.label_maps + 5, IMAGES)
    with pytest.warns(UserWarning, match="nothing but class"):
        check_label_maps(torch.zeros_like(FACES.label_maps), IMAGES)


@pytest.mark.parametrize("name", GLOBAL_ATTACKS)
def test_whole_image_baselines_of_the_library_run_inside_the_budget(name) -> None:
    state = torch.get_rng_state()
    batch = GlobalAttack(DETECTOR, name, 4 / 255, 3).run(IMAGES, LABELS)
    assert torch.equal(torch.get_rng_state(), state)
    assert batch.within_budget.all()
    assert (batch.images != IMAGES).any()
    assert all(each.grad is None and each.requires_grad for each in DETECTOR.parameters())


def test_other_libraries_conventions() -> None:
    attacker = ASMA(DETECTOR, eps=4 / 255, steps=2)
    plain = attacker(IMAGES, LABELS)
    assert 0 < (plain - IMAGES).abs().max() <= 4 / 255 + 1e-6
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    inside = nn.Sequential(_Denormalise(mean, std), DETECTOR)
    normalised = ASMA(inside, eps=4 / 255, steps=2)
    normalised.set_normalization_used(mean, std)
    shift, scale = (torch.tensor(each).view(1, 3, 1, 1) for each in (mean, std))
    again = normalised((IMAGES - shift) / scale, LABELS) * scale + shift
    assert ((again - plain).abs() < 1e-4).float().mean() > 0.98
    art = as_art(DETECTOR, eps=4 / 255).generate(IMAGES.numpy(), LABELS.numpy(), MASK.numpy())
    assert np.array_equal(art, RegionAttack(DETECTOR, preset("pgd", 4 / 255))(IMAGES, LABELS, MASK).numpy())


class _Denormalise(nn.Module):
    def __init__(self, mean, std) -> None:
        super().__init__()
        self.mean, self.std = (torch.tensor(each).view(1, 3, 1, 1) for each in (mean, std))

    def forward(self, x):
        return x * self.std + self.mean


def test_half_precision_gives_the_same_evasion() -> None:
    faces = drawn_set(40, seed=8)
    mask = region_mask(faces.label_maps, (2, 4, 5, 6, 7)).float()
    rates = [
        RegionAttack(DETECTOR, AttackConfig(precision=precision))
        .run(faces.pixels(), faces.labels, mask)
        .success.float()
        .mean()
        for precision in ("float32", "auto")
    ]
    assert abs(rates[0] - rates[1]) <= 0.025  # one face of forty


def test_rates_over_batches_and_identical_answers() -> None:
    logits = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 2
    assert attack_rates(logits, logits, y).asr == 0
    attacked = logits.flip(1)
    metric = AttackSuccessRate()
    for rows in torch.arange(20).split(7):
        metric.update(logits[rows], attacked[rows], y[rows])
    found = attack_rates(logits, attacked, y)
    assert float(metric.compute()) == pytest.approx(found.asr)
    gained = float(((logits.argmax(1) != y) & (attacked.argmax(1) == y)).float().mean())
    assert found.asr_drop == pytest.approx(found.clean_acc * found.asr - gained, abs=1e-6)


def test_segformer_and_transformers_detectors_from_folders(tmp_path) -> None:
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    small = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16}  # fmt: skip
    names = {i: f"{i}.png" for i in range(19)}
    SegformerForSemanticSegmentation(SegformerConfig(**small, num_labels=19, id2label=names)).save_pretrained(
        tmp_path / "parser"
    )
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "parser")
    with pytest.warns(UserWarning, match="by index"):
        parser = SegformerParser(tmp_path / "parser")
    labels = parser(IMAGES)
    right = {i: name for name, i in REGIONS.items()}
    parser.network.config.id2label = right
    parser.network.save_pretrained(tmp_path / "named")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "named")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(SegformerParser(tmp_path / "named")(IMAGES), labels)  # names change nothing
    assert labels.shape == FACES.label_maps.shape
    assert labels.max() <= 18
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8, id2label={0: "Fake", 1: "Real"})  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    detector = Detector.from_transformers(tmp_path / "vit")
    assert (detector.fake_index, detector.input_size) == (0, 32)
    assert activation_map(detector, IMAGES, method="gradcam").shape == labels.shape
    assert detector.features(IMAGES).shape == (6, 16, 4, 4)
    with pytest.raises(UserError, match="no such folder"):
        Detector.from_transformers(tmp_path / "nothing")
    # Fine-tuned and saved, it needs neither the hub nor the folder that it came from.
    save_detector(detector, tmp_path / "saved")
    again = load_detector(str(tmp_path / "saved"))
    assert torch.equal(again(IMAGES), detector.eval()(IMAGES))
    kept = json.loads((tmp_path / "saved/config.json").read_text())
    for wrong in ({"config": 7}, {"mean": "x"}, {"config": {"model_type": "nothing"}}, {"input_size": []}):
        (tmp_path / "saved/config.json").write_text(json.dumps(kept | wrong))
        with pytest.raises(UserError, match="describes no detector"):
            load_detector(str(tmp_path / "saved"))
    for names in ({0: "A", 1: "B"}, {0: "real", 1: "fake", 2: "other"}):
        with pytest.raises(UserError, match="labels"):
            fake_index_of(names)
    assert fake_index_of({0: "Deepfake", 1: "Realism"}) == 0
    assert fake_index_of({0: "bonafide", 1: "attack"}) == 1


def test_timm_models_checkpoints_and_gradcam_on_tokens(tmp_path) -> None:
    detector = Detector.from_timm("mobilenetv3_small_050")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in detector.network.state_dict().items()}},
        tmp_path / "c.pth",
    )
    again = Detector.from_timm("mobilenetv3_small_050", tmp_path / "c.pth").eval()
    assert torch.equal(again(IMAGES[:1]), detector.eval()(IMAGES[:1]))
    with pytest.raises(UserError, match="do not fit"):
        load_weights(DETECTOR, tmp_path / "c.pth")
    (tmp_path / "d.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read"):
        load_weights(DETECTOR, tmp_path / "d.pth")
    flat = Detector(linear())
    with pytest.warns(UserWarning, match="saliency is used"):
        assert activation_map(flat, IMAGES, method="gradcam").shape == MASK[:, 0].shape


def test_occlusion_scores_by_what_the_evidence_loses() -> None:
    net = linear(seed=4)
    found = MaskMaker(config=MaskConfig(method="occlusion"))(Detector(net), IMAGES, FACES.label_maps)
    weight = (net[1].weight[1] - net[1].weight[0]).detach().view(3, 48, 48)
    drop = (weight * (IMAGES - IMAGES.mean((2, 3), keepdim=True))).sum(1)
    expected = torch.stack([(drop * (FACES.label_maps == k)).sum((1, 2)) for k in found.scores.candidates], 1)
    ranks = lambda values: (values[:, :, None] > values[:, None]).sum(2)  # noqa: E731
    present = found.scores.area > 0
    assert torch.equal(ranks(found.scores.density)[present.all(1)], ranks(expected)[present.all(1)])


def test_label_maps_manifests_and_the_authors_layout(tmp_path) -> None:
    for i in range(4):
        picture = IMAGES[i].permute(1, 2, 0).numpy()
        write_image(tmp_path / f"frames/video{i}/000.jpg", picture)
        np.save(tmp_path / f"{i}.npy", FACES.label_maps[i].numpy())
        write_image(tmp_path / f"{i}.png-not-a-map.png", picture)
    points = " ".join(f"{each:.2f}" for each in (TEMPLATE * 48).flatten())
    table = "path,label,group,landmarks,mask\n" + "".join(f"frames/video{i}/000.jpg,{'fake' if i % 2 else 'real'},v{i},{points},{i}.npy\n" for i in range(4))  # fmt: skip
    (tmp_path / "faces.csv").write_text(table)
    faces = read_faces(tmp_path / "faces.csv")
    assert torch.equal(faces.label_maps, FACES.label_maps[:4])
    assert faces.landmarks.shape == (4, 5, 2)
    assert faces.groups == ("v0", "v1", "v2", "v3")
    parser = PrecomputedParser(tmp_path, "bisenet")
    assert (
        parser(IMAGES[:1], names=["0.jpg"])
        == torch.where(FACES.label_maps[:1] == 10, 2, parser(IMAGES[:1], names=["0.jpg"]))
    ).all()
    with pytest.raises(UserError, match="no label map"):
        parser(IMAGES[:1], names=["9.jpg"])
    (tmp_path / "dfdc.csv").write_text(
        "name,is_fake,n_frame,set_name\nvideo0.mp4,0,4,test\nvideo1.mp4,1,20,test\nvideo2.mp4,1,20,val\n"
    )
    frames = dfdc_frames(tmp_path / "dfdc.csv", tmp_path, "test")
    assert frames.labels.tolist() == [0, 1]
    with pytest.raises(UserError, match="no frame"):
        dfdc_frames(tmp_path / "dfdc.csv", tmp_path, "holiday")
    for row in ("video0.mp4,inf,4,test", "video0.mp4,0,-4,test", "video0.mp4,2,4,test", "video0.mp4,0,99999999,test"):
        (tmp_path / "dfdc.csv").write_text(f"name,is_fake,n_frame,set_name\n{row}\n")
        with pytest.raises(UserError, match=r"dfdc\.csv:2: is_fake"):
            dfdc_frames(tmp_path / "dfdc.csv", tmp_path, "test")


def test_the_same_seed_gives_the_same_report_without_times() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reports = [
            Bench(
                [DETECTOR], policies=("random", "calibrated"), attacks=("cafa", "noise"), steps=2, batch_size=size
            ).run(FACES)
            for size in (6, 6)
        ]
    rows = [[replace(row, seconds=0.0) for row in report.rows] for report in reports]
    assert str(rows[0]) == str(rows[1])


def test_the_velocity_decays_by_mu() -> None:
    velocity, gradient = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    mean = gradient.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(accumulate(velocity, gradient, 0.5), 0.5 * velocity + gradient / mean)


def test_what_lies_outside_the_mask_reaches_neither_the_velocity_nor_the_warning() -> None:
    """The projection alone would hide it: a gradient outside would still weigh one step against another."""
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :4] = 1
    x, outside = torch.full((2, 3, 8, 8), 0.5), 1 - mask
    weight = torch.randn(2, 3, 8, 8)
    config = AttackConfig(steps=3, momentum=1.0, start="zero")
    states = list(perturbations(lambda z: (z * outside).flatten(1).sum(1), x, mask, config))
    assert states[0].zero_gradient is not None
    assert states[0].zero_gradient.all()
    runs = [
        list(
            perturbations(
                lambda z, s=s: (z.square() * (mask * weight + s * outside)).flatten(1).sum(1), x, mask, config
            )
        )
        for s in (0.0, 100.0)
    ]
    for one, two in zip(*runs, strict=True):
        torch.testing.assert_close(one.delta, two.delta)


def test_a_budget_between_two_levels_is_rounded_down() -> None:
    batch = RegionAttack(DETECTOR, AttackConfig(eps=2.6 / 255)).run(IMAGES, LABELS, MASK)
    assert ((batch.images - IMAGES).abs() * 255).round().max() == 2
    assert batch.within_budget.all()


def test_a_change_inside_the_ball_keeps_its_length() -> None:
    x = torch.full((2, 3, 8, 8), 0.5)
    mask = torch.ones(2, 1, 8, 8)
    short = 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(project_l2(x, short, mask, 1.0), short, atol=1e-7, rtol=0)
    long = project_l2(x, 100 * short, mask, 0.5)
    torch.testing.assert_close(long.flatten(1).norm(dim=1), torch.full((2,), 0.5), atol=1e-5, rtol=0)


def test_input_diversity_moves_as_many_images_as_it_should() -> None:
    z = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for probability in (0.0, 0.2, 1.0):
        moved = diversify(z, probability, torch.Generator().manual_seed(1))
        share = float((moved != z).flatten(1).any(1).float().mean())
        assert share == pytest.approx(probability, abs=0.06)


def test_a_start_inside_a_soft_mask_fills_its_budget_evenly() -> None:
    """Clipping uniform noise to a smaller budget would pile it up at the ends."""
    x, half = torch.full((2, 3, 32, 32), 0.5), torch.full((2, 1, 32, 32), 0.5)
    config = AttackConfig(eps=0.1, steps=0, start="uniform")
    (state,) = perturbations(lambda z: z.flatten(1).sum(1), x, half, config)
    assert state.delta.abs().max() <= 0.05 + 1e-6
    assert float((state.delta.abs() > 0.0499).float().mean()) < 0.01


def test_saliency_is_the_gradient_of_the_difference() -> None:
    net = linear(seed=5)
    weight = (net[1].weight[1] - net[1].weight[0]).detach().view(3, 48, 48).abs().sum(0)
    expected = (weight - weight.min()) / (weight.max() - weight.min())
    for target in (0, 1):
        torch.testing.assert_close(activation_map(Detector(net), IMAGES[:1], target)[0], expected, atol=1e-5, rtol=0)


def test_the_worst_regions_are_those_that_the_opposite_map_would_choose() -> None:
    cam = torch.rand(FACES.label_maps.shape, generator=torch.Generator().manual_seed(4))
    scores, opposite = (region_scores(each, FACES.label_maps) for each in (cam, 1 - cam))
    worst = select_regions(scores, FACES.label_maps, "worst", budget=0.05).mask
    assert torch.equal(worst, select_regions(opposite, FACES.label_maps, "budget", budget=0.05).mask)
    assert not torch.equal(worst, select_regions(scores, FACES.label_maps, "budget", budget=0.05).mask)


def test_a_region_that_takes_exactly_the_budget_fits() -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels.view(-1)[:29] = 2  # 0.29 x 100 is 28.999999999999996 in floating point
    scores = region_scores(torch.ones(1, 10, 10), labels)
    assert select_regions(scores, labels, "budget", budget=0.29).mask.sum() == 29
    assert select_regions(scores, labels, "budget", budget=0.28).mask.sum() == 0


TEMPLATE_LABELS = GeometricParser()(torch.zeros(1, 3, 64, 64))
"""An aligned face: the five fixed regions, and the three of the mouth, which must displace some of them to be chosen."""


def chosen_areas(policy: str, cam: torch.Tensor, seed: int, **rule: object) -> tuple[torch.Tensor, Selection]:
    found = select_regions(region_scores(cam, TEMPLATE_LABELS), TEMPLATE_LABELS, policy, seed=seed, **rule)
    return found.mask.sum((1, 2, 3)), found


def test_the_default_budget_is_the_area_of_the_fixed_regions_and_leaves_a_choice() -> None:
    area = region_mask(TEMPLATE_LABELS, (2, 4, 5, 6, 7)).sum()
    differing = 0
    for seed in range(10):
        cam = torch.rand(TEMPLATE_LABELS.shape, generator=torch.Generator().manual_seed(seed))
        found = {name: chosen_areas(name, cam, seed) for name in ("budget", "random", "worst")}
        assert all(float(used) <= area for used, _ in found.values())
        assert not any(bool(each.covers_all) for _, each in found.values())
        assert not torch.equal(found["worst"][1].mask, found["budget"][1].mask)
        differing += not torch.equal(found["random"][1].mask, found["budget"][1].mask)
    assert differing >= 5
    # Chosen areas come close to each other: no candidate is larger than half of the budget.
    assert min(float(used) for used, _ in found.values()) > area / 2


def test_python_and_command_line_have_one_default_budget() -> None:
    from asmattack.benchmark.config import FaceOptions

    assert MaskConfig().budget == FaceOptions().maker().config.budget == Bench([DETECTOR]).maker.config.budget
    fixed = region_mask(FACES.label_maps, (2, 4, 5, 6, 7)).sum((1, 2, 3))
    parser = lambda images, **_: FACES.label_maps[: len(images)]  # noqa: E731
    for policy in ("budget", "random", "worst"):
        found = attack(DETECTOR, IMAGES, LABELS, config=preset("noise"), policy=policy, parser=parser)
        assert (found.mask.sum((1, 2, 3)) <= fixed).all()
        assert not found.budget_covers_all.any()
    masks = [
        attack(DETECTOR, IMAGES, LABELS, config=preset("noise"), policy=policy, parser=parser).mask
        for policy in ("budget", "random", "worst")
    ]
    assert not any(torch.equal(one, other) for one, other in ((masks[0], masks[1]), (masks[0], masks[2])))


def test_a_face_without_fixed_regions_has_no_budget() -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[:, :2] = 11
    for policy in ("budget", "random", "worst"):
        found = select_regions(region_scores(torch.ones(1, 10, 10), labels), labels, policy)
        assert not found.mask.any()
        assert not found.covers_all.any()


def test_a_budget_that_fits_everything_is_said() -> None:
    with pytest.warns(UserWarning, match=r"on 6 of 6 faces every candidate region fits"):
        found = attack(DETECTOR, IMAGES, LABELS, config=preset("noise"), policy="random", budget=0.5)
    assert found.budget_covers_all.all()
    bench = Bench([DETECTOR], policies=("fixed", "budget", "random"), attacks=("noise",))
    bench = replace(bench, maker=MaskMaker(config=MaskConfig(budget=0.5)))
    with pytest.warns(UserWarning, match="nothing is selected"):
        report = bench.run(FACES)
    assert [row.n_budget_covers_all for row in report.rows] == [0, 6, 6]
    assert "6 of 6" in report.notes["Nothing to choose"]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        report = replace(bench, maker=MaskMaker()).run(FACES)
    assert not [each for each in seen if "nothing is selected" in str(each.message)]
    assert [row.n_budget_covers_all for row in report.rows] == [0, 0, 0]
    assert "Nothing to choose" not in report.notes
