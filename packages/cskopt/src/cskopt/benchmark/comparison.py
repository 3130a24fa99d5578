"""Training schemes that a profile compares, and the comparison itself."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from cskopt.benchmark.profiling import MemoryReport, profile_training
from cskopt.config import CsKOConfig, method_named
from cskopt.method.selection import kept_channels
from cskopt.method.wrapping import apply_selection, partial_layers, wrap
from cskopt.models.networks import build_model
from tenfold import UserError

SCHEMES: dict[str, CsKOConfig | None] = {
    "full": None,
    "full-folded": replace(method_named("full").config, lean_activations="off"),
    "head": method_named("head").config,
    "bias": method_named("bias").config,
    "sparse-update": method_named("sparse-update").config,
    "all-taps": method_named("all-taps").config,
    "centre": method_named("centre").config,
    "csko": CsKOConfig(),
    "csko-25": CsKOConfig(channel_ratio=0.25),
    "csko-filtered": CsKOConfig(grad_filter=2),
    "csko-all-layers": CsKOConfig(layers="all"),
}
"""What can be profiled; `full` is the ordinary model in training mode, the others are wrapped."""


def scheme_model(model: nn.Module, scheme: str, layers: str | None = None) -> nn.Module:
    """A copy of a model, ready to train by a scheme. Channels are the first ones: which they are does not change the cost.

    Raises:
        UserError: unknown scheme.
    """
    if scheme not in SCHEMES:
        raise UserError(f"--schemes {scheme}: choose from {', '.join(SCHEMES)}")
    config = SCHEMES[scheme]
    if config is None:
        return copy.deepcopy(model).train().requires_grad_(True)
    if layers is not None and config.layers != "none":
        config = replace(config, layers=layers)
    wrapped = wrap(model.eval(), config)
    if config.channel_ratio < 1:
        apply_selection(
            wrapped,
            {
                name: torch.arange(kept_channels(layer.in_channels, config.channel_ratio, name))
                for name, layer in partial_layers(wrapped).items()
                if layer.geometry.groups in (1, layer.in_channels)
            },
        )
    return wrapped


@dataclass(frozen=True)
class ProfileRow:
    """One scheme in a comparison.

    Attributes:
        scheme: its name.
        report: what was measured.
    """

    scheme: str
    report: MemoryReport


def compare_schemes(
    architecture: str,
    schemes: Sequence[str],
    image_size: int,
    batch_size: int,
    classes: int = 100,
    layers: str | None = None,
    device: torch.device | None = None,
    repeats: int = 5,
) -> list[ProfileRow]:
    """Profile schemes on one network with random weights and pictures.

    Raises:
        UserError: an unknown network or scheme, or pictures too small for the network.
    """
    unknown = [scheme for scheme in schemes if scheme not in SCHEMES]
    if unknown:
        raise UserError(f"--schemes {unknown[0]}: choose from {', '.join(SCHEMES)}")
    device = device or torch.device("cpu")
    torch.manual_seed(0)
    model = build_model(architecture, classes).to(device)
    x = torch.randn(batch_size, 3, image_size, image_size, device=device)
    labels = torch.randint(0, classes, (batch_size,), device=device)
    rows = []
    for scheme in schemes:
        ready = scheme_model(model, scheme, layers)
        try:
            rows.append(ProfileRow(scheme, profile_training(ready, (x, labels), repeats=repeats)))
        except (RuntimeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--image-size {image_size}, --batch {batch_size}: {architecture} cannot take it ({reason})"
            ) from None
    return rows
