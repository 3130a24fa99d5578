"""Models to other formats, and the official checkpoints to ours."""

import importlib.util
import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.checkpoints import read_state_dict
from tenfold.errors import UserError
from tenfold.files import atomic_folder, atomic_path, check_writable
from weatherkr.models.networks import GROUPS, WeatherNet, normalize
from weatherkr.training.state import NetworkSizes, network_of

Format = Literal["safetensors", "pt2", "onnx"]


class ImageToImage(nn.Module):
    """A network with its normalisation and its clamp: [0, 1] to [0, 1], for programs that know nothing of either.

    Args:
        net: the network.
    """

    def __init__(self, net: WeatherNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Restore (b, 3, h, w) in [0, 1]."""
        return self.net(normalize(image)).clamp(0, 1)


def export_model(net: WeatherNet, out: Path, kind: Format = "safetensors", half: bool = False) -> None:
    """Write a network for use elsewhere.

    Args:
        net: the network.
        out: a folder for `safetensors`, a file otherwise.
        kind: `safetensors`: configuration and weights, what `load_model` reads; `pt2`: torch.export, any height and width (multiples
            of `shuffle`); `onnx`: the same through ONNX, with the extra `onnx`.
        half: store weights in half precision; they are computed with in float32 again.

    Raises:
        UserError: a place that exists already, or an extra that is missing.
    """
    net = net.cpu().eval()
    check_export(out, kind, half)
    if kind == "safetensors":
        stored = WeatherNet(net.dim, net.blocks, net.residual, net.shuffle)
        stored.load_state_dict(net.state_dict())
        with atomic_folder(out) as temporary:
            (stored.half() if half else stored).save_pretrained(temporary)
        return
    height, width = (torch.export.Dim(name, min=2, max=4096) * net.shuffle for name in ("rows", "columns"))
    example = torch.rand(1, 3, 16 * net.shuffle, 24 * net.shuffle)
    with torch.no_grad():
        program = torch.export.export(ImageToImage(net), (example,), dynamic_shapes={"image": {2: height, 3: width}})
    with atomic_path(out) as temporary:
        if kind == "pt2":
            torch.export.save(program, temporary)
        else:
            _write_onnx(program, temporary)


def check_export(out: Path, kind: Format = "safetensors", half: bool = False) -> None:
    """Refuse an export that cannot be written, before a model is read for it.

    Raises:
        UserError: a place that exists already or cannot be written, half precision where there is none, or a missing extra.
    """
    if out.exists():
        raise UserError(f"{out}: exists; choose another --out")
    if half and kind != "safetensors":
        raise UserError(f"--half: {kind} models keep float32 weights; use --format safetensors")
    if kind == "onnx" and importlib.util.find_spec("onnxscript") is None:
        raise UserError("--format onnx: needs the extra weatherkr[onnx]")
    check_writable(out)


def _write_onnx(program: "torch.export.ExportedProgram", path: Path) -> None:
    torch.onnx.export(program, (), path, external_data=False, dynamo=True)


def import_official(path: Path) -> WeatherNet:
    """Read a checkpoint of the official code (`ffa_best.pk`): a dictionary with the weights under `model`.

    Raises:
        UserError: missing, not loadable without running code from it, or of another network (FFA-Net's own do not fit).
    """
    weights = read_state_dict(path, ("model",))
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if not {"pre.0.weight", "post.0.weight"} <= weights.keys() or weights["pre.0.weight"].ndim != 4:
        raise UserError(f"{path}: holds no weights of this network (no tensor pre.0.weight)")
    dim = weights["pre.0.weight"].shape[0]
    if weights["post.0.weight"].shape[1:2] != (GROUPS * dim,):
        raise UserError(
            f"{path}: the tensor post.0.weight has shape {tuple(weights['post.0.weight'].shape)}; not this network"
        )
    numbers = [int(found[1]) for name in weights if (found := re.match(r"g1\.gp\.(\d{1,6})\.", name))]
    return network_of(NetworkSizes(dim, max(numbers, default=1)), weights, path)
