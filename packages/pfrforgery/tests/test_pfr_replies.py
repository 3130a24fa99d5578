"""Every kind of bad reply, through the strategy: the round ends, the right client is named, counted and left out, the others go on."""

import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from pfrforgery.config import FederationConfig
from pfrforgery.training.local_grid import run_in_process
from pfrforgery.training.server_app import log_line
from pfrforgery.training.strategy import PartialFedAvg, Progress, RoundReport
from tenfold import UserError

CONFIG = FederationConfig(evaluate_every=99)
START = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
SAMPLES = (10, 30)
BAD = 1
"""The client that misbehaves, in rounds 1 and 2; in round 3 it behaves again."""


@dataclass
class Draft:
    """A training reply that can be spoilt before it becomes a message.

    Attributes:
        client: that sends it.
        round: of it.
        arrays: that it holds; Flower's types are not enforced.
        metrics: that it holds; Flower's types are not enforced.
        times: how often it arrives.
    """

    client: int
    round: int
    arrays: Any
    metrics: Any
    times: int = 1


def honest(client: int, number: int, has: int) -> Draft:
    """What a sound client sends: all its values are `10 * client + round`."""
    arrays = {name: Array(np.full_like(value, 10 * client + number)) for name, value in START.items()}
    metrics = {"num-examples": SAMPLES[client], "partition-id": client, "round": number, "personal-round": has}
    return Draft(
        client, number, arrays, metrics | dict.fromkeys(("loss-shared", "loss-personal", "loss-adversarial"), 0.5)
    )


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


def behind(draft: Draft) -> None:
    """A personal state that is older than the server remembers; before the first round, one of a negative round."""
    draft.metrics["personal-round"] = -1


def twice(draft: Draft) -> None:
    """The same reply two times."""
    draft.times = 2


def never(draft: Draft) -> None:
    """No reply."""
    draft.times = 0


FLOATS = np.full((2, 3), 2, np.float32)
PACKED = Array(FLOATS).data
PICKLE = Array(np.zeros(1, np.float32)).data[:10] + (
    b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }".ljust(117) + b"\n" + pickle.dumps(Armed())
)

