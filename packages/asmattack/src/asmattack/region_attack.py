"""The attack: a sign or L2 iteration that lives inside the semantic mask (or, as published, is pasted through it)."""

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from asmattack.detector import Detector
from asmattack.iteration import accumulate, blur, diversify, gaussian_kernel, project_l2, project_linf, quantise
from asmattack.objectives import Loss, Objective, objective_loss
from tenfold import UserError
from tenfold.runs import autocast


@dataclass(frozen=True)
class AttackConfig:
    """Settings of the iteration.

    Attributes:
        eps: Budget: largest change of a pixel in [0, 1] for linf, length of the whole change for l2.
        alpha: Step; eps / 4 when absent.
        steps: Iterations.
        objective: ce, margin, cafa or cafa_batch.
        norm: linf or l2.
        momentum: Decay mu of the velocity; 0 is plain.
        nesterov: Look ahead along the velocity before taking the gradient.
        ti_length: Side of the Gaussian that blurs the gradient; 0 is none.
        di_probability: Chance that an image is shrunk and moved before the gradient.
        start: zero, or inside mask and budget uniform noise or random signs (with no steps: the noise control).
        compose: inloop, or paste: attack the whole image and keep what lies in the mask (the authors' way).
        quantised: Give the result in 8-bit levels.
        eot: Gradients averaged at each step, for detectors that answer at random.
        precision: float32, or auto: bfloat16 in the detector where the hardware has it.
        allow_zero_start: Let cafa start where its gradient is zero (nothing will move).
        seed: Of the start and the input diversity.
    """

    eps: float = 8 / 255
    alpha: float | None = None
    steps: int = 10
    objective: Objective = "ce"
    norm: Literal["linf", "l2"] = "linf"
    momentum: float = 0.0
    nesterov: bool = False
    ti_length: int = 0
    di_probability: float = 0.0
    start: Literal["zero", "uniform", "signs"] = "zero"
    compose: Literal["inloop", "paste"] = "inloop"
    quantised: bool = True
    eot: int = 1
    precision: Literal["float32", "auto"] = "float32"
    allow_zero_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not self.eps >= 0 or self.steps < 0 or (self.alpha is not None and not self.alpha > 0):
            raise UserError("eps and steps cannot be negative, alpha must be positive")
        if self.eot < 1 or not 0 <= self.di_probability <= 1 or self.momentum < 0 or self.ti_length < 0:
            raise UserError("eot is at least 1, di_probability lies in [0, 1], momentum and ti_length are not negative")
        if self.objective.startswith("cafa") and self.start == "zero" and self.steps and not self.allow_zero_start:
            raise UserError("the gradient of cafa is zero at the clean image: use start='uniform'")

    @property
    def step(self) -> float:
        """Alpha, or its default."""
        return self.eps / 4 if self.alpha is None else self.alpha


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
    """

    images: Float[Tensor, "b 3 h w"]
    mask: Float[Tensor, "b 1 h w"]
    success: Bool[Tensor, " b"]
    within_budget: Bool[Tensor, " b"]
    empty_mask: Bool[Tensor, " b"]
    zero_gradient: Bool[Tensor, " b"]


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


@dataclass(frozen=True)
class State:
    """The perturbation before a step, with what the step saw of it; the last state has taken no step.

    Attributes:
        delta: perturbation.
        loss: per image.
        zero_gradient: the gradient inside the mask is exactly zero.
    """

    delta: Float[Tensor, "b 3 h w"]
    loss: Float[Tensor, " b"] | None = None
    zero_gradient: Bool[Tensor, " b"] | None = None


class RegionAttack:
    """Callable like a torchattacks attack: `attack(images, labels)` gives adversarial images.

    Args:
        detector: a `Detector`, or any module or differentiable callable from pixels in [0, 1] to two logits (or one).
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
            states = list_ends(self._states(x, labels, mask, start))
            return self._finish(x, labels, mask, *states)

    def trace(
        self, images: Tensor, labels: Int64[Tensor, " b"], mask: Tensor | None = None, start: Tensor | None = None
    ) -> AttackTrace:
        """The same attack, with its loss and its first success step by step; see `run`."""
        x, mask = check_inputs(images, labels, mask)
        losses, wrong = [], []
        with untouched(self.detector):
            states = list(self._states(x, labels, mask, start))
            batch = self._finish(x, labels, mask, states[0], states[-1])
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
        inside = torch.ones_like(mask) if self.config.compose == "paste" else mask
        return perturbations(loss, x, inside, self.config, start)

    def _finish(self, x: Tensor, labels: Tensor, mask: Tensor, first: State, last: State) -> AdversarialBatch:
        config = self.config
        delta = last.delta * (mask if config.compose == "paste" else (mask > 0))
        limit = config.eps * mask if config.norm == "linf" else None
        adversarial = quantise(x, delta, limit) if config.quantised else torch.where(delta == 0, x, x + delta)
        with torch.no_grad():
            success = self.detector(adversarial).argmax(1) != labels
        empty = (mask == 0).flatten(1).all(1)
        zero = torch.zeros_like(empty) if first.zero_gradient is None else first.zero_gradient & ~empty
        if zero.sum() * 2 > (~empty).sum():
            warnings.warn(
                "gradients vanish for more than half of the images: robustness would be overstated;"
                " try objective='margin' or start='uniform'",
                stacklevel=3,
            )
        return AdversarialBatch(adversarial, mask, success, within_budget(x, adversarial, mask, config), empty, zero)


