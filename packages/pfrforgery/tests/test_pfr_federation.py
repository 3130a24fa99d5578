"""Rounds: what is averaged, what stays, what happens when clients fail, and what does not change the result."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from pfrforgery.config import FederationConfig, round_rate, to_run_config
from pfrforgery.data.datasets import DataRequest, client_data
from pfrforgery.method import baselines as algorithms
from pfrforgery.method.baselines import ALGORITHMS, create_detector
from pfrforgery.models.networks import pick
from pfrforgery.pipeline.simulation import Federation, simulate
from pfrforgery.training.client_app import create_client_app
from pfrforgery.training.local_grid import run_in_process
from pfrforgery.training.local_training import Turn, train_client
from pfrforgery.training.server_app import create_server_app
from pfrforgery.training.state import ContextStore, FileStore, PersonalState, read_shared
from pfrforgery.training.strategy import PartialFedAvg, Progress, RoundReport
from tenfold import UserError
from tenfold.checkpoints import read_tensors, write_tensors
from tenfold.errors import WriteError

Golden = Callable[[str], dict[str, np.ndarray]]
SMALL = FederationConfig(
    rounds=2, clients=3, local_steps=2, batch_size=8, train_images=16, test_images=16, schedule="constant"
)


class Clock:
    """Stands for the clock by which a round's timeout is kept: time passes when a client is late, and only then."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


def as_app(answer: Callable[[Message, Context], Message]) -> ClientApp:
    """A ClientApp that answers both kinds of message alike."""
    app = ClientApp()
    app.train()(answer)
    app.evaluate()(answer)
    return app


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def reply(message: Message, context: Context, arrays: dict[str, np.ndarray], examples: int, has: int = 0) -> Message:
    """What a client of a toy problem answers."""
    metrics = {
        "num-examples": examples,
        "partition-id": int(context.node_config["partition-id"]),
        "personal-round": has,
    }
    metrics |= {"loss-shared": 0.0, "loss-personal": 0.0, "loss-adversarial": 0.0}
    record = ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})
    return Message(RecordDict({"arrays": record, "metrics": MetricRecord(metrics)}), reply_to=message)


def toy_run(
    client_app: ClientApp,
    initial: dict[str, np.ndarray],
    clients: int,
    rounds: int,
    strategy_class: type[PartialFedAvg] = PartialFedAvg,
    config: FederationConfig = FederationConfig(evaluate_every=99),  # noqa: B008
) -> tuple[list[RoundReport], list[dict[str, np.ndarray]]]:
    """Rounds of the real strategy on a toy problem: reports, and the averaged arrays after each."""
    reports: list[RoundReport] = []
    states: list[dict[str, np.ndarray]] = []

    def on_round(report: RoundReport, arrays: ArrayRecord) -> None:
        reports.append(report)
        states.append({name: array.numpy() for name, array in arrays.items()})

    server = ServerApp()

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        strategy = strategy_class(config, clients, False, Progress(), on_round)
        start = ArrayRecord({name: Array(value) for name, value in initial.items()})
        strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, timeout=60.0)

    run_in_process(server, client_app, [{"partition-id": number} for number in range(clients)], {})
    return reports, states


# ------------------------------------------------------------------------------------------------------------ golden


def test_averaging_is_weighted_by_examples(golden: Golden) -> None:
    data = golden("aggregation")
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        arrays = {"shared.a": data["client_a"][client], "shared.b": data["client_b"][client]}
        return reply(message, context, arrays, int(data["num_examples"][client]))

    start = {"shared.a": np.zeros((3, 4), np.float32), "shared.b": np.zeros(5, np.float32)}
    _, states = toy_run(app, start, 4, 1)
    for key in "ab":
        np.testing.assert_allclose(states[0][f"shared.{key}"], data[f"aggregated_{key}"], atol=1e-6)
        np.testing.assert_allclose(states[0][f"shared.{key}"], data[f"flower_{key}"], atol=1e-6)
    assert np.abs(states[0]["shared.a"] - data["uniform_a"]).max() > 1e-3


