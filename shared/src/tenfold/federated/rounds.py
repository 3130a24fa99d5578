"""Who takes part: which node is which client with how many samples, whose reply counts in a round, and when a run has fallen silent."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tenfold.errors import UserError
from tenfold.federated.messages import RawReply
from tenfold.federated.replies import Number, Rejection, Reply, ReplySpec, Seat, check_reply

MOST_SILENT_ROUNDS = 3
"""So many rounds in a row without a sound reply, and a run stops: what is wrong does not mend itself."""


@dataclass
class RoundBook:
    """The clients of a federation, and the round that is open.

    A client is bound to its node, and its number of samples fixed, when it is registered: by what it answers when it is asked who it is, or, where
    it is not asked or does not answer, by its first sound reply. Nobody can take a number that another node holds; where two unknown nodes
    claim one number at the same time neither gets it, because nothing tells them apart.

    Attributes:
        clients: numbers run from 0 to below this.
        max_samples: the most samples that a client may have.
        seats: by node.
        round: that is open, or was last.
        asked: nodes whose reply is awaited; empty while no round is open.
    """

    clients: int
    max_samples: int
    seats: dict[int, Seat] = field(default_factory=dict)
    round: int = 0
    asked: list[int] = field(default_factory=list)

    @property
    def client_number(self) -> Number:
        """What the number of a client must be."""
        return Number(0, self.clients - 1, whole=True)

    @property
    def sample_number(self) -> Number:
        """What a number of samples must be."""
        return Number(1, self.max_samples, whole=True)

    def name(self, node: int) -> int | None:
        """The client at a node."""
        return self.seats[node].client if node in self.seats else None

    def register(
        self, raws: Sequence[RawReply], spec: ReplySpec, known: Mapping[int, int] | None = None
    ) -> list[Rejection]:
        """Seat the nodes that say who they are.

        Args:
            raws: what nodes answered when they were asked.
            spec: of such an answer.
            known: the client of each node, where the one who started the nodes knows it: an answer must agree.

        Returns:
            Who was not seated, and why.
        """
        known = known or {}
        replies, rejections = [], []
        for raw in raws:
            expected = Seat(raw.node, known[raw.node]) if raw.node in known else None
            found = check_reply(raw, spec, expected, 0)
            if isinstance(found, Reply):
                replies.append(found)
            else:
                rejections.append(found)
        seated, clashes = self._unclaimed(replies)
        for reply in seated:
            self.seats[reply.node] = Seat(reply.node, reply.client, reply.samples or None, reply.metrics)
        return rejections + clashes

    def seat_known(self, known: Mapping[int, int]) -> list[Rejection]:
        """Seat nodes whose client is known without asking, and that have no seat yet; two nodes of one number are refused both."""
        wanted = [Reply(node, client, 0, {}, {}) for node, client in known.items() if node not in self.seats]
        seated, clashes = self._unclaimed(wanted)
        self.seats |= {each.node: Seat(each.node, each.client) for each in seated}
        return clashes

    def leave(self, present: Iterable[int]) -> list[Rejection]:
        """Give up the seats of nodes that are gone: a client that comes back may have another node.

        Args:
            present: the nodes that are there.

        Returns:
            Who has left.
        """
        there = set(present)
        gone = [seat for node, seat in self.seats.items() if node not in there]
        for seat in gone:
            del self.seats[seat.node]
        return [Rejection(seat.node, seat.client, "its node is gone") for seat in gone]

    def open(self, round_number: int, nodes: Iterable[int]) -> None:
        """Begin to wait for one reply of each node."""
        self.round, self.asked = round_number, list(nodes)

    def close(self, raws: Sequence[RawReply], spec: ReplySpec, waited: str = "") -> tuple[list[Reply], list[Rejection]]:
        """Sort the replies of the open round, and close it.

        Args:
            raws: all that came.
            spec: of a sound one.
            waited: how long was waited, such as `60 s`.

        Returns:
            The sound replies by client, ascending, and who was left out, in the order of the nodes that were asked.
        """
        asked, self.asked = self.asked, []
        counts = Counter(raw.node for raw in raws)
        rejections = [
            self._reject(
                node,
                f"was not asked for a reply in round {self.round}"
                if asked
                else f"replied after round {self.round} had closed",
            )
            for node in counts
            if node not in asked
        ]
        candidates = []
        for node in asked:
            mine = [raw for raw in raws if raw.node == node]
            if not mine:
                rejections.append(self._reject(node, f"no reply within {waited}" if waited else "no reply"))
            elif len(mine) > 1:
                rejections.append(self._reject(node, f"sent {len(mine)} replies in round {self.round}"))
            else:
                found = check_reply(mine[0], spec, self.seats.get(node), self.round)
                (candidates if isinstance(found, Reply) else rejections).append(found)  # ty: ignore[invalid-argument-type]
        sound, clashes = self._unclaimed(candidates)
        for reply in sound:
            seat = self.seats.get(reply.node, Seat(reply.node, reply.client))
            self.seats[reply.node] = seat if seat.samples or not spec.samples else replace(seat, samples=reply.samples)
        return sorted(sound, key=lambda each: each.client), rejections + clashes

    def _unclaimed(self, replies: Sequence[Reply]) -> tuple[list[Reply], list[Rejection]]:
        """The replies whose client is theirs or nobody's, and a rejection of each of the others."""
        owners = {seat.client: node for node, seat in self.seats.items()}
        claims = Counter(reply.client for reply in replies if reply.client not in owners)
        sound, rejections = [], []
        for reply in replies:
            if owners.get(reply.client, reply.node) != reply.node:
                rejections.append(
                    self._reject(reply.node, f"calls itself client {reply.client}, which another node is")
                )
            elif claims[reply.client] > 1:
                reason = f"{claims[reply.client]} nodes call themselves client {reply.client}; give each its own partition-id"
                rejections.append(self._reject(reply.node, reason))
            else:
                sound.append(reply)
        return sound, rejections

    def _reject(self, node: int, reason: str) -> Rejection:
        return Rejection(node, self.name(node), reason)


def stop_when_silent(silent: int, rounds: int, round_number: int, rejections: Iterable[Rejection]) -> None:
    """Stop a run in which nobody has had anything sound to say for too long.

    Args:
        silent: rounds without a sound reply up to now, in a row.
        rounds: of the whole run: one of two rounds that were all silent is stopped too.
        round_number: the last one.
        rejections: of the last one.

    Raises:
        UserError: says why nobody could be used, and how to go on.
    """
    if silent < min(MOST_SILENT_ROUNDS, rounds):
        return
    reasons = "; ".join(dict.fromkeys(map(str, rejections))) or "nobody was asked"
    which = f"round {round_number}" if silent == 1 else f"rounds {round_number - silent + 1} to {round_number}"
    shown = reasons if len(reasons) <= 600 else reasons[:597] + "..."
    raise UserError(f"{which}: no client's training could be used ({shown}); mend that and continue with --resume")
