"""What lives through the rounds: momentum, the place in the labelled pictures; in one process, over restarts, on Ray."""

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

import twinsight.training.loop as federation
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.config import load_preset
from tenfold.runs import RunFolder
from twinsight.config import FederationConfig
from twinsight.data.datasets import Pictures
from twinsight.data.partition import client_data, split_labels
from twinsight.data.transforms import ViewMaker
from twinsight.models import TwinModel, build_model
from twinsight.pipeline.simulation import simulate
from twinsight.training.client_app import make_client_app
from twinsight.training.local_grid import LocalGrid
from twinsight.training.local_training import labelled_batch, local_round
from twinsight.training.loop import federate, load_model
from twinsight.training.state import ClientState, ContextStore, FileStore, StateStore
from twinsight.training.strategy import weighted_average

TINY = load_preset(
    "twinsight", "tiny", FederationConfig, "simulate", rounds=3, clients_per_round=3, momentum_across_rounds=True
)
STEP = FederationConfig(encoder="small", batch_size=20, learning_rate=0.05, precision="float32")


def one_client(labelled: int) -> Any:
    images = torch.randint(256, (20, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = Pictures(images, torch.arange(20) % 4, ("a", "b", "c", "d"))
    return split_labels(pictures, torch.arange(labelled), ViewMaker(pad=1, flip=False, strong="geometric"))


def parameters(model: TwinModel) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters()}


@pytest.mark.parametrize("labelled", [0, 20])
def test_a_second_update_is_a_fresh_one_and_nine_tenths_of_the_first(labelled: int) -> None:
    """The official optimizer is made once: with one step a round, momentum .9 adds .9 of the last update."""
    model, data = build_model(STEP, 4), one_client(labelled)
    start = parameters(model)
    first = local_round(model, data, STEP, 1, 0)
    assert first.steps == 1
    middle, after_one = parameters(model), copy.deepcopy(model.state_dict())
    ends = []
    for state in (None, first.state):
        model.load_state_dict(after_one)
        local_round(model, data, STEP, 2, 0, state)
        ends.append(parameters(model))
    fresh, kept = ends
    moved = 0.0
    for name, each in start.items():
        update = middle[name] - each
        moved = max(moved, update.abs().max().item())
        # Weights are below 2 in size: each difference is rounded by at most 2^-23 some three times.
        torch.testing.assert_close(kept[name] - fresh[name], 0.9 * update, rtol=0, atol=8e-6)
    assert moved > 0.001


def test_without_momentum_across_rounds_nothing_is_kept_and_nothing_is_used() -> None:
    config, data = replace(STEP, momentum_across_rounds=False), one_client(20)
    model = build_model(config, 4)
    before = copy.deepcopy(model.state_dict())
    found = local_round(model, data, config, 1, 0)
    assert found.state == ClientState()
    plain = parameters(model)
    model.load_state_dict(before)
    heavy = {name: torch.ones_like(each) for name, each in model.named_parameters()}
    local_round(model, data, config, 1, 0, ClientState(heavy))
    assert all(torch.equal(each, plain[name]) for name, each in parameters(model).items())


def test_the_kept_momentum_is_not_changed_by_the_round_that_reads_it() -> None:
    model, data = build_model(STEP, 4), one_client(20)
    state = local_round(model, data, STEP, 1, 0).state
    before = {name: each.clone() for name, each in state.momenta.items()}
    local_round(model, data, STEP, 2, 0, state)
    assert all(torch.equal(each, before[name]) for name, each in state.momenta.items())


def test_labelled_batches_go_on_across_epochs_and_rounds() -> None:
    """Partial data: shuffled passes of 5 = 2 + 2 + 1 pictures, each pass in an order of its own, none begun anew."""
    passes = [[labelled_batch(5, 2, 3 * number + index, 0, 7).tolist() for index in range(3)] for number in range(20)]
    for each in passes:
        assert [len(batch) for batch in each] == [2, 2, 1]
        assert sorted(index for batch in each for index in batch) == [0, 1, 2, 3, 4]
    assert len({str(each) for each in passes}) > 10
    config, data = replace(STEP, setting="partial-data", batch_size=4, local_epochs=2), one_client(5)
    model = build_model(config, 4)
    first = local_round(model, data, config, 1, 0)
    # Fifteen unlabelled pictures are four batches; two epochs.
    assert (first.steps, first.state.drawn) == (8, 8)
    assert local_round(model, data, config, 2, 0, first.state).state.drawn == 16


def stores(tmp_path: Path) -> list[StateStore]:
    context = Context(run_id=0, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return [ContextStore(context), FileStore(tmp_path, 3, TINY)]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_store_goes_back_to_the_round_that_the_server_knows(kind: int, tmp_path: Path) -> None:
    store = stores(tmp_path)[kind]
    states = {number: ClientState({"w": torch.full((2,), float(number))}, number) for number in (1, 2, 4)}

    def drawn(last: int) -> int | None:
        found = store.load(last)
        assert found is None or not found.momenta or (found.momenta["w"] == last).all()
        return None if found is None else found.drawn

    store.save(1, states[1], last=0)
    store.save(2, states[2], last=1)
    # The server never took the reply of round 2.
    assert drawn(1) == 1
    store.save(4, states[4], last=1)
    assert (drawn(4), drawn(1), drawn(2)) == (4, 1, None)
    assert store.rounds() == {1, 4}
    # A run that begins takes nothing of an abandoned one.
    assert drawn(0) == 0
    store.save(1, ClientState(), last=0)
    assert store.load(1) == ClientState()


def test_a_state_of_another_run_or_model_is_refused(tmp_path: Path) -> None:
    from tenfold import UserError

    FileStore(tmp_path, 0, TINY).save(1, ClientState({"w": torch.zeros(2)}), 0)
    with pytest.raises(UserError, match=r"round-0001\.safetensors: is of a run with another configuration"):
        FileStore(tmp_path, 0, replace(TINY, alpha=0.7)).load(1)
    model = build_model(STEP, 4)
    for momenta, says in (
        ({"w": torch.zeros(2)}, "momentum of w does not fit"),
        ({"classifier.bias": torch.zeros(3)}, "classifier.bias does not fit"),
        ({"classifier.bias": torch.full((4,), torch.nan)}, "is not finite"),
    ):
        with pytest.raises(UserError, match=says):
            ClientState(momenta).check(model, "here")
    path = tmp_path / "0/round-0001.safetensors"
    write_tensors(path, {}, read_tensors(path)[1] | {"drawn": "many"})
    with pytest.raises(UserError, match="is damaged"):
        FileStore(tmp_path, 0, TINY).load(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("state") / "run"
    simulate(out, TINY)
    return out


def test_rounds_are_the_bare_loop_with_an_optimizer_a_client(finished: Path) -> None:
    """One client after the other, averaged by hand, without Flower: the same weights."""
    model = build_model(TINY, 10, mean=(0.3,) * 3, std=(0.35,) * 3)
    state = {name: each.clone() for name, each in model.state_dict().items()}
    kept: dict[int, ClientState] = {}
    for number in range(1, 4):
        chosen = sorted(np.random.default_rng([TINY.seed, 3, number]).choice(10, 3, replace=False))
        states, weights = [], []
        for client in map(int, chosen):
            model.load_state_dict(state)
            data = client_data(TINY, client)
            kept[client] = local_round(model, data, TINY, number, client, kept.get(client)).state
            states.append({name: each.clone() for name, each in model.state_dict().items()})
            weights.append(float(len(data)))
        state = weighted_average(states, weights)
    assert len(kept) < 9, "some client takes part twice, else this tests nothing"
    stored = load_model(finished).state_dict()
    for name, each in state.items():
        torch.testing.assert_close(stored[name], each, rtol=0, atol=1e-6)


@pytest.mark.parametrize("when", ["after the checkpoint", "before the checkpoint"])
def test_resumed_is_uninterrupted(when: str, finished: Path, tmp_path: Path) -> None:
    """Also where the clients of the interrupted round have already kept what the server never heard of."""
    stopped, original = tmp_path / "stopped", federation.save_checkpoint

    def stop_in_the_second(run: Any, model: TwinModel, number: int, last_rounds: dict[int, int]) -> None:
        if number == 2 and when == "before the checkpoint":
            raise KeyboardInterrupt
        original(run, model, number, last_rounds)
        if number == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federation, "save_checkpoint", stop_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            simulate(stopped, TINY)
    assert list((stopped / "checkpoints/clients").glob("*/round-0002.safetensors"))
    simulate(stopped, TINY, resume=True)
    for name in ("result.json", "metrics.jsonl", "model/model.safetensors", "checkpoints/last.safetensors"):
        assert (stopped / name).read_bytes() == (finished / name).read_bytes(), name
    assert not (stopped / "checkpoints/clients").exists()


def federate_nodes(config: FederationConfig, out: Path, rounds: int, **node: str) -> list[dict[str, Any]]:
    """A deployment's server that ends after some rounds, with nodes that were just started."""
    grid = LocalGrid(make_client_app(config), config.clients)
    for context in grid.contexts.values():
        context.node_config.update(node)
    original = federation.save_checkpoint

    def stop(run: Any, model: TwinModel, number: int, last_rounds: dict[int, int]) -> None:
        original(run, model, number, last_rounds)
        if number == rounds < config.rounds:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federation, "save_checkpoint", stop)
        try:
            federate(grid, config, RunFolder.create(out, config, resume=True))
        except KeyboardInterrupt:
            assert rounds < config.rounds
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_nodes_with_a_state_folder_survive_a_restart_and_the_others_say_what_they_lost(
    finished: Path, tmp_path: Path
) -> None:
    kept = {"state-dir": str(tmp_path / "kept")}
    federate_nodes(TINY, tmp_path / "sound", 2, **kept)
    log = federate_nodes(TINY, tmp_path / "sound", 3, **kept)
    for name in ("result.json", "metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "sound" / name).read_bytes() == (finished / name).read_bytes(), name
    federate_nodes(TINY, tmp_path / "lost", 2)
    lost = federate_nodes(TINY, tmp_path / "lost", 3)
    said = {name: value for name, value in lost[2].items() if name.startswith("restarted")}
    assert said
    assert all(value.endswith("is lost; it began anew") for value in said.values())
    assert not [name for line in log for name in line if name.startswith("restarted")]
    # A damaged state is the client's failure: it is named and left out.
    shutil.rmtree(tmp_path / "sound")
    federate_nodes(TINY, tmp_path / "sound", 2, **kept)
    for path in (tmp_path / "kept").rglob("*.safetensors"):
        path.write_bytes(b"x")
    last = federate_nodes(TINY, tmp_path / "sound", 3, **kept)[2]
    assert any("is not a safetensors file, or damaged" in str(value) for value in last.values())


@pytest.mark.skipif("TENFOLD_RAY" not in os.environ, reason="starting Ray takes a minute; set TENFOLD_RAY=1")
def test_flowers_own_simulation_gives_the_same_weights(finished: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tenfold.config import load_preset;"
        "from twinsight import FederationConfig, simulate;"
        "import torch; torch.set_num_threads(1);"
        "c = load_preset('twinsight', 'tiny', FederationConfig, 'simulate', rounds=3, clients_per_round=3, momentum_across_rounds=True);"
        "simulate(Path(sys.argv[1]), c, backend='ray')"
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ray")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    here, there = load_model(finished).state_dict(), load_model(tmp_path / "ray").state_dict()
    for name, each in here.items():
        torch.testing.assert_close(there[name], each, rtol=0, atol=1e-6)
