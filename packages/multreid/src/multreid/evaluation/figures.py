"""Pictures of an association."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from tenfold.files import atomic_path


def plot_scores(scores: Mapping[str, float], title: str, out: Path) -> None:
    """A bar per method, best at the top, with its value.

    Args:
        scores: method to pair F1.
        title: above the bars.
        out: a .png.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ordered = sorted(scores.items(), key=lambda each: each[1])
    figure = Figure(figsize=(7, 0.45 * len(ordered) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ["tab:red" if name.startswith("MULT") else "tab:grey" for name, _ in ordered]
    bars = axes.barh([name for name, _ in ordered], [value for _, value in ordered], color=colours)
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.set(title=title, xlabel="pair F1", xlim=(0, 1.12))
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_labels(soft: Float[np.ndarray, "n k"], identities: Int[np.ndarray, " n"], title: str, out: Path) -> None:
    """Soft labels as an image, instances in the order of their identity: clean association shows as solid blocks.

    Args:
        soft: rows that sum to one.
        identities: true identities.
        title: above the image.
        out: a .png.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Clusters have no order of their own: by the mean identity of who carries them.
    weight = soft.sum(axis=0) + 1e-9
    columns = np.argsort((identities[:, None] * soft).sum(axis=0) / weight)
    image = axes.imshow(
        soft[np.argsort(identities, kind="stable")][:, columns], aspect="auto", cmap="magma", vmin=0, vmax=1
    )
    axes.set(title=title, xlabel="cluster of the other modality", ylabel="instance, by identity")
    figure.colorbar(image, label="soft label")
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=120)
