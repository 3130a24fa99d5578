"""What one client does in one round: its batches, its optimiser, its phases. Pure of Flower and files.

Every random number follows from (seed, round, client): results depend neither on the order in which clients run nor on the number of workers.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.sgd import sgd

from pfrforgery.config import FederationConfig
from pfrforgery.data.datasets import ClientData, ImageSet
from pfrforgery.evaluation.metrics import BinaryMetrics, auc, binary_metrics
from pfrforgery.method.baselines import Algorithm, predict_of, predictions_of
from pfrforgery.method.gradient_routing import StepLosses
from pfrforgery.models.networks import Predict, TwoBranchDetector, fake_probability
from tenfold import UserError
from tenfold.runs import autocast

FINE_TUNING_RATE = 0.1
"""Of the first round's learning rate, in `fedavg-ft`."""


@dataclass(frozen=True)
class Turn:
    """Whose turn it is.

    Attributes:
        seed: of the run.
        round: counted from 1.
        client: number of the client.
    """

    seed: int
    round: int
    client: int

    def generator(self, stream: int) -> torch.Generator:
        """A generator for one purpose of this turn."""
        entropy = np.random.SeedSequence([self.seed, self.round, self.client, stream])
        return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))


BATCHES, OPERATIONS = 0, 1
"""The streams of a turn: batches and their augmentation; the draws inside a step. FedAvg and FedPR thus see the same batches."""


def steps_in_round(count: int, config: FederationConfig) -> int:
    """Optimiser steps of a client with `count` images."""
    whole, rest = divmod(count, config.batch_size)
    return config.local_steps or config.local_epochs * (whole + (rest >= 2))


