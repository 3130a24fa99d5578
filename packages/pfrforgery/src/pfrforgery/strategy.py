"""The server's side of a round: who trains, what comes back, what is averaged, what went wrong (specification §3.6, §11.3).

Flower averages whatever entries the replies hold, so that sending only the shared ones *is* the partial aggregation. What is added here: a fixed
order of the replies, a check of what they hold, a book of who took part when, and a report of who failed.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from pfrforgery.recipe import FederationConfig, round_rate
from tenfold import UserError

WAIT_SECONDS = 30.0
"""Between two lines that say how many nodes are missing."""


@dataclass
class RoundReport:
    """What happened in a round.

    Attributes:
        round: counted from 1.
        learning_rate: that the clients used.
        participants: clients whose replies were averaged, ascending.
        failures: who was left out, and why, by `client N`, or `node N` where the client was never heard of.
        bytes_down: tensors sent to the clients to train.
        bytes_up: tensors of the replies that were averaged.
        seconds: from the first message to the last reply.
        losses: weighted mean over participants, by name.
        clients: evaluation of each client by number, by metric; empty where the round was not evaluated.
    """

    round: int
    learning_rate: float
    participants: list[int] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    clients: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass
class Progress:
    """What the server must know to go on after an interruption.

    Attributes:
        round: rounds done.
        book: the round in which each client last took part.
    """

    round: int = 0
    book: dict[int, int] = field(default_factory=dict)


class PartialFedAvg(FedAvg):
    """Federated averaging of the entries that an algorithm uploads.

    Args:
        config: of the run.
        clients: how many take part in the run.
        is_pooled: one participant trains for all.
        progress: rounds done before; updated as the run goes on.
        on_round: called after each round with its report and the averaged entries.

    Raises:
        UserError: from its methods: no valid reply in a round, entries that are not the server's, lost personal state.
    """

    def __init__(
        self,
        config: FederationConfig,
        clients: int,
        is_pooled: bool,
        progress: Progress,
        on_round: Callable[[RoundReport, ArrayRecord], None],
    ) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.config, self.clients, self.is_pooled = config, clients, is_pooled
        self.progress, self.on_round = progress, on_round
        self.first_round = progress.round
        self.client_of_node: dict[int, int] = {}
        self.report = RoundReport(0, 0.0)
        self.arrays = ArrayRecord()
        self.asked: list[int] = []

    # -------------------------------------------------------------------------------------------------------- training

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the participants of the round. Rounds of a resumed run go on counting where it stopped."""
        number = self.first_round + server_round
        self.report = RoundReport(number, round_rate(self.config, number))
        self.arrays, self.started = arrays, time.perf_counter()
        self.asked = self._participants(wait_for_nodes(grid, self.clients), number)
        self.report.bytes_down = len(self.asked) * array_bytes(arrays)
        return self._messages(arrays, config, MessageType.TRAIN)

    def _participants(self, nodes: list[int], number: int) -> list[int]:
        if self.is_pooled:
            return nodes[:1]
        count = max(1, round(self.config.fraction * len(nodes)))
        return sorted(random.Random(f"{self.config.seed}/{number}").sample(nodes, count))

    def _messages(self, arrays: ArrayRecord, config: ConfigRecord, kind: str) -> list[Message]:
        config["server-round"] = self.report.round
        config["lr"] = self.report.learning_rate
        config["book-clients"] = list(self.progress.book)
        config["book-rounds"] = list(self.progress.book.values())
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return list(self._construct_messages(record, self.asked, kind))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the sound replies in the order of their clients."""
        sound = self._sound_replies(list(replies))
        valid = [reply for reply in sound if self._is_acceptable(reply)]
        if not valid:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.report.failures.items())
            raise UserError(f"round {self.report.round}: no client's training could be used ({reasons})")
        valid.sort(key=client_of)
        self._check_distinct(valid)
        self.report.bytes_up = sum(array_bytes(reply.content.array_records[self.arrayrecord_key]) for reply in valid)
        for reply in valid:
            reply.content = RecordDict(
                {
                    self.arrayrecord_key: as_float32(reply.content.array_records[self.arrayrecord_key]),
                    "metrics": reply.content.metric_records["metrics"],
                }
            )
        arrays, metrics = super().aggregate_train(server_round, valid)
        assert arrays is not None
        assert metrics is not None
        self.report.participants = [client_of(reply) for reply in valid]
        self.report.losses = {
            name: float(metrics[name])  # ty: ignore[invalid-argument-type]
            for name in ("loss-shared", "loss-personal", "loss-adversarial")
        }
        self.progress.book.update(dict.fromkeys(self.report.participants, self.report.round))
        self.arrays = arrays
        return arrays, metrics

    def _check_distinct(self, replies: list[Message]) -> None:
        for first, second in pairwise(map(client_of, replies)):
            if first == second:
                raise UserError(f"two nodes call themselves client {first}; give each its own partition-id")

    def _sound_replies(self, replies: list[Message]) -> list[Message]:
        """Replies without an error; the others, and the missing ones, go into the report."""
        sound, heard = [], set()
        for reply in replies:
            node = reply.metadata.src_node_id
            heard.add(node)
            if reply.has_error():
                self._fail(node, last_line(reply.error.reason or "failed without saying why"))
            else:
                self.client_of_node[node] = client_of(reply)
                sound.append(reply)
        for node in self.asked:
            if node not in heard:
                self._fail(node, f"no reply within {self.config.timeout:g} s")
        return sound

    def _is_acceptable(self, reply: Message) -> bool:
        """Whether a reply may be averaged.

        Raises:
            UserError: it holds other entries than were sent, or its client has lost its personal state.
        """
        arrays, metrics = reply.content.array_records[self.arrayrecord_key], reply.content.metric_records["metrics"]
        client = client_of(reply)
        if list(arrays) != list(self.arrays):
            odd = sorted(set(arrays) ^ set(self.arrays))
            raise UserError(f"client {client}: sent other entries than it was asked for: {', '.join(odd[:5])}")
        expected, found = self.progress.book.get(client, 0), metrics["personal-round"]
        if found < expected and not self.config.allow_state_reset:  # ty: ignore[unsupported-operator]
            raise UserError(
                f"client {client} lost its personal state: expected round {expected}, has {found}; "
                "--allow-state-reset goes on from the initial one"
            )
        if float(metrics["num-examples"]) <= 0:  # ty: ignore[invalid-argument-type]
            return self._fail(reply.metadata.src_node_id, "trained on no image")
        if not all(np.isfinite(array.numpy()).all() for array in arrays.values()):
            return self._fail(reply.metadata.src_node_id, "sent NaN or infinite weights")
        return True

    def _fail(self, node: int, reason: str) -> bool:
        name = f"client {self.client_of_node[node]}" if node in self.client_of_node else f"node {node}"
        # An error that a client wrote itself begins with its name.
        head, _, rest = reason.partition(": ")
        if head.startswith("client "):
            name, reason = head, rest
        self.report.failures[name] = reason
        if self.config.on_bad_client == "raise":
            raise UserError(f"round {self.report.round}: {name}: {reason}")
        return False

    # ------------------------------------------------------------------------------------------------------ evaluation

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address every client with the new shared part, in the rounds that are evaluated."""
        number = self.first_round + server_round
        if number % self.config.evaluate_every and number != self.config.rounds:
            self.asked = []
            return []
        self.asked = sorted(grid.get_node_ids())[: self.clients]
        return self._messages(arrays, config, MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:  # noqa: ARG002
        """Collect what the clients measured, and close the round."""
        for reply in self._sound_replies(list(replies)):
            measured = reply.content.metric_records["metrics"]
            self.report.clients[client_of(reply)] = {name: float(value) for name, value in measured.items()}  # ty: ignore[invalid-argument-type]
        self.report.clients = dict(sorted(self.report.clients.items()))
        self.report.seconds = time.perf_counter() - self.started
        self.progress.round = self.report.round
        self.on_round(self.report, self.arrays)
        known = [values["auc"] for values in self.report.clients.values() if np.isfinite(values["auc"])]
        return MetricRecord({"auc-mean": float(np.mean(known))}) if known else None


def wait_for_nodes(grid: Grid, count: int) -> list[int]:
    """The nodes of the run, ascending, once there are enough; says every half a minute how many are missing."""
    waited = 0.0
    while len(nodes := sorted(grid.get_node_ids())) < count:
        if waited % WAIT_SECONDS == 0:
            logging.getLogger("flwr").info("waiting for %d more of %d nodes", count - len(nodes), count)
        time.sleep(0.5)
        waited += 0.5
    return nodes[:count]


def client_of(reply: Message) -> int:
    """The number of the client that sent a reply."""
    return int(reply.content.metric_records["metrics"]["partition-id"])  # ty: ignore[invalid-argument-type]


def array_bytes(arrays: ArrayRecord) -> int:
    """Bytes of the tensors themselves, without headers."""
    return sum(int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize for array in arrays.values())


def as_float32(arrays: ArrayRecord) -> ArrayRecord:
    """Half-precision uploads become float32 before they are averaged; others stay as they are."""
    if all(array.dtype == "float32" for array in arrays.values()):
        return arrays
    return ArrayRecord({name: Array(array.numpy().astype(np.float32)) for name, array in arrays.items()})


def last_line(reason: str) -> str:
    """The line of an error that says what happened: one that begins with a client's name, else the last of a traceback."""
    # Flower's simulation wraps the text in `<class ...>:<'...'>`.
    lines = [line.strip().removesuffix("'>").strip() for line in reason.splitlines()]
    lines = [line for line in lines if line] or ["failed without saying why"]
    named = [line for line in lines if line.startswith("client ") or ": client " in line]
    return named[-1][named[-1].index("client ") :] if named else lines[-1]
