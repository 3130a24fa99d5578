"""Generated shapes: the method, its ablations and its rivals, without a file on disk."""

from collections.abc import Sequence
from pathlib import Path

from reproduce.claims import Experiment, Measurement, claim, higher, not_lower
from reproduce.papers.cskopt.sessions import run_arms, train_config
from reproduce.papers.cskopt.words import ARMS, METRICS

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
    """10 base classes, then 5 sessions of 2; in the smoke tier 6, then 2 sessions of 2."""
    from cskopt.data.datasets import shapes_corpus

    if tier == "smoke":
        config = train_config(
            seed=seed, class_seed=seed, base_classes=6, base_epochs=5, epochs=6, batch_size=32, order="natural"
        )
        return run_arms(shapes_corpus(10, 60, 30, seed), config, SMOKE_ARMS, folder)
    return _full_shapes(seed, folder, SMOKE_ARMS)


def measure_ablations(seed: int, _: str, folder: Path) -> Measurement:
    """The paper's parts taken away or replaced."""
    return _full_shapes(seed, folder, ABLATION_ARMS)


def measure_baselines(seed: int, _: str, folder: Path) -> Measurement:
    """Other ways to learn."""
    return _full_shapes(seed, folder, BASELINE_ARMS)


def _full_shapes(seed: int, folder: Path, arms: Sequence[str]) -> Measurement:
    from cskopt.data.datasets import shapes_corpus

    return run_arms(shapes_corpus(20, 120, 50, seed), train_config(seed=seed, class_seed=seed), arms, folder)


_TIES = "A control that was seen to tie before: the README says so"

EXPERIMENTS = (
    Experiment(
        "shapes",
        "Generated textured shapes: ten base classes, then five sessions of two (in the smoke tier six, then two of two).",
        {"smoke": 1, "small": 5},
        measure_shapes,
        ARMS,
        METRICS,
    ),
    Experiment(
        "ablations",
        "Parts of the method taken away or replaced, on the same shapes.",
        {"small": 5},
        measure_ablations,
        ARMS,
        METRICS,
    ),
    Experiment("baselines", "Other ways to learn, on the same shapes.", {"small": 5}, measure_baselines, ARMS, METRICS),
)

CLAIMS = (
    claim(
        "cskopt/beats-training-without-forgetting-control",
        "At least 10 points more average accuracy than on-device training with nothing against forgetting (paper: +38.08 % over existing ones).",
        higher("average", "csko", than="all-taps", by=10.0),
        experiment="shapes",
        source="abstract v1",
        remark="The gain comes from prototypes and projection, not from the centre: see the claims against head-prototypes.",
    ),
    claim(
        "cskopt/centre-forgets-less-than-all-taps",
        "With prototypes and no projection, training only centres gives at least 5 points more average accuracy than training whole kernels.",
        higher("average", "centre", than="all-taps-prototypes", by=5.0),
        experiment="shapes",
        source="abstract",
    ),
    claim(
        "cskopt/keeps-up-with-the-full-null-space",
        "At most 3 points of average accuracy below Adam-NSCL on whole kernels, with a covariance 81 times smaller.",
        not_lower("average", "csko", than="nscl", within=3.0),
        experiment="shapes",
        source="abstract v2",
    ),
    claim(
        "cskopt/beats-head-with-prototypes",
        "Higher average accuracy than last layer + prototypes.",
        higher("average", "csko", than="head-prototypes"),
        experiment="shapes",
        source="our control",
        remark=_TIES,
    ),
    claim(
        "cskopt/learns-new-classes-better-than-the-head",
        "More plasticity than last layer + prototypes: accuracy on a session's classes right after it.",
        higher("new", "csko", than="head-prototypes"),
        experiment="shapes",
        source="our control",
    ),
    claim(
        "cskopt/beats-nearest-class-mean",
        "Higher average accuracy than the nearest class mean of frozen features, which trains nothing.",
        higher("average", "csko", than="ncm"),
        experiment="shapes",
        source="our control",
    ),
    claim(
        "cskopt/centre-beats-corner",
        "Under projection, the centre is the better element to train than a corner.",
        higher("average", "csko", than="csko-corner"),
        experiment="ablations",
        source="abstract",
        remark=_TIES,
    ),
    claim(
        "cskopt/centre-beats-corner-unprojected",
        "Without projection, the centre is the better element to train than a corner.",
        higher("average", "centre", than="corner"),
        experiment="ablations",
        source="abstract",
        remark="The corner was seen to forget less before",
    ),
    claim(
        "cskopt/dynamic-selection-beats-random",
        "Channels chosen by gradient are better than random ones.",
        higher("average", "csko", than="csko-random"),
        experiment="ablations",
        source="abstract (dynamic channel element selection)",
        remark="By 0.3 points at first measurement, which matters to nobody; the channels of the smallest gradient do as well",
    ),
    claim(
        "cskopt/dynamic-selection-beats-lowest",
        "Channels of the largest gradient are better than those of the smallest.",
        higher("average", "csko", than="csko-lowest"),
        experiment="ablations",
        source="abstract (dynamic channel element selection)",
        remark=_TIES,
    ),
    claim(
        "cskopt/beats-training-without-forgetting-control-by-25",
        "At least 25 points more average accuracy than whole kernels with nothing against forgetting (paper: +38.08 %).",
        higher("average", "csko", than="all-taps", by=25.0),
        experiment="baselines",
        source="abstract v1",
    ),
    claim(
        "cskopt/beats-elastic-weight-consolidation",
        "At least 25 points more average accuracy than EWC.",
        higher("average", "csko", than="ewc", by=25.0),
        experiment="baselines",
        source="abstract",
        remark="EWC has no prototypes, as published.",
    ),
)
