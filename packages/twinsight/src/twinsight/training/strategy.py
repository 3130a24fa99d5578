"""The server's side of a round: whom to ask, and what to make of the answers (paper §3, alg. 1)."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from tenfold import UserError
from tenfold.federated import (
    Number,
    Rejection,
    Reply,
    ReplySpec,
    RoundBook,
    combine,
    layout_of,
    raw_reply,
    weighted_mean,
)
from twinsight.config import METHODS, FederationConfig

LOSSES = ("loss-cross_entropy", "loss-instance", "loss-neighbourhood", "loss-pseudo")
"""A client reports those that its pictures and the method have."""


@dataclass(frozen=True)
class Member:
    """A node of the federation.

    Attributes:
        node: Flower's id.
        client: its number.
        labelled: how many labelled pictures it holds.
        samples: how many pictures it holds.
    """

    node: int
    client: int
    labelled: int
    samples: int


class TwinStrategy(FedAvg):
    """Federated averaging of the whole state of both twins, over a pool of clients that the method decides.

    Args:
        config: of the federation.
        classes: names of the classes, told to the clients.
        patience: seconds to wait for the nodes to appear, and for a round's answers.

    Attributes:
        last_rounds: for each client the round of its last sound answer; a client goes on from what it kept of that round.
    """

    def __init__(self, config: FederationConfig, classes: tuple[str, ...], patience: float = 3600.0) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=config.clients)
        self.config, self.classes, self.patience = config, classes, patience
        self.roll = RoundBook(config.clients, config.max_samples)
        self.members: list[Member] = []
        self.state: dict[str, np.ndarray] = {}
        self.rejections: list[Rejection] = []
        self.last_rounds: dict[int, int] = {}
        self.restarted: dict[int, str] = {}

    def meet(self, grid: Grid) -> None:
        """Wait for the nodes and ask who they are; what a client says here it is held to in every round.

        Raises:
            UserError: nodes that do not come, or no labelled client among them.
        """
        deadline = time.monotonic() + self.patience
        while len(nodes := sorted(grid.get_node_ids())) < self.config.clients:
            if time.monotonic() > deadline:
                raise UserError(f"{len(nodes)} of {self.config.clients} nodes came within {self.patience:.0f} s")
            time.sleep(1)
        question = RecordDict({"config": ConfigRecord({"classes": "\n".join(self.classes)})})
        replies = grid.send_and_receive(
            [Message(question, dst_node_id=node, message_type=MessageType.QUERY) for node in nodes],
            timeout=self.patience,
        )
        self.register(replies, getattr(grid, "known_clients", dict)())
        if not any(each.labelled for each in self.members):
            reasons = "".join(f"; {each}" for each in self.rejections[:3])
            raise UserError(f"no labelled client in this federation: nothing tells the classes apart{reasons}")

    def register(self, replies: Iterable[Message], known: dict[int, int] | None = None) -> None:
        """Make members of the nodes that say soundly who they are; `rejections` holds the others.

        Args:
            replies: to the question who they are.
            known: the client of each node, where the one who started the nodes knows it.
        """
        samples = self.roll.sample_number
        about = {"client": self.roll.client_number, "labelled": Number(0, samples.high, whole=True)}
        spec = ReplySpec({}, about | {"num-examples": samples}, "client", "num-examples")
        answers = [raw_reply(each, arrays=None, metrics="about") for each in replies]
        self.rejections += self.roll.register(answers, spec, known)
        said = [
            Member(each.node, each.client, int(each.told["labelled"]), each.samples or 0)
            for each in self.roll.seats.values()
        ]
        for each in said:
            if each.labelled > each.samples:
                del self.roll.seats[each.node]
                reason = f"says that {each.labelled} of its {each.samples} pictures are labelled"
                self.rejections.append(Rejection(each.node, each.client, reason))
        self.members = sorted((each for each in said if each.node in self.roll.seats), key=lambda each: each.client)

    def pool(self) -> list[Member]:
        """The members that rounds are drawn from."""
        if METHODS[self.config.method].pool == "labelled":
            return [each for each in self.members if each.labelled]
        return self.members

    def sample(self, round_number: int) -> list[Member]:
        """The members of a round, uniform without replacement, the same for the same seed and round."""
        pool = self.pool()
        draw = np.random.default_rng([self.config.seed, 3, round_number])
        chosen = draw.choice(len(pool), min(self.config.sampled, len(pool)), replace=False)
        return [pool[index] for index in sorted(chosen)]

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,  # noqa: ARG002  # Flower's signature
        grid: Grid,
    ) -> Iterable[Message]:
        """One message with the global weights to each member of the round whose node is there."""
        if not self.members:
            self.meet(grid)
        self.state = {name: array.numpy() for name, array in arrays.items()}
        drawn, present = self.sample(server_round), set(grid.get_node_ids())
        self.rejections += [
            Rejection(each.node, each.client, "its node is gone") for each in drawn if each.node not in present
        ]
        asked = [each for each in drawn if each.node in present]
        self.roll.open(server_round, [each.node for each in asked])
        messages = []
        for each in asked:
            last = self.last_rounds.get(each.client, 0)
            orders = ConfigRecord({"round": server_round, "last": last, "classes": "\n".join(self.classes)})
            content = RecordDict({"arrays": arrays, "config": orders})
            messages.append(Message(content, dst_node_id=each.node, message_type=MessageType.TRAIN))
        return messages

    def aggregate_train(
        self,
        server_round: int,
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the sound answers in the order of their clients; `rejections` says who was left out, since the last round, and why."""
        raws = list(map(raw_reply, replies))
        sound, rejections = self.roll.close(raws, self._spec(), f"{self.patience:g} s")
        faults = [_loss_fault(reply) for reply in sound]
        sound = [reply for reply, fault in zip(sound, faults, strict=True) if not fault]
        self.rejections += rejections + [fault for fault in faults if fault]
        for reply in sound:
            if reply.metrics.get("restarted"):
                reason = f"what it kept of round {self.last_rounds.get(reply.client, 0)} is lost; it began anew"
                self.restarted[reply.client] = reason
            self.last_rounds[reply.client] = server_round
        metrics = {"clients": len(sound), "rejected": len(self.rejections)}
        if not sound:
            return None, MetricRecord(metrics)
        weights = [float(reply.samples) for reply in sound]
        combined = combine([reply.arrays for reply in sound], weights, self.state, self.config.safeguards)
        if self.config.aggregation == "mean" and self.config.integer_buffers == "official":
            combined |= truncated_sums([reply.arrays for reply in sound], weights)
        arrays = ArrayRecord({name: Array(value) for name, value in combined.items()})
        return arrays, MetricRecord({**metrics, **_mean_metrics([reply.metrics for reply in sound], weights)})

    def taken_rejections(self) -> list[Rejection]:
        """Who was left out since this was asked last."""
        taken, self.rejections = self.rejections, []
        return taken

    def taken_restarts(self) -> dict[str, str]:
        """Who had lost what it kept between rounds since this was asked last, as entries of the log."""
        taken, self.restarted = self.restarted, {}
        return {f"restarted/client {client}": reason for client, reason in taken.items()}

    def _spec(self) -> ReplySpec:
        rare = Number(required=False)
        metrics = {"client": self.roll.client_number, "num-examples": self.roll.sample_number}
        metrics |= dict.fromkeys(LOSSES, rare) | {"round": Number(whole=True, required=False)}
        # A cosine is rounded.
        metrics |= {
            "steps": Number(0, whole=True, required=False),
            "skipped": Number(0, whole=True, required=False),
            "restarted": Number(0, 1, whole=True, required=False),
            "gradient-cosine": Number(-1.001, 1.001, required=False),
        }
        return ReplySpec(
            layout_of(self.state),
            metrics,
            "client",
            "num-examples",
            reference=self.state,
            max_update_norm=self.config.max_update_norm,
        )

    def configure_evaluate(
        self,
        server_round: int,  # noqa: ARG002  # Flower's signature
        arrays: ArrayRecord,  # noqa: ARG002
        config: ConfigRecord,  # noqa: ARG002
        grid: Grid,  # noqa: ARG002
    ) -> Iterable[Message]:
        """Nobody is asked: the global test set is the server's."""
        return []


