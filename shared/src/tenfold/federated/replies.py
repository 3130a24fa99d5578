"""One reply of one client: what it must hold, and the check that makes a `Reply` or a `Rejection` of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tenfold.federated.combining import update_norm
from tenfold.federated.layout import Entry, ReplyFault, check_names, check_size, decode_array, short
from tenfold.federated.messages import RawReply

LARGEST = 2**63 - 1
"""The largest whole number that travels."""


@dataclass(frozen=True)
class Number:
    """What one metric must be.

    Attributes:
        low: smallest value.
        high: largest value.
        whole: an integer.
        may_be_nan: NaN says that there is nothing to report.
        required: must be there.
    """

    low: float | int = -math.inf
    high: float | int = math.inf
    whole: bool = False
    may_be_nan: bool = False
    required: bool = True


@dataclass(frozen=True)
class ReplySpec:
    """What a reply must hold.

    Attributes:
        layout: its arrays.
        metrics: its numbers, those named below included.
        client: the metric that holds the client's number.
        samples: the metric that holds its number of samples; empty where it is not what the client was registered with.
        round: the metric that holds the round it is for. A reply without it is for the round of the message it answers.
        reference: what the clients were sent: an update is counted from there, and arrays take its types. None where none is to come back.
        max_update_norm: longest update; 0 for any.
    """

    layout: Mapping[str, Entry]
    metrics: Mapping[str, Number]
    client: str
    samples: str = ""
    round: str = "round"
    reference: Mapping[str, np.ndarray] | None = None
    max_update_norm: float = 0.0


@dataclass(frozen=True)
class Seat:
    """A client at a node.

    Attributes:
        node: the framework's number.
        client: the federation's number.
        samples: that it was registered with; None until its first sound reply says it.
        told: what else it said when it was registered.
    """

    node: int
    client: int
    samples: int | None = None
    told: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A reply that may be used.

    Attributes:
        node: that sent it.
        client: number of its client.
        samples: of its client; 0 where the reply does not speak of them.
        arrays: by name, in the order of the layout.
        metrics: by name.
    """

    node: int
    client: int
    samples: int
    arrays: dict[str, np.ndarray] = field(repr=False)
    metrics: dict[str, float | int]


@dataclass(frozen=True)
class Rejection:
    """A reply that was left out.

    Attributes:
        node: that sent it, or did not.
        client: registered for the node, whatever the reply says; None where nobody is.
        reason: in a few words.
    """

    node: int
    client: int | None
    reason: str

    @property
    def who(self) -> str:
        """`client N`, or `node N` where no client is known."""
        return f"node {self.node}" if self.client is None else f"client {self.client}"

    def __str__(self) -> str:
        return f"{self.who}: {self.reason}"


def check_reply(raw: RawReply, spec: ReplySpec, seat: Seat | None, round_number: int) -> Reply | Rejection:
    """Check everything about a reply, cheap things first; nothing in it can raise.

    Args:
        raw: as it came.
        spec: what it must hold.
        seat: who sits at its node; None for a node that nobody has registered.
        round_number: of the round that is open.
    """
    client = None if seat is None else seat.client
    try:
        if raw.error:
            # An error that the client wrote itself may begin with its name; only its own is believed.
            _, named, rest = raw.error.partition(f"client {client}: ")
            raise ReplyFault(rest if named else raw.error)
        check_names(raw.arrays, spec.layout, "entries")
        metrics = check_metrics(raw.metrics, spec.metrics)
        _check_identity(metrics, spec, seat, round_number)
        arrays = read_arrays(raw.arrays, spec)
    except ReplyFault as fault:
        return Rejection(raw.node, client, str(fault))
    except Exception as error:  # noqa: BLE001  # whatever a stranger's objects do is the reply's fault, not the run's
        return Rejection(raw.node, client, f"sent what cannot be read ({type(error).__name__})")
    return Reply(raw.node, int(metrics[spec.client]), int(metrics.get(spec.samples, 0)), arrays, metrics)


def check_metrics(metrics: Mapping[str, Any], rules: Mapping[str, Number]) -> dict[str, float | int]:
    """The numbers of a reply.

    Raises:
        ReplyFault: one is missing, not asked for, no number, or out of range.
    """
    there = {name: rule for name, rule in rules.items() if rule.required or name in metrics}
    check_names(metrics, there, "metrics")
    return {name: check_number(name, metrics[name], rule) for name, rule in there.items()}


def check_number(name: str, value: object, rule: Number) -> float | int:
    """One metric.

    Raises:
        ReplyFault: it is no number, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReplyFault(f"{name} is a {type(value).__name__}, not a number")
    if rule.whole and not isinstance(value, int):
        raise ReplyFault(f"{name} is {short(value)}, not a whole number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ReplyFault(f"{name} is too large a number")
    if math.isnan(value) and rule.may_be_nan:
        return value
    if not math.isfinite(value):
        raise ReplyFault(f"{name} is {value}")
    if not rule.low <= value <= rule.high:
        raise ReplyFault(f"{name} is {short(value)}, expected {rule.low:.12g} to {rule.high:.12g}")
    return value


def _check_identity(metrics: Mapping[str, float | int], spec: ReplySpec, seat: Seat | None, round_number: int) -> None:
    if metrics.get(spec.round, round_number) != round_number:
        raise ReplyFault(f"replied for round {metrics[spec.round]} in round {round_number}")
    if seat is None:
        return
    if metrics[spec.client] != seat.client:
        raise ReplyFault(f"calls itself client {metrics[spec.client]}")
    if spec.samples and seat.samples is not None and metrics[spec.samples] != seat.samples:
        raise ReplyFault(f"{spec.samples} is {metrics[spec.samples]}, registered were {seat.samples}")


def read_arrays(arrays: Mapping[str, Any], spec: ReplySpec) -> dict[str, np.ndarray]:
    """The arrays of a reply: all of the layout and no other, finite, the update not too long.

    Raises:
        ReplyFault: the first fault.
    """
    check_names(arrays, spec.layout, "entries")
    check_size(arrays, spec.layout)
    found = {}
    for name, entry in spec.layout.items():
        value = decode_array(arrays[name], entry, name)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ReplyFault(f"sent NaN or infinite weights in {name}")
        found[name] = value if spec.reference is None else value.astype(spec.reference[name].dtype, copy=False)
    if spec.reference is not None and spec.max_update_norm:
        norm = update_norm(found, spec.reference)
        if not norm <= spec.max_update_norm:
            raise ReplyFault(
                f"sent an update of length {norm:.3g}, longer than --max-update-norm {spec.max_update_norm:g}"
            )
    return found


def rejections_for_log(rejections: Iterable[Rejection]) -> dict[str, int | str]:
    """What a line of `metrics.jsonl` says of them: `rejected`, how many, and `rejected/client N`, why."""
    reasons: dict[str, list[str]] = {}
    for each in rejections:
        reasons.setdefault(each.who, []).append(each.reason)
    line: dict[str, int | str] = {"rejected": sum(map(len, reasons.values()))}
    return line | {f"rejected/{who}": "; ".join(why) for who, why in reasons.items()}
