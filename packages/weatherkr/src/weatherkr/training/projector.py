"""Fitting the projector to the features of the memory (official code, models/Autoencoder.py)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.random import seed_of
from weatherkr.config import TrainConfig
from weatherkr.models.projector import AttentionProjector, PCAProjector, ProjectionDecoder, Projector
from weatherkr.training.state import LearnerState
from weatherkr.training.teacher import MemoryFeatures

KEEP_BYTES = 1 << 30
"""Features up to this size are kept over the epochs of an autoencoder's training; larger ones are computed anew in each."""


@dataclass(frozen=True)
class FitReport:
    """How well a projector keeps the features.

    Attributes:
        losses: mean L1 of the reconstruction, an entry for each epoch.
    """

    losses: tuple[float, ...]


def cosine_rate(start: float, step: int, steps: int) -> float:
    """start (1 + cos(pi s / S)) / 2."""
    return start * (1 + math.cos(math.pi * step / steps)) / 2


def fit_attention_projector(
    projector: AttentionProjector,
    decoder: ProjectionDecoder,
    features: Iterable[Float[Tensor, "b c h w"]],
    epochs: int = 50,
    learning_rate: float = 1e-4,
) -> FitReport:
    """Train phi as the encoder of an autoencoder: min mean|f - dec(phi(f))|. Adam, a cosine over epochs, constant within each.

    Args:
        projector: trained in place; frozen afterwards. Weights that are frozen already stay as they are (`freeze_first`).
        decoder: trained in place.
        features: one update for each, in this order; gone through once an epoch.
        epochs: passes over them.
        learning_rate: the official code names 1e-3, but its schedule starts from 1e-4.
    """
    trained = [weight for weight in (*projector.parameters(), *decoder.parameters()) if weight.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=learning_rate)
    losses = []
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = cosine_rate(learning_rate, epoch, epochs)
        total, count = 0.0, 0
        for f in features:
            loss = (f - decoder(projector(f))).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total, count = total + loss.item(), count + 1
        losses.append(total / max(count, 1))
    optimiser.zero_grad()
    projector.requires_grad_(False)
    return FitReport(tuple(losses))


def fit_projector(state: LearnerState, config: TrainConfig, device: torch.device) -> Projector:
    """phi of the features of the memory under the network just learnt (policy: `config.projector_update`)."""
    if state.projector is not None and config.projector_update == "freeze_first":
        return state.projector
    channels = state.net.feature_channels
    features = MemoryFeatures(state.net, state.memory, device, config.precision)
    if config.projector == "pca":
        return PCAProjector(channels, min(config.rank, channels)).to(device).fit(features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "projector", len(state.learnt)))
        fresh = AttentionProjector(channels, min(config.rank, channels)).to(device)
        decoder = ProjectionDecoder(channels, fresh.rank).to(device)
    if isinstance(state.projector, AttentionProjector) and config.projector_update == "continue":
        fresh.load_state_dict(state.projector.state_dict())
    kept = list(features) if features.size <= KEEP_BYTES else features
    fit_attention_projector(fresh, decoder, kept, config.projector_epochs, config.projector_learning_rate)
    return fresh
