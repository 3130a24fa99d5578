"""The attack: a sign or L2 iteration that lives inside the semantic mask (or, as published, is pasted through it)."""

import contextlib
import math
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from asmattack.config import AttackConfig
from asmattack.method.iteration import Iteration, State, perturbations, quantise
from asmattack.method.losses import objective_loss
from asmattack.models.detector import Detector
from tenfold import UserError


@dataclass(frozen=True)
class AdversarialBatch:
    """Result of one attack.

    Attributes:
        images: adversarial pixels in [0, 1].
        mask: where pixels might change.
        success: the detector answers otherwise than the label; re-checked on `images` as given (rounded if quantised).
        within_budget: box, mask and budget hold for `images` as given.
        empty_mask: images without a selected region: not attackable.
        zero_gradient: images whose first gradient was exactly zero inside the mask.
        budget_covers_all: images on which a policy by area had nothing to choose, see `Selection`; of a given mask none.
    """

    images: Float[Tensor, "b 3 h w"]
    mask: Float[Tensor, "b 1 h w"]
    success: Bool[Tensor, " b"]
    within_budget: Bool[Tensor, " b"]
    empty_mask: Bool[Tensor, " b"]
    zero_gradient: Bool[Tensor, " b"]
    budget_covers_all: Bool[Tensor, " b"]


@dataclass(frozen=True)
class AttackTrace:
    """How one attack went.

    Attributes:
        batch: its result.
        loss: before each step.
        first_success_step: steps after which the detector first answered wrongly (before rounding); -1: never.
        queries: forward passes of the detector that the attack itself made for each image.
    """

    batch: AdversarialBatch
    loss: Float[Tensor, "t b"]
    first_success_step: Int64[Tensor, " b"]
    queries: int


