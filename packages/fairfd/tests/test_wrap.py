"""Models from elsewhere as detectors: a user's network or function, timm, transformers, pipelines, linear probes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fairfd.models.detectors import create_detector, load_detector
from fairfd.models.detectors.detector import TrainBatch
from fairfd.models.detectors.wrapping import LinearProbe, as_detector, fake_label_index, wrap, wrap_pipeline
from tenfold import UserError

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def brightness(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


def test_function_returning_probabilities_is_a_detector() -> None:
    detector = wrap(brightness, output="prob", in_size=32)
    assert torch.allclose(detector.predict_proba(IMAGES), brightness(IMAGES), atol=1e-6)
    assert torch.allclose(as_detector(brightness, 32).predict_proba(IMAGES), brightness(IMAGES), atol=1e-6)
    assert as_detector(detector) is detector


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_probabilities_pass_through_exactly(value: float) -> None:
    detector = wrap(lambda images: torch.full((len(images), 1), value), output="prob", in_size=32)
    assert detector.predict_proba(IMAGES).tolist() == [value] * 3


def test_single_logits_become_their_sigmoid() -> None:
    logit = torch.tensor([-2.0, 0.0, 3.0])
    for output in (logit, logit[:, None]):
        detector = wrap(lambda _, output=output: output, output="sigmoid1", in_size=32)
        assert torch.allclose(detector.predict_proba(IMAGES), logit.sigmoid())


def test_module_with_two_logits_sees_preprocessed_images_and_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    detector = wrap(model, preprocess=lambda images: (images - 0.3) / 2, in_size=32)
    assert torch.allclose(detector(IMAGES).logits, model((IMAGES - 0.3) / 2), atol=1e-6)
    batch = TrainBatch(IMAGES, torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 0]))
    detector.training_loss(batch)[0].backward()
    assert model[2].weight.grad is not None


@pytest.mark.parametrize(
    ("output", "result", "message"),
    [
        ("prob", torch.full((3,), 7.0), "sigmoid1"),
        ("prob", torch.zeros(3, 2), r"needs 1 number\(s\)"),
        ("prob", torch.zeros(2), "for each of 3 images"),
        ("softmax2", torch.zeros(3), r"needs 2 number\(s\)"),
        ("softmax2", "logits", "returned str"),
    ],
)
def test_results_of_the_wrong_kind_are_refused(output: str, result: object, message: str) -> None:
    detector = wrap(lambda _: result, output=output, in_size=32)
    with pytest.raises(UserError, match=message):
        detector.predict_proba(IMAGES)


def test_wrapped_function_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights to save"):
        wrap(brightness, output="prob").save_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------------------------ timm


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_timm_models_are_detectors_and_come_back_from_disk(tmp_path: Path, model: str) -> None:
    torch.manual_seed(0)
    detector = create_detector(f"timm:{model}", in_size=32)
    fake = detector.predict_proba(IMAGES)
    assert fake.shape == (3,)
    detector.save_pretrained(tmp_path)
    again = load_detector(tmp_path)
    assert again.full_name == f"timm:{model}"
    assert torch.equal(again.predict_proba(IMAGES), fake)


def test_timm_detector_starts_from_a_weights_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = create_detector("timm:test_resnet", in_size=32)
    torch.save({"state_dict": source.net.state_dict()}, tmp_path / "weights.pth")
    started = create_detector("timm:test_resnet", pretrained=tmp_path / "weights.pth", in_size=32)
    assert torch.equal(started.features(IMAGES), source.train().features(IMAGES))
    assert not torch.equal(started.net.get_classifier().weight, source.net.get_classifier().weight)
    with pytest.raises(UserError, match="not the weights of test_vit"):
        create_detector("timm:test_vit", pretrained=tmp_path / "weights.pth", in_size=32)


def test_unknown_timm_model_is_refused_with_near_names() -> None:
    with pytest.raises(UserError, match="resnet3"):
        create_detector("timm:resnet3400")


def test_linear_probe_trains_its_classifier_only() -> None:
    torch.manual_seed(0)
    probe = LinearProbe(in_size=32, model="test_resnet").train()
    assert [name for name, parameter in probe.named_parameters() if parameter.requires_grad] == ["fc.weight", "fc.bias"]
    before = {name: value.clone() for name, value in probe.net.named_buffers()}
    batch = TrainBatch(IMAGES, torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 0]))
    probe.training_loss(batch)[0].backward()
    assert all(torch.equal(value, before[name]) for name, value in probe.net.named_buffers())
    assert probe.fc.weight.grad is not None


def test_linear_probe_on_random_features_is_refused() -> None:
    with pytest.raises(UserError, match="needs a pretrained model"):
        create_detector("probe:test_resnet")


# ---------------------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT whose first label means fake, saved as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
        patch_size=16,
        id2label={0: "Deepfake", 1: "Realism"},
        label2id={"Deepfake": 0, "Realism": 1},
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3).save_pretrained(folder)
    return folder


def test_transformers_classifier_is_a_detector_and_comes_back_from_disk(vit_folder: Path, tmp_path: Path) -> None:
    import transformers

    detector = create_detector(f"hf:{vit_folder}")
    assert detector.in_size == 32
    model = transformers.ViTForImageClassification.from_pretrained(vit_folder).eval()
    with torch.no_grad():
        expected = model(pixel_values=(IMAGES - 0.4) / 0.5).logits.softmax(1)[:, 0]
    assert torch.allclose(detector.predict_proba(IMAGES), expected, atol=1e-5)
    detector.save_pretrained(tmp_path)
    assert torch.allclose(load_detector(tmp_path).predict_proba(IMAGES), expected, atol=1e-5)


def test_missing_transformers_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        create_detector(f"hf:{tmp_path / 'nothing'}")


def test_fake_label_is_found_by_its_word_or_named() -> None:
    assert fake_label_index({0: "AI-generated", 1: "human"}, None, "m") == 0
    assert fake_label_index({0: "LABEL_0", 1: "LABEL_1"}, "label_1", "m") == 1
    for labels, label in (({0: "a", 1: "b"}, None), ({0: "a", 1: "b"}, "c"), ({0: "fake", 1: "fake face"}, None)):
        with pytest.raises(UserError, match="fake_label"):
            fake_label_index(labels, label, "m")
    with pytest.raises(UserError, match="3 labels"):
        fake_label_index({0: "a", 1: "b", 2: "c"}, None, "m")


def test_pipeline_scores_are_read_by_label() -> None:
    def pipeline(pictures: list, top_k: int | None) -> list[list[dict[str, object]]]:
        assert top_k is None
        shades = [sum(picture.getpixel((0, 0))) / 765 for picture in pictures]
        return [[{"label": "Real", "score": 1 - shade}, {"label": "Fake", "score": shade}] for shade in shades]

    flat = torch.tensor([0.2, 0.6])[:, None, None, None].expand(-1, 3, 16, 16)
    assert torch.allclose(wrap_pipeline(pipeline, "Fake", 16).predict_proba(flat), torch.tensor([0.2, 0.6]))
    with pytest.raises(UserError, match="labels are Real, Fake"):
        wrap_pipeline(pipeline, "fakes", 16).predict_proba(flat)
