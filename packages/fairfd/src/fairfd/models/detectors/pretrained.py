"""Weights from elsewhere: ImageNet backbones, whole detectors trained in DeepfakeBench, MesoNet's Keras files.

Files are safetensors, or PyTorch files read with `weights_only=True`: nothing is unpickled. A file that does not fit names
what is missing; no tensor is left at its random start in silence.

The names of DeepfakeBench's tensors are those of its classes at commit 8a4a7bf, each of which gives the same logits here
with the same weights. Only DAG-FDD and DAW-FDD, which are not in DeepfakeBench, are taken to be named as its Xception. A
checkpoint that names its tensors otherwise is refused with the list of names, and `rename` takes further rules.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fairfd.models.detectors.compact import MESO_STRIDE, Meso4Detector
from fairfd.models.detectors.detector import Detector
from tenfold import UserError
from tenfold.checkpoints import read_state_dict

State = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]
"""A regular expression on the beginning of a tensor's name and what that becomes; None drops the tensor."""


def read_tensors(path: str | Path) -> State:
    """All tensors of a weights file, by name.

    Args:
        path: `.safetensors`, or a PyTorch file (`.pth`, `.pt`, `.bin`, `.ckpt`) that holds a plain state dict, possibly under
            `state_dict` or `model`. The `module.` that distributed and averaged models put in front is dropped, and so is
            the number of averaged models, `n_averaged`.

    Raises:
        UserError: no such file, a damaged one, or one that holds more than tensors.
    """
    tensors = {re.sub(r"^(?:module\.)+", "", key): value for key, value in read_state_dict(path).items()}
    tensors.pop("n_averaged", None)
    return tensors


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

_XCEPTION: Sequence[Rule] = (
    (r"backbone\.adjust_channel\.", None),
    # A dropout in front of the classifier makes it number 1 of two layers.
    (r"backbone\.last_linear(?:\.1)?\.", "net.fc."),
    (r"backbone\.", "net."),
)


