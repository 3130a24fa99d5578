"""Pictures of a federation: who holds what, accuracy over rounds, the two views."""

from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from tenfold.files import atomic_path
from twinsight.data.datasets import Pictures
from twinsight.data.transforms import ViewMaker


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")


def plot_partition(
    counts: Int[np.ndarray, "k c"], labelled: tuple[int, ...], classes: tuple[str, ...], path: Path
) -> None:
    """A stacked bar of class counts for each client; labelled clients are named in bold."""
    figure = Figure(figsize=(2 + 0.7 * len(counts), 4))
    axes = figure.subplots()
    base = np.zeros(len(counts))
    for index, name in enumerate(classes):
        axes.bar(np.arange(len(counts)), counts[:, index], bottom=base, width=0.8, label=name)
        base = base + counts[:, index]
    axes.set_xticks(np.arange(len(counts)), [f"{k}\n{'labelled' if k in labelled else ''}" for k in range(len(counts))])
    for client, tick in enumerate(axes.get_xticklabels()):
        tick.set_fontweight("bold" if client in labelled else "normal")
        tick.set_fontsize(7)
    axes.set_xlabel("client")
    axes.set_ylabel("pictures")
    if len(classes) <= 20:
        axes.legend(fontsize=7, ncols=2, bbox_to_anchor=(1.01, 1), loc="upper left")
    save_figure(figure, path)


def plot_curves(curves: dict[str, list[float]], path: Path, title: str = "") -> None:
    """Test accuracy over rounds, a line for each name."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(np.arange(1, len(curve) + 1), curve, label=name, marker="." if len(curve) < 60 else "")
    axes.set_xlabel("round")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_views(pictures: Pictures, views: ViewMaker, path: Path, count: int = 8) -> None:
    """A row of pictures, one of their weak and one of their strong views."""
    import torch

    weak, strong = views(pictures.images[:count], torch.Generator().manual_seed(0))
    rows = [pictures.images[:count] / 255, weak, strong]
    figure = Figure(figsize=(count, 3.3))
    grid = figure.subplots(3, count, squeeze=False)
    for line, (name, images) in enumerate(zip(("picture", "weak view", "strong view"), rows, strict=True)):
        for column in range(count):
            axes = grid[line][column]
            axes.set_xticks([])
            axes.set_yticks([])
            if column < len(images):
                axes.imshow(images[column].clamp(0, 1).permute(1, 2, 0).numpy())
        grid[line][0].set_ylabel(name)
    save_figure(figure, path)