def _loss_fault(reply: Reply) -> Rejection | None:
    """A client that made steps has a loss to report; one with too few pictures for a step has none."""
    if reply.metrics.get("steps", 1) and not any(name in reply.metrics for name in LOSSES):
        return Rejection(reply.node, reply.client, "reports no loss")
    return None


def _mean_metrics(metrics: list[dict[str, float | int]], weights: list[float]) -> dict[str, float | int]:
    """The mean of each loss and of the cosine over the clients that reported it; how many batches were passed over."""
    skipped = sum(int(each.get("skipped", 0)) for each in metrics)
    merged: dict[str, float | int] = {"skipped": skipped} if skipped else {}
    for name in (*LOSSES, "gradient-cosine"):
        pairs = [(each[name], weight) for each, weight in zip(metrics, weights, strict=True) if name in each]
        if pairs:
            merged[name] = float(np.average([value for value, _ in pairs], weights=[weight for _, weight in pairs]))
    return merged


def truncated_sums(states: Sequence[Mapping[str, np.ndarray]], weights: Sequence[float]) -> dict[str, np.ndarray]:
    """Integer buffers as the official code averages them: each weighted value is cut to a whole number, then they are summed."""
    total = sum(weights)
    integers = [name for name, value in states[0].items() if value.dtype.kind in "iu"]
    found = {}
    for name in integers:
        parts = [np.trunc(state[name] * (weight / total)) for state, weight in zip(states, weights, strict=True)]
        # numpy makes a scalar of an array without dimensions wherever it can.
        found[name] = np.asarray(np.sum(parts, axis=0), states[0][name].dtype)
    return found


State = dict[str, Tensor]


def weighted_average(states: Sequence[State], weights: Sequence[float]) -> State:
    """Average state dicts: parameters and buffers, BatchNorm's statistics included.

    Sums are taken in 64 bits, so that the average of equal states is that state bit for bit; integer buffers are
    rounded and keep their type.

    Args:
        states: with the same keys and shapes, on the CPU.
        weights: above 0; they need not sum to one.

    Raises:
        ValueError: no state, or weights that do not fit.
    """
    mean = weighted_mean([{name: each.numpy() for name, each in state.items()} for state in states], weights)
    return {name: torch.from_numpy(each) for name, each in mean.items()}
