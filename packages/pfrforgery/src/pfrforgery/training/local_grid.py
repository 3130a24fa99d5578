"""The same ServerApp and ClientApp in one process, one client after the other: no Ray, no ports, the same bits every time.

Flower's only simulation backend is Ray, which costs half a minute and two gigabytes before it pays. Messages here are Flower's own; a
client that raises becomes an error reply, as in Flower. Only a full disk, which is everybody's, stops the run. A client cannot be stopped
while it computes: one that takes longer than the round's timeout has its reply dropped.
"""

import copy
import itertools
import logging
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

# Flower names no public way to say who a process is, and creating a message asks for it.
from flwr.supercore.task_identity import TaskIdentity

from tenfold import UserError
from tenfold.errors import WriteError

RUN_ID = 1
SERVER_NODE = 1
FIRST_CLIENT_NODE = 100
"""Client k is node 100 + k: the order of the nodes is that of the clients."""


class InProcessGrid(Grid):
    """A grid whose nodes are calls of the ClientApp.

    Args:
        client_app: what each node runs.
        contexts: of each node; they keep the clients' state.
    """

    def __init__(self, client_app: ClientApp, contexts: Mapping[int, Context]) -> None:
        self.client_app, self.contexts = client_app, contexts
        self._run = Run.create_empty(RUN_ID)
        self._numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def known_clients(self) -> dict[int, int]:
        """The client at each node, by the configuration of the nodes: whatever a client says of itself must agree."""
        return {
            node: int(context.node_config["partition-id"])
            for node, context in self.contexts.items()
            if "partition-id" in context.node_config
        }

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, ascending."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have every message answered at once."""
        identifiers = []
        for message in messages:
            identifier = str(next(self._numbers))
            self._replies[identifier] = self._answer(message, identifier)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to messages that were pushed."""
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Have messages answered one after the other; a reply that took longer than `timeout` is dropped."""
        replies = []
        for message in messages:
            started = time.perf_counter()
            reply = list(self.pull_messages(self.push_messages([message])))
            if timeout is None or time.perf_counter() - started <= timeout:
                replies += reply
        return replies

    def _answer(self, message: Message, identifier: str) -> Message:
        # The strategy puts one record into all messages: each client gets its own, as over a wire.
        message = Message(copy.deepcopy(message.content), message.metadata.dst_node_id, message.metadata.message_type)
        message.metadata.__dict__["_message_id"] = identifier
        context = self.contexts[message.metadata.dst_node_id]
        try:
            reply = self.client_app(message, context)
            if not isinstance(reply, Message):
                raise TypeError(f"the client's app returned {type(reply).__name__}, not a message")
            return reply
        except WriteError:
            raise  # the disk is the server's too: the run stops here, and goes on where it was once there is room
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a client raises is its failure, not the run's
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    node_configs: Iterable[Mapping[str, Any]],
    run_config: Mapping[str, Any],
) -> dict[int, Context]:
    """Run a Flower app in this process.

    Args:
        server_app: the server.
        client_app: the clients.
        node_configs: one for each client, such as `{"partition-id": 0, "num-partitions": 5}`.
        run_config: what `[tool.flwr.app.config]` holds in a deployment.

    Returns:
        The clients' contexts, with their state, by client number.
    """
    contexts = {
        FIRST_CLIENT_NODE + number: Context(
            RUN_ID, FIRST_CLIENT_NODE + number, dict(node), RecordDict(), dict(run_config)
        )
        for number, node in enumerate(node_configs)
    }
    server_context = Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(run_config))
    with _identity(), quiet_flower():
        server_app(InProcessGrid(client_app, contexts), server_context)
    return {node - FIRST_CLIENT_NODE: context for node, context in contexts.items()}


@contextmanager
def _identity() -> Generator[None]:
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, RUN_ID
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


@contextmanager
def quiet_flower(level: int = logging.WARNING) -> Generator[None]:
    """Flower's own log from `level` upwards only: the run folder holds what matters."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