def _inception_convolution(layer: str, branch: str, place: str | None) -> str:
    return f"layers.{int(layer) - 1}.branches.{int(branch) - 1}.{int(place or 1) - 1}."


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
        (r"map\.c\.", "attention."),
        *_XCEPTION,
    ),
    "recce": (
        # A plain Xception that the class builds and never calls, and the encoder's unused classifier.
        (r"backbone\.", None),
        (r"model\.encoder\.fc\.", None),
        (r"model\.encoder\.", "encoder."),
        (r"model\.decoder1\.", "decoder.up1."),
        (r"model\.decoder2\.", "decoder.block1."),
        (r"model\.decoder3\.", "decoder.up2."),
        (r"model\.decoder4\.", "decoder.block2."),
        (r"model\.decoder5\.", "decoder.up3."),
        (r"model\.decoder6\.", "decoder.to_rgb."),
        (r"model\.reasoning\.va_embedding\.", "reasoning.node_embedding."),
        (r"model\.reasoning\.va_gated_b\.0\.", "reasoning.first.gate."),
        (r"model\.reasoning\.va_gated_c\.0\.", "reasoning.second.gate."),
        (r"model\.reasoning\.vb_embedding\.", "reasoning.first.embedding."),
        (r"model\.reasoning\.vc_embedding\.", "reasoning.second.embedding."),
        (r"model\.reasoning\.reweight_ab\.0\.", "reasoning.first.affinity."),
        (r"model\.reasoning\.reweight_ac\.0\.", "reasoning.second.affinity."),
        (r"model\.reasoning\.reproject\.", "reasoning.reproject."),
        (r"model\.attention\.gated\.", "attention.gate."),
        (r"model\.attention\.h\.", "attention.project."),
        (r"model\.fc\.", "fc."),
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
    ),
    "srm": (
        (r"backbone_(?:rgb|srm)\.adjust_channel\.", None),
        (r"backbone_srm\.last_linear\.", None),
        (r"backbone_rgb\.last_linear\.", "rgb.fc."),
        (r"backbone_rgb\.", "rgb."),
        (r"backbone_srm\.", "noise."),
        (r"(?:srm_conv\d|srm_sa\.srm)\.kernel", None),
        (r"blur\.", None),
        (r"srm_conv([12])\.out_conv\.", r"srm\1.project."),
        (r"srm_sa\.conv\.", "spatial.stem."),
        (r"srm_sa\.pa\.conv\.", "spatial.score."),
        (r"srm_sa_post\.", "after_spatial."),
        (r"dual_cma0\.", "exchange1."),
        (r"dual_cma1\.", "exchange2."),
        (r"fusion\.convblk\.", "fusion.project."),
        (r"fusion\.ca\.sharedMLP\.", "fusion.attention.mlp."),
    ),
    "capsule": (
        (r"vgg_ext\.vgg_1\.", "vgg."),
        (r"fea_ext\.capsules\.", "primary."),
        (r"routing_stats\.", ""),
    ),
    "meso4": (
        (r"backbone\.conv([1-4])\.", lambda match: f"layers.convolutions.{int(match[1]) - 1}."),
        (r"backbone\.bn([12])\.", lambda match: f"layers.norms.{int(match[1]) - 1}."),
        (r"backbone\.", ""),
    ),
    "mesoinception4": (
        (r"backbone\.Incption([12])_bn\.", lambda match: f"layers.{int(match[1]) - 1}.bn."),
        (r"backbone\.Incption([12])_conv([1-4])(?:_([12]))?\.", lambda match: _inception_convolution(*match.groups())),
        (r"backbone\.conv([12])\.", lambda match: f"layers.2.convolutions.{int(match[1]) - 1}."),
        (r"backbone\.bn1\.", "layers.2.norms.0."),
        (r"backbone\.", ""),
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
            if replacement is None:
                return None
            beginning = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
            return beginning + name[match.end() :]
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
    _load_whole(detector, from_deepfakebench(read_tensors(path), detector.name, rename), path)


def _load_whole(detector: Detector, state: State, path: str | Path) -> None:
    own = detector.state_dict()
    missing = sorted(key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked"))
    unknown = sorted(state.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unknown or misshapen:
        names = ", ".join([*missing[:2], *unknown[:2], *misshapen[:2]])
        raise UserError(
            f"{path}: does not fit {detector.name} ({len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(misshapen)} of another shape: {names})"
        )
    detector.load_state_dict(state, strict=False)


# ------------------------------------------------------------------------------------------------------------ MesoNet

_KERAS_PARTS: Mapping[str, str] = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def load_mesonet(detector: Detector, path: str | Path) -> None:
    """Load the weights that MesoNet's authors publish for their Keras models, Meso4 and MesoInception4.

    Args:
        detector: `meso4` or `mesoinception4` with `variant="mesonet"`.
        path: the `.h5` file, from the authors' repository (DariusAf/MesoNet).

    Raises:
        UserError: another detector, h5py is not installed, or a file of another model.
    """
    if not isinstance(detector, Meso4Detector) or detector.variant != "mesonet":
        raise UserError(f"{detector.name}: mesonet:FILE is for meso4 and mesoinception4 with variant=mesonet")
    layers = read_keras(path)
    modules = _keras_order(detector)
    if [len(layers.get(kind, ())) for kind in modules] != [len(names) for names in modules.values()]:
        found = ", ".join(f"{len(each)} {kind}" for kind, each in layers.items())
        raise UserError(f"{path}: does not fit {detector.name} (it holds {found or 'no layers'})")
    state = {}
    for kind, names in modules.items():
        for name, layer in zip(names, layers[kind], strict=True):
            state |= {f"{name}.{_KERAS_PARTS.get(part, part)}": _from_keras(value) for part, value in layer.items()}
    side = detector.in_size // MESO_STRIDE
    if "fc1.weight" in state and state["fc1.weight"].shape == detector.fc1.weight.shape:
        # Keras flattens rows, columns, channels; torch channels, rows, columns.
        state["fc1.weight"] = state["fc1.weight"].unflatten(1, (side, side, -1)).permute(0, 3, 1, 2).flatten(1)
    _load_whole(detector, state, path)


def _keras_order(detector: Meso4Detector) -> dict[str, list[str]]:
    """The names of our layers of each kind in the order in which the authors' code makes theirs."""
    kinds = {"conv2d": nn.Conv2d, "batch_normalization": nn.BatchNorm2d, "dense": nn.Linear}
    return {
        kind: [name for name, module in detector.named_modules() if isinstance(module, each)]
        for kind, each in kinds.items()
    }


def _from_keras(value: Float[np.ndarray, "*s"]) -> Float[Tensor, "*s2"]:
    """A kernel (rows, columns, in, out) or matrix (in, out) with its axes in torch's order."""
    orders: dict[int, tuple[int, ...]] = {4: (3, 2, 0, 1), 2: (1, 0)}
    return torch.from_numpy(np.ascontiguousarray(value.transpose(orders.get(value.ndim, (0,)))))


def read_keras(path: str | Path) -> dict[str, list[dict[str, Float[np.ndarray, "..."]]]]:
    """The weights of a Keras 2 weights file.

    Args:
        path: HDF5 with a group for each layer, as `Model.save_weights` wrote it.

    Returns:
        For each kind of layer (`conv2d`, `dense`, ...) its layers in the order in which they were made, each with its
        weights by name. Keras numbers the layers of a kind as they are made; the first may lack its number.

    Raises:
        UserError: h5py is not installed, or the file is none of this kind.
    """
    try:
        import h5py
    except ImportError:
        raise UserError("Keras weights need h5py: pip install 'fairfd[keras]'") from None
    weights: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def collect(name: str, item: object) -> None:
        layer = re.fullmatch(r"([a-z0-9_]*?[a-z0-9])(?:_(\d+))?", name.split("/")[0])
        if layer and isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            part = name.rsplit("/", 1)[-1].removesuffix(":0")
            weights.setdefault((layer[1], int(layer[2] or 0)), {})[part] = item[()].astype(np.float32)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise UserError(f"{path}: cannot read as a Keras weights file ({reason})") from None
    kinds: dict[str, list[dict[str, np.ndarray]]] = {}
    for (kind, _), layer in sorted(weights.items(), key=lambda each: each[0]):
        kinds.setdefault(kind, []).append(layer)
    return kinds
