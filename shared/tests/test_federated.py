"""Replies of strangers: what is read, what is refused and why, who is who, and what the sound ones become."""

import contextlib
import io
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import UserError
from tenfold.federated import (
    Entry,
    Number,
    RawReply,
    Rejection,
    Reply,
    ReplyFault,
    ReplySpec,
    RoundBook,
    Safeguards,
    Seat,
    check_reply,
    clip_update,
    combine,
    coordinate_median,
    decode_array,
    layout_of,
    one_line,
    pull_until,
    raw_reply,
    rejections_for_log,
    stop_when_silent,
    trimmed_mean,
    update_norm,
    watch_replies,
    weighted_mean,
)

GLOBAL = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
SPEC = ReplySpec(
    layout_of(GLOBAL),
    {
        "client": Number(0, 1, whole=True),
        "samples": Number(1, 1000, whole=True),
        "loss": Number(),
        "cosine": Number(-1, 1, may_be_nan=True, required=False),
        "round": Number(whole=True, required=False),
    },
    "client",
    "samples",
    reference=GLOBAL,
    max_update_norm=1e6,
)
SEAT = Seat(node=11, client=1, samples=30)


def packed(value: np.ndarray) -> SimpleNamespace:
    """An array as Flower serializes it."""
    value = np.asarray(value)
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=False)
    return SimpleNamespace(dtype=str(value.dtype), shape=value.shape, stype="numpy.ndarray", data=stream.getvalue())


def sound(client: int = 1, value: float = 2.0, node: int = 11, samples: int = 30, **metrics: Any) -> RawReply:
    arrays = {name: packed(np.full_like(each, value)) for name, each in GLOBAL.items()}
    return RawReply(node, "", arrays, {"client": client, "samples": samples, "loss": 0.5, **metrics})


def reason_of(raw: RawReply, spec: ReplySpec = SPEC, seat: Seat | None = SEAT, round_number: int = 1) -> str:
    found = check_reply(raw, spec, seat, round_number)
    assert isinstance(found, Rejection)
    assert (found.node, found.client) == (raw.node, seat.client if seat else None)
    return found.reason


# --------------------------------------------------------------------------------------------------------------- one reply


def test_importing_it_loads_neither_numpy_nor_torch_nor_flower() -> None:
    code = (
        "import sys, tenfold.federated as f\n"
        "from tenfold.federated import Aggregation, Safeguards\n"
        "Safeguards()\n"
        "assert not {'numpy', 'torch', 'flwr', 'PIL'} & sys.modules.keys()\n"
        "from tenfold.federated import RoundBook, combine, watch_replies\n"
        "assert not {'torch', 'flwr', 'PIL'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_sound_reply_is_read() -> None:
    found = check_reply(sound(cosine=float("nan"), round=1), SPEC, SEAT, 1)
    assert isinstance(found, Reply)
    assert (found.node, found.client, found.samples) == (11, 1, 30)
    assert list(found.arrays) == ["w", "b"]
    assert (found.arrays["w"] == 2).all()
    assert found.metrics["loss"] == 0.5


@pytest.mark.parametrize(
    ("value", "order"),
    [
        (np.arange(6.0).reshape(2, 3), "C"),
        (np.arange(6.0).reshape(2, 3), "F"),
        (np.array(7.0), "C"),
        (np.zeros((0, 2)), "C"),
    ],
)
def test_an_array_is_read_as_numpy_reads_it(value: np.ndarray, order: Any) -> None:
    array = packed(np.asarray(value, order=order))
    found = decode_array(array, Entry(value.shape, "float64"))
    np.testing.assert_array_equal(found, value)
    assert found.shape == value.shape


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 151), st.integers(0, 255))
def test_no_bytes_whatever_do_more_than_be_refused_or_read(noise: bytes, place: int, byte: int) -> None:
    whole = packed(np.arange(6, dtype=np.float32).reshape(2, 3))
    changed = bytearray(whole.data)
    changed[place] = byte
    for data in (noise, bytes(changed), whole.data[:place] + noise):
        array = SimpleNamespace(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data)
        # Nothing but a fault may come out of it.
        with contextlib.suppress(ReplyFault):
            found = decode_array(array, Entry((2, 3), "float32"))
            assert (found.shape, found.dtype) == ((2, 3), np.float32)


