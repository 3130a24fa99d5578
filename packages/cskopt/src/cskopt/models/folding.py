"""Folding batch normalisation into the convolution before it (paper §3.2; official code: structure_reorganization).

t = gamma / sqrt(var + eps);   W <- W * t;   b <- beta + (b - mean) * t
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torchvision.ops import FrozenBatchNorm2d

from cskopt.models.tracing import trace
from tenfold import UserError


@dataclass(frozen=True)
class FoldingReport:
    """What became of the batch normalisations of a model.

    Attributes:
        folded: (convolution, batch normalisation) by name.
        frozen: batch normalisations that could not be folded and were frozen instead.
        traced: whether the model could be traced; without a trace nothing is folded.
    """

    folded: tuple[tuple[str, str], ...]
    frozen: tuple[str, ...]
    traced: bool


def foldable_pairs(model: nn.Module) -> list[tuple[str, str]] | None:
    """(convolution, batch normalisation) where the second is the only reader of the first; None without a trace."""
    graph = trace(model)
    if graph is None:
        return None
    modules = dict(model.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.BatchNorm2d):
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        names = str(source.target), str(node.target)
        is_conv = type(modules[names[0]]) in (nn.Conv2d, Conv2dSame)
        # A module that is called twice may be followed by something else the other time.
        if is_conv and all(calls.count(name) == 1 for name in names) and modules[names[1]].running_mean is not None:
            pairs.append(names)
    return pairs


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> FoldingReport:
    """Fold every batch normalisation that follows a convolution, in place; freeze the others.

    The model computes as in evaluation mode from then on, whatever mode it is in.

    Args:
        model: changed in place.

    Raises:
        UserError: a batch normalisation without running statistics.
    """
    refuse_batch_statistics(model)
    pairs = foldable_pairs(model)
    for conv_name, norm_name in pairs or []:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        fused = fuse_conv_bn_eval(conv.eval(), norm.eval())  # ty: ignore[invalid-argument-type]  # the pair was checked
        set_submodule(model, conv_name, fused)
        set_submodule(model, norm_name, _what_follows(norm))
    return FoldingReport(tuple(pairs or ()), freeze_batch_norm(model), pairs is not None)


def _what_follows(norm: nn.Module) -> nn.Module:
    """What a batch normalisation does besides normalising: nothing, or timm's activation."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


def freeze_batch_norm(model: nn.Module) -> tuple[str, ...]:
    """Replace every batch normalisation by one with fixed statistics, in place; return their names.

    The fixed form keeps only its scale for the backward pass, the stock form its whole input.

    Raises:
        UserError: a batch normalisation without running statistics.
    """
    refuse_batch_statistics(model)
    names = tuple(name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d))
    for name in names:
        norm = model.get_submodule(name)
        frozen = _frozen(norm)
        following = _what_follows(norm)
        kept = frozen if isinstance(following, nn.Identity) else nn.Sequential(frozen, following)
        set_submodule(model, name, kept)
    return names


def _frozen(norm: nn.Module) -> FrozenBatchNorm2d:
    assert isinstance(norm, nn.BatchNorm2d)
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    if norm.running_mean is not None:
        frozen = frozen.to(norm.running_mean.device, norm.running_mean.dtype)
    frozen.load_state_dict(norm.state_dict(), strict=False)
    return frozen


def thaw_batch_norm(frozen: FrozenBatchNorm2d) -> nn.BatchNorm2d:
    """The stock layer, in evaluation mode, of a frozen one."""
    state = frozen.state_dict()
    norm = nn.BatchNorm2d(len(state["weight"]), frozen.eps).to(state["weight"])
    norm.load_state_dict(state, strict=False)
    return norm.eval()


@torch.no_grad()
def stock_state(folded: nn.Module, original: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a folded model in the layout of the original architecture, for torchvision's or timm's own loaders.

    A folded batch normalisation becomes one that only adds the bias: gamma = 1, beta = b, mean = 0, var = 1 - eps.

    Args:
        folded: plain, from `unwrap`.
        original: a model of the same architecture, not folded; gives the layout, its weights are not used.
    """
    state = dict(folded.state_dict())
    layout = original.state_dict()
    for conv, name in foldable_pairs(original) or []:
        norm = original.get_submodule(name)
        bias = state.pop(f"{conv}.bias")
        if f"{conv}.bias" in layout:
            state[f"{conv}.bias"] = torch.zeros_like(bias)
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones_like(bias), bias
        state[f"{name}.running_mean"] = torch.zeros_like(bias)
        state[f"{name}.running_var"] = torch.full_like(bias, 1 - norm.eps)  # ty: ignore[unsupported-operator]  # a BatchNorm2d
    for key, value in layout.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(value))
    return {key: state[key].clone() for key in layout}


class FixedNorm(nn.Module):
    """A normalisation that stays in evaluation mode, so that its running statistics never drift.

    Args:
        norm: of any kind; shared, not copied.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.eval()

    def train(self, mode: bool = True) -> "FixedNorm":
        """Switch the mode of this module alone."""
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Normalise as in evaluation mode."""
        return self.norm(x)

    def restore(self) -> nn.Module:
        """The stock layer, in evaluation mode."""
        return self.norm


def fix_other_norms(model: nn.Module) -> tuple[str, ...]:
    """Put every other layer with running statistics into a `FixedNorm`, in place; return their names.

    What remains after `freeze_batch_norm`: batch normalisation of one or three dimensions or over processes, instance
    normalisation with running statistics, timm's EvoNorm.
    """
    names = tuple(
        name
        for name, module in model.named_modules()
        if not isinstance(module, FrozenBatchNorm2d)
        and any(each.startswith("running_") for each, _ in module.named_buffers(recurse=False))
    )
    for name in names:
        set_submodule(model, name, FixedNorm(model.get_submodule(name)))
    return names


def settle_weights(model: nn.Module) -> tuple[str, ...]:
    """Make computed weights plain ones, in place, with their present values; return the names of the layers.

    Weight normalisation, spectral normalisation, pruning and other parametrisations compute a weight at every forward pass.
    """
    changed = []
    for name, module in list(model.named_modules()):
        before = [each for each, _ in module.named_parameters(recurse=False)]
        if parametrize.is_parametrized(module):
            # A copied layer shares its class with the original, and removal changes the class.
            shared = type(module)
            module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
            for each in list(module.parametrizations):
                parametrize.remove_parametrizations(module, each, leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
        if before != [each for each, _ in module.named_parameters(recurse=False)]:
            changed.append(name)
    return tuple(changed)


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse normalisation by the statistics of the batch at hand: what a picture gives then depends on the others.

    Raises:
        UserError: a batch normalisation without running statistics; the message names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UserError(
                f"{name or 'the model'}: {type(module).__name__} without running statistics cannot be frozen; "
                "build it with track_running_stats=True"
            )


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name`, and wherever else the model holds the module that was there; its hooks go over."""
    before = model.get_submodule(name)
    places = [each for each, other in model.named_modules(remove_duplicate=False) if other is before]
    for place in places:
        parent, _, leaf = place.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)
    if all(each is not before for each in module.modules()):
        for kind in _HOOKS:
            # The same dictionary: a handle that someone holds removes its hook from it.
            setattr(module, kind, getattr(before, kind))
