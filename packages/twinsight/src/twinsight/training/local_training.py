"""What a client does in a round: local epochs of SGD on what it holds (paper §3, alg. 1)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.optim.sgd import sgd

from tenfold.runs import autocast
from twinsight.config import METHODS, FederationConfig
from twinsight.data.partition import ClientData
from twinsight.method.losses import (
    StepLoss,
    Weights,
    gradient_cosine,
    labelled_loss,
    partial_data_loss,
    proximal_term,
    unlabelled_loss,
)
from twinsight.method.pseudo_labels import FreeMatchThreshold
from twinsight.models import TwinModel


@dataclass
class LocalResult:
    """What a client reports of a round.

    Attributes:
        samples: pictures it holds; its weight in the average.
        steps: steps it made.
        parts: mean of each loss term over the steps.
        gradient_cosine: of the two objectives on the shared encoder, at the first step; None where there is no conflict to measure.
    """

    samples: int
    steps: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    gradient_cosine: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether every loss term was a number."""
        return all(math.isfinite(value) for value in self.parts.values())


def round_weights(config: FederationConfig, round_number: int) -> Weights:
    """The weights of the loss terms in a round, counted from 1."""
    method = METHODS[config.method]
    ramp = config.neighbourhood_warmup * config.rounds
    warmth = min(1.0, round_number / ramp) if ramp >= 1 else 1.0
    on_unlabelled = method.on_unlabelled
    if on_unlabelled == "off" and method.kind != "classifier":
        on_unlabelled = config.pseudo_labels
        if on_unlabelled == "off" and config.setting == "partial-data":
            # The released configuration has FreeMatch on wherever a client has both kinds of pictures.
            on_unlabelled = "freematch"
    return Weights(
        instance=config.instance_weight,
        neighbourhood=config.neighbourhood_weight * warmth if method.constraint else 0.0,
        pseudo=config.pseudo_weight,
        on_unlabelled=on_unlabelled,
        normalisation=config.normalisation,
        supervised_views=config.supervised_views,
        threshold=config.threshold,
    )


def draw_seed(*key: int) -> int:
    """A seed that is as good as independent for every key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batches(count: int, size: int, generator: torch.Generator, least: int = 2) -> Iterator[Int[Tensor, " b"]]:
    """Shuffled indices in batches; a last batch of fewer than `least` is left out: BatchNorm has no statistics of one picture."""
    for chunk in torch.randperm(count, generator=generator).split(size):
        if len(chunk) >= least:
            yield chunk


def smallest_batch(weights: Weights) -> int:
    """The fewest pictures that a step can be made of: the official normalisation divides by zero at two."""
    return 3 if weights.neighbourhood and weights.normalisation == "official" else 2


def endless(count: int, size: int, generator: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
    """Batches of `min(size, count)` indices, reshuffled each time they run out."""
    while True:
        for chunk in torch.randperm(count, generator=generator).split(size):
            if len(chunk) == min(size, count):
                yield chunk


def local_round(
    model: TwinModel, client: ClientData, config: FederationConfig, round_number: int, client_id: int
) -> LocalResult:
    """Train `model` in place on what a client holds.

    Args:
        model: with the global weights; it trains on the device where it is.
        client: its pictures.
        config: of the federation.
        round_number: from 1.
        client_id: together with the seed and the round it decides all draws.

    Returns:
        What is reported; the caller checks `is_finite`.
    """
    generator = torch.Generator().manual_seed(draw_seed(config.seed, round_number, client_id))
    weights = round_weights(config, round_number)
    proximal = METHODS[config.method].proximal or (
        config.setting == "partial-data" and METHODS[config.method].kind == "twins"
    )
    mu = config.proximal_weight if proximal else 0.0
    reference = {name: each.detach().clone() for name, each in model.named_parameters()} if mu else {}
    trained = [each for each in model.parameters() if each.requires_grad]
    momenta: list[Tensor | None] = [None] * len(trained)
    result, sums = LocalResult(len(client)), {}
    model.train()
    for _ in range(config.local_epochs):
        statistics = FreeMatchThreshold(model.num_classes, clamp=(0.9, 0.95) if config.data == "svhn" else None)
        for loss in _losses(model, client, config, weights, statistics, generator):
            total = loss.total
            if mu:
                total = total + mu * proximal_term(model, reference)
            if model.kind == "shared" and not result.steps and "cross_entropy" in loss.parts:
                result.gradient_cosine = gradient_cosine(
                    loss.parts["cross_entropy"], loss.parts["instance"], list(model.encoder.parameters())
                )
            descend(trained, torch.autograd.grad(total, trained, allow_unused=True), momenta, config)
            if model.twin is not None:
                model.twin.follow()
            result.steps += 1
            for name, part in loss.parts.items():
                sums[name] = sums.get(name, 0.0) + part.item()
    result.parts = {name: value / result.steps for name, value in sums.items()}
    return result


@torch.no_grad()
def descend(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    momenta: list[Tensor | None],
    config: FederationConfig,
) -> None:
    """One step of SGD; what has no gradient stays, and so does its momentum.

    torch's function, not its class: making a `torch.optim.SGD` loads torch's compiler, three seconds in every fresh process, and a deployed
    client answers every message in one.

    Args:
        parameters: to move.
        gradients: one for each parameter.
        momenta: one for each parameter, None before its first step; updated in place.
        config: learning rate, momentum and weight decay.
    """
    moved = [index for index, gradient in enumerate(gradients) if gradient is not None]
    buffers = [momenta[index] for index in moved]
    sgd(
        [parameters[index] for index in moved],
        [gradients[index] for index in moved],  # ty: ignore[invalid-argument-type]  # none of these is None
        buffers,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        lr=config.learning_rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )
    for index, buffer in zip(moved, buffers, strict=True):
        momenta[index] = buffer


def _losses(
    model: TwinModel,
    client: ClientData,
    config: FederationConfig,
    weights: Weights,
    statistics: FreeMatchThreshold,
    generator: torch.Generator,
) -> Iterator[StepLoss]:
    """The losses of one local epoch, each computed when the last step has been made."""
    device = next(model.parameters()).device
    amp = autocast(device) if config.precision == "auto" else torch.autocast(device.type, enabled=False)

    def views(images: Tensor) -> tuple[Tensor, Tensor]:
        weak, strong = client.views(images, generator)
        return model.normalise(weak.to(device)), model.normalise(strong.to(device))

    known, unknown, least = client.labelled, client.unlabelled, smallest_batch(weights)
    learns_unlabelled = weights.on_unlabelled != "off" or model.twin is not None
    if len(known) and len(unknown) and learns_unlabelled:
        cycle = endless(len(known), config.batch_size, generator)
        for chunk in batches(len(unknown), config.batch_size, generator):
            first = next(cycle)
            weak, strong = views(torch.cat([known.images[first], unknown.images[chunk]]))
            with amp:
                loss = partial_data_loss(model, weak, strong, known.labels[first].to(device), weights, statistics)
            yield loss
    elif len(known):
        for chunk in batches(len(known), config.batch_size, generator, least):
            weak, strong = views(known.images[chunk])
            with amp:
                loss = labelled_loss(model, weak, strong, known.labels[chunk].to(device), weights)
            yield loss
    elif learns_unlabelled:
        for chunk in batches(len(unknown), config.batch_size, generator, least):
            weak, strong = views(unknown.images[chunk])
            with amp:
                loss = unlabelled_loss(model, weak, strong, weights, statistics)
            yield loss
