"""A deployment: one SuperLink and two SuperNodes as processes of their own, with TLS and node authentication."""

import importlib
import json
import runpy
import tomllib
from pathlib import Path

import pytest

from pfrforgery.recipe import FederationConfig, to_run_config
from pfrforgery.simulation import simulate
from pfrforgery.stores import FileStore

PACKAGE = Path(__file__).parents[1]
SMALL = FederationConfig(
    rounds=1, clients=2, local_steps=2, batch_size=8, train_images=16, test_images=16, evaluate_every=1
)


def test_the_app_of_the_project_file_has_the_defaults_of_the_code() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    app = project["tool"]["flwr"]["app"]
    extra = {"out": "", "resume": False, "state-dir": "", "device": "auto"}
    assert app["config"] == to_run_config(FederationConfig()) | extra
    for reference in app["components"].values():
        module, name = reference.split(":")
        assert hasattr(importlib.import_module(module), name)


def test_two_sites_learn_together_over_tls_with_keys_of_their_own(tmp_path: Path) -> None:
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
