"""Turning an ordinary network into one that trains centre elements in little memory, and back (paper §3.2 and §3.6)."""

import copy
import re
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from cskopt.config import CsKOConfig
from cskopt.method.baselines import ChannelConv2d
from cskopt.method.center_conv import CenterConv2d
from cskopt.method.memory_efficient import FrozenConv2d, LeanAvgPool2d, LeanMaxPool2d, LeanReLU, LeanReLU6
from cskopt.method.partial_conv import PartialConv2d
from cskopt.models.folding import (
    fix_other_norms,
    fold_batch_norm,
    freeze_batch_norm,
    set_submodule,
    settle_weights,
    thaw_batch_norm,
)
from cskopt.models.heads import evaluating, find_head, head_of, some_of
from cskopt.models.tracing import layers_of_output
from tenfold import UserError


@dataclass(frozen=True)
class LayerNote:
    """What became of one layer.

    Attributes:
        name: of the module.
        action: trained, frozen, lean, folded, kept.
        reason: in a few words.
    """

    name: str
    action: str
    reason: str


@dataclass(frozen=True)
class WrapReport:
    """What `wrap` did.

    Attributes:
        targets: convolutions that are trained, in order.
        head: the last layer's name.
        config: the configuration.
        notes: one line for each layer that was changed or deliberately left alone.
    """

    targets: tuple[str, ...]
    head: str
    config: CsKOConfig
    notes: tuple[LayerNote, ...]

    def __str__(self) -> str:
        return "\n".join(f"{note.action:<8} {note.name}: {note.reason}" for note in self.notes)


@runtime_checkable
class Restorable(Protocol):
    """A replacement that can give the stock layer back."""

    def restore(self) -> nn.Module:
        """The stock layer."""
        ...


def wrap(
    model: nn.Module,
    config: CsKOConfig | None = None,
    example_input: Float[Tensor, "n c h w"] | None = None,
    *,
    head: str | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Make a model train only the centre elements of its target convolutions, and its head.

    Batch normalisation is folded, target convolutions become `CenterConv2d`, the other ones `FrozenConv2d`, activations and
    poolings their lean forms. Any optimiser works on the parameters that require a gradient. `unwrap` goes back.

    Args:
        model: a classifier made of `nn.Conv2d`; copied unless `inplace`.
        config: what to train; the paper's defaults when None.
        example_input: a batch; when given, the wrapped model is checked to compute what the original does.
        head: name of the last layer; found when None.
        inplace: change `model` itself.

    Returns:
        The wrapped model; `report_of` tells what was wrapped, what was left alone, and why.

    Raises:
        UserError: no target layer, no head, a target without a centre, already wrapped, data-parallel, or batch
            normalisation that would drift because folding is off and the model is in training mode.
    """
    config = config or CsKOConfig()
    _refuse_unusable(model, config)
    expected = None if example_input is None else _evaluate(model, example_input)
    if not inplace:
        model = copy.deepcopy(model)
    settled = [LayerNote(name, "folded", "its computed weight is a plain one now") for name in settle_weights(model)]
    with evaluating(model):
        flow = layers_of_output(model)
    head = find_head(model, head, flow)
    notes = settled + _settle_norms(model, config)
    targets = target_layers(model, config.layers, flow)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Conv2d:
            notes.append(_replace_convolution(model, name, module, name in targets, config))
        elif isinstance(module, nn.modules.conv._ConvNd):
            notes.append(_keep_convolution(name, module, name in targets, config))
        elif config.lean_activations != "off":
            notes.extend(_replace_lean(model, name, module, config))
    head_of(model, head).requires_grad_(True)
    notes.append(LayerNote(head, "trained", "head"))
    report = WrapReport(tuple(targets), head, config, tuple(notes))
    object.__setattr__(model, "report", report)
    if example_input is not None and expected is not None:
        _check_same(expected, _evaluate(model, example_input))
    return model


def report_of(model: nn.Module) -> WrapReport:
    """What `wrap` did to this model.

    Raises:
        UserError: the model was not wrapped.
    """
    report = model.__dict__.get("report")
    if not isinstance(report, WrapReport):
        raise UserError("the model is not wrapped; call cskopt.wrap(model) first")
    return report


def unwrap(model: nn.Module) -> nn.Module:
    """A plain copy: centres merged into the kernels, every layer a stock layer, every parameter trainable.

    Its state has the keys and shapes of the original with batch normalisation folded, and needs nothing of this package.
    """
    plain = copy.deepcopy(model)
    plain.__dict__.pop("report", None)
    if isinstance(plain, Restorable):
        return plain.restore()
    for name, module in list(plain.named_modules()):
        if isinstance(module, FrozenBatchNorm2d):
            set_submodule(plain, name, thaw_batch_norm(module))
        elif isinstance(module, Restorable):
            set_submodule(plain, name, module.restore())
    return plain.requires_grad_(True)


def partial_layers(model: nn.Module) -> dict[str, PartialConv2d]:
    """The convolutions of which a part is trained, by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PartialConv2d)}


