"""A federation on one machine: in this process, or on Flower's Ray simulation. Both run the same two apps."""

import importlib.util
import logging
import os
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from flwr.app import ConfigRecordValues, Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from pfrforgery.config import FederationConfig, to_run_config
from pfrforgery.data.datasets import count_clients
from pfrforgery.method.baselines import ALGORITHMS, create_detector, kept_names
from pfrforgery.method.feature_statistics import feature_statistics
from pfrforgery.models.networks import TwoBranchDetector, load_exactly
from pfrforgery.training.client_app import create_client_app
from pfrforgery.training.local_grid import run_in_process
from pfrforgery.training.server_app import Outcome, create_server_app
from pfrforgery.training.state import ContextStore, FileStore, PersonalStore
from pfrforgery.training.strategy import RoundReport
from tenfold import UserError
from tenfold.checkpoints import read_tensors
from tenfold.federated import pull_until
from tenfold.runs import RunFolder, pick_device

Runtime = Literal["in-process", "ray"]


@dataclass(frozen=True)
class Federation:
    """What a simulated run gave.

    Attributes:
        config: with the number of clients filled in.
        shared: the averaged entries.
        personal: what each client kept, by number; empty where it kept nothing or never took part.
        rounds: report of each round that was run now.
    """

    config: FederationConfig
    shared: dict[str, Tensor]
    personal: dict[int, dict[str, Tensor]]
    rounds: list[RoundReport]

    def detector(self, client: int) -> TwoBranchDetector:
        """A client's detector: the shared part and its own."""
        model = create_detector(self.config)
        algorithm = ALGORITHMS[self.config.algorithm]
        load_exactly(model, self.shared, algorithm.uploads(model))
        if self.personal.get(client):
            load_exactly(model, self.personal[client], kept_names(model, algorithm))
        return model.eval()


def simulate(
    config: FederationConfig,
    out: Path | None = None,
    *,
    runtime: Runtime = "in-process",
    resume: bool = False,
    device: str = "auto",
    client_app: ClientApp | None = None,
) -> Federation:
    """Run a federation on this machine.

    Args:
        config: what to run.
        out: run folder; None keeps nothing on disk.
        runtime: `in-process`, one client after the other and the same bits every time; `ray`, Flower's simulation.
        resume: continue the run in `out` if there is one.
        device: `auto`, `cpu`, `cuda`, ...
        client_app: in place of the package's own, such as one with Flower's differential-privacy mods.

    Raises:
        UserError: data or configuration that does not do, a folder in use, or a round that no client survived.
    """
    clients = count_clients(config.data, config.clients)
    config = replace(config, clients=clients)
    check_ready(config, device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = out if out is not None or runtime == "in-process" else Path(scratch) / "run"
        values = to_run_config(config) | {"resume": resume, "device": device}
        if folder is not None:
            # Before any state is written: an unusable folder is refused at once.
            RunFolder.create(folder, config, resume)
            values |= {"out": str(folder), "resume": True, "state-dir": str(folder.resolve() / "personal")}
        found: list[Outcome] = []
        server = create_server_app(values, found.append)
        nodes = [{"partition-id": number, "num-partitions": clients} for number in range(clients)]
        if runtime == "ray":
            _run_on_ray(server, client_app or create_client_app(values), clients)
            contexts = {}
        else:
            contexts = run_in_process(server, client_app or create_client_app(values), nodes, {})
        outcome = found[0]
        personal = {}
        for number in range(clients):
            store = ContextStore(contexts[number]) if folder is None else FileStore(folder / "personal", number, "")
            personal[number] = _last_state(store)
        return Federation(config, outcome.shared, personal, outcome.rounds)


@torch.inference_mode()
def check_ready(config: FederationConfig, device: str) -> None:
    """Refuse what no client could start with, before anything is written.

    Raises:
        UserError: an unknown backbone, weights or device, or images too small for the split.
    """
    pick_device(device)
    model = create_detector(config).eval()
    size = config.image_size
    feature_statistics(model.extractor(torch.zeros(1, 3, size, size)))


def _last_state(store: PersonalStore) -> dict[str, Tensor]:
    if isinstance(store, FileStore):
        saved = store.rounds()
        return read_tensors(saved[max(saved)])[0] if saved else {}
    kept = store.load(expected_round=1)
    return kept.tensors if kept else {}


def _run_on_ray(server: ServerApp, client: ClientApp, clients: int) -> None:
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "runtime ray: Ray is not installed; pip install 'pfrforgery[simulation]', or use --runtime in-process"
        )
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    from flwr.simulation import run_simulation

    backend: dict[str, dict[str, ConfigRecordValues]] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": min(2, os.cpu_count() or 1), "include_dashboard": False, "log_to_driver": False},
    }
    before = logging.getLogger("flwr").level
    logging.getLogger("flwr").setLevel(logging.ERROR)
    app, left = ServerApp(), threading.Event()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        pull_until(grid, left)
        server(grid, context)

    try:
        run_simulation(app, client, num_supernodes=clients, backend_config=backend)
    except RuntimeError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"runtime ray: Flower's simulation broke down ({reason}); try --runtime in-process") from None
    finally:
        left.set()
        logging.getLogger("flwr").setLevel(before)
