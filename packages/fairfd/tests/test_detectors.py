"""Every detector: size, probabilities, gradients, saving, and the start from ImageNet weights."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairfd.models.detectors import DETECTORS, create_detector, load_detector, srm
from fairfd.models.detectors.capsule import CapsuleDetector
from fairfd.models.detectors.detector import Detector, TrainBatch
from fairfd.models.detectors.ffd import FfdDetector
from fairfd.models.detectors.pgfdd import PgFddDetector
from fairfd.models.detectors.recce import RecceDetector
from fairfd.models.detectors.srm import SrmDetector
from fairfd.models.detectors.ucf import UcfDetector
from fairfd.models.detectors.xception import XceptionDetector, load_xception, xception_network
from tenfold import UserError

SIZE = 48
MILLIONS = {
    "xception": 20.81,
    "core": 20.81,
    "spsl": 20.81,
    "f3net": 20.81 + 0.26,
    "ffd": 20.81 + 0.007,
    "recce": 20.81 + 1.94 + 0.53 + 0.50,
    "ucf": 2 * 21.86 + 2.32 + 0.79,
    "srm": 2 * 20.81 + 2 * 1.33 + 8.92 + 0.04,
    "capsule": 2.33 + 1.57,
    "dag-fdd": 20.81,
    "daw-fdd": 20.81,
    "pgfdd": 3 * 21.86 + 2.32 + 0.79 + 0.53,
}


@pytest.fixture(scope="module", params=[name for name in DETECTORS if name != "core"])
def detector(request: pytest.FixtureRequest) -> Detector:
    """Each kind once, at a small size. CORE is an Xception with another loss."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # SRM's attention is built for 256 pixels: 9 positions instead of 256 make it small.
        patch.setattr(srm, "IN_SIZE", SIZE)
        patch.setattr(srm, "TOKENS", 9)
        return create_detector(request.param, in_size=SIZE)


def batch_of(size: int, pairs: int = 1) -> TrainBatch:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(2).repeat_interleave(pairs)
    images = torch.rand(2 * pairs, 3, size, size, generator=generator)
    return TrainBatch(images, labels, torch.arange(2 * pairs) % 2, labels * 2, ids=("a", "b") * pairs)


def parameters_in_millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize("name", list(MILLIONS))
def test_parameter_counts_are_those_of_the_methods(name: str) -> None:
    with torch.device("meta"):
        count = parameters_in_millions(create_detector(name))
    assert count == pytest.approx(MILLIONS[name], abs=0.03)


@pytest.mark.parametrize(("name", "count"), [("meso4", 27_977), ("mesoinception4", 28_615)])
def test_mesonets_have_as_many_parameters_as_their_paper_says(name: str, count: int) -> None:
    with torch.device("meta"):
        detector = create_detector(name, variant="mesonet")
    assert sum(parameter.numel() for parameter in detector.parameters()) == count
    with pytest.raises(UserError, match="use at least 32"):
        create_detector(name, in_size=31)


def test_detectors_give_probabilities_without_changing_their_mode(detector: Detector) -> None:
    images = batch_of(SIZE).images
    detector.train()
    before = {name: value.clone() for name, value in detector.named_buffers()}
    fake = detector.predict_proba(images)
    assert fake.shape == (2,)
    assert fake.dtype == torch.float32
    assert not fake.requires_grad
    assert ((fake > 0) & (fake < 1)).all()
    assert detector.training
    assert all(torch.equal(value, before[name]) for name, value in detector.named_buffers())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = detector.eval()(images)
    # Scores must not be rounded to bfloat16: they would tie.
    assert output.logits.dtype == torch.float32
    assert torch.allclose(output.logits.softmax(1)[:, 1], fake, atol=0.02)


def test_every_parameter_of_every_detector_learns(detector: Detector) -> None:
    torch.manual_seed(0)
    loss, parts = detector.train().training_loss(batch_of(SIZE))
    assert loss.isfinite()
    assert parts
    assert all(isinstance(value, float) for value in parts.values())
    detector.zero_grad()
    loss.backward()
    without = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert not without
    detector.zero_grad()


def test_images_of_another_size_are_refused(detector: Detector) -> None:
    with pytest.raises(UserError, match=f"{SIZE}x{SIZE}"):
        detector(torch.rand(1, 3, SIZE + 1, SIZE))


