"""Pruning of convolutions: BPFA and its baselines (paper, version 3, Eqs. 4, 5).

A channel whose activation norm differs between groups carries group information; its small weights are zeroed first.
The order of work is: `group_norms` (statistics on calibration images), a score (`bpfa_score`,
`weig_score` or `roba_score`), `lowest_mask` per layer, `apply_masks`.

Calibration images must show people who are not in the evaluation data (`require_disjoint_identities`): the
official notebook calibrates, and chooses the pruning rate, on the test set. It also zips hook outputs in execution
order with layer names in registration order, which hands many layers another layer's statistics; here each hook is
bound to its layer's name.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from tenfold.errors import UserError

Method = Literal["bpfa", "weig", "roba"]

BIAS_FLOOR = 1e-12
"""Smallest channel bias: a channel that reacts to all groups alike gets a huge, finite score and is pruned last."""


# --------------------------------------------------------------------------------------------- channel statistics


@dataclass(frozen=True)
class ChannelStatistic:
    """How strongly a channel answers to a group: two steps around the mean over the group's images.

    Attributes:
        per_image: (b, o, h, w) activation -> (b, o, ...) contribution of each image, averaged over the group's images.
        per_group: (g, o, ...) group means -> (g, o) norms Z.
    """

    per_image: Callable[[Tensor], Tensor]
    per_group: Callable[[Tensor], Tensor]


def spatial_norm(maps: Float[Tensor, "n o h w"]) -> Float[Tensor, "n o"]:
    """L2 norm over space of every channel."""
    return torch.linalg.vector_norm(maps, dim=(2, 3))


def _unchanged(values: Tensor) -> Tensor:
    return values


MEAN_OF_NORM = ChannelStatistic(per_image=spatial_norm, per_group=_unchanged)
"""Z_s[o] = mean over images of the norm (paper Eq. 4)."""

NORM_OF_MEAN = ChannelStatistic(per_image=_unchanged, per_group=spatial_norm)
"""Z_s[o] = norm of the mean activation map (official code: BPFA notebook)."""

STATISTICS: Mapping[str, ChannelStatistic] = MappingProxyType(
    {"mean_of_norm": MEAN_OF_NORM, "norm_of_mean": NORM_OF_MEAN}
)
"""The two readings of Eq. 4 by name; the first is the paper's and the default."""


class GroupSums:
    """Sum and count of per-image contributions by group, in float64 on the CPU; memory does not grow with images."""

    def __init__(self, num_groups: int) -> None:
        self.count = torch.zeros(num_groups, dtype=torch.float64)
        self.total: Tensor | None = None

    def add(self, contribution: Shaped[Tensor, "b o ..."], group: Int[Tensor, " b"]) -> None:
        """Add one batch; `group` holds indices 0..num_groups-1.

        Raises:
            UserError: contributions of another shape than before (maps of another size).
        """
        sums = contribution.new_zeros((len(self.count), *contribution.shape[1:])).index_add_(0, group, contribution)
        if self.total is None:
            self.total = torch.zeros(sums.shape, dtype=torch.float64)
        if self.total.shape != sums.shape:
            raise UserError(
                f"activation maps changed size from {tuple(self.total.shape[2:])} to {tuple(sums.shape[2:])}: "
                "norm_of_mean needs calibration images of one size; resize them or use mean_of_norm"
            )
        self.total += sums.cpu().double()
        self.count += torch.bincount(group.cpu(), minlength=len(self.count)).double()

    def mean(self) -> Float[Tensor, "g o *space"]:
        """Mean contribution per group."""
        if self.total is None:
            raise UserError("no calibration image was seen")
        return self.total / self.count.reshape(-1, *([1] * (self.total.ndim - 1)))


