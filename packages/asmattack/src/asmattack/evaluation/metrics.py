"""How often an attack succeeds and what it does to the picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics import Metric

from tenfold.perceptual import lpips_network


@dataclass(frozen=True)
class AttackRates:
    """Rates over a set; NaN where the denominator is empty.

    Attributes:
        clean_acc: right before.
        adv_acc: right after.
        robust_acc: right before and after.
        asr: wrong after, of those right before.
        evasion_rate: asr over fakes: a fake passes for real.
        false_alarm_rate: asr over reals.
        asr_drop: clean_acc - adv_acc, what the authors' stored table looks like.
        n: right before, the denominator of asr.
        n_fake: fakes among them, the denominator of evasion_rate.
        n_real: reals among them, the denominator of false_alarm_rate.
    """

    clean_acc: float
    adv_acc: float
    robust_acc: float
    asr: float
    evasion_rate: float
    false_alarm_rate: float
    asr_drop: float
    n: int
    n_fake: int
    n_real: int


def attack_rates(
    logits_clean: Float[Tensor, "n 2"],
    logits_adv: Float[Tensor, "n 2"],
    y: Int64[Tensor, " n"],
    counted: Bool[Tensor, " n"] | None = None,
) -> AttackRates:
    """Rates from the logits (real, fake) before and after.

    Args:
        logits_clean: of the clean images.
        logits_adv: of the attacked ones.
        y: 0 real, 1 fake.
        counted: images that the conditional rates are over, such as those that every detector of a transfer table gets right.
    """
    before, after = logits_clean.argmax(1) == y, logits_adv.argmax(1) == y
    counted = before if counted is None else before & counted

    def conditional(of: Tensor) -> float:
        return float((of & ~after).sum() / of.sum())

    clean, adversarial = float(before.float().mean()), float(after.float().mean())
    return AttackRates(
        clean_acc=clean,
        adv_acc=adversarial,
        robust_acc=float((before & after).float().mean()),
        asr=conditional(counted),
        evasion_rate=conditional(counted & (y == 1)),
        false_alarm_rate=conditional(counted & (y == 0)),
        asr_drop=clean - adversarial,
        n=int(counted.sum()),
        n_fake=int((counted & (y == 1)).sum()),
        n_real=int((counted & (y == 0)).sum()),
    )


def wilson(rate: float, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a rate over n trials; NaN when n is 0."""
    if n == 0:
        return float("nan"), float("nan")
    z = 1.959964
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (rate * (1 - rate) / n + z**2 / (4 * n**2)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


@dataclass(frozen=True)
class Distortion:
    """What one picture underwent.

    Attributes:
        mse: on 0..255.
        mae: mean |difference| / 255.
        psnr: in dB; infinite for identical pictures.
        ssim: 7x7 uniform window, per channel, mean.
        l0: share of pixels with any changed channel.
        linf: largest change in levels.
        l2: length of the change, pixels in [0, 1].
        psnr_in_mask: psnr over the changed pixels only; infinite for identical pictures.
    """

    mse: float
    mae: float
    psnr: float
    ssim: float
    l0: float
    linf: int
    l2: float
    psnr_in_mask: float


def distortion(clean: UInt8[np.ndarray, "h w 3"], adversarial: UInt8[np.ndarray, "h w 3"]) -> Distortion:
    """Distances of two 8-bit pictures."""
    difference = adversarial.astype(np.int64) - clean.astype(np.int64)
    mse = float((difference**2).mean())
    changed = float(difference.any(2).mean())
    return Distortion(
        mse=mse,
        mae=float(np.abs(difference).mean() / 255),
        psnr=float(10 * np.log10(255**2 / mse)) if mse else float("inf"),
        ssim=float(structural_similarity(clean, adversarial, channel_axis=2, data_range=255)),
        l0=changed,
        linf=int(np.abs(difference).max()),
        l2=float(np.sqrt((difference**2).sum()) / 255),
        psnr_in_mask=float(10 * np.log10(255**2 * changed / mse)) if mse else float("inf"),
    )


class AttackSuccessRate(Metric):
    """`attack_rates(...).asr` over batches and processes.

    Example:
        >>> rate = AttackSuccessRate()
        >>> rate.update(torch.eye(2), torch.eye(2).flip(0), torch.tensor([0, 1]))
        >>> float(rate.compute())
        1.0
    """

    right: Tensor
    fooled: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("fooled", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self, logits_clean: Float[Tensor, "n 2"], logits_adv: Float[Tensor, "n 2"], y: Int64[Tensor, " n"]
    ) -> None:
        """Count a batch."""
        before, after = logits_clean.argmax(1) == y, logits_adv.argmax(1) == y
        self.right += before.sum()
        self.fooled += (before & ~after).sum()

    def compute(self) -> Float[Tensor, ""]:
        """Wrong after, of those right before; NaN when none was."""
        return self.fooled / self.right


@torch.no_grad()
def lpips(clean: Float[Tensor, "n 3 h w"], adversarial: Float[Tensor, "n 3 h w"], weights: Path | None = None) -> float:
    """Mean LPIPS (AlexNet) of pixels in [0, 1].

    Args:
        clean: faces.
        adversarial: the same, attacked.
        weights: AlexNet's, see `tenfold.perceptual.lpips_network`.

    Raises:
        UserError: no weights.
    """
    network = lpips_network(weights)
    parts = zip(clean.split(64), adversarial.split(64), strict=True)
    return float(torch.cat([network(one, other, normalize=True).flatten() for one, other in parts]).mean())