def test_core_adds_the_disagreement_of_two_views() -> None:
    with torch.device("meta"):
        core = create_detector("core", in_size=SIZE, consistency_weight=2.0)
    vectors = torch.randn(4, 3)
    core.forward = lambda _: _Output(torch.zeros(4, 2), vectors)
    loss, parts = core.training_loss(batch_of(SIZE, pairs=2))
    cosine = F.cosine_similarity(vectors[:2], vectors[2:])
    assert parts["consistency"] == pytest.approx((cosine - 1).square().mean().item())
    assert loss.item() == pytest.approx(parts["ce"] + 2 * parts["consistency"])


class _Output:
    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits, self.features = logits, features


# --------------------------------------------------------------------------------------------- options and single parts


def test_ucf_inference_reads_the_common_path_only() -> None:
    torch.manual_seed(0)
    ucf = UcfDetector(in_size=SIZE).eval()
    images = torch.rand(1, 3, SIZE, SIZE)
    before = ucf.predict_proba(images)
    for part in ("encoder_c", "block_spe", "head_spe", "decoder"):
        delattr(ucf, part)
    assert torch.equal(ucf.predict_proba(images), before)


def test_ucf_refuses_more_forgery_types_than_its_head_has() -> None:
    with torch.device("meta"):
        ucf = UcfDetector(num_fake_types=2)
    ucf.prepare_for(torch.tensor([5, 5]), num_approaches=2)
    with pytest.raises(UserError, match="num_fake_types=3"):
        ucf.prepare_for(torch.tensor([5, 5]), num_approaches=3)
    with pytest.raises(UserError, match="at least 48"):
        UcfDetector(in_size=32)


def test_pgfdd_margins_follow_the_group_counts_of_the_training_data() -> None:
    pgfdd = PgFddDetector.__new__(PgFddDetector)
    nn.Module.__init__(pgfdd)
    pgfdd.num_groups, pgfdd.num_fake_types = 3, 4
    pgfdd.register_buffer("margins", torch.zeros(3))
    pgfdd.prepare_for(torch.tensor([16, 1, 16]), num_approaches=4)
    assert torch.allclose(pgfdd.margins, torch.tensor([0.25, 0.5, 0.25]))
    with pytest.raises(UserError, match="num_groups=4"):
        pgfdd.prepare_for(torch.ones(4, dtype=torch.long), num_approaches=4)


def test_ffd_compares_masks_only_when_asked_and_given() -> None:
    torch.manual_seed(0)
    ffd = FfdDetector(in_size=32, mask_weight=1.0)
    assert ffd.uses_masks
    batch = batch_of(32)
    with torch.no_grad():
        assert "mask_l1" not in ffd.training_loss(batch)[1]
        masked = TrainBatch(batch.images, batch.labels, batch.groups, batch.approaches, masks=torch.ones(2, 1, 32, 32))
        loss, parts = ffd.training_loss(masked)
    assert loss.item() == pytest.approx(parts["ce"] + parts["mask_l1"], rel=1e-5)
    with torch.device("meta"):
        assert not FfdDetector().uses_masks


