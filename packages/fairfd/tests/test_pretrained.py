"""Reading weights from elsewhere: files of several kinds, old names, DeepfakeBench's detectors; never a silent random start."""

import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file

from fairfd.models.detectors import create_detector
from fairfd.models.detectors.capsule import CapsuleDetector
from fairfd.models.detectors.pretrained import (
    DEEPFAKEBENCH,
    from_deepfakebench,
    imagenet_backbone,
    load_deepfakebench,
    read_backbone,
    read_tensors,
)
from tenfold import UserError


def test_tensors_are_read_from_either_format_and_unwrapped(tmp_path: Path) -> None:
    tensors = {
        "module.a": torch.ones(2),
        "b": torch.zeros(1),
        "module.module.c": torch.zeros(1),
        "n_averaged": torch.ones(()),
    }
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert read_tensors(tmp_path / name).keys() == {"a", "b", "c"}


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
