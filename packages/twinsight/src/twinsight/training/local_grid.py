"""A Flower grid inside this process: the same client app, its nodes asked one after the other. Nothing to start, nothing random.

A client that raises becomes an error reply, as in Flower. It cannot be stopped while it computes: one that takes longer than the round's
timeout has its reply dropped.
"""

import copy
import time
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from tenfold import UserError

SERVER_NODE = 1_000_000
"""The id of the server, out of the way of the nodes'."""


class LocalGrid(Grid):
    """Nodes 1 to K as contexts of this process.

    Args:
        client_app: answers for every node.
        clients: K.
    """

    def __init__(self, client_app: ClientApp, clients: int) -> None:
        # Messages are stamped with the identity of the running task; Flower's own runtimes set it like this.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 0, SERVER_NODE
        self.client_app = client_app
        self.contexts = {
            number + 1: Context(
                run_id=0,
                node_id=number + 1,
                node_config={"partition-id": number, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for number in range(clients)
        }
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: object) -> None:
        """There is one run only."""

    @property
    def run(self) -> Run:
        """An empty description: no SuperLink knows of this run."""
        return Run.create_empty(0)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message, as Flower's constructor makes it."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """All nodes; they are always there."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let the nodes answer at once; the answers wait to be pulled."""
        names = []
        for message in messages:
            name = f"{len(self._waiting)}-{message.metadata.dst_node_id}"
            self._waiting[name] = self._answer(message)
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The answers to messages that were pushed."""
        return [self._waiting.pop(name) for name in message_ids if name in self._waiting]

    def known_clients(self) -> dict[int, int]:
        """The client at each node: whatever a client says of itself must agree."""
        return {node: int(context.node_config["partition-id"]) for node, context in self.contexts.items()}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Ask each node in turn; an answer that took longer than `timeout` is dropped."""
        replies = []
        for message in messages:
            started = time.perf_counter()
            reply = self._answer(message)
            if timeout is None or time.perf_counter() - started <= timeout:
                replies.append(reply)
        return replies

    def _answer(self, message: Message) -> Message:
        # The strategy puts one record into all messages: each client gets its own, as over a wire.
        content, metadata = copy.deepcopy(message.content), message.metadata
        message = Message(content, dst_node_id=metadata.dst_node_id, message_type=metadata.message_type)
        try:
            reply = self.client_app(message, self.contexts[metadata.dst_node_id])
            if not isinstance(reply, Message):
                raise TypeError(f"the client's app returned {type(reply).__name__}, not a message")
            return reply
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a client raises is its failure, not the run's
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
