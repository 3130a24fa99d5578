"""Whole-image baselines from the library torchattack, with its own defaults where the budget does not say otherwise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from asmattack.method.iteration import quantise
from asmattack.method.region_attack import AdversarialBatch, AttackConfig, check_inputs, untouched, within_budget
from asmattack.models.detector import Detector
from tenfold import UserError

GLOBAL_ATTACKS = {
    "global-fgsm": "FGSM",
    "global-pgd": "PGD",
    "global-mifgsm": "MIFGSM",
    "global-difgsm": "DIFGSM",
    "global-tifgsm": "TIFGSM",
    "global-vmifgsm": "VMIFGSM",
}
"""Our names of the library's classes."""


@dataclass(frozen=True)
class GlobalAttack:
    """A whole-image attack of torchattack, callable like `RegionAttack`.

    Attributes:
        detector: what is attacked.
        name: one of `GLOBAL_ATTACKS`.
        eps: L-inf budget.
        steps: iterations; fgsm has one.
        seed: of random starts and input diversity, which the library draws from torch's own generator.
        quantised: give the result in 8-bit levels.
    """

    detector: Detector
    name: str
    eps: float = 8 / 255
    steps: int = 10
    seed: int = 0
    quantised: bool = True

    def __post_init__(self) -> None:
        """Refuse unknown names and a missing library."""
        library_class(self.name)
        if self.eps < 0 or self.steps < 1:
            raise UserError("eps cannot be negative, steps is at least 1")

    def __call__(self, images: Float[Tensor, "b 3 h w"], labels: Int64[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Adversarial images."""
        return self.run(images, labels).images

    def run(self, images: Float[Tensor, "b 3 h w"], labels: Int64[Tensor, " b"]) -> AdversarialBatch:
        """Attack a batch and check the result."""
        x, mask = check_inputs(images, labels, None)
        options: dict[str, Any] = {"eps": self.eps, "device": x.device}
        if self.name != "global-fgsm":
            # The library's own step, eps / steps, cannot use the budget twice over; ours and PGD's is eps / 4.
            options |= {"steps": self.steps, "alpha": self.eps / 4}
        self.detector.calibrate(x, labels)
        with untouched(self.detector), torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self.seed)
            adversarial = library_class(self.name)(self.detector, **options)(x, labels).detach()
        config = AttackConfig(eps=self.eps, quantised=self.quantised)
        if self.quantised:
            adversarial = quantise(x, adversarial - x, self.eps * mask)
        with untouched(self.detector), torch.no_grad():
            success = self.detector(adversarial).argmax(1) != labels
        nothing = torch.zeros_like(success)
        return AdversarialBatch(
            adversarial, mask, success, within_budget(x, adversarial, mask, config), nothing, nothing, nothing
        )


def library_class(name: str) -> Callable[..., Any]:
    """The library's class of one of `GLOBAL_ATTACKS`.

    Raises:
        UserError: an unknown name, or torchattack is not installed.
    """
    if name not in GLOBAL_ATTACKS:
        raise UserError(f"no attack {name!r}; whole-image baselines are {', '.join(GLOBAL_ATTACKS)}")
    try:
        import torchattack
    except ImportError:
        raise UserError(f"{name} comes from torchattack: pip install 'asmattack[baselines]'") from None
    return getattr(torchattack, GLOBAL_ATTACKS[name])
