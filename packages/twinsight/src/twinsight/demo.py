"""The demonstration: four methods, one seed, a few rounds, on data that ships with scikit-learn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tenfold.config import load_preset
from twinsight.benchmark import compare
from twinsight.config import FederationConfig
from twinsight.data.datasets import load, view_maker
from twinsight.data.partition import partition_of
from twinsight.evaluation.figures import plot_curves, plot_partition, plot_views

ARMS = ("upper-bound", "lower-bound", "fixmatch", "twin-sight")


def demonstrate(out: Path, rounds: int, seed: int) -> dict[str, dict[str, Any]]:
    """Run the arms and draw who holds what, the two views and the curves into `out`.

    Returns:
        The result of each arm.
    """
    config = replace(load_preset("twinsight", "small", FederationConfig, "simulate"), rounds=rounds, seed=seed)
    train, _ = load(config)
    split = partition_of(config)
    counts = split.counts(train.labels.numpy(), len(train.classes))
    plot_partition(counts, split.labelled, train.classes, out / "partition.png")
    plot_views(train.subset(torch.arange(8)), view_maker(config), out / "views.png")
    results = compare(config, ARMS)
    plot_curves(
        {name: each["accuracy"] for name, each in results.items()}, out / "accuracy.png", f"digits, seed {seed}"
    )
    return results
