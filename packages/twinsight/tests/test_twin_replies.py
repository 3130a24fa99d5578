"""Every kind of bad reply, through the strategy: the round ends, the right client is named, counted and left out, the others go on."""

import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tenfold import UserError
from tenfold.config import load_preset
from tenfold.federated import rejections_for_log
from tenfold.runs import RunFolder
from twinsight.config import FederationConfig
from twinsight.training.client_app import make_client_app
from twinsight.training.local_grid import LocalGrid
from twinsight.training.loop import federate
from twinsight.training.strategy import TwinStrategy

CONFIG = load_preset(
    "twinsight",
    "tiny",
    FederationConfig,
    "simulate",
    clients=2,
    labelled=1,
    clients_per_round=2,
    min_labelled_per_class=0,
)
START = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32), "seen": np.array(0)}
SAMPLES = (10, 30)
BAD = 1
"""The client that misbehaves, in rounds 1 and 2; in round 3 it behaves again."""


@dataclass
class Draft:
    """A training reply that can be spoilt before it becomes a message.

    Attributes:
        client: that sends it.
        arrays: that it holds; Flower's types are not enforced.
        metrics: that it holds; Flower's types are not enforced.
        times: how often it arrives.
    """

    client: int
    arrays: Any
    metrics: Any
    times: int = 1


def honest(client: int, number: int) -> Draft:
    """What a sound client sends: all its values are `10 * client + round`."""
    arrays = {name: Array(np.full_like(value, 10 * client + number)) for name, value in START.items()}
    metrics = {"num-examples": SAMPLES[client], "client": client, "round": number, "steps": 2, "loss-instance": 0.5}
    return Draft(client, arrays, metrics)


def message_of(draft: Draft, question: Message) -> Message:
    """The draft as a message, past the checks of Flower's constructors: a stranger need not use them."""
    arrays, metrics = ArrayRecord(), MetricRecord()
    arrays.__dict__["_data"], metrics.__dict__["_data"] = draft.arrays, draft.metrics
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=question)


# --------------------------------------------------------------------------------------------------------------- the kinds


class Huge(bytes):
    """Two gigabytes, said and not there."""

    def __len__(self) -> int:
        return 2**31


class Crowd(dict[str, Array]):
    """Ten million entries, said and not there: who looks at them has not looked at their number."""

    def __len__(self) -> int:
        return 10**7

    def __iter__(self) -> Iterator[str]:
        # The type checker of the tests takes the first one for a sample.
        yield "w"
        raise AssertionError("the entries were looked at")


