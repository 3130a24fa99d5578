"""Weights from elsewhere: ImageNet backbones, and whole detectors trained in DeepfakeBench.

Files are safetensors, or PyTorch files read with `weights_only=True`: nothing is unpickled. A file that does not fit names
what is missing; no tensor is left at its random start in silence.

How sure the names of DeepfakeBench's tensors are: those of the SRM modules, FFD's mask, RECCE's graph and attention come
from reference tensors of the modules themselves; those of the plain Xception from the rename that gives bit-equal outputs;
the attributes that hold the modules (`backbone_rgb`, `dual_cma0`, `con_gan`, ...) from the public source. A checkpoint that
names them otherwise is refused with the list of names, and `rename` takes further rules.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fairfd.models.detectors.detector import Detector
from tenfold import UserError
from tenfold.checkpoints import read_state_dict

State = dict[str, Tensor]
Rule = tuple[str, str | None]
"""A regular expression on a tensor's name and what it becomes; None drops the tensor."""


def read_tensors(path: str | Path) -> State:
    """All tensors of a weights file, by name.

    Args:
        path: `.safetensors`, or a PyTorch file (`.pth`, `.pt`, `.bin`, `.ckpt`) that holds a plain state dict, possibly under
            `state_dict` or `model`. A `module.` prefix is dropped.

    Raises:
        UserError: no such file, a damaged one, or one that holds more than tensors.
    """
    return {key.removeprefix("module."): value for key, value in read_state_dict(path).items()}


# ---------------------------------------------------------------------------------------------------------- backbones


def read_backbone(path: str | Path) -> State:
    """ImageNet weights of a backbone from a file, under the names that `Detector.load_backbone` expects.

    Older Xception files name the classifier `last_linear`, have an `adjust_channel` layer and store pointwise convolutions
    as matrices; all three are put right.

    Raises:
        UserError: see `read_tensors`.
    """
    state = {}
    for key, value in read_tensors(path).items():
        if key.startswith("adjust_channel."):
            continue
        name = re.sub(r"^last_linear(\.1)?\.", "fc.", key)
        state[name] = value[..., None, None] if "pointwise" in name and value.ndim == 2 else value
    return state


def imagenet_backbone(name: str) -> State:
    """ImageNet weights of a backbone from timm's or torchvision's address, or their cache.

    Args:
        name: `legacy_xception`, `vgg19`, or any timm model.

    Raises:
        UserError: they cannot be had here.
    """
    import timm
    import torchvision

    try:
        if name == "vgg19":
            return torchvision.models.vgg19(weights="IMAGENET1K_V1").state_dict()
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        # Every way in which a download fails is one of these; a model without weights is a RuntimeError.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise UserError(
            f"pretrained: the ImageNet weights of {name} cannot be downloaded here ({reason}); fetch the file elsewhere "
            "and give its path as pretrained=PATH, or train from scratch with pretrained unset"
        ) from None


# ------------------------------------------------------------------------------------------------------ DeepfakeBench

_CLASSIFIER: Rule = (r"(?:\w+\.)?last_linear(?:\.1)?\.", "net.fc.")
_XCEPTION: Sequence[Rule] = (
    (r"(?:\w+\.)?adjust_channel\.", None),
    (r"loss_func\.", None),
    _CLASSIFIER,
    (r"(?:\w+\.)?((?:conv|bn|block)\d+\.)", r"net.\1"),
)