def test_five_rounds_of_partial_participation_are_the_golden_trace(golden: Golden) -> None:
    data = golden("protocol_trace")
    lr, coupling, steps = float(data["lr"]), float(data["coupling"]), int(data["local_steps"])
    personal_start = data["personal"][0]
    kept: list[np.ndarray] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        u = message.content["arrays"]["shared.u"].numpy()
        told = message.content["config"]
        expected = dict(zip(told["book-clients"], told["book-rounds"], strict=True)).get(client, 0)
        found = ContextStore(context).load(expected)
        v = found.tensors["v"].numpy() if found else personal_start[client]
        for _ in range(steps):
            gu = u - data["targets_shared"][client] + coupling * v
            gv = v - data["targets_personal"][client] + coupling * u
            u, v = u - lr * gu, v - lr * gv
        ContextStore(context).save(PersonalState({"v": torch.tensor(v)}, int(told["server-round"])))
        kept.append(v)
        return reply(message, context, {"shared.u": u}, int(data["num_examples"][client]), found.round if found else 0)

    class Sampled(PartialFedAvg):
        def _participants(self, nodes: list[int], number: int) -> list[int]:
            return [
                node for node, takes_part in zip(nodes, data["participation"][number - 1], strict=True) if takes_part
            ]

    rounds = len(data["participation"])
    reports, states = toy_run(app, {"shared.u": data["global_shared"][0]}, 4, rounds, Sampled)
    order = iter(kept)
    personal = personal_start.copy()
    for number, (report, state) in enumerate(zip(reports, states, strict=True), start=1):
        np.testing.assert_allclose(state["shared.u"], data["global_shared"][number], rtol=1e-5, atol=1e-6)
        assert report.participants == np.flatnonzero(data["participation"][number - 1]).tolist()
        for client in report.participants:
            personal[client] = next(order)
        np.testing.assert_allclose(personal, data["personal"][number], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- invariants


def test_one_client_is_plain_training_with_a_new_optimiser_each_round() -> None:
    config = replace(SMALL, clients=1, schedule="cosine")
    run = simulate(config)
    model = create_detector(config)
    data = client_data(DataRequest.of(config, 1), 0)
    for number in (1, 2):
        turn = Turn(config.seed, number, 0)
        train_client(model, data.train, ALGORITHMS["fedpr"], config, turn, round_rate(config, number), 2)
    assert same(run.shared, dict(model.shared_state()))
    assert same(run.personal[0], dict(model.personal_state()))


def test_equal_algorithms_are_equal_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    fedavg = simulate(replace(SMALL, algorithm="fedavg"))
    plain = simulate(replace(SMALL, routing="plain", alpha=0.0, beta=0.0))
    assert same(fedavg.shared, plain.shared)
    assert same(fedavg.shared, simulate(replace(SMALL, algorithm="fedprox", mu=0.0)).shared)
    unkept = replace(ALGORITHMS["fedper"], uploads=algorithms.everything_shared)
    monkeypatch.setitem(algorithms.ALGORITHMS, "fedper", unkept)
    assert same(fedavg.shared, simulate(replace(SMALL, algorithm="fedper")).shared)


def test_ditto_without_its_pull_is_local_training() -> None:
    ditto = simulate(replace(SMALL, algorithm="ditto", ditto_lambda=0.0))
    local = simulate(replace(SMALL, algorithm="local"))
    assert local.shared == {}
    assert all(report.bytes_up == report.bytes_down == 0 for report in local.rounds)
    for client in range(3):
        personal = {name.removeprefix("personal."): value for name, value in ditto.personal[client].items()}
        assert same(personal, local.personal[client])


def test_the_order_of_the_clients_changes_nothing() -> None:
    forward = simulate(SMALL)
    server_out: list[Any] = []

    values = to_run_config(SMALL)
    nodes = [{"partition-id": number, "num-partitions": 3} for number in (2, 0, 1)]
    run_in_process(create_server_app(values, server_out.append), create_client_app(values), nodes, {})
    assert same(forward.shared, server_out[0].shared)


def test_an_upload_holds_the_shared_part_and_nothing_else() -> None:
    seen: list[list[str]] = []
    whole = create_client_app(to_run_config(SMALL))

    def watching(message: Message, context: Context) -> Message:
        answer = whole(message, context)
        if "arrays" in answer.content:
            seen.append(list(answer.content["arrays"]))
        return answer

    run = simulate(SMALL, client_app=as_app(watching))
    names = list(create_detector(SMALL).shared_state())
    assert seen == [names] * 6
    assert run.rounds[0].bytes_up == 3 * sum(value.numel() * 4 for value in run.shared.values())
    half = simulate(replace(SMALL, upload_dtype="float16"))
    assert half.rounds[0].bytes_up * 2 == run.rounds[0].bytes_up
    for name, value in run.shared.items():
        torch.testing.assert_close(half.shared[name], value, atol=0.02, rtol=0.02)


def test_who_does_not_take_part_keeps_what_it_had(tmp_path: Path) -> None:
    config = replace(SMALL, fraction=0.4, rounds=4, evaluate_every=4)
    run = simulate(config, tmp_path / "run")
    took_part = {client: [r.round for r in run.rounds if client in r.participants] for client in range(3)}
    assert all(len(report.participants) == 1 for report in run.rounds)
    assert len({tuple(rounds) for rounds in took_part.values()}) > 1
    for client, rounds in took_part.items():
        saved = list(FileStore(tmp_path / "run" / "personal", client, "").rounds())
        assert saved == rounds[-2:]


# ---------------------------------------------------------------------------------------------------------- failures


def failing(kind: str, client: int, in_round: int, config: FederationConfig = SMALL) -> ClientApp:
    """The package's clients, one of which fails in one round."""
    whole = create_client_app(to_run_config(config))

    def answer(message: Message, context: Context) -> Message:
        is_training = message.metadata.message_type == "train"
        told = message.content["config"]
        if context.node_config["partition-id"] != client or told["server-round"] != in_round or not is_training:
            return whole(message, context)
        if kind == "drops out":
            raise ConnectionError("the cable was pulled")
        if kind == "forgets":
            for name in list(context.state):
                del context.state[name]
        reply = whole(message, context)
        if kind == "is late":
            CLOCK.now += 100
        if kind == "sends NaN":
            arrays = reply.content["arrays"]
            arrays["shared.fc.bias"] = Array(np.array([np.nan, 0], np.float32))
        if kind == "leaks":
            reply.content["arrays"]["personal.fc.bias"] = Array(np.zeros(2, np.float32))
        return reply

    return as_app(answer)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("drops out", "cable"), ("is late", "no reply within"), ("sends NaN", "NaN or infinite")],
)
def test_a_failing_client_is_left_out_and_reported(kind: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfrforgery.training.local_grid.time", CLOCK)
    config = replace(SMALL, timeout=1.0) if kind == "is late" else SMALL
    run = simulate(config, client_app=failing(kind, client=1, in_round=2))
    assert run.rounds[0].participants == [0, 1, 2]
    assert run.rounds[1].participants == [0, 2]
    (reason,) = run.rounds[1].failures.values()
    assert words in reason
    assert list(run.rounds[1].failures) == ["client 1"]
    others = [1, 2]
    assert set(run.rounds[1].clients) >= set(others)
    assert all(bool(value.isfinite().all()) for value in run.shared.values())


def test_the_average_of_the_others_is_unchanged() -> None:
    """A client that fails in training leaves the round's average equal to that of the others."""
    first = simulate(replace(SMALL, rounds=1), client_app=failing("drops out", 2, 1))
    app = create_client_app(to_run_config(SMALL))
    values = to_run_config(replace(SMALL, rounds=1, clients=2))

    found: list[Any] = []
    # The same two clients of three, the third never invited.
    nodes = [{"partition-id": number, "num-partitions": 3} for number in (0, 1)]
    run_in_process(create_server_app(values, found.append), app, nodes, {})
    assert same(first.shared, found[0].shared)


def test_a_run_without_any_sound_reply_stops_says_why_and_can_go_on(tmp_path: Path) -> None:
    def dead(_: Message, __: Context) -> Message:
        raise OSError("no such host")

    config = replace(SMALL, rounds=4, evaluate_every=4)
    words = r"rounds 1 to 3: no client's training could be used \(client 0: OSError: no such host; client 1: .*--resume"
    with pytest.raises(UserError, match=words):
        simulate(config, tmp_path / "run", client_app=as_app(dead))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["participants"], line["rejected"]) for line in lines] == [
        (1, 0, 3),
        (2, 0, 3),
        (3, 0, 3),
    ]
    assert all("as it was" in line["silent"] for line in lines)
    assert not (tmp_path / "run" / "result.json").exists()
    # The last of them is repeated: by then the hosts are there.
    resumed = simulate(config, tmp_path / "run", resume=True)
    assert [report.round for report in resumed.rounds] == [3, 4]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["silent rounds"] == [1, 2]
    with pytest.raises(UserError, match="round 1: no client's training could be used"):
        simulate(replace(SMALL, rounds=1), client_app=as_app(dead))


