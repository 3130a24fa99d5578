"""The two-branch detector: sizes, starts, prediction, and what it loads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pfrforgery.config import FederationConfig
from pfrforgery.method.baselines import ALGORITHMS, create_detector, kept_names
from pfrforgery.models.backbones import backbone_weights
from pfrforgery.models.networks import PersonalModelDetector, TwoBranchDetector, load_exactly
from tenfold import UserError


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_resnet18_has_the_sizes_of_the_specification() -> None:
    with torch.device("meta"):
        model = TwoBranchDetector("resnet18")
    assert (count(model.extractor), count(model.shared), count(model)) == (683_072, 10_494_466, 21_672_004)
    upload = sum(value.numel() * 4 for value in model.shared_state().values())
    assert upload / 2**20 == pytest.approx(42.6, abs=0.1)


def test_resnet50_splits_where_it_is_told() -> None:
    with torch.device("meta"):
        model = TwoBranchDetector("resnet50")
        late = TwoBranchDetector("resnet50", split=4, personal=False)
    assert (count(model.extractor), count(model.shared)) == (1_444_928, 22_067_202)
    assert next(iter(late.shared._modules)) == "layer4"


def test_the_branches_start_alike_but_for_their_last_layers() -> None:
    model = create_detector(FederationConfig())
    again = create_detector(FederationConfig())
    shared, personal = model.shared.state_dict(), model.personal.state_dict()
    for name, value in shared.items():
        assert torch.equal(value, personal[name]) != name.startswith("fc."), name
    for first, second in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(shared["fc.weight"], create_detector(FederationConfig(seed=1)).shared.fc.weight)


def test_prediction_does_not_depend_on_the_batch_nor_on_chance() -> None:
    model = create_detector(FederationConfig())
    x = torch.rand(9, 3, 32, 32)
    together = model.predict_proba(x)
    assert torch.equal(together, model.predict_proba(x))
    alone = torch.cat([model.predict_proba(each[None]) for each in x])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert model.training


def test_a_new_site_predicts_with_the_shared_branch_only() -> None:
    model = TwoBranchDetector("tiny", personal=False)
    x = torch.rand(2, 3, 32, 32)
    assert model.predict_proba(x, "shared").shape == (2,)
    for predict in ("fused", "personal", "summed"):
        with pytest.raises(UserError, match="no personal branch"):
            model.predict_proba(x, predict)


def test_a_detector_survives_saving(tmp_path: Path) -> None:
    model = create_detector(FederationConfig(dropout=0.2))
    model.save_pretrained(tmp_path / "here")
    again = TwoBranchDetector.from_pretrained(tmp_path / "here")
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(model.predict_proba(x), again.predict_proba(x))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_public_weights_start_extractor_and_both_branches(tmp_path: Path, suffix: str) -> None:
    from torchvision.models import resnet18

    weights = resnet18(weights=None).state_dict()
    path = tmp_path / f"resnet18.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, path)
    else:
        save_file(weights, path)
    model = create_detector(FederationConfig(backbone="resnet18", pretrained=str(path)))
    assert torch.equal(model.extractor.conv1.weight, weights["conv1.weight"])
    for branch in (model.shared, model.personal):
        assert torch.equal(branch.layer4[1].bn2.running_var, weights["layer4.1.bn2.running_var"])


def test_timm_resnets_have_the_same_stages() -> None:
    pytest.importorskip("timm")
    model = TwoBranchDetector("timm:resnet18", split=2)
    assert model(torch.rand(2, 3, 64, 64))["personal"].shape == (2, 2)
    with pytest.raises(UserError, match="layer1 to layer4"):
        TwoBranchDetector("timm:vit_tiny_patch16_224")
    for elsewhere in ("timm:hf-hub:owner/name", "timm:local-dir:/tmp/model", "timm:owner/name"):
        with pytest.raises(UserError, match="timm has no such model"):
            TwoBranchDetector(elsewhere)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    model = create_detector(FederationConfig())
    state = model.shared_state()
    with pytest.raises(UserError, match=r"missing extractor\.block1"):
        model.load_shared({name: value for name, value in state.items() if not name.startswith("extractor.block1")})
    with pytest.raises(UserError, match=r"unknown personal\."):
        model.load_shared({**state, **model.personal_state()})
    with pytest.raises(UserError, match="shape"):
        model.load_shared({**state, "shared.fc.bias": torch.zeros(3)})
    (tmp_path / "x.pth").write_bytes(b"no weights")
    for source, words in ((str(tmp_path / "x.pth"), "more than weights"), ("nowhere.pth", "no such file")):
        with pytest.raises(UserError, match=words):
            backbone_weights("resnet18", source)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors: weights of another model"):
        create_detector(FederationConfig(backbone="resnet18", pretrained=str(tmp_path / "other.safetensors")))
    for backbone, split in (("resnet7", 3), ("resnet18", 5)):
        with pytest.raises(UserError):
            TwoBranchDetector(backbone, split)


def test_a_saved_detector_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    model = TwoBranchDetector("tiny").eval()
    model.save_pretrained(tmp_path)
    again, image = TwoBranchDetector.from_pretrained(tmp_path), torch.rand(1, 3, 32, 32)
    assert not again.training
    assert torch.equal(again.predict_proba(image), model.predict_proba(image))
    with pytest.raises(UserError, match="read it with TwoBranchDetector"):
        PersonalModelDetector.from_pretrained(tmp_path)
    weights, description = tmp_path / "model.safetensors", tmp_path / "config.json"
    state, said = model.state_dict(), description.read_text()
    # The mixin alone would leave what is missing as it was drawn.
    save_file({name: value for name, value in state.items() if not name.startswith("personal.")}, weights)
    with pytest.raises(UserError, match=r"model\.safetensors: .* missing, first personal"):
        TwoBranchDetector.from_pretrained(tmp_path)
    save_file({**state, "shared.fc.bias": torch.zeros(3)}, weights)
    with pytest.raises(UserError, match=r"model\.safetensors: .* expected \(2,\)"):
        TwoBranchDetector.from_pretrained(tmp_path)
    for wrong in ("[" * 100_000, "[]", said.replace("3", '"x"'), said.replace("tiny", "resnet7"), '{"detector": 1}'):
        description.write_text(wrong)
        with pytest.raises(UserError):
            TwoBranchDetector.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_travels_and_what_stays_make_the_whole(name: str) -> None:
    algorithm = ALGORITHMS[name]
    model = create_detector(FederationConfig(algorithm=name))
    travels, stays = algorithm.uploads(model), kept_names(model, algorithm)
    assert not [entry for entry in travels if entry.startswith("personal.") or entry.endswith("num_batches_tracked")]
    whole = {entry for entry in model.state_dict() if not entry.endswith("num_batches_tracked")}
    assert set(travels) | set(stays) == whole
    assert not set(travels) & set(stays)
    expected = {
        "local": not travels,
        "fedbn": all(".1." not in entry for entry in travels),
        "fedper": "shared.fc.weight" in stays,
        "lg-fedavg": all(entry.startswith("shared.") for entry in travels),
        "ditto": sum(entry.startswith("personal.") for entry in stays) == len(travels),
    }
    assert expected.get(name, True)
    load_exactly(model, {entry: model.state_dict()[entry] for entry in travels}, travels)