KINDS: dict[str, tuple[Callable[[Draft], None], str]] = {
    "NaN weights": (w(FLOATS * np.nan), "NaN or infinite weights in w"),
    "infinite weights": (w(FLOATS * np.inf), "NaN or infinite weights in w"),
    "weights of 1e30": (w(FLOATS * 1e30), "longer than --max-update-norm"),
    "shape (3, 2)": (w(FLOATS.T), "w has shape (3, 2)"),
    "shape (1, 3)": (w(FLOATS[:1]), "w has shape (1, 3)"),
    "a scalar": (w(np.float32(1)), "w has shape ()"),
    "shape (5, 2, 3)": (w(np.stack([FLOATS] * 5)), "w has shape (5, 2, 3)"),
    "int64": (w(FLOATS.astype(np.int64)), "w has type int64"),
    "float64": (w(FLOATS.astype(np.float64)), "w has type float64"),
    "float16": (w(FLOATS.astype(np.float16)), "w has type float16"),
    "big-endian": (raw(Array(FLOATS.astype(">f4")).data), "w has type >f4"),
    "bfloat16": (raw(Array(FLOATS.astype(np.uint16)).data, "bfloat16"), "w has type bfloat16"),
    "bfloat16 inside": (raw(Array(FLOATS.astype(np.uint16)).data), "w has type uint16"),
    "an extra entry": (entries(lambda each: each | {"x": each["b"]}), "other entries than it was asked for: x"),
    "a missing entry": (entries(lambda each: {"b": each["b"]}), "left out entries: w"),
    "renamed entries": (entries(lambda each: {"W": each["w"], "B": each["b"]}), "asked for: B, W; left out entries: b, w"),
    "no entry": (entries(lambda _: {}), "left out entries: b, w"),
    "ten million entries": (entries(Crowd), "sent 10000000 entries, expected 2"),
    "ten million numbers": (raw(PACKED, shape=(10**7,)), "w has shape (10000000,)"),
    "two gigabytes": (raw(Huge(PACKED)), "sent 2147483788 bytes, at most 2084"),
    "garbage": (raw(b"xx"), "w is no .npy array"),
    "a truncated array": (raw(PACKED[:-4]), "w has 20 bytes of numbers, expected 24"),
    "bytes to spare": (raw(PACKED + b"0000"), "w has 28 bytes of numbers, expected 24"),
    "a cut header": (raw(PACKED[:40]), "w is no .npy array"),
    "a pickle": (raw(PICKLE), "w has type object"),
    "a declared pickle": (raw(PICKLE, "object"), "w has type object"),
    "another shape inside": (raw(Array(FLOATS.T.copy()).data), "w has shape (3, 2)"),
    "10^12 samples": (metric("num-examples", 10**12), "num-examples is 1000000000000, expected 1 to 10000000"),
    "-5 samples": (metric("num-examples", -5), "num-examples is -5"),
    "-10 samples": (metric("num-examples", -10), "num-examples is -10"),
    "0 samples": (metric("num-examples", 0), "num-examples is 0"),
    "NaN samples": (metric("num-examples", float("nan")), "num-examples is nan"),
    "infinite samples": (metric("num-examples", float("inf")), "num-examples is inf"),
    "2.5 samples": (metric("num-examples", 2.5), "num-examples is 2.5, not a whole number"),
    "a string of samples": (metric("num-examples", "many"), "num-examples is a str, not a number"),
    "no samples": (metric("num-examples", ...), "left out metrics: num-examples"),
    "other samples than registered": (metric("num-examples", 31), "num-examples is 31, registered were 30"),
    "another client's id": (metric("partition-id", 0), "calls itself client 0"),
    "id -7": (metric("partition-id", -7), "partition-id is -7"),
    "id 10^9": (metric("partition-id", 10**9), "partition-id is 1000000000"),
    "id 1.5": (metric("partition-id", 1.5), "partition-id is 1.5"),
    "no id": (metric("partition-id", ...), "left out metrics: partition-id"),
    "two replies": (twice, "sent 2 replies"),
    "a reply for an earlier round": (metric("round", 0), "replied for round 0"),
    "a reply for a later round": (metric("round", 9), "replied for round 9"),
    "a state that is behind": (behind, "personal-round is -1"),
    "a state that is ahead": (metric("personal-round", 7), "personal state of round 7, which is not over"),
    "no state": (metric("personal-round", ...), "left out metrics: personal-round"),
    "a NaN loss": (metric("loss-shared", float("nan")), "loss-shared is nan"),
    "an infinite loss": (metric("loss-shared", float("inf")), "loss-shared is inf"),
    "no loss": (metric("loss-shared", ...), "left out metrics: loss-shared"),
    "an unknown metric": (metric("loss-of-face", 1.0), "other metrics than it was asked for: loss-of-face"),
    "a list": (metric("loss-shared", [0.5, 0.5]), "loss-shared is a list"),
    "a huge number": (metric("loss-shared", 10**400), "loss-shared is too large"),
    "10^5 metrics": (lambda draft: draft.metrics.update({str(i): 1.0 for i in range(10**5)}), "sent 100007 metrics"),
    "no reply": (never, "no reply within 3600 s"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- the runs


def run(
    spoil: Callable[[Draft], None],
    *,
    config: FederationConfig = CONFIG,
    bad: Iterable[int] = (BAD,),
    answers: bool = True,
    rounds: int = 3,
) -> tuple[list[RoundReport], list[dict[str, np.ndarray]]]:
    """Rounds of two clients of whom some send spoilt replies in rounds 1 and 2: reports, and the shared entries after each round."""
    reports: list[RoundReport] = []
    states: list[dict[str, np.ndarray]] = []
    app, drafts = ClientApp(), dict[tuple[int, int], Draft]()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, told = int(context.node_config["partition-id"]), message.content["config"]
        number = int(told["server-round"])
        book = dict(zip(told["book-clients"], told["book-rounds"], strict=True))
        draft = honest(client, number, book.get(client, 0))
        drafts[client, number] = draft
        if client in bad and number < 3:
            spoil(draft)
        return message_of(draft, message)

    if answers:

        @app.query()
        def describe(message: Message, context: Context) -> Message:
            client = int(context.node_config["partition-id"])
            about = MetricRecord({"partition-id": client, "num-examples": SAMPLES[client]})
            return Message(RecordDict({"about": about}), reply_to=message)

    class Watched(PartialFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrived = list(replies)
            for client in (0, 1):
                times = drafts[client, server_round].times
                mine = [each for each in arrived if each.metadata.src_node_id == 100 + client]
                arrived = [each for each in arrived if each not in mine] + mine * times
            return super().aggregate_train(server_round, arrived)

    server = ServerApp()

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        strategy = Watched(config, 2, False, Progress(), on_round)
        start = ArrayRecord({name: Array(value) for name, value in START.items()})
        strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, timeout=60.0)

    def on_round(report: RoundReport, arrays: ArrayRecord) -> None:
        reports.append(report)
        states.append({name: array.numpy() for name, array in arrays.items()})

    run_in_process(server, app, [{"partition-id": number} for number in (0, 1)], {})
    return reports, states


@pytest.mark.parametrize("answers", [True, False], ids=["registered", "unregistered"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_reply_is_named_counted_and_left_out(kind: str, answers: bool) -> None:
    spoil, says = KINDS[kind]
    if not answers and "registered" in says:
        pytest.skip("a client that does not say its number of samples before is held to the first it says")
    reports, states = run(spoil, answers=answers)
    for number in (1, 2):
        report, state = reports[number - 1], states[number - 1]
        assert report.participants == [0]
        assert list(report.failures) == ["client 1"]
        line = log_line(report)
        assert line["rejected"] == 1
        assert "silent" not in line
        reason = str(line["rejected/client 1"])
        assert says in reason, reason
        assert len(reason) < 500
        json.dumps(line)
        for name, value in state.items():
            # The honest client's values, and no trace of the other's.
            np.testing.assert_array_equal(value, np.full_like(START[name], number))
    # Nothing is held against it: its sound reply counts again, by its 30 of 40 samples.
    assert reports[2].participants == [0, 1]
    np.testing.assert_allclose(states[2]["w"], 0.25 * 3 + 0.75 * 13, rtol=1e-7)


def test_a_state_that_is_behind_the_book_is_left_out_unless_that_is_allowed() -> None:
    def forget(draft: Draft) -> None:
        # Sound in round 1, where there is nothing to forget.
        draft.metrics["personal-round"] = 0

    reports, _ = run(forget)
    assert [report.participants for report in reports] == [[0, 1], [0], [0, 1]]
    assert "lost its personal state: expected round 1, has 0" in reports[1].failures["client 1"]
    reports, _ = run(forget, config=replace(CONFIG, allow_state_reset=True))
    assert [report.participants for report in reports] == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("error", "says"),
    [(ConnectionError("the cable was pulled"), "ConnectionError: the cable"), (SystemExit(1), "SystemExit: 1")],
)
def test_a_client_that_raises_or_leaves_is_left_out(error: BaseException, says: str) -> None:
    def fail(_: Draft) -> None:
        raise error

    reports, states = run(fail, rounds=1)
    assert reports[0].participants == [0]
    assert says in reports[0].failures["client 1"]
    assert (states[0]["w"] == 1).all()


def test_a_round_without_a_sound_reply_leaves_the_shared_part_and_says_so() -> None:
    reports, states = run(KINDS["NaN weights"][0], bad=(0, 1))
    for report, state in zip(reports[:2], states[:2], strict=True):
        line = log_line(report)
        assert line["silent"] == "no sound reply: the shared part is as it was"
        assert line["rejected"] == 2
        assert line["bytes_up"] == line["participants"] == 0
        assert "loss_shared" not in line
        assert (state["w"] == 0).all()
    assert reports[2].participants == [0, 1]
    assert "silent" not in log_line(reports[2])


def test_a_reply_that_comes_after_its_round_is_of_no_use() -> None:
    late: list[Message] = []

    class Late(PartialFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrived = list(replies)
            result = super().aggregate_train(server_round, late + arrived[:1])
            late[:] = arrived[1:]
            return result

    reports = _two_rounds_of(Late)
    assert [report.participants for report in reports] == [[0], [0]]
    assert reports[0].failures == {"client 1": "no reply within 3600 s"}
    assert reports[1].failures == {"client 1": "replied for round 1 in round 2"}


def _two_rounds_of(strategy_class: type[PartialFedAvg]) -> list[RoundReport]:
    reports: list[RoundReport] = []
    app, server = ClientApp(), ServerApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(message.content["config"]["server-round"])
        return message_of(honest(int(context.node_config["partition-id"]), number, number - 1), message)

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        strategy = strategy_class(CONFIG, 2, False, Progress(), lambda report, _: reports.append(report))
        start = ArrayRecord({name: Array(value) for name, value in START.items()})
        strategy.start(grid=grid, initial_arrays=start, num_rounds=2, timeout=60.0)

    run_in_process(server, app, [{"partition-id": number} for number in (0, 1)], {})
    return reports


def test_a_run_may_insist_on_every_client() -> None:
    with pytest.raises(UserError, match="round 1: client 1: sent NaN or infinite weights in w"):
        run(KINDS["NaN weights"][0], config=replace(CONFIG, on_bad_client="raise"))


# -------------------------------------------------------------------------------------------- registration and evaluation


def toy_app(about: Callable[[int], dict[str, Any]], scores: Callable[[int, Message], dict[str, Any]]) -> ClientApp:
    """Sound training; what is said at registration and in evaluation is given."""
    app = ClientApp()

    def record(values: dict[str, Any]) -> MetricRecord:
        made = MetricRecord()
        made.__dict__["_data"] = values
        return made

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        return Message(RecordDict({"about": record(about(int(context.node_config["partition-id"])))}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(message.content["config"]["server-round"])
        return message_of(honest(int(context.node_config["partition-id"]), number, number - 1), message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        values = scores(int(context.node_config["partition-id"]), message)
        return Message(RecordDict({"metrics": record(values)}), reply_to=message)

    return app


def who_i_am(client: int) -> dict[str, Any]:
    return {"partition-id": client, "num-examples": SAMPLES[client]}


def sound_scores(client: int, message: Message) -> dict[str, Any]:
    number = int(message.content["config"]["server-round"])
    names = ("acc", "bacc", "auc", "eer", "ap", "video-acc", "video-auc", "video-eer")
    values = {"num-examples": 7, "partition-id": client, "round": number, "personal-round": number, "predict": 0}
    return values | dict.fromkeys(names, 0.5 + client / 4)


def one_round(app: ClientApp, nodes: Iterable[int] = (0, 1), evaluate_every: int = 1) -> RoundReport:
    reports: list[RoundReport] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        config = replace(CONFIG, evaluate_every=evaluate_every)
        strategy = PartialFedAvg(config, 2, False, Progress(), lambda report, _: reports.append(report))
        start = ArrayRecord({name: Array(value) for name, value in START.items()})
        strategy.start(grid=grid, initial_arrays=start, num_rounds=1, timeout=60.0)

    run_in_process(server, app, [{"partition-id": number} for number in nodes], {})
    return reports[0]


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({"num-examples": 10**12}, "num-examples is 1000000000000, expected 1 to 10000000"),
        ({"num-examples": 0}, "num-examples is 0"),
        ({"num-examples": float("nan")}, "num-examples is nan"),
        ({"partition-id": 0}, "calls itself client 0"),
        ({"partition-id": 10**9}, "partition-id is 1000000000"),
        ({"more": 1}, "other metrics than it was asked for: more"),
    ],
)
def test_a_client_that_registers_wrongly_is_not_asked(claim: dict[str, Any], says: str) -> None:
    report = one_round(toy_app(lambda client: who_i_am(client) | (claim if client == BAD else {}), sound_scores))
    assert report.participants == list(report.clients) == [0]
    assert list(report.failures) == ["client 1"]
    assert says in report.failures["client 1"]


def test_two_nodes_of_one_number_are_both_left_out() -> None:
    report = one_round(toy_app(who_i_am, sound_scores), nodes=(0, 1, 1))
    assert report.participants == list(report.clients) == [0]
    assert report.failures == dict.fromkeys(
        ("node 101", "node 102"), "2 nodes call themselves client 1; give each its own partition-id"
    )


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        ({"acc": 7.0}, "acc is 7.0, expected 0 to 1"),
        ({"acc": float("nan")}, "acc is nan"),
        ({"auc": float("inf")}, "auc is inf"),
        ({"auc": [0.5]}, "auc is a list"),
        ({"partition-id": 0}, "calls itself client 0"),
        ({"round": 0}, "replied for round 0 in round 1"),
        ({"personal-round": 2}, "personal state of round 2, which is not over"),
        ({"num-examples": 10**12}, "num-examples is 1000000000000"),
        ({"more": 1.0}, "other metrics than it was asked for: more"),
    ],
)
def test_a_bad_evaluation_is_named_and_left_out(spoilt: dict[str, Any], says: str) -> None:
    def scores(client: int, message: Message) -> dict[str, Any]:
        return sound_scores(client, message) | (spoilt if client == BAD else {})

    report = one_round(toy_app(who_i_am, scores))
    assert report.participants == [0, 1]
    assert list(report.clients) == [0]
    assert list(report.failures) == ["client 1"]
    assert says in report.failures["client 1"]
    assert log_line(report)["auc/mean"] == 0.5


def test_an_undefined_score_is_sound() -> None:
    report = one_round(toy_app(who_i_am, lambda *each: sound_scores(*each) | {"auc": float("nan")}))
    assert list(report.clients) == [0, 1]
    assert report.failures == {}


def test_a_node_that_has_left_is_named_and_waited_for_no_more() -> None:
    """Client 1's node is gone in round 2 and another node takes its place in round 3."""
    reports: list[RoundReport] = []
    server = ServerApp()

    class Moving(PartialFedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            there = [[100, 101], [100], [100, 102]][server_round - 1]
            grid.get_node_ids = lambda: there
            if server_round == 3:
                grid.contexts[102] = grid.contexts[101]
            return super().configure_train(server_round, arrays, config, grid)

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        strategy = Moving(CONFIG, 2, False, Progress(), lambda report, _: reports.append(report))
        start = ArrayRecord({name: Array(value) for name, value in START.items()})
        strategy.start(grid=grid, initial_arrays=start, num_rounds=3, timeout=60.0)

    run_in_process(server, toy_app(who_i_am, sound_scores), [{"partition-id": number} for number in (0, 1)], {})
    assert [report.participants for report in reports] == [[0, 1], [0], [0, 1]]
    assert [report.failures for report in reports] == [{}, {"client 1": "its node is gone"}, {}]


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
    _, states = run(lambda _: None, config=replace(CONFIG, **change), rounds=1)
    np.testing.assert_allclose(states[0]["w"], expected, rtol=1e-6)
