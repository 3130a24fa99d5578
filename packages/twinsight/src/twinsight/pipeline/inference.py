"""Naming pictures with a trained classifier."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch

from tenfold import UserError
from tenfold.data import to_tensor
from tenfold.files import atomic_path
from tenfold.images import list_images
from tenfold.runs import track
from twinsight.models import TwinModel


@dataclass(frozen=True)
class Prediction:
    """What a picture was named.

    Attributes:
        path: the picture.
        label: the most likely class.
        probability: of it, in [0, 1].
    """

    path: Path
    label: str
    probability: float


def predict_files(model: TwinModel, root: Path) -> list[Prediction]:
    """Name every picture below a folder, or one picture.

    Raises:
        UserError: no picture there, or one that cannot be read.
    """
    found = []
    device = next(model.parameters()).device
    for path in track(list_images(root), "name"):
        probability, index = model.predict(to_tensor(path)[None].to(device))[0].max(0)
        if not torch.isfinite(probability):
            raise UserError(f"{path}: the classifier gives no number; the model is damaged")
        found.append(Prediction(path, model.classes[int(index)], probability.item()))
    return found


def write_predictions(predictions: list[Prediction], path: Path) -> None:
    """Write path, class and probability as CSV."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["picture", "class", "probability"])
        writer.writerows([each.path.as_posix(), each.label, f"{each.probability:.4f}"] for each in predictions)
