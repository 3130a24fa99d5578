"""Pictures of a run, a profile and a study, for a person to judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tenfold.files import atomic_path


def _figure(width: float | int, height: float | int, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def plot_sessions(curves: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Accuracy over all classes seen, after each session, one line for each method."""
    figure, axes = _figure(7, 4.2)
    axis = axes[0, 0]
    for index, (name, seen) in enumerate(curves.items()):
        # Colours come back after ten curves: dashes tell them apart.
        style = "o-" if index < 10 else "s--"
        axis.plot(range(len(seen)), [100 * each for each in seen], style, color=f"C{index % 10}", label=name)
    axis.set(xlabel="session (0 = base)", ylabel="accuracy on all classes seen, %", title=title, ylim=(0, 100))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)


def plot_matrix(rows: Sequence[Sequence[float]], path: Path, title: str) -> None:
    """Accuracy on the classes of each session (column) after each session (row)."""
    figure, axes = _figure(5, 4.4)
    axis = axes[0, 0]
    lower = np.full((len(rows), len(rows)), np.nan)
    for index, row in enumerate(rows):
        lower[index, : len(row)] = 100 * np.array(row)
    image = axis.imshow(lower, cmap="viridis", vmin=0, vmax=100)
    for row in range(len(rows)):
        for column in range(row + 1):
            value = lower[row, column]
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", color="black" if value > 60 else "white")
    axis.set(xlabel="classes of session", ylabel="after session", title=title)
    figure.colorbar(image, ax=axis, label="accuracy, %")
    _save(figure, path)


def plot_intensity(
    maps: Mapping[str, tuple[Float[np.ndarray, "kh kw"], Float[np.ndarray, "kh kw"]]], path: Path
) -> None:
    """Knowledge intensity of layers: as measured (top) and divided by how often each tap is used (bottom); centre = 1."""
    names = list(maps)
    figure, axes = _figure(1.5 * len(names) + 1, 3.9, 2, len(names))
    for column, name in enumerate(names):
        for row, values in enumerate(maps[name]):
            axis = axes[row, column]
            centre = values[values.shape[0] // 2, values.shape[1] // 2]
            relative = values / centre if centre > 0 else values
            axis.imshow(relative, cmap="magma", vmin=0.4, vmax=1.2)
            for (i, j), value in np.ndenumerate(relative):
                axis.text(
                    j,
                    i,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if float(value) < 0.8 else "black",
                )
            axis.set_xticks([])
            axis.set_yticks([])
        axes[0, column].set_title(name, fontsize=7)
    axes[0, 0].set_ylabel("raw")
    axes[1, 0].set_ylabel("per use")
    _save(figure, path)


def plot_profile(
    kept: Mapping[str, Mapping[str, float]], totals: Mapping[str, Mapping[str, float]], path: Path, title: str
) -> None:
    """What each layer keeps (left, one colour for each scheme) and memory in all (right).

    Args:
        kept: scheme to layer to MiB kept for the backward pass.
        totals: scheme to part (activations, gradients, optimiser) to MiB.
        path: of the picture.
        title: above it.
    """
    figure, axes = _figure(12, 4.6, 1, 2)
    layers = list(dict.fromkeys(layer for each in kept.values() for layer in each))
    for scheme, by_layer in kept.items():
        axes[0, 0].plot(
            range(len(layers)), [by_layer.get(each, 0.0) for each in layers], drawstyle="steps-mid", label=scheme
        )
    axes[0, 0].set(xlabel="layer, in order", ylabel="MiB kept for the backward pass", title=title)
    axes[0, 0].set_yscale("symlog", linthresh=0.01)
    axes[0, 0].legend(fontsize=8)
    bottom = np.zeros(len(totals))
    for part in dict.fromkeys(part for each in totals.values() for part in each):
        values = np.array([each.get(part, 0.0) for each in totals.values()])
        axes[0, 1].barh(list(totals), values, left=bottom, label=part)
        bottom += values
    axes[0, 1].invert_yaxis()
    axes[0, 1].set(xlabel="MiB", title="training memory over weights")
    axes[0, 1].legend(fontsize=8)
    _save(figure, path)


def plot_pictures(rows: Sequence[Float[np.ndarray, "n h w 3"]], captions: Sequence[Sequence[str]], path: Path) -> None:
    """Rows of pictures, each with a caption; captions that begin with `!` are red."""
    columns = max(map(len, rows))
    figure, axes = _figure(1.25 * columns, 1.5 * len(rows), len(rows), columns)
    for axis in axes.flat:
        axis.axis("off")
    for line, (pictures, texts) in enumerate(zip(rows, captions, strict=True)):
        for column, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            axes[line, column].imshow(picture)
            axes[line, column].set_title(text.lstrip("!"), fontsize=7, color="red" if text.startswith("!") else "black")
    _save(figure, path)
