"""Testing a saved classifier."""

from dataclasses import dataclass
from pathlib import Path

from tenfold import UserError
from twinsight.config import FederationConfig
from twinsight.data.datasets import Pictures, labelled_folder, load
from twinsight.evaluation.inference import predict_labels
from twinsight.models import TwinModel

NAMED_SETS = ("digits", "cifar10", "cifar100", "svhn", "fashionmnist")


@dataclass(frozen=True)
class Scores:
    """How well a classifier names pictures.

    Attributes:
        accuracy: in per cent.
        pictures: how many were tested.
        per_class: for each class its number of pictures and its accuracy in per cent.
    """

    accuracy: float
    pictures: int
    per_class: dict[str, tuple[int, float]]


def test_pictures(data: str, root: Path | None, model: TwinModel) -> Pictures:
    """The test part of a named set, or a folder whose class folders are named like the model's classes.

    Raises:
        UserError: no such set or folder, or other classes than the model's.
    """
    if data in NAMED_SETS:
        pictures = load(FederationConfig(data=data, root=root))[1]
    else:
        pictures = labelled_folder(Path(data), model.image_size)
    if pictures.classes != model.classes:
        raise UserError(
            f"{data}: has the classes {', '.join(pictures.classes[:8])}, the model knows {', '.join(model.classes[:8])}"
        )
    return pictures


def score(model: TwinModel, pictures: Pictures) -> Scores:
    """Accuracy over all pictures and over each class."""
    correct = (predict_labels(model, pictures, "float32") == pictures.labels).double()
    per_class = {}
    for index, name in enumerate(pictures.classes):
        of_class = pictures.labels == index
        if of_class.any():
            per_class[name] = (int(of_class.sum()), 100 * correct[of_class].mean().item())
    return Scores(100 * correct.mean().item(), len(pictures), per_class)