def test_a_leak_is_refused_and_left_out(tmp_path: Path) -> None:
    run = simulate(replace(SMALL, rounds=1), tmp_path / "run", client_app=failing("leaks", 1, 1))
    assert run.rounds[0].participants == [0, 2]
    assert run.rounds[0].failures == {
        "client 1": "sent other entries than it was asked for: personal.fc.bias",
    }
    assert list(run.shared) == list(create_detector(SMALL).shared_state())
    (line,) = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert line["rejected"] == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["rejected"] == [{"round": 1, "who": "client 1", "why": line["rejected/client 1"]}]


def test_a_client_without_its_personal_state_stays_out_and_overwrites_nothing() -> None:
    config = replace(SMALL, rounds=3, evaluate_every=3)
    run = simulate(config, client_app=failing("forgets", 1, 2))
    assert [report.participants for report in run.rounds] == [[0, 1, 2], [0, 2], [0, 2]]
    for report in run.rounds[1:]:
        assert "lost its personal state: expected round 1, has 0; --allow-state-reset" in report.failures["client 1"]
    assert run.personal[1] == {}
    config = replace(config, allow_state_reset=True)
    run = simulate(config, client_app=failing("forgets", 1, 2, config))
    assert [report.participants for report in run.rounds] == [[0, 1, 2]] * 3


