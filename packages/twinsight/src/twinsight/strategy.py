"""The server's side of a round: whom to ask, and what to make of the answers (paper §3, alg. 1)."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from tenfold import UserError
from twinsight.aggregation import weighted_average
from twinsight.config import FederationConfig
from twinsight.methods import METHODS


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
    """

    def __init__(self, config: FederationConfig, classes: tuple[str, ...], patience: float = 3600.0) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=config.clients)
        self.config, self.classes, self.patience = config, classes, patience
        self.members: list[Member] = []

    def meet(self, grid: Grid) -> None:
        """Wait for the nodes and ask who they are.

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
        self.members = sorted(
            (_member(reply) for reply in replies if not reply.has_error()), key=lambda each: each.client
        )
        if not any(each.labelled for each in self.members):
            raise UserError("no labelled client in this federation: nothing tells the classes apart")

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
        """One message with the global weights to each member of the round."""
        if not self.members:
            self.meet(grid)
        orders = ConfigRecord({"round": server_round, "classes": "\n".join(self.classes)})
        content = RecordDict({"arrays": arrays, "config": orders})
        return [
            Message(content, dst_node_id=each.node, message_type=MessageType.TRAIN)
            for each in self.sample(server_round)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average by number of pictures; clients that failed are left out and counted.

        Raises:
            UserError: a client whose loss is not a number.
        """
        answers = list(replies)
        # Answers arrive in any order, and sums of floats depend on it.
        good: list[Any] = sorted(
            (each.content for each in answers if not each.has_error()),
            key=lambda content: content["metrics"]["client"],
        )
        failed = len(answers) - len(good)
        if not good:
            return None, MetricRecord({"failed": failed})
        metrics: list[Any] = [each["metrics"] for each in good]
        for each in metrics:
            if not all(math.isfinite(value) for key, value in each.items() if key.startswith("loss-")):
                raise UserError(
                    f"round {server_round}, client {each['client']}: the loss is not a number; lower --learning-rate"
                )
        states = [each["arrays"].to_torch_state_dict() for each in good]
        weights = [float(each["num-examples"]) for each in metrics]
        return ArrayRecord(weighted_average(states, weights)), _mean_metrics(metrics, weights, failed)

    def configure_evaluate(
        self,
        server_round: int,  # noqa: ARG002  # Flower's signature
        arrays: ArrayRecord,  # noqa: ARG002
        config: ConfigRecord,  # noqa: ARG002
        grid: Grid,  # noqa: ARG002
    ) -> Iterable[Message]:
        """Nobody is asked: the global test set is the server's."""
        return []


def _member(reply: Message) -> Member:
    about: Any = reply.content["about"]
    return Member(reply.metadata.src_node_id, int(about["client"]), int(about["labelled"]), int(about["num-examples"]))


def _mean_metrics(metrics: list[Any], weights: list[float], failed: int) -> MetricRecord:
    """The mean of each number over the clients that reported it."""
    merged: dict[str, Any] = {"clients": len(metrics), "failed": failed}
    names = {key for each in metrics for key in each if key.startswith("loss-") or key == "gradient-cosine"}
    for name in sorted(names):
        pairs = [(each[name], weight) for each, weight in zip(metrics, weights, strict=True) if name in each]
        merged[name] = sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
    return MetricRecord(merged)
