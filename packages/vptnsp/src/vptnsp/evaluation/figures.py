"""Pictures of results: the matrix of accuracies, spectra with their nullity, sample sheets."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tenfold.files import atomic_path


def plot_accuracy_matrix(matrix: Sequence[Sequence[float | None]], path: Path, title: str) -> None:
    """Accuracy on each task (across) after each task (down), in per cent.

    Args:
        matrix: in [0, 1], None where nothing was measured.
        path: a PNG file.
        title: above it.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    values = 100 * np.array([[np.nan if value is None else value for value in row] for row in matrix], dtype=float)
    tasks = len(values)
    side = max(3.0, 0.55 * tasks + 1.5)
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis")
    for row, column in np.argwhere(~np.isnan(values)):
        value = values[row, column]
        colour = "white" if value < 60 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="accuracy on task", ylabel="after task", xticks=range(tasks), yticks=range(tasks))
    axes.set_xticklabels([str(task + 1) for task in range(tasks)])
    axes.set_yticklabels([str(task + 1) for task in range(tasks)])
    axes.set_title(title, fontsize=8, wrap=True)
    figure.colorbar(image, ax=axes, label="%", shrink=0.8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def plot_spectra(
    spectra: Mapping[str, Float[np.ndarray, " n"]], nullities: Mapping[str, int], path: Path, title: str
) -> None:
    """Singular values of each layer on a logarithmic scale; a mark where the null space begins.

    Args:
        spectra: descending, by layer.
        nullities: R of each layer.
        path: a PNG file.
        title: above it.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(spectra))
    rows = -(-len(spectra) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3 * columns, 2.4 * rows), squeeze=False, layout="constrained")
    for axes in grid.flat[len(spectra) :]:
        axes.set_visible(False)
    for axes, (name, values) in zip(grid.flat, spectra.items(), strict=False):
        first = len(values) - nullities[name]
        axes.semilogy(np.maximum(values, values[0] * 1e-12), linewidth=1)
        axes.axvspan(first, len(values) - 1, alpha=0.15)
        axes.axvline(first, linestyle="--", linewidth=1)
        axes.set_title(f"{name}: R = {nullities[name]} of {len(values)}", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def plot_curves(curves: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Mean accuracy over the tasks so far, after each task, for several methods.

    Args:
        curves: in [0, 1], by method.
        path: a PNG file.
        title: above it.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    tasks = range(1, max(map(len, curves.values())) + 1)
    # Ever thinner lines: curves that coincide, as controls do, stay visible.
    widths = np.linspace(4.5, 1.2, len(curves))
    for (name, values), width in zip(curves.items(), widths, strict=True):
        percent = [100 * value for value in values]
        axes.plot(tasks[: len(values)], percent, marker="o", linewidth=width, markersize=4, label=name)
    axes.set(xlabel="tasks learnt", ylabel="mean accuracy so far, %", ylim=(0, 102), xticks=tasks)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
