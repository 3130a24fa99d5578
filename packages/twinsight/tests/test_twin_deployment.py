"""One SuperLink and two SuperNodes as processes of their own, started by `flwr run`, give what one process gives."""

import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.config import load_preset
from tenfold.runs import RunFolder
from twinsight.config import APP_KEYS, FederationConfig, from_run_config
from twinsight.training.client_app import make_client_app
from twinsight.training.local_grid import LocalGrid
from twinsight.training.loop import federate, load_model

PACKAGE = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
SMALL = {"preset": "tiny", "clients": 2, "labelled": 1, "clients-per-round": 2, "rounds": 2, "image-size": 16}
SMALL |= {"momentum-across-rounds": True}


def test_the_run_configuration_has_every_field_and_leaves_it_to_the_preset() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    config = project["tool"]["flwr"]["app"]["config"]
    names = {field.name.replace("_", "-") for field in fields(FederationConfig)}
    assert config.keys() == names | APP_KEYS | {"preset"}
    assert from_run_config(config) == load_preset("twinsight", "small", FederationConfig, "simulate")
    assert from_run_config(config | SMALL).image_size == 16


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if process.poll() is not None or probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


@pytest.fixture
def nodes(tmp_path: Path) -> list[dict[str, int | bool | str]]:
    """The configuration of two nodes with pictures of their own: one knows its classes, the other does not."""
    generator = np.random.default_rng(0)
    for folder in ("known/3", "known/5", "unknown"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(4):
            pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    return [
        {"partition-id": node, "num-partitions": 2, "data": str(tmp_path / folder), "labelled": folder == "known"}
        for node, folder in enumerate(("known", "unknown"))
    ]


WARM = """
import os, signal, sys
from flwr.superlink.cli import flwr_serverapp
from flwr.supernode.cli import flwr_clientapp
import sklearn.datasets, torchvision.datasets
import twinsight.training.client_app, twinsight.training.server_app
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
    os.mkfifo(tmp_path / "calls")
    for name in ("flwr-clientapp", "flwr-serverapp"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" > "{tmp_path}/calls"\n')
        program.chmod(0o755)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    environment["FLWR_HOME"] = str(tmp_path / ".")
    with (tmp_path / "warm.log").open("wb") as log:
        warm = subprocess.Popen(
            [sys.executable, "-c", WARM, str(tmp_path / "calls")],
            env=environment, cwd=tmp_path / ".", stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        yield os.pathsep.join((str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
        warm.kill()
        warm.wait()


@pytest.fixture
def federation(tmp_path: Path, nodes: list[dict[str, int | bool | str]], warm_path: str) -> Generator[dict[str, str]]:
    """The environment in which `flwr run` finds a SuperLink with two SuperNodes as the connection `site`."""
    port = free_port()
    (tmp_path / "config.toml").write_text(f'[superlink.site]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    environment = os.environ | {
        # Flower's programs find one another by name.
        "PATH": warm_path,
        "FLWR_HOME": str(tmp_path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }

    def start(*command: str) -> subprocess.Popen[bytes]:
        log = running.enter_context((tmp_path / f"{command[0]}-{time.monotonic_ns()}.log").open("wb"))
        process = subprocess.Popen(
            [PROGRAMS / command[0], *command[1:]], env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
        running.callback(process.wait, timeout=30)
        running.callback(process.terminate)
        return process

    with ExitStack() as running:
        superlink = start(
            "flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(port)
        )
        wait_for_port(port, superlink)
        for node in nodes:
            start(
                "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()),
                "--node-config", as_toml(node),
            )  # fmt: skip
        yield environment


def as_toml(values: Mapping[str, int | float | bool | str]) -> str:
    """Settings as Flower's programs take them: TOML without line breaks."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in values.items())


def test_two_nodes_learn_what_one_process_learns(
    federation: dict[str, str], nodes: list[dict[str, int | bool | str]], tmp_path: Path
) -> None:
    settings = as_toml(SMALL | {"out": str(tmp_path / "there"), "patience": 120})
    done = subprocess.run(
        [PROGRAMS / "flwr", "run", PACKAGE, "site", "--stream", "--run-config", settings],
        env=federation, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (tmp_path / "there/result.json").exists(), done.stdout[-3000:] + done.stderr[-2000:]
    config = from_run_config(dict(SMALL))
    grid = LocalGrid(make_client_app(config), 2)
    for context, node in zip(grid.contexts.values(), nodes, strict=True):
        context.node_config.update(node)
    here = federate(grid, config, RunFolder.create(tmp_path / "here", config))
    assert here.result["rejected"] == []
    result = json.loads((tmp_path / "there/result.json").read_text())
    assert (result["rejected"], result["labelled_clients"]) == ([], here.result["labelled_clients"])
    there = load_model(tmp_path / "there").state_dict()
    for name, value in here.model.state_dict().items():
        # The nodes' processes may use another number of threads than this one.
        torch.testing.assert_close(there[name], value, rtol=0, atol=1e-5)
