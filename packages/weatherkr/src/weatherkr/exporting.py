"""Models to other formats, and the official checkpoints to ours."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.files import atomic_path
from weatherkr.network import GROUPS, WeatherNet, normalize
from weatherkr.state import fill

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
    if out.exists():
        raise UserError(f"{out}: exists; choose another --out")
    if kind == "safetensors":
        stored = WeatherNet(net.dim, net.blocks, net.residual, net.shuffle)
        stored.load_state_dict(net.state_dict())
        (stored.half() if half else stored).save_pretrained(out)
        return
    if half:
        raise UserError(f"--half: {kind} models keep float32 weights; use --format safetensors")
    height, width = (torch.export.Dim(name, min=2, max=4096) * net.shuffle for name in ("rows", "columns"))
    example = torch.rand(1, 3, 16 * net.shuffle, 24 * net.shuffle)
    with torch.no_grad():
        program = torch.export.export(ImageToImage(net), (example,), dynamic_shapes={"image": {2: height, 3: width}})
    with atomic_path(out) as temporary:
        if kind == "pt2":
            torch.export.save(program, temporary)
        else:
            _write_onnx(program, temporary)


def _write_onnx(program: "torch.export.ExportedProgram", path: Path) -> None:
    if importlib.util.find_spec("onnxscript") is None:
        raise UserError("--format onnx: needs the extra weatherkr[onnx]")
    torch.onnx.export(program, (), path, external_data=False, dynamo=True)


def import_official(path: Path) -> WeatherNet:
    """Read a checkpoint of the official code (`ffa_best.pk`): a dictionary with the weights under `model`.

    Raises:
        UserError: missing, not loadable without running code from it, or of another network (FFA-Net's own do not fit).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # whatever a wrong file makes the unpickler raise
        raise UserError(
            f"{path}: refused, it holds more than weights or is damaged ({str(error).splitlines()[0]})"
        ) from None
    weights = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(weights, dict) or "pre.0.weight" not in weights:
        raise UserError(f"{path}: holds no weights of this network (no tensor pre.0.weight)")
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    deepest = max((int(name.split(".")[2]) for name in weights if name.startswith("g1.gp.")), default=1)
    net = WeatherNet(weights["pre.0.weight"].shape[0], deepest)
    if weights["post.0.weight"].shape[1] != GROUPS * net.dim:
        raise UserError(
            f"{path}: the tensor post.0.weight has shape {tuple(weights['post.0.weight'].shape)}; not this network"
        )
    fill(net, weights, path)
    return net.eval()