def trained_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All convolutions of which something but the bias is trained: partial ones and stock ones with whole kernels."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, PartialConv2d) or (isinstance(module, nn.Conv2d) and module.weight.requires_grad)
    }


def apply_selection(model: nn.Module, selection: dict[str, Int[Tensor, " s"]]) -> None:
    """Train the given input channels from now on, layer by layer. Build the optimiser afterwards: parameters are new ones.

    Raises:
        UserError: a name that is no partial convolution of the model, or bad channels.
    """
    layers = partial_layers(model)
    for name, channels in selection.items():
        if name not in layers:
            raise UserError(f"{name}: not a wrapped layer; there are {some_of(list(layers))}")
        layers[name].select(channels)


def target_layers(
    model: nn.Module, layers: str | int | tuple[str, ...] | list[str], flow: list[str] | None = None
) -> list[str]:
    """The convolutions that a `layers` setting means, in the order in which the output depends on them.

    Those that it does not depend on (of auxiliary heads) are none of them. In a model that cannot be traced, all in the order
    of their registration.

    Args:
        model: with plain convolutions.
        layers: `last_block`, `all`, `none`, the last n, names, or a regular expression searched for in names.
        flow: from `layers_of_output`; traced when None.

    Raises:
        UserError: nothing matches; the message names some of the convolutions.
    """
    if flow is None:
        with evaluating(model):
            flow = layers_of_output(model)
    plain = {name for name, module in model.named_modules() if type(module) is nn.Conv2d}
    convs = [name for name in flow or dict(model.named_modules()) if name in plain]
    if layers == "none":
        return []
    if isinstance(layers, str) and layers.isdecimal():
        layers = int(layers)
    if isinstance(layers, str) and all(each.strip() in convs for each in layers.split(",")):
        layers = [each.strip() for each in layers.split(",")]
    if isinstance(layers, int):
        found = convs[-layers:] if layers > 0 else []
    elif layers == "all":
        found = convs
    elif layers == "last_block":
        found = last_block(convs, model)
    elif isinstance(layers, str):
        found = _matching(convs, layers)
    else:
        unknown = [each for each in layers if each not in convs]
        if unknown:
            raise UserError(f"{unknown[0]}: not a convolution of the model; there are {some_of(convs)}")
        found = [each for each in convs if each in layers]
    if not found:
        raise UserError(f"layers {layers!r}: no convolution matches; there are {some_of(convs)}")
    return found


def _matching(convs: list[str], pattern: str) -> list[str]:
    try:
        return [each for each in convs if re.search(pattern, each)]
    except re.error as error:
        raise UserError(f"layers {pattern!r}: neither a known word nor a regular expression ({error})") from None


def last_block(convs: list[str], model: nn.Module) -> list[str]:
    """The convolutions of the last block and whatever follows it.

    The block is the innermost module that holds the last convolution larger than 1x1 and at least one other; `layer4.1` of a
    ResNet-18, as in the official code. Where that is more than half of a network without blocks, its last two convolutions.
    """
    large = [each for each in convs if model.get_submodule(each).kernel_size != (1, 1)]
    if not large:
        return convs[-2:]
    parent = large[-1]
    while parent:
        parent = parent.rpartition(".")[0]
        inside = [each for each in convs if each.startswith(f"{parent}.")] if parent else convs
        if len(inside) > 1:
            start = convs.index(inside[0])
            return convs[start:] if 2 * len(inside) <= len(convs) else convs[-2:]
    return convs[-2:]


def _refuse_unusable(model: nn.Module, config: CsKOConfig) -> None:
    if isinstance(model, nn.DataParallel):
        raise UserError(
            "DataParallel copies the model at every step; use DistributedDataParallel or `accelerate launch`"
        )
    if isinstance(model.__dict__.get("report"), WrapReport):
        raise UserError("the model is wrapped already; unwrap it first")
    if not config.fold_bn and model.training and any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        raise UserError(
            "fold_bn is off and the model is in training mode: running statistics would drift; call model.eval() or fold"
        )


def _settle_norms(model: nn.Module, config: CsKOConfig) -> list[LayerNote]:
    if config.fold_bn:
        report = fold_batch_norm(model)
        reason = "no convolution of its own before it" if report.traced else "the model cannot be traced"
        notes = [LayerNote(norm, "folded", f"into {conv}") for conv, norm in report.folded]
        notes += [LayerNote(name, "frozen", f"batch normalisation: {reason}") for name in report.frozen]
    else:
        notes = [LayerNote(name, "frozen", "batch normalisation, not folded") for name in freeze_batch_norm(model)]
    fixed = fix_other_norms(model)
    notes += [LayerNote(name, "frozen", "stays in evaluation mode, its statistics are fixed") for name in fixed]
    return notes + [
        LayerNote(name, "kept", f"{type(module).__name__} has no running statistics and keeps its input")
        for name, module in model.named_modules()
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d | nn.RMSNorm | nn.LocalResponseNorm)
        and name.removesuffix(".norm") not in fixed
    ]


