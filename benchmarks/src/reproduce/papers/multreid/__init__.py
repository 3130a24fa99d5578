"""Claims and speed of `multreid`."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from reproduce.claims import Experiment, Suite, claim, higher, lower
from reproduce.papers.multreid.memory import SIZES, measure_memory
from reproduce.papers.multreid.speed import SPEEDS, measure_difference, measure_large

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "clean": {"noise": 0.6},
    "noise-1.0": {"noise": 1.0},
    "noise-1.4": {"noise": 1.4},
    "look-alikes-0.7": {"look_alike": 0.7, "noise": 0.7},
    "look-alikes-0.85": {"look_alike": 0.85, "noise": 0.7},
    "look-alikes-0.6-noisy": {"look_alike": 0.6, "noise": 1.0},
    "look-alikes-0.85-noisy": {"look_alike": 0.85, "noise": 1.0},
    "camera-splits": {"camera": 1.0, "noise": 0.8},
    "weak-shared-identity": {"shared": 0.6, "noise": 0.8},
    "unequal-sizes": {"unequal": True, "camera": 0.8, "noise": 1.0},
}
"""The ten settings of the association experiment: what differs from noise 0.7, rho 0.8, camera offset 0.5."""
SMOKE_SETTINGS = ("look-alikes-0.85", "camera-splits", "weak-shared-identity")


def _association(setting: str) -> Callable[[int, str, Path], dict[str, dict[str, float]]]:
    def measure(seed: int, _: str, folder: Path) -> dict[str, dict[str, float]]:
        from multreid.benchmark import (
            associate_by,
            both_spaces_f1,
            without_heterogeneous_step,
            without_homogeneous_step,
        )
        from multreid.data.synthetic import two_modality_features
        from multreid.evaluation.figures import plot_labels
        from multreid.method.clustering import cluster_features
        from multreid.method.label_transfer import transfer_labels

        a, b, ids_a, ids_b = two_modality_features(seed, **SETTINGS[setting])
        in_a, in_b = cluster_features(a, k1=20), cluster_features(b, k1=20)
        clustered = (a, b, in_a.labels, in_b.labels)
        similarity = (in_a.similarity, in_b.similarity)
        transfer = partial(transfer_labels, *clustered, similarity_a=similarity[0], similarity_b=similarity[1])
        ours = transfer()
        labels = {"MULT": ours, "OT": associate_by("ot", *clustered), "PGM": associate_by("pgm", *clustered)}
        if setting == "look-alikes-0.85" and seed == 0:
            plot_labels(
                ours.soft_cross_a, ids_a, "MULT: visible instances on infrared clusters", folder / "mult-labels.png"
            )
        labels |= {
            "nearest centre": associate_by("nearest", *clustered),
            "Hungarian": associate_by("hungarian", *clustered),
            "BCCM": associate_by("bccm", *clustered),
            "MULT from matching": transfer(start="matching"),
            "alpha 0.5": transfer(alpha=0.5),
            "alpha 0.8": transfer(alpha=0.8),
            "without heterogeneous": without_heterogeneous_step(*clustered, *similarity),
        }
        labels["without homogeneous"] = without_homogeneous_step(*clustered)
        return {arm: {"f1": both_spaces_f1(found, ids_a, ids_b)} for arm, found in labels.items()}

    return measure


def _end_to_end(seed: int, _: str, folder: Path) -> dict[str, dict[str, float]]:
    """Train on procedural pedestrians in look-alike pairs; search among people never seen."""
    import dataclasses
    import tempfile

    import torch

    from multreid.config import EvalConfig, TrainConfig
    from multreid.data.synthetic import write_people
    from multreid.demo import write_search_sheet
    from multreid.evaluation.protocols import evaluate
    from multreid.models.features import load_model
    from multreid.models.networks import TwoStreamResNet
    from multreid.training.loop import train
    from tenfold.config import load_preset
    from tenfold.runs import seed_everything

    device = torch.device("cpu")
    size = {"epochs": 14, "stage_two": 6, "steps": 12, "steps_two": 12, "milestones": (12,)}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        visible, infrared = write_people(root / "train", 24, 8, seed)
        write_people(root / "test", 20, 4, 1000 + seed, look_alikes=False)
        test = EvalConfig(visible=root / "test" / "visible", infrared=root / "test" / "infrared")
        base = dataclasses.replace(
            load_preset("multreid", "tiny", TrainConfig), visible=visible, infrared=infrared, seed=seed, **size
        )
        seed_everything(seed)
        scores = {
            "untrained": evaluate(TwoStreamResNet(base.architecture, base.height, base.width), test, device=device)
        }
        arms: dict[str, dict[str, Any]] = {
            "MULT": {},
            "stage one only": {"stage_two": base.epochs},
            "OT association": {"association": "ot"},
            "MULT, target detached": {"detach_target": True},
            "MULT, no refinement": {"refinement": 0.0},
        }
        for arm, changes in arms.items():
            out = root / arm.replace(" ", "-")
            train(out, dataclasses.replace(base, **changes), device="cpu")
            model = load_model(out)
            scores[arm] = evaluate(model, test, device=device)
            if arm == "MULT" and seed == 0:
                write_search_sheet(model, test, device, folder / "search.png")
    return {arm: {"rank1": each.rank1, "map": each.mean_ap} for arm, each in scores.items()}


OURS = "abstract and official code; the settings are ours"
ASSOCIATIONS = {
    "MULT": "the method (transferred labels)",
    "OT": "transport labels, its start",
    "PGM": "matched clusters (PGM)",
    "nearest centre": "the nearest cluster centre",
    "Hungarian": "clusters matched by the Hungarian method",
    "BCCM": "clusters matched in both directions (BCCM)",
    "MULT from matching": "the method started from matching",
    "alpha 0.5": "the method with a weight of 0.5 for the start",
    "alpha 0.8": "the method with a weight of 0.8 for the start",
    "without heterogeneous": "the method without passing labels between modalities",
    "without homogeneous": "the method without passing labels within a modality",
}
F1 = {"f1": "F1 of pairs"}
TRAINED = {
    "MULT": "the method",
    "untrained": "the untrained network",
    "stage one only": "stage one for as many epochs",
    "OT association": "stage two on transport labels",
    "MULT, target detached": "the method with a detached refinement target",
    "MULT, no refinement": "the method without refinement",
}
RETRIEVAL = {"map": "mean average precision", "rank1": "rank-1 accuracy"}
PROCESSES = {size: f"{size.split('-')[0]} of {int(size.split('-')[1]):,} instances" for size in SIZES}
COSTS = {
    "share": "share of the direct implementation's memory",
    "times faster": "times faster than the direct implementation (CPU seconds)",
}


EXPERIMENTS = (
    *(
        Experiment(
            f"association, {setting}",
            f"Labels across two modalities of 40 identities, {setting}: pair F1, mean of both label spaces.",
            {"smoke": 5, "small": 10} if setting in SMOKE_SETTINGS else {"small": 10},
            _association(setting),
            ASSOCIATIONS,
            F1,
        )
        for setting in SETTINGS
    ),
    Experiment(
        "pedestrians",
        "Two-stage training on procedural pedestrians in look-alike pairs; infrared-to-visible search for unseen people.",
        {"small": 5},
        _end_to_end,
        TRAINED,
        RETRIEVAL,
    ),
    Experiment(
        "sparse against direct",
        "The sparse association of 2,500 and 2,500 instances (in the smoke tier 400) against dense matrices: largest differences of its numbers.",
        {"smoke": 1, "small": 5},
        measure_difference,
        {"sparse": "the sparse implementation"},
        {"jaccard": "largest difference of Jaccard similarities", "transfer": "largest difference of soft labels"},
    ),
    Experiment(
        "large inputs",
        "20,000 with 12,000 instances associated, and 1,000,000 gallery vectors searched by the index, on one CPU thread.",
        {"medium": 2},
        measure_large,
        {"association": "association of 20,000 with 12,000", "search": "search among 1,000,000"},
        {"peak GiB": "peak memory (GiB)", "seconds per 100 queries": "seconds per 100 queries"},
    ),
    Experiment(
        "memory",
        "Growth of the resident set and CPU seconds of the sparse and the direct association, each in a process of its own.",
        {"medium": 5},
        measure_memory,
        PROCESSES,
        COSTS,
    ),
)

_PURE = "Clusters are pure here: averaging a cluster removes independent noise before matching, and matching wins."
_UNEQUAL = "Uniform marginals force mass onto wrong partners where identities differ in size."


CLAIMS = (
    *(
        claim(
            f"multreid/transfer-beats-its-start-{setting}",
            f"Transferring labels improves on the transport labels that it starts from ({setting}).",
            higher("f1", "MULT", than="OT"),
            experiment=f"association, {setting}",
            source=OURS,
        )
        for setting in SETTINGS
    ),
    *(
        claim(
            f"multreid/homogeneous-step-matters-{setting}",
            f"Without neighbours within a modality the labels are worse ({setting}).",
            higher("f1", "MULT", than="without homogeneous"),
            experiment=f"association, {setting}",
            source=OURS,
        )
        for setting in SETTINGS
    ),
    *(
        claim(
            f"multreid/beats-matching-{setting}",
            f"Where infrared clusters merge look-alikes, labels for instances beat matched clusters by .05 ({setting}).",
            higher("f1", "MULT", than="PGM", by=0.05),
            experiment=f"association, {setting}",
            source=OURS,
        )
        for setting in ("look-alikes-0.85", "look-alikes-0.6-noisy", "look-alikes-0.85-noisy")
    ),
    claim(
        "multreid/beats-matching-weak-shared-identity",
        "Labels for instances beat matched clusters where the modalities share little of an identity.",
        higher("f1", "MULT", than="PGM"),
        experiment="association, weak-shared-identity",
        source=OURS,
        remark=_PURE,
    ),
    claim(
        "multreid/beats-matching-noise-1.4",
        "Labels for instances beat matched clusters where features are noisy.",
        higher("f1", "MULT", than="Hungarian"),
        experiment="association, noise-1.4",
        source=OURS,
        remark=_PURE,
    ),
    claim(
        "multreid/beats-bilateral-matching-camera-splits",
        "Labels for instances beat bilateral matching where cameras split identities.",
        higher("f1", "MULT", than="BCCM"),
        experiment="association, camera-splits",
        source=OURS,
    ),
    claim(
        "multreid/beats-nearest-centre-unequal-sizes",
        "The method beats the nearest centre where identities differ in size.",
        higher("f1", "MULT", than="nearest centre"),
        experiment="association, unequal-sizes",
        source=OURS,
        remark=_UNEQUAL,
    ),
    claim(
        "multreid/small-alpha-look-alikes",
        "A weight of 0.2 for the starting labels is better than 0.5.",
        higher("f1", "MULT", than="alpha 0.5"),
        experiment="association, look-alikes-0.85",
        source=OURS,
    ),
    claim(
        "multreid/transport-start-look-alikes",
        "Starting cross labels from transport is better than from matching where clusters are merged.",
        higher("f1", "MULT", than="MULT from matching"),
        experiment="association, look-alikes-0.85",
        source=OURS,
    ),
    claim(
        "multreid/transport-start-weak-shared-identity",
        "Starting cross labels from transport is better than from matching where clusters are pure.",
        higher("f1", "MULT", than="MULT from matching"),
        experiment="association, weak-shared-identity",
        source=OURS,
        remark=_PURE,
    ),
    claim(
        "multreid/training-improves-on-an-untrained-network",
        "Training without labels improves infrared-to-visible search.",
        higher("map", "MULT", than="untrained"),
        experiment="pedestrians",
        source=OURS,
    ),
    claim(
        "multreid/stage-two-improves-on-stage-one",
        "Stage two improves on as many epochs of stage one.",
        higher("map", "MULT", than="stage one only"),
        experiment="pedestrians",
        source=OURS,
        remark="A small network without ImageNet weights, minutes of training.",
    ),
    claim(
        "multreid/transfer-improves-training",
        "Training on transferred labels is better than on transport labels.",
        higher("map", "MULT", than="OT association"),
        experiment="pedestrians",
        source=OURS,
        remark="A small network without ImageNet weights, minutes of training.",
    ),
    claim(
        "multreid/gradient-through-the-target",
        "Letting the refinement loss's gradient through its target is better than detaching it.",
        higher("map", "MULT", than="MULT, target detached"),
        experiment="pedestrians",
        source=OURS,
    ),
    claim(
        "multreid/refinement-improves-training",
        "Online cross-memory label refinement improves stage two.",
        higher("map", "MULT", than="MULT, no refinement"),
        experiment="pedestrians",
        source=OURS,
        remark="A small network without ImageNet weights, minutes of training.",
    ),
    claim(
        "multreid/stage-two-without-refinement-improves-on-stage-one",
        "Stage two without the refinement loss improves on as many epochs of stage one.",
        higher("map", "MULT, no refinement", than="stage one only"),
        experiment="pedestrians",
        source=OURS,
        remark="A small network without ImageNet weights, minutes of training.",
    ),
    *(
        claim(
            f"multreid/same-{metric}-as-direct",
            f"The sparse implementation gives the direct one's {numbers} to 1e-5.",
            lower(metric, "sparse", than=1e-5),
            experiment="sparse against direct",
            source="our README",
            deterministic=True,
            remark="The direct transport in 64 bits; in 32 bits, as published, its own rounding is 1.2e-5.",
        )
        for metric, numbers in (("jaccard", "Jaccard similarities"), ("transfer", "soft labels"))
    ),
    *(
        claim(
            f"multreid/{name}",
            statement,
            lower(metric, arm, than=limit),
            experiment="large inputs",
            source="our README",
        )
        for name, statement, metric, arm, limit in (
            (
                "large-association-fits",
                "20,000 x 12,000 instances fit in 6 GiB.",
                "peak GiB",
                "association",
                6.0,
            ),
            (
                "large-search-is-quick",
                "100 queries over 1,000,000 vectors take under a second.",
                "seconds per 100 queries",
                "search",
                1.0,
            ),
        )
    ),
    *(
        claim(
            f"multreid/tenth-of-the-memory-{size}",
            f"At most a tenth of the direct implementation's memory ({size}).",
            lower("share", size, than=0.1),
            experiment="memory",
            source="our README",
            deterministic=True,
        )
        for size in SIZES
    ),
    *(
        claim(
            f"multreid/faster-in-cpu-seconds-{size}",
            f"At least {aim} times faster than the direct implementation, in CPU seconds ({size}).",
            higher("times faster", size, than=aim),
            experiment="memory",
            source="our README",
        )
        for size, aim in zip(SIZES, (4.0, 4.0, 10.0, 5.0), strict=True)
    ),
)

SUITE = Suite(
    "multreid",
    "Labels transferred between visible and infrared pictures, within and across modalities, train re-identification without annotations.",
    EXPERIMENTS,
    CLAIMS,
    SPEEDS,
)
