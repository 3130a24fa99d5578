"""What a training step keeps and computes, by formula, layer by layer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cskopt.method.center_conv import CenterConv2d
from cskopt.method.memory_efficient import FrozenConv2d, LeanMaxPool2d, LeanReLU
from cskopt.method.partial_conv import PartialConv2d


@dataclass(frozen=True)
class LayerCost:
    """The predicted cost of one layer in one step.

    Attributes:
        name: of the layer.
        kind: of its class.
        kept_bytes: activations kept for the backward pass; a tensor that two layers keep is counted at the first.
        forward_macs: multiply-adds of the forward pass.
        weight_macs: multiply-adds of the weight gradient.
        input_macs: multiply-adds of the input gradient.
        trained: trained parameters.
    """

    name: str
    kind: str
    kept_bytes: int
    forward_macs: int
    weight_macs: int
    input_macs: int
    trained: int

    @property
    def backward_macs(self) -> int:
        """Multiply-adds of the backward pass."""
        return self.weight_macs + self.input_macs


@dataclass(frozen=True)
class Kept:
    """What a layer keeps.

    Attributes:
        shared: its input or output itself, which another layer may keep too.
        own: bytes of its own.
    """

    shared: Tensor | None = None
    own: int = 0


@torch.enable_grad()
def layer_costs(model: nn.Module, x: Float[Tensor, "n c h w"]) -> list[LayerCost]:
    """The cost of each layer of a model for a batch, from one forward pass that records shapes; the last entry is the loss.

    Args:
        model: stock or wrapped.
        x: the batch.
    """
    costs: list[LayerCost] = []
    # Storages are held while the pass runs, so that no address is met twice.
    counted: dict[int, object] = {x.untyped_storage().data_ptr(): x}

    def record(name: str) -> Callable[..., None]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                costs.append(_cost(name, layer, inputs[0], output, counted))

        return add

    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(record(name)) for name, layer in leaves]
    try:
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    # Cross-entropy keeps the log-probabilities, the labels and the total weight.
    kept = logits.nbytes + 8 * len(logits) + logits.element_size()
    costs.append(LayerCost("(loss)", "cross_entropy", kept, 0, 0, 0, 0))
    return costs


def _cost(name: str, layer: nn.Module, x: Tensor, y: Tensor, counted: dict[int, object]) -> LayerCost:
    kept = what_is_kept(layer, x, y)
    size = kept.own
    if kept.shared is not None and kept.shared.untyped_storage().data_ptr() not in counted:
        counted[kept.shared.untyped_storage().data_ptr()] = kept.shared
        size += kept.shared.nbytes
    forward = forward_macs(layer, y)
    backward = forward if x.requires_grad else 0
    if isinstance(layer, CenterConv2d) and layer.input_grad == "centre":
        backward //= layer.geometry.kernel[0] * layer.geometry.kernel[1]
    trained = sum(each.numel() for each in layer.parameters() if each.requires_grad)
    return LayerCost(name, type(layer).__name__, size, forward, weight_macs(layer, y), backward, trained)


def forward_macs(layer: nn.Module, y: Tensor) -> int:
    """N * O * C/g * Kh * Kw * Ho * Wo for a convolution, N * O * F for a linear layer, else 0."""
    if isinstance(layer, nn.Conv2d | FrozenConv2d | PartialConv2d):
        return y.numel() * layer.weight[0].numel()
    return y.numel() * layer.in_features if isinstance(layer, nn.Linear) else 0


def weight_macs(layer: nn.Module, y: Tensor) -> int:
    """The same for the part of the weight that is trained: N * rho C * O * Ho * Wo for centres."""
    if isinstance(layer, PartialConv2d):
        if not layer.trained.requires_grad:
            return 0
        return y.shape[0] * y.shape[2] * y.shape[3] * layer.trained.numel()
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.requires_grad:
        return forward_macs(layer, y)
    return 0


def what_is_kept(layer: nn.Module, x: Tensor, y: Tensor) -> Kept:
    """What a layer keeps: its input for all taps, e*N*rho C*Ho*Wo for centres, a bit for a lean activation (§12).

    Layers of other kinds are counted as keeping nothing.
    """
    if isinstance(layer, PartialConv2d):
        return _kept_of_partial(layer, x, y) if layer.trained.requires_grad else Kept()
    if isinstance(layer, nn.Conv2d):
        # The stock convolution keeps its input even for a frozen weight, as long as a gradient passes through.
        return Kept(x) if layer.weight.requires_grad or x.requires_grad else Kept()
    if isinstance(layer, nn.Linear):
        return Kept(x) if layer.weight.requires_grad else Kept()
    if isinstance(layer, nn.BatchNorm2d):
        trains = x.requires_grad or any(each.requires_grad for each in layer.parameters())
        statistics = 2 * 4 * layer.num_features if layer.training else 0
        return Kept(x, statistics) if trains else Kept()
    if not x.requires_grad:
        return Kept()
    if isinstance(layer, LeanReLU):
        return Kept(own=-(-x.numel() // 8) if layer.storage == "bits" else x.numel())
    if isinstance(layer, LeanMaxPool2d):
        return Kept(own=y.numel())
    if isinstance(layer, nn.MaxPool2d):
        return Kept(x, 8 * y.numel())
    if isinstance(layer, nn.ReLU6):
        return Kept(None, x.nbytes) if layer.inplace else Kept(x)
    return Kept(y) if isinstance(layer, nn.ReLU) else Kept()


def _kept_of_partial(layer: PartialConv2d, x: Tensor, y: Tensor) -> Kept:
    channels = layer.in_channels if layer.index is None else len(layer.index)
    if not isinstance(layer, CenterConv2d):
        return Kept(x) if layer.index is None else Kept(own=x.element_size() * x[:, 0].numel() * channels)
    if layer.grad_filter is not None:
        cells = -(-y.shape[2] // layer.grad_filter) * -(-y.shape[3] // layer.grad_filter)
        return Kept(own=y.element_size() * y.shape[0] * channels * cells)
    sees_input = layer.index is None and x.shape[2:] == y.shape[2:] and layer.geometry.offset(layer.tap) == (0, 0)
    return Kept(x) if sees_input else Kept(own=y.element_size() * y[:, 0].numel() * channels)


@dataclass(frozen=True)
class PredictedMemory:
    """Bytes of a training step by formula.

    Attributes:
        kept: activations kept for the backward pass.
        grads: gradients.
        optimizer: state of Adam, two moments.
    """

    kept: int
    grads: int
    optimizer: int


def predict_memory(costs: Iterable[LayerCost], model: nn.Module) -> PredictedMemory:
    """Sum up the layers of a model.

    Args:
        costs: from `layer_costs`.
        model: for its trained parameters.
    """
    grads = sum(each.nbytes for each in model.parameters() if each.requires_grad)
    return PredictedMemory(sum(each.kept_bytes for each in costs), grads, 2 * grads)
