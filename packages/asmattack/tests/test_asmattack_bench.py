"""What a report rests on: early stopping, compressed pictures, hashes, intervals, names of files, maps of the chosen method."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asmattack import (
    AttackConfig,
    Detector,
    HardenConfig,
    MaskConfig,
    MaskMaker,
    PrecomputedParser,
    RegionAttack,
    Surrogate,
    activation_map,
    attack,
    drawn_set,
    preset,
    read_faces,
    region_mask,
)
from asmattack.benchmark.comparison import Bench, data_hash, weights_hash
from asmattack.benchmark.figures import write_examples, write_masks
from asmattack.data.corruptions import parse_treatment, treated
from asmattack.data.landmarks import TEMPLATE, GeometricParser, parse_face
from asmattack.evaluation.metrics import lpips, wilson
from asmattack.evaluation.report import read_report
from asmattack.method.region_attack import within_budget
from asmattack.models.masks import generator_loss
from asmattack.models.networks import surrogate
from asmattack.training.step import Hardening, HardeningLoss
from tenfold import UserError
from tenfold.images import write_image

FACES = drawn_set(12, 48, seed=3)
IMAGES, LABELS = FACES.pixels(), FACES.labels
MASK = region_mask(FACES.label_maps, (2, 4, 5, 6, 7, 10, 11, 12)).float()


def undecided(seed: int = 1) -> Surrogate:
    """An untrained detector whose last bias puts half of the faces on either side: some are fooled early, some late."""
    detector = surrogate("plain", seed).eval()
    with torch.no_grad():
        logits = detector(IMAGES)
        detector.network[-1].bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return detector


@pytest.mark.parametrize(
    "changes",
    [{}, {"objective": "margin", "momentum": 1.0}, {"objective": "cafa", "start": "uniform"}, {"compose": "paste"}, {"nesterov": True, "momentum": 1.0}],
)  # fmt: skip
def test_early_stop_gives_each_image_the_step_at_which_it_was_first_fooled(changes) -> None:
    detector = undecided()
    config = AttackConfig(eps=4 / 255, steps=6, **changes)
    early = RegionAttack(detector, replace(config, stop_early=True)).run(IMAGES, LABELS, MASK)
    # Without one, the state after k steps for every k, rounded as it would be given out.
    alpha = config.step
    ends = [
        RegionAttack(detector, replace(config, steps=k, alpha=alpha, allow_zero_start=True)).run(IMAGES, LABELS, MASK)
        for k in range(7)
    ]
    fooled = torch.stack([each.success for each in ends])
    first = torch.where(fooled.any(0), fooled.int().argmax(0), 6)
    expected = torch.stack([ends[int(k)].images[i] for i, k in enumerate(first)])
    same = (early.images - expected).abs().flatten(1).amax(1) < 1e-6
    assert same.float().mean() >= 11 / 12  # a sign may flip where a gradient is almost zero
    assert torch.equal(early.success, fooled.any(0)) or not same.all()
    if changes.get("objective") != "cafa":
        assert len(first.unique()) > 2
    assert early.within_budget.all()


class Counted(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.images = inside, 0

    def forward(self, x):
        self.images += len(x)
        return self.inside(x)


def test_early_stop_asks_less_and_is_refused_where_neighbours_count() -> None:
    asked = []
    for early in (False, True):
        counted = Counted(undecided())
        RegionAttack(Detector(counted), AttackConfig(eps=8 / 255, stop_early=early)).run(IMAGES, LABELS, MASK)
        asked.append(counted.images)
    assert asked[1] < 0.8 * asked[0]
    with pytest.raises(UserError, match="neighbours"):
        AttackConfig(objective="cafa_batch", start="uniform", stop_early=True)
    with pytest.raises(UserError, match="every step"):
        RegionAttack(undecided(), AttackConfig(stop_early=True)).trace(IMAGES, LABELS)


def test_averaged_gradients_follow_a_detector_that_answers_at_random() -> None:
    torch.manual_seed(0)
    clean = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 2))
    weight = (clean[1].weight[1] - clean[1].weight[0]).detach()

    def noisy(x: torch.Tensor) -> torch.Tensor:
        jitter = 0.1 * torch.randn(2, x[0].numel())
        return x.flatten(1) @ (clean[1].weight + jitter).T

    shares = []
    for eot in (1, 16):
        config = AttackConfig(eps=0.02, steps=1, alpha=0.02, eot=eot, quantised=False, objective="margin")
        moved = (RegionAttack(noisy, config)(IMAGES, LABELS) - IMAGES).flatten(1)
        right = (moved.sign() == (1 - 2 * LABELS)[:, None] * weight.sign()) | (moved == 0)
        shares.append(float(right.float().mean()))
    assert shares[1] > shares[0] + 0.05


def test_pictures_go_through_jpeg_and_through_a_smaller_size() -> None:
    with pytest.raises(UserError, match="jpeg:QUALITY"):
        parse_treatment("jpeg:0")
    assert treated(IMAGES, "none") is IMAGES
    losses = [float((treated(IMAGES, each) - IMAGES).abs().mean()) for each in ("jpeg:95", "jpeg:50", "resize:0.5")]
    assert 0 < losses[0] < losses[1]
    assert losses[2] > 0
    for each in ("jpeg:75", "resize:0.3"):
        levels = treated(IMAGES, each) * 255
        assert torch.equal(levels, levels.round())
        assert levels.shape == IMAGES.shape
    flat = torch.full((1, 3, 48, 48), 100 / 255)
    assert torch.allclose(treated(flat, "jpeg:75"), flat, atol=1 / 255 + 1e-6)
    assert torch.equal(treated(flat, "resize:0.5"), flat)


@pytest.fixture(scope="module")
def report():
    two = [undecided(), undecided(2)]
    two[1].name = "other"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return two, Bench(two, attacks=("pgd", "noise"), policies=("full", "budget"), steps=3, after=("jpeg:75",)).run(
            FACES
        )


def test_rates_after_compression_are_over_what_is_right_after_compression(report) -> None:
    two, found = report
    row = next(row for row in found.rows if (row.source, row.target, row.attack, row.policy, row.after) == ("plain", "plain", "pgd", "full", "jpeg:75"))  # fmt: skip
    batch, _ = Bench([two[0]], steps=3).attacked(two[0], FACES, "pgd", 8 / 255, "full")
    with torch.no_grad():
        before, after = (two[0](treated(each, "jpeg:75")).argmax(1) == LABELS for each in (IMAGES, batch.images))
    assert row.n == int(before.sum())
    assert row.asr == pytest.approx(float((before & ~after).sum() / before.sum()))
    assert (row.n_fake, row.n_real) == (int((before & (LABELS == 1)).sum()), int((before & (LABELS == 0)).sum()))


def test_a_report_names_its_weights_its_data_the_strongest_attack_and_every_interval(report, tmp_path) -> None:
    two, found = report
    assert found.weights == {each.name: weights_hash(each) for each in two}
    assert found.data == data_hash(FACES)
    changed = undecided()
    with torch.no_grad():
        changed.network[-1].bias[0] += 1e-6
    assert weights_hash(changed) != weights_hash(two[0])
    assert data_hash(replace(FACES, labels=1 - LABELS)) != found.data
    for row in found.strongest():
        rivals = [each for each in found.rows if each.source == each.target == row.target and each.after == "none"]
        assert row.robust_acc == min(each.robust_acc for each in rivals)
    assert {row.target for row in found.strongest()} == {"plain", "other"}
    means = found.transfer_mean("pgd", "full", 8 / 255)
    assert means["plain"] == found.matrix("pgd", "full", 8 / 255)["plain"]["other"].asr
    found.to_json(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    first = stored["rows"][0]
    assert first["intervals"]["evasion_rate"] == pytest.approx(wilson(first["evasion_rate"], first["n_fake"]))
    assert first["intervals"]["robust_acc"] == pytest.approx(wilson(first["robust_acc"], 12))
    assert stored["rows"][stored["strongest"][0]]["robust_acc"] == found.strongest()[0].robust_acc
    again = read_report(tmp_path / "report.json")
    assert (again.weights, again.data) == (found.weights, found.data)
    assert len(again.compare(found)) == len(found.rows)
    page = found.html()
    assert found.data in page
    assert "after jpeg:75" in page


def test_activation_shift_is_of_the_map_that_chose(report) -> None:
    two, _ = report
    for method in ("gradcam", "saliency", "occlusion"):
        maker = MaskMaker(config=MaskConfig(method=method, budget="fixed_area"))
        row = Bench([two[0]], policies=("budget",), maker=maker, steps=2).run(FACES).rows[0]
        batch, maps = Bench([two[0]], maker=maker, steps=2).attacked(two[0], FACES, "pgd", 8 / 255, "budget")
        after = activation_map(two[0], batch.images, method=method, labels=FACES.label_maps)
        inside = batch.mask[:, 0]
        assert row.activation_shift_in == pytest.approx(float(((after - maps).abs() * inside).sum() / inside.sum()), rel=1e-4)  # fmt: skip
        assert row.activation_in_mask == pytest.approx(float((maps * inside).sum() / inside.sum()), rel=1e-4)


def test_occlusion_paints_the_candidates_that_are_asked_for() -> None:
    skin = MaskMaker(config=MaskConfig(method="occlusion", candidates=(1, 2)))
    found = skin(undecided(), IMAGES, FACES.label_maps)
    by_default = activation_map(undecided(), IMAGES, method="occlusion", labels=FACES.label_maps)
    assert not torch.equal(found.activation, by_default)
    values = [found.activation[i][FACES.label_maps[i] == 1].unique() for i in range(12)]
    background = [found.activation[i][FACES.label_maps[i] == 0].unique() for i in range(12)]
    assert any(not torch.equal(a, b) for a, b in zip(values, background, strict=True))


def test_some_faces_without_regions_are_warned_of_and_all_are_refused() -> None:
    maps = FACES.label_maps.clone()
    maps[0] = 1
    with pytest.warns(UserWarning, match="1 of 12 faces have no region"):
        rows = Bench([undecided()], policies=("budget",), steps=1).run(replace(FACES, label_maps=maps)).rows
    assert rows[0].n_empty_mask == 1
    nothing = Bench([undecided()], policies=("budget",), steps=1)
    with pytest.raises(UserError, match="no mask has a pixel"):
        nothing.run(replace(FACES, label_maps=torch.where(maps == 0, 0, 1)))
    empty = lambda images, landmarks=None, names=None: maps  # noqa: ARG005, E731
    with pytest.warns(UserWarning, match="1 of 12 faces"):
        attack(undecided(), IMAGES, LABELS, parser=empty)


def test_faces_of_one_name_in_two_folders_keep_their_own_maps_and_pictures(tmp_path) -> None:
    for kind, row in (("real", 0), ("fake", 11)):
        write_image(tmp_path / f"crops/{kind}/7.png", IMAGES[row].permute(1, 2, 0).numpy())
    faces = read_faces(tmp_path / "crops")
    assert faces.names == ("real/7.png", "fake/7.png")
    own = lambda images, landmarks=None, names=None: FACES.label_maps[[0 if each.startswith("real") else 11 for each in names]]  # noqa: ARG005, E731  # fmt: skip
    assert write_masks(tmp_path / "maps", faces, own) == 2
    again = PrecomputedParser(tmp_path / "maps")(faces.pixels(), names=faces.names)
    assert torch.equal(again, FACES.label_maps[[0, 11]])
    bench = Bench([undecided()], steps=1, maker=MaskMaker(parser=own))
    assert write_examples(tmp_path / "out", bench, undecided(), faces, "pgd", 8 / 255, "full", 2) == 2
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*-attacked.png")) == ["fake", "real"]
    with pytest.raises(UserError, match="overwrite"):
        write_masks(tmp_path / "twice", replace(faces, names=("7.png", "7.png")), own)
    assert not (tmp_path / "twice").exists()


def test_hardening_parses_by_the_landmarks_of_the_set() -> None:
    """Faces whose landmarks are known need not follow the template."""
    shifted = torch.from_numpy(TEMPLATE * 48).float() + torch.tensor([6.0, -4.0])
    faces = replace(FACES, label_maps=None, landmarks=shifted.expand(12, 5, 2))
    config = HardenConfig(flip=False, policy="all_inner", attack="noise", eps=8.0)
    task = Hardening(undecided(), faces, faces, config)
    images, attacked, _ = task.batch(torch.arange(12), torch.Generator().manual_seed(0))
    allowed = region_mask(torch.from_numpy(parse_face(shifted.numpy(), 48, 48))[None], (2, 4, 5, 6, 7, 10, 11, 12))
    changed = (attacked != images).any(1, keepdim=True)
    assert changed.any()
    assert not (changed & ~allowed).any()
    assert (changed.any(0) == allowed[0]).float().mean() > 0.99


def test_a_set_is_attacked_the_same_in_one_batch_and_in_many() -> None:
    rows = []
    for size in (12, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Bench([undecided()], policies=("budget",), steps=2, batch_size=size).run(FACES).rows[0]
        rows.append(replace(found, seconds=0.0))
    for name in ("asr", "l2", "psnr", "activation_shift_out", "mask_area"):
        assert getattr(rows[0], name) == pytest.approx(getattr(rows[1], name), rel=1e-3)


def test_landmarks_that_are_not_finite_are_refused() -> None:
    points = TEMPLATE * 48
    for row in range(5):
        faulty = points.copy()
        faulty[row, 1] = np.nan
        with pytest.raises(UserError, match="NaN"):
            parse_face(faulty, 48, 48)
    assert GeometricParser()(IMAGES[:1]).shape == (1, 48, 48)
    for name in ("eps", "alpha", "momentum"):
        with pytest.raises(UserError):
            AttackConfig(**{name: float("inf") if name != "momentum" else float("nan")})
    assert preset("pgd", 0.0).eps == 0


def test_a_soft_mask_that_is_pasted_bounds_each_pixel() -> None:
    soft = 0.5 * MASK
    moved = RegionAttack(undecided(), AttackConfig(eps=0.1, compose="paste", quantised=False))(IMAGES, LABELS, soft)
    assert 0 < (moved - IMAGES).abs().max() <= 0.05 + 1e-6


def test_the_check_of_the_budget_sees_each_way_of_breaking_it() -> None:
    x, mask = torch.full((1, 3, 8, 8), 128 / 255), torch.zeros(1, 1, 8, 8)
    mask[:, :, :4] = 1
    linf, l2 = AttackConfig(eps=2 / 255), AttackConfig(eps=0.1, norm="l2")

    def changed(row: int, levels: float) -> torch.Tensor:
        moved = x.clone()
        moved[:, :, row] += levels / 255
        return moved

    for config, good, bad in ((linf, 2, 3), (l2, 4, 6)):  # 24 values of 4 levels have a length of 0.077, of 6 of 0.115
        assert within_budget(x, changed(0, good), mask, config).all()
        assert not within_budget(x, changed(0, bad), mask, config).any()
        assert not within_budget(x, changed(6, good), mask, config).any()
        assert not within_budget(x, changed(0, good) + 1, mask, config).any()


def test_transfer_counts_the_faces_that_all_detectors_get_right(report) -> None:
    two, found = report
    with torch.no_grad():
        right = torch.stack([each(IMAGES).argmax(1) == LABELS for each in two])
    shared = int(right.all(0).sum())
    assert shared < int(right[0].sum())
    for row in found.rows:
        if row.after == "none":
            own = int(right[[each.name for each in two].index(row.target)].sum())
            assert row.n == (own if row.source == row.target else shared)


def test_masks_grow_and_soften_on_request() -> None:
    plain = MaskMaker()(undecided(), IMAGES, FACES.label_maps).mask
    grown = MaskMaker(config=MaskConfig(dilate=1))(undecided(), IMAGES, FACES.label_maps).mask
    soft = MaskMaker(config=MaskConfig(feather=1))(undecided(), IMAGES, FACES.label_maps).mask
    assert (grown >= plain).all()
    assert grown.sum() > plain.sum()
    assert ((soft > 0) & (soft < 1)).any()


def test_a_detector_whose_first_output_means_fake_is_turned_with_its_head() -> None:
    net = surrogate("plain", 1).eval().network
    one, other = Detector(net), Detector(net, fake_index=0)
    assert torch.equal(one(IMAGES).flip(1), other(IMAGES))
    assert torch.equal(one.head_weight().flip(0), other.head_weight())


def test_the_losses_of_training_weigh_their_parts() -> None:
    detector, attacked = undecided(), IMAGES.flip(-1)
    clean, adversarial = (F.cross_entropy(detector(each), LABELS) for each in (IMAGES, attacked))
    found = HardeningLoss(detector, 0.25)(IMAGES, attacked, LABELS)
    torch.testing.assert_close(found, 0.25 * clean + 0.75 * adversarial)
    classes, activation, maps = torch.randn(2, 19, 4, 4), torch.randn(2, 4, 4), torch.rand(2, 4, 4)
    labels = torch.randint(19, (2, 4, 4))
    of_map = -(maps * activation.sigmoid().log() + (1 - maps) * (1 - activation.sigmoid()).log()).mean()
    of_class = -classes.log_softmax(1).gather(1, labels[:, None]).mean()
    torch.testing.assert_close(generator_loss(classes, activation, labels, maps), of_class + of_map)


def test_lpips_is_the_mean_over_faces(tmp_path) -> None:
    from torchvision.models import alexnet

    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), tmp_path / "alexnet.pth")
    two = IMAGES[:2]  # each call reads the 240 MB of weights
    attacked = (two + 8 / 255 * MASK[:2]).clamp(0, 1)
    weights = tmp_path / "alexnet.pth"
    each = [lpips(one[None], other[None], weights) for one, other in zip(two, attacked, strict=True)]
    assert min(each) > 0
    assert lpips(two, attacked, weights) == pytest.approx(sum(each) / len(each), rel=1e-4)
    assert lpips(two, two, weights) == 0
