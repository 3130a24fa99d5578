"""The two-stream network (section 4), its weights, and inference."""

import pytest
import torch
from torchvision.models import resnet50

from multreid.models.features import load_model
from multreid.models.networks import GeM, NonLocalBlock, TwoStreamResNet, load_imagenet_weights, unit_features
from tenfold import UserError


@pytest.fixture(scope="module")
def small() -> TwoStreamResNet:
    torch.manual_seed(0)
    return TwoStreamResNet("small", 64, 32).eval()


@pytest.fixture(scope="module")
def large() -> TwoStreamResNet:
    return TwoStreamResNet().eval()


def test_gem_is_the_cubic_mean() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]]]])
    torch.testing.assert_close(GeM()(x), torch.tensor([[(36 / 4) ** (1 / 3)]]))
    torch.testing.assert_close(GeM(1.0)(x), torch.tensor([[1.5]]), atol=1e-5, rtol=1e-5)


def test_non_local_block_starts_as_identity_and_equals_its_quadratic_form() -> None:
    torch.manual_seed(0)
    block, x = NonLocalBlock(8).eval(), torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(block(x), x)
    torch.nn.init.ones_(block.out[1].weight)
    theta, phi, g = (each(x).flatten(2) for each in (block.theta, block.phi, block.g))
    attention = theta.transpose(1, 2) @ phi / 12
    expected = x + block.out((attention @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, (3, 4)))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_resnet50_has_the_papers_shape(large) -> None:
    with torch.inference_mode():
        map_ = large.layers(large.visible_stem(torch.zeros(1, 3, 96, 48)))
    # Last stride 1: a sixteenth of the picture, not a thirty-second.
    assert map_.shape == (1, 2048, 6, 3)
    assert sum(isinstance(each, NonLocalBlock) for each in large.modules()) == 5
    assert not large.neck.bias.requires_grad
    assert large.dimension == 2048


def test_stems_are_apart_and_start_alike(small) -> None:
    assert small.visible_stem is not small.infrared_stem
    x = torch.rand(2, 3, 64, 32)
    visible, infrared = small(x, x)
    torch.testing.assert_close(visible, infrared)


def test_features_have_unit_norm_and_do_not_see_mirroring(small) -> None:
    x = torch.rand(3, 3, 64, 32)
    features = unit_features(small, x, "infrared")
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(features, unit_features(small, x.flip(3), "infrared"))


def test_saved_model_gives_the_same_features(small, tmp_path) -> None:
    small.save_pretrained(tmp_path / "model")
    again, x = load_model(tmp_path), torch.rand(2, 3, 64, 32)
    assert (again.architecture, again.height, again.width) == ("small", 64, 32)
    torch.testing.assert_close(unit_features(again, x, "visible"), unit_features(small, x, "visible"))


def test_torchvision_weights_reach_both_stems_and_every_shared_layer(large, tmp_path) -> None:
    source = resnet50(weights=None)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    load_imagenet_weights(large, tmp_path / "weights.pth")
    torch.testing.assert_close(large.visible_stem[0].weight, source.conv1.weight)
    torch.testing.assert_close(large.infrared_stem[0].weight, source.conv1.weight)
    torch.testing.assert_close(large.layers[2][5][0].conv3.weight, source.layer3[5].conv3.weight)
    torch.testing.assert_close(large.layers[3][0].downsample[0].weight, source.layer4[0].downsample[0].weight)


def test_wrong_weights_and_models_are_named(small, large, tmp_path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"broken\.pth: cannot read"):
        load_imagenet_weights(large, tmp_path / "broken.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the weights of a torchvision ResNet-50"):
        load_imagenet_weights(large, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not small"):
        load_imagenet_weights(small, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no model"):
        load_model(tmp_path)
    small.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="not a multreid model"):
        load_model(tmp_path)
    for wrong in (
        '{"architecture": "vgg"}',
        '{"height": "x"}',
        '{"depth": 1}',
        "[]",
        '{"width": -3}',
        '{"height": 100000}',
    ):
        (tmp_path / "model" / "config.json").write_text(wrong)
        with pytest.raises(UserError, match="not a multreid model"):
            load_model(tmp_path)
