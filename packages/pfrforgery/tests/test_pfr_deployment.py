"""A deployment: one SuperLink and two SuperNodes as processes of their own, with TLS and node authentication."""

import importlib
import json
import os
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Generator
from pathlib import Path

import pytest

from pfrforgery.config import FederationConfig, to_run_config
from pfrforgery.pipeline.simulation import simulate
from pfrforgery.training.state import FileStore

PACKAGE = Path(__file__).parents[1]
SMALL = FederationConfig(
    rounds=1, clients=2, local_steps=2, batch_size=8, train_images=16, test_images=16, evaluate_every=1
)


WARM = """
import os, signal, sys
from flwr.superlink.cli import flwr_serverapp
from flwr.supernode.cli import flwr_clientapp
import pfrforgery.training.client_app, pfrforgery.training.server_app
programs = {"flwr-clientapp": flwr_clientapp, "flwr-serverapp": flwr_serverapp}
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in os.fdopen(os.open(sys.argv[1], os.O_RDWR)):
    if not os.fork():
        sys.argv = line.split()
        programs[sys.argv[0]]()
        os._exit(0)
"""
"""Flower starts a process for the server and for every message. Each of them forks here after the imports, which take it most of its time."""


@pytest.fixture
def warm_path(tmp_path: Path) -> Generator[str]:
    """A search path on which the programs that Flower starts for server and clients are forked from one that has imported what they need."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "site").mkdir()
    os.mkfifo(tmp_path / "calls")
    for name in ("flwr-clientapp", "flwr-serverapp"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" > "{tmp_path}/calls"\n')
        program.chmod(0o755)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    environment["FLWR_HOME"] = str(tmp_path / "site/home")
    with (tmp_path / "warm.log").open("wb") as log:
        warm = subprocess.Popen(
            [sys.executable, "-c", WARM, str(tmp_path / "calls")],
            env=environment, cwd=tmp_path / "site", stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        yield os.pathsep.join((str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
        warm.kill()
        warm.wait()


def test_the_app_of_the_project_file_has_the_defaults_of_the_code() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    app = project["tool"]["flwr"]["app"]
    extra = {"out": "", "resume": False, "state-dir": "", "device": "auto"}
    assert app["config"] == to_run_config(FederationConfig()) | extra
    for reference in app["components"].values():
        module, name = reference.split(":")
        assert hasattr(importlib.import_module(module), name)


def test_two_sites_learn_together_over_tls_with_keys_of_their_own(
    tmp_path: Path, warm_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", warm_path)
    deploy = runpy.run_path(str(PACKAGE / "examples" / "loopback_deployment.py"))["deploy"]
    changed = {
        name: value
        for name, value in to_run_config(SMALL).items()
        if value != to_run_config(FederationConfig())[name] and name != "clients"
    }
    log = deploy(tmp_path / "site", [f"{name}={json.dumps(value)}" for name, value in changed.items()])
    result = json.loads((tmp_path / "site" / "run" / "result.json").read_text())
    assert result["rounds"] == 1, log
    assert set(result["clients"]) == {"0", "1"}
    assert result["rejected"] == []
    here = simulate(SMALL)
    for client in range(2):
        (folder,) = (tmp_path / "site" / f"state-{client}").iterdir()
        store = FileStore(folder, client, "")
        # Each message was a fresh process: the one that tested found what the one that trained had kept, and was told that it must.
        assert list(store.rounds()) == [1]
        assert result["clients"][str(client)]["personal-round"] == 1
        assert result["clients"][str(client)]["auc"] == pytest.approx(here.rounds[-1].clients[client]["auc"], abs=1e-4)
        other = tmp_path / "site" / f"state-{1 - client}"
        assert not list(other.rglob(f"{client}/*"))
    superlink = next((tmp_path / "site").glob("flower-superlink-*.log")).read_text()
    assert "SuperNode authentication is disabled" not in superlink
