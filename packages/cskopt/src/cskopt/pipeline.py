"""A saved learner at work on files: naming pictures, learning a folder of new classes, being measured."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cskopt.data.datasets import ClassOrder, Corpus, Pictures, SessionPictures, as_loader, read_square
from cskopt.models.checkpoints import PictureFormat
from cskopt.training.learner import IncrementalLearner
from cskopt.training.loop import SessionRecipe
from cskopt.training.run import make_accelerator, session_accuracies
from tenfold import UserError
from tenfold.data import class_folder
from tenfold.folders import FolderReport, work_on_files
from tenfold.images import list_images
from tenfold.runs import seed_everything, track


def open_learner(checkpoint: Path, device: torch.device) -> tuple[IncrementalLearner, PictureFormat]:
    """A saved learner that knows what pictures it wants.

    Raises:
        UserError: not a learner, or one that was saved without `pictures`.
    """
    learner = IncrementalLearner.load(checkpoint, accelerator=make_accelerator(device))
    if learner.pictures is None:
        raise UserError(
            f"{checkpoint}: does not say which pictures it was trained on; set learner.pictures and save it again"
        )
    return learner, learner.pictures


@dataclass(frozen=True)
class Evaluation:
    """A saved learner, measured.

    Attributes:
        classes: names of each session's classes.
        accuracies: on each session's classes.
        overall: over all test pictures of classes seen.
    """

    classes: list[list[str]]
    accuracies: list[float]
    overall: float


def evaluate_learner(learner: IncrementalLearner, corpus: Corpus, batch_size: int = 256) -> Evaluation:
    """Measure a learner on the test part of a corpus; classes are matched by name.

    Raises:
        UserError: the corpus lacks a class that the learner has learnt.
    """
    known = () if learner.pictures is None else learner.pictures.classes[: learner.classes_seen]
    missing = [name for name in known if name not in corpus.classes]
    if missing or not known:
        raise UserError(f"{corpus.name}: has no class {missing[0] if missing else '?'}, which the learner knows")
    starts = itertools.accumulate([0, *map(len, learner.sessions)])
    sessions = tuple(range(a, b) for a, b in itertools.pairwise(starts))
    rest = [index for index, name in enumerate(corpus.classes) if name not in known]
    order = ClassOrder((*(corpus.classes.index(name) for name in known), *rest), sessions)
    accuracies = session_accuracies(learner, corpus, order, len(sessions) - 1, batch_size)
    counts = [int(torch.isin(corpus.test.labels, order.labels_of(each)).sum()) for each in range(len(sessions))]
    overall = sum(a * n for a, n in zip(accuracies, counts, strict=True)) / sum(counts)
    return Evaluation([[known[each] for each in ids] for ids in sessions], accuracies, overall)


@dataclass(frozen=True)
class Named:
    """A picture and what the learner takes it for.

    Attributes:
        path: of the picture.
        name: of the class.
        probability: that the learner gives it.
    """

    path: Path
    name: str
    probability: float


def name_pictures(learner: IncrementalLearner, root: Path, batch_size: int = 64) -> FolderReport[Named]:
    """Name a picture, or all pictures below a folder; those that cannot be read are passed over and noted.

    Raises:
        UserError: no pictures, or not one that can be read.
    """
    form = learner.pictures
    if form is None:
        raise UserError("the learner does not say which pictures it wants; set learner.pictures")
    named: dict[Path, Named] = {}
    waiting: dict[Path, Tensor] = {}

    def name_waiting() -> None:
        if waiting:
            scores = learner.scores(_normalised(torch.cat(list(waiting.values())), form))
            values, ids = scores.cpu().max(1)
            for path, index, value in zip(waiting, ids, values, strict=True):
                named[path] = Named(path, form.classes[int(index)], float(value))
            waiting.clear()

    def read(path: Path) -> None:
        waiting[path] = read_square(str(path), form.size)
        if len(waiting) == batch_size:
            name_waiting()

    found = work_on_files(track(list_images(root), "pictures"), read, alone=root.is_file())
    name_waiting()
    return FolderReport(named, found.skipped)


def _normalised(pictures: Tensor, form: PictureFormat) -> Float[Tensor, "n 3 h w"]:
    mean, std = torch.tensor(form.mean)[:, None, None], torch.tensor(form.std)[:, None, None]
    return (pictures.float() / 255 - mean) / std


def learn_folder(
    learner: IncrementalLearner, root: Path, recipe: SessionRecipe, batch_size: int, seed: int
) -> dict[str, float]:
    """Teach a learner the classes of a folder, one folder per class, as one more session.

    Args:
        learner: changed in place.
        root: folder of class folders; all their pictures are learnt from.
        recipe: how long and how fast.
        batch_size: pictures in a step.
        seed: of the order of pictures.

    Returns:
        What `fit_session` says.

    Raises:
        UserError: no class folders, or a class that the learner knows.
    """
    form = learner.pictures
    if form is None:
        raise UserError("the learner does not say which pictures it wants; set learner.pictures")
    found = class_folder(root)
    seen = form.classes[: learner.classes_seen]
    known = sorted(set(found.classes) & set(seen))
    if known:
        raise UserError(f"{root}: the learner knows {known[0]} already; a session brings new classes only")
    pictures = Pictures.of_files(found.samples, form.size)
    corpus = Corpus(root.name, tuple(found.classes), pictures, pictures, form.mean, form.std)
    # Ids go on where the last session ended: a new class's label is its place after them.
    ids = range(len(seen), len(seen) + len(found.classes))
    dataset = SessionPictures(
        pictures, ClassOrder(tuple(range(len(found.classes))), ()), torch.arange(len(ids)), corpus, first=ids.start
    )
    seed_everything(seed)
    loader = as_loader(dataset, batch_size, torch.Generator().manual_seed(seed))
    said = learner.fit_session(loader, ids, recipe)
    learner.pictures = PictureFormat((*seen, *found.classes), form.size, form.mean, form.std)
    return said