def _replace_convolution(
    model: nn.Module, name: str, conv: nn.Conv2d, is_target: bool, config: CsKOConfig
) -> LayerNote:
    try:
        replacement, note = _convolution_for(conv, is_target, config)
    except UserError as error:
        named = is_target and config.layers not in ("all", "last_block") and not str(config.layers).isdecimal()
        if named:
            raise UserError(f"{name}: {error}") from None
        conv.requires_grad_(False)
        return LayerNote(name, "kept", f"stock and frozen: {error}")
    if config.train_bias and replacement.bias is not None:
        replacement.bias.requires_grad_(True)
        note = replace(note, reason=f"{note.reason}, bias trained")
    set_submodule(model, name, replacement)
    return replace(note, name=name)


def _keep_convolution(name: str, conv: nn.modules.conv._ConvNd, is_target: bool, config: CsKOConfig) -> LayerNote:
    """A convolution of another kind (transposed, of a subclass) stays as it is and is frozen, but for its bias."""
    kind = type(conv).__name__
    if is_target and isinstance(config.layers, tuple):
        raise UserError(f"{name}: a {kind} cannot be trained in parts; name plain convolutions")
    if config.train_bias and conv.bias is not None:
        conv.bias.requires_grad_(True)
        return LayerNote(name, "kept", f"{kind}: frozen, keeps its input, bias trained")
    return LayerNote(name, "kept", f"{kind}: frozen, keeps its input")


def _convolution_for(
    conv: nn.Conv2d, is_target: bool, config: CsKOConfig
) -> tuple[PartialConv2d | FrozenConv2d | nn.Conv2d, LayerNote]:
    if not is_target:
        if config.lean_activations == "off":
            return conv.requires_grad_(False), LayerNote("", "frozen", "stock convolution")
        return FrozenConv2d.from_conv(conv), LayerNote("", "frozen", "keeps nothing")
    if config.tap == "all":
        if config.channel_ratio == 1:
            conv.weight.requires_grad_(True)
            return conv, LayerNote("", "trained", "all taps, stock convolution")
        if conv.groups > 1:
            raise UserError("channels of a grouped convolution cannot be selected for all taps")
        return ChannelConv2d.from_conv(conv), LayerNote("", "trained", "all taps of selected channels")
    tap = None if config.tap == "center" else config.tap
    if conv.kernel_size == (1, 1):
        tap = None
    layer = CenterConv2d.from_conv(conv, tap=tap, input_grad=config.input_grad, grad_filter=config.grad_filter)
    u, v = layer.tap
    return layer, LayerNote("", "trained", f"element ({u}, {v}) of {conv.kernel_size[0]}x{conv.kernel_size[1]}")


def _replace_lean(model: nn.Module, name: str, module: nn.Module, config: CsKOConfig) -> list[LayerNote]:
    replacement = lean_form(module, config)
    if replacement is not None:
        set_submodule(model, name, replacement.train(module.training))
        return [LayerNote(name, "lean", type(module).__name__)]
    if type(module).__name__ in _KEPT_ACTIVATIONS:
        return [LayerNote(name, "kept", f"{type(module).__name__} keeps its input: its derivative is not 0 or 1")]
    return []


_KEPT_ACTIVATIONS = frozenset({"SiLU", "Swish", "Hardswish", "HardSwish", "GELU", "ELU", "LeakyReLU", "Mish", "PReLU"})


def lean_form(module: nn.Module, config: CsKOConfig) -> nn.Module | None:
    """The lean form of an activation or pooling, or None where there is none."""
    storage = "bool" if config.lean_activations == "bool" else "bits"
    if type(module) is nn.ReLU:
        return LeanReLU(module.inplace, storage)
    if type(module) is nn.ReLU6:
        return LeanReLU6(module.inplace, storage)
    if type(module) is nn.MaxPool2d and not module.return_indices:
        pool = LeanMaxPool2d(module)
        return pool if pool.kernel_size[0] * pool.kernel_size[1] <= 255 else None
    return LeanAvgPool2d(module) if type(module) is nn.AvgPool2d else None


@torch.no_grad()
def _evaluate(model: nn.Module, x: Tensor) -> Tensor:
    was_training = model.training
    try:
        y = model.eval()(x)
    except RuntimeError as error:
        raise UserError(f"the model does not accept the example input of {tuple(x.shape)} ({error})") from None
    finally:
        model.train(was_training)
    if not isinstance(y, Tensor) or y.ndim != 2:
        raise UserError("the model must return logits of shape (batch, classes)")
    return y


def _check_same(expected: Tensor, got: Tensor) -> None:
    if not torch.isfinite(expected).all():
        raise UserError("the model gives logits that are not finite for the example input")
    scale = max(1.0, float(expected.abs().max()))
    difference = float((expected - got).abs().max())
    if difference > 1e-3 * scale:
        raise UserError(f"the wrapped model differs from the original by {difference:.2g}; please report this network")
