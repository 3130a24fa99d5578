"""Second moments of what the trained convolutions see: the memory of old data (paper §3.4).

For a centre-only layer G is C x C, not K^2 C x K^2 C as in Adam-NSCL: that is the saving. Uncentred, not divided by counts, summed over
batches and sessions.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cskopt.method.kernel_elements import ConvGeometry, geometry_of
from cskopt.method.partial_conv import PartialConv2d
from cskopt.method.wrapping import trained_layers
from cskopt.models.heads import evaluating
from tenfold import UserError

Mode = Literal["batch_mean", "per_sample"]


def batch_mean_moment(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "c c"]:
    """Z^T Z of the batch's mean map, rows are positions (paper §3.4; Adam-NSCL's "Avg" rule with 1x1 patches)."""
    mean = features.float().mean(0).flatten(1)
    return mean @ mean.T


def per_sample_moment(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "c c"]:
    """Z^T Z over all samples and positions: the one that an exact protection of old inputs needs."""
    rows = features.movedim(1, 0).flatten(1)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return rows @ rows.T


def patches(features: Float[Tensor, "n c h w"], geometry: ConvGeometry) -> Float[Tensor, "n d l 1"]:
    """What each output position of a whole kernel sees, d = C*Kh*Kw (Adam-NSCL)."""
    unfolded = F.unfold(features, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    return unfolded[..., None]


class FeatureCovariance:
    """G of every trained convolution, accumulated over loaders.

    Args:
        model: a wrapped model; its partial and fully trained convolutions are watched. Grouped ones are not: a group
            sees few channels, and there is no null space to speak of.
        mode: `batch_mean` averages the samples of a batch first (official code); `per_sample` does not.
    """

    def __init__(self, model: nn.Module, mode: Mode = "batch_mean") -> None:
        self.mode: Mode = mode
        self.matrices: dict[str, Tensor] = {}
        self._model = model
        self._names = tuple(name for name, layer in trained_layers(model).items() if _geometry(layer).groups == 1)

    @torch.no_grad()
    def collect(self, loader: Iterable[Any]) -> None:
        """One pass over `loader` in evaluation mode (paper §3.4).

        Args:
            loader: gives (input, label) pairs, or inputs.
        """
        with evaluating(self._model), self.watching():
            for batch in loader:
                self._model(batch[0] if isinstance(batch, list | tuple) else batch)

    @contextmanager
    def watching(self) -> Generator[None]:
        """While the block runs, every forward pass of the model (or of a part that shares its layers) counts as one batch.

        Raises:
            FloatingPointError: a layer saw values that are not finite; the message names it.
        """
        with ExitStack() as stack:
            for name in self._names:
                layer = self._model.get_submodule(name)
                handle = layer.register_forward_pre_hook(self._adder(name, _patch_geometry(layer)))
                stack.callback(handle.remove)
            yield None

    def _adder(self, name: str, geometry: ConvGeometry | None) -> Callable[..., None]:
        moment = batch_mean_moment if self.mode == "batch_mean" else per_sample_moment

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].detach()
            if not torch.isfinite(seen).all():
                raise FloatingPointError(f"{name}: its input is not finite; the covariance would be useless")
            if geometry is not None:
                # The mean of patches is the patches of the mean: the cheap order.
                seen = patches(seen.mean(0, keepdim=True) if self.mode == "batch_mean" else seen, geometry)
            value = moment(seen)
            self.matrices[name] = self.matrices[name] + value if name in self.matrices else value

        return add

    def restricted(self, name: str) -> Float[Tensor, "k k"]:
        """G_S = G[S][:, S] of a layer for its current channels (paper §3.4).

        Raises:
            UserError: nothing collected yet, or a layer of another width.
        """
        if name not in self.matrices:
            raise UserError(f"{name}: no covariance yet; run the base pass first (IncrementalLearner.begin)")
        layer, matrix = self._model.get_submodule(name), self.matrices[name]
        columns = _columns(layer)
        width = _width(layer)
        if matrix.shape[0] != width:
            raise UserError(f"{name}: covariance of {matrix.shape[0]} inputs given to a layer of {width}")
        return matrix if columns is None else matrix[columns][:, columns]

    def state_dict(self) -> dict[str, Tensor]:
        """The matrices by layer name."""
        return dict(self.matrices)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what `state_dict` gave.

        Raises:
            UserError: a layer that is not trained here, or of another width.
        """
        for name, each in state.items():
            if name not in self._names:
                raise UserError(f"covariance of {name}, which is no trained layer of the model")
            width = _width(self._model.get_submodule(name))
            if each.shape != (width, width) or not each.is_floating_point():
                raise UserError(f"covariance of {name} is {tuple(each.shape)}, expected {(width, width)}")
        self.matrices = {name: each.clone() for name, each in state.items()}


def _geometry(layer: nn.Module) -> ConvGeometry:
    if isinstance(layer, PartialConv2d):
        return layer.geometry
    if isinstance(layer, nn.Conv2d):
        return geometry_of(layer)
    raise TypeError(f"{type(layer).__name__} is no convolution")


def _trains_all_taps(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) or (isinstance(layer, PartialConv2d) and layer.trained.ndim == 4)


def _patch_geometry(layer: nn.Module) -> ConvGeometry | None:
    """The geometry to cut patches with where all taps are trained; None where one is: all input positions count."""
    return _geometry(layer) if _trains_all_taps(layer) else None


def _width(layer: nn.Module) -> int:
    geometry = _geometry(layer)
    channels = layer.in_channels if isinstance(layer, PartialConv2d | nn.Conv2d) else 0
    return channels * geometry.kernel[0] * geometry.kernel[1] if _trains_all_taps(layer) else channels


def _columns(layer: nn.Module) -> Int[Tensor, " k"] | None:
    """Rows of G that belong to the trained channels; None for all."""
    index = layer.index if isinstance(layer, PartialConv2d) else None
    if index is None or not _trains_all_taps(layer):
        return index
    area = _geometry(layer).kernel[0] * _geometry(layer).kernel[1]
    return (index[:, None] * area + torch.arange(area, device=index.device)).flatten()
