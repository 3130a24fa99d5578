"""Reading weights from elsewhere: files of several kinds, old names, DeepfakeBench's detectors; never a silent random start."""

import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fairfd.models.detectors import create_detector
from fairfd.models.detectors.capsule import CAPSULES, CapsuleDetector, squash, statistics
from fairfd.models.detectors.pretrained import (
    DEEPFAKEBENCH,
    from_deepfakebench,
    imagenet_backbone,
    load_deepfakebench,
    read_backbone,
    read_tensors,
)
from tenfold import UserError

State = dict[str, Tensor]
GOLDEN = Path(__file__).parent / "golden"


def test_tensors_are_read_from_either_format_and_unwrapped(tmp_path: Path) -> None:
    tensors = {"module.a": torch.ones(2), "b": torch.zeros(1)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert read_tensors(tmp_path / name).keys() == {"a", "b"}


class Surprise:
    """What must never be run."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("unpickled",)


def test_files_that_are_no_weights_are_refused_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"garbage")
    (tmp_path / "w.safetensors").write_bytes(b"garbage")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Surprise(), protocol=2))
    torch.save({"weights": Surprise()}, tmp_path / "zip.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("w.pth", "w.safetensors", "code.pth", "zip.pth", "list.pth", "missing.pth"):
        with pytest.raises(UserError, match=name):
            read_tensors(tmp_path / name)


def test_old_xception_files_are_brought_to_current_names(tmp_path: Path) -> None:
    old = {
        "last_linear.1.weight": torch.ones(2, 3),
        "adjust_channel.0.weight": torch.ones(1),
        "block1.rep.0.pointwise.weight": torch.ones(4, 5),
        "conv1.weight": torch.ones(1, 3, 1, 1),
    }
    torch.save(old, tmp_path / "w.pth")
    state = read_backbone(tmp_path / "w.pth")
    assert state.keys() == {"fc.weight", "block1.rep.0.pointwise.weight", "conv1.weight"}
    assert state["block1.rep.0.pointwise.weight"].shape == (4, 5, 1, 1)


def test_missing_download_names_the_local_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("torchvision.models.vgg19", offline)
    for name in ("legacy_xception", "vgg19"):
        with pytest.raises(UserError, match="pretrained=PATH"):
            imagenet_backbone(name)


def test_detector_is_never_left_at_random_when_weights_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        create_detector("capsule", pretrained=tmp_path / "missing.safetensors", in_size=32)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="not the weights of a VGG-19"):
        create_detector("capsule", pretrained=tmp_path / "part.safetensors", in_size=32)


# ---------------------------------------------------------------------------------------------------------- DeepfakeBench

XCEPTION_NAMES = [("net.fc.", "backbone.last_linear."), ("net.", "backbone.")]
OFFICIAL_NAMES: dict[str, list[tuple[str, str]]] = {
    "xception": XCEPTION_NAMES,
    "core": XCEPTION_NAMES,
    "spsl": XCEPTION_NAMES,
    "dag-fdd": XCEPTION_NAMES,
    "daw-fdd": XCEPTION_NAMES,
    "f3net": XCEPTION_NAMES,
    "ffd": [("attention.conv1.", "map.c.c."), ("attention.pointwise.", "map.c.pointwise."), *XCEPTION_NAMES],
    "recce": [
        ("encoder.", "model.encoder."),
        ("decoder.up1.", "model.decoder1."),
        ("decoder.block1.", "model.decoder2."),
        ("decoder.up2.", "model.decoder3."),
        ("decoder.block2.", "model.decoder4."),
        ("decoder.up3.", "model.decoder5."),
        ("decoder.to_rgb.", "model.decoder6."),
        ("reasoning.node_embedding.", "model.reasoning.va_embedding."),
        ("reasoning.first.gate.", "model.reasoning.va_gated_b.0."),
        ("reasoning.second.gate.", "model.reasoning.va_gated_c.0."),
        ("reasoning.first.embedding.", "model.reasoning.vb_embedding."),
        ("reasoning.second.embedding.", "model.reasoning.vc_embedding."),
        ("reasoning.first.affinity.", "model.reasoning.reweight_ab.0."),
        ("reasoning.second.affinity.", "model.reasoning.reweight_ac.0."),
        ("reasoning.reproject.", "model.reasoning.reproject."),
        ("attention.gate.", "model.attention.gated."),
        ("attention.project.", "model.attention.h."),
        ("fc.", "model.fc."),
    ],
    "ucf": [
        ("encoder_f.adjust.", "encoder_f.adjust_channel."),
        ("encoder_c.adjust.", "encoder_c.adjust_channel."),
        ("encoder_f.net.", "encoder_f."),
        ("encoder_c.net.", "encoder_c."),
        ("block_spe.", "block_spe.conv2d."),
        ("block_sha.", "block_sha.conv2d."),
        ("decoder.stages.0.", "con_gan.dconv_up3."),
        ("decoder.stages.1.", "con_gan.dconv_up2."),
        ("decoder.stages.2.", "con_gan.dconv_up1."),
        ("decoder.to_rgb.", "con_gan.conv_last."),
    ],
    "srm": [
        ("rgb.fc.", "backbone_rgb.last_linear.1."),
        ("rgb.", "backbone_rgb."),
        ("noise.", "backbone_srm."),
        ("srm1.project.", "srm_conv1.out_conv."),
        ("srm2.project.", "srm_conv2.out_conv."),
        ("spatial.stem.", "srm_sa.conv."),
        ("spatial.score.", "srm_sa.pa.conv."),
        ("after_spatial.", "srm_sa_post."),
        *(
            (f"exchange{ours}.{new}", f"dual_cma{ours - 1}.{old}")
            for ours in (1, 2)
            for new, old in (
                ("key_x", "key_conv1"),
                ("key_y", "key_conv2"),
                ("key_shared", "key_conv_share"),
                ("energy_x", "linear1"),
                ("energy_y", "linear2"),
                ("value_x", "value_conv1"),
                ("value_y", "value_conv2"),
                ("gamma_x", "gamma1"),
                ("gamma_y", "gamma2"),
            )
        ),
        ("fusion.project.", "fusion.convblk."),
        ("fusion.attention.mlp.", "fusion.ca.sharedMLP."),
    ],
}
LEFT_OVER: dict[str, tuple[str, ...]] = {
    "xception": ("backbone.adjust_channel.0.weight",),
    "f3net": ("FAD_head._DCT_all", "FAD_head._DCT_all_T", "FAD_head.filters.0.base"),
    "recce": ("model.encoder.fc.weight",),
    "ucf": ("encoder_f.last_linear.weight",),
    "srm": ("srm_conv0.kernel", "srm_sa.srm.kernel", "backbone_srm.last_linear.weight", "blur.weight"),
}


def official_state(name: str) -> tuple[State, State]:
    """A detector's tensors, and the same under DeepfakeBench's names with what it keeps besides. No memory is used."""
    with torch.device("meta"):
        own = create_detector(name).state_dict()
        official = {key: torch.empty(1) for key in LEFT_OVER.get(name, ())}
    for key, value in own.items():
        new = next((old + key.removeprefix(ours) for ours, old in OFFICIAL_NAMES[name] if key.startswith(ours)), key)
        official[new] = value
    if name == "f3net":
        filters = official.pop("fad.learnable")
        official |= {f"FAD_head.filters.{band}.learnable": filters[band] for band in range(4)}
    return own, official


@pytest.mark.parametrize("name", list(OFFICIAL_NAMES))
def test_deepfakebench_names_become_ours(name: str) -> None:
    own, official = official_state(name)
    converted = from_deepfakebench(official, name)
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in own.items()}


def test_golden_module_names_are_those_that_the_converter_knows() -> None:
    prefixes = {"sep": "srm_conv1", "dcma": "dual_cma0", "pa": "srm_sa", "ffm": "fusion"}
    with np.load(GOLDEN / "srm_modules.npz") as golden:
        entries = [entry for entry in golden.files if "_w__" in entry]
    names = {f"{prefixes[entry.split('_w__')[0]]}.{entry.split('_w__')[1].replace('__', '.')}" for entry in entries}
    converted = from_deepfakebench({name: torch.zeros(()) for name in names}, "srm")
    with torch.device("meta"):
        own = create_detector("srm").state_dict().keys()
    assert converted.keys() <= own
    with np.load(GOLDEN / "ffd_recce_ucf_modules.npz") as golden:
        graph = {
            entry.replace("gr_w__", "model.reasoning.").replace("__", ".") for entry in golden.files if "gr_w" in entry
        }
        gate = {
            entry.replace("ga_w__", "model.attention.").replace("__", ".") for entry in golden.files if "ga_w" in entry
        }
    with torch.device("meta"):
        own = create_detector("recce").state_dict().keys()
    assert from_deepfakebench({name: torch.zeros(()) for name in graph | gate}, "recce").keys() <= own


def test_ten_separate_capsules_load_as_groups_and_give_the_same_vectors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    capsules = [
        nn.ModuleDict(
            {
                "0": nn.Conv2d(256, 64, 3, padding=1),
                "1": nn.BatchNorm2d(64),
                "3": nn.Conv2d(64, 16, 3, padding=1),
                "4": nn.BatchNorm2d(16),
                "7": nn.Conv1d(2, 8, 5, stride=2, padding=2),
                "8": nn.BatchNorm1d(8),
                "9": nn.Conv1d(8, 1, 3, padding=1),
                "10": nn.BatchNorm1d(1),
            }
        ).eval()
        for _ in range(CAPSULES)
    ]
    detector = CapsuleDetector(in_size=32).eval()
    state = {f"net.vgg_ext.vgg_1.{key}": value for key, value in detector.vgg.state_dict().items()}
    state |= {
        f"net.fea_ext.capsules.{number}.{key}": value
        for number, capsule in enumerate(capsules)
        for key, value in capsule.state_dict().items()
    }
    routing = torch.randn_like(detector.route_weights)
    torch.save(state | {"net.routing_stats.route_weights": routing}, tmp_path / "capsule.pth")
    load_deepfakebench(detector, tmp_path / "capsule.pth")
    h = torch.randn(2, 256, 4, 4)
    with torch.no_grad():
        vectors = []
        for capsule in capsules:
            maps = capsule["4"](capsule["3"](capsule["1"](capsule["0"](h)).relu())).relu()
            vectors.append(capsule["10"](capsule["9"](capsule["8"](capsule["7"](statistics(maps))))).flatten(1))
        expected = squash(torch.stack(vectors, dim=2))
        assert torch.allclose(detector.primary(h), expected, atol=1e-5)
    assert torch.equal(detector.route_weights, routing)


def test_checkpoints_that_do_not_fit_are_refused_and_rename_rules_help(tmp_path: Path) -> None:
    detector = CapsuleDetector(in_size=32)
    state = detector.state_dict()
    torch.save({"odd." + key: value for key, value in state.items()}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"does not fit capsule \(\d+ tensors missing, \d+ unknown"):
        load_deepfakebench(detector, tmp_path / "odd.pth")
    load_deepfakebench(detector, tmp_path / "odd.pth", rename=[(r"odd\.", "")])
    with pytest.raises(UserError, match="no converter"):
        from_deepfakebench({}, "small")
    assert "capsule" in DEEPFAKEBENCH
