"""The masked iteration: settings, start, gradient, step; and the active set of early stopping."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from asmattack.config import AttackConfig
from asmattack.method.losses import Loss
from tenfold import UserError
from tenfold.runs import autocast


def project_linf(
    x: Float[Tensor, "b 3 h w"], delta: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"], eps: float
) -> Float[Tensor, "b 3 h w"]:
    """P(delta) = clip(x + clip(delta, -eps M, eps M), 0, 1) - x."""
    limit = eps * mask
    return (x + delta.clamp(-limit, limit)).clamp(0, 1) - x


def project_l2(
    x: Float[Tensor, "b 3 h w"], delta: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"], eps: float
) -> Float[Tensor, "b 3 h w"]:
    """Inside the mask, on the L2 ball of radius eps of each image, then on the box (which only shortens)."""
    inside = delta * mask
    norm = inside.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    return (x + inside * (eps / norm).clamp(max=1)).clamp(0, 1) - x


def accumulate(
    velocity: Float[Tensor, "b 3 h w"], gradient: Float[Tensor, "b 3 h w"], mu: float
) -> Float[Tensor, "b 3 h w"]:
    """Momentum: v <- mu v + g / mean|g| per image."""
    mean = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return mu * velocity + gradient / mean


def gaussian_kernel(length: int = 15, reach: float = 3.0) -> Float[Tensor, "n n"]:
    """Standard normal density at `length` points of [-reach, reach], outer product, sum 1 (translation invariance)."""
    density = torch.exp(-torch.linspace(-reach, reach, length, dtype=torch.float64).square() / 2)
    kernel = density[:, None] * density
    return (kernel / kernel.sum()).float()


def blur(gradient: Float[Tensor, "b 3 h w"], kernel: Float[Tensor, "n n"]) -> Float[Tensor, "b 3 h w"]:
    """Depthwise convolution with zero padding, same size."""
    weight = kernel.to(gradient).expand(3, 1, -1, -1)
    return F.conv2d(gradient, weight, padding="same", groups=3)


def diversify(
    z: Float[Tensor, "b 3 h w"], probability: float, generator: torch.Generator, smallest: float = 0.9
) -> Float[Tensor, "b 3 h w"]:
    """Input diversity: with `probability`, each image is shrunk to between `smallest` and 1 of its side and put down at random.

    One draw per image. The pixels around are zero.
    """
    count, _, height, width = z.shape
    draws = torch.rand((count, 4), generator=generator)
    scale = torch.where(draws[:, 0] < probability, smallest + (1 - smallest) * draws[:, 1], torch.ones(count))
    shift = (draws[:, 2:] * 2 - 1) * (1 - scale)[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = -shift / scale[:, None]
    grid = F.affine_grid(theta.to(z), [count, 3, height, width], align_corners=False)
    moved = F.grid_sample(z, grid, padding_mode="zeros", align_corners=False)
    return torch.where((scale < 1).to(z.device)[:, None, None, None], moved, z)


def quantise(
    x: Float[Tensor, "b 3 h w"],
    delta: Float[Tensor, "b 3 h w"],
    limit: Float[Tensor, "b 1 h w"] | None,
) -> Float[Tensor, "b 3 h w"]:
    """x + delta in whole levels of an 8-bit image, still inside the budget; a pixel that was not touched stays bitwise.

    Args:
        x: 8-bit content, multiples of 1/255.
        delta: feasible perturbation.
        limit: eps M for an L-inf budget: rounded to nearest, at most floor(255 limit) levels; None for L2: rounded towards
            zero, which cannot lengthen it.
    """
    if limit is None:
        levels = (255 * delta + 1e-4 * delta.sign()).trunc()
    else:
        most = (255 * limit + 1e-3).floor()
        levels = (255 * delta).round().clamp(-most, most)
    rounded = ((255 * x).round() + levels).clamp(0, 255) / 255
    return torch.where(levels == 0, x, rounded)


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


class Iteration:
    """The masked iteration of a batch, one step at a time.

    Args:
        loss: of inputs near `x`, one value for each image.
        x: clean pixels.
        mask: where they may change.
        config: the settings.
        start: a first perturbation in place of the configured one.
    """

    def __init__(self, loss: Loss, x: Tensor, mask: Tensor, config: AttackConfig, start: Tensor | None = None) -> None:
        self.loss, self.x, self.mask, self.config = loss, x, mask, config
        self.generator = torch.Generator().manual_seed(config.seed)
        delta = first_perturbation(x, mask, config, self.generator) if start is None else start * (mask > 0)
        self.delta = self._project(delta)
        # Kept as small as may be: beside the detector's activations these are what fills the memory.
        self.velocity = torch.zeros_like(x) if config.momentum > 0 else torch.zeros_like(mask[:, :, :1, :1])
        self.inside = (mask > 0).to(x)
        self.gradient = torch.zeros_like(self.velocity)
        self.kernel = gaussian_kernel(config.ti_length) if config.ti_length else None

    @torch.enable_grad()
    def look(self) -> State:
        """The gradient where the iteration stands.

        Raises:
            UserError: a loss or gradient that is not finite (with the image's index).
        """
        delta = self.delta.detach().requires_grad_()
        z = self.x + delta
        if self.config.nesterov:
            z = z + self.config.momentum * self.config.step * self.velocity
        values, gradient = mean_gradient(self.loss, z, delta, self.config, self.generator)
        if self.kernel is not None:
            gradient = blur(gradient, self.kernel)
        # After the blur, which leaks across the mask's edge.
        self.gradient = gradient * self.inside
        return State(self.delta, values, ~self.gradient.flatten(1).any(1))

    def step(self) -> None:
        """Follow the gradient that was looked at, and stay feasible."""
        direction, self.gradient = self.gradient, torch.zeros_like(self.gradient[:, :1, :1, :1])
        if self.config.momentum > 0:
            direction = self.velocity = accumulate(self.velocity, direction, self.config.momentum)
        if self.config.norm == "linf":
            direction = direction.sign()
        else:
            direction = direction / direction.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        self.delta = self._project(self.delta + self.config.step * direction)

    def keep(self, rows: Int64[Tensor, " m"], loss: Loss) -> None:
        """Go on with some of the images, whose loss is given."""
        self.loss = loss
        for name in ("x", "mask", "delta", "velocity", "inside", "gradient"):
            setattr(self, name, getattr(self, name)[rows])

    def _project(self, delta: Tensor) -> Tensor:
        project = project_linf if self.config.norm == "linf" else project_l2
        return project(self.x, delta, self.mask, self.config.eps)


def perturbations(
    loss: Loss, x: Tensor, mask: Tensor, config: AttackConfig, start: Tensor | None = None
) -> Iterator[State]:
    """The state before each of `config.steps` steps, then the last one; see `Iteration`."""
    iteration = Iteration(loss, x, mask, config, start)
    for _ in range(config.steps):
        yield iteration.look()
        iteration.step()
    yield State(iteration.delta)


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
