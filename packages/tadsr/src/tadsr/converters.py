"""Public checkpoints: ResShift's, SinSR's and TAD-SR's UNets and their VQ autoencoders, read without unpickling code.

Their weights carry non-commercial licences (ResShift: S-Lab License 1.0; SinSR: CC BY-NC-SA 4.0): converting does not change that.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor

from tadsr.autoencoders import FaceVQModel, vq_f4
from tadsr.diffusion import ResShiftScheduler
from tadsr.networks import ResShiftUNet
from tadsr.recipes import Family
from tenfold import UserError

FAMILIES: dict[str, dict[str, Any]] = {
    "realsrx4": {},
    "realsrx4-s4": {},
    "bicsrx4": {},
    "faceir": {"in_channels": 8, "out_channels": 8, "lq_size": 512},
}
LICENCE = "ResShift's weights are under the S-Lab License 1.0, SinSR's under CC BY-NC-SA 4.0: non-commercial use only"
StateDict = dict[str, Tensor]


def scheduler_of(family: Family, trained_with_clamp: bool = False) -> ResShiftScheduler:
    """The chain that a family of checkpoints was trained with: 15 steps for realsrx4 (v1, v2, SinSR, TAD-SR), else 4.

    Args:
        family: the family.
        trained_with_clamp: SinSR's and TAD-SR's code bounds sqrt(eta_0) by sqrt(0.001), which matters for 4 steps only.
    """
    clamp = 0.001**0.5 if trained_with_clamp else None
    if family == "realsrx4":
        return ResShiftScheduler(start_clamp=clamp)
    return ResShiftScheduler(num_train_timesteps=4, min_noise_level=0.2, start_clamp=clamp)


def read_checkpoint(path: Path) -> StateDict:
    """The tensors of a checkpoint: `state_dict` unwrapped, prefixes of wrappers removed, derived buffers left out.

    Raises:
        UserError: missing, not a checkpoint, or one that holds pickled code.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint of plain tensors ({str(error).splitlines()[0]})") from None
    while isinstance(loaded, dict) and "state_dict" in loaded:
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path}: holds no state dict")
    return clean(loaded)


def clean(state: StateDict) -> StateDict:
    """Without `module.` and `_orig_mod.` prefixes, without `relative_position_index` and `attn_mask` buffers."""
    named = {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in state.items()}
    return {key: value for key, value in named.items() if not key.endswith(("relative_position_index", "attn_mask"))}


def unet_from_resshift(source: Path | StateDict, family: Family | dict[str, Any] = "realsrx4") -> ResShiftUNet:
    """A UNet with the weights of a public checkpoint.

    Args:
        source: the file, or its tensors.
        family: the family, or a configuration of `ResShiftUNet`.

    Raises:
        UserError: other keys or shapes; the message names the first of them and the family that would fit.
    """
    state = read_checkpoint(source) if isinstance(source, Path) else clean(source)
    if any(key.startswith(("encoder.", "decoder.", "quantize.")) for key in state):
        raise UserError(f"{_name(source)}: is an autoencoder; give it as --vae")
    unet = ResShiftUNet(**(FAMILIES[family] if isinstance(family, str) else family))
    load_strictly(unet, state, _name(source), _guess(state))
    return unet.eval()


def _name(source: Path | StateDict) -> str:
    return str(source) if isinstance(source, Path) else "checkpoint"


def _guess(state: StateDict) -> str:
    first = state.get("input_blocks.0.0.weight")
    fitting = {6: "realsrx4", 136: "faceir"}.get(first.shape[1] if first is not None and first.ndim == 4 else 0)
    return f"; its first layer fits --family {fitting}" if fitting else ""


def load_strictly(module: torch.nn.Module, state: StateDict, name: str, hint: str = "") -> None:
    """Load a state dict whose keys and shapes must be exactly the module's.

    Raises:
        UserError: they are not.
    """
    mine = {key: value.shape for key, value in module.state_dict().items()}
    missing, unexpected = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
    reshaped = sorted(key for key in mine.keys() & state.keys() if mine[key] != state[key].shape)
    faults = [
        f"{what} {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if faults:
        raise UserError(f"{name}: not weights of this network ({'; '.join(faults)}){hint}")
    module.load_state_dict(state)


def vq_key(key: str, levels: int) -> str:
    """The name in `diffusers.VQModel` of a parameter of the original autoencoder."""

    def upper(match: re.Match[str]) -> str:
        return f"decoder.up_blocks.{levels - 1 - int(match[1])}."

    key = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", key)
    key = re.sub(r"^decoder\.up\.(\d+)\.", upper, key)
    key = re.sub(r"\.block\.(\d+)\.", r".resnets.\1.", key)
    key = re.sub(r"\.downsample\.", ".downsamplers.0.", key)
    key = re.sub(r"\.upsample\.", ".upsamplers.0.", key)
    key = re.sub(r"\.mid\.block_(\d)\.", lambda match: f".mid_block.resnets.{int(match[1]) - 1}.", key)
    parts = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    key = re.sub(r"\.mid\.attn_1\.(\w+)\.", lambda match: f".mid_block.attentions.0.{parts[match[1]]}.", key)
    return key.replace(".norm_out.", ".conv_norm_out.").replace(".nin_shortcut.", ".conv_shortcut.")


def vq_from_resshift(source: Path | StateDict, model: VQModel | None = None) -> VQModel:
    """A VQ autoencoder with the weights of a public checkpoint.

    Args:
        source: the file, or its tensors.
        model: the network to fill; the f4 or the face f8 one by default, whichever the weights fit.

    Raises:
        UserError: other keys or shapes, or the weights of a UNet.
    """
    state = read_checkpoint(source) if isinstance(source, Path) else clean(source)
    if any(key.startswith("input_blocks.") for key in state):
        raise UserError(f"{_name(source)}: is a UNet; give it as --unet")
    levels = 1 + max((int(match[1]) for key in state if (match := re.match(r"encoder\.down\.(\d+)\.", key))), default=0)
    if model is None:
        model = FaceVQModel() if levels == 4 else vq_f4()
    target = model.state_dict()
    renamed = {}
    for key, value in state.items():
        name = vq_key(key, levels)
        squeeze = name in target and target[name].ndim == 2 and value.ndim == 4
        renamed[name] = value[:, :, 0, 0] if squeeze else value
    load_strictly(model, renamed, _name(source))
    return model.eval()
