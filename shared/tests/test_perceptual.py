"""LPIPS from files of AlexNet's weights."""

import pickle
from pathlib import Path

import pytest
import torch
from torchvision.models import alexnet

from tenfold.errors import UserError
from tenfold.perceptual import lpips_network


def test_alexnet_is_read_from_either_file_and_no_code_of_it_is_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    convolutions = {f"features.{name}": value for name, value in alexnet().features.state_dict().items()}
    torch.save(convolutions, tmp_path / "alexnet.pth")
    layers = {}
    for number, index in enumerate((0, 3, 6, 8, 10)):
        weight, bias = (convolutions[f"features.{index}.{each}"] for each in ("weight", "bias"))
        layers[f"Conv_{number}"] = {"kernel": weight.permute(2, 3, 1, 0).numpy(), "bias": bias.numpy()}
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": layers}))
    one = torch.rand(2, 3, 64, 64)
    other = (one + 0.2 * torch.rand_like(one)).clamp(0, 1)
    first, second = (
        lpips_network(tmp_path / f"alexnet.{suffix}")(one, other, normalize=True) for suffix in ("pth", "ckpt")
    )
    assert first.shape == (2, 1, 1, 1)
    assert (first > 0).all()
    assert torch.allclose(first, second, rtol=1e-5)
    assert not lpips_network(tmp_path / "alexnet.pth")(one, one, normalize=True).any()
    (tmp_path / "code.ckpt").write_bytes(f"cos\nsystem\n(S'touch {tmp_path / 'ran'}'\ntR.".encode())
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "bad.safetensors").write_bytes(b"no header")
    for name in ("bad.safetensors", "code.ckpt", "other.pth", "text.pth", "nowhere.ckpt", "nowhere.pth"):
        with pytest.raises(UserError, match=name):
            lpips_network(tmp_path / name)
    assert not (tmp_path / "ran").exists()