def perturbations(
    loss: Loss, x: Tensor, mask: Tensor, config: AttackConfig, start: Tensor | None = None
) -> Iterator[State]:
    """The masked iteration: the state before each of `config.steps` steps, then the last one.

    Raises:
        UserError: a loss or gradient that is not finite (with the image's index).
    """
    alpha = config.step
    project = project_linf if config.norm == "linf" else project_l2
    generator = torch.Generator().manual_seed(config.seed)
    delta = first_perturbation(x, mask, config, generator) if start is None else start * (mask > 0)
    delta = project(x, delta, mask, config.eps)
    velocity, inside = torch.zeros_like(x), (mask > 0).to(x)
    kernel = gaussian_kernel(config.ti_length) if config.ti_length else None
    for _ in range(config.steps):
        delta = delta.detach().requires_grad_()
        z = x + delta
        if config.nesterov:
            z = z + config.momentum * alpha * velocity
        values, gradient = mean_gradient(loss, z, delta, config, generator)
        if kernel is not None:
            gradient = blur(gradient, kernel)
        # After the blur, which leaks across the mask's edge.
        gradient = gradient * inside
        yield State(delta.detach(), values, ~gradient.flatten(1).any(1))
        if config.momentum > 0:
            gradient = velocity = accumulate(velocity, gradient, config.momentum)
        if config.norm == "linf":
            direction = gradient.sign()
        else:
            direction = gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        delta = project(x, delta.detach() + alpha * direction, mask, config.eps)
    yield State(delta.detach())


def first_perturbation(x: Tensor, mask: Tensor, config: AttackConfig, generator: torch.Generator) -> Tensor:
    """Zero, uniform noise or random signs, times eps and the mask (so that nothing outside it is touched)."""
    if config.start == "zero":
        return torch.zeros_like(x)
    noise = torch.rand(x.shape, generator=generator).to(x) * 2 - 1
    if config.start == "signs":
        noise = noise.sign()
    return noise * config.eps * mask


def mean_gradient(
    loss: Loss, z: Tensor, delta: Tensor, config: AttackConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Loss per image and d/d delta of its sum, averaged over `config.eot` draws."""
    gradients, values = [], []
    for draw in range(config.eot):
        seen = diversify(z, config.di_probability, generator) if config.di_probability > 0 else z
        with torch.enable_grad(), autocast(z.device) if config.precision == "auto" else contextlib.nullcontext():
            each = loss(seen)
        (gradient,) = torch.autograd.grad(each.sum(), delta, retain_graph=draw + 1 < config.eot)
        # One number tells in nearly every case; which image it was is only looked for when it is not finite.
        if not bool((gradient.sum() + each.sum()).isfinite()):
            finite = gradient.isfinite().flatten(1).all(1) & each.isfinite()
            if not bool(finite.all()):
                raise UserError(f"loss or gradient of image {int((~finite).nonzero()[0, 0])} is not finite")
        gradients.append(gradient)
        values.append(each.detach())
    if config.eot == 1:
        return values[0], gradients[0]
    return torch.stack(values).mean(0), torch.stack(gradients).mean(0)


def list_ends(states: Iterator[State]) -> tuple[State, State]:
    """The first and the last state, without keeping those between."""
    first = last = next(states)
    for last in states:  # noqa: B007  # the last one is what is wanted
        pass
    return first, last


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
    return images.clamp(0, 1), mask


def within_budget(x: Tensor, adversarial: Tensor, mask: Tensor, config: AttackConfig) -> Bool[Tensor, " b"]:
    """Whether the result keeps box, mask and budget; pixels that are not 8-bit multiples may gain half a level by rounding."""
    change = (adversarial - x).abs()
    rounding = 1e-6 + (0.5 / 255 if config.quantised else 0.0) * ((255 * x - (255 * x).round()).abs() > 1e-3)
    boxed = ((adversarial >= 0) & (adversarial <= 1)).flatten(1).all(1)
    outside = (change * (mask == 0) == 0).flatten(1).all(1)
    if config.norm == "linf":
        return boxed & outside & (change <= config.eps * mask + rounding).flatten(1).all(1)
    return boxed & outside & (change.flatten(1).norm(dim=1) <= config.eps + 1e-5 + rounding.flatten(1).norm(dim=1))