@dataclass(frozen=True)
class GroupNorms:
    """Channel norms per group for every executed convolution.

    Attributes:
        norms: layer name -> Z, shape (groups, output channels), float64 on the CPU (paper Eq. 4).
        groups: names of the groups, in the row order of Z.
        images: calibration images per group, same order.
        skipped: layer name -> why it has no statistics and is left unpruned.
    """

    norms: Mapping[str, Float[Tensor, "g o"]]
    groups: tuple[str, ...]
    images: tuple[int, ...]
    skipped: Mapping[str, str]


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Every `Conv2d` of the model by its qualified name, in registration order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def group_norms(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    groups: Sequence[str],
    *,
    statistic: ChannelStatistic = MEAN_OF_NORM,
    forward: Callable[[Tensor], object] | None = None,
) -> GroupNorms:
    """Stream calibration batches through the model and collect Z for every convolution (paper Eq. 4).

    Args:
        model: any module with `Conv2d` layers; evaluated in eval mode without gradients, its mode restored.
        batches: pairs (images (b, 3, h, w), group index (b,) in 0..len(groups)-1). The paper uses genuine images.
        groups: names of the groups; every one needs images.
        statistic: `MEAN_OF_NORM` (paper) or `NORM_OF_MEAN` (official code).
        forward: what to run on a batch, when not `model(images)` (for example the inference path alone).

    Returns:
        The norms, with the layers that never ran, or ran on something else than one map per image, listed in `skipped`.

    Raises:
        UserError: fewer than two groups, a group without images, indices outside the groups, non-finite activations.
    """
    if len(groups) < 2:
        raise UserError(f"pruning by group needs at least 2 groups, got {list(groups)}")
    layers = convolutions(model)
    sums = defaultdict[str, GroupSums](lambda: GroupSums(len(groups)))
    unusable: dict[str, str] = {}
    images_seen = torch.zeros(len(groups), dtype=torch.int64)
    device = next(iter(model.parameters()), torch.empty(0)).device
    current_group = torch.empty(0, dtype=torch.int64)

    def record(name: str, _module: nn.Module, _inputs: object, activation: Tensor) -> None:
        if len(activation) != len(current_group):
            unusable[name] = f"runs on {len(activation)} maps for {len(current_group)} images"
            return
        contribution = statistic.per_image(activation.float())
        if not torch.isfinite(contribution).all():
            raise UserError(f"layer {name} has non-finite activations: check the weights and the calibration images")
        sums[name].add(contribution, current_group)

    with torch.no_grad(), _evaluating(model), _hooked(layers, record):
        for images, group in batches:
            if group.numel() and not 0 <= int(group.min()) <= int(group.max()) < len(groups):
                raise UserError(f"group index {int(group.max())} is outside the {len(groups)} groups {list(groups)}")
            current_group = group.to(device)
            images_seen += torch.bincount(group.cpu(), minlength=len(groups))
            (forward or model)(images.to(device))

    absent = [name for name, count in zip(groups, images_seen.tolist(), strict=True) if count == 0]
    if absent:
        raise UserError(f"no calibration image of group {', '.join(absent)}: every group needs some")
    skipped = unusable | {name: "never executed" for name in layers if name not in sums and name not in unusable}
    return GroupNorms(
        norms={name: statistic.per_group(sums[name].mean()) for name in layers if name in sums and name not in skipped},
        groups=tuple(groups),
        images=tuple(images_seen.tolist()),
        skipped={name: skipped[name] for name in layers if name in skipped},
    )


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _hooked(
    layers: Mapping[str, nn.Conv2d], record: Callable[[str, nn.Module, object, Tensor], None]
) -> Generator[None]:
    handles = [layer.register_forward_hook(partial(record, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------------------------------------- scores and masks


def channel_bias(norms: Float[Tensor, "g o"]) -> Float[Tensor, " o"]:
    """BIAS[o] = population standard deviation of Z[o] over the groups, at least 1e-12 (paper Eq. 4)."""
    return norms.std(dim=0, correction=0).clamp_min(BIAS_FLOOR)


def bpfa_score(weight: Float[Tensor, "o i kh kw"], bias: Float[Tensor, " o"]) -> Float[Tensor, "o i kh kw"]:
    """|W| / BIAS: small weights of channels that tell the groups apart score lowest (paper Eq. 5)."""
    return weight.abs() / bias[:, None, None, None]


def weig_score(weight: Float[Tensor, "o i kh kw"]) -> Float[Tensor, "o i kh kw"]:
    """|W|: magnitude pruning, blind to groups (paper baseline WEIG)."""
    return weight.abs()


def roba_score(weight: Float[Tensor, "o i kh kw"], bias: Float[Tensor, " o"]) -> Float[Tensor, "o i kh kw"]:
    """1 / BIAS for every weight of the channel: whole biased channels first (paper baseline RoBA)."""
    return bias.reciprocal()[:, None, None, None].expand_as(weight)


def lowest_mask(score: Float[Tensor, "o i kh kw"], rate: float) -> Bool[Tensor, "o i kh kw"]:
    """False on exactly `int(rate * numel)` lowest scores, True elsewhere; equal scores fall in index order.

    Args:
        score: importance of each weight.
        rate: fraction of the layer's weights to zero, in [0, 1).

    Raises:
        UserError: a rate outside [0, 1).
    """
    check_rate(rate)
    mask = torch.ones(score.numel(), dtype=torch.bool, device=score.device)
    mask[torch.argsort(score.flatten(), stable=True)[: int(rate * score.numel())]] = False
    return mask.reshape(score.shape)


def check_rate(rate: float) -> None:
    """Refuse a rate that is not a fraction.

    Raises:
        UserError: a rate outside [0, 1), NaN included; says what a percentage would be.
    """
    if not 0 <= rate < 1:
        hint = f"; {rate:g} % is {rate / 100:g}" if math.isfinite(rate) and 1 <= rate < 100 else ""
        raise UserError(f"rate {rate:g} is not a fraction in [0, 1){hint}")


def pruning_masks(
    model: nn.Module, method: Method, rate: float, statistics: GroupNorms
) -> dict[str, Bool[Tensor, "..."]]:
    """One mask per convolution that has statistics; all three methods prune the same layers, so that they compare.

    Args:
        model: the model the statistics were taken on, without masks of an earlier pruning.
        method: "bpfa" (paper), "weig" or "roba" (its baselines).
        rate: fraction of each layer's weights to zero, in [0, 1). The paper tries 0.1 % to 10 %.
        statistics: from `group_norms`.

    Returns:
        Layer name -> mask of the weight's shape on the weight's device; False is pruned.

    Raises:
        UserError: a rate outside [0, 1), an unknown method, a layer unknown or already masked.
    """
    check_rate(rate)
    layers = convolutions(model)
    masks = {}
    for name, norms in statistics.norms.items():
        layer = _unmasked_layer(layers, name)
        weight = layer.weight.detach().double()
        bias = channel_bias(norms).to(weight.device)
        match method:
            case "bpfa":
                score = bpfa_score(weight, bias)
            case "weig":
                score = weig_score(weight)
            case "roba":
                score = roba_score(weight, bias)
            case _:
                raise UserError(f"unknown pruning method {method!r}: use bpfa, weig or roba")
        masks[name] = lowest_mask(score, rate)
    return masks


def _unmasked_layer(layers: Mapping[str, nn.Conv2d], name: str) -> nn.Conv2d:
    if name not in layers:
        raise UserError(f"the model has no convolution named {name}: the masks belong to another model")
    if hasattr(layers[name], "weight_mask"):
        raise UserError(f"layer {name} is already pruned: make its mask permanent first")
    return layers[name]


def apply_masks(model: nn.Module, masks: Mapping[str, Bool[Tensor, "..."]]) -> None:
    """Mask the weights in place with `torch.nn.utils.prune.custom_from_mask`.

    The state dict then holds `LAYER.weight_orig` and `LAYER.weight_mask`; pruned weights stay zero while training.

    Raises:
        UserError: a mask for a layer that is unknown, already masked or of another shape; no layer is changed then.
    """
    layers = convolutions(model)
    targets = {name: _unmasked_layer(layers, name) for name in masks}
    for name, layer in targets.items():
        if masks[name].shape != layer.weight.shape:
            raise UserError(
                f"mask of layer {name} has shape {tuple(masks[name].shape)}, its weight {tuple(layer.weight.shape)}"
            )
    for name, layer in targets.items():
        torch_prune.custom_from_mask(layer, "weight", masks[name].to(layer.weight.device))


def make_permanent(model: nn.Module) -> None:
    """Fold the masks into the weights: the state dict has its original keys again and loads without this module."""
    for layer in convolutions(model).values():
        if hasattr(layer, "weight_mask"):
            torch_prune.remove(layer, "weight")


# -------------------------------------------------------------------------------------------------- calibration data


def require_disjoint_identities(calibration: Collection[str], evaluation: Collection[str]) -> None:
    """Refuse calibration people who are also evaluated: pruning chosen on the test people measures nothing.

    Args:
        calibration: identity of each calibration image (repeats allowed).
        evaluation: identity of each evaluation image.

    Raises:
        UserError: shared identities, with their number and the first five.
    """
    shared = sorted(set(calibration) & set(evaluation))
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise UserError(
            f"{len(shared)} identities are in both the calibration and the evaluation data "
            f"({', '.join(shared[:5])}{more}): calibrate on other people"
        )
