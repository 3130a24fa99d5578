"""Detectors trained on drawn faces: imbalanced training, unseen forgeries, four groups that differ in reflectance only.

Specification of fairfd, tier 1. The groups are synthetic; nothing here says anything about people.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reproduce.claims import Experiment, Measurement, at_least, claim, higher, lower
from reproduce.papers.fairfd.planted import defined

if TYPE_CHECKING:
    from fairfd import ScoreTable
    from fairfd.data.synthetic.datasets import DrawnSet, DrawnSplit
    from fairfd.models.detectors.detector import Detector

FRONT_ENDS = ("rgb", "gray", "spsl", "f3net", "srm")
PRUNING_RATE = 0.05
ARMS = {
    "rgb": "RGB front end",
    "gray": "gray front end",
    "spsl": "SPSL front end (phase spectrum)",
    "f3net": "F3Net front end (frequency bands)",
    "srm": "SRM front end (residuals)",
    "rgb, common threshold": "RGB, one threshold for all groups",
    "rgb, group thresholds": "RGB, a threshold for each group",
    "rgb, pruned by bpfa": "RGB, pruned by BPFA",
    "rgb, pruned by weig": "RGB, pruned by weight",
    "rgb, pruned by roba": "RGB, pruned by ROBA",
    "rgb, pruned by random": "RGB, pruned at random",
    "rgb, 32 people balanced": "RGB, 32 people, the same number of each group",
    "rgb, 32 people imbalanced": "RGB, 32 people, 20 of one group",
    "calls everything fake": "a detector that calls everything fake",
    "fairest of the five": "the lowest of the five front ends",
}
METRICS = {
    "AUC": "area under the ROC curve",
    "DPD": "DPD, approaches pooled",
    "AADPD": "AADPD, bias averaged over approaches",
    "URDPD": "URDPD, utility-regularised bias",
    "hidden gap": "AADPD minus DPD, both debiased",
    "AADPD over DPD of positive rates": "AADPD minus DPD of positive rates",
}
BALANCED, IMBALANCED = (8, 8, 8, 8), (20, 6, 3, 3)
"""People per group of the two small training sets: the same number in all."""


def measure(seed: int, _tier: str, place: Path) -> Measurement:
    """Train each front end once, and measure bias and utility of it and of its variants on people it has not seen."""
    import fairfd
    from fairfd.data.synthetic.datasets import drawn_experiment
    from fairfd.demo import contact_sheet, drawn_dataset, train_small
    from fairfd.evaluation.scores.inference import score
    from tenfold.images import write_image

    # One data set for all seeds would let its accidents pass for the method's: each seed draws its own people.
    data: DrawnSet = drawn_experiment(seed)
    write_image(place / "drawn-faces-and-their-forgeries.png", contact_sheet(data.test, people=3))
    testing = drawn_dataset(data.test)
    arms: dict[str, dict[str, float]] = {}
    for name in FRONT_ENDS:
        detector = train_small(f"small-{name}", data.train, seed)
        table = score(detector, testing, batch_size=256)
        arms[name] = row(table)
        if name == "rgb":
            arms |= threshold_arms(table, seed)
            arms |= pruned_arms(detector, data, seed)
    for name, people in (("rgb, 32 people balanced", BALANCED), ("rgb, 32 people imbalanced", IMBALANCED)):
        arms[name] = row(
            score(train_small("small-rgb", first_people(data.train, people), seed), testing, batch_size=256)
        )
    fake = replace(table, score=np.ones(len(table)))
    arms["calls everything fake"] = {"AADPD": defined(fairfd.fairness(fake.rate_table())["AADPD"])}
    arms["fairest of the five"] = {"AADPD": min(arms[name]["AADPD"] for name in FRONT_ENDS)}
    return arms


def row(table: "ScoreTable") -> dict[str, float]:
    """What is reported of one detector."""
    import fairfd
    from fairfd.evaluation.audit.uncertainty import difference

    rates = table.rate_table()
    boot = fairfd.bootstrap(rates, n_boot=500, seed=0)
    printed = fairfd.fairness(rates, fairfd.PAPER)
    return {
        "AUC": defined(table.utility().auc),
        "DPD": defined(boot.point["DPD"]),
        "AADPD": defined(boot.point["AADPD"]),
        "URDPD": defined(boot.point["URDPD"]),
        "hidden gap": defined(difference(boot, "AADPD", "DPD").debiased),
        "AADPD over DPD of positive rates": defined(boot.point["AADPD"]) - defined(printed["DPD"]),
    }


def threshold_arms(table: "ScoreTable", seed: int) -> dict[str, dict[str, float]]:
    """The common threshold and group thresholds, on the half of the people that did not set them."""
    import fairfd
    from fairfd.evaluation.audit.thresholds import threshold_audit

    found = threshold_audit(table.score, table.label, table.group, table.approach, table.identity, seed=seed)
    return {
        "rgb, common threshold": {"AADPD": defined(fairfd.fairness(found.before)["AADPD"])},
        "rgb, group thresholds": {"AADPD": defined(fairfd.fairness(found.after)["AADPD"])},
    }


def pruned_arms(detector: "Detector", data: "DrawnSet", seed: int) -> dict[str, dict[str, float]]:
    """BPFA and its rivals at one rate: calibrated on genuine training faces, measured on the test people."""
    import torch

    from fairfd.demo import drawn_dataset
    from fairfd.evaluation.scores.inference import score
    from fairfd.method import pruning as prune

    names = tuple(dict.fromkeys(data.train.groups.tolist()))
    genuine = (data.train.labels == 0).nonzero()[:, 0]
    group = torch.tensor([names.index(each) for each in data.train.groups[genuine.numpy()]])
    norms = prune.group_norms(detector, [(data.train.images[genuine], group)], names, forward=detector.predict_proba)
    masks = {method: prune.pruning_masks(detector, method, PRUNING_RATE, norms) for method in ("bpfa", "weig", "roba")}
    generator = torch.Generator().manual_seed(seed)
    masks["random"] = {
        name: prune.lowest_mask(torch.rand(mask.shape, generator=generator), PRUNING_RATE)
        for name, mask in masks["bpfa"].items()
    }
    whole = {name: value.clone() for name, value in detector.state_dict().items()}
    arms = {}
    for method, chosen in masks.items():
        prune.apply_masks(detector, chosen)
        prune.make_permanent(detector)
        arms[f"rgb, pruned by {method}"] = row(score(detector, drawn_dataset(data.test), batch_size=256))
        detector.load_state_dict(whole)
    return arms


def first_people(split: "DrawnSplit", people: tuple[int, ...]) -> "DrawnSplit":
    """The images of the first so many people of each group."""
    kept: set[str] = set()
    for group, count in zip(dict.fromkeys(split.groups.tolist()), people, strict=True):
        kept |= set(list(dict.fromkeys(split.identities[split.groups == group].tolist()))[:count])
    rows = np.flatnonzero(np.isin(split.identities, list(kept)))
    return replace(
        split,
        images=split.images[rows],
        labels=split.labels[rows],
        groups=split.groups[rows],
        approaches=split.approaches[rows],
        identities=split.identities[rows],
    )


EXPERIMENTS = (
    Experiment(
        "drawn-faces",
        "Five front ends of one small network, trained on 100 drawn people (60/24/8/8 of four synthetic groups, two forgeries), tested on 160 others with six forgeries. The drawing was set up on seed 0; the other seeds had no part in it.",
        {"small": 5},
        measure,
        ARMS,
        METRICS,
    ),
)


CLAIMS = (
    *(
        claim(
            f"fairfd/hidden-bias-{name}",
            f"Averaging approaches first hides bias of the {name} detector: AADPD exceeds DPD, both debiased.",
            higher("hidden gap", name, than=0.0),
            experiment="drawn-faces",
            source="paper, bias offset problem and Table 2",
        )
        for name in FRONT_ENDS
    ),
    claim(
        "fairfd/hidden-bias-beyond-sign",
        "The gap of the SPSL detector remains when DPD compares positive rates, as equation 6 prints it, in place of accuracies.",
        higher("AADPD over DPD of positive rates", "spsl", than=0.0),
        experiment="drawn-faces",
        source="paper, eq. 6 against the official code",
        remark="Where it does not, the hidden bias is cancellation between genuine and forged faces",
    ),
    *(
        claim(
            f"fairfd/{name}-fairer-than-rgb",
            f"The {name} front end is fairer than RGB.",
            lower("AADPD", name, than="rgb"),
            experiment="drawn-faces",
            source="paper, Table 2: frequency detectors rank first",
        )
        for name in ("spsl", "f3net", "srm")
    ),
    claim(
        "fairfd/gray-fairer-than-rgb",
        "Without colour the detector is fairer.",
        lower("AADPD", "gray", than="rgb"),
        experiment="drawn-faces",
        source="paper, Table 8",
    ),
    claim(
        "fairfd/group-thresholds-fairer",
        "A threshold for each group lowers AADPD.",
        lower("AADPD", "rgb, group thresholds", than="rgb, common threshold"),
        experiment="drawn-faces",
        source="paper, Table 7",
        remark="Set on half of the people and judged on the other half; the paper sets and judges on the same images",
    ),
    claim(
        "fairfd/balanced-training-fairer",
        "Training on as many people of each group is fairer than imbalanced training on as many people in all.",
        lower("AADPD", "rgb, 32 people balanced", than="rgb, 32 people imbalanced"),
        experiment="drawn-faces",
        source="paper, Table 5",
    ),
    claim(
        "fairfd/bpfa-fairer-than-unpruned",
        f"Pruning {PRUNING_RATE:.0%} of the weights by BPFA lowers AADPD.",
        lower("AADPD", "rgb, pruned by bpfa", than="rgb"),
        experiment="drawn-faces",
        source="paper, Table 3",
        remark="The paper picks the best of seven rates on the test set; here the rate is fixed",
    ),
    *(
        claim(
            f"fairfd/bpfa-fairer-than-{rival}",
            f"BPFA lowers AADPD more than pruning as many weights by {rival}.",
            lower("AADPD", "rgb, pruned by bpfa", than=f"rgb, pruned by {rival}"),
            experiment="drawn-faces",
            source="paper, Table 3" if rival != "random" else "our control",
        )
        for rival in ("weig", "roba", "random")
    ),
    claim(
        "fairfd/srm-detects",
        "The residual front end reaches an AUC of at least .7, so that its fairness means something.",
        at_least("AUC", "srm", 0.7),
        experiment="drawn-faces",
        source="our README",
    ),
    claim(
        "fairfd/useless-looks-fairest",
        "A detector that calls everything fake has a lower AADPD than the fairest of the trained ones.",
        lower("AADPD", "calls everything fake", than="fairest of the five"),
        experiment="drawn-faces",
        source="our README, limits",
        remark="Hence the utility gate",
    ),
)
