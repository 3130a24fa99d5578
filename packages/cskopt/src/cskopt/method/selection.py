"""Dynamic channel element selection, DCES (paper §3.3): which input channels a session trains, and what it is compared with."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cskopt.method.partial_conv import PartialConv2d
from cskopt.method.wrapping import partial_layers
from cskopt.models.heads import evaluating
from tenfold import UserError

Selection = Literal["gradient", "random", "magnitude", "lowest", "all"]


def kept_channels(channels: int, ratio: float, name: str = "layer") -> int:
    """k = int(ratio * C), the count of channels that a layer trains (paper §3.3; int() truncates).

    Raises:
        UserError: nothing would be left.
    """
    count = int(ratio * channels + 1e-9)
    if count == 0:
        raise UserError(f"{name}: a share of {ratio} of {channels} channels leaves none; raise channel_ratio")
    return count


def channel_importance(gradient: Float[Tensor, "o c *taps"]) -> Float[Tensor, " c"]:
    """imp[c] = mean over o of |g[o, c]|, g summed over batches before the absolute value (paper §3.3)."""
    return gradient.abs().flatten(2).mean((0, 2)) if gradient.ndim > 2 else gradient.abs().mean(0)


def top_channels(importance: Float[Tensor, " c"], count: int) -> Int[Tensor, " k"]:
    """The `count` largest, ascending by index; ties go to the lower index."""
    return importance.sort(descending=True, stable=True).indices[:count].sort().values


def accumulated_gradients(
    model: nn.Module, loader: Iterable[Any], loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Float[Tensor, "o c *taps"]]:
    """One pass over the new data in evaluation mode, gradients summed over batches without zeroing (paper §3.3, step 1).

    The graph of each batch is freed at once. All gradients of the model are cleared afterwards.

    Raises:
        FloatingPointError: a gradient that is not finite; the message names the layer.
    """
    layers = partial_layers(model)
    model.zero_grad(set_to_none=True)
    with evaluating(model):
        for inputs, labels in loader:
            loss_fn(model(inputs), labels).backward()
    gradients = {}
    for name, layer in layers.items():
        if layer.trained.grad is None:
            raise UserError("the loader gave no batch: channels cannot be chosen")
        if not torch.isfinite(layer.trained.grad).all():
            raise FloatingPointError(f"{name}: the gradient is not finite")
        gradients[name] = layer.trained.grad.detach().clone()
    model.zero_grad(set_to_none=True)
    return gradients


def select_channels(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    ratio: float = 0.75,
    selection: Selection = "gradient",
    generator: torch.Generator | None = None,
) -> dict[str, Int[Tensor, " k"]]:
    """The channels that a session should train, for each partial layer; give them to `apply_selection` (paper §3.3).

    Layers with channel groups, other than depthwise ones, train all their channels and are not in the result.

    Args:
        model: wrapped; all its channels are selected first, so its parameters are new ones afterwards.
        loader: gives (input, label) batches of the session.
        loss_fn: of logits and labels.
        ratio: share kept.
        selection: `gradient` is the paper's; `lowest` takes the smallest gradients, `magnitude` the largest weights.
        generator: for `random`.
    """
    layers = partial_layers(model)
    for layer in layers.values():
        layer.select(None)
    eligible = {name: layer for name, layer in layers.items() if layer.geometry.groups in (1, layer.in_channels)}
    if selection == "all" or ratio == 1 or not eligible:
        return {}
    counts = {name: kept_channels(layer.in_channels, ratio, name) for name, layer in eligible.items()}
    if selection == "random":
        return {
            name: torch.randperm(layer.in_channels, generator=generator)[: counts[name]].sort().values
            for name, layer in eligible.items()
        }
    if selection == "magnitude":
        scores = {name: _by_channel(layer, layer.trained.detach()) for name, layer in eligible.items()}
    else:
        gradients = accumulated_gradients(model, loader, loss_fn)
        sign = -1 if selection == "lowest" else 1
        scores = {name: sign * _by_channel(layer, gradients[name]) for name, layer in eligible.items()}
    return {name: top_channels(scores[name], counts[name]) for name in eligible}


def _by_channel(layer: PartialConv2d, values: Tensor) -> Float[Tensor, " c"]:
    if layer.geometry.groups == 1:
        return channel_importance(values)
    # Depthwise: (C * multiplier, 1), the rows of an input channel lie together.
    return channel_importance(values.view(layer.in_channels, -1).T)
