"""Scoring a model by the benchmarks' protocols (section 6)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from multreid.config import EvalConfig
from multreid.data.datasets import CropSet
from multreid.data.layouts import Crops, folder_crops, llcm_test, regdb_part, sysu_test
from multreid.evaluation.metrics import Convention, ReIDScores, VisibleInfraredReID
from multreid.models.features import extract
from multreid.models.networks import TwoStreamResNet
from tenfold import UserError


@dataclasses.dataclass(frozen=True)
class ProtocolScores:
    """Means over the trials of a protocol.

    Attributes:
        rank1: share of queries whose first answer is right.
        rank5: share with a right answer among the first five.
        rank10: among the first ten.
        rank20: among the first twenty.
        mean_ap: mAP.
        mean_inp: mINP.
        rank1_std: standard deviation of `rank1` over the trials, 0 for one trial.
        mean_ap_std: the same of `mean_ap`.
        trials: how many.
        queries: queries of a trial.
    """

    rank1: float
    rank5: float
    rank10: float
    rank20: float
    mean_ap: float
    mean_inp: float
    rank1_std: float
    mean_ap_std: float
    trials: int
    queries: int


def required(path: Path | None, option: str) -> Path:
    """The path, or a `UserError` that names the option."""
    if path is None:
        raise UserError(f"{option}: needed for this data set")
    return path


def convention_of(test: EvalConfig) -> Convention:
    """Which rules the data set's scores follow; folders count pictures and leave none out, as RegDB does."""
    return test.dataset if test.dataset in ("sysu", "llcm") else "regdb"


def trials_of(test: EvalConfig) -> Iterator[tuple[Crops, Crops]]:
    """Queries and gallery of each trial.

    Raises:
        UserError: a folder that is missing, or has no identities.
    """
    if test.dataset in ("sysu", "llcm"):
        root = required(test.root, "--root")
        for trial in range(test.trials):
            yield sysu_test(root, test.mode, trial) if test.dataset == "sysu" else llcm_test(root, test.query, trial)
        return
    if test.dataset == "regdb":
        visible, infrared = regdb_part(required(test.root, "--root"), "test", test.trial)
    else:
        visible = folder_crops(required(test.visible, "--visible"), "visible")
        infrared = folder_crops(required(test.infrared, "--infrared"), "infrared")
        for crops, folder in ((visible, test.visible), (infrared, test.infrared)):
            if not crops.has_identities:
                raise UserError(
                    f"{folder}: scores need identities: put pictures into folders named by number, such as 0007/"
                )
    yield (infrared, visible) if test.query == "infrared" else (visible, infrared)


def evaluate(
    model: TwoStreamResNet, test: EvalConfig, *, device: torch.device, batch_size: int = 64, workers: int = 0
) -> ProtocolScores:
    """Score a model on a test set: CMC, mAP and mINP, averaged over the protocol's trials.

    Args:
        model: what to score.
        test: on what.
        device: where to compute.
        batch_size: pictures at once.
        workers: processes that read pictures.
    """
    model = model.to(device)
    scores = []
    known: dict[Path, np.ndarray] = {}
    for trial, (queries, gallery) in enumerate(trials_of(test)):
        metric = VisibleInfraredReID(convention_of(test))
        for crops, is_query in ((queries, True), (gallery, False)):
            features = _features(model, crops, known, device, batch_size, workers, f"trial {trial}")
            metric.update(
                torch.from_numpy(features),
                torch.from_numpy(crops.identities),
                torch.from_numpy(crops.cameras),
                torch.full((len(crops),), is_query),
            )
        scores.append(metric.compute())
    return _mean(scores)


def _features(
    model: TwoStreamResNet,
    crops: Crops,
    known: dict[Path, np.ndarray],
    device: torch.device,
    batch_size: int,
    workers: int,
    description: str,
) -> np.ndarray:
    """Features of crops; those that an earlier trial has seen are taken from `known`, which grows."""
    new = np.array([row for row, path in enumerate(crops.paths) if path not in known], dtype=np.int64)
    if new.size:
        found = extract(
            model,
            CropSet(crops, model.height, model.width),
            new,
            device=device,
            batch_size=batch_size,
            workers=workers,
            description=description,
        )
        known.update(zip((crops.paths[row] for row in new), found, strict=True))
    return np.stack([known[path] for path in crops.paths])


def _mean(scores: list[ReIDScores]) -> ProtocolScores:
    cmc = torch.stack([each.cmc for each in scores])
    mean_ap = np.array([each.mean_ap for each in scores])
    first = cmc[:, 0].numpy()
    spread = (lambda values: float(values.std(ddof=1))) if len(scores) > 1 else (lambda _: 0.0)
    ranks = cmc.mean(0)
    return ProtocolScores(
        rank1=ranks[0].item(),
        rank5=ranks[4].item(),
        rank10=ranks[9].item(),
        rank20=ranks[19].item(),
        mean_ap=float(mean_ap.mean()),
        mean_inp=float(np.mean([each.mean_inp for each in scores])),
        rank1_std=spread(first),
        mean_ap_std=spread(mean_ap),
        trials=len(scores),
        queries=scores[0].queries,
    )
