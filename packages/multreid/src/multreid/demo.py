"""`multreid demo`: the method on embedded data, in under a minute, with pictures to judge."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from multreid.benchmark import Rival, associate_by, both_spaces_f1
from multreid.config import EvalConfig, TrainConfig
from multreid.data.datasets import CropSet
from multreid.data.layouts import folder_crops
from multreid.data.synthetic import two_modality_features, write_people
from multreid.evaluation.figures import contact_sheet, plot_labels, plot_scores, ranked_paths
from multreid.evaluation.protocols import evaluate
from multreid.method.clustering import cluster_features
from multreid.method.label_transfer import transfer_labels
from multreid.models.features import extract, load_model
from multreid.models.networks import TwoStreamResNet
from multreid.pipeline.gallery import search_exact
from multreid.training.loop import train
from tenfold.runs import pick_device, seed_everything


class Row(NamedTuple):
    """One line of the demo's table."""

    what: str
    value: float
    unit: str


def association_demo(out: Path) -> Iterator[Row]:
    """Associate features in which one modality merges look-alikes; writes `association.png` and `labels.png`."""
    a, b, ids_a, ids_b = two_modality_features(0, look_alike=0.85, noise=0.7)
    in_a, in_b = cluster_features(a, k1=20), cluster_features(b, k1=20)
    ours = transfer_labels(a, b, in_a.labels, in_b.labels, similarity_a=in_a.similarity, similarity_b=in_b.similarity)
    scores = {"MULT": both_spaces_f1(ours, ids_a, ids_b)}
    rivals: dict[Rival, str] = {"ot": "optimal transport", "pgm": "PGM", "nearest": "nearest centre"}
    for rival, name in rivals.items():
        scores[name] = both_spaces_f1(associate_by(rival, a, b, in_a.labels, in_b.labels), ids_a, ids_b)
    plot_scores(scores, "640 + 640 instances of 40 look-alike identities", out / "association.png")
    plot_labels(ours.soft_cross_a, ids_a, "MULT: visible instances on infrared clusters", out / "labels.png")
    for name, value in scores.items():
        yield Row(f"association by {name}", value, "pair F1")


def training_demo(out: Path, config: TrainConfig, device: str) -> Iterator[Row]:
    """Train on procedural pedestrians, search among others that it has not seen; writes `search.png`."""
    visible, infrared = write_people(out / "people" / "train", 12, 8, seed=0)
    test = EvalConfig(visible=out / "people" / "test" / "visible", infrared=out / "people" / "test" / "infrared")
    write_people(out / "people" / "test", 12, 4, seed=1, look_alikes=False)
    place = pick_device(device)
    seed_everything(config.seed)
    untrained = TwoStreamResNet(config.architecture, config.height, config.width)
    before = evaluate(untrained, test, device=place)
    train(out / "run", dataclasses.replace(config, visible=visible, infrared=infrared), device=device)
    model = load_model(out / "run").to(place)
    after = evaluate(model, test, device=place)
    for name, scores in (("untrained network", before), ("trained without labels", after)):
        yield Row(f"infrared to visible, {name}", 100 * scores.rank1, "% rank-1")
        yield Row(f"infrared to visible, {name}", 100 * scores.mean_ap, "% mAP")
    write_search_sheet(model, test, place, out / "search.png")


def write_search_sheet(model: TwoStreamResNet, test: EvalConfig, device: torch.device, out: Path) -> None:
    """Write a contact sheet: four infrared pictures of a test set of folders, each with the eight most similar visible ones."""
    assert test.visible is not None
    assert test.infrared is not None
    queries, gallery = folder_crops(test.infrared, "infrared"), folder_crops(test.visible, "visible")
    rows = np.arange(0, len(queries), len(queries) // 4)[:4]
    asked = extract(model, CropSet(queries, model.height, model.width), rows, device=device)
    kept = extract(model, CropSet(gallery, model.height, model.width), np.arange(len(gallery)), device=device)
    found, far = ranked_paths(gallery.paths, *search_exact(asked, kept, 8))
    contact_sheet([queries.paths[row] for row in rows], found, far, out)
