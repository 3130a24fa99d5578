"""Heads of detectors: what their outputs mean is recognised, said, and refused where it contradicts itself."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from asmattack import Detector, RegionAttack, activation_map, attack, preset
from asmattack.benchmark.comparison import Bench
from asmattack.data.layouts import FaceSet
from asmattack.data.synthetic import drawn_set
from asmattack.models.heads import calibrate, head_kind
from tenfold import UserError

FACES = drawn_set(12, 32, seed=2)
LABELS = FACES.labels
# Forged faces are the bright ones, 0.56 to 0.61 on average, against 0.39 to 0.44.
NOISE = torch.rand((12, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
LEVEL = torch.where(LABELS == 1, 0.56, 0.39) + 0.01 * (torch.arange(12) // 2)
IMAGES = ((LEVEL[:, None, None, None] + NOISE) * 255).round() / 255


class Brightness(nn.Module):
    """Convolution, pooling and a linear head whose fake logit is 12 (mean - 0.5), then what comes last."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.linear, self.last = nn.Conv2d(3, 1, 1), nn.Linear(1, 1), last
        for layer, weight, bias in ((self.conv, 1 / 3, 0.0), (self.linear, 12.0, -6.0)):
            nn.init.constant_(layer.weight, weight)
            nn.init.constant_(layer.bias, bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.linear(self.conv(images).mean((2, 3))))


def both(z: Tensor) -> Tensor:
    return torch.cat([-z / 2, z / 2], 1)


HEADS = {
    "logit": (lambda z: z, "one logit, high means fake"),
    "logit of real": (lambda z: -z, "one logit, high means real"),
    "probability": (torch.sigmoid, "one probability, high means fake"),
    "flat probability": (lambda z: torch.sigmoid(z)[:, 0], "one probability, high means fake"),
    "probability of real": (lambda z: 1 - torch.sigmoid(z), "one probability, high means real"),
    "logits": (both, "two logits, real first"),
    "fake first": (lambda z: both(z).flip(1), "two logits, fake first"),
    "probabilities": (lambda z: both(z).softmax(1), "two probabilities, real first"),
    "probabilities, fake first": (lambda z: both(-z).softmax(1), "two probabilities, fake first"),
    "log probabilities": (lambda z: both(z).log_softmax(1), "two logits, real first"),
}


@pytest.mark.filterwarnings("ignore:.*is read as")
@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_the_same_detector(name: str) -> None:
    last, said = HEADS[name]
    detector = Detector(Brightness(last))
    config = preset("pgd", 8 / 255)
    found = RegionAttack(detector, config).run(IMAGES, LABELS)
    expected = RegionAttack(Detector(Brightness(both), fake_index=1, head="logits"), config).run(IMAGES, LABELS)
    assert detector.reading().startswith(said)
    assert "labels of 12 faces, AUC 1.00" in detector.reading()
    score = detector(IMAGES) @ torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(score, 12 * IMAGES.mean((1, 2, 3)) - 6, atol=1e-3, rtol=0)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.success, expected.success)
    assert not found.success.all()


