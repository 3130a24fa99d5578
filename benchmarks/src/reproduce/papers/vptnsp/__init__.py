"""What is checked of `vptnsp`: a small-scale experiment, with the controls that tie or win."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from reproduce.claims import Experiment, Measurement, Speed, Suite, at_least, at_most, claim, higher, lower

SMOKE_ARMS = ("nsp2", "seq", "slow", "ncm")
SMALL_ARMS = (
    "nsp2",
    "exact",
    "seq",
    "affinity",
    "aggregation",
    "no-ln",
    "frozen",
    "slow",
    "pgp",
    "joint",
    "ncm",
    "ranpac",
)
DIGIT_ARMS = ("nsp2", "seq", "slow", "frozen", "ncm", "ranpac")


WORDS = {
    "nsp2": "the method (prompts in the null space)",
    "exact": "the method with exact LayerNorm and spread conditions",
    "seq": "sequential prompt tuning",
    "affinity": "the first condition alone (affinity)",
    "aggregation": "the second condition alone (aggregation)",
    "no-ln": "the method without the LayerNorm constraint",
    "frozen": "prompts frozen after the first task",
    "slow": "sequential tuning slowed to steps of the same norm",
    "pgp": "gradient projection on the layer's inputs",
    "joint": "all tasks at once (upper bound)",
    "ncm": "nearest class means of frozen features",
    "ranpac": "ridge regression on random features",
}
METRICS = {
    "accuracy": "accuracy after the last task (%)",
    "forgetting": "forgetting (points)",
    "task_aware_accuracy": "accuracy with the task known (%)",
    "task_aware_forgetting": "forgetting with the task known (points)",
    "drift": "drift of the first task's features (ratio of norms)",
}


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """Per cent, except drift, a ratio of norms."""
    return {
        "accuracy": 100 * result["acc_task_mean"],
        "forgetting": 100 * result["forgetting"],
        "task_aware_accuracy": 100 * result["task_aware_accuracy"],
        "task_aware_forgetting": 100 * result["task_aware_forgetting"],
        "drift": result["drift"],
    }


def _draw(results: dict[str, dict[str, Any]], pictures: Path) -> None:
    from vptnsp.evaluation.figures import plot_accuracy_matrix, plot_curves

    curves = {name: result["acc_after_each_task"] for name, result in results.items() if name != "joint"}
    plot_curves(curves, pictures / "accuracy.png", results["nsp2"]["source"])
    for name in ("nsp2", "seq"):
        plot_accuracy_matrix(results[name]["matrix"], pictures / f"matrix-{name}.png", results[name]["summary"])


def measure_short(seed: int, tier: str, pictures: Path) -> Measurement:  # noqa: ARG001  # one tier only
    """The same with two tasks of a few steps."""
    from vptnsp.demo import DEMO
    from vptnsp.training.run import compare

    results = compare(replace(DEMO, tasks=2, epochs=4, seed=seed), list(SMOKE_ARMS))
    _draw(results, pictures)
    return {arm: _metrics(result) for arm, result in results.items()}


def measure_glyphs(seed: int, tier: str, pictures: Path) -> Measurement:  # noqa: ARG001  # one tier only
    """New glyph classes in a shifted domain; the backbone has seen other classes of the plain domain."""
    from vptnsp.demo import TOY
    from vptnsp.training.run import compare

    results = compare(replace(TOY, seed=seed), list(SMALL_ARMS))
    _draw(results, pictures)
    return {arm: _metrics(result) for arm, result in results.items()}


def measure_digits(seed: int, tier: str, pictures: Path) -> Measurement:  # noqa: ARG001  # one tier only
    """Scanned digits that ship with scikit-learn, two a task; no digit was ever shown to the backbone."""
    from tenfold.config import load_preset
    from vptnsp.config import TrainConfig
    from vptnsp.training.run import compare

    config = load_preset("vptnsp", "small", TrainConfig, seed=seed, epochs=4, extendable=False)
    results = compare(config, list(DIGIT_ARMS))
    _draw(results, pictures)
    return {arm: _metrics(result) for arm, result in results.items()}


def measure_null_space(_seed: int, _tier: str, _place: Path) -> Measurement:
    """An update of prompts, projected away from 40 directions that 500 features fill: what is left of it there."""
    import torch

    from vptnsp.method.null_space import null_space_projection

    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(500, 40, generator=generator) @ torch.randn(40, 128, generator=generator)
    update = torch.randn(8, 128, generator=generator).double()
    projection, nullity = null_space_projection(seen.T @ seen / len(seen), 1.0, normalize="none")
    moved = (update @ projection @ seen.T.double()).norm() / (update @ seen.T.double()).norm()
    return {
        "projected": {
            "change of seen features": float(moved),
            "nullity": float(nullity),
            "size": 128 * 128 / (500 * 128),
        }
    }


NULL_SPACE = Experiment(
    "null space",
    "A prompt's update projected away from the 40 directions of 500 features of 128 channels.",
    {"smoke": 1},
    measure_null_space,
    {"projected": "the projected update"},
    {
        "change of seen features": "what it changes at the features seen, relative to the update itself",
        "nullity": "dimensions left to learn in",
        "size": "size of what is kept, relative to the features",
    },
)

CLAIMS = (
    claim(
        "vptnsp/projected-updates-keep-what-was-seen",
        "An update in the null space of the features seen does not change what they attend to, up to a thousandth.",
        at_most("change of seen features", "projected", 1e-3),
        experiment="null space",
        source="paper §3, eq. 13 and Alg. 2",
        deterministic=True,
    ),
    claim(
        "vptnsp/null-space-is-found",
        "Of 128 dimensions of which 40 are filled, at least 80 are left to learn in.",
        at_least("nullity", "projected", 80),
        experiment="null space",
        source="paper Alg. 2",
        deterministic=True,
    ),
    claim(
        "vptnsp/short-less-drift",
        "After two short tasks, features of the first have moved less than under sequential prompt tuning.",
        lower("drift", "nsp2", than="seq"),
        experiment="two short tasks",
        source="paper §4, Fig. 4",
    ),
    claim(
        "vptnsp/short-direction-matters",
        "After two short tasks, the direction of the projection has made features move less at equal norm.",
        lower("drift", "nsp2", than="slow"),
        experiment="two short tasks",
        source="control, not in the paper",
    ),
    claim(
        "vptnsp/short-class-means",
        "After two short tasks, is more accurate than nearest class means of frozen features.",
        higher("accuracy", "nsp2", than="ncm"),
        experiment="two short tasks",
        source="control, not in the paper",
    ),
    claim(
        "vptnsp/less-drift-than-sequential",
        "Features of the first task move less than under sequential prompt tuning.",
        lower("drift", "nsp2", than="seq"),
        experiment="glyphs",
        source="paper §4, Fig. 4",
    ),
    claim(
        "vptnsp/direction-matters",
        "At equal norm, the direction of the projection makes features move less.",
        lower("drift", "nsp2", than="slow"),
        experiment="glyphs",
        source="control, not in the paper",
    ),
    claim(
        "vptnsp/less-forgetting-than-sequential",
        "Forgets less than sequential prompt tuning.",
        lower("forgetting", "nsp2", than="seq"),
        experiment="glyphs",
        source="paper Table 1",
    ),
    claim(
        "vptnsp/more-accurate-than-sequential",
        "Is more accurate in the end than sequential prompt tuning.",
        higher("accuracy", "nsp2", than="seq"),
        experiment="glyphs",
        source="paper Table 1",
    ),
    claim(
        "vptnsp/less-task-aware-forgetting",
        "With the task known, forgets less than sequential prompt tuning: features interfere less.",
        lower("task_aware_forgetting", "nsp2", than="seq"),
        experiment="glyphs",
        source="our README, not in the paper",
    ),
    claim(
        "vptnsp/more-accurate-than-slow",
        "Is more accurate than the same loop slowed down by an equal norm.",
        higher("accuracy", "nsp2", than="slow"),
        experiment="glyphs",
        source="control, not in the paper",
    ),
    claim(
        "vptnsp/more-accurate-than-frozen",
        "Is more accurate than prompts frozen after the first task.",
        higher("accuracy", "nsp2", than="frozen"),
        experiment="glyphs",
        source="control, not in the paper",
    ),
    claim(
        "vptnsp/more-accurate-than-class-means",
        "Is more accurate than nearest class means of frozen features.",
        higher("accuracy", "nsp2", than="ncm"),
        experiment="glyphs",
        source="control, not in the paper",
    ),
    claim(
        "vptnsp/more-accurate-than-ridge",
        "Is more accurate than ridge regression on random features of frozen features.",
        higher("accuracy", "nsp2", than="ranpac"),
        experiment="glyphs",
        source="control, not in the paper",
    ),
    claim(
        "vptnsp/both-beat-affinity",
        "Both conditions forget less than the first alone.",
        lower("forgetting", "nsp2", than="affinity"),
        experiment="glyphs",
        source="paper Table 3",
    ),
    claim(
        "vptnsp/both-beat-aggregation",
        "Both conditions forget less than the second alone.",
        lower("forgetting", "nsp2", than="aggregation"),
        experiment="glyphs",
        source="paper Table 3",
    ),
    claim(
        "vptnsp/both-drift-less-than-affinity",
        "Both conditions let features move less than the first alone.",
        lower("drift", "nsp2", than="affinity"),
        experiment="glyphs",
        source="paper §4",
    ),
    claim(
        "vptnsp/both-drift-less-than-aggregation",
        "Both conditions let features move less than the second alone.",
        lower("drift", "nsp2", than="aggregation"),
        experiment="glyphs",
        source="paper §4",
    ),
    claim(
        "vptnsp/layer-norm-constraint",
        "The LayerNorm constraint lets features move less.",
        lower("drift", "nsp2", than="no-ln"),
        experiment="glyphs",
        source="paper Table 3",
    ),
    claim(
        "vptnsp/less-forgetting-than-pgp",
        "Forgets less than gradient projection on the layer's inputs.",
        lower("forgetting", "nsp2", than="pgp"),
        experiment="glyphs",
        source="paper Table 5",
    ),
    claim(
        "vptnsp/exact-conditions-drift-less",
        "Conditions with LayerNorm's weight and the prompts' spread kept let features move less than the paper's.",
        lower("drift", "exact", than="nsp2"),
        experiment="glyphs",
        source="our README, not in the paper",
    ),
    claim(
        "vptnsp/digits-less-drift",
        "On scanned digits, features of the first task move less than under sequential prompt tuning.",
        lower("drift", "nsp2", than="seq"),
        experiment="digits",
        source="paper §4",
    ),
    claim(
        "vptnsp/digits-direction-matters",
        "On scanned digits, the direction makes features move less at equal norm.",
        lower("drift", "nsp2", than="slow"),
        experiment="digits",
        source="control, not in the paper",
    ),
    claim(
        "vptnsp/digits-less-forgetting",
        "On scanned digits, forgets less than sequential prompt tuning.",
        lower("forgetting", "nsp2", than="seq"),
        experiment="digits",
        source="paper Table 1",
    ),
    claim(
        "vptnsp/digits-more-accurate",
        "On scanned digits, is more accurate than sequential prompt tuning.",
        higher("accuracy", "nsp2", than="seq"),
        experiment="digits",
        source="paper Table 1",
    ),
    claim(
        "vptnsp/digits-frozen",
        "On scanned digits, is more accurate than prompts frozen after the first task.",
        higher("accuracy", "nsp2", than="frozen"),
        experiment="digits",
        source="control",
    ),
    claim(
        "vptnsp/digits-class-means",
        "On scanned digits, is more accurate than nearest class means.",
        higher("accuracy", "nsp2", than="ncm"),
        experiment="digits",
        source="control",
    ),
)


Calls = tuple[Callable[[], object], Callable[[], object]]


def _vit() -> Any:
    """A ViT-Small with 197 tokens and random weights: what is timed does not depend on them."""
    import torch

    from vptnsp.models.networks import PromptedViT

    torch.manual_seed(0)
    return PromptedViT.from_timm("vit_small_patch16_224", 4, pretrained=False)


def _step(**changes: Any) -> Callable[[], object]:
    import torch

    from vptnsp.benchmark import second_task
    from vptnsp.config import LearnerConfig

    images, labels = torch.rand(4, 3, 224, 224), 2 + torch.arange(4) % 2
    learner, training = second_task(_vit(), LearnerConfig(precision="float32", **changes), images)
    return lambda: learner.step(training, images, labels)


def _steps() -> Calls:
    return _step(), _step(projection="none", ln_weight=0.0)


BATCHES, BATCH_SIZE = 3, 8
"""A task has many batches: what is done once per task must not weigh as if it had one."""


def _task() -> tuple[Any, list[Any]]:
    import torch

    return _vit(), list(torch.rand(BATCHES, BATCH_SIZE, 3, 224, 224))


def _moments_and_forward() -> Calls:
    import torch

    from vptnsp.method.second_moments import collect_second_moments

    vit, batches = _task()

    def forward() -> object:
        with torch.no_grad():
            return [vit.features(images) for images in batches]

    return lambda: collect_second_moments(vit, batches), forward


def _moments_and_stored() -> Calls:
    from vptnsp.benchmark import stored_token_moments
    from vptnsp.method.second_moments import collect_second_moments

    vit, batches = _task()
    return lambda: collect_second_moments(vit, batches), lambda: stored_token_moments(vit, batches)


SPEEDS = (
    Speed("vptnsp/step", "a training step of the method against one of sequential prompt tuning; at most 15 % slower is a ratio of 0.87", _steps, target=0.87, repeats=5),
    Speed("vptnsp/moment-pass", "the second-moment pass over 24 pictures against plain forward passes; 1.15 forwards are a ratio of 0.87", _moments_and_forward, target=0.87, repeats=3),
    Speed("vptnsp/stored-tokens", "the second-moment pass against storing every token (peak memory: `vptnsp bench`)", _moments_and_stored, target=1.0, repeats=3),
)  # fmt: skip

SUITE = Suite(
    "vptnsp",
    "Prompts that are only updated in the null space of earlier tasks' features let a vision transformer learn new classes without forgetting old ones.",
    (
        NULL_SPACE,
        Experiment(
            "two short tasks",
            "Two tasks of new procedural classes, sixteen steps each, on the embedded backbone.",
            {"smoke": 1},
            measure_short,
            WORDS,
            METRICS,
        ),
        Experiment(
            "glyphs",
            "Five tasks of new procedural classes in a shifted domain, on the embedded backbone.",
            {"small": 5},
            measure_glyphs,
            WORDS,
            METRICS,
        ),
        Experiment(
            "digits",
            "Five tasks of two scanned digits each, on the embedded backbone.",
            {"small": 5},
            measure_digits,
            WORDS,
            METRICS,
        ),
    ),
    CLAIMS,
    SPEEDS,
)
