"""Flower's simulation on Ray gives what one process gives."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pfrforgery.config import FederationConfig
from pfrforgery.pipeline.inference import client_detector, open_run
from pfrforgery.pipeline.simulation import simulate
from tenfold.checkpoints import read_tensors

SMALL = FederationConfig(
    rounds=2, clients=2, local_steps=2, batch_size=8, train_images=16, test_images=16, evaluate_every=2
)
OPTIONS = "--rounds 2 --clients 2 --local-steps 2 --batch-size 8 --train-images 16 --test-images 16 --evaluate-every 2"


@pytest.mark.skipif(
    "TENFOLD_RAY" not in os.environ or importlib.util.find_spec("ray") is None,
    reason="starting Ray can take minutes; set TENFOLD_RAY=1",
)
def test_ray_gives_what_one_process_gives(tmp_path: Path) -> None:
    # A process of its own: Ray's workers know nothing of the hook that checks shapes here.
    command = [sys.executable, "-m", "pfrforgery", "simulate", "--runtime", "ray", "--out", "run", *OPTIONS.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    here = simulate(SMALL)
    shared, _ = read_tensors(tmp_path / "run" / "shared.safetensors")
    for name, value in here.shared.items():
        assert (shared[name] - value).abs().max() < 1e-4, name
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    there = open_run(tmp_path / "run")
    for client in range(2):
        model, _ = client_detector(there, client)
        for name, value in here.personal[client].items():
            assert (model.state_dict()[name] - value).abs().max() < 1e-4, name
        assert result["clients"][str(client)]["auc"] == pytest.approx(here.rounds[-1].clients[client]["auc"], abs=1e-4)
