"""Pictures of an association."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont

from tenfold.files import atomic_path
from tenfold.images import read_image, write_image


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


_CELL = (96, 192)
_CAPTION = 30
_GAP = 8


def contact_sheet(
    queries: Sequence[Path],
    answers: Sequence[Sequence[Path]],
    distances: Sequence[Sequence[float]],
    out: Path,
) -> None:
    """Write a sheet with a row per query: the query, then its answers with rank, distance and folder/name.

    Args:
        queries: files.
        answers: files, nearest first, for each query.
        distances: squared Euclidean distances between unit features, 0 (same) to 4.
        out: a picture file.
    """
    columns = 1 + max(len(each) for each in answers)
    width, height = _CELL[0] + _GAP, _CELL[1] + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, len(queries) * height + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, (query, found, far) in enumerate(zip(queries, answers, distances, strict=True)):
        cells = [(query, "query")] + [
            (path, f"#{rank}  d = {distance:.3f}")
            for rank, (path, distance) in enumerate(zip(found, far, strict=True), 1)
        ]
        for column, (path, caption) in enumerate(cells):
            left, top = _GAP + column * width, _GAP + row * height
            sheet.paste(_thumbnail(path), (left, top))
            pen.text((left, top + _CELL[1] + 2), caption, "black", font)
            pen.text((left, top + _CELL[1] + 15), f"{path.parent.name}/{path.name}"[-16:], "dimgray", font)
            if column == 0:
                pen.rectangle(
                    (left - 2, top - 2, left + _CELL[0] + 1, top + _CELL[1] + 1), outline="firebrick", width=2
                )
    write_image(out, np.asarray(sheet, dtype=np.float32) / 255)


def _thumbnail(path: Path) -> Image.Image:
    levels = np.rint(read_image(path) * 255).astype(np.uint8)
    return Image.fromarray(levels).resize(_CELL, Image.Resampling.BICUBIC)


def ranked_paths(
    paths: Sequence[Path], rows: Int[np.ndarray, "q k"], distances: Float[np.ndarray, "q k"]
) -> tuple[list[list[Path]], list[list[float]]]:
    """Files and distances of each query's answers; places that an index left empty (-1) are dropped."""
    found = [[paths[row] for row in each if row >= 0] for each in rows]
    far = [
        [float(d) for row, d in zip(each, values, strict=True) if row >= 0]
        for each, values in zip(rows, distances, strict=True)
    ]
    return found, far
