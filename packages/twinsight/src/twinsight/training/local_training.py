"""What a client does in a round: local epochs of SGD on what it holds (paper §3, alg. 1)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

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
from twinsight.models import TwinModel, frozen_target
from twinsight.training.state import ClientState


@dataclass
class LocalResult:
    """What a client reports of a round.

    Attributes:
        samples: pictures it holds; its weight in the average.
        steps: steps it made.
        skipped: batches that no step could be made of; see `can_step`.
        parts: mean of each loss term over the steps.
        gradient_cosine: of the two objectives on the shared encoder, at the first step; None where there is no conflict to measure.
        state: what the client keeps to itself until its next round.
    """

    samples: int
    steps: int = 0
    skipped: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    gradient_cosine: float | None = None
    state: ClientState = field(default_factory=ClientState)

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
        # The rivals are those of their papers.
        direction=config.pseudo_label_direction if method.kind != "classifier" else "weak_to_strong",
        feature=config.np_feature,
    )


def draw_seed(*key: int) -> int:
    """A seed that is as good as independent for every key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batches(count: int, size: int, generator: torch.Generator) -> list[Int[Tensor, " b"]]:
    """Shuffled indices in batches; the last one may be short, as in the official code."""
    return list(torch.randperm(count, generator=generator).split(size)) if count else []


def labelled_batch(count: int, size: int, position: int, *key: int) -> Int[Tensor, " b"]:
    """A batch of the labelled pictures beside an unlabelled one (partial-data setting; official code: the loader goes on across epochs and rounds).

    Args:
        count: labelled pictures of the client.
        size: of a batch; the last one of each pass is short.
        position: batches taken before, over all rounds.
        key: decides the order of each pass.
    """
    passes, index = divmod(position, -(-count // size))
    generator = torch.Generator().manual_seed(draw_seed(*key, passes))
    return torch.randperm(count, generator=generator).split(size)[index]


def can_step(pictures: int, config: FederationConfig) -> bool:
    """Whether a step can be made of so few pictures.

    The official normalisation divides by 2 XOR 2 = 0, which makes every weight NaN. Of one picture BatchNorm has statistics only where both its
    views are seen together: SimSiam and BYOL see them apart.
    """
    kind = METHODS[config.method].kind
    if pictures == 1:
        return kind != "classifier" and config.objective == "simclr" and config.supervised_views == "both"
    return pictures > 2 or kind != "twins" or config.normalisation != "official"


def epoch_steps(
    client: ClientData, config: FederationConfig, generator: torch.Generator, drawn: int, client_id: int
) -> list[tuple[Int[Tensor, " k"], Int[Tensor, " u"]]]:
    """Which labelled and which unlabelled pictures each step of a local epoch sees.

    Args:
        client: its pictures.
        config: of the federation.
        generator: shuffles what is passed over once.
        drawn: labelled batches that this client has taken before, where it has both kinds.
        client_id: its number.
    """
    known, unknown, nothing = len(client.labelled), len(client.unlabelled), torch.empty(0, dtype=torch.long)
    size = config.batch_size
    if known and unknown and learns_unlabelled(config):
        rest = batches(unknown, size, generator)
        key = (config.seed, client_id, 4)
        return [(labelled_batch(known, size, drawn + step, *key), chunk) for step, chunk in enumerate(rest)]
    if known:
        return [(chunk, nothing) for chunk in batches(known, size, generator)]
    return [(nothing, chunk) for chunk in batches(unknown, size, generator)] if learns_unlabelled(config) else []


def learns_unlabelled(config: FederationConfig) -> bool:
    """Whether pictures without labels teach the configured method anything."""
    return METHODS[config.method].kind != "classifier" or METHODS[config.method].on_unlabelled != "off"


def local_round(
    model: TwinModel,
    client: ClientData,
    config: FederationConfig,
    round_number: int,
    client_id: int,
    state: ClientState | None = None,
) -> LocalResult:
    """Train `model` in place on what a client holds.

    Args:
        model: with the global weights; it trains on the device where it is.
        client: its pictures.
        config: of the federation.
        round_number: from 1.
        client_id: together with the seed and the round it decides all draws.
        state: what the client kept of its last round; None for its first.

    Returns:
        What is reported and what is kept; the caller checks `is_finite`.
    """
    weights, state = round_weights(config, round_number), state or ClientState()
    if model.twin is not None and config.objective == "byol" and config.byol_target == "official":
        target = frozen_target(config, draw_seed(config.seed, client_id, 5), len(model.mean))
        model.twin.borrow(target.to(next(model.parameters()).device))
    mu = config.proximal_weight if _is_proximal(config) else 0.0
    reference = {name: each.detach().clone() for name, each in model.named_parameters()} if mu else {}
    names, trained = zip(*((n, each) for n, each in model.named_parameters() if each.requires_grad), strict=True)
    kept = state.momenta if config.momentum_across_rounds else {}
    momenta = [
        kept[name].to(each.device, copy=True) if name in kept else None
        for name, each in zip(names, trained, strict=True)
    ]
    result, sums = LocalResult(len(client), state=state), {}
    model.train()
    for loss in _losses(model, client, config, weights, (round_number, client_id), result):
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
    moved = {name: each for name, each in zip(names, momenta, strict=True) if each is not None}
    result.state = replace(result.state, momenta=moved if config.momentum_across_rounds else {})
    return result


def _is_proximal(config: FederationConfig) -> bool:
    """FedProx by name, and, as in the official code, for twins that have both kinds of pictures."""
    method = METHODS[config.method]
    return method.proximal or (config.setting == "partial-data" and method.kind == "twins")


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
    occasion: tuple[int, int],
    result: LocalResult,
) -> Iterator[StepLoss]:
    """The losses of all local epochs, each computed when the last step has been made; what they take of `result.state` is noted there.

    Args:
        model: in training.
        client: its pictures.
        config: of the federation.
        weights: of the terms.
        occasion: the round and the client.
        result: of the round.
    """
    device = next(model.parameters()).device
    amp = autocast(device) if config.precision == "auto" else torch.autocast(device.type, enabled=False)
    generator = torch.Generator().manual_seed(draw_seed(config.seed, *occasion))
    known, unknown = client.labelled, client.unlabelled
    for _ in range(config.local_epochs):
        statistics = FreeMatchThreshold(model.num_classes, clamp=(0.9, 0.95) if config.data == "svhn" else None)
        for first, rest in epoch_steps(client, config, generator, result.state.drawn, occasion[1]):
            if len(first) and len(rest):
                result.state = replace(result.state, drawn=result.state.drawn + 1)
            if not can_step(len(first) + len(rest), config):
                result.skipped += 1
                continue
            weak, strong = client.views(torch.cat([known.images[first], unknown.images[rest]]), generator)
            views = model.normalise(weak.to(device)), model.normalise(strong.to(device))
            labels = known.labels[first].to(device)
            with amp:
                if not len(rest):
                    loss = labelled_loss(model, *views, labels, weights)
                elif not len(first):
                    loss = unlabelled_loss(model, *views, weights, statistics)
                else:
                    loss = partial_data_loss(model, *views, labels, weights, statistics)
            yield loss
