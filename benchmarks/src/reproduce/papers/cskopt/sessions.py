"""One way to measure accuracy: train the base once, then take every method through the sessions from it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any


def train_config(**changes: Any) -> Any:
    """The preset `small` with some values changed."""
    from cskopt import TrainConfig
    from tenfold.config import load_preset

    # 32 bits everywhere: the same numbers on every machine.
    return replace(load_preset("cskopt", "small", TrainConfig), precision="fp32", **changes)


def run_arms(corpus: Any, config: Any, arms: Sequence[str], folder: Path) -> dict[str, dict[str, float]]:
    """Train the base once, then take every method through the sessions from it. Accuracies in percent."""
    import warnings

    import torch

    from cskopt import METHODS, IncrementalLearner, build_model
    from cskopt.data.datasets import SessionPictures, class_order
    from cskopt.evaluation.figures import plot_sessions
    from cskopt.training.run import make_accelerator, run_sessions, train_base
    from tenfold.runs import seed_everything

    torch.set_num_threads(1)  # sums in one order: the same numbers on every machine
    seed_everything(config.seed)
    accelerator = make_accelerator(torch.device("cpu"))
    order = class_order(len(corpus.classes), config)
    base = SessionPictures(corpus.train, order, order.labels_of(0), corpus)
    model = train_base(build_model(config.model, len(order.sessions[0])), base, config, accelerator)
    measured, curves = {}, {}
    for name in arms:
        learner = IncrementalLearner(model, method=METHODS[name], accelerator=accelerator, seed=config.seed)
        with warnings.catch_warnings():
            # The literal rule degenerates, and says so; that is what is measured.
            warnings.simplefilter("ignore")
            scores = run_sessions(learner, corpus, order, replace(config, method=name)).scores
        curves[name] = scores.seen
        measured[name] = {
            "average": 100 * scores.average,
            "last": 100 * scores.last,
            "forgetting": 100 * scores.forgetting,
            "new": 100 * scores.new,
        }
    plot_sessions(curves, folder / "sessions.png", f"{corpus.name}, seed {config.seed}")
    return measured