DEEPFAKEBENCH: Mapping[str, Sequence[Rule]] = {
    "xception": _XCEPTION,
    "core": _XCEPTION,
    "spsl": _XCEPTION,
    "dag-fdd": _XCEPTION,
    "daw-fdd": _XCEPTION,
    "f3net": (
        (r"FAD_head\.filters\.(\d)\.learnable", r"fad.learnable.\1"),
        (r"FAD_head\.", None),
        *_XCEPTION,
    ),
    "ffd": (
        (r"(?:\w+\.)*c\.c\.", "attention.conv1."),
        (r"(?:\w+\.)*c\.pointwise\.", "attention.pointwise."),
        *_XCEPTION,
    ),
    "recce": (
        (r"(?:model\.)?encoder\.fc\.", None),
        (r"(?:model\.)?encoder\.", "encoder."),
        (r"(?:model\.)?decoder1\.", "decoder.up1."),
        (r"(?:model\.)?decoder2\.", "decoder.block1."),
        (r"(?:model\.)?decoder3\.", "decoder.up2."),
        (r"(?:model\.)?decoder4\.", "decoder.block2."),
        (r"(?:model\.)?decoder5\.", "decoder.up3."),
        (r"(?:model\.)?decoder6\.", "decoder.to_rgb."),
        (r"(?:model\.)?reasoning\.va_embedding\.", "reasoning.node_embedding."),
        (r"(?:model\.)?reasoning\.va_gated_b\.0\.", "reasoning.first.gate."),
        (r"(?:model\.)?reasoning\.va_gated_c\.0\.", "reasoning.second.gate."),
        (r"(?:model\.)?reasoning\.vb_embedding\.", "reasoning.first.embedding."),
        (r"(?:model\.)?reasoning\.vc_embedding\.", "reasoning.second.embedding."),
        (r"(?:model\.)?reasoning\.reweight_ab\.0\.", "reasoning.first.affinity."),
        (r"(?:model\.)?reasoning\.reweight_ac\.0\.", "reasoning.second.affinity."),
        (r"(?:model\.)?reasoning\.reproject\.", "reasoning.reproject."),
        (r"(?:model\.)?attention\.gated\.", "attention.gate."),
        (r"(?:model\.)?attention\.h\.", "attention.project."),
        (r"(?:model\.)?fc\.", "fc."),
        (r"loss_func\.", None),
    ),
    "ucf": (
        (r"encoder_([fc])\.adjust_channel\.", r"encoder_\1.adjust."),
        (r"encoder_([fc])\.last_linear\.", None),
        (r"encoder_([fc])\.", r"encoder_\1.net."),
        (r"block_(spe|sha)\.conv2d\.", r"block_\1."),
        (r"head_(spe|sha)\.mlp\.", r"head_\1.mlp."),
        (r"con_gan\.dconv_up3\.", "decoder.stages.0."),
        (r"con_gan\.dconv_up2\.", "decoder.stages.1."),
        (r"con_gan\.dconv_up1\.", "decoder.stages.2."),
        (r"con_gan\.conv_last\.", "decoder.to_rgb."),
        (r"loss_func\.", None),
    ),
    "srm": (
        (r"backbone_(?:rgb|srm)\.adjust_channel\.", None),
        (r"backbone_srm\.last_linear\.", None),
        (r"backbone_rgb\.last_linear(?:\.1)?\.", "rgb.fc."),
        (r"backbone_rgb\.", "rgb."),
        (r"backbone_srm\.", "noise."),
        (r"(?:srm_conv\d|srm_sa\.srm)\.kernel", None),
        (r"(?:noise|blur)\.", None),
        (r"srm_conv([12])\.out_conv\.", r"srm\1.project."),
        (r"srm_sa\.conv\.", "spatial.stem."),
        (r"srm_sa\.pa\.conv\.", "spatial.score."),
        (r"srm_sa_post\.", "after_spatial."),
        (r"dual_cma0\.", "exchange1."),
        (r"dual_cma1\.", "exchange2."),
        (r"fusion\.convblk\.", "fusion.project."),
        (r"fusion\.ca\.sharedMLP\.", "fusion.attention.mlp."),
        (r"loss_func\.", None),
    ),
    "capsule": (
        (r"(?:\w+\.)*vgg_1\.(\d+)\.", r"vgg.\1."),
        (r"(?:\w+\.)*capsules\.(\d+)\.(\d+)\.", r"primary.\1.\2."),
        (r"(?:\w+\.)*route_weights", "route_weights"),
        (r"loss_func\.", None),
    ),
}
"""How DeepfakeBench's tensor names become ours; the first rule that matches a name's beginning decides."""

