"""What is checked of `twinsight`: the small-scale experiment of its specification, in which the paper's claim need not show."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from reproduce.claims import Claim, Experiment, Measurement, Speed, Suite, Verdict

SHORT_ARMS = ("twin-sight", "upper-bound", "lower-bound")
ARMS = (
    "upper-bound",
    "lower-bound:all",
    "lower-bound",
    "fixmatch",
    "freematch",
    "one-network",
    "twins-apart",
    "twin-sight",
    "twin-sight:official",
    "twin-sight:fixmatch",
)
FIRST, LAST = "twin-sight, first rounds", "twin-sight, last rounds"


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


def _claim(
    name: str,
    statement: str,
    source: str,
    method: str,
    baseline: str | float,
    recorded: dict[str, Verdict],
    *,
    metric: str = "mean_last_5",
    better: Literal["higher", "lower"] = "higher",
    experiment: str = "digits",
    remark: str = "",
) -> Claim:
    return Claim(
        id=f"twinsight/{name}",
        statement=statement,
        source=source,
        experiment=experiment,
        metric=metric,
        method=method,
        baseline=baseline,
        better=better,
        recorded=recorded,
        remark=remark,
    )


_SHORT = "digits in short"
_SAMPLING = "Two of the four labelled clients a round, as a disabled line of the official code has it."

HOLDS, UNCLEAR = Verdict.HOLDS, Verdict.INCONCLUSIVE

CLAIMS = (
    _claim("short-constraint-falls", "Training lowers the discrepancy of the twins' neighbourhoods.", "paper eq. 9", LAST, FIRST, {"smoke": UNCLEAR}, metric="constraint", better="lower", experiment=_SHORT),
    _claim("short-upper-bound", "Labels everywhere beat labels on four clients of ten.", "paper Table 1", "upper-bound", "lower-bound", {"smoke": UNCLEAR}, metric="best", experiment=_SHORT),
    _claim("constraint-falls", "Training lowers the discrepancy of the twins' neighbourhoods.", "paper eq. 9", LAST, FIRST, {"small": UNCLEAR}, metric="constraint", better="lower"),
    _claim("upper-bound-is-above", "Twin-sight stays below FedAvg with every client labelled.", "paper Table 1", "upper-bound", "twin-sight", {"small": UNCLEAR}),
    _claim("beats-the-lower-bound", "Twin-sight beats FedAvg on the labelled clients.", "paper Table 1", "twin-sight", "lower-bound", {"small": UNCLEAR}, remark=_SAMPLING),
    _claim("best-beats-the-lower-bound", "Twin-sight's best round beats that of FedAvg on the labelled clients.", "paper Table 1", "twin-sight", "lower-bound", {"small": UNCLEAR}, metric="best", remark=_SAMPLING),
    _claim("beats-the-full-lower-bound", "Twin-sight beats FedAvg with all four labelled clients in every round.", "control, not in the paper", "twin-sight", "lower-bound:all", {"small": UNCLEAR}),
    _claim("beats-fixmatch", "Twin-sight beats FedAvg with FixMatch.", "paper Table 1", "twin-sight", "fixmatch", {"small": UNCLEAR}),
    _claim("beats-freematch", "Twin-sight beats FedAvg with FreeMatch.", "paper Table 1", "twin-sight", "freematch", {"small": UNCLEAR}),
    _claim("twins-beat-one-network", "Two networks beat one with both objectives.", "paper §1", "twins-apart", "one-network", {"small": HOLDS}),
    _claim("constraint-helps", "The neighbourhood-preserving constraint makes the classifier better.", "paper ablation", "twin-sight", "twins-apart", {"small": UNCLEAR}),
    _claim("mean-beats-official", "Dividing by the number of pairs is better than by B XOR 2.", "specification §8, not in the paper", "twin-sight", "twin-sight:official", {"small": HOLDS}),
    _claim("pseudo-labels-help", "Pseudo-labels on unlabelled clients make Twin-sight better.", "paper figure, as summarised", "twin-sight:fixmatch", "twin-sight", {"small": UNCLEAR}),
    _claim("gradients-conflict", "In one network the gradients of the two objectives point apart.", "paper §1", "one-network", 0.0, {"small": UNCLEAR}, metric="gradient_cosine", better="lower"),
)  # fmt: skip


Calls = tuple[Callable[[], object], Callable[[], object]]


def _rounds() -> Calls:
    """One round of five clients through Flower's messages, and the same local steps in a plain loop."""
    import torch
    from flwr.app import ArrayRecord, ConfigRecord

    from tenfold.config import load_preset
    from twinsight.config import FederationConfig
    from twinsight.data.datasets import DESCRIPTIONS
    from twinsight.models import build_model
    from twinsight.training.client_app import held_by, make_client_app
    from twinsight.training.local_grid import LocalGrid
    from twinsight.training.local_training import local_round
    from twinsight.training.strategy import TwinStrategy, weighted_average

    config = load_preset("twinsight", "small", FederationConfig, "simulate")
    about = DESCRIPTIONS[config.data]
    model = build_model(config, 10, mean=about.mean, std=about.std)
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
    (
        Experiment("twinsight", _SHORT, "Three rounds of the federation below.", {"smoke": 3}, _measure(SHORT_ARMS, 3)),
        Experiment("twinsight", "digits", "Forty rounds over ten clients of whom four are labelled, label skew 0.1, on scikit-learn's digits.", {"small": 5}, _measure(ARMS, 40)),
    ),
    CLAIMS,
    SPEEDS,
)  # fmt: skip
