"""Elastic weight consolidation, a baseline: trained weights are held where old classes need them (Kirkpatrick et al. 2017)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cskopt.method.center_conv import input_gradient
from cskopt.method.kernel_elements import ConvGeometry
from cskopt.method.losses import quadratic_penalty
from cskopt.method.partial_conv import PartialConv2d, whole_kernel
from tenfold import UserError


class WeightAnchor:
    """Where the trained weights were after the last session, and how much each mattered to all sessions so far.

    Attributes:
        anchors: weights by parameter name.
        importance: diagonal Fisher information by parameter name, summed over sessions.
    """

    def __init__(self) -> None:
        self.anchors: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}

    def penalty(self, model: nn.Module) -> Tensor:
        """Half the sum of F * (theta - theta_old)^2; 0 before the first session."""
        now = dict(model.named_parameters())
        names = list(self.anchors)
        return quadratic_penalty(
            [now[each] for each in names],
            [self.anchors[each] for each in names],
            [self.importance[each] for each in names],
        )

    def load_state_dict(self, anchors: dict[str, Tensor], importance: dict[str, Tensor], model: nn.Module) -> None:
        """Take up what was saved.

        Raises:
            UserError: not of the model's parameters, or the two do not belong together.
        """
        known = {name for name, _ in model.named_parameters()}
        for name in anchors.keys() | importance.keys():
            pair = anchors.get(name), importance.get(name)
            if name not in known or pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
                raise UserError(f"anchor of {name} does not fit the model")
        self.anchors, self.importance = anchors, importance

    def add_session(
        self,
        model: nn.Module,
        batches: Iterable[tuple[tuple[Tensor, ...], Tensor]],
        run: Callable[..., Tensor],
        loss_fn: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Count a finished session in: empirical Fisher information from batch gradients.

        Args:
            model: whose trainable parameters are held.
            batches: (inputs, labels).
            run: inputs to logits; the model or the trained part of it.
            loss_fn: of logits and labels, a mean.
        """
        squares: dict[str, Tensor] = {}
        count = 0
        for inputs, labels in batches:
            model.zero_grad(set_to_none=True)
            loss_fn(run(*inputs), labels).backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    value = parameter.grad.square() * len(labels)
                    squares[name] = squares[name] + value if name in squares else value
            count += 1
        model.zero_grad(set_to_none=True)
        self.importance = {
            name: _with_old_rows(self.importance.get(name), value / count) for name, value in squares.items()
        }
        self.anchors = {name: each.detach().clone() for name, each in model.named_parameters() if name in squares}


def _with_old_rows(before: Tensor | None, value: Tensor) -> Tensor:
    """The sum of importances of a parameter that may have gained rows (the head)."""
    if before is None:
        return value
    total = value.clone()
    total[: len(before)] += before
    return total


@torch.no_grad()
def logits_of(old_body: nn.Module, inputs: tuple[Tensor, ...], classes: int) -> Tensor:
    """What the old model said about the old classes, for distillation."""
    return old_body(*inputs)[:, :classes]


class _ChannelConv(torch.autograd.Function):
    """Forward of the whole kernel, backward of the selected channels. Keeps their input and references to weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        frozen: Tensor,
        bias: Tensor | None,
        trained: Tensor,
        index: Tensor | None,
        geometry: ConvGeometry,
        trains: bool,
    ) -> tuple[Tensor, Tensor | None]:
        whole = whole_kernel(frozen, trained, _channels(index), x)
        y = F.conv2d(x, whole, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
        if not trains:
            return y, None
        kept = (x if index is None else x.index_select(1, index)).to(y.dtype)
        return y, None if kept is x else kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        x, frozen, _, trained, index, ctx.geometry, trains = inputs
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        kernel = (frozen, trained) if ctx.needs_input_grad[0] else (None, None)
        kept = (x if output[1] is None else output[1]) if trains else None
        ctx.save_for_backward(kept, *kernel, index)
        ctx.x_shape, ctx.x_dtype = x.shape, x.dtype
        ctx.trained_shape, ctx.trained_dtype = trained.shape, trained.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        kept, frozen, trained, index = ctx.saved_tensors
        g = ctx.geometry
        gx = gbias = gtrained = None
        if gy is None:
            return (None,) * 7
        if ctx.needs_input_grad[0]:
            whole = whole_kernel(frozen, trained, _channels(index), gy).to(gy.dtype)
            gx = input_gradient(gy, whole, ctx.x_shape, g).to(ctx.x_dtype)
        if ctx.needs_input_grad[2]:
            gbias = gy.sum((0, 2, 3))
        if kept is not None and ctx.needs_input_grad[3]:
            shape_only = gy.new_empty(1).expand(ctx.trained_shape)
            _, gtrained, _ = torch.ops.aten.convolution_backward(
                gy,
                kept,
                shape_only,
                None,
                g.stride,
                g.padding,
                g.dilation,
                False,
                [0, 0],
                g.groups,
                [False, True, False],
            )
            gtrained = gtrained.to(ctx.trained_dtype)
        return gx, None, gbias, gtrained, None, None, None


def _channels(index: Tensor | None) -> tuple[Any, ...]:
    """W[:, S]."""
    return slice(None), slice(None) if index is None else index


class ChannelConv2d(PartialConv2d):
    """A convolution of which all taps of the selected input channels are trained.

    Raises:
        UserError: channels selected in a grouped convolution.
    """

    def _check(self, index: Tensor) -> None:
        if self.geometry.groups > 1:
            raise UserError("channels of a grouped convolution cannot be selected for all taps; train all of them")
        super()._check(index)

    def region(self) -> tuple[Any, ...]:
        """W[:, S]."""
        return _channels(self.index)

    def forward(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n o ho wo"]:
        """Convolve a batch or one map."""
        if x.ndim == 3:
            return self(x[None])[0]
        trains = self.trained.requires_grad and torch.is_grad_enabled()
        return _ChannelConv.apply(x, self.frozen, self.bias, self.trained, self.index, self.geometry, trains)[0]