_EXCHANGE: Mapping[str, str] = {
    "key_conv1": "key_x",
    "key_conv2": "key_y",
    "key_conv_share": "key_shared",
    "linear1": "energy_x",
    "linear2": "energy_y",
    "value_conv1": "value_x",
    "value_conv2": "value_y",
    "gamma1": "gamma_x",
    "gamma2": "gamma_y",
}


def _rename(name: str, rules: Sequence[Rule]) -> str | None:
    for pattern, replacement in rules:
        if match := re.match(pattern, name):
            return None if replacement is None else match.expand(replacement) + name[match.end() :]
    return name


def _stacked_filters(state: State) -> State:
    """F3-Net's four filters as one tensor."""
    names = [f"fad.learnable.{band}" for band in range(4)]
    if not all(name in state for name in names):
        return state
    rest = {key: value for key, value in state.items() if key not in names}
    return rest | {"fad.learnable": torch.stack([state[name] for name in names])}


def _exchange_names(state: State) -> State:
    """The inner names of SRM's two cross-modal attentions."""

    def renamed(name: str) -> str:
        parts = name.split(".")
        if parts[0] in ("exchange1", "exchange2"):
            parts[1] = _EXCHANGE.get(parts[1], parts[1])
        return ".".join(parts)

    return {renamed(key): value for key, value in state.items()}


_CAPSULE_LAYERS: Mapping[str, str] = {
    "0": "maps.0",
    "1": "maps.1",
    "3": "maps.3",
    "4": "maps.4",
    "7": "vectors.0",
    "8": "vectors.1",
    "9": "vectors.2",
    "10": "vectors.3",
}


def _grouped_capsules(state: State) -> State:
    """The ten primary capsules as the groups of grouped convolutions; their batch counters are one."""
    grouped: dict[str, dict[int, Tensor]] = {}
    rest = {}
    for key, value in state.items():
        match = re.fullmatch(r"primary\.(\d+)\.(\d+)\.(\w+)", key)
        if match and match[2] in _CAPSULE_LAYERS:
            grouped.setdefault(f"primary.{_CAPSULE_LAYERS[match[2]]}.{match[3]}", {})[int(match[1])] = value
        else:
            rest[key] = value
    for name, capsules in grouped.items():
        ordered = [capsules[number] for number in sorted(capsules)]
        rest[name] = ordered[0] if ordered[0].ndim == 0 else torch.cat(ordered)
    return rest


_REARRANGE: Mapping[str, Callable[[State], State]] = {
    "f3net": _stacked_filters,
    "srm": _exchange_names,
    "capsule": _grouped_capsules,
}


def from_deepfakebench(state: State, name: str, rename: Sequence[Rule] = ()) -> State:
    """A DeepfakeBench detector's tensors under our names.

    Args:
        state: its state dict.
        name: our name of the detector.
        rename: rules tried before the built-in ones.

    Raises:
        UserError: a detector that has no rules.
    """
    if name not in DEEPFAKEBENCH:
        raise UserError(f"{name}: no converter from DeepfakeBench; there is one for {', '.join(DEEPFAKEBENCH)}")
    rules = (*rename, *DEEPFAKEBENCH[name])
    converted = {new: value for old, value in state.items() if (new := _rename(old, rules)) is not None}
    return _REARRANGE.get(name, dict)(converted)


def load_deepfakebench(detector: Detector, path: str | Path, rename: Sequence[Rule] = ()) -> None:
    """Load a whole detector trained in DeepfakeBench.

    Args:
        detector: of the same kind as the checkpoint.
        path: the checkpoint.
        rename: rules tried before the built-in ones, for checkpoints with other names.

    Raises:
        UserError: tensors are missing, left over or of another shape; the message names the first of them.
    """
    state = from_deepfakebench(read_tensors(path), detector.name, rename)
    own = detector.state_dict()
    missing = sorted(key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked"))
    unknown = sorted(state.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unknown or misshapen:
        names = ", ".join([*missing[:2], *unknown[:2], *misshapen[:2]])
        raise UserError(
            f"{path}: does not fit {detector.name} ({len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(misshapen)} of another shape: {names}); give rename rules if its names differ"
        )
    detector.load_state_dict(state, strict=False)