def test_a_diverging_client_keeps_its_last_sound_state() -> None:
    config = replace(SMALL, learning_rate=1e30)
    with pytest.raises(UserError, match=r"client 0: the (loss|personal part) is not finite"):
        simulate(config)


# ------------------------------------------------------------------------------------------------------------ resume


class PowerCutError(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("algorithm", ["fedpr", "fedbn"])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path: Path, algorithm: str) -> None:
    config = replace(SMALL, algorithm=algorithm, rounds=4, schedule="cosine")
    whole = simulate(config, tmp_path / "whole")
    calls = create_client_app(to_run_config(config) | {"state-dir": str(tmp_path / "cut" / "personal")})

    def cut(message: Message, context: Context) -> Message:
        told = message.content["config"]
        # In the middle of a round: client 0 has saved a state that the server never hears of.
        if told["server-round"] == 3 and context.node_config["partition-id"] == 1:
            raise KeyboardInterrupt
        return calls(message, context)

    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "cut", client_app=as_app(cut))
    with pytest.raises(UserError, match="--resume"):
        simulate(config, tmp_path / "cut")
    with pytest.raises(UserError, match="learning_rate was"):
        simulate(replace(config, learning_rate=0.1), tmp_path / "cut", resume=True)
    resumed = simulate(config, tmp_path / "cut", resume=True)
    assert [report.round for report in resumed.rounds] == [3, 4]
    assert same(whole.shared, resumed.shared)
    for client in range(3):
        assert same(whole.personal[client], resumed.personal[client])
    logs = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]
    again = simulate(config, tmp_path / "cut", resume=True)
    assert again.rounds == []
    assert same(again.shared, whole.shared)


