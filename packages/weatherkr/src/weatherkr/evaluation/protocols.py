"""Judging a network on the pictures of a task, whole."""

import torch

from tenfold.runs import track
from tenfold.training.precision import Precision, precision_context
from weatherkr.data.datasets import PairSet
from weatherkr.evaluation.metrics import Protocol, psnr, ssim
from weatherkr.evaluation.report import Score
from weatherkr.models.networks import WeatherNet


@torch.inference_mode()
def evaluate(
    net: WeatherNet,
    pairs: PairSet,
    protocol: Protocol = "official",
    limit: int | None = None,
    precision: Precision = "auto",
    description: str = "evaluate",
) -> Score:
    """Restore each picture whole and compare it with the clean one.

    Args:
        net: the network; its device is used.
        pairs: the test pictures.
        protocol: of the metrics.
        limit: use at most this many pictures, spread evenly.
        precision: of the network; metrics are float32 or better.
        description: what the progress bar says.

    Returns:
        Means over the pictures.
    """
    net.eval()
    device = next(net.parameters()).device
    chosen = pairs if limit is None else pairs.first(limit)
    sums = torch.zeros(4, dtype=torch.float64)
    for index in track(range(len(chosen)), description):
        degraded, clean = (each[None].to(device) for each in chosen.pair(index))
        with precision_context(precision, device):
            restored = net.restore(degraded.contiguous(memory_format=torch.channels_last)).float()
        values = (
            psnr(restored, clean, protocol),
            ssim(restored, clean, protocol),
            psnr(degraded, clean, protocol),
            ssim(degraded, clean, protocol),
        )
        sums += torch.stack([value[0].double().cpu() for value in values])
    means = (sums / len(chosen)).tolist()
    return Score(*means, pictures=len(chosen))