class Armed:
    """What a pickle of it does when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("a reply was unpickled",)


def test_a_pickle_is_never_loaded() -> None:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }".ljust(117) + b"\n"
    data = packed(np.zeros(1, np.float32)).data[:10] + header + pickle.dumps(Armed())
    with pytest.raises(pytest.fail.Exception):
        pickle.loads(data[data.index(b"\n") + 1 :])  # it is armed
    for dtype, says in (
        ("float32", "has type object, expected float32"),
        ("object", "has type object, expected float32"),
    ):
        array = SimpleNamespace(dtype=dtype, shape=(2, 3), stype="numpy.ndarray", data=data)
        with pytest.raises(ReplyFault, match=says):
            decode_array(array, Entry((2, 3), "float32"))
    with pytest.raises(ReplyFault, match="has type object, expected float32"):
        decode_array(
            SimpleNamespace(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data), Entry((2, 3), "float32")
        )


def test_a_shape_that_only_the_header_claims_is_refused_without_allocating_it() -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824, 1073741824), }".ljust(117) + b"\n"
    data = packed(np.zeros(1, np.float32)).data[:10] + header + b"0" * 24
    array = SimpleNamespace(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data)
    with pytest.raises(ReplyFault, match=r"array has shape \(1073741824, 1073741824\), expected \(2, 3\)"):
        decode_array(array, Entry((2, 3), "float32"))


def test_a_size_is_checked_before_a_byte_is_read() -> None:
    class Unreadable(bytes):
        """Two gigabytes that must not be looked at."""

        def __len__(self) -> int:
            return 2**31

    array = packed(GLOBAL["w"])
    array.data = Unreadable(b"not even a header")
    raw = replace(sound(), arrays=sound().arrays | {"w": array})
    assert reason_of(raw) == "sent 2147483788 bytes, at most 2084 were expected"
    with pytest.raises(ReplyFault, match="array has 2147483648 bytes, at most 1048 were expected"):
        decode_array(array, Entry((2, 3), "float32"))


def test_what_a_client_writes_is_quoted_in_one_short_printable_line() -> None:
    evil = "x\n2099-01-01 all is well\x1b[31m" + "y" * 10**6
    reasons = [
        reason_of(replace(sound(), arrays={evil: packed(GLOBAL["w"]), **sound().arrays})),
        reason_of(sound(**{evil: 1.0})),
        reason_of(RawReply(11, error=one_line(evil))),
        reason_of(
            replace(
                sound(), arrays=sound().arrays | {"w": SimpleNamespace(**{**vars(packed(GLOBAL["w"])), "dtype": evil})}
            )
        ),
    ]
    for reason in reasons:
        assert reason.isprintable()
        assert len(reason) < 400
    line = rejections_for_log([Rejection(11, 1, reasons[0]), Rejection(11, 1, "late"), Rejection(12, None, "gone")])
    assert line == {"rejected": 3, "rejected/client 1": f"{reasons[0]}; late", "rejected/node 12": "gone"}


def test_nothing_in_a_reply_can_raise() -> None:
    class Trap(dict):
        """Whatever is asked of it fails."""

        def keys(self) -> Any:
            raise ZeroDivisionError("a trap")

    class Mute:
        """An array that will not be looked at."""

        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError(name)

    assert reason_of(replace(sound(), arrays=Trap())) == "sent what cannot be read (ZeroDivisionError)"
    assert reason_of(replace(sound(), metrics=Trap())) == "sent what cannot be read (ZeroDivisionError)"
    reason = reason_of(replace(sound(), arrays=sound().arrays | {"w": Mute()}))
    assert reason.startswith("sent what cannot be read (")
    message = SimpleNamespace(metadata=SimpleNamespace(src_node_id=11), has_error=lambda: 1 / 0)
    assert raw_reply(message).error == "sent what cannot be read (ZeroDivisionError)"


def test_errors_name_their_client_and_no_other() -> None:
    traceback = (
        "Traceback (most recent call last):\n  File x\ntenfold.errors.UserError: client 1: the cable was pulled\n"
    )
    assert reason_of(RawReply(11, error=one_line(traceback))) == "the cable was pulled"
    wrapped = f"<class 'flwr.Error'>:<{traceback!r}>"
    assert "the cable was pulled" in reason_of(RawReply(11, error=one_line(wrapped)))
    found = check_reply(RawReply(11, error="client 0: it was the other one"), SPEC, SEAT, 1)
    assert str(found) == "client 1: client 0: it was the other one"
    assert str(check_reply(RawReply(11, error="gone"), SPEC, None, 1)) == "node 11: gone"
    assert one_line("") == one_line(None) == "failed without saying why"


def test_records_that_were_not_asked_for_are_refused() -> None:
    def message(**records: Any) -> SimpleNamespace:
        content = SimpleNamespace(keys=records.keys, array_records=records, metric_records=records)
        return SimpleNamespace(metadata=SimpleNamespace(src_node_id=11), has_error=lambda: False, content=content)

    assert raw_reply(message(arrays={}, metrics={"a": 1})) == RawReply(11, "", {}, {"a": 1})
    assert raw_reply(message(metrics={"a": 1}), arrays=None) == RawReply(11, "", {}, {"a": 1})
    for odd in (message(), message(arrays={}), message(arrays={}, metrics={}, more={})):
        assert raw_reply(odd).error == "sent other records than arrays and metrics"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_with_any_bound(value: float) -> None:
    for spec in (SPEC, replace(SPEC, max_update_norm=0.0), replace(SPEC, reference=None)):
        assert reason_of(sound(value=value), spec) == "sent NaN or infinite weights in w"


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"loss": "low"}, "loss is a str, not a number"),
        ({"loss": True}, "loss is a bool, not a number"),
        ({"loss": [0.5]}, "loss is a list, not a number"),
        ({"loss": None}, "loss is a NoneType, not a number"),
        ({"loss": float("nan")}, "loss is nan"),
        ({"loss": -(10**400)}, "loss is too large a number"),
        ({"cosine": 1.5}, "cosine is 1.5, expected -1 to 1"),
        ({"samples": 30.0}, "samples is 30.0, not a whole number"),
        ({"client": -7}, "client is -7, expected 0 to 1"),
    ],
)
def test_a_number_is_what_it_must_be(metrics: dict[str, Any], says: str) -> None:
    assert reason_of(sound(**metrics)) == says


def test_a_crowd_is_counted_and_not_looked_at() -> None:
    class Crowd(dict):
        """Ten million names, of which one is there."""

        def __len__(self) -> int:
            return 10**7

        def keys(self) -> Any:
            raise AssertionError("the names were looked at")

    assert reason_of(replace(sound(), arrays=Crowd(w=None))) == "sent 10000000 entries, expected 2"
    assert reason_of(sound(**{str(name): 1.0 for name in range(10**5)})) == "sent 100003 metrics, expected 3"


# ------------------------------------------------------------------------------------------------------------ who is who


def book() -> RoundBook:
    return RoundBook(clients=2, max_samples=1000)


ABOUT = ReplySpec({}, {"client": Number(0, 1, whole=True), "samples": Number(1, 1000, whole=True)}, "client", "samples")


def about(node: int, client: Any, samples: Any = 30) -> RawReply:
    return RawReply(node, metrics={"client": client, "samples": samples})


def test_a_client_is_held_to_what_it_registered() -> None:
    roll = book()
    assert roll.register([about(10, 0, 10), about(11, 1, 30)], ABOUT) == []
    roll.open(1, [10, 11])
    replies, rejections = roll.close([sound(node=10, samples=11, client=0), sound(node=11, client=0)], SPEC)
    assert replies == []
    assert list(map(str, rejections)) == [
        "client 0: samples is 11, registered were 10",
        "client 1: calls itself client 0",
    ]


def test_without_registration_the_first_sound_reply_counts() -> None:
    roll = book()
    roll.open(1, [10, 11])
    replies, rejections = roll.close([sound(node=11), sound(node=10, client=0, samples=10, loss=float("nan"))], SPEC)
    assert ([each.client for each in replies], list(map(str, rejections))) == ([1], ["node 10: loss is nan"])
    roll.open(2, [10, 11])
    # Node 10 cannot take what is node 11's, and node 11 is held to what it said first.
    replies, rejections = roll.close([sound(node=10, client=1), sound(node=11, samples=31)], SPEC)
    assert list(map(str, rejections)) == [
        "client 1: samples is 31, registered were 30",
        "node 10: calls itself client 1, which another node is",
    ]
    roll.open(3, [10, 11])
    replies, _ = roll.close([sound(node=11), sound(node=10, client=0, samples=10)], SPEC)
    assert [each.client for each in replies] == [0, 1]
    assert roll.seats[10] == Seat(10, 0, 10)


def test_two_unknown_nodes_of_one_number_are_both_refused() -> None:
    reason = "2 nodes call themselves client 1; give each its own partition-id"
    roll = book()
    assert list(map(str, roll.register([about(10, 1), about(11, 1)], ABOUT))) == [
        f"node 10: {reason}",
        f"node 11: {reason}",
    ]
    assert list(map(str, roll.seat_known({10: 1, 11: 1}))) == [f"node 10: {reason}", f"node 11: {reason}"]
    roll.open(1, [10, 11])
    replies, rejections = roll.close([sound(node=10), sound(node=11)], SPEC)
    assert (replies, list(map(str, rejections))) == ([], [f"node 10: {reason}", f"node 11: {reason}"])


def test_where_the_nodes_are_known_a_claim_must_agree() -> None:
    roll = book()
    rejections = roll.register([about(10, 0), about(11, 0)], ABOUT, known={10: 0, 11: 1})
    assert list(map(str, rejections)) == ["client 1: calls itself client 0"]
    assert list(roll.seats) == [10]
    assert roll.seat_known({11: 1}) == []
    assert roll.seats[11] == Seat(11, 1)


def test_every_node_is_heard_once_and_only_when_asked() -> None:
    roll = book()
    roll.register([about(10, 0), about(11, 1)], ABOUT)
    roll.open(1, [10, 11])
    replies, rejections = roll.close([sound(node=11), sound(node=11), sound(node=12)], SPEC, "60 s")
    assert replies == []
    assert list(map(str, rejections)) == [
        "node 12: was not asked for a reply in round 1",
        "client 0: no reply within 60 s",
        "client 1: sent 2 replies in round 1",
    ]
    assert list(map(str, roll.close([sound(node=11)], SPEC)[1])) == ["client 1: replied after round 1 had closed"]
    roll.open(2, [11])
    assert list(map(str, roll.close([sound(round=1)], SPEC)[1])) == ["client 1: replied for round 1 in round 2"]


def test_a_seat_is_given_up_when_its_node_leaves() -> None:
    roll = book()
    roll.register([about(10, 0), about(11, 1)], ABOUT)
    assert list(map(str, roll.leave([10, 12]))) == ["client 1: its node is gone"]
    assert roll.leave([10, 12]) == []
    assert roll.register([about(12, 1, 40)], ABOUT) == []
    assert roll.seats[12].samples == 40


def test_a_run_that_has_fallen_silent_is_stopped() -> None:
    why = [Rejection(10, 0, "late"), Rejection(11, 1, "gone")]
    stop_when_silent(2, 10, 7, why)
    with pytest.raises(UserError, match=r"rounds 5 to 7: no client's .* \(client 0: late; client 1: gone\)"):
        stop_when_silent(3, 10, 7, why)
    with pytest.raises(UserError, match="round 1: no client's"):
        stop_when_silent(1, 1, 1, why)
    with pytest.raises(UserError, match="nobody was asked"):
        stop_when_silent(3, 10, 7, [])


# --------------------------------------------------------------------------------------------------------------- combining


def states_of(*values: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"w": np.array(each, np.float32), "seen": np.array(int(each[0]))} for each in values]


def test_the_mean_is_weighted_and_integers_are_rounded() -> None:
    found = weighted_mean(states_of([1.0, 2.0], [4.0, 8.0]), [1, 2])
    np.testing.assert_array_equal(found["w"], np.array([3.0, 6.0], np.float32))
    assert (found["w"].dtype, found["seen"].dtype, found["seen"].shape, int(found["seen"])) == (
        np.float32,
        np.int64,
        (),
        3,
    )
    assert int(weighted_mean(states_of([1.0], [2.0]), [1, 3])["seen"]) == 2
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="positive weights"):
            weighted_mean(states_of([1.0], [2.0]), weights)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=5),
    st.lists(st.integers(1, 10**7), min_size=2, max_size=5),
)
def test_the_mean_of_equal_states_is_that_state(values: list[float], weights: list[int]) -> None:
    found = weighted_mean(states_of(*[values] * len(weights)), weights) if abs(values[0]) < 2**53 else None
    if found is not None:
        np.testing.assert_array_equal(found["w"], np.array(values, np.float32))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3),
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=2),
)
def test_a_minority_moves_neither_median_nor_trimmed_mean_out_of_the_honest_range(
    good: list[float], bad: list[float]
) -> None:
    states = [{"w": np.array([each], np.float32)} for each in [*bad, *good]]
    for found in (coordinate_median(states), trimmed_mean(states, 0.4)):
        assert min(good) <= found["w"][0] <= max(good)


def test_median_and_trimmed_mean_by_hand() -> None:
    states = states_of([1.0], [2.0], [3.0], [10.0], [100.0])
    assert coordinate_median(states)["w"].tolist() == [3.0]
    assert coordinate_median(states[:4])["w"].tolist() == [2.5]
    # A fifth of five is one at each end; a tenth is rounded up to one; of two none is left out.
    assert trimmed_mean(states, 0.2)["w"].tolist() == trimmed_mean(states, 0.1)["w"].tolist() == [5.0]
    assert trimmed_mean(states, 0.3)["w"].tolist() == [3.0]
    assert trimmed_mean(states[:2], 0.4)["w"].tolist() == [1.5]
    assert trimmed_mean(states[:1], 0.4)["w"].tolist() == [1.0]


def test_a_long_update_is_shortened_and_a_short_one_stays_bit_for_bit() -> None:
    reference = {"w": np.array([1.0, 1.0], np.float32), "seen": np.array(5), "scale": np.array(1.0, np.float32)}
    state = {"w": np.array([4.0, 5.0], np.float32), "seen": np.array(10**9), "scale": np.array(1.0, np.float32)}
    assert update_norm(state, reference, counters=False) == 5.0
    assert update_norm(state, reference) > 1e8
    found = clip_update(state, reference, 2.5)
    np.testing.assert_array_equal(found["w"], np.array([2.5, 3.0], np.float32))
    assert (int(found["seen"]), found["w"].dtype, found["scale"].shape) == (10**9, np.float32, ())
    assert clip_update(state, reference, 5.0)["w"] is state["w"]


def test_a_long_update_is_refused() -> None:
    # Six values of w and three of b: an update of 9 values v is 3 v long.
    assert isinstance(check_reply(sound(value=1e5), SPEC, SEAT, 1), Reply)
    assert reason_of(sound(value=1e6)) == "sent an update of length 3e+06, longer than --max-update-norm 1e+06"
    assert reason_of(sound(value=3e38)).startswith("sent an update of length 9e+38")
    assert isinstance(check_reply(sound(value=3e38), replace(SPEC, max_update_norm=0.0), SEAT, 1), Reply)


def test_half_precision_takes_the_type_of_the_server() -> None:
    spec = replace(SPEC, layout=layout_of(GLOBAL, "float16"))
    half = {name: packed(np.full(each.shape, 0.5, np.float16)) for name, each in GLOBAL.items()}
    found = check_reply(replace(sound(), arrays=half), spec, SEAT, 1)
    assert isinstance(found, Reply)
    assert found.arrays["w"].dtype == np.float32
    assert "w has type float32, expected float16" in reason_of(sound(), spec)


@pytest.mark.parametrize(
    ("safeguards", "expected"),
    [
        (Safeguards(), (1 + 2 * 3 + 1 * 100) / 4),
        (Safeguards(aggregation="median"), 3.0),
        (Safeguards(aggregation="trimmed-mean"), 3.0),
        (Safeguards(clip_norm=1.0), 1.0),
    ],
)
def test_the_rule_and_the_clipping_are_chosen(safeguards: Safeguards, expected: float) -> None:
    states = [{"w": np.array([each], np.float32)} for each in (1.0, 3.0, 100.0)]
    found = combine(states, [1, 2, 1], {"w": np.zeros(1, np.float32)}, safeguards)
    np.testing.assert_array_equal(found["w"], np.array([expected], np.float32))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"trim": 0.5}, "--trim 0.5"),
        ({"trim": 0.0}, "--trim 0"),
        ({"trim": float("nan")}, "--trim nan"),
        ({"clip_norm": -1.0}, "--clip-norm -1"),
        ({"clip_norm": float("nan")}, "--clip-norm nan"),
        ({"max_update_norm": float("inf")}, "--max-update-norm inf"),
        ({"max_samples": 0}, "--max-samples 0"),
    ],
)
def test_safeguards_that_mean_nothing_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Safeguards(**values)


# ---------------------------------------------------------------------------------------------------------------- the grid


class Grid:
    """Answers of nodes that a framework's decoder may fail on."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    def push_messages(self, messages: list[Any]) -> list[str | None]:
        return [f"to {each.metadata.dst_node_id}" if each.metadata.dst_node_id else None for each in messages]

    def pull_messages(self, names: list[str]) -> list[Any]:
        found = [self.answers.pop(name) for name in names if name in self.answers]
        for each in found:
            if isinstance(each, Exception):
                raise each
        return found