class Armed:
    """What a pickle of it does when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("a reply was unpickled",)


def w(value: np.ndarray) -> Callable[[Draft], None]:
    """Other values, shape or type in `w`."""

    def spoil(draft: Draft) -> None:
        draft.arrays["w"] = Array(np.asarray(value))

    return spoil


def raw(data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (2, 3)) -> Callable[[Draft], None]:
    """Other bytes in `w`, under a declared type and shape."""

    def spoil(draft: Draft) -> None:
        array = Array(dtype=dtype, shape=shape, stype="numpy.ndarray", data=b"")
        array.data = data
        draft.arrays["w"] = array

    return spoil


def entries(change: Callable[[dict[str, Array]], Any]) -> Callable[[Draft], None]:
    """Other entries."""

    def spoil(draft: Draft) -> None:
        draft.arrays = change(draft.arrays)

    return spoil


def metric(name: str, value: object) -> Callable[[Draft], None]:
    """Another value of a metric; `...` leaves it out."""

    def spoil(draft: Draft) -> None:
        draft.metrics[name] = value
        if value is ...:
            del draft.metrics[name]

    return spoil


def twice(draft: Draft) -> None:
    """The same reply two times."""
    draft.times = 2


def never(draft: Draft) -> None:
    """No reply."""
    draft.times = 0


def fails(_: Draft) -> None:
    """An exception in training."""
    raise ConnectionError("the cable was pulled")


def leaves(_: Draft) -> None:
    """The process of the client ends."""
    raise SystemExit(1)


FLOATS = np.full((2, 3), 2, np.float32)
PACKED = Array(FLOATS).data
PICKLE = Array(np.zeros(1, np.float32)).data[:10] + (
    b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }".ljust(117) + b"\n" + pickle.dumps(Armed())
)

KINDS: dict[str, tuple[Callable[[Draft], None], str]] = {
    "NaN weights, finite loss": (w(FLOATS * np.nan), "NaN or infinite weights in w"),
    "infinite weights": (w(FLOATS * np.inf), "NaN or infinite weights in w"),
    "weights of 1e30": (w(FLOATS * 1e30), "longer than --max-update-norm"),
    "a counter of 10^18": (entries(lambda each: each | {"seen": Array(np.array(10**18))}), "longer than --max-update-norm"),
    "shape (3, 2)": (w(FLOATS.T), "w has shape (3, 2)"),
    "shape (1, 3)": (w(FLOATS[:1]), "w has shape (1, 3)"),
    "a scalar": (w(np.float32(1)), "w has shape ()"),
    "shape (5, 2, 3)": (w(np.stack([FLOATS] * 5)), "w has shape (5, 2, 3)"),
    "int64": (w(FLOATS.astype(np.int64)), "w has type int64"),
    "float64": (w(FLOATS.astype(np.float64)), "w has type float64"),
    "bfloat16": (raw(Array(FLOATS.astype(np.uint16)).data, "bfloat16"), "w has type bfloat16"),
    "bfloat16 inside": (raw(Array(FLOATS.astype(np.uint16)).data), "w has type uint16"),
    "an extra entry": (entries(lambda each: each | {"x": each["b"]}), "other entries than it was asked for: x"),
    "a missing entry": (entries(lambda each: {"b": each["b"], "seen": each["seen"]}), "left out entries: w"),
    "renamed entries": (entries(lambda each: {name.upper(): each[name] for name in each}), "asked for: B, SEEN, W; left out"),
    "no entry": (entries(lambda _: {}), "left out entries: b, seen, w"),
    "ten million entries": (entries(Crowd), "sent 10000000 entries, expected 3"),
    "ten million numbers": (raw(PACKED, shape=(10**7,)), "w has shape (10000000,)"),
    "two gigabytes": (raw(Huge(PACKED)), "sent 2147483924 bytes, at most 3116"),
    "garbage": (raw(b"xx"), "w is no .npy array"),
    "a truncated array": (raw(PACKED[:-4]), "w has 20 bytes of numbers, expected 24"),
    "a cut header": (raw(PACKED[:40]), "w is no .npy array"),
    "a pickle": (raw(PICKLE), "w has type object"),
    "another shape inside": (raw(Array(FLOATS.T.copy()).data), "w has shape (3, 2)"),
    "10^12 samples": (metric("num-examples", 10**12), "num-examples is 1000000000000, expected 1 to 10000000"),
    "-5 samples": (metric("num-examples", -5), "num-examples is -5"),
    "-10 samples": (metric("num-examples", -10), "num-examples is -10"),
    "0 samples": (metric("num-examples", 0), "num-examples is 0"),
    "NaN samples": (metric("num-examples", float("nan")), "num-examples is nan"),
    "infinite samples": (metric("num-examples", float("inf")), "num-examples is inf"),
    "a string of samples": (metric("num-examples", "many"), "num-examples is a str, not a number"),
    "no samples": (metric("num-examples", ...), "left out metrics: num-examples"),
    "other samples than registered": (metric("num-examples", 31), "num-examples is 31, registered were 30"),
    "another client's id": (metric("client", 0), "calls itself client 0"),
    "id -7": (metric("client", -7), "client is -7"),
    "id 10^9": (metric("client", 10**9), "client is 1000000000"),
    "id 1.5": (metric("client", 1.5), "client is 1.5"),
    "no id": (metric("client", ...), "left out metrics: client"),
    "two replies": (twice, "sent 2 replies"),
    "a reply for an earlier round": (metric("round", 0), "replied for round 0"),
    "a NaN loss": (metric("loss-instance", float("nan")), "loss-instance is nan"),
    "an infinite loss": (metric("loss-instance", float("inf")), "loss-instance is inf"),
    "no loss": (metric("loss-instance", ...), "reports no loss"),
    "an unknown metric": (metric("loss-of-face", 1.0), "other metrics than it was asked for: loss-of-face"),
    "a list": (metric("loss-instance", [0.5, 0.5]), "loss-instance is a list"),
    "10^5 metrics": (lambda draft: draft.metrics.update({str(i): 1.0 for i in range(10**5)}), "sent 100005 metrics"),
    "an exception": (fails, "ConnectionError: the cable was pulled"),
    "no reply": (never, "no reply within 3600 s"),
    "a process that ends": (leaves, "SystemExit: 1"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- the runs


@dataclass
class Round:
    """What a round gave: the numbers that are logged, who was left out, and the state after it."""

    metrics: dict[str, Any]
    line: dict[str, Any]
    state: dict[str, np.ndarray]


def toy_app(about: Callable[[int], dict[str, Any]], spoil: Callable[[Draft, int], None], kept: dict) -> ClientApp:
    """Sound clients, but for what `spoil` does to their drafts."""
    app = ClientApp()

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        record = MetricRecord()
        record.__dict__["_data"] = about(int(context.node_config["partition-id"]))
        return Message(RecordDict({"about": record}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, orders = int(context.node_config["partition-id"]), message.content["config"]
        number = int(orders["round"])
        draft = kept[client, number] = honest(client, number)
        spoil(draft, number)
        return message_of(draft, message)

    return app


def who_i_am(client: int) -> dict[str, Any]:
    return {"client": client, "labelled": 5, "num-examples": SAMPLES[client]}


def run(
    spoil: Callable[[Draft], None],
    *,
    config: FederationConfig = CONFIG,
    bad: Iterable[int] = (BAD,),
    about: Callable[[int], dict[str, Any]] = who_i_am,
    rounds: int = 3,
) -> list[Round]:
    """Rounds of two clients of whom some send spoilt replies in rounds 1 and 2."""
    drafts: dict[tuple[int, int], Draft] = {}
    found = []

    def spoil_early(draft: Draft, number: int) -> None:
        if draft.client in bad and number < 3:
            spoil(draft)

    grid = LocalGrid(toy_app(about, spoil_early, drafts), 2)
    strategy = TwinStrategy(config, tuple("0123456789"))
    arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
    for number in range(1, rounds + 1):
        replies = grid.send_and_receive(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        arrived = [each for each in replies for _ in range(drafts[each.metadata.src_node_id - 1, number].times)]
        combined, metrics = strategy.aggregate_train(number, arrived)
        arrays = arrays if combined is None else combined
        state = {name: array.numpy() for name, array in arrays.items()}
        found.append(Round(dict(metrics or {}), rejections_for_log(strategy.taken_rejections()), state))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_reply_is_named_counted_and_left_out(kind: str) -> None:
    spoil, says = KINDS[kind]
    first, second, third = run(spoil)
    for number, each in ((1, first), (2, second)):
        assert (each.metrics["clients"], each.metrics["rejected"]) == (1, 1)
        assert each.metrics["loss-instance"] == 0.5
        assert each.line.keys() == {"rejected", "rejected/client 1"}
        assert each.line["rejected"] == 1
        assert says in each.line["rejected/client 1"], each.line
        assert len(each.line["rejected/client 1"]) < 500
        for name, value in each.state.items():
            # The honest client's values, and no trace of the other's.
            np.testing.assert_array_equal(value, np.full_like(START[name], number))
    # Nothing is held against it: its sound reply counts again, by its 30 of 40 samples.
    assert third.metrics["clients"] == 2
    np.testing.assert_allclose(third.state["w"], 0.25 * 3 + 0.75 * 13, rtol=1e-7)
    assert third.state["seen"] == round(0.25 * 3 + 0.75 * 13)


def test_a_round_without_a_sound_reply_leaves_the_model_as_it_was() -> None:
    first, second, third = run(KINDS["NaN weights, finite loss"][0], bad=(0, 1))
    for each in (first, second):
        assert each.metrics == {"clients": 0, "rejected": 2}
        assert (each.state["w"] == 0).all()
    assert third.metrics["clients"] == 2


def test_a_reply_that_comes_after_its_round_is_of_no_use() -> None:
    grid = LocalGrid(toy_app(who_i_am, lambda *_: None, {}), 2)
    strategy = TwinStrategy(CONFIG, tuple("0123456789"), patience=60.0)
    arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
    early, late = grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    strategy.aggregate_train(1, [early])
    assert list(map(str, strategy.taken_rejections())) == ["client 1: no reply within 60 s"]
    assert strategy.aggregate_train(1, [late])[0] is None
    assert list(map(str, strategy.taken_rejections())) == ["client 1: replied after round 1 had closed"]
    sound, _ = grid.send_and_receive(strategy.configure_train(2, arrays, ConfigRecord(), grid))
    strategy.aggregate_train(2, [sound, late])
    assert list(map(str, strategy.taken_rejections())) == ["client 1: replied for round 1 in round 2"]


def test_a_client_that_is_late_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        """Stands for the clock: time passes when a client is late, and only then."""

        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("twinsight.training.local_grid.time", clock)

    def dawdle(draft: Draft, _: int) -> None:
        clock.now += 100.0 * draft.client

    grid = LocalGrid(toy_app(who_i_am, dawdle, {}), 2)
    strategy = TwinStrategy(CONFIG, tuple("0123456789"), patience=60.0)
    arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
    messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    strategy.aggregate_train(1, grid.send_and_receive(messages, timeout=60.0))
    assert list(map(str, strategy.taken_rejections())) == ["client 1: no reply within 60 s"]


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({"num-examples": 10**12}, "num-examples is 1000000000000, expected 1 to 10000000"),
        ({"num-examples": 0}, "num-examples is 0"),
        ({"num-examples": float("nan")}, "num-examples is nan"),
        ({"labelled": 31}, "says that 31 of its 30 pictures are labelled"),
        ({"labelled": -1}, "labelled is -1"),
        ({"client": 0}, "calls itself client 0"),
        ({"client": 10**9}, "client is 1000000000"),
        ({"more": 1}, "other metrics than it was asked for: more"),
    ],
)
def test_a_client_that_registers_wrongly_is_no_member(claim: dict[str, Any], says: str) -> None:
    (only,) = run(lambda _: None, about=lambda client: who_i_am(client) | (claim if client == BAD else {}), rounds=1)
    assert only.metrics["clients"] == 1
    assert says in only.line["rejected/client 1"]
    assert (only.state["w"] == 1).all()


def test_a_node_that_has_left_is_named_and_not_waited_for() -> None:
    grid = LocalGrid(toy_app(who_i_am, lambda *_: None, {}), 2)
    strategy = TwinStrategy(CONFIG, tuple("0123456789"))
    strategy.meet(grid)
    del grid.contexts[2]
    messages = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
    assert [each.metadata.dst_node_id for each in messages] == [1]
    assert list(map(str, strategy.taken_rejections())) == ["client 1: its node is gone"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0.25 * 1 + 0.75 * 11),
        ({"aggregation": "median"}, 6.0),
        ({"aggregation": "trimmed-mean", "trim": 0.1}, 6.0),
        # An update of nine values 1 is 3 long, one of nine 11 is 33: shortened to 1.5, they are 0.5 each.
        ({"clip_norm": 1.5}, 0.5),
    ],
)
def test_the_configured_rule_combines(change: dict[str, Any], expected: float) -> None:
    (only,) = run(lambda _: None, config=replace(CONFIG, **change), rounds=1)
    np.testing.assert_allclose(only.state["w"], expected, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------- whole runs


def real_run(
    out: Path, spoil: Callable[[Message, int], Message], rounds: int = 1, resume: bool = False
) -> dict[str, Any]:
    """The package's clients on real pictures, whose training replies are spoilt on the way."""
    config = replace(CONFIG, rounds=rounds, method="lower-bound", labelled=2, labelled_per_round=2, alpha=5.0)
    whole = make_client_app(config)

    class Spoiling(LocalGrid):
        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            if message.metadata.message_type != "train" or reply.has_error():
                return reply
            return spoil(reply, message.metadata.dst_node_id - 1)

    folder = RunFolder.create(out, config, resume)
    return federate(Spoiling(whole, 2), config, folder).result