def test_recce_options_add_their_terms() -> None:
    torch.manual_seed(0)
    recce = RecceDetector(in_size=32, reconstruction_weight=0.1, metric_weight=0.1)
    with torch.no_grad():
        loss, parts = recce.training_loss(batch_of(32))
    expected = parts["ce"] + 0.1 * parts["reconstruction"] + 0.1 * parts["metric"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_capsule_loss_can_read_probabilities_as_the_official_code_does() -> None:
    torch.manual_seed(0)
    capsule, batch = CapsuleDetector(in_size=32).eval(), batch_of(32)
    with torch.no_grad():
        outputs = capsule(batch.images).aux.outputs
        own = capsule.training_loss(batch)[0]
        capsule.loss_input = "probabilities"
        official = capsule.training_loss(batch)[0]
    target = batch.labels[:, None].expand(-1, 4)
    assert torch.allclose(own, 4 * F.cross_entropy(outputs.mT, target), atol=1e-5)
    assert torch.allclose(official, 4 * F.cross_entropy(outputs.softmax(2).mT, target), atol=1e-5)


def test_srm_cosine_scores_lie_within_the_scale() -> None:
    with torch.device("meta"):
        detector = SrmDetector(am_cosine=True)
    detector.rgb.fc = nn.Linear(5, 2)
    features = torch.randn(3, 5)
    scores = detector.classify(features)
    assert scores.abs().max() <= 30
    assert torch.allclose(detector.classify(7 * features), scores, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- ImageNet start


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """Stand-in for ImageNet weights: an Xception of 1000 classes."""
    torch.manual_seed(1)
    return {name: value.clone() for name, value in xception_network(num_classes=1000).state_dict().items()}


@pytest.mark.parametrize(("name", "copies"), [("spsl", 4), ("f3net", 12)])
def test_first_convolution_of_front_ends_starts_from_imagenets(
    imagenet: dict[str, Tensor], name: str, copies: int
) -> None:
    torch.manual_seed(0)
    detector = create_detector(name, in_size=SIZE)
    detector.load_backbone(imagenet)
    weight, first = detector.net.conv1.weight, imagenet["conv1.weight"]
    assert weight.shape[1] == copies
    assert torch.equal(detector.net.block12.rep[1].pointwise.weight, imagenet["block12.rep.1.pointwise.weight"])
    if name == "f3net":
        x = torch.randn(1, 3, 16, 16)
        assert torch.allclose(F.conv2d(x.repeat(1, 4, 1, 1), weight), F.conv2d(x, first), atol=1e-4)
    else:
        assert torch.equal(weight[:, 2], first.mean(1))


def test_classifier_is_not_taken_from_imagenet(imagenet: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    detector = XceptionDetector(in_size=SIZE)
    before = detector.net.fc.weight.clone()
    detector.load_backbone(imagenet)
    assert torch.equal(detector.net.fc.weight, before)
    assert torch.equal(detector.net.conv1.weight, imagenet["conv1.weight"])


def test_weights_of_another_network_are_refused(imagenet: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        net = xception_network()
    with pytest.raises(UserError, match="not the weights of an Xception"):
        load_xception(net, {"layer1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"conv3\.pointwise\.weight has shape"):
        load_xception(net, imagenet | {"conv3.pointwise.weight": torch.zeros(2, 2, 1, 1)})


# --------------------------------------------------------------------------------------------------- registry and saving


@pytest.mark.parametrize("name", ["small-rgb", "small-f3net", "small-srm"])
def test_saved_detectors_come_back_the_same(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    detector = create_detector(name, in_size=24)
    images = torch.rand(2, 3, 24, 24)
    detector.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config == {"detector": "small", "in_size": 24, "front": name.removeprefix("small-")}
    again = load_detector(tmp_path)
    assert not again.training
    assert again.full_name == name
    assert torch.equal(again.predict_proba(images), detector.predict_proba(images))
    assert torch.equal(
        type(detector).from_pretrained(tmp_path / "model").predict_proba(images), again(images).logits.softmax(1)[:, 1]
    )
    assert torch.equal(create_detector(name, pretrained=tmp_path).predict_proba(images), again.predict_proba(images))


def test_saving_leaves_no_temporary_files_and_prints_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_detector("small-rgb").save_pretrained(tmp_path)
    load_detector(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert capsys.readouterr().out == ""


def test_saved_detector_of_another_kind_or_size_is_refused(tmp_path: Path) -> None:
    create_detector("small-rgb", in_size=24).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a small-rgb, not a small-srm"):
        create_detector("small-srm", pretrained=tmp_path)
    with pytest.raises(UserError, match="in_size=24"):
        create_detector("small-rgb", pretrained=tmp_path, in_size=48)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"detector": "resnet"}'])
def test_folder_without_detector_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="detector"):
        load_detector(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    create_detector("small-rgb").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="is not a safetensors file"):
        load_detector(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_detector(tmp_path)


def test_unknown_names_and_options_are_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match="xception, core, spsl"):
        create_detector("xcepton")
    with pytest.raises(UserError, match="no option margin; there is in_size"):
        create_detector("spsl", margin=1)
    with pytest.raises(UserError, match="of 16 to 8192"):
        create_detector("small-rgb", in_size=8)
    with pytest.raises(UserError, match="no ImageNet backbone"):
        create_detector("small-rgb", pretrained="imagenet")
