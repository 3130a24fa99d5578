"""From a framework's message to a plain `RawReply`: what a server can look at without being harmed.

The messages are those of Flower's message API (`flwr.app.Message`), but only by shape: nothing of Flower is imported.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tenfold.errors import UserError
from tenfold.federated.layout import short


@dataclass(frozen=True)
class RawReply:
    """A reply that nobody has checked.

    Attributes:
        node: that sent it, as the framework says.
        error: why there is no content, in one line; empty where there is content.
        arrays: serialized, by name.
        metrics: by name; of any type.
    """

    node: int
    error: str = ""
    arrays: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


def raw_reply(message: Any, *, arrays: str | None = "arrays", metrics: str = "metrics") -> RawReply:
    """Take a message apart; whatever is wrong with its outside becomes an error.

    Args:
        message: a reply of Flower's, or what `watch_replies` puts in its place.
        arrays: the name of the record of arrays; None where none was asked for.
        metrics: the name of the record of numbers.
    """
    node = message.metadata.src_node_id
    try:
        if message.has_error():
            return RawReply(node, error=one_line(message.error.reason))
        content = message.content
        wanted = {name for name in (arrays, metrics) if name is not None}
        if set(content.keys()) != wanted:
            return RawReply(node, error=f"sent other records than {' and '.join(sorted(wanted))}")
        numbers = content.metric_records[metrics]
        return RawReply(node, "", content.array_records[arrays] if arrays else {}, numbers)
    except Exception as error:  # noqa: BLE001  # the content is a stranger's: nothing in it may end the run
        return RawReply(node, error=f"sent what cannot be read ({type(error).__name__})")


def one_line(reason: object) -> str:
    """The line of an error's text that says what happened: the last one of a traceback."""
    # Flower's simulation wraps the text in `<class ...>:<'...'>`, with the line breaks escaped or not.
    text = str(reason or "")[-20_000:].replace("\\n", "\n")
    lines = [line.strip().removesuffix("'>").strip() for line in text.splitlines()]
    return short(next((line for line in reversed(lines) if line), "failed without saying why"))


def pull_until(grid: Any, stop: threading.Event) -> None:
    """Make a grid end the thread that waits for its replies once `stop` is set.

    Flower's simulation runs the server in a thread of its own, which would keep an interrupted process alive for ever.

    Args:
        grid: of Flower, made for this run: its `pull_messages` is replaced.
        stop: set it when the simulation is left, however it is left.
    """
    pull: Callable[[Iterable[str]], Iterable[Any]] = grid.pull_messages

    def pull_or_end(names: Iterable[str]) -> Iterable[Any]:
        if stop.is_set():
            raise SystemExit  # without a word: why it ends is said by the main thread
        return pull(names)

    grid.pull_messages = pull_or_end


def watch_replies(grid: Any) -> None:
    """Make a grid survive replies that its own decoder cannot read: each becomes an error of the node that was asked.

    Flower decodes a reply while it pulls it, and an error there ends the run and takes the replies of the same pull with it. So
    replies are pulled one by one. A reply that does not come from the node that was asked is refused too.

    Args:
        grid: of Flower, made for this run: its `push_messages` and `pull_messages` are replaced.
    """
    # Flower gives None in place of the name of a message that could not be sent.
    push: Callable[[list[Any]], Iterable[str | None]] = grid.push_messages
    pull: Callable[[list[str]], Iterable[Any]] = grid.pull_messages
    asked: dict[str, int] = {}

    def push_and_remember(messages: Iterable[Any]) -> list[str | None]:
        sent = list(messages)
        names = list(push(sent))
        asked.update({name: each.metadata.dst_node_id for name, each in zip(names, sent, strict=False) if name})
        return names

    def pull_one(name: str) -> list[Any]:
        try:
            replies = list(pull([name]))
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  # a stranger's bytes; if the network is down, the next push says so
            return [_lost(name, asked.get(name, 0), f"sent what cannot be read ({type(error).__name__}: {error})")]
        return [_from_asked(reply, name) for reply in replies]

    def _from_asked(reply: Any, name: str) -> Any:
        node = asked.get(name, reply.metadata.src_node_id)
        if reply.metadata.src_node_id == node:
            return reply
        reason = reply.error.reason if reply.has_error() else f"node {reply.metadata.src_node_id} replied in its place"
        return _lost(name, node, reason)

    def pull_one_by_one(names: Iterable[str]) -> list[Any]:
        return [reply for name in list(names) for reply in pull_one(name)]

    grid.push_messages, grid.pull_messages = push_and_remember, pull_one_by_one


def _lost(name: str, node: int, reason: str) -> SimpleNamespace:
    """In place of a message that could not be had."""
    return SimpleNamespace(
        metadata=SimpleNamespace(src_node_id=node, reply_to_message_id=name),
        has_error=lambda: True,
        error=SimpleNamespace(reason=reason),
    )
