"""The server's side of a round: who trains, what comes back, what is averaged, what went wrong.

A client sends the shared entries only, so that averaging them *is* the partial aggregation. What a reply must hold, and what becomes of one
that does not, is `tenfold.federated`'s; here stand the entries and numbers of this package, a book of who took part when, and the report.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from pfrforgery.config import FederationConfig, round_rate
from pfrforgery.training.state import lost_state
from tenfold import UserError
from tenfold.federated import Number, Rejection, Reply, ReplySpec, RoundBook, combine, layout_of, raw_reply

WAIT_SECONDS = 30.0
"""Between two lines that say how many nodes are missing."""

LOSSES = ("loss-shared", "loss-personal", "loss-adversarial")
SCORES = ("bacc", "auc", "eer", "ap", "video-acc", "video-auc", "video-eer")
"""Undefined, NaN, where a client's test images are all of one class."""
BRANCH_SCORES = ("acc-shared", "auc-shared", "acc-personal", "auc-personal")


@dataclass
class RoundReport:
    """What happened in a round.

    Attributes:
        round: counted from 1.
        learning_rate: that the clients used.
        participants: clients whose replies were averaged, ascending; empty where none was sound and the shared part is as it was.
        rejections: who was left out, and why.
        bytes_down: tensors sent to the clients to train.
        bytes_up: tensors of the replies that were averaged.
        seconds: from the first message to the last reply.
        losses: weighted mean over participants, by name.
        clients: evaluation of each client by number, by metric; empty where the round was not evaluated.
    """

    round: int
    learning_rate: float
    participants: list[int] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    clients: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """Who was left out, and why, by `client N`, or `node N` where nobody knows the client."""
        return {each.who: each.reason for each in self.rejections}


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
        on_round: called after each round with its report and the shared entries.

    Raises:
        UserError: from its methods: no node came, or a bad client where the configuration insists on every one.
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
        self.roll = RoundBook(clients, config.max_samples)
        self.barred: set[int] = set()
        self.all_came = False
        self.report = RoundReport(0, 0.0)
        self.arrays = ArrayRecord()
        self.shared: dict[str, np.ndarray] = {}

    # -------------------------------------------------------------------------------------------------------- training

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the participants of the round. Rounds of a resumed run go on counting where it stopped."""
        number = self.first_round + server_round
        self.report = RoundReport(number, round_rate(self.config, number))
        self.arrays, self.shared = arrays, {name: array.numpy() for name, array in arrays.items()}
        self.started = time.perf_counter()
        nodes = self._registered(grid, self._wait(grid))
        asked = self._participants(nodes, number) if nodes else []
        self.roll.open(number, asked)
        self.report.bytes_down = len(asked) * sum(each.nbytes for each in self.shared.values())
        return self._messages(arrays, config, MessageType.TRAIN)

    def _wait(self, grid: Grid) -> list[int]:
        """The nodes that are there. Only the first round waits for all: one that has died since must not hold up the others."""
        nodes = wait_for_nodes(grid, 1 if self.all_came else self.clients, self.config.timeout)
        self.all_came = True
        return nodes

    def _registered(self, grid: Grid, present: list[int]) -> list[int]:
        """The nodes that may be asked, by client; new ones are asked first who they are."""
        self._report(self.roll.leave(present))
        new = [node for node in present if node not in self.roll.seats]
        self.barred = set()
        if new:
            self._report(self._register(grid, new))
        return self._takes_part(present)

    def _takes_part(self, present: list[int]) -> list[int]:
        """Of the nodes that are there those with a seat, by client, and as many unknown ones as there are seats left."""
        seated = sorted(
            (node for node in present if node in self.roll.seats), key=lambda node: self.roll.seats[node].client
        )
        unknown = [node for node in present if node not in self.roll.seats and node not in self.barred]
        return seated + unknown[: max(0, self.clients - len(seated))]

    def _register(self, grid: Grid, new: list[int]) -> list[Rejection]:
        # The grid of this process knows who its nodes are; over a network they are asked.
        known: dict[int, int] = getattr(grid, "known_clients", dict)()
        question = RecordDict({"config": ConfigRecord({"server-round": 0})})
        messages = self._construct_messages(question, new, MessageType.QUERY)
        answers = [
            raw_reply(reply, arrays=None, metrics="about")
            for reply in grid.send_and_receive(list(messages), timeout=self.config.timeout)
        ]
        spec = ReplySpec({}, self._about, "partition-id", "num-examples")
        # A node that cannot answer, such as one with an app of its own, is seated by its first sound reply.
        rejections = self.roll.register([each for each in answers if not each.error], spec, known)
        refused = {each.node for each in rejections}
        rejections += self.roll.seat_known({node: known[node] for node in new if node in known and node not in refused})
        self.barred = {each.node for each in rejections}
        return rejections

    def _participants(self, nodes: list[int], number: int) -> list[int]:
        if self.is_pooled:
            return nodes[:1]
        count = max(1, round(self.config.fraction * len(nodes)))
        chosen = set(random.Random(f"{self.config.seed}/{number}").sample(nodes, count))
        return [node for node in nodes if node in chosen]

    def _messages(self, arrays: ArrayRecord, config: ConfigRecord, kind: str) -> list[Message]:
        config["server-round"] = self.report.round
        config["lr"] = self.report.learning_rate
        config["book-clients"] = list(self.progress.book)
        config["book-rounds"] = list(self.progress.book.values())
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return list(self._construct_messages(record, self.roll.asked, kind))

    @property
    def _about(self) -> dict[str, Number]:
        """The numbers that say who sends them."""
        return {"partition-id": self.roll.client_number, "num-examples": self.roll.sample_number}

    def _training_spec(self) -> ReplySpec:
        numbers = self._about | dict.fromkeys(LOSSES, Number())
        numbers |= {"personal-round": Number(0, whole=True), "round": Number(whole=True, required=False)}
        return ReplySpec(
            layout_of(self.shared, "float16" if self.config.upload_dtype == "float16" else None),
            numbers,
            "partition-id",
            "num-examples",
            reference=self.shared,
            max_update_norm=self.config.max_update_norm,
        )

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002  # Flower's signature
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the sound replies in the order of their clients; without any the shared part stays as it was."""
        spec = self._training_spec()
        sound, rejections = self.roll.close(list(map(raw_reply, replies)), spec, f"{self.config.timeout:g} s")
        faults = [self._state_fault(reply, self.report.round - 1) for reply in sound]
        self._report(rejections + [fault for fault in faults if fault])
        sound = [reply for reply, fault in zip(sound, faults, strict=True) if not fault]
        if not sound:
            return None, None
        weights = [float(reply.samples) for reply in sound]
        self.shared = combine([reply.arrays for reply in sound], weights, self.shared, self.config.safeguards)
        self.arrays = ArrayRecord({name: Array(value) for name, value in self.shared.items()})
        self.report.bytes_up = len(sound) * sum(entry.nbytes for entry in spec.layout.values())
        self.report.participants = [reply.client for reply in sound]
        self.report.losses = {
            name: float(np.average([reply.metrics[name] for reply in sound], weights=weights)) for name in LOSSES
        }
        self.progress.book.update(dict.fromkeys(self.report.participants, self.report.round))
        return self.arrays, MetricRecord({**self.report.losses})

    def _state_fault(self, reply: Reply, newest: int) -> Rejection | None:
        """What is wrong with the round of a client's personal state.

        It may be ahead of the book: the reply of a round in which a client kept its state can be lost on the way. It cannot be of a round
        that the client was not in yet, `newest` at most.
        """
        expected, found = self.progress.book.get(reply.client, 0), int(reply.metrics["personal-round"])
        if found < expected and not self.config.allow_state_reset:
            reason = lost_state(expected, found)
        elif found > newest:
            reason = f"has a personal state of round {found}, which is not over"
        else:
            return None
        return Rejection(reply.node, reply.client, reason)

    def _report(self, rejections: list[Rejection]) -> None:
        self.report.rejections += rejections
        if rejections and self.config.on_bad_client == "raise":
            raise UserError(f"round {self.report.round}: {rejections[0]}")

    # ------------------------------------------------------------------------------------------------------ evaluation

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address every client with the new shared part, in the rounds that are evaluated."""
        number = self.first_round + server_round
        if number % self.config.evaluate_every and number != self.config.rounds:
            self.roll.open(number, [])
            return []
        self.roll.open(number, self._takes_part(sorted(grid.get_node_ids())))
        return self._messages(arrays, config, MessageType.EVALUATE)

    def _evaluation_spec(self) -> ReplySpec:
        share = Number(0, 1)
        undefined, single = Number(0, 1, may_be_nan=True), Number(0, 1, may_be_nan=True, required=False)
        numbers = self._about | {"acc": share, "predict": Number(0, 2, whole=True)}
        numbers |= dict.fromkeys(SCORES, undefined) | dict.fromkeys(BRANCH_SCORES, single)
        numbers |= {"personal-round": Number(0, whole=True), "round": Number(whole=True, required=False)}
        # The images that a client is tested on are not those it trains on: their number is not the registered one.
        return ReplySpec({}, numbers, "partition-id")

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:  # noqa: ARG002
        """Collect what the clients measured, and close the round."""
        raws = [raw_reply(reply, arrays=None) for reply in replies]
        sound, rejections = self.roll.close(raws, self._evaluation_spec(), f"{self.config.timeout:g} s")
        faults = [self._state_fault(reply, self.report.round) for reply in sound]
        self._report(rejections + [fault for fault in faults if fault])
        self.report.clients = {
            reply.client: {name: float(value) for name, value in reply.metrics.items() if name != "round"}
            for reply, fault in zip(sound, faults, strict=True)
            if not fault
        }
        self.report.seconds = time.perf_counter() - self.started
        self.progress.round = self.report.round
        self.on_round(self.report, self.arrays)
        known = [values["auc"] for values in self.report.clients.values() if np.isfinite(values["auc"])]
        return MetricRecord({"auc-mean": float(np.mean(known))}) if known else None


def wait_for_nodes(grid: Grid, count: int, timeout: float) -> list[int]:
    """The nodes that are there, ascending, once there are enough or time is up; says every half a minute how many are missing.

    Raises:
        UserError: time is up and there is none.
    """
    waited = 0.0
    while len(nodes := sorted(grid.get_node_ids())) < count and waited < timeout:
        if waited % WAIT_SECONDS == 0:
            logging.getLogger("flwr").info("waiting for %d more of %d nodes", count - len(nodes), count)
        time.sleep(0.5)
        waited += 0.5
    if len(nodes) < count:
        logging.getLogger("flwr").warning("%d of %d nodes came within %g s", len(nodes), count, timeout)
    if not nodes:
        raise UserError(f"no node came within {timeout:g} s; start the SuperNodes, then continue with --resume")
    return nodes