def batch_indices(count: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
    """Batches of freshly shuffled epochs, until there were `steps`; a last batch of a single image is dropped."""
    done = 0
    while done < steps:
        order = torch.randperm(count, generator=generator)
        for batch in order.split(batch_size):
            if len(batch) >= 2 and done < steps:
                yield batch
                done += 1


def as_input(images: Tensor, device: torch.device) -> Float[Tensor, "n 3 s s"]:
    """Bytes to floats in [0, 1], in the memory format that convolutions prefer."""
    return (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)


def mirrored(x: Float[Tensor, "n 3 s s"], generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """Mirror each image with probability one half."""
    chosen = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(chosen[:, None, None, None], x.flip(-1), x)


def train_client(
    model: TwoBranchDetector,
    train: ImageSet,
    algorithm: Algorithm,
    config: FederationConfig,
    turn: Turn,
    learning_rate: float,
    steps: int,
) -> StepLosses:
    """Train a detector in place for one round.

    Args:
        model: as received, with the client's own part in place.
        train: the client's images.
        algorithm: what to do.
        config: how.
        turn: decides every random number.
        learning_rate: of the round.
        steps: optimiser steps of a phase that sees all batches.

    Returns:
        Mean losses over the steps.

    Raises:
        UserError: a loss that is not finite.
    """
    model.train()
    device = next(model.parameters()).device
    losses: list[StepLosses] = []
    for phase in algorithm.phases(model, config):
        parameters = list(phase.parameters)
        momenta: list[Tensor | None] = [None] * len(parameters)
        shuffling, operations = turn.generator(BATCHES), turn.generator(OPERATIONS)
        first, last = {"all": (0, steps), "first half": (0, steps // 2), "second half": (steps // 2, steps)}[phase.part]
        for step, batch in enumerate(batch_indices(len(train), config.batch_size, steps, shuffling)):
            x = as_input(train.images[batch], device)
            x = mirrored(x, shuffling) if config.flip else x
            if not first <= step < last:
                continue
            with autocast(device) if config.precision == "auto" else contextlib.nullcontext():
                losses.append(phase.gradients(x, train.labels[batch].to(device), operations))
            descend(parameters, momenta, learning_rate, config)
    mean = StepLosses(*(sum(values) / len(losses) for values in zip(*map(_values, losses), strict=True)))
    if not all(map(math.isfinite, _values(mean))):
        raise UserError(f"client {turn.client}: the loss is not finite in round {turn.round}; lower the learning rate")
    return mean


@torch.no_grad()
def descend(
    parameters: list[nn.Parameter], momenta: list[Tensor | None], learning_rate: float, config: FederationConfig
) -> None:
    """One step of SGD with the parameters' gradients.

    torch's function, not its class: making a `torch.optim.SGD` imports the compiler, four seconds in every fresh process, and a deployed client
    answers every message in a fresh process.

    Args:
        parameters: to move.
        momenta: one for each parameter, None before the first step; updated in place.
        learning_rate: of the round.
        config: momentum and weight decay.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sgd(
        parameters,  # ty: ignore[invalid-argument-type]
        gradients,
        momenta,
        foreach=True,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        lr=learning_rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )


def _values(losses: StepLosses) -> tuple[float, float, float]:
    return losses.shared, losses.personal, losses.adversarial


def fine_tune(
    model: TwoBranchDetector,
    data: ClientData,
    algorithm: Algorithm,
    config: FederationConfig,
    turn: Turn,
) -> None:
    """Adapt a received model to a client before it is used, where the algorithm does so: a round's steps at a tenth of the rate."""
    if algorithm.fine_tunes:
        steps = steps_in_round(len(data.train), config)
        # A stream of its own: round + 1 would be the next round's batches.
        tuning = Turn(turn.seed, 10**6 + turn.round, turn.client)
        train_client(model, data.train, algorithm, config, tuning, FINE_TUNING_RATE * config.learning_rate, steps)


@torch.inference_mode()
def branch_logits(model: TwoBranchDetector, images: Tensor, batch_size: int = 256) -> dict[str, Float[Tensor, "n 2"]]:
    """Logits of every branch for images in bytes, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    parts = [model(as_input(part, device)) for part in images.split(batch_size)]
    return {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}


@dataclass(frozen=True)
class ClientScores:
    """How a client's detector does on images.

    Attributes:
        predict: the branch that decided.
        frames: metrics of images.
        videos: metrics of videos; those of images where no two share a video.
        alone: accuracy and AUC of each branch alone, where there are two.
    """

    predict: Predict
    frames: BinaryMetrics
    videos: BinaryMetrics
    alone: dict[str, tuple[float, float]]


def choose_predict(
    model: TwoBranchDetector, data: ClientData, algorithm: Algorithm, config: FederationConfig
) -> Predict:
    """The branch that decides: the configured one, or for `auto` the most accurate on the images held out (AUC breaks ties)."""
    if config.predict != "auto" or not len(data.held_out):
        return predict_of(algorithm, config)
    logits, labels = branch_logits(model, data.held_out.images), data.held_out.labels.numpy()

    def merit(predict: Predict) -> tuple[float, float]:
        scores = fake_probability(logits, predict).numpy()
        return binary_metrics(scores, labels).acc, auc(scores, labels)

    return max(predictions_of(algorithm), key=merit)


def score_client(model: TwoBranchDetector, images: ImageSet, algorithm: Algorithm, predict: Predict) -> ClientScores:
    """Metrics of a client's detector.

    Raises:
        UserError: no images, or predictions that are not finite.
    """
    if not len(images):
        raise UserError("there are no images to test on")
    logits, labels = branch_logits(model, images.images), images.labels.numpy()
    scores = fake_probability(logits, predict).numpy()
    frames = binary_metrics(scores, labels)
    alone = {}
    if algorithm.network != "one branch":
        for branch in ("shared", "personal"):
            single = fake_probability(logits, branch).numpy()
            alone[branch] = (binary_metrics(single, labels).acc, auc(single, labels))
    videos = binary_metrics(scores, labels, images.videos) if images.videos else frames
    return ClientScores(predict, frames, videos, alone)
