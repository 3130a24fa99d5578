"""Generated shapes (specification §10): the method, its ablations and its rivals, without a file on disk."""

from collections.abc import Sequence
from pathlib import Path

from reproduce.claims import Claim, Experiment, Measurement, Verdict
from reproduce.papers.cskopt.sessions import run_arms, train_config

HOLDS, DOES_NOT_HOLD, INCONCLUSIVE = Verdict.HOLDS, Verdict.DOES_NOT_HOLD, Verdict.INCONCLUSIVE
SMOKE_ARMS = ("csko", "all-taps", "all-taps-prototypes", "centre", "head-prototypes", "ncm", "nscl")
ABLATION_ARMS = (
    "csko",
    "csko-official",
    "csko-literal",
    "csko-unprojected",
    "csko-no-prototypes",
    "csko-all-channels",
    "csko-random",
    "csko-lowest",
    "csko-corner",
    "csko-25",
    "centre",
    "corner",
)
BASELINE_ARMS = ("csko", "all-taps", "head", "bias", "sparse-update", "ewc", "lwf", "gpm", "full")


def measure_shapes(seed: int, tier: str, folder: Path) -> Measurement:
    """Specification §10: 10 base classes, then 5 sessions of 2; in the smoke tier 6, then 2 sessions of 2."""
    from cskopt.data.datasets import shapes_corpus

    if tier == "smoke":
        config = train_config(
            seed=seed, class_seed=seed, base_classes=6, base_epochs=5, epochs=6, batch_size=32, order="natural"
        )
        return run_arms(shapes_corpus(10, 60, 30, seed), config, SMOKE_ARMS, folder)
    return _full_shapes(seed, folder, SMOKE_ARMS)


def measure_ablations(seed: int, _: str, folder: Path) -> Measurement:
    """The paper's parts taken away or replaced, on the specification's experiment."""
    return _full_shapes(seed, folder, ABLATION_ARMS)


def measure_baselines(seed: int, _: str, folder: Path) -> Measurement:
    """Other ways to learn, on the specification's experiment."""
    return _full_shapes(seed, folder, BASELINE_ARMS)


def _full_shapes(seed: int, folder: Path, arms: Sequence[str]) -> Measurement:
    from cskopt.data.datasets import shapes_corpus

    return run_arms(shapes_corpus(20, 120, 50, seed), train_config(seed=seed, class_seed=seed), arms, folder)


_TIES = "A control that the specification's prototype found to tie: the README says so."

EXPERIMENTS = (
    Experiment(
        "cskopt", "shapes", "generated textured shapes, class-incremental", {"smoke": 3, "small": 5}, measure_shapes
    ),
    Experiment("cskopt", "ablations", "parts of the method replaced, same data", {"small": 5}, measure_ablations),
    Experiment("cskopt", "baselines", "other ways to learn, same data", {"small": 5}, measure_baselines),
)

CLAIMS = (
    Claim(
        "cskopt/beats-training-without-forgetting-control",
        "far higher average accuracy than on-device training that has nothing against forgetting (paper: +38.08 % over existing ones)",
        "abstract v1",
        "shapes",
        "average",
        "csko",
        "all-taps",
        "higher",
        {"smoke": HOLDS, "small": HOLDS},
        margin=10.0,
        remark="The gain comes from prototypes and projection, not from the centre: see the claims against head-prototypes.",
    ),
    Claim(
        "cskopt/centre-forgets-less-than-all-taps",
        "with prototypes and no projection, training only centres forgets less than training whole kernels",
        "abstract; specification §10",
        "shapes",
        "average",
        "centre",
        "all-taps-prototypes",
        "higher",
        {"smoke": HOLDS, "small": HOLDS},
        margin=5.0,
    ),
    Claim(
        "cskopt/keeps-up-with-the-full-null-space",
        "no worse than Adam-NSCL on whole kernels by 3 points, with a covariance 81 times smaller",
        "abstract v2",
        "shapes",
        "average",
        "csko",
        "nscl",
        "higher",
        {"smoke": HOLDS, "small": HOLDS},
        margin=-3.0,
    ),
    Claim(
        "cskopt/beats-head-with-prototypes",
        "higher average accuracy than last layer + prototypes",
        "our control",
        "shapes",
        "average",
        "csko",
        "head-prototypes",
        "higher",
        {"smoke": INCONCLUSIVE, "small": INCONCLUSIVE},
        remark=_TIES,
    ),
    Claim(
        "cskopt/learns-new-classes-better-than-the-head",
        "more plasticity than last layer + prototypes: accuracy on a session's classes right after it",
        "our control",
        "shapes",
        "new",
        "csko",
        "head-prototypes",
        "higher",
        {"smoke": INCONCLUSIVE, "small": HOLDS},
    ),
    Claim(
        "cskopt/beats-nearest-class-mean",
        "higher average accuracy than the nearest class mean of frozen features, which trains nothing",
        "our control",
        "shapes",
        "average",
        "csko",
        "ncm",
        "higher",
        {"smoke": INCONCLUSIVE, "small": DOES_NOT_HOLD},
    ),
    Claim(
        "cskopt/centre-beats-corner",
        "under projection, the centre is the better element to train than a corner",
        "abstract",
        "ablations",
        "average",
        "csko",
        "csko-corner",
        "higher",
        {"small": INCONCLUSIVE},
        remark=_TIES,
    ),
    Claim(
        "cskopt/centre-beats-corner-unprojected",
        "without projection, the centre is the better element to train than a corner",
        "abstract",
        "ablations",
        "average",
        "centre",
        "corner",
        "higher",
        {"small": DOES_NOT_HOLD},
        remark="The specification's prototype found the corner to forget less.",
    ),
    Claim(
        "cskopt/dynamic-selection-beats-random",
        "channels chosen by gradient are better than random ones",
        "abstract (dynamic channel element selection)",
        "ablations",
        "average",
        "csko",
        "csko-random",
        "higher",
        {"small": HOLDS},
        remark="By 0.3 points, which matters to nobody; the channels of the smallest gradient do as well.",
    ),
    Claim(
        "cskopt/dynamic-selection-beats-lowest",
        "channels of the largest gradient are better than those of the smallest",
        "abstract (dynamic channel element selection)",
        "ablations",
        "average",
        "csko",
        "csko-lowest",
        "higher",
        {"small": INCONCLUSIVE},
        remark=_TIES,
    ),
    Claim(
        "cskopt/beats-training-without-forgetting-control-by-25",
        "at least 25 points more average accuracy than whole kernels with nothing against forgetting (paper: +38.08 %)",
        "abstract v1; specification §10",
        "baselines",
        "average",
        "csko",
        "all-taps",
        "higher",
        {"small": HOLDS},
        margin=25.0,
    ),
    Claim(
        "cskopt/beats-elastic-weight-consolidation",
        "higher average accuracy than EWC",
        "abstract",
        "baselines",
        "average",
        "csko",
        "ewc",
        "higher",
        {"small": HOLDS},
        margin=25.0,
        remark="EWC has no prototypes, as published.",
    ),
)
