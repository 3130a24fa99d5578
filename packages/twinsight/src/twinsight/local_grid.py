"""A Flower grid inside this process: the same client app, its nodes asked one after the other. Nothing to start, nothing random."""

from collections.abc import Iterable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002  # Flower's signature
        """Ask each node in turn."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        return self.client_app(message, self.contexts[message.metadata.dst_node_id])
