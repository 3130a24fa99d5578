"""Where the head could fall behind: a weak base that leaves features to be learnt, and real pictures."""

import os
from pathlib import Path
from typing import Any

from reproduce.claims import Claim, Experiment, Measurement, Verdict
from reproduce.papers.cskopt.sessions import run_arms, train_config

HOLDS, DOES_NOT_HOLD, INCONCLUSIVE = Verdict.HOLDS, Verdict.DOES_NOT_HOLD, Verdict.INCONCLUSIVE
DATA_VARIABLE = "CSKOPT_DATA"
"""Where cifar10_jpeg.zip or torchvision's cifar-10 files are looked for, before `data/`."""

REAL_ARMS = ("csko", "csko-random", "csko-corner", "all-taps", "all-taps-prototypes", "head-prototypes", "ncm", "nscl")


def measure_weak_base(seed: int, _: str, folder: Path) -> Measurement:
    """The weak-base variant: 4 base classes, then 8 sessions of 2; features leave more to be learnt."""
    from cskopt.data.datasets import shapes_corpus

    config = train_config(seed=seed, class_seed=seed, base_classes=4)
    return run_arms(shapes_corpus(20, 120, 50, seed), config, REAL_ARMS, folder)


def measure_real(seed: int, _: str, folder: Path) -> Measurement:
    """Photographs where CIFAR-10 is found on disk, otherwise scikit-learn's digits: 4 classes, then 3 sessions of 2."""
    config = train_config(seed=seed, class_seed=seed, base_classes=4, image_size=32, base_epochs=15)
    return run_arms(_real_corpus(), config, REAL_ARMS, folder)


def _real_corpus() -> Any:
    from cskopt.data.datasets import digits_corpus, zip_corpus

    roots = [Path(each) for each in (os.environ.get(DATA_VARIABLE), "data") if each]
    for root in roots:
        if (root / "cifar10_jpeg.zip").is_file():
            return zip_corpus(root / "cifar10_jpeg.zip", 32, per_class=500)
    return digits_corpus(32)


EXPERIMENTS = (
    Experiment("cskopt", "weak_base", "the same with 4 base classes and 8 sessions", {"small": 5}, measure_weak_base),
    Experiment(
        "cskopt",
        "real",
        f"CIFAR-10 in ${DATA_VARIABLE} or data/, otherwise digits; 4 + 3 x 2",
        {"small": 5},
        measure_real,
    ),
)

CLAIMS = (
    Claim(
        "cskopt/weak-base-beats-head-with-prototypes",
        "with a weak base, higher average accuracy than last layer + prototypes",
        "our control",
        "weak_base",
        "average",
        "csko",
        "head-prototypes",
        "higher",
        {"small": INCONCLUSIVE},
    ),
    Claim(
        "cskopt/weak-base-learns-new-classes-better",
        "with a weak base, more plasticity than last layer + prototypes",
        "our control",
        "weak_base",
        "new",
        "csko",
        "head-prototypes",
        "higher",
        {"small": HOLDS},
    ),
    Claim(
        "cskopt/real-beats-training-without-forgetting-control",
        "on real pictures, far higher average accuracy than whole kernels with nothing against forgetting",
        "abstract v1",
        "real",
        "average",
        "csko",
        "all-taps",
        "higher",
        {"small": HOLDS},
        margin=5.0,
    ),
    Claim(
        "cskopt/real-beats-head-with-prototypes",
        "on real pictures, higher average accuracy than last layer + prototypes",
        "our control",
        "real",
        "average",
        "csko",
        "head-prototypes",
        "higher",
        {"small": INCONCLUSIVE},
        remark="A tie on digits; on photographs it does not hold",
    ),
)