class RegionAttack:
    """Callable like a torchattacks attack: `attack(images, labels)` gives adversarial images.

    Args:
        detector: a `Detector`, or any module or differentiable callable from pixels in [0, 1] to one output or two.
        config: the settings.
    """

    def __init__(
        self, detector: torch.nn.Module | Callable[[Tensor], Tensor], config: AttackConfig | None = None
    ) -> None:
        self.detector = detector if isinstance(detector, Detector) else Detector(detector)
        self.config = config or AttackConfig()

    def __call__(self, images: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Adversarial images; without a mask the whole image may change."""
        return self.run(images, labels, mask).images

    def run(
        self, images: Tensor, labels: Int64[Tensor, " b"], mask: Tensor | None = None, start: Tensor | None = None
    ) -> AdversarialBatch:
        """Attack a batch and check the result.

        Args:
            images: pixels (b, 3, h, w) in [0, 1], or uint8.
            labels: 0 real, 1 fake: the true answers, which the attack moves away from.
            mask: (b, 1, h, w) in [0, 1].
            start: a first perturbation in place of the configured one.

        Raises:
            ValueError: see `check_inputs`.
            UserError: a gradient that is not finite.
        """
        x, mask = check_inputs(images, labels, mask)
        with untouched(self.detector):
            self.detector.calibrate(x, labels)
            ends = self._until_fooled if self.config.stop_early else self._every_step
            return self._finish(x, labels, mask, *ends(x, labels, mask, start))

    def trace(
        self, images: Tensor, labels: Int64[Tensor, " b"], mask: Tensor | None = None, start: Tensor | None = None
    ) -> AttackTrace:
        """The same attack, with its loss and its first success step by step; see `run`.

        Raises:
            UserError: a configuration that stops early.
        """
        if self.config.stop_early:
            raise UserError("a trace follows every step: it cannot stop early")
        x, mask = check_inputs(images, labels, mask)
        losses, wrong = [], []
        with untouched(self.detector):
            self.detector.calibrate(x, labels)
            states = list(self._states(x, labels, mask, start))
            batch = self._finish(x, labels, mask, _zero(states[0]), states[-1].delta)
            for state in states:
                with torch.no_grad():
                    wrong.append(self.detector(x + state.delta * mask).argmax(1) != labels)
                if state.loss is not None:
                    losses.append(state.loss)
        succeeded = torch.stack(wrong)
        first = torch.where(succeeded.any(0), succeeded.int().argmax(0), -1)
        clean_pass = int(self.config.objective.startswith("cafa"))
        loss = torch.stack(losses) if losses else torch.zeros(0, len(x))
        return AttackTrace(batch, loss, first, len(losses) * self.config.eot + clean_pass)

    def _states(self, x: Tensor, labels: Tensor, mask: Tensor, start: Tensor | None) -> Iterator[State]:
        loss = objective_loss(self.config.objective, self.detector, x, labels)
        return perturbations(loss, x, self._searched(mask), self.config, start)

    def _searched(self, mask: Tensor) -> Tensor:
        return torch.ones_like(mask) if self.config.compose == "paste" else mask

    def _every_step(self, x: Tensor, labels: Tensor, mask: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the first gradient was (zero?), and the last perturbation."""
        states = self._states(x, labels, mask, start)
        state = next(states)
        zero, delta = _zero(state), state.delta
        del state  # its perturbation would stay in memory through every step
        for each in states:
            delta = each.delta
        return zero, delta

    def _until_fooled(self, x: Tensor, labels: Tensor, mask: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """The active set: images leave it once they are fooled, also as they would be given out."""
        objective = self.config.objective
        iteration = Iteration(
            objective_loss(objective, self.detector, x, labels), x, self._searched(mask), self.config, start
        )
        rows, final = torch.arange(len(x), device=x.device), iteration.delta.clone()
        zero = torch.zeros_like(labels, dtype=torch.bool)
        for number in range(self.config.steps):
            state = iteration.look()
            zero = _zero(state) if number == 0 else zero
            final[rows] = iteration.delta
            active = ~self._fooled(state, x[rows], labels[rows], mask[rows])
            if not bool(active.all()):
                left = active.nonzero().flatten()
                rows = rows[left]
                if not len(rows):
                    break
                iteration.keep(left, objective_loss(objective, self.detector, x[rows], labels[rows]))
            iteration.step()
        final[rows] = iteration.delta
        return zero, final

    @torch.no_grad()
    def _fooled(self, state: State, x: Tensor, labels: Tensor, mask: Tensor) -> Bool[Tensor, " b"]:
        """Which images are fooled as they would be given out; only those are asked about whose loss may say so."""
        config, known = self.config, {"ce": math.log(2), "margin": 0.0}
        fooled = torch.ones_like(labels, dtype=torch.bool)
        if state.loss is not None and config.eot == 1 and not config.di_probability and not config.nesterov:
            fooled = state.loss > known.get(config.objective, -math.inf) - 1e-6
        asked = fooled.nonzero().flatten()
        if len(asked):
            given = self._given_out(x[asked], state.delta[asked], mask[asked])
            fooled[asked] = self.detector(given).argmax(1) != labels[asked]
        return fooled

    def _given_out(self, x: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """The clean image with the perturbation inside the mask, rounded if the result is to be."""
        config = self.config
        delta = delta * (mask if config.compose == "paste" else (mask > 0))
        if not config.quantised:
            return torch.where(delta == 0, x, x + delta)
        return quantise(x, delta, config.eps * mask if config.norm == "linf" else None)

    def _finish(self, x: Tensor, labels: Tensor, mask: Tensor, zero: Tensor, delta: Tensor) -> AdversarialBatch:
        adversarial = self._given_out(x, delta, mask)
        with torch.no_grad():
            success = self.detector(adversarial).argmax(1) != labels
        empty = (mask == 0).flatten(1).all(1)
        zero = zero & ~empty
        if zero.sum() * 2 > (~empty).sum():
            warnings.warn(
                "gradients vanish for more than half of the images: robustness would be overstated;"
                " try objective='margin' or start='uniform'",
                stacklevel=3,
            )
        found = within_budget(x, adversarial, mask, self.config)
        return AdversarialBatch(adversarial, mask, success, found, empty, zero, torch.zeros_like(empty))


def _zero(state: State) -> Bool[Tensor, " b"]:
    if state.zero_gradient is None:  # no step is taken
        return torch.zeros(len(state.delta), dtype=torch.bool, device=state.delta.device)
    return state.zero_gradient


@contextlib.contextmanager
def untouched(detector: Detector) -> Generator[None]:
    """Evaluate with frozen parameters; mode and `requires_grad` of every module are put back, also after an error."""
    modes = {module: module.training for module in detector.modules()}
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    detector.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_()


def check_inputs(images: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images and mask as floats in [0, 1]; no mask is the whole image.

    Raises:
        ValueError: not a batch of RGB images, values outside [0, 1] (normalised tensors), labels or a mask that do not fit.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images {tuple(images.shape)}: expected (batch, 3, height, width), RGB")
    if labels.shape != images.shape[:1] or not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"labels: expected {len(images)} of 0 (real) or 1 (fake)")
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ValueError(
            f"pixels from {low:.3g} to {high:.3g}: pass pixels in [0,1]; normalisation belongs in Detector(mean=, std=)"
        )
    mask = torch.ones_like(images[:, :1]) if mask is None else mask.to(images)
    if mask.shape != (len(images), 1, *images.shape[-2:]):
        raise ValueError(f"mask {tuple(mask.shape)} does not fit images {tuple(images.shape)}")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError("mask values must lie in [0, 1]")
    return images if low >= 0 and high <= 1 else images.clamp(0, 1), mask


def within_budget(x: Tensor, adversarial: Tensor, mask: Tensor, config: AttackConfig) -> Bool[Tensor, " b"]:
    """Whether the result keeps box, mask and budget; pixels that are not 8-bit multiples may gain half a level by rounding."""
    change = (adversarial - x).abs()
    rounding = 1e-6 + (0.5 / 255 if config.quantised else 0.0) * ((255 * x - (255 * x).round()).abs() > 1e-3)
    boxed = ((adversarial >= 0) & (adversarial <= 1)).flatten(1).all(1)
    outside = (change * (mask == 0) == 0).flatten(1).all(1)
    if config.norm == "linf":
        return boxed & outside & (change <= config.eps * mask + rounding).flatten(1).all(1)
    return boxed & outside & (change.flatten(1).norm(dim=1) <= config.eps + 1e-5 + rounding.flatten(1).norm(dim=1))
