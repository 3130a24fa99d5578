"""The attack under other libraries' calling conventions: torchattacks, adversarial-robustness-toolbox."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from asmattack.config import preset
from asmattack.data.parsers import Parser
from asmattack.method.masks import attack
from asmattack.method.region_attack import AttackConfig, RegionAttack
from asmattack.method.selection import Policy
from asmattack.models.detector import Detector


class ASMA:
    """The semantic-mask attack with the interface of a torchattacks attack.

    Example:
        >>> attacker = ASMA(model, eps=8 / 255, steps=10)  # doctest: +SKIP
        >>> adversarial = attacker(images, labels)  # doctest: +SKIP

    Args:
        model: pixels in [0, 1] to two logits, real and fake; for a model on normalised input call `set_normalization_used`.
        eps: L-inf budget.
        alpha: step; eps / 4 when absent.
        steps: iterations.
        decay: momentum.
        random_start: start from uniform noise inside the mask.
        policy: how regions are chosen.
        parser: of faces; geometric by default.
        seed: of start and random choices.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        eps: float = 8 / 255,
        alpha: float | None = None,
        steps: int = 10,
        decay: float = 0.0,
        random_start: bool = False,
        policy: Policy = "budget",
        parser: Parser | None = None,
        seed: int = 0,
    ) -> None:
        self.attack = "ASMA"
        self.model = model
        self.policy: Policy = policy
        self.parser = parser
        self.config = AttackConfig(
            eps=eps,
            alpha=alpha,
            steps=steps,
            momentum=decay,
            start="uniform" if random_start else "zero",
            quantised=False,
            seed=seed,
        )
        self._detector = Detector(model)
        self._normalised: tuple[Tensor, Tensor] | None = None

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Images handed in, and back, are normalised with these; the model expects them so (as in torchattacks)."""
        self._detector = Detector(self.model, mean=mean, std=std)
        self._normalised = (torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1))

    def __call__(self, images: Float[Tensor, "b 3 h w"], labels: Int64[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Adversarial images, in the convention of the input."""
        if self._normalised is None:
            return self._pixels(images, labels)
        mean, std = (each.to(images) for each in self._normalised)
        return (self._pixels((images * std + mean).clamp(0, 1), labels) - mean) / std

    def _pixels(self, images: Tensor, labels: Tensor) -> Tensor:
        return attack(self._detector, images, labels, config=self.config, policy=self.policy, parser=self.parser).images

    def __repr__(self) -> str:
        return f"ASMA(eps={self.config.eps:.4f}, steps={self.config.steps}, policy={self.policy})"


class ArtAttack:
    """A `RegionAttack` with the interface of an adversarial-robustness-toolbox evasion attack.

    Args:
        attack: what is run.
    """

    def __init__(self, attack: RegionAttack) -> None:
        self.attack = attack

    def generate(
        self, x: np.ndarray, y: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> Float[np.ndarray, "b 3 h w"]:
        """Adversarial images.

        Args:
            x: (b, 3, h, w) in [0, 1].
            y: labels, or one-hot rows; the detector's own answers when absent.
            mask: (b, 1, h, w), or what broadcasts to it.
        """
        images = torch.from_numpy(np.asarray(x, dtype=np.float32))
        if y is None:
            with torch.no_grad():
                labels = self.attack.detector(images).argmax(1)
        else:
            labels = torch.from_numpy(np.asarray(y if np.ndim(y) == 1 else np.argmax(y, 1)).astype(np.int64))
        shape = (len(images), 1, *images.shape[-2:])
        inside = None if mask is None else torch.from_numpy(np.broadcast_to(mask, shape).astype(np.float32))
        return self.attack(images, labels, inside).numpy()


def as_art(model: torch.nn.Module | Callable[[Tensor], Tensor], name: str = "pgd", eps: float = 8 / 255) -> ArtAttack:
    """A named attack under the calling convention of adversarial-robustness-toolbox: `generate(x, y, mask=)`."""
    return ArtAttack(RegionAttack(model, preset(name, eps)))