def test_a_probability_is_never_read_as_a_logit_in_silence() -> None:
    with pytest.warns(UserWarning, match="Brightness is read as one probability"):
        found = attack(Brightness(torch.sigmoid), IMAGES, LABELS, config=preset("noise", 1 / 255), budget=0.2)
    assert not found.success.any()
    with pytest.warns(UserWarning, match="read as two logits, fake first"):
        attack(Brightness(HEADS["fake first"][0]), IMAGES, LABELS, config=preset("noise", 1 / 255), budget=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RegionAttack(Brightness(both), preset("noise")).run(IMAGES, LABELS)


@pytest.mark.filterwarnings("ignore:.*is read as")
def test_the_report_says_how_outputs_are_read() -> None:
    detectors = [
        Detector(Brightness(HEADS["probability of real"][0]), name="one"),
        Detector(Brightness(both), name="two", fake_index=1),
    ]
    faces = FaceSet((IMAGES * 255).round().byte(), LABELS, FACES.names, FACES.groups)
    report = Bench(detectors, attacks=("noise",), policies=("full",), eps_grid=(1 / 255,)).run(faces)
    assert report.notes["Outputs of one"] == "one probability, high means real (the labels of 12 faces, AUC 1.00)."
    assert report.notes["Outputs of two"] == "two logits, real first (given)."
    assert [row.clean_acc for row in report.rows] == [1.0] * len(report.rows)


@pytest.mark.parametrize(
    ("last", "rule", "match"),
    [
        (lambda z: torch.sigmoid(torch.cat([-z, z + 1], 1)), {}, "do not sum to one"),
        (torch.sigmoid, {"head": "logit"}, "'logit' was said, and its last operation"),
        (lambda z: both(z).softmax(1), {"head": "logits"}, "'logits' was said"),
        (lambda z: z, {"head": "probability"}, "'probability' was said, and its outputs go from"),
        (lambda z: z, {"head": "logits"}, "and it has 1 outputs"),
    ],
)
def test_contradictory_heads_are_refused(last: Callable[[Tensor], Tensor], rule: dict[str, str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        RegionAttack(Detector(Brightness(last), **rule)).run(IMAGES, LABELS)


def test_what_can_be_read_both_ways_is_asked_for() -> None:
    unknown = lambda images: images.mean((1, 2, 3))  # noqa: E731  # no last operation that tells
    with pytest.raises(UserError, match="may be a logit or a probability"):
        Detector(unknown)(IMAGES[:3])
    assert Detector(unknown, head="logit")(IMAGES[:3]).argmax(1).all()
    with pytest.warns(UserWarning, match="one probability"):
        assert torch.equal(Detector(unknown)(IMAGES).argmax(1), LABELS)
    assert head_kind(torch.tensor([[0.2], [0.9]]), "Addmm") == "logit"


def test_names_that_the_faces_contradict_are_refused_and_a_given_index_is_kept() -> None:
    detector = Detector(Brightness(HEADS["fake first"][0]))
    detector.order_from = "label names"
    with pytest.raises(UserError, match="output 1 means fake by its name"):
        detector.calibrate(IMAGES, LABELS)
    given = Detector(Brightness(HEADS["fake first"][0]), fake_index=1)
    given.calibrate(IMAGES, LABELS)
    assert given.fake_index == 1


def test_chance_turns_no_detector_round() -> None:
    labels = torch.tensor([0] * 4 + [1] * 4)
    assert calibrate(torch.arange(8.0).flip(0), labels).order == "undecided"
    labels = torch.tensor([0] * 5 + [1] * 5)
    assert calibrate(torch.arange(10.0).flip(0), labels).order == "reversed"
    assert calibrate(torch.arange(10.0), labels).order == "kept"
    assert calibrate(torch.zeros(10), labels).order == "undecided"
    assert calibrate(torch.zeros(10), torch.zeros(10, dtype=torch.long)).order == "undecided"


def test_layercam_is_layercam() -> None:
    """Against the formula on a head whose gradient differs from place to place, where Grad-CAM is another map."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 15 * 15, 2))
    x = IMAGES[:2]
    with torch.no_grad():
        ours = activation_map(Detector(net, target_layer=net[1]), x, 1, "layercam")
        features = net[1](net[0](x))
        low = (net[3].weight[1].view(4, 15, 15).clamp(min=0) * features).sum(1).clamp(min=0)
        large = nn.functional.interpolate(low[:, None], (32, 32), mode="bilinear")[:, 0]
    least, most = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    torch.testing.assert_close(ours, (large - least) / (most - least), atol=1e-5, rtol=0)
    assert not torch.allclose(ours, activation_map(Detector(net, target_layer=net[1]), x, 1, "gradcam"), atol=0.05)


def test_an_unknown_map_is_refused() -> None:
    with pytest.raises(ValueError, match="none of gradcam"):
        activation_map.__wrapped__(Detector(Brightness(both)), IMAGES, 1, "eigencam")


@pytest.mark.parametrize("name", ["pgd", "difgsm", "cafa"])
def test_an_attack_inside_no_grad_is_the_same(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    outside = attack(net, IMAGES, LABELS, config=preset(name), method="layercam")
    with torch.no_grad():
        inside = attack(net, IMAGES, LABELS, config=preset(name), method="layercam")
    assert torch.equal(outside.images, inside.images)
    assert (outside.images != IMAGES).any()