def to(node: int) -> SimpleNamespace:
    return SimpleNamespace(metadata=SimpleNamespace(dst_node_id=node))


def reply_from(node: int, error: str = "") -> SimpleNamespace:
    return SimpleNamespace(
        metadata=SimpleNamespace(src_node_id=node, reply_to_message_id=f"to {node}"),
        has_error=lambda: bool(error),
        error=SimpleNamespace(reason=error),
    )


def test_a_reply_that_cannot_be_decoded_costs_its_client_only() -> None:
    grid = Grid(
        {
            "to 10": reply_from(10),
            "to 11": json.JSONDecodeError("bad", "xx", 0),
            # Flower puts the server's own number on a reply that it could not get.
            "to 12": reply_from(1, "Reply message objects are unavailable."),
            "to 13": reply_from(10),
        }
    )
    watch_replies(grid)
    names = grid.push_messages([to(node) for node in (10, 11, 12, 13, 14, 0)])
    assert names[-1] is None
    raws = [raw_reply(each) for each in grid.pull_messages([name for name in names if name])]
    assert [each.node for each in raws] == [10, 11, 12, 13]
    assert raws[1].error == "sent what cannot be read (JSONDecodeError: bad: line 1 column 1 (char 0))"
    assert raws[2].error == "Reply message objects are unavailable."
    assert raws[3].error == "node 10 replied in its place"


def test_a_server_thread_ends_once_its_simulation_is_left() -> None:
    grid, left, asked = Grid({"to 10": reply_from(10)}), threading.Event(), threading.Event()
    pull_until(grid, left)
    assert [each.metadata.src_node_id for each in grid.pull_messages(["to 10"])] == [10]

    def wait_for_node_11() -> None:
        with contextlib.suppress(SystemExit):  # by which Python ends a thread without a word, and pytest with a warning
            while not grid.pull_messages(["to 11"]):
                asked.set()
                time.sleep(0.001)

    server = threading.Thread(target=wait_for_node_11, daemon=True)
    server.start()
    assert asked.wait(30)
    assert server.is_alive()
    left.set()
    server.join(30)
    assert not server.is_alive()


def test_what_the_user_must_mend_is_no_bad_reply() -> None:
    grid = Grid({"to 10": UserError("the workers have broken down")})
    watch_replies(grid)
    grid.push_messages([to(10)])
    with pytest.raises(UserError, match="broken down"):
        grid.pull_messages(["to 10"])
