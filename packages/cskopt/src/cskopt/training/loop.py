"""The optimisation of one incremental session (paper §3.5 and §3.6): which parameters, which loss, how many steps."""

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cskopt.config import CsKOConfig
from cskopt.method.losses import session_loss
from cskopt.method.prototypes import PrototypeBank
from tenfold.options import Count, NonNegative, Positive, Share, check_fields
from tenfold.runs import autocast

Groups = list[dict[str, Any]]
Penalty = Callable[[tuple[Tensor, ...], Tensor], Tensor]


@dataclass(frozen=True)
class SessionRecipe:
    """How long and how fast a session learns.

    Attributes:
        epochs: passes over the session's pictures.
        lr: learning rate of kernels and biases.
        head_lr: learning rate of the head.
        lr_drop: share of the epochs after which both fall to a tenth.
        weight_decay: L2 penalty added to the gradient.
        penalty_weight: of EWC or LwF.
        cache_prefix: compute the frozen layers once; right when pictures are not augmented.
        precision: bf16 autocast where the hardware has it (auto), or fp32.
    """

    epochs: Count = 60
    lr: Positive = 1e-4
    head_lr: Positive = 1e-4
    lr_drop: Share = 0.75
    weight_decay: NonNegative = 5e-4
    penalty_weight: NonNegative = 1.0
    cache_prefix: bool = False
    precision: Literal["auto", "fp32"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)


def precision_context(
    precision: Literal["auto", "fp32"], device: torch.device
) -> "contextlib.AbstractContextManager[Any]":
    """bf16 autocast where the hardware has it, or nothing."""
    return autocast(device) if precision == "auto" else contextlib.nullcontext()


class WithPrototypes(nn.Module):
    """A model and its head on prototypes in one forward pass, so that data-parallel training sees all uses of the head."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        # In a tuple it is not registered a second time: the head is a layer of the body.
        self._head = (head,)

    def forward(self, inputs: tuple[Tensor, ...], prototypes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits of the pictures, and of the prototypes if there are any."""
        return self.body(*inputs), None if prototypes is None else self._head[0](prototypes)


class Spread(nn.Module):
    """A model of several inputs as one of a tuple."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Logits."""
        return self.body(*inputs)


def parameter_groups(model: nn.Module, head: nn.Linear, recipe: SessionRecipe) -> Groups:
    """What an optimiser is given: trained kernels and biases in the group `kernels`, if there are any, and the `head`."""
    own = list(head.parameters())
    known = {id(each) for each in own}
    kernels = [each for each in model.parameters() if each.requires_grad and id(each) not in known]
    groups: Groups = [{"params": own, "lr": recipe.head_lr, "weight_decay": recipe.weight_decay, "name": "head"}]
    if kernels:
        groups.insert(0, {"params": kernels, "lr": recipe.lr, "weight_decay": recipe.weight_decay, "name": "kernels"})
    return groups


def fit_epochs(
    network: WithPrototypes,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    accelerator: Accelerator,
    recipe: SessionRecipe,
    config: CsKOConfig,
    prototypes: PrototypeBank,
    penalty: Penalty,
    generator: torch.Generator,
    progress: Callable[[int, float], None] | None = None,
    accept: Callable[[Tensor], None] | None = None,
) -> float:
    """Train for the recipe's epochs; return the mean loss of the last.

    Args:
        network: the trained part of the model.
        optimizer: of its parameters, with the projection attached.
        loader: (inputs..., labels) of the session.
        accelerator: device and processes.
        recipe: how long; rates fall to a tenth once.
        config: temperature and weight of the prototypes.
        prototypes: of the old classes; as many are drawn as there are pictures in a step, over all processes.
        penalty: of inputs and logits, added to the loss.
        generator: draws prototypes, alike in every process.
        progress: called after each epoch with its number from 1 and its mean loss.
        accept: called with the labels of each batch of the first epoch, to refuse what does not belong there.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(1, round(recipe.lr_drop * recipe.epochs))])
    prepared, stepper, feed = accelerator.prepare(network, optimizer, loader)
    value = math.nan
    for epoch in range(recipe.epochs):
        losses = []
        for *inputs, labels in feed:
            if epoch == 0 and accept is not None:
                accept(labels)
            drawn, classes = None, None
            if config.proto_weight > 0:
                drawn, classes = prototypes.sample(len(labels) * accelerator.num_processes, generator)
                drawn, classes = drawn.to(accelerator.device), classes.to(accelerator.device)
            with precision_context(recipe.precision, accelerator.device):
                logits, proto_logits = prepared(tuple(inputs), drawn)
            loss = session_loss(logits, labels, config.temperature, proto_logits, classes, config.proto_weight)
            loss = loss + penalty(tuple(inputs), logits)
            stepper.zero_grad()
            accelerator.backward(loss)
            stepper.step()
            losses.append(loss.detach())
        schedule.step()
        value = float(torch.stack(losses).mean()) if losses else math.nan
        if not math.isfinite(value):
            raise FloatingPointError("the loss of the session is not finite; lower the learning rate")
        if progress is not None:
            progress(epoch + 1, value)
    return value


def let_go(accelerator: Accelerator) -> None:
    """Forget what was prepared: `free_memory()` without its garbage collection, which takes longer than a small session."""
    for prepared in (accelerator._models, accelerator._optimizers, accelerator._dataloaders):
        prepared.clear()
