"""Scores of a model by protocol: who asks, who is asked, and how trials are summed up."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from multreid.config import EvalConfig
from multreid.data.layouts import Crops
from multreid.evaluation import protocols as evaluation
from multreid.evaluation.protocols import evaluate
from multreid.models.networks import TwoStreamResNet

TRIALS, QUERIES, GALLERY, PEOPLE = 3, 30, 50, 12


def crops(trial: int, modality, count: int, draw: np.random.Generator) -> Crops:
    paths = tuple(Path(f"{trial}/{modality}/{number}.png") for number in range(count))
    identities = np.concatenate([np.arange(PEOPLE), draw.integers(0, PEOPLE, count - PEOPLE)])
    return Crops(paths, identities, np.zeros(count, np.int64), modality)


@pytest.fixture
def known(monkeypatch) -> list[tuple[Crops, Crops, np.ndarray, np.ndarray]]:
    """Trials of random features near their identity's, in the place of those that a network would extract."""
    draw = np.random.default_rng(0)
    person = draw.standard_normal((PEOPLE, 8))
    trials, features = [], {}
    for trial in range(TRIALS):
        sides = crops(trial, "infrared", QUERIES, draw), crops(trial, "visible", GALLERY, draw)
        rows = []
        for side in sides:
            found = person[side.identities] + (1 + trial) * draw.standard_normal((len(side), 8))
            rows.append((found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32))
            features |= dict(zip(side.paths, rows[-1], strict=True))
        trials.append((*sides, *rows))
    monkeypatch.setattr(evaluation, "trials_of", lambda _: [each[:2] for each in trials])
    monkeypatch.setattr(
        evaluation, "extract", lambda _, these, rows, **__: np.stack([features[these.crops.paths[row]] for row in rows])
    )
    return trials


def test_scores_are_those_of_queries_ranked_by_hand(known) -> None:
    scores = evaluate(TwoStreamResNet("small", 64, 32), EvalConfig(), device=torch.device("cpu"))
    first, precision = np.zeros((TRIALS, 21)), np.zeros(TRIALS)
    for trial, (queries, gallery, asked, stored) in enumerate(known):
        similar = asked @ stored.T
        right = queries.identities[:, None] == gallery.identities
        place = np.take_along_axis(right, np.argsort(-similar, axis=1), 1).argmax(1)
        first[trial] = [(place < rank).mean() for rank in range(21)]
        precision[trial] = np.mean([average_precision_score(*pair) for pair in zip(right, similar, strict=True)])
    assert (scores.trials, scores.queries) == (TRIALS, QUERIES)
    found = [scores.rank1, scores.rank5, scores.rank10, scores.rank20, scores.mean_ap]
    expected = [*first.mean(0)[[1, 5, 10, 20]], precision.mean()]
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(set(found)) == 5
    assert scores.rank1_std == pytest.approx(np.std(first[:, 1], ddof=1), abs=1e-6)
    assert scores.mean_ap_std == pytest.approx(np.std(precision, ddof=1), abs=1e-6)
