"""The whole audit on drawn faces: forge, train, score, audit, report. What `fairfd demo` runs."""

import math
from pathlib import Path

import numpy as np
import torch

from fairfd.config import TrainConfig
from fairfd.data.datasets import ArrayDataset
from fairfd.data.manifest.samples import Sample
from fairfd.data.synthetic.datasets import DrawnSplit, drawn_experiment
from fairfd.evaluation.audit.record import Audit
from fairfd.evaluation.audit.run import audit
from fairfd.evaluation.report.report import Report
from fairfd.evaluation.scores.inference import score
from fairfd.evaluation.scores.score_table import write_score_tables
from fairfd.models.detectors import create_detector
from fairfd.models.detectors.detector import Detector
from fairfd.training.loop import train
from tenfold.config import load_preset
from tenfold.images import write_image
from tenfold.runs import seed_everything

DETECTORS = ("small-rgb", "small-srm")
"""One that sees colours and one that sees noise residuals as well: they rank differently."""


def demonstrate(out: Path, seed: int = 0, epochs: int = 3) -> tuple[Audit, ...]:
    """Draw faces, forge them, train two small detectors and audit them.

    Args:
        out: folder that receives faces.png, scores.csv, metrics.json, report.html.
        seed: of faces, forgeries and training.
        epochs: of each detector.

    Returns:
        One audit per detector.
    """
    data = drawn_experiment(seed)
    write_image(out / "faces.png", contact_sheet(data.test, people=3))
    testing = drawn_dataset(data.test)
    tables = [score(train_small(name, data.train, seed, epochs), testing, batch_size=256) for name in DETECTORS]
    write_score_tables(out / "scores.csv", tables)
    audits = tuple(audit(table, n_boot=500, n_perm=199, seed=seed) for table in tables)
    report = Report(*audits)
    report.to_json(out / "metrics.json")
    report.to_html(out / "report.html")
    return audits


def train_small(name: str, training: DrawnSplit, seed: int, epochs: int = 6) -> Detector:
    """Train a small detector on drawn faces by the recipe of the preset `small`.

    Args:
        name: one of the `small-` detectors.
        training: images to learn from.
        seed: of initialisation, order and augmentation.
        epochs: passes over the training images.
    """
    recipe = load_preset("fairfd", "small", TrainConfig, epochs=epochs, seed=seed, precision="float32")
    seed_everything(seed)
    detector = create_detector(name)
    shown = drawn_dataset(training)
    # Nothing but the training images may choose among the epochs; in effect the last one is kept.
    train(detector, shown, shown, recipe)
    return detector


def drawn_dataset(split: DrawnSplit) -> ArrayDataset:
    """Drawn images as a data set."""
    samples = [
        Sample(image=f"{identity}-{number}", identity=identity, group=group, approach=approach, label=label)
        for number, (identity, group, approach, label) in enumerate(
            zip(
                split.identities.tolist(),
                split.groups.tolist(),
                split.approaches.tolist(),
                split.labels.tolist(),
                strict=True,
            )
        )
    ]
    return ArrayDataset((split.images * 255).round().to(torch.uint8), samples)


def contact_sheet(split: DrawnSplit, people: int, margin: int = 4, magnify: int = 2) -> np.ndarray:
    """A picture with a row for each approach and, side by side, the first faces of each group.

    Args:
        split: drawn images.
        people: faces of each group.
        margin: white pixels between faces.
        magnify: whole factor.

    Returns:
        float32 RGB in [0, 1].
    """
    columns = [
        int(np.flatnonzero(split.identities == identity)[0])
        for group in dict.fromkeys(split.groups.tolist())
        for identity in list(dict.fromkeys(split.identities[split.groups == group].tolist()))[:people]
    ]
    approaches = list(dict.fromkeys(split.approaches.tolist()))
    per_row = math.ceil(len(split) / len(approaches))
    side = split.images.shape[-1] * magnify + margin
    sheet = np.ones((side * len(approaches) + margin, side * len(columns) + margin, 3), np.float32)
    for row in range(len(approaches)):
        for column, first in enumerate(columns):
            face = split.images[row * per_row + first].permute(1, 2, 0).numpy()
            top, left = margin + row * side, margin + column * side
            sheet[top : top + side - margin, left : left + side - margin] = face.repeat(magnify, 0).repeat(magnify, 1)
    return sheet
