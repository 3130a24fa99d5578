"""What is checked of `twinsight`: a small-scale experiment, in which the paper's claim need not show."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from reproduce.claims import Experiment, Measurement, Speed, Suite, at_most, claim, higher, lower

SHORT_ARMS = ("twin-sight", "upper-bound", "lower-bound")
ARMS = (
    "upper-bound",
    "lower-bound:all",
    "lower-bound",
    "damped",
    "fixmatch",
    "freematch",
    "one-network",
    "twins-apart",
    "twin-sight",
    "twin-sight:official",
    "twin-sight:fixmatch",
)
FIRST, LAST = "twin-sight, first rounds", "twin-sight, last rounds"
WORDS = {
    "upper-bound": "FedAvg with labels on every client",
    "lower-bound": "FedAvg on the labelled clients of a round",
    "lower-bound:all": "FedAvg on all four labelled clients in every round",
    "damped": "FedAvg, clients without labels return the weights as they came",
    "fixmatch": "FedAvg with FixMatch",
    "freematch": "FedAvg with FreeMatch",
    "one-network": "one network with both objectives",
    "twins-apart": "two networks without the constraint",
    "twin-sight": "Twin-sight (constraint at 1/30 of the official weight)",
    "twin-sight:official": "Twin-sight with the official divisor (B XOR 2)",
    "twin-sight:fixmatch": "Twin-sight with pseudo-labels on unlabelled clients",
    FIRST: "Twin-sight, first third of the rounds",
    LAST: "Twin-sight, last third of the rounds",
}
METRICS = {
    "best": "accuracy of the best round (%)",
    "mean_last_5": "mean accuracy of the last five rounds (%)",
    "gradient_cosine": "cosine between the two objectives' gradients",
    "constraint": "discrepancy of the twins' neighbourhoods",
}


def _measure(arms: tuple[str, ...], rounds: int) -> Callable[[int, str, Path], Measurement]:
    """Ten clients, four of them labelled, five a round, on scikit-learn's digits; every arm on the same partition."""

    def measure(seed: int, tier: str, pictures: Path) -> Measurement:  # noqa: ARG001  # one tier each
        import json
        import tempfile

        from tenfold.config import load_preset
        from twinsight.benchmark import compare
        from twinsight.config import FederationConfig
        from twinsight.evaluation.figures import plot_curves

        config = load_preset("twinsight", "small", FederationConfig, "simulate", rounds=rounds, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            results = compare(config, arms, Path(folder))
            log = [json.loads(line) for line in (Path(folder) / "twin-sight/metrics.jsonl").read_text().splitlines()]
        plot_curves({arm: each["accuracy"] for arm, each in results.items()}, pictures / "accuracy.png", f"seed {seed}")
        measured = {arm: _metrics(each) for arm, each in results.items()}
        third = max(1, len(log) // 3)
        for name, part in ((FIRST, log[:third]), (LAST, log[-third:])):
            measured[name] = {"constraint": sum(line["loss-neighbourhood"] for line in part) / third}
        return measured

    return measure


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """Per cent, but for the cosine between the two objectives' gradients."""
    kept = {name: result[name] for name in ("best", "mean_last_5")}
    if result["gradient_cosine"] is not None:
        kept |= {name: result[name] for name in ("gradient_cosine", "gradient_conflict_share")}
    return kept


_SHORT = "digits in short"
_SAMPLING = "Two of the four labelled clients a round, as a disabled line of the official code has it."


def measure_exactness(_seed: int, _tier: str, _place: Path) -> Measurement:
    """The constraint on features that agree and that do not; the server's average of equal states."""
    import torch

    from twinsight.method.losses import neighbourhood_preserving_loss
    from twinsight.training.strategy import weighted_average

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16, 32, generator=generator)
    turned = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    other = torch.randn(16, 24, generator=generator)
    state = {"weight": torch.randn(64, 64, generator=generator), "steps": torch.tensor(7)}
    mean = weighted_average([state] * 5, [3, 1, 4, 1, 5])
    return {
        "same neighbourhoods": {
            "constraint": float(neighbourhood_preserving_loss(features @ turned * 3, features, "mean"))
        },
        "other neighbourhoods": {"constraint": float(neighbourhood_preserving_loss(features, other, "mean"))},
        "average of equal states": {
            "entries that differ": float(sum((mean[name] != state[name]).sum() for name in state))
        },
    }


EXACTNESS = Experiment(
    "exactness",
    "The constraint where one twin's features are the other's, turned and scaled; the average of five equal states.",
    {"smoke": 1},
    measure_exactness,
    {
        "same neighbourhoods": "features with the same neighbourhoods",
        "other neighbourhoods": "features with other neighbourhoods",
        "average of equal states": "the average of equal states",
    },
    {"constraint": "neighbourhood-preserving loss", "entries that differ": "entries that differ from the states"},
)

CLAIMS = (
    claim(
        "twinsight/constraint-sees-neighbourhoods-only",
        "The constraint vanishes where one twin's features are the other's, turned and scaled.",
        at_most("constraint", "same neighbourhoods", 1e-6),
        experiment="exactness",
        source="paper eq. 9",
        deterministic=True,
    ),
    claim(
        "twinsight/constraint-sees-other-neighbourhoods",
        "The constraint is large where the twins' neighbourhoods differ.",
        higher("constraint", "other neighbourhoods", than="same neighbourhoods", by=0.01),
        experiment="exactness",
        source="paper eq. 9",
        deterministic=True,
    ),
    claim(
        "twinsight/average-of-equals",
        "The server's average of equal states is that state, to the bit.",
        at_most("entries that differ", "average of equal states", 0.0),
        experiment="exactness",
        source="our README",
        deterministic=True,
    ),
    claim(
        "twinsight/short-constraint-falls",
        "Training lowers the discrepancy of the twins' neighbourhoods.",
        lower("constraint", LAST, than=FIRST),
        experiment=_SHORT,
        source="paper eq. 9",
    ),
    claim(
        "twinsight/short-upper-bound",
        "Labels everywhere beat labels on four clients of ten.",
        higher("best", "upper-bound", than="lower-bound"),
        experiment=_SHORT,
        source="paper Table 1",
    ),
    claim(
        "twinsight/constraint-falls",
        "Training lowers the discrepancy of the twins' neighbourhoods.",
        lower("constraint", LAST, than=FIRST),
        experiment="digits",
        source="paper eq. 9",
    ),
    claim(
        "twinsight/upper-bound-is-above",
        "Twin-sight stays below FedAvg with every client labelled.",
        higher("mean_last_5", "upper-bound", than="twin-sight"),
        experiment="digits",
        source="paper Table 1",
    ),
    claim(
        "twinsight/beats-the-lower-bound",
        "Twin-sight beats FedAvg on the labelled clients.",
        higher("mean_last_5", "twin-sight", than="lower-bound"),
        experiment="digits",
        source="paper Table 1",
        remark=_SAMPLING,
    ),
    claim(
        "twinsight/best-beats-the-lower-bound",
        "Twin-sight's best round beats that of FedAvg on the labelled clients.",
        higher("best", "twin-sight", than="lower-bound"),
        experiment="digits",
        source="paper Table 1",
        remark=_SAMPLING,
    ),
    claim(
        "twinsight/beats-the-full-lower-bound",
        "Twin-sight beats FedAvg with all four labelled clients in every round.",
        higher("mean_last_5", "twin-sight", than="lower-bound:all"),
        experiment="digits",
        source="control, not in the paper",
    ),
    claim(
        "twinsight/beats-damped",
        "Twin-sight beats FedAvg whose clients without labels return the weights as they came.",
        higher("mean_last_5", "twin-sight", than="damped"),
        experiment="digits",
        source="control, not in the paper",
    ),
    claim(
        "twinsight/damping-helps",
        "Clients that return the weights as they came make FedAvg on the labelled clients better.",
        higher("mean_last_5", "damped", than="lower-bound"),
        experiment="digits",
        source="control, not in the paper",
        remark=_SAMPLING,
    ),
    claim(
        "twinsight/beats-fixmatch",
        "Twin-sight beats FedAvg with FixMatch.",
        higher("mean_last_5", "twin-sight", than="fixmatch"),
        experiment="digits",
        source="paper Table 1",
    ),
    claim(
        "twinsight/beats-freematch",
        "Twin-sight beats FedAvg with FreeMatch.",
        higher("mean_last_5", "twin-sight", than="freematch"),
        experiment="digits",
        source="paper Table 1",
    ),
    claim(
        "twinsight/twins-beat-one-network",
        "Two networks beat one with both objectives.",
        higher("mean_last_5", "twins-apart", than="one-network"),
        experiment="digits",
        source="paper §1",
    ),
    claim(
        "twinsight/constraint-helps",
        "The neighbourhood-preserving constraint makes the classifier better.",
        higher("mean_last_5", "twin-sight", than="twins-apart"),
        experiment="digits",
        source="paper ablation",
    ),
    claim(
        "twinsight/mean-beats-official",
        "Dividing by the number of pairs is better than by B XOR 2.",
        higher("mean_last_5", "twin-sight", than="twin-sight:official"),
        experiment="digits",
        source="official code (B XOR 2) against eq. 9",
    ),
    claim(
        "twinsight/pseudo-labels-help",
        "Pseudo-labels on unlabelled clients make Twin-sight better.",
        higher("mean_last_5", "twin-sight:fixmatch", than="twin-sight"),
        experiment="digits",
        source="paper figure, as summarised",
    ),
    claim(
        "twinsight/gradients-conflict",
        "In one network the gradients of the two objectives point apart.",
        lower("gradient_cosine", "one-network", than=0.0),
        experiment="digits",
        source="paper §1",
    ),
)


Calls = tuple[Callable[[], object], Callable[[], object]]


def _rounds() -> Calls:
    """One round of five clients through Flower's messages, and the same local steps in a plain loop."""
    import torch
    from flwr.app import ArrayRecord, ConfigRecord

    from tenfold.config import load_preset
    from twinsight.config import FederationConfig
    from twinsight.data.datasets import description
    from twinsight.models import build_model
    from twinsight.training.client_app import held_by, make_client_app
    from twinsight.training.local_grid import LocalGrid
    from twinsight.training.local_training import local_round
    from twinsight.training.strategy import TwinStrategy, weighted_average

    config = load_preset("twinsight", "small", FederationConfig, "simulate")
    about = description(config)
    model = build_model(config, 10, mean=about.mean, std=about.std, channels=about.channels)
    start = {name: each.clone() for name, each in model.state_dict().items()}
    grid = LocalGrid(make_client_app(config, torch.device("cpu")), config.clients)
    strategy = TwinStrategy(config, tuple("0123456789"))
    strategy.meet(grid)
    arrays = ArrayRecord(start)

    def federated() -> object:
        messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        return strategy.aggregate_train(1, grid.send_and_receive(messages))

    def bare() -> object:
        states, weights = [], []
        for member in strategy.sample(1):
            model.load_state_dict(start)
            local_round(model, held_by(config, member.client), config, 1, member.client)
            states.append({name: each.clone() for name, each in model.state_dict().items()})
            weights.append(float(member.samples))
        return weighted_average(states, weights)

    return federated, bare


def _steps() -> Calls:
    """A step of a labelled client on the same views: the classifier on the weak ones, and on both as the official code has it."""
    import torch

    from twinsight.config import FederationConfig
    from twinsight.method.losses import Weights, labelled_loss
    from twinsight.models import build_model

    config = FederationConfig(encoder="resnet18")
    weak, strong, labels = torch.randn(16, 3, 32, 32), torch.randn(16, 3, 32, 32), torch.arange(16) % 10

    def step(views: Literal["both", "weak"]) -> Callable[[], object]:
        model = build_model(config, 10).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

        def one() -> object:
            loss = labelled_loss(model, weak, strong, labels, replace_views(views))
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            return loss

        return one

    def replace_views(views: Literal["both", "weak"]) -> Weights:
        return replace(Weights(), supervised_views=views)

    return step("weak"), step("both")


SPEEDS = (
    Speed("twinsight/round", "a round through Flower's messages against a bare loop of the same local steps; at most 1.3 times as long is a ratio of 0.77", _rounds, target=0.77, repeats=5),
    Speed("twinsight/step", "a labelled client's step with the classifier on weak views only, against both views as in the official code (BatchNorm then sees other statistics)", _steps, target=1.3, repeats=5),
)  # fmt: skip

SUITE = Suite(
    "twinsight",
    "Twin networks, one supervised and one self-supervised, tied by their neighbourhoods, learn from clients without labels where one network's objectives would pull apart.",
    (
        EXACTNESS,
        Experiment(
            _SHORT,
            "Three rounds over ten clients of whom four are labelled, label skew 0.1, on scikit-learn's digits.",
            {"smoke": 1},
            _measure(SHORT_ARMS, 3),
            WORDS,
            METRICS,
        ),
        Experiment("digits", "The same for forty rounds.", {"small": 5}, _measure(ARMS, 40), WORDS, METRICS),
    ),
    CLAIMS,
    SPEEDS,
)
