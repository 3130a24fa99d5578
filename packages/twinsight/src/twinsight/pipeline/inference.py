"""Naming pictures with a trained classifier."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from tenfold import UserError
from tenfold.data import to_tensor
from tenfold.files import atomic_path
from tenfold.folders import FolderReport, work_on_files
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


def predict_files(model: TwinModel, root: Path) -> FolderReport[Prediction]:
    """Name every picture below a folder that can be read, or one picture.

    Raises:
        UserError: no picture there, or not one that can be read.
    """
    device = next(model.parameters()).device

    def name(path: Path) -> Prediction:
        probability, index = model.predict(to_tensor(path)[None].to(device))[0].max(0)
        if not torch.isfinite(probability):
            raise UserError(f"{path}: the classifier gives no number; the model is damaged")
        return Prediction(path, model.classes[int(index)], probability.item())

    return work_on_files(track(list_images(root), "name"), name, alone=root.is_file())


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write path, class and probability as CSV."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["picture", "class", "probability"])
        writer.writerows([each.path.as_posix(), each.label, f"{each.probability:.4f}"] for each in predictions)
