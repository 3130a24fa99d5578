"""Pictures of a run: its curves, and a sheet of the images that its clients see."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float

from pfrforgery.data.datasets import ImageSet
from tenfold.files import atomic_path

mpl.use("Agg")


def plot_curves(log: list[dict[str, Any]], path: Path, title: str) -> None:
    """AUC, accuracy and EER of every client and on average, and traffic, over the rounds.

    Args:
        log: lines of a run's `metrics.jsonl`.
        path: picture to write.
        title: above it.
    """
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    for axis, metric in zip(axes, ("auc", "acc", "eer"), strict=False):
        lines = [line for line in log if f"{metric}/mean" in line]
        rounds = [line["step"] for line in lines]
        for name in sorted({key for line in lines for key in line if key.startswith(f"{metric}/client ")}):
            axis.plot(
                rounds, [_number(line.get(name)) for line in lines], linewidth=0.8, alpha=0.7, label=name.split("/")[1]
            )
        axis.plot(rounds, [_number(line.get(f"{metric}/mean")) for line in lines], "k", linewidth=2, label="mean")
        axis.set(xlabel="round", title={"auc": "AUC", "acc": "accuracy", "eer": "EER"}[metric])
    if len(axes[0].lines) <= 12:
        axes[0].legend(fontsize="x-small")
    rounds = [line["step"] for line in log]
    traffic = np.cumsum([(line["bytes_down"] + line["bytes_up"]) / 2**20 for line in log])
    axes[3].plot(rounds, traffic, "k")
    axes[3].set(xlabel="round", title="MiB sent in all", ylim=(0, None))
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def contact_sheet(
    clients: list[ImageSet], pairs: int = 4, magnify: int = 3, margin: int = 4
) -> Float[np.ndarray, "h w 3"]:
    """A row for each client: genuine faces on the left, forged ones on the right.

    Args:
        clients: images of each.
        pairs: faces of each kind.
        magnify: whole factor.
        margin: white pixels between faces.
    """
    side = clients[0].images.shape[-1] * magnify + margin
    sheet = np.ones((side * len(clients) + margin, side * 2 * pairs + 2 * margin, 3), np.float32)
    for row, images in enumerate(clients):
        for label in (0, 1):
            for column, index in enumerate((images.labels == label).nonzero()[:pairs, 0].tolist()):
                face = images.images[index].permute(1, 2, 0).numpy().astype(np.float32) / 255
                top, left = margin + row * side, margin + (column + label * pairs) * side + label * margin
                sheet[top : top + side - margin, left : left + side - margin] = face.repeat(magnify, 0).repeat(
                    magnify, 1
                )
    return sheet
