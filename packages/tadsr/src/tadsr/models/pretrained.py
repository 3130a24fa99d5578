"""Public checkpoints: ResShift's, SinSR's and TAD-SR's UNets and their VQ autoencoders, read without unpickling code.

Their weights carry non-commercial licences (ResShift: S-Lab License 1.0; SinSR: CC BY-NC-SA 4.0): converting does not change that.
"""

import re
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor

from tadsr.config import Family
from tadsr.models.autoencoders import FaceVQModel, vq_f4
from tadsr.models.checkpoints import filled
from tadsr.models.diffusion import ResShiftScheduler
from tadsr.models.networks import ResShiftUNet
from tenfold import UserError
from tenfold.checkpoints import load_weights, read_state_dict

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
        UserError: missing, damaged, holds code, no weights, or numbers that are NaN or infinite.
    """
    state = clean(read_state_dict(path))
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise UserError(f"{path}: {broken[0]} holds numbers that are NaN or infinite")
    return state


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
    options = FAMILIES[family] if isinstance(family, str) else family
    try:
        return filled(lambda: ResShiftUNet(**options), state, _name(source))
    except UserError as error:
        raise UserError(f"{error}{_guess(state)}") from None


def _name(source: Path | StateDict) -> str:
    return str(source) if isinstance(source, Path) else "checkpoint"


def _guess(state: StateDict) -> str:
    first = state.get("input_blocks.0.0.weight")
    fitting = {6: "realsrx4", 136: "faceir"}.get(first.shape[1] if first is not None and first.ndim == 4 else 0)
    return f"; its first layer fits --family {fitting}" if fitting else ""


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
    build = FaceVQModel if levels == 4 else vq_f4
    with init_empty_weights():
        target = (model or build()).state_dict()
    renamed = {}
    for key, value in state.items():
        name = vq_key(key, levels)
        squeeze = name in target and target[name].ndim == 2 and value.ndim == 4
        renamed[name] = value[:, :, 0, 0] if squeeze else value
    if model is None:
        return filled(build, renamed, _name(source))
    load_weights(model, renamed, _name(source))
    return model.eval()