def test_a_disk_that_is_full_stops_the_run_where_it_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that cannot keep its part is not left out: the others would go on to another result."""
    whole = simulate(SMALL, tmp_path / "whole")
    original = FileStore.save

    def full(store: FileStore, state: PersonalState) -> None:
        if state.round == 2 and store.client == 1:
            raise WriteError(f"{store.folder}: cannot write (No space left on device)")
        original(store, state)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "save", full)
        with pytest.raises(WriteError, match=r"personal/1: cannot write \(No space"):
            simulate(SMALL, tmp_path / "cut")
    resumed = simulate(SMALL, tmp_path / "cut", resume=True)
    assert same(whole.shared, resumed.shared)
    assert (tmp_path / "cut/result.json").read_bytes() == (tmp_path / "whole/result.json").read_bytes()


def test_a_killed_save_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path, 0, "abc")
    store.save(PersonalState({"v": torch.zeros(2)}, 1))

    def killed(*_: object) -> None:
        raise PowerCutError

    monkeypatch.setattr("tenfold.checkpoints.save_file", killed)
    with pytest.raises(PowerCutError):
        store.save(PersonalState({"v": torch.ones(2)}, 2))
    assert list(store.rounds()) == [1]
    found = store.load(1)
    assert found is not None
    assert torch.equal(found.tensors["v"], torch.zeros(2))
    with pytest.raises(UserError, match="another configuration"):
        FileStore(tmp_path, 0, "other").load(1)
    (tmp_path / "0" / "round-0001.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="damaged"):
        store.load(1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config_sha256": "other"}, "another configuration"),
        ({"round": "1e3"}, "after which round"),
        ({"round": "9" * 5000}, "after which round"),
        ({"book": "[]"}, "'book' of its metadata"),
        ({"book": "[" * 100_000}, "nested too deeply"),
        ({"book": '{"0": "x"}'}, "in which round"),
        ({"book": '{"x": 1}'}, "in which round"),
    ],
)
def test_a_checkpoint_that_no_server_wrote_is_refused(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    about, path = {"config_sha256": "abc", "round": "2", "book": '{"0": 2, "3": 1}'}, tmp_path / "shared.safetensors"
    write_tensors(path, {"v": torch.zeros(2)}, about)
    assert read_shared(path, "abc")[1:] == (2, {0: 2, 3: 1})
    write_tensors(path, {"v": torch.zeros(2)}, about | changes)
    with pytest.raises(UserError, match=words):
        read_shared(path, "abc")


def test_a_first_round_that_was_logged_and_not_kept_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, rounds=2)
    whole = simulate(config, tmp_path / "whole")

    def killed(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr("pfrforgery.training.server_app.keep_shared", killed)
        with pytest.raises(PowerCutError):
            simulate(config, tmp_path / "cut")
    assert same(simulate(config, tmp_path / "cut", resume=True).shared, whole.shared)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_run_is_not_resumed_from_the_weights_of_another_model(tmp_path: Path) -> None:
    config = replace(SMALL, rounds=1)
    shared = simulate(config, tmp_path / "run").shared
    path = tmp_path / "run" / "shared.safetensors"
    about = read_tensors(path)[1]
    write_tensors(path, shared | {"shared.fc.bias": torch.zeros(3)}, about)
    with pytest.raises(UserError, match=r"shared\.safetensors: holds the weights of another model"):
        simulate(config, tmp_path / "run", resume=True)


def test_a_detector_can_be_taken_from_a_run() -> None:
    run: Federation = simulate(SMALL)
    model = run.detector(2)
    assert same(dict(pick(model, lambda name: name.startswith("personal."))), run.personal[2])


@pytest.mark.parametrize(
    "algorithm", [name for name in ALGORITHMS if name not in ("fedpr", "fedavg", "local", "ditto")]
)
def test_every_baseline_runs_and_is_evaluated_for_each_client(algorithm: str) -> None:
    run = simulate(replace(SMALL, algorithm=algorithm, rounds=1))
    assert set(run.rounds[0].clients) == {0, 1, 2}
    assert run.rounds[0].participants == ([0] if algorithm == "central" else [0, 1, 2])
    for values in run.rounds[0].clients.values():
        assert 0 <= values["acc"] <= 1


def test_auto_predicts_with_a_branch_chosen_on_held_out_images() -> None:
    run = simulate(replace(SMALL, predict="auto", train_images=40, rounds=1))
    assert {values["predict"] for values in run.rounds[0].clients.values()} <= {0, 1, 2}
