"""The ServerApp: starts the shared part, runs the rounds, keeps the run folder."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from pfrforgery.config import FederationConfig, fingerprint, from_run_config
from pfrforgery.data.datasets import EMBEDDED, count_clients
from pfrforgery.evaluation.metrics import over_clients
from pfrforgery.method.baselines import ALGORITHMS, create_detector
from pfrforgery.training.state import read_shared
from pfrforgery.training.strategy import PartialFedAvg, Progress, RoundReport
from tenfold import UserError
from tenfold.checkpoints import write_tensors
from tenfold.federated import rejections_for_log, stop_when_silent, watch_replies
from tenfold.runs import RunFolder

HEADLINE = ("acc", "auc", "eer")
"""Reported per client and over clients."""


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        config: of the run.
        shared: the averaged entries.
        rounds: report of each round that this process ran.
    """

    config: FederationConfig
    shared: dict[str, Tensor]
    rounds: list[RoundReport]


def create_server_app(
    bound: Mapping[str, Any] | None = None, on_finish: Callable[[Outcome], None] | None = None
) -> ServerApp:
    """The ServerApp.

    Args:
        bound: run configuration where Flower gives none, as in its Python simulation.
        on_finish: receives the outcome, in the server's process.
    """
    app = ServerApp()
    defaults = dict(bound or {})

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        """Run all rounds."""
        outcome = federate(grid, {**defaults, **context.run_config})
        if on_finish is not None:
            on_finish(outcome)

    return app


def federate(grid: Grid, values: Mapping[str, Any]) -> Outcome:
    """Run the rounds that are left.

    Args:
        grid: reaches the clients.
        values: the run configuration: `FederationConfig` under Flower's names, `out` for the run folder, `resume`.

    Raises:
        UserError: a configuration, data or folder that does not do, or too many rounds in a row without a sound reply.
    """
    watch_replies(grid)
    config = from_run_config(values)
    algorithm = ALGORITHMS[config.algorithm]
    model = create_detector(config)
    state = model.state_dict()
    initial = {name: state[name] for name in algorithm.uploads(model)}
    folder = RunFolder.create(Path(values["out"]), config, bool(values.get("resume"))) if values.get("out") else None
    progress, shared = restore(folder, config, initial)
    outcome = Outcome(config, shared, [])

    silent = silent_rounds(folder.lines() if folder is not None else [])

    def on_round(report: RoundReport, arrays: ArrayRecord) -> None:
        nonlocal silent
        silent = 0 if report.participants else silent + 1
        outcome.rounds.append(report)
        shared.update(arrays.to_torch_state_dict())
        if folder is not None:
            folder.log(**log_line(report))
        # Before the round is kept as done: a resumed run repeats it.
        stop_when_silent(silent, config.rounds, report.round, report.rejections)
        if folder is not None:
            if report.round == config.rounds:
                folder.finish(summary(config, report, folder.lines()))
            keep_shared(folder, config, shared, progress)

    clients = _number_of_clients(config, grid)
    strategy = PartialFedAvg(config, clients, algorithm.is_pooled, progress, on_round)
    left = config.rounds - progress.round
    if left > 0:
        start = ArrayRecord({name: Array(np.ascontiguousarray(value.numpy())) for name, value in shared.items()})
        strategy.start(grid=grid, initial_arrays=start, num_rounds=left, timeout=config.timeout)
    return outcome


def _number_of_clients(config: FederationConfig, grid: Grid) -> int:
    if config.clients:
        return config.clients
    if config.data in EMBEDDED or not Path(config.data).is_file():
        return max(1, len(list(grid.get_node_ids())))
    return count_clients(config.data, 0)


def restore(
    folder: RunFolder | None, config: FederationConfig, initial: dict[str, Tensor]
) -> tuple[Progress, dict[str, Tensor]]:
    """Where an interrupted run stopped, or the beginning.

    Raises:
        UserError: a checkpoint of another run.
    """
    path = folder.path / "shared.safetensors" if folder is not None else None
    if folder is None or path is None:
        return Progress(), dict(initial)
    if not path.is_file():
        folder.rewind(0)  # the first round may have been logged, and not kept
        return Progress(), dict(initial)
    tensors, last, book = read_shared(path, fingerprint(config))
    shapes = {name: value.shape for name, value in initial.items()}
    if {name: value.shape for name, value in tensors.items()} != shapes:
        raise UserError(f"{path}: holds the weights of another model; choose another --out")
    progress = Progress(last, book)
    folder.rewind(progress.round)
    return progress, {name: tensors[name] for name in initial}


def silent_rounds(log: list[dict[str, Any]]) -> int:
    """How many rounds without a sound reply a log ends with."""
    silent = [not line.get("participants") for line in log if "step" in line]
    return next((count for count, is_silent in enumerate(reversed(silent)) if not is_silent), len(silent))


def keep_shared(folder: RunFolder, config: FederationConfig, shared: Mapping[str, Tensor], progress: Progress) -> None:
    """Keep the shared part of a finished round: what a resumed run starts from."""
    about = {
        "round": str(progress.round),
        "client": "shared",
        "config_sha256": fingerprint(config),
        "book": json.dumps(progress.book),
    }
    write_tensors(folder.path / "shared.safetensors", shared, about)


def log_line(report: RoundReport) -> dict[str, float | int | str | None]:
    """One line of `metrics.jsonl`: the round, its traffic, who was left out, and each metric over clients and of each client."""
    line: dict[str, float | int | str | None] = {
        "step": report.round,
        "lr": report.learning_rate,
        "participants": len(report.participants),
        "bytes_down": report.bytes_down,
        "bytes_up": report.bytes_up,
        "seconds": round(report.seconds, 3),
        **{name.replace("-", "_"): value for name, value in report.losses.items()},
    }
    line |= rejections_for_log(report.rejections)
    if not report.participants:
        line["silent"] = "no sound reply: the shared part is as it was"
    if report.clients:
        examples = [int(values["num-examples"]) for values in report.clients.values()]
        for metric in HEADLINE:
            values = [each[metric] for each in report.clients.values()]
            over = over_clients(values, examples, lower_is_better=metric == "eer")
            line |= {f"{metric}/{name}": value for name, value in dataclasses.asdict(over).items()}
            line |= {f"{metric}/client {client}": each[metric] for client, each in report.clients.items()}
    return line


def summary(config: FederationConfig, last: RoundReport, log: list[dict[str, Any]]) -> dict[str, Any]:
    """What `result.json` holds: the last evaluation, traffic per round, who was left out when and why, and the rounds without a sound reply."""
    examples = [int(values["num-examples"]) for values in last.clients.values()]
    over = {
        metric: finite(
            dataclasses.asdict(
                over_clients([each[metric] for each in last.clients.values()], examples, metric == "eer")
            )
        )
        for metric in HEADLINE
    }
    rejected = [
        {"round": line["step"], "who": key.removeprefix("rejected/"), "why": value}
        for line in log
        for key, value in line.items()
        if key.startswith("rejected/")
    ]
    return {
        "algorithm": config.algorithm,
        "rounds": last.round,
        "over clients": over,
        "clients": {str(client): finite(values) for client, values in last.clients.items()},
        "bytes per round": {"down": last.bytes_down, "up": last.bytes_up},
        "rejected": rejected,
        "silent rounds": [line["step"] for line in log if "silent" in line],
    }


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Undefined numbers as JSON knows them."""
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}


server_app = create_server_app()
"""What `flwr run` loads."""
