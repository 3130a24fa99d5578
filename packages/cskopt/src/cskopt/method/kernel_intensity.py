"""Knowledge intensity: how strongly the loss of new data pulls at each element of a kernel (paper §3.1).

    I[u, v] = mean over (o, c) of |dL/dW[o, c, u, v]|,   K = I / sum I

The definition is inferred (the paper's is not public). The count-normalised map beside it divides by how often a tap falls
inside the picture: zero padding alone favours the centre, and the more the smaller the map.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cskopt.method.kernel_elements import geometry_of, tap_counts
from tenfold import UserError


@dataclass(frozen=True)
class IntensityMap:
    """The knowledge intensity of one layer.

    Attributes:
        raw: K, sums to 1.
        per_use: the same with I divided by `counts` first, sums to 1.
        counts: at how many output positions each tap is inside the picture.
    """

    raw: Float[Tensor, "kh kw"]
    per_use: Float[Tensor, "kh kw"]
    counts: Int[Tensor, "kh kw"]


def tap_intensity(gradient: Float[Tensor, "o c kh kw"]) -> Float[Tensor, "kh kw"]:
    """K of a weight gradient; uniform when the gradient is zero."""
    strength = gradient.abs().mean((0, 1))
    return _normalised(strength)


def count_normalised(gradient: Float[Tensor, "o c kh kw"], counts: Int[Tensor, "kh kw"]) -> Float[Tensor, "kh kw"]:
    """K with every tap's strength divided by how often the tap was inside; taps that never were get 0."""
    return _normalised(gradient.abs().mean((0, 1)) / counts.clamp_min(1))


def _normalised(strength: Tensor) -> Tensor:
    total = strength.sum()
    return strength / total if total > 0 else torch.full_like(strength, 1 / strength.numel())


def kernel_intensity_maps(
    model: nn.Module, loader: Iterable[Any], loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, IntensityMap]:
    """The knowledge intensity of every convolution larger than 1x1, on new data with the weights as they are.

    Args:
        model: plain, with `nn.Conv2d`; kept in evaluation mode during the pass, gradients cleared afterwards.
        loader: gives (input, label) batches of the new data.
        loss_fn: of logits and labels; its mean over a batch is weighted with the batch's size.

    Raises:
        UserError: no such convolution, or no batch.
        FloatingPointError: a gradient that is not finite; the message names the layer.
    """
    layers = {name: m for name, m in model.named_modules() if type(m) is nn.Conv2d and m.kernel_size != (1, 1)}
    if not layers:
        raise UserError("the model has no plain convolution larger than 1x1; unwrap it first")
    sizes: dict[str, tuple[int, int]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: sizes.__setitem__(name, (inputs[0].shape[2], inputs[0].shape[3]))
        )
        for name, layer in layers.items()
    ]
    was_training, required = model.training, {each: each.requires_grad for each in model.parameters()}
    model.eval().zero_grad(set_to_none=True)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    try:
        for inputs, labels in loader:
            (loss_fn(model(inputs), labels) * len(inputs)).backward()
        return {name: _map_of(name, layer, sizes) for name, layer in layers.items()}
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        for parameter, value in required.items():
            parameter.requires_grad_(value)
        for handle in handles:
            handle.remove()


def _map_of(name: str, layer: nn.Conv2d, sizes: dict[str, tuple[int, int]]) -> IntensityMap:
    gradient = layer.weight.grad
    if gradient is None:
        raise UserError(f"{name}: received no gradient; is the loader empty, or the layer not used?")
    if not torch.isfinite(gradient).all():
        raise FloatingPointError(f"{name}: the gradient is not finite")
    counts = tap_counts(geometry_of(layer), *sizes[name])
    return IntensityMap(tap_intensity(gradient), count_normalised(gradient, counts.to(gradient.device)), counts)


def kernel_intensity(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    normalize_counts: bool = False,
) -> dict[str, Float[Tensor, "kh kw"]]:
    """K of every convolution larger than 1x1 by name (paper §3.1); see `kernel_intensity_maps`.

    Args:
        model: plain.
        loader: batches of the new data.
        loss_fn: of logits and labels.
        normalize_counts: give the maps that do not credit the centre for the padding at the border.
    """
    maps = kernel_intensity_maps(model, loader, loss_fn)
    return {name: each.per_use if normalize_counts else each.raw for name, each in maps.items()}