def test_the_log_and_the_result_name_who_was_left_out(tmp_path: Path) -> None:
    def spoil(reply: Message, client: int) -> Message:
        if client == BAD:
            reply.content["metrics"]["num-examples"] = 10**12
        return reply

    result = real_run(tmp_path / "run", spoil)
    (line,) = (json.loads(each) for each in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert (line["clients"], line["rejected"]) == (1, 1)
    assert "num-examples is 1000000000000" in line["rejected/client 1"]
    assert result["rejected"] == [{"round": 1, "who": "client 1", "why": line["rejected/client 1"]}]
    assert result["silent_rounds"] == []


def test_a_silent_run_stops_says_why_and_can_go_on(tmp_path: Path) -> None:
    def spoil(reply: Message, _: int) -> Message:
        reply.content["metrics"]["loss-cross_entropy"] = float("nan")
        return reply

    with pytest.raises(
        UserError, match=r"rounds 1 to 3: no client's training could be used \(client 0: loss-cross_entr.*nan"
    ):
        real_run(tmp_path / "run", spoil, rounds=4)
    lines = [json.loads(each) for each in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(each["step"], each["clients"], each["rejected"]) for each in lines] == [(1, 0, 2), (2, 0, 2), (3, 0, 2)]
    assert all(each["silent"] == "no sound reply: the model is as it was" for each in lines)
    assert len({each["accuracy"] for each in lines}) == 1
    assert not (tmp_path / "run/result.json").exists()
    result = real_run(tmp_path / "run", lambda reply, _: reply, rounds=4, resume=True)
    assert result["silent_rounds"] == [1, 2]
    assert len(result["accuracy"]) == 4
