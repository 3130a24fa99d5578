"""A whole federation on one machine: in this process, or on Ray with clients side by side."""

import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any, Literal

from tenfold import UserError
from tenfold.federated import pull_until
from tenfold.runs import RunFolder, pick_device, unlock_run
from twinsight.config import FederationConfig
from twinsight.data.partition import partition_of
from twinsight.training.client_app import make_client_app
from twinsight.training.local_grid import LocalGrid
from twinsight.training.loop import Outcome, federate, load_model

REPORTED = {
    **dict.fromkeys(
        ("best", "best_top_1", "best_running_mean", "last", "mean_last_5", "megabytes_per_round", "clients_per_round"),
        int | float,
    ),
    "rounds_to_target": int | None,
    "rejected": list,
    "notes": list,
    "accuracy": list,
}
"""What a table and a plot of results read, and what it must be."""


def simulate(
    out: str | Path,
    config: FederationConfig,
    *,
    resume: bool = False,
    backend: Literal["local", "ray"] = "local",
    device: str = "auto",
    cores_per_client: int = 1,
) -> Outcome:
    """Run a federation and keep it as a run folder.

    Args:
        out: the run folder.
        config: of the federation.
        resume: continue the run that is there; the result is that of a run that never stopped, and of a finished run its own.
        device: `auto`, `cpu`, `cuda`: where the models are; with `ray` each client decides for itself.
        backend: `local` asks the clients one after the other; `ray` is Flower's simulation, several at a time.
        cores_per_client: with `ray`, how many cores each client gets.

    Raises:
        UserError: see `RunFolder.create` and `federate`; Ray that is not installed.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    place = pick_device(device)
    partition_of(config)  # refused here, not by every client
    run = RunFolder.create(out, config, resume)
    kept = (run.checkpoints / "clients").resolve()
    if run.is_finished:
        # Its caller may have been interrupted afterwards, before the pictures were drawn.
        outcome = _finished(run)
    elif backend == "local":
        outcome = federate(LocalGrid(make_client_app(config, place, kept), config.clients), config, run, place)
    else:
        outcome = _on_ray(run, config, kept, cores_per_client)
    # What the clients keep is as large as the model for each of them, and of no use after the last round.
    shutil.rmtree(kept, ignore_errors=True)
    return outcome


def _on_ray(run: RunFolder, config: FederationConfig, kept: Path, cores: int) -> Outcome:
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise UserError("--backend ray needs Ray: pip install 'twinsight[simulation]'")
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from twinsight.training.server_app import make_server_app

    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    backend: dict[str, Any] = {"client_resources": {"num_cpus": cores, "num_gpus": 0.0}}
    server, app, left = make_server_app(config, run.path, resume=True), ServerApp(), threading.Event()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        pull_until(grid, left)
        server(grid, context)

    try:
        run_simulation(app, make_client_app(config, state_dir=kept), config.clients, backend_config=backend)
    finally:
        left.set()
    if not run.is_finished:
        raise UserError(f"{run.path}: the simulation ended early; see Flower's log above, then continue with --resume")
    return _finished(run)


def _finished(run: RunFolder) -> Outcome:
    """What a finished run holds; it is left to other processes.

    Raises:
        UserError: its result or its model is damaged.
    """
    unlock_run(run.path)
    result = run.result()
    if not all(isinstance(result.get(key), kind) for key, kind in REPORTED.items()):
        raise UserError(f"{run.path / 'result.json'}: is damaged; remove the folder {run.path} and run again")
    return Outcome(load_model(run.path), result)
